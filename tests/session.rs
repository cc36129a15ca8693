//! Facts about sessions that need no reference: chunks, threads, cancels and rewinds leave no trace in the numbers, and
//! memory is what the plan says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::{
    Cancel, Counters, Device, ErrorKind, KvType, Model, ModelParams, Precision, Sampler, SamplerParams,
    Session, SessionParams,
};
use longgen_format::{Directory, TensorType, quant};
use support::model::{File, devices, distance, tokens};
use support::random::Random;
use support::tiny_model;

const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8];

fn params(chunk_tokens: u32, precision: Precision, kv_type: KvType) -> SessionParams {
    SessionParams { n_ctx: 400, chunk_tokens, kv_type, precision, logits_rows: 3, ..Default::default() }
}

/// Logits behind every token.
fn all_logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    let mut expected_row = 0;
    session
        .prefill_each(tokens, &Cancel::default(), &mut |row, logits| {
            assert_eq!(row, expected_row);
            expected_row += logits.len() / tiny_model::N_VOCAB;
            all.extend_from_slice(logits);
            Ok(())
        })
        .unwrap();
    assert_eq!(all.len(), tokens.len() * tiny_model::N_VOCAB);
    all
}

#[test]
fn logits_are_the_same_bits_for_every_chunk_size_and_thread_count() {
    let text = tokens(333, 5);
    for ty in [TensorType::F32, TensorType::Q8_0, TensorType::Q4_1, TensorType::BF16] {
        let file = File::new(&tiny_model::bytes(ty));
        for (precision, kv_type) in [
            (Precision::Exact, KvType::F32),
            (Precision::Fast, KvType::F16),
            (Precision::Exact, KvType::Bf16),
            (Precision::Fast, KvType::Q8),
        ] {
            let model = file.open(Device::Cpu, 1);
            let mut session = Session::new(&model, &params(400, precision, kv_type)).unwrap();
            let expected = all_logits(&mut session, &text);
            assert!(expected.iter().all(|x| x.is_finite()));
            for n_threads in [1, 2, 3] {
                let model = file.open(Device::Cpu, n_threads);
                for chunk in [1, 7, 64, 100] {
                    let mut session = Session::new(&model, &params(chunk, precision, kv_type)).unwrap();
                    let has = all_logits(&mut session, &text);
                    let differs = has.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    let row = differs.map(|i| i / tiny_model::N_VOCAB);
                    assert_eq!(row, None, "{ty} {precision:?} {kv_type:?} chunk {chunk} threads {n_threads}");
                }
            }
        }
    }
}

/// Devices replay a decoded token's ops, and may begin one before the last one has ended.
#[test]
fn wide_tokens_decoded_one_by_one_are_those_of_a_prompt() {
    let text = tokens(24, 9);
    for ty in [TensorType::F16, TensorType::BF16, TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1] {
        let file = File::new(&tiny_model::wide_bytes(ty));
        let model = file.open(Device::Cpu, 2);
        let of_cpu = params(24, Precision::Exact, KvType::F32);
        let expected = all_logits(&mut Session::new(&model, &of_cpu).unwrap(), &text);
        for device in devices() {
            let model = file.open(device, 2);
            for (precision, most) in [(Precision::Exact, 1e-5), (Precision::Fast, 0.03)] {
                let mut session = Session::new(&model, &params(1, precision, KvType::F32)).unwrap();
                let mut has = Vec::new();
                for &token in &text {
                    session.decode(token, &Cancel::default()).unwrap();
                    has.extend_from_slice(session.logits().unwrap());
                }
                let apart = distance(&has, &expected);
                assert!(apart < most, "{device:?} {ty} {precision:?} differs by {apart}");
            }
        }
    }
}

#[test]
fn every_device_computes_what_the_oracle_computes() {
    let text = tokens(260, 6);
    for device in devices() {
        for ty in TensorType::ALL {
            let file = File::new(&tiny_model::bytes(ty));
            let logits = |device, precision| {
                let model = file.open(device, 2);
                all_logits(&mut Session::new(&model, &params(90, precision, KvType::F32)).unwrap(), &text)
            };
            let expected = logits(Device::Reference, Precision::Exact);
            let exact = distance(&logits(device, Precision::Exact), &expected);
            assert!(exact < 1e-5, "{device:?} {ty}: exact differs by {exact}");
            let fast = distance(&logits(device, Precision::Fast), &expected);
            assert!(fast < 0.05, "{device:?} {ty}: fast differs by {fast}");
        }
    }
}

/// The matrix of a file whose embedding is its output, too, times hidden states: (rows, n_vocab).
fn output_of(file: &[u8], hidden: &[f32]) -> Vec<f32> {
    let directory = Directory::read(file).unwrap();
    let info = directory.tensor("token_embd.weight").unwrap();
    let [begin, n_bytes] = [info.offset(), info.n_bytes()].map(|n| usize::try_from(n).unwrap());
    let d_model = usize::try_from(info.shape()[0]).unwrap();
    let mut matrix = vec![0.0; tiny_model::N_VOCAB * d_model];
    quant::dequantize(info.ty().unwrap(), &file[begin..begin + n_bytes], &mut matrix).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let rows = hidden.chunks_exact(d_model);
    rows.flat_map(|row| matrix.chunks_exact(d_model).map(|w| dot(row, w))).collect()
}

/// Some of the rows below `n`, rising.
fn some_rows(random: &mut Random, n: usize) -> Vec<usize> {
    // Runs of neighbours, rows by themselves, none, all.
    let n_of_ten = [0, 1, 5, 9, 10][random.below(5)];
    (0..n).filter(|_| random.below(10) < n_of_ten).collect()
}

#[test]
fn chosen_rows_get_their_logits_and_hidden_states() {
    let text = tokens(200, 70);
    for ty in [TensorType::F32, TensorType::Q8_0, TensorType::BF16] {
        let bytes = tiny_model::bytes(ty);
        let file = File::new(&bytes);
        for device in [devices(), vec![Device::Reference]].concat() {
            let model = file.open(device, 2);
            let (n_vocab, d_model) = (model.config().n_vocab, model.config().d_model);
            let new = |chunk| Session::new(&model, &params(chunk, Precision::Exact, KvType::F32)).unwrap();
            let expected = all_logits(&mut new(90), &text);
            let mut random = Random::new(71);
            for round in 0..if device == Device::Reference { 2 } else { 12 } {
                let mut session = new([90, 7, 400, 1][round % 4]);
                let mut done = 0;
                // Several prompts, one behind the other.
                while done < text.len() {
                    let n = (1 + random.below(120)).min(text.len() - done);
                    let rows = some_rows(&mut random, n);
                    let mut logits = vec![f32::NAN; rows.len() * n_vocab];
                    let mut hidden = vec![f32::NAN; rows.len() * d_model];
                    let [has_logits, has_hidden] = [random.below(4) > 0, random.below(4) > 0];
                    let mut told = 0;
                    session
                        .prefill_rows(
                            &text[done..done + n],
                            &rows,
                            has_logits.then_some(&mut logits),
                            has_hidden.then_some(&mut hidden),
                            &Cancel::default(),
                            &mut |n_done, _| {
                                told = n_done;
                                true
                            },
                        )
                        .unwrap();
                    assert_eq!((told, session.tokens()), (n, &text[..done + n]));
                    let row_of = |row: &usize| &expected[(done + row) * n_vocab..][..n_vocab];
                    let of_rows: Vec<f32> = rows.iter().flat_map(row_of).copied().collect();
                    let what = format!("{device:?} {ty} round {round} at {done}");
                    let allowed = if device == Device::Cpu { 0.0 } else { 1e-5 };
                    if has_logits && !rows.is_empty() {
                        let differs = distance(&logits, &of_rows);
                        assert!(differs <= allowed, "{what}: logits differ by {differs}");
                    }
                    if has_hidden && !rows.is_empty() {
                        let differs = distance(&output_of(&bytes, &hidden), &of_rows);
                        assert!(differs < 1e-5, "{what}: logits of the hidden states differ by {differs}");
                    }
                    let last = row_of(&(n - 1));
                    let differs = distance(&output_of(&bytes, session.hidden().unwrap()), last);
                    assert!(differs < 1e-5, "{what}: logits of the last hidden state differ by {differs}");
                    match session.logits() {
                        Ok(logits) => {
                            assert!(has_logits && rows.last() == Some(&(n - 1)));
                            assert!(distance(logits, last) <= allowed, "{what}: last logits");
                        }
                        Err(error) => {
                            assert!(!has_logits || rows.last() != Some(&(n - 1)), "{what}: {error}");
                            assert_eq!(error.kind(), ErrorKind::Invalid);
                        }
                    }
                    done += n;
                }
            }
        }
    }
}

#[test]
fn the_hidden_state_is_the_last_tokens_however_it_was_computed() {
    let bytes = tiny_model::bytes(TensorType::F16);
    for device in devices() {
        let model = File::new(&bytes).open(device, 2);
        let params = params(64, Precision::Exact, KvType::F16);
        let mut sessions = batch(&model, &params, 5);
        let check = |session: &mut Session| {
            let expected = output_of(&bytes, session.hidden().unwrap());
            let differs = distance(session.logits().unwrap(), &expected);
            assert!(differs < 1e-5, "{device:?}: differs by {differs}");
        };
        for i in 0..6 {
            sessions.iter_mut().for_each(|(session, _)| check(session));
            // One by one, then together.
            for (session, next) in &mut sessions {
                session.decode(next[i], &Cancel::default()).unwrap();
                check(session);
            }
            // Of every third one three tokens.
            let parts = sessions.iter_mut().enumerate();
            let parts = parts.map(|(j, (session, next))| (session, &next[i..=i + j % 3]));
            Session::step_batch(&mut parts.collect::<Vec<_>>(), &Cancel::default()).unwrap();
        }
        // What was computed is lost with a step that does not count, but not what was refused.
        let kind = |session: &mut Session| session.hidden().unwrap_err().kind();
        let session = &mut sessions[0].0;
        assert!(session.decode(258, &Cancel::default()).is_err());
        check(session);
        let mut n_looks = 0;
        while session.decode(1, &Cancel::after(n_looks)).is_err() {
            assert_eq!(kind(session), ErrorKind::Invalid);
            session.logits().unwrap();
            n_looks += 1;
        }
        assert!(n_looks > 0, "{device:?}");
        check(session);
        session.rewind(session.tokens().len() - 1).unwrap();
        assert_eq!(kind(session), ErrorKind::Invalid);
        session.reset();
        assert_eq!(kind(session), ErrorKind::Invalid);
    }
}

#[test]
fn rows_that_make_no_sense_are_refused_before_anything_changes() {
    let model = File::new(&tiny_model::bytes(TensorType::F32)).open(Device::Cpu, 1);
    let mut session = Session::new(&model, &params(64, Precision::Exact, KvType::F32)).unwrap();
    session.decode(7, &Cancel::default()).unwrap();
    let before = session.logits().unwrap().to_vec();
    let (n_vocab, d_model) = (model.config().n_vocab, model.config().d_model);
    let mut room = vec![0.0; 3 * n_vocab];
    for (rows, n_logits, n_hidden) in [
        (&[0, 5][..], 2 * n_vocab, 2 * d_model),
        (&[3, 1], 2 * n_vocab, 2 * d_model),
        (&[3, 3], 2 * n_vocab, 2 * d_model),
        (&[usize::MAX], n_vocab, d_model),
        (&[0, 4], n_vocab, 2 * d_model),
        (&[0, 4], 2 * n_vocab, 2 * d_model + 1),
        (&[], 0, d_model),
    ] {
        let (logits, hidden) = room.split_at_mut(n_logits);
        let hidden = Some(&mut hidden[..n_hidden]);
        let nothing = &mut |_, _| true;
        let result = session.prefill_rows(&[1; 5], rows, Some(logits), hidden, &Cancel::default(), nothing);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Invalid, "{rows:?}");
    }
    assert_eq!(session.tokens(), [7]);
    assert_eq!(session.logits().unwrap(), before);
}

#[test]
fn tokens_decoded_one_by_one_give_what_a_prompt_gives() {
    let text = tokens(200, 16);
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        let params = params(64, Precision::Exact, KvType::F16);
        let expected = all_logits(&mut Session::new(&model, &params).unwrap(), &text);
        // From several depths, so that what a device records of one step serves at other positions and after a rewind.
        let mut session = Session::new(&model, &params).unwrap();
        for depth in [1, 60, 130] {
            session.rewind(0).unwrap();
            session.prefill(&text[..depth], &Cancel::default(), &mut |_, _| true).unwrap();
            for (i, &token) in text.iter().enumerate().skip(depth) {
                session.decode(token, &Cancel::default()).unwrap();
                let row = &expected[i * tiny_model::N_VOCAB..(i + 1) * tiny_model::N_VOCAB];
                let differs = distance(session.logits().unwrap(), row);
                assert!(differs < 1e-5, "{device:?}: position {i} from {depth} differs by {differs}");
            }
        }
    }
}

#[test]
fn a_cache_of_any_type_costs_what_the_type_rounds_away() {
    let text = tokens(260, 7);
    let file = File::new(&tiny_model::bytes(TensorType::F32));
    let logits = |device, kv_type| {
        let model = file.open(device, 2);
        all_logits(&mut Session::new(&model, &params(90, Precision::Exact, kv_type)).unwrap(), &text)
    };
    let unrounded = logits(Device::Reference, KvType::F32);
    for (kv_type, most) in [(KvType::F16, 0.005), (KvType::Bf16, 0.04), (KvType::Q8, 0.1)] {
        let expected = logits(Device::Reference, kv_type);
        let lost = distance(&expected, &unrounded);
        assert!(lost < most, "{kv_type:?} loses {lost}");
        for device in devices() {
            // What differs in its last bit may be rounded another way.
            let differs = distance(&logits(device, kv_type), &expected);
            assert!(
                differs < lost / 3.0,
                "{device:?} {kv_type:?} differs by {differs} where rounding loses {lost}"
            );
        }
    }
}

/// Moments at which to stop a call, as [`Cancel::after`] counts them: each of the first, then fewer and fewer.
fn moments() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1), |n| Some(n + 1 + n / 16))
}

/// Sessions of different lengths, every third with a longer context, and for each the tokens that come next.
fn batch(model: &Arc<Model>, params: &SessionParams, n: usize) -> Vec<(Session, Vec<u32>)> {
    let session = |i: usize| {
        let longer = if i % 3 == 1 { 800 } else { 0 };
        let params = SessionParams { n_ctx: params.n_ctx + longer, ..params.clone() };
        let mut session = Session::new(model, &params).unwrap();
        let text = tokens(1 + i * 37 % 211 + longer as usize, 40 + i as u64);
        session.prefill(&text, &Cancel::default(), &mut |_, _| true).unwrap();
        (session, tokens(8, 90 + i as u64))
    };
    (0..n).map(session).collect()
}

#[test]
fn sessions_that_are_decoded_together_get_what_each_gets_alone() {
    for device in devices() {
        for (ty, precision) in [
            (TensorType::F16, Precision::Exact),
            (TensorType::Q8_0, Precision::Fast),
            (TensorType::BF16, Precision::Fast),
        ] {
            let model = File::new(&tiny_model::bytes(ty)).open(device, 2);
            for n in [1, 2, 7, 16, 20] {
                let params = params(64, precision, KvType::F16);
                let (mut together, mut alone) = (batch(&model, &params, n), batch(&model, &params, n));
                for i in 0..6 {
                    let mut step: Vec<_> =
                        together.iter_mut().map(|(session, next)| (session, &next[i..=i])).collect();
                    Session::step_batch(&mut step, &Cancel::default()).unwrap();
                    for ((has, _), (expected, next)) in together.iter_mut().zip(&mut alone) {
                        expected.decode(next[i], &Cancel::default()).unwrap();
                        assert_eq!(has.tokens(), expected.tokens());
                        let differs = distance(has.logits().unwrap(), expected.logits().unwrap());
                        // Of many rows a card rounds the inputs to 16 bits.
                        let allowed = match (device, precision) {
                            (Device::Cpu, _) => 0.0,
                            (_, Precision::Exact) => 1e-5,
                            (_, Precision::Fast) => 0.05,
                        };
                        assert!(differs <= allowed, "{device:?} {ty} {n} sessions, token {i}: {differs}");
                    }
                }
            }
        }
    }
}

fn any_attention(random: &mut Random) -> LayerAttention {
    let [small, large] = [random.below(4), 1 + random.below(120)].map(|n| u32::try_from(n).unwrap());
    let mask = match random.below(3) {
        0 => Mask::Full,
        1 => Mask::Window { window_tokens: large, sink_tokens: 9 * small },
        _ => Mask::Blocks {
            block_size: 16,
            local_blocks: 1 + large / 30,
            sink_blocks: small % 3,
            stride: small,
        },
    };
    let phases = (0..tiny_model::N_HEADS).map(|_| u32::try_from(random.below(5)).unwrap()).collect();
    LayerAttention { mask, phases }
}

/// A session in a batch, the same tokens in one that computes alone, and the text of both.
struct Twins {
    together: Session,
    alone: Session,
    text: Vec<u32>,
}

#[test]
fn parts_of_prompts_beside_single_tokens_are_what_each_gets_alone() {
    let types = [TensorType::F32, TensorType::Q8_0, TensorType::BF16];
    for device in devices() {
        let mut n_cancelled = 0;
        for seed in 0..12 {
            let mut random = Random::new(seed);
            let plan: Vec<_> = (0..4).map(|_| any_attention(&mut random)).collect();
            let ty = types[random.below(3)];
            let model = File::new(&tiny_model::bytes_with(ty, &plan)).open(device, 2);
            let precision = [Precision::Exact, Precision::Fast][random.below(2)];
            let kv_type = KV_TYPES[random.below(4)];
            let n = [1, 2, 5, 19][random.below(4)];
            let mut all: Vec<_> = (0..n)
                .map(|i| {
                    let chunk_tokens = u32::try_from(40 + random.below(60)).unwrap();
                    let [together, alone] = [chunk_tokens, 33].map(|chunk_tokens| {
                        Session::new(&model, &params(chunk_tokens, precision, kv_type)).unwrap()
                    });
                    Twins { together, alone, text: tokens(400, 100 * seed + i) }
                })
                .collect();
            for step in 0..20 {
                if step % 4 == 0 {
                    all.sort_by_key(|_| random.bits());
                }
                // Some steps are of single tokens, which a card replays.
                let is_mixed = random.below(3) > 0;
                let mut room = all[0].together.chunk_tokens() - all.len();
                let lengths: Vec<_> = all
                    .iter()
                    .map(|twins| {
                        let most = room.min(twins.text.len() - twins.together.tokens().len() - 20);
                        let more =
                            if is_mixed && random.below(2) == 0 { random.below(most.min(39) + 1) } else { 0 };
                        room -= more;
                        1 + more
                    })
                    .collect();
                let mut batch = |cancel: &Cancel| {
                    let parts = all.iter_mut().zip(&lengths);
                    let parts = parts.map(|(Twins { together, text, .. }, n)| {
                        let done = together.tokens().len();
                        (together, &text[done..done + n])
                    });
                    Session::step_batch(&mut parts.collect::<Vec<_>>(), cancel)
                };
                // Stopped at some moment, mostly, and then begun anew.
                if batch(&Cancel::after(random.below(60) as u64)).is_err() {
                    n_cancelled += 1;
                    batch(&Cancel::default()).unwrap();
                }
                for (Twins { together, alone, text }, &n) in all.iter_mut().zip(&lengths) {
                    let done = alone.tokens().len();
                    alone.prefill(&text[done..done + n], &Cancel::default(), &mut |_, _| true).unwrap();
                    assert_eq!(together.tokens(), alone.tokens());
                    let allowed = match (device, precision) {
                        (Device::Cpu, _) => 0.0,
                        (_, Precision::Exact) if kv_type == KvType::F32 => 1e-5,
                        (_, Precision::Exact) => 0.03,
                        (_, Precision::Fast) => 0.08,
                    };
                    let what = format!(
                        "{device:?} {ty} {precision:?} {kv_type:?} seed {seed} step {step}: {n} at {done}"
                    );
                    let differs = distance(together.logits().unwrap(), alone.logits().unwrap());
                    assert!(differs <= allowed, "{what}: logits differ by {differs}");
                    let differs = distance(together.hidden().unwrap(), alone.hidden().unwrap());
                    assert!(differs <= allowed, "{what}: hidden states differ by {differs}");
                    // Within a block of the furthest token; the next step writes over what was there.
                    if random.below(5) == 0 {
                        let back = random.below(16.min(done + n));
                        assert_eq!(
                            together.rewind(done + n - back).unwrap(),
                            alone.rewind(done + n - back).unwrap()
                        );
                    }
                }
            }
        }
        assert!(n_cancelled > 50, "{device:?}: {n_cancelled}");
    }
}

#[test]
fn single_tokens_count_as_generated_and_parts_as_prompts() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let mut sessions =
        [0, 1].map(|_| Session::new(&model, &params(64, Precision::Fast, KvType::F16)).unwrap());
    for _ in 0..3 {
        let [a, b] = &mut sessions;
        Session::step_batch(&mut [(a, &[1; 30]), (b, &[2])], &Cancel::default()).unwrap();
    }
    let counted = sessions.map(|session| {
        let Counters { prompt, generated } = session.counters();
        assert!(prompt.time + generated.time > Duration::ZERO);
        [prompt.n_tokens, generated.n_tokens]
    });
    assert_eq!(counted, [[90, 0], [0, 3]]);
}

#[test]
fn sessions_on_several_threads_do_not_disturb_each_other() {
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::F16)).open(device, 2);
        let params = params(64, Precision::Fast, KvType::F16);
        // Opens a session too: its memory is set up while others compute.
        let run = &|i: usize| {
            let (mut session, _) = batch(&model, &params, i + 1).pop().unwrap();
            for token in tokens(12, i as u64) {
                session.decode(token, &Cancel::default()).unwrap();
            }
            session.logits().unwrap().to_vec()
        };
        let alone: Vec<_> = (0..6).map(run).collect();
        let together: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || run(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(together == alone, "{device:?}");
    }
}

#[test]
fn a_batch_that_fails_leaves_no_trace() {
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::F32)).open(device, 2);
        let params = params(64, Precision::Exact, KvType::F16);
        let mut sessions = batch(&model, &params, 3);
        let before: Vec<_> = sessions.iter().map(|(session, _)| session.tokens().to_vec()).collect();
        let other_model = File::new(&tiny_model::bytes(TensorType::F32)).open(device, 1);
        let mut other = batch(&other_model, &params, 1);
        let mut rounded = batch(&model, &SessionParams { kv_type: KvType::Bf16, ..params.clone() }, 1);
        let mut narrow = batch(&model, &SessionParams { chunk_tokens: 3, ..params.clone() }, 1);
        let mut full = Session::new(&model, &SessionParams { n_ctx: 5, ..params.clone() }).unwrap();
        full.prefill(&[1; 3], &Cancel::default(), &mut |_, _| true).unwrap();

        let cancelled = Cancel::default();
        cancelled.cancel();
        let never = Cancel::default();
        for (cancel, tokens, last, expected) in [
            (&cancelled, &[1, 2][..], None, "the caller's request"),
            (&never, &[1, 258], None, "session 0 of the batch: token 258 of a vocabulary of 258"),
            (&never, &[], None, "session 0 of the batch: no tokens"),
            (&never, &[1; 22], None, "a batch of 66 tokens: the first session's chunks hold 64"),
            (&never, &[1], Some(&mut other[0].0), "several models"),
            (&never, &[1], Some(&mut rounded[0].0), "F16, Exact) and (Bf16, Exact)"),
            (&never, &[1; 4], Some(&mut narrow[0].0), "session 3 of the batch: 4 tokens: its chunks hold 3"),
            (&never, &[1; 3], Some(&mut full), "session 3 of the batch: 3 more tokens behind 3 do not fit"),
        ] {
            let mut step: Vec<_> = sessions.iter_mut().map(|(session, _)| (session, tokens)).collect();
            step.extend(last.map(|session| (session, tokens)));
            let error = Session::step_batch(&mut step, cancel).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            let kind = match expected {
                _ if expected.contains("request") => ErrorKind::Cancelled,
                _ if expected.contains("fit") => ErrorKind::ContextFull,
                _ => ErrorKind::Invalid,
            };
            assert_eq!(error.kind(), kind);
        }
        let all = narrow.iter_mut().chain(&mut sessions);
        let mut step: Vec<_> = all.map(|(session, _)| (session, &[1][..])).collect();
        let error = Session::step_batch(&mut step, &never).unwrap_err();
        assert!(
            error.to_string().contains("a batch of 4 tokens: the first session's chunks hold 3"),
            "{error}"
        );
        assert_eq!(Session::step_batch(&mut [], &never).unwrap_err().kind(), ErrorKind::Invalid);

        // Nobody has read the logits yet: they are where they were computed.
        let mut fresh = batch(&model, &params, 3);
        for (((has, _), tokens), (expected, _)) in sessions.iter_mut().zip(&before).zip(&mut fresh) {
            assert_eq!(has.tokens(), tokens);
            assert_eq!(has.top(256).unwrap(), expected.top(256).unwrap());
        }
        // Stopped at one moment after the other, until the step is done before it is stopped.
        let step = |sessions: &mut [(Session, Vec<u32>)], cancel: &Cancel| {
            let parts = sessions.iter_mut().enumerate();
            let parts = parts.map(|(i, (session, next))| (session, &next[i..2 * i + 1]));
            Session::step_batch(&mut parts.collect::<Vec<_>>(), cancel)
        };
        let mut n_cancelled = 0;
        for n_looks in moments() {
            let result = step(&mut sessions, &Cancel::after(n_looks));
            if result.is_ok() {
                step(&mut fresh, &never).unwrap();
            }
            for ((has, _), (expected, _)) in sessions.iter_mut().zip(&mut fresh) {
                assert_eq!(has.tokens(), expected.tokens());
                assert_eq!(has.top(256).unwrap(), expected.top(256).unwrap(), "{device:?}: moment {n_looks}");
            }
            match result {
                Ok(()) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            }
            n_cancelled += 1;
        }
        // Every layer has several.
        assert!(n_cancelled > 20, "{device:?}: {n_cancelled}");
    }
}

#[test]
fn the_likeliest_tokens_are_those_of_the_logits() {
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        let mut session = Session::new(&model, &params(64, Precision::Fast, KvType::F16)).unwrap();
        assert_eq!(session.top(1).unwrap_err().kind(), ErrorKind::Invalid);
        let mut samplers = [
            SamplerParams::default(),
            SamplerParams { temperature: 0.8, top_k: 20, top_p: 0.9, seed: 4, ..Default::default() },
            SamplerParams { temperature: 0.8, top_k: 300, seed: 5, ..Default::default() },
            SamplerParams { temperature: 1.1, top_p: 0.95, seed: 6, ..Default::default() },
            SamplerParams { repeat_penalty: 1.3, repeat_last_n: 20, ..Default::default() },
            SamplerParams { repeat_penalty: 0.7, ..Default::default() },
            SamplerParams {
                temperature: 0.8,
                top_k: 5,
                min_p: 0.02,
                repeat_penalty: 2.0,
                ..Default::default()
            },
            SamplerParams {
                temperature: 0.8,
                top_k: 220,
                repeat_penalty: 1.1,
                seed: 7,
                ..Default::default()
            },
            SamplerParams { frequency_penalty: 0.4, presence_penalty: 0.9, ..Default::default() },
            SamplerParams { presence_penalty: -0.5, temperature: 0.7, top_k: 9, ..Default::default() },
            SamplerParams { dry_multiplier: 3.0, dry_allowed_length: 1, ..Default::default() },
            SamplerParams { typical_p: 0.6, temperature: 0.9, top_k: 40, seed: 8, ..Default::default() },
        ]
        .map(|params| [Sampler::new(&params).unwrap(), Sampler::new(&params).unwrap()]);
        let text = tokens(30, 60);
        for (i, &token) in text.iter().enumerate() {
            session.decode(token, &Cancel::default()).unwrap();
            // Asked for before the logits are, and after.
            let top = session.top(256).unwrap();
            for [few, all] in &mut samplers {
                let chosen = session.sample(few).unwrap();
                assert_eq!(chosen, all.sample(session.logits().unwrap(), &text[..=i]).unwrap());
                let mask: Vec<u32> = (0..9).map(|word| !token.rotate_left(word * 3)).collect();
                let chosen = session.sample_masked(few, &mask).unwrap();
                let place = all.behind(&text[..=i]).unwrap().masked(&mask);
                assert_eq!(chosen, place.sample(session.logits().unwrap()).unwrap());
                assert_eq!(few.choices(), all.choices());
            }
            let mut expected: Vec<_> = (0..).zip(session.logits().unwrap().iter().copied()).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let has: Vec<_> = top.iter().map(|candidate| (candidate.token, candidate.logit)).collect();
            assert_eq!(has, expected[..256]);
            assert_eq!(session.top(3).unwrap(), top[..3]);
        }
        assert_eq!(session.top(257).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn the_longest_context_is_the_longest_that_fits() {
    let model = File::new(&tiny_model::bytes(TensorType::F32)).open(Device::Cpu, 2);
    let mut random = Random::new(61);
    for _ in 0..50 {
        let n_ctx = u32::try_from(1 + random.below(3000)).unwrap();
        let params = SessionParams { n_ctx, kv_type: KV_TYPES[random.below(4)], ..Default::default() };
        let bytes = |n_ctx| model.plan(&SessionParams { n_ctx, ..params.clone() }).unwrap().total_bytes();
        let budget = random.below(bytes(n_ctx) * 5 / 4);
        match model.longest_context(&params, budget).unwrap() {
            Some(fits) => {
                assert!(bytes(fits) <= budget);
                assert!(fits == n_ctx || bytes(fits + 1) > budget);
            }
            None => assert!(bytes(1) > budget),
        }
    }
}

#[test]
fn a_limit_decides_how_long_a_context_is() {
    let model = File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 2);
    let n_ctx_train = model.config().n_ctx_train;
    let mut random = Random::new(62);
    for kv_type in KV_TYPES {
        let chunk_tokens = u32::try_from(random.below(200)).unwrap();
        let params = SessionParams { chunk_tokens, kv_type, ..Default::default() };
        let bytes = |n_ctx| model.plan(&SessionParams { n_ctx, ..params.clone() }).unwrap().total_bytes();
        let of_context: Vec<usize> = (1..=n_ctx_train).map(bytes).collect();
        for _ in 0..20 {
            let max_bytes = 1 + random.below(*of_context.last().unwrap() * 9 / 8);
            let longest = (1..=n_ctx_train).rev().find(|&n_ctx| of_context[n_ctx as usize - 1] <= max_bytes);
            let open = |n_ctx| Session::new(&model, &SessionParams { n_ctx, max_bytes, ..params.clone() });

            match (open(0), longest) {
                (Ok(session), Some(longest)) => {
                    assert_eq!(session.n_ctx(), longest);
                    assert_eq!(model.session_bytes(), of_context[longest as usize - 1]);
                }
                (Err(error), None) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
                (result, _) => {
                    panic!("{max_bytes} bytes: {longest:?}, {:?}", result.map(|session| session.n_ctx()))
                }
            }
            let n_ctx = 1 + u32::try_from(random.below(n_ctx_train as usize)).unwrap();
            let needed = of_context[n_ctx as usize - 1];
            match open(n_ctx) {
                Ok(session) => assert!(session.n_ctx() == n_ctx && needed <= max_bytes),
                Err(error) => {
                    assert!(error.kind() == ErrorKind::OutOfMemory && needed > max_bytes);
                    let message = error.to_string();
                    assert!(
                        message.contains(&format!("needs {needed} bytes, max_bytes is {max_bytes}")),
                        "{message}"
                    );
                    let fits = longest.map(|longest| format!("; a context of {longest} tokens would fit"));
                    assert!(
                        message.ends_with(&fits.unwrap_or("; no context is short enough".into())),
                        "{message}"
                    );
                }
            }
            assert_eq!(model.session_bytes(), 0);
        }
    }
}

#[test]
fn a_cancelled_prompt_leaves_the_chunks_before_it_and_no_trace() {
    for device in devices() {
        let file = File::new(&tiny_model::bytes(TensorType::Q8_0));
        let model = file.open(device, 2);
        let (first, second) = (tokens(130, 1), tokens(150, 2));
        let params = params(50, Precision::Fast, KvType::F16);
        let nothing = &mut |_, _| true;

        let mut straight = Session::new(&model, &params).unwrap();
        straight.prefill(&first, &Cancel::default(), nothing).unwrap();
        straight.prefill(&second, &Cancel::default(), nothing).unwrap();
        let expected = straight.logits().unwrap().to_vec();

        // Before the first chunk, then at one moment after the other.
        let mut session = Session::new(&model, &params).unwrap();
        session.prefill(&first, &Cancel::default(), nothing).unwrap();
        let before = session.logits().unwrap().to_vec();
        let cancel = Cancel::default();
        cancel.cancel();
        assert_eq!(session.prefill(&second, &cancel, nothing).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(session.tokens(), first);
        assert_eq!(session.logits().unwrap(), before);

        let mut n_cancelled = 0;
        for n_looks in moments() {
            let done = session.tokens().len() - first.len();
            match session.prefill(&second[done..], &Cancel::after(n_looks), nothing) {
                Ok(()) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            }
            n_cancelled += 1;
            assert!((session.tokens().len() - first.len()).is_multiple_of(50));
        }
        assert!(n_cancelled > 20, "{device:?}: {n_cancelled}");
        assert_eq!(session.tokens(), [first, second].concat());
        assert_eq!(session.logits().unwrap(), expected);
    }
}

#[test]
fn a_prompt_that_its_progress_stops_holds_what_was_told() {
    let mut random = Random::new(81);
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        let params = params(50, Precision::Fast, KvType::F16);
        let text = tokens(230, 82);
        let mut straight = Session::new(&model, &params).unwrap();
        straight.prefill(&text, &Cancel::default(), &mut |_, _| true).unwrap();
        let expected = straight.logits().unwrap().to_vec();
        for round in 0..8 {
            let mut session = Session::new(&model, &params).unwrap();
            // The last chunk is one of them: then all is there, and the call has still been stopped.
            let mut row = vec![0.0; tiny_model::N_VOCAB];
            while session.tokens().len() < text.len() {
                let begun = session.tokens().len();
                let left = &text[begun..];
                let n_reports = 1 + random.below(left.len().div_ceil(50));
                let (mut n_told, mut n_done) = (0, 0);
                let on_progress = &mut |done, all| {
                    assert_eq!(all, left.len());
                    (n_told, n_done) = (n_told + 1, done);
                    n_told < n_reports
                };
                let never = Cancel::default();
                let result = match round % 2 {
                    0 => session.prefill(left, &never, on_progress),
                    _ => session.prefill_rows(
                        left,
                        &[left.len() - 1],
                        Some(&mut row),
                        None,
                        &never,
                        on_progress,
                    ),
                };
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
                assert_eq!((n_told, session.tokens()), (n_reports, &text[..begun + n_done]));
            }
            // A card's chunks begin elsewhere now, which is rounding.
            let allowed = if device == Device::Cpu { 0.0 } else { 1e-5 };
            let differs = distance(session.logits().unwrap(), &expected);
            assert!(differs <= allowed, "{device:?}: round {round}: {differs}");
            assert!(round % 2 == 0 || row == session.logits().unwrap());
        }
    }
}

/// A text, with every call stopped at random moments until it is through, or never.
fn generated(model: &Arc<Model>, prompt: &[u32], mut random: Option<Random>) -> (Vec<u32>, usize) {
    let mut n_cancelled = 0;
    // Mostly early, and at times not at all.
    let mut cancel = || match &mut random {
        Some(random) => {
            let most = 1 << random.below(17);
            Cancel::after(random.below(most) as u64)
        }
        None => Cancel::default(),
    };
    let mut again = |result: longgen::Result<()>| match result {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            n_cancelled += 1;
            true
        }
    };
    let params = params(50, Precision::Fast, KvType::F16);
    let mut sessions = [0, 1].map(|_| Session::new(model, &params).unwrap());
    let [first, second] = &mut sessions;
    while again(first.prefill(&prompt[first.tokens().len()..], &cancel(), &mut |_, _| true)) {}
    while again(second.prefill_each(&prompt[second.tokens().len()..], &cancel(), &mut |_, _| Ok(()))) {}
    let sampler = SamplerParams { temperature: 0.9, seed: 11, ..Default::default() };
    let mut sampler = Sampler::new(&sampler).unwrap();
    for i in 0..40 {
        let tokens = sessions.each_mut().map(|session| session.sample(&mut sampler).unwrap());
        if i % 2 == 0 {
            for (session, token) in sessions.iter_mut().zip(tokens) {
                while again(session.decode(token, &cancel())) {}
            }
        } else {
            let step = |sessions: &mut [Session; 2], cancel: &Cancel| {
                let mut batch: Vec<_> = sessions.iter_mut().zip(tokens.chunks(1)).collect();
                Session::step_batch(&mut batch, cancel)
            };
            while again(step(&mut sessions, &cancel())) {}
        }
    }
    (sessions.iter().flat_map(|session| session.tokens().to_vec()).collect(), n_cancelled)
}

#[test]
fn a_text_that_is_stopped_at_random_moments_is_the_text_that_is_not() {
    let bytes = tiny_model::bytes(TensorType::Q8_0);
    let prompt = tokens(170, 80);
    for device in devices() {
        let params = ModelParams { device, n_threads: 2, ..Default::default() };
        let open = |cancel: &Cancel| {
            Model::from_bytes(Arc::new(bytes.clone()), &params, cancel, &mut |_, _| true, &mut |_, _| {})
                .map(Arc::new)
        };
        let (expected, _) = generated(&open(&Cancel::default()).unwrap(), &prompt, None);
        let mut n_cancelled = 0;
        for seed in 0..5 {
            // Loading is stopped, too, at one tensor after the other.
            let mut looks = (seed..).step_by(7).map(Cancel::after);
            let model = loop {
                match open(&looks.next().unwrap()) {
                    Ok(model) => break model,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                }
                n_cancelled += 1;
            };
            let (has, n) = generated(&model, &prompt, Some(Random::new(seed)));
            assert_eq!(has, expected, "{device:?}: seed {seed}");
            n_cancelled += n;
        }
        // Steps that a card replays cannot be stopped on their way.
        let enough = if matches!(device, Device::Cuda(_)) { 50 } else { 200 };
        assert!(n_cancelled > enough, "{device:?}: {n_cancelled}");
    }
}

#[test]
fn another_thread_stops_a_prompt_between_its_chunks() {
    for device in devices() {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        let mut session = Session::new(&model, &params(50, Precision::Fast, KvType::F16)).unwrap();
        let cancel = Cancel::default();
        let flag = cancel.clone();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (stopped, has_stopped) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                has_begun.recv().unwrap();
                flag.cancel();
                stopped.send(()).unwrap();
            });
            let mut n_chunks = 0;
            let result = session.prefill(&tokens(150, 3), &cancel, &mut |_, _| {
                n_chunks += 1;
                if n_chunks == 1 {
                    begun.send(()).unwrap();
                    has_stopped.recv().unwrap();
                }
                true
            });
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
        });
        assert_eq!(session.tokens().len(), 50);
        cancel.reset();
        session.prefill(&tokens(10, 4), &cancel, &mut |_, _| true).unwrap();
    }
}

#[test]
fn memory_is_what_the_plan_says() {
    for device in devices() {
        let file = File::new(&tiny_model::bytes(TensorType::F16));
        let model = file.open(device, 2);
        let mut random = Random::new(3);
        for _ in 0..200 {
            let params = SessionParams {
                n_ctx: u32::try_from(1 + random.below(3000)).unwrap(),
                chunk_tokens: u32::try_from(random.below(300)).unwrap(),
                kv_type: KV_TYPES[random.below(4)],
                precision: [Precision::Exact, Precision::Fast][random.below(2)],
                logits_rows: u32::try_from(random.below(9)).unwrap(),
                ..Default::default()
            };
            let plan = model.plan(&params).unwrap();
            let session = Session::new(&model, &params).unwrap();
            assert_eq!(model.session_bytes(), plan.total_bytes(), "{params:?}");
            drop(session);
            assert_eq!(model.session_bytes(), 0);
        }
    }
}

#[test]
fn a_rewind_gives_what_a_new_session_gives() {
    for device in devices() {
        let file = File::new(&tiny_model::bytes(TensorType::F32));
        let model = file.open(device, 2);
        // No restore points: what the rings have lost is lost.
        let params = SessionParams { restore_bytes: 1, ..params(64, Precision::Exact, KvType::F16) };
        let (text, other) = (tokens(300, 8), tokens(40, 9));
        let mut session = Session::new(&model, &params).unwrap();
        let nothing = &mut |_, _| true;
        let mut restored = 0;
        for back in [0usize, 1, 5, 16, 17, 40, 300] {
            session.rewind(0).unwrap();
            session.prefill(&text, &Cancel::default(), nothing).unwrap();
            let kept = session.rewind(text.len() - back).unwrap();
            assert!(kept <= text.len() - back);
            assert!(back > 16 || kept == text.len() - back, "a block further back must be there");
            restored += usize::from(kept == text.len() - back);
            session.prefill(&other, &Cancel::default(), nothing).unwrap();

            let mut fresh = Session::new(&model, &params).unwrap();
            fresh.prefill(&[&text[..kept], &other].concat(), &Cancel::default(), nothing).unwrap();
            let differs = distance(session.logits().unwrap(), fresh.logits().unwrap());
            // How a card splits the keys of a query depends on the length of the step.
            let allowed = if device == Device::Cpu { 0.0 } else { 1e-5 };
            assert!(differs <= allowed, "{device:?}: {back} tokens back: differs by {differs}");
        }
        assert!(restored >= 4);
        assert_eq!(session.rewind(session.tokens().len() + 1).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn what_cannot_be_done_is_said_before_anything_changes() {
    let file = File::new(&tiny_model::bytes(TensorType::F32));
    let model = file.open(Device::Cpu, 1);
    let mut session = Session::new(&model, &params(64, Precision::Exact, KvType::F32)).unwrap();
    let nothing = &mut |_, _| true;
    let kind = |result: Result<(), longgen::Error>| result.unwrap_err().kind();
    assert_eq!(session.logits().unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(kind(session.prefill(&[], &Cancel::default(), nothing)), ErrorKind::Invalid);
    assert_eq!(kind(session.decode(258, &Cancel::default())), ErrorKind::Invalid);
    assert_eq!(kind(session.prefill(&tokens(401, 1), &Cancel::default(), nothing)), ErrorKind::ContextFull);
    assert!(session.tokens().is_empty());
    session.prefill(&tokens(400, 1), &Cancel::default(), nothing).unwrap();
    assert_eq!(kind(session.decode(0, &Cancel::default())), ErrorKind::ContextFull);
    session.logits().unwrap();
}

#[test]
fn models_open_while_others_decode() {
    let cancel = Cancel::default();
    for device in devices() {
        let file = File::new(&tiny_model::bytes(TensorType::F16));
        std::thread::scope(|scope| {
            // Each time other sessions, whose first steps a card records.
            let decode = || {
                let model = file.open(device, 1);
                for _ in 0..40 {
                    let mut session =
                        Session::new(&model, &SessionParams { n_ctx: 64, ..Default::default() }).unwrap();
                    (0..8).for_each(|token| session.decode(token, &cancel).unwrap());
                }
            };
            let decoding: Vec<_> = (0..2).map(|_| scope.spawn(decode)).collect();
            while !decoding.iter().all(|thread| thread.is_finished()) {
                drop(file.open(device, 1));
            }
        });
    }
}
