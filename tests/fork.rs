//! Forks of sessions: each says what a session says that was given its tokens, whatever becomes of the others, and what they
//! share is there once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod support;

use std::sync::Arc;

use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::{Cancel, Device, ErrorKind, KvType, Model, Precision, Session, SessionParams};
use longgen_format::TensorType;
use support::model::{File, devices, distance, tokens};
use support::random::Random;
use support::tiny_model;

const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8];

fn model(device: Device) -> Arc<Model> {
    File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2)
}

fn params(n_ctx: u32, chunk_tokens: u32, kv_type: KvType) -> SessionParams {
    SessionParams { n_ctx, chunk_tokens, kv_type, ..Default::default() }
}

/// What a fork has as the session that is forked.
fn same() -> SessionParams {
    SessionParams::default()
}

fn prefill(session: &mut Session, text: &[u32]) {
    session.prefill(text, &Cancel::default(), &mut |_, _| true).unwrap();
}

fn session_of(model: &Arc<Model>, params: &SessionParams, text: &[u32]) -> Session {
    let mut session = Session::new(model, params).unwrap();
    prefill(&mut session, text);
    session
}

fn saved(session: &Session) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    session.save(&path, &Cancel::default(), &mut |_, _| true).unwrap();
    std::fs::read(path).unwrap()
}

fn loaded(model: &Arc<Model>, bytes: &[u8], params: &SessionParams) -> Session {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    std::fs::write(&path, bytes).unwrap();
    Session::load(model, path, params, &Cancel::default(), &mut |_, _| true).unwrap()
}

/// The same logits: to the bit where they are computed on the processor.
#[track_caller]
fn assert_same_logits(device: Device, has: &mut Session, expected: &mut Session) {
    assert_eq!(has.tokens(), expected.tokens());
    let differs = distance(has.logits().unwrap(), expected.logits().unwrap());
    let allowed = if device == Device::Cpu { 0.0 } else { 0.03 };
    assert!(differs <= allowed, "{device:?}: differs by {differs} behind {}", has.tokens().len());
}

/// Sessions of one family.
struct Family {
    device: Device,
    model: Arc<Model>,
    kv_type: KvType,
    sessions: Vec<Session>,
}

impl Family {
    /// Something happens to the `i`-th.
    fn act(&mut self, i: usize, random: &mut Random) {
        let n_sessions = self.sessions.len();
        let session = &mut self.sessions[i];
        let held = session.tokens().len();
        let room = session.n_ctx() as usize - held;
        match random.below(12) {
            0..3 if room > 0 => prefill(session, &tokens(1 + random.below(room.min(90)), random.bits())),
            3..5 => tokens(random.below(room.min(40) + 1), random.bits())
                .into_iter()
                .for_each(|token| session.decode(token, &Cancel::default()).unwrap()),
            5..7 if held > 0 => {
                let kept =
                    if random.below(2) == 0 { held - random.below(held.min(20)) } else { random.below(held) };
                let new = tokens(1 + random.below(30), random.bits());
                let text = [&session.tokens()[..kept], &new].concat();
                let text = &text[..text.len().min(session.n_ctx() as usize)];
                session.prompt(text, &Cancel::default(), &mut |_, _| true).unwrap();
            }
            7..10 => {
                let n_ctx = [0, held.max(1), held + random.below(200), 150, 1500][random.below(5)] as u32;
                let n_ctx = if n_ctx == 0 { 0 } else { n_ctx.max(held as u32).max(1) };
                let params = SessionParams { n_ctx, chunk_tokens: random.below(70) as u32, ..same() };
                let mut fork = session.fork(&params).unwrap();
                assert_eq!(fork.tokens(), session.tokens());
                assert_eq!(fork.counters(), Default::default());
                assert!(fork.hidden().is_err());
                if let Ok(logits) = session.logits() {
                    assert_eq!(fork.logits().unwrap(), logits);
                }
                self.sessions.push(fork);
            }
            10 if n_sessions > 1 => _ = self.sessions.swap_remove(i),
            11 => {
                // What layers have given up at these positions is the same, so the files are.
                let n_ctx = session.n_ctx();
                let file = saved(session);
                let other = loaded(&self.model, &file, &params(n_ctx, 50, self.kv_type));
                assert!(saved(&other) == file);
                assert!(saved(&session.fork(&same()).unwrap()) == file);
            }
            _ => {}
        }
    }

    fn check(&mut self, i: usize) {
        let Some(session) = self.sessions.get_mut(i) else { return };
        if session.tokens().is_empty() || session.logits().is_err() {
            return;
        }
        let text = session.tokens().to_vec();
        let mut fresh = session_of(&self.model, &params(session.n_ctx().max(1500), 100, self.kv_type), &text);
        assert_same_logits(self.device, session, &mut fresh);
    }

    /// All that have room go on together.
    fn step_batch(&mut self, random: &mut Random) {
        let has_room = |session: &&mut Session| session.tokens().len() < session.n_ctx() as usize;
        let mut members: Vec<_> = self.sessions.iter_mut().filter(has_room).collect();
        // The first one lends its working memory.
        members.sort_by_key(|session| std::cmp::Reverse(session.n_ctx()));
        members.truncate(4);
        let token = [random.below(tiny_model::N_VOCAB) as u32];
        let mut batch: Vec<_> = members.into_iter().map(|session| (session, &token[..])).collect();
        if batch.is_empty() {
            return;
        }
        // One whose chunks are too short for it refuses the batch, and everybody stands as before.
        if let Err(error) = Session::step_batch(&mut batch, &Cancel::default()) {
            assert!(error.to_string().contains("chunks hold"), "{error}");
        }
    }
}

#[test]
fn a_fork_says_what_a_session_says_that_was_given_its_tokens() {
    for device in devices() {
        let model = model(device);
        for (seed, kv_type) in (0..40).zip(KV_TYPES.into_iter().cycle()) {
            let random = &mut Random::new(seed);
            // From 600 on the tiny model has rings.
            let n_ctx = [150, 600, 1500][random.below(3)];
            let text = tokens(1 + random.below(n_ctx as usize - 40), random.bits());
            let first = session_of(&model, &params(n_ctx, 64, kv_type), &text);
            let mut family = Family { device, model: model.clone(), kv_type, sessions: vec![first] };
            for _ in 0..25 {
                let i = random.below(family.sessions.len());
                family.act(i, random);
                family.check(i);
                if random.below(5) == 0 {
                    family.step_batch(random);
                    (0..family.sessions.len()).for_each(|i| family.check(i));
                }
            }
            (0..family.sessions.len()).for_each(|i| family.check(i));
            drop(family);
            assert_eq!(model.session_bytes(), 0);
        }
    }
}

#[test]
fn forks_go_on_whoever_goes_first() {
    for device in devices() {
        let model = model(device);
        let [text, more] = [tokens(500, 1), tokens(60, 2)];
        for parent_goes in [true, false] {
            let mut parent = session_of(&model, &params(700, 64, KvType::F16), &text);
            let mut fork = parent.fork(&same()).unwrap();
            let mut fork_of_fork = fork.fork(&same()).unwrap();
            let [mut kept, gone] = if parent_goes { [fork, parent] } else { [parent, fork] };
            drop(gone);
            let mut fresh = session_of(&model, &params(700, 64, KvType::F16), &text);
            for &token in &more {
                for session in [&mut kept, &mut fork_of_fork, &mut fresh] {
                    session.decode(token, &Cancel::default()).unwrap();
                }
                assert_same_logits(device, &mut kept, &mut fresh);
                assert_same_logits(device, &mut fork_of_fork, &mut fresh);
            }
        }
    }
}

#[test]
fn memory_is_what_was_planned() {
    for device in devices() {
        let model = model(device);
        for (seed, kv_type) in (100..160).zip(KV_TYPES.into_iter().cycle()) {
            let random = &mut Random::new(seed);
            let n_ctx = [150, 600, 1500][random.below(3)];
            let n_tokens = 1 + random.below(n_ctx as usize);
            let mut sessions =
                vec![session_of(&model, &params(n_ctx, 64, kv_type), &tokens(n_tokens, random.bits()))];
            for _ in 0..4 {
                let i = random.below(sessions.len());
                let session = &mut sessions[i];
                let held = session.tokens().len();
                session.rewind(held - random.below(held + 1).min([0, 30, 2000][random.below(3)])).unwrap();
                let held = session.tokens().len() as u32;
                let n_ctx = (held + random.below(900) as u32).max(1);
                let [chunk_tokens, logits_rows] = [random.below(99), random.below(4)].map(|n| n as u32);
                let params = SessionParams { n_ctx, chunk_tokens, logits_rows, ..same() };
                let plan = session.fork_plan(&params).unwrap();
                let total = plan.total_bytes();
                assert_eq!(plan.n_ctx, n_ctx);
                let before = model.session_bytes();
                let short = SessionParams { max_bytes: total - 1, ..params.clone() };
                let error = session.fork(&short).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                for number in [n_ctx as usize, total, total - 1] {
                    assert!(error.to_string().contains(&number.to_string()), "{error}");
                }
                assert_eq!(model.session_bytes(), before);
                let fork = session.fork(&SessionParams { max_bytes: total, ..params }).unwrap();
                assert_eq!(model.session_bytes() - before, total);
                assert_eq!((fork.n_bytes(), fork.kv_bytes(), fork.n_ctx()), (total, plan.kv_bytes(), n_ctx));
                sessions.push(fork);
            }
            drop(sessions);
            assert_eq!(model.session_bytes(), 0);
        }
    }
}

#[test]
fn many_answers_cost_one_prompt() {
    let plan = vec![LayerAttention::uniform(Mask::Full, tiny_model::N_HEADS); 4];
    let model = File::new(&tiny_model::bytes_with(TensorType::F16, &plan)).open(Device::Cpu, 2);
    let params = SessionParams { n_ctx: 1024, chunk_tokens: 8, ..Default::default() };
    let mut session = session_of(&model, &params, &tokens(1000, 3));
    let one = model.session_bytes();
    let mut forks: Vec<_> = (0..16).map(|_| session.fork(&same()).unwrap()).collect();
    let kv_bytes: usize = forks.iter().map(Session::kv_bytes).sum();
    // One block of sixteen each.
    assert_eq!(kv_bytes, session.kv_bytes());
    assert!(model.session_bytes() < 4 * one, "{} of {one}", model.session_bytes());
    for (i, fork) in (0..).zip(&mut forks) {
        fork.decode(i, &Cancel::default()).unwrap();
    }
    // Once they are gone, the session takes back what it gave up where it has to.
    drop(forks);
    session.rewind(600).unwrap();
    session.decode(1, &Cancel::default()).unwrap();
    assert_eq!(model.session_bytes(), one);
}

#[test]
fn going_back_into_what_is_shared_leaves_it_to_the_others() {
    for device in devices() {
        let model = model(device);
        let own = params(1500, 64, KvType::Q8);
        let [text, other] = [tokens(700, 4), tokens(900, 5)];
        let mut sessions = vec![session_of(&model, &own, &text)];
        for _ in 0..3 {
            let fork = sessions[0].fork(&same()).unwrap();
            sessions.push(fork);
        }
        let held = model.session_bytes();
        for (i, kept) in [(1, 650), (0, 330), (2, 0), (1, 17)] {
            sessions[i].rewind(kept).unwrap();
            // Nothing is taken before it is needed.
            let kept = sessions[i].tokens().len();
            prefill(&mut sessions[i], &other[kept..]);
            let mut fresh = session_of(&model, &own, &[&text[..kept], &other[kept..]].concat());
            assert_same_logits(device, &mut sessions[i], &mut fresh);
        }
        assert!(model.session_bytes() > held);
        let mut fresh = session_of(&model, &own, &[&text[..], &other[..800]].concat());
        prefill(&mut sessions[3], &other[..800]);
        assert_same_logits(device, &mut sessions[3], &mut fresh);
        // To begin anew is to need nothing of the others, and no memory before there are tokens.
        let held = model.session_bytes();
        sessions[3].reset();
        assert_eq!(model.session_bytes(), held);
        prefill(&mut sessions[3], &other);
        assert_same_logits(device, &mut sessions[3], &mut session_of(&model, &own, &other));
    }
}

#[test]
fn restore_points_serve_the_fork_too() {
    let model = model(Device::Cpu);
    let own = SessionParams { restore_bytes: 1 << 24, ..params(1500, 64, KvType::F16) };
    let text = tokens(900, 6);
    let mut session = Session::new(&model, &own).unwrap();
    for turn in text.chunks(300) {
        prefill(&mut session, turn);
    }
    let points = session.restore_points().unwrap();
    let mut fork = session.fork(&same()).unwrap();
    assert_eq!((fork.restore_points().unwrap(), fork.restore_bytes()), (points, session.restore_bytes()));
    // Room for a part of them, and for none.
    for restore_bytes in [session.restore_bytes() / 2, 1] {
        let less = session.fork(&SessionParams { restore_bytes, ..same() }).unwrap();
        assert!(less.restore_bytes() <= restore_bytes);
        assert_eq!(less.restore_points().unwrap().is_empty(), restore_bytes == 1);
    }
    let mut fork_of_fork = fork.fork(&SessionParams { n_ctx: 1000, ..same() }).unwrap();
    let mut fresh = session_of(&model, &own, &[&text[..300], &[7]].concat());
    assert_eq!(session.rewind(300).unwrap(), 300);
    session.decode(7, &Cancel::default()).unwrap();
    assert_same_logits(Device::Cpu, &mut session, &mut fresh);
    drop(session);
    for session in [&mut fork, &mut fork_of_fork] {
        assert_eq!(session.rewind(600).unwrap(), 600);
        assert_eq!(session.rewind(300).unwrap(), 300);
        session.decode(7, &Cancel::default()).unwrap();
        assert_same_logits(Device::Cpu, session, &mut fresh);
    }
    // Without points it goes back as far as the session that was forked.
    let own = SessionParams { restore_bytes: 1, ..own };
    for back in 1..90 {
        let mut session = session_of(&model, &own, &text);
        let mut fork = session.fork(&same()).unwrap();
        assert_eq!(fork.rewind(900 - back).unwrap(), session.rewind(900 - back).unwrap(), "{back}");
    }
}

#[test]
fn the_file_of_a_fork_is_that_of_a_session_without_forks() {
    let model = model(Device::Cpu);
    for (seed, kv_type) in (0..12).zip(KV_TYPES.into_iter().cycle()) {
        let random = &mut Random::new(seed);
        let own = params([300, 900][random.below(2)], 64, kv_type);
        let [text, more] = [tokens(1 + random.below(200), 7), tokens(1 + random.below(90), 8)];
        let mut session = session_of(&model, &own, &text);
        let mut fork = session.fork(&same()).unwrap();
        let mut fresh = session_of(&model, &own, &text);
        for other in [&mut session, &mut fork] {
            assert!(saved(other) == saved(&fresh));
            prefill(other, &more);
        }
        let mut fork_of_fork = fork.fork(&same()).unwrap();
        prefill(&mut fresh, &more);
        prefill(&mut fork_of_fork, &[9]);
        assert!(saved(&session) == saved(&fresh) && saved(&fork) == saved(&fresh));
        prefill(&mut fresh, &[9]);
        let file = saved(&fork_of_fork);
        assert!(file == saved(&fresh));
        let mut other = loaded(&model, &file, &own);
        for session in [&mut other, &mut fork_of_fork] {
            session.decode(3, &Cancel::default()).unwrap();
        }
        assert_same_logits(Device::Cpu, &mut other, &mut fork_of_fork);
        // A session that was loaded can be forked, too.
        let mut fork = other.fork(&same()).unwrap();
        for session in [&mut other, &mut fork] {
            session.decode(4, &Cancel::default()).unwrap();
        }
        assert_same_logits(Device::Cpu, &mut fork, &mut other);
    }
}

#[test]
fn what_a_fork_cannot_be_is_refused() {
    let model = model(Device::Cpu);
    let own = SessionParams { precision: Precision::Exact, ..params(400, 64, KvType::Q8) };
    let mut session = session_of(&model, &own, &tokens(200, 9));
    let held = model.session_bytes();
    for (params, kind, words) in [
        (SessionParams { kv_type: KvType::F32, ..same() }, ErrorKind::Invalid, "F32 of a session with Q8"),
        (SessionParams { n_ctx: 199, ..same() }, ErrorKind::ContextFull, "200 tokens"),
        (SessionParams { n_ctx: u32::MAX, ..same() }, ErrorKind::Invalid, "at most"),
    ] {
        let error = session.fork(&params).err().unwrap();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error}");
        assert_eq!(session.fork_plan(&params).unwrap_err().kind(), kind);
    }
    assert_eq!(model.session_bytes(), held);
    // What is said is what it has anyway.
    session.fork(&own).unwrap();
    // An empty session has nothing to share, and no logits.
    let mut empty = Session::new(&model, &own).unwrap();
    let mut fork = empty.fork(&same()).unwrap();
    assert_eq!(fork.logits().unwrap_err().kind(), ErrorKind::Invalid);
    prefill(&mut fork, &tokens(200, 9));
    assert_same_logits(Device::Cpu, &mut fork, &mut session);
    // One that was rewound has none either.
    session.rewind(199).unwrap();
    assert_eq!(session.fork(&same()).unwrap().logits().unwrap_err().kind(), ErrorKind::Invalid);
}
