//! Prompts that have something in common with what a session holds: what is kept, and that it changes nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use longgen::{Cancel, Device, KvType, Model, Prompted, Session, SessionParams};
use longgen_format::TensorType;
use support::model::{File, devices, distance, tokens};
use support::random::Random;
use support::tiny_model;

const N_CTX: u32 = 1500;

/// Restore points within so many tokens of each other may have become one.
const SPACING: usize = 128;

fn params(chunk_tokens: u32, kv_type: KvType, restore_bytes: usize) -> SessionParams {
    SessionParams { n_ctx: N_CTX, chunk_tokens, kv_type, restore_bytes, ..Default::default() }
}

fn prompt(session: &mut Session, text: &[u32]) -> Prompted {
    session.prompt(text, &Cancel::default(), &mut |_, _| true).unwrap()
}

/// The session's logits are those of one that has computed all its tokens anew.
fn check_logits(model: &Arc<Model>, device: Device, session: &mut Session, kv_type: KvType) {
    let mut fresh = Session::new(model, &params(100, kv_type, 1)).unwrap();
    fresh.prefill(session.tokens(), &Cancel::default(), &mut |_, _| true).unwrap();
    let differs = distance(session.logits().unwrap(), fresh.logits().unwrap());
    // How a card splits the keys of a query depends on the length of the step, and rounds accordingly.
    let allowed = if device == Device::Cpu { 0.0 } else { 0.03 };
    assert!(differs <= allowed, "{device:?} {kv_type:?}: differs by {differs}");
}

/// A text with a part of the old one at its beginning.
fn edited(old: &[u32], random: &mut Random) -> Vec<u32> {
    let n_common = random.below(old.len() + 1);
    let most = if random.below(4) == 0 { 500 } else { 40 };
    let n_new = random.below(most) + usize::from(n_common == 0);
    let mut text = old[..n_common].to_vec();
    text.extend(tokens(n_new, random.below(1 << 20) as u64));
    text.truncate(N_CTX as usize);
    text
}

#[test]
fn any_prompt_gives_what_a_new_session_gives() {
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        for (seed, kv_type, chunk_tokens, restore_bytes) in [
            (1, KvType::F16, 64, 1 << 24),
            (2, KvType::Q8, 100, 200_000),
            (3, KvType::F32, 33, 60_000),
            (4, KvType::F16, 256, 1),
        ] {
            let mut random = Random::new(seed);
            let mut session = Session::new(&model, &params(chunk_tokens, kv_type, restore_bytes)).unwrap();
            for _ in 0..60 {
                let held = session.tokens().to_vec();
                let points = session.restore_points().unwrap();
                let had_logits = session.logits().is_ok();
                let text = edited(&held, &mut random);
                let computed = session.counters().prompt.n_tokens;
                let did = prompt(&mut session, &text);

                assert_eq!(session.tokens(), text);
                let n_common = held.iter().zip(&text).take_while(|(a, b)| a == b).count();
                let wanted = if text == held && had_logits { n_common } else { n_common.min(text.len() - 1) };
                assert_eq!((did.n_common, did.n_reused + did.n_computed), (n_common, text.len()));
                assert_eq!(session.counters().prompt.n_tokens - computed, did.n_computed as u64);
                let nearest = points.iter().copied().filter(|&point| point <= wanted).max().unwrap_or(0);
                assert!((nearest..=wanted).contains(&did.n_reused), "{did:?} {points:?}");
                assert!(held.len() - wanted > 16 || did.n_reused == wanted, "a block back is always there");
                assert_eq!(did.n_reused < wanted, !did.limiting_layers.is_empty());
                // Layer 1 sees everything and loses nothing.
                assert!(did.limiting_layers.iter().all(|layer| [0, 2, 3].contains(layer)), "{did:?}");
                assert!(session.restore_bytes() <= restore_bytes);
                check_logits(&model, device, &mut session, kv_type);

                for token in tokens(random.below(60).min(N_CTX as usize - text.len()), seed) {
                    session.decode(token, &Cancel::default()).unwrap();
                }
                check_logits(&model, device, &mut session, kv_type);
            }
        }
    }
}

#[test]
fn a_conversation_computes_little_more_than_what_is_new() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let mut session = Session::new(&model, &params(64, KvType::F16, 1 << 24)).unwrap();
    let mut random = Random::new(3);
    // Where each turn of the conversation begins.
    let (mut text, mut turns) = (Vec::new(), Vec::new());
    for turn in 0..12 {
        turns.push(text.len());
        text.extend(tokens(20 + random.below(60), turn));
        let did = prompt(&mut session, &text);
        assert_eq!(did.n_reused, *turns.last().unwrap(), "everything up to the new message was there");
        for token in tokens(random.below(40), turn + 100) {
            session.decode(token, &Cancel::default()).unwrap();
            text.push(token);
        }
    }
    for turn in [9, 5, 2] {
        text.truncate(turns[turn]);
        text.extend(tokens(30, 200 + turn as u64));
        let did = prompt(&mut session, &text);
        assert_eq!(did.n_common, turns[turn]);
        assert!(did.n_computed <= 30 + SPACING, "an edit of turn {turn}: {did:?}");
        check_logits(&model, Device::Cpu, &mut session, KvType::F16);
    }
}

#[test]
fn a_long_text_with_another_question_is_not_read_again() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let (chunk, document) = (64, tokens(1280, 1));
    let mut session = Session::new(&model, &params(chunk, KvType::F16, 0)).unwrap();
    for question in 0..4 {
        let text = [&document[..], &tokens(200, 7 + question)].concat();
        let did = prompt(&mut session, &text);
        if question > 0 {
            assert!(did.n_computed <= 200 + 2 * chunk as usize, "{did:?}");
        }
        check_logits(&model, Device::Cpu, &mut session, KvType::F16);
    }
    // Without restore points all of it is, and it is said why.
    let mut session = Session::new(&model, &params(chunk, KvType::F16, 1)).unwrap();
    prompt(&mut session, &[&document[..], &tokens(200, 7)].concat());
    let did = prompt(&mut session, &[&document[..], &tokens(200, 8)].concat());
    assert_eq!((did.n_common, did.n_reused, did.limiting_layers), (1280, 0, vec![0, 2, 3]));
    assert_eq!(session.restore_bytes(), 0);
}

#[test]
fn a_prompt_in_parts_can_be_gone_back_to_like_one_in_a_call() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    for (seed, restore_bytes) in [(1, 1 << 24), (2, 300_000), (3, 150_000), (4, 0)] {
        let mut random = Random::new(seed);
        let new =
            |chunk_tokens| Session::new(&model, &params(chunk_tokens, KvType::F16, restore_bytes)).unwrap();
        let (mut in_parts, mut in_calls, mut beside) = (new(65), new(64), new(64));
        let mut turns = Vec::new();
        for turn in 0..6 {
            turns.push(in_parts.tokens().len());
            let text = tokens(150 + random.below(50), 10 * seed + turn);
            for part in text.chunks(64) {
                Session::step_batch(&mut [(&mut in_parts, part), (&mut beside, &[1])], &Cancel::default())
                    .unwrap();
            }
            in_calls.prefill(&text, &Cancel::default(), &mut |_, _| true).unwrap();
            turns.push(in_parts.tokens().len());
            for token in tokens(40, turn) {
                let mut batch = [(&mut in_parts, &[token][..]), (&mut beside, &[2])];
                Session::step_batch(&mut batch, &Cancel::default()).unwrap();
                in_calls.decode(token, &Cancel::default()).unwrap();
            }
        }
        for turn in turns.into_iter().rev() {
            let kept = [&mut in_parts, &mut in_calls].map(|session| {
                let held = session.tokens().len();
                session.rewind(turn.min(held)).unwrap()
            });
            let [in_parts, in_calls] = kept;
            assert!(in_parts + SPACING >= in_calls, "{turn}: {in_parts} and {in_calls}");
            if restore_bytes == 1 << 24 {
                assert!(in_parts + SPACING >= turn, "{turn}: {in_parts}");
            }
        }
    }
}

#[test]
fn an_answer_can_be_given_again_and_again() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let mut session = Session::new(&model, &params(256, KvType::F16, 1 << 24)).unwrap();
    let text = tokens(700, 1);
    prompt(&mut session, &text);
    for seed in 0..5 {
        // Back to before the prompt's last token, and behind it again for its logits.
        assert_eq!(session.rewind(699).unwrap(), 699);
        session.decode(text[699], &Cancel::default()).unwrap();
        check_logits(&model, Device::Cpu, &mut session, KvType::F16);
        for token in tokens(500, seed) {
            session.decode(token, &Cancel::default()).unwrap();
        }
        check_logits(&model, Device::Cpu, &mut session, KvType::F16);
    }
}

#[test]
fn where_prompts_have_parted_they_may_part_again() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let (system, mut random) = (tokens(600, 1), Random::new(5));
    for begins_with_it in [true, false] {
        let mut session = Session::new(&model, &params(128, KvType::F16, 0)).unwrap();
        if begins_with_it {
            prompt(&mut session, &system);
        }
        for question in 0..8 {
            let text = [&system[..], &tokens(300 + random.below(500), 10 + question)].concat();
            let did = prompt(&mut session, &text);
            let n_known = if begins_with_it || question > 1 { 600 } else { 0 };
            assert!(did.n_reused + SPACING >= n_known, "question {question}: {did:?}");
            check_logits(&model, Device::Cpu, &mut session, KvType::F16);
        }
    }
}

#[test]
fn a_prompt_that_is_stopped_goes_on_where_it_stopped() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let mut session = Session::new(&model, &params(50, KvType::F16, 0)).unwrap();
    let mut random = Random::new(9);
    let mut text = tokens(400, 4);
    for _ in 0..20 {
        text = edited(&text, &mut random);
        let (cancel, after) = (Cancel::default(), random.below(400));
        let result = session.prompt(&text, &cancel, &mut |done, _| {
            if done > after {
                cancel.cancel();
            }
            true
        });
        assert!(result.is_ok() || text.starts_with(session.tokens()));
        let held = session.tokens().len();
        let did = prompt(&mut session, &text);
        assert!(did.n_reused >= held.min(text.len() - 1), "{did:?}");
        check_logits(&model, Device::Cpu, &mut session, KvType::F16);
    }
    assert!(session.prompt(&[], &Cancel::default(), &mut |_, _| true).is_err());
    let held = session.tokens().to_vec();
    let too_long = tokens(N_CTX as usize + 1, 1);
    assert_eq!(
        session.prompt(&too_long, &Cancel::default(), &mut |_, _| true).unwrap_err().kind(),
        longgen::ErrorKind::ContextFull
    );
    assert_eq!(session.tokens(), held);
}
