//! Memory that the system refuses, one allocation after the other: the call ends with an error that says so, everything
//! stands as it stood, and going on gives what it would have given.
//!
//! The allocator of this program refuses on demand, so what is tested is the library as it is. Allocations of less than a
//! few hundred bytes are never refused, as include/longgen.h says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::zeroed;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use longgen::backend::args::SharedBytes;
use longgen::backend::cpu::CpuBackend;
use longgen::backend::reference::ReferenceBackend;
use longgen::capi::model::{lg_model_free, lg_model_open};
use longgen::capi::session::{
    lg_session, lg_session_free, lg_session_new, lg_session_params, lg_session_step_batch,
};
use longgen::capi::state::lg_session_n_tokens;
use longgen::capi::status::lg_status;
use longgen::capi::stream::{lg_text_stream_free, lg_text_stream_new};
use longgen::kv::file::{Identity, Reader};
use longgen::model::config::Config;
use longgen::model::network::{Engine, Network};
use longgen::model::opening::Opening;
use longgen::text::{ChatTemplate, Message, Tokenizer, split_hf_tokenizer};
use longgen::weights::WeightFile;
use longgen::{
    Cancel, Device, ErrorKind, KvType, Model, ModelParams, Result, Sampler, SamplerParams, Session,
    SessionParams,
};
use longgen_format::{Directory, OwnedValue, TensorType, keys};
use support::metadata;
use support::random::Random;
use support::tiny_model;

/// Smaller allocations are never refused.
const SMALL: usize = 300;

thread_local! {
    /// How many allocations of this thread are left until one is refused; `None` refuses none.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether one was refused.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    /// Allocations of this many bytes and more are refused.
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes of this thread that live, the most that lived at once, the largest that were asked for at once, and how many
    /// then lived with them.
    static LIVE: Cell<[usize; 4]> = const { Cell::new([0; 4]) };
    /// How many threads this one may start; `None` is any number.
    static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Refusing;

fn is_refused(n_bytes: usize) -> bool {
    if n_bytes < SMALL {
        return false;
    }
    let left = LEFT.get();
    LEFT.set(left.and_then(|left| left.checked_sub(1)));
    let is_refused = left == Some(0) || n_bytes >= LIMIT.get();
    REFUSED.set(REFUSED.get() || is_refused);
    is_refused
}

/// Counts an allocation of `new` bytes in the place of `old`.
fn count(old: usize, new: usize) {
    let [live, most, largest, with_largest] = LIVE.get();
    let live = (live + new).saturating_sub(old);
    let with_largest = if new >= largest { live } else { with_largest };
    LIVE.set([live, most.max(live), largest.max(new), with_largest]);
}

// SAFETY: what is not refused is the system's.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: as the caller says.
        if is_refused(layout.size()) { null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: as the caller says.
        if is_refused(layout.size()) { null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), 0);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), size);
        // SAFETY: as the caller says.
        if is_refused(size) { null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut c_void, *const c_void, Start, *mut c_void) -> c_int;

/// Stands before the system's own.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    const NEXT: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);
    const EAGAIN: c_int = 11;
    let left = THREADS.get();
    THREADS.set(left.map(|left| left.saturating_sub(1)));
    if left == Some(0) {
        return EAGAIN;
    }
    // SAFETY: the name ends with a zero byte, and the system has a function of that name and type.
    let create =
        unsafe { std::mem::transmute::<*mut c_void, Create>(dlsym(NEXT, c"pthread_create".as_ptr())) };
    // SAFETY: as the caller says.
    unsafe { create(thread, attributes, start, argument) }
}

/// What the test itself allocates is not refused.
fn granted<T>(run: impl FnOnce() -> T) -> T {
    let left = LEFT.replace(None);
    let value = run();
    LEFT.set(left);
    value
}

/// Calls `call` with one allocation after the other refused - the first ones all, then fewer and fewer - and `check` after
/// each failure, until no allocation was refused; then returns its result, and how often it failed.
fn with_refusals<S, T>(
    state: &mut S,
    mut call: impl FnMut(&mut S) -> Result<T>,
    mut check: impl FnMut(&mut S),
) -> (T, usize) {
    for (n_failures, n) in std::iter::successors(Some(0), |n| Some(n + 1 + n / 32)).enumerate() {
        LEFT.set(Some(n));
        REFUSED.set(false);
        let result = call(state);
        LEFT.set(None);
        match result {
            Ok(value) => {
                assert!(!REFUSED.get(), "allocation {n} was refused, and nothing was said");
                return (value, n_failures);
            }
            Err(error) => {
                assert!(REFUSED.get(), "{error}");
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "allocation {n}: {error}");
            }
        }
        check(state);
    }
    unreachable!("there are more allocations than numbers")
}

/// Models on the processor and on the oracle.
fn models() -> [Arc<Model>; 2] {
    let bytes = Arc::new(tiny_model::bytes(TensorType::Q8_0));
    [Device::Cpu, Device::Reference].map(|device| {
        let params = ModelParams { device, n_threads: 2, ..Default::default() };
        Arc::new(
            Model::from_bytes(bytes.clone(), &params, &Cancel::default(), &mut |_, _| true, &mut |_, _| {})
                .unwrap(),
        )
    })
}

fn new_session(model: &Arc<Model>) -> Result<Session> {
    session_that_keeps(model, 1)
}

/// With so many bytes for restore points, which are left out where memory is refused.
fn session_that_keeps(model: &Arc<Model>, restore_bytes: usize) -> Result<Session> {
    let params =
        SessionParams { n_ctx: 400, chunk_tokens: 50, logits_rows: 3, restore_bytes, ..Default::default() };
    Session::new(model, &params)
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| u32::try_from(random.below(tiny_model::N_VOCAB)).unwrap()).collect()
}

fn prefill(session: &mut Session, tokens: &[u32]) -> Result<()> {
    session.prefill(tokens, &Cancel::default(), &mut |_, _| true)
}

/// A session with this prompt, with every allocation granted.
fn session_with(model: &Arc<Model>, tokens: &[u32]) -> Session {
    let mut session = new_session(model).unwrap();
    prefill(&mut session, tokens).unwrap();
    session
}

/// The vocabularies that tools/vocabs.sh gets, if they are there.
fn files_of_vocabularies() -> impl Iterator<Item = PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/vocabs");
    let files = std::fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
}

/// That of a model in tests/data, and those of the vocabularies that tools/vocabs.sh gets, if they are there.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text =
        |name: &str| std::fs::read_to_string(root.join("tests/data/longgen-tiny-8k").join(name)).unwrap();
    let parts = split_hf_tokenizer(&text("tokenizer.json"), Some(&text("tokenizer_config.json"))).unwrap();
    let mut tokenizers = vec![("longgen-tiny-8k".to_owned(), parts.tokenizer().unwrap())];
    for path in files_of_vocabularies() {
        let bytes = std::fs::read(&path).unwrap();
        let directory = Directory::read(&bytes).unwrap();
        let tokenizer = Tokenizer::from_metadata(&directory.metadata);
        tokenizers.extend(tokenizer.ok().map(|tokenizer| (path.display().to_string(), tokenizer)));
    }
    tokenizers
}

/// Whether both hold the same and say the same about what comes next.
#[track_caller]
fn assert_same(session: &mut Session, expected: &mut Session) {
    assert_eq!(session.tokens(), expected.tokens());
    assert_eq!(session.logits().unwrap(), expected.logits().unwrap());
}

/// Everything of a file but its text.
#[test]
fn a_file_that_lacks_memory_is_not_a_wrong_file() {
    let bytes = Arc::new(tiny_model::bytes(TensorType::Q4_1));
    let shared: SharedBytes = bytes.clone();
    let read = |()| Directory::read(&bytes).map_err(longgen::Error::from);
    let (directory, n) = with_refusals(&mut (), |&mut state| read(state), |()| {});
    assert!(n > 5, "{n}");
    with_refusals(&mut (), |()| Ok(directory.verify(|_| {})?), |()| {});
    let (_, n) = with_refusals(&mut (), |()| Ok(directory.metadata_index()?), |()| {});
    assert!(n > 0, "{n}");
    let file = WeightFile { bytes: &shared, directory: &directory };
    let (config, _) = with_refusals(&mut (), |()| Config::read(&file), |()| {});
    let config = Arc::new(config);
    let load = |()| {
        let (backend, cancel) = (ReferenceBackend::default(), Cancel::default());
        let (progress, log) = (&mut |_, _| true, &mut |_, _: &str| {});
        Network::load(backend, &file, config.clone(), &mut Opening::new(1, &cancel, progress, log))
    };
    let (network, n) = with_refusals(&mut (), |&mut state| load(state), |()| {});
    assert!(n > 10, "{n}");
    assert_eq!(network.session_bytes(), 0);
}

#[test]
fn threads_that_the_system_refuses_are_an_error() {
    let bytes = Arc::new(tiny_model::bytes(TensorType::Q8_0));
    let open = |most| {
        let params = ModelParams { n_threads: 5, ..Default::default() };
        let (cancel, progress, log) = (Cancel::default(), &mut |_, _| true, &mut |_, _: &str| {});
        THREADS.set(Some(most));
        let model = Model::from_bytes(bytes.clone(), &params, &cancel, progress, log);
        THREADS.set(None);
        model.map(Arc::new)
    };
    for most in 0..4 {
        let error = open(most).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("cannot start 4 threads"), "{error}");
    }
    let text = tokens(60, 6);
    let model = open(4).unwrap();
    assert_same(&mut session_with(&model, &text), &mut session_with(&models()[0], &text));

    let (_, n) = with_refusals(&mut (), |()| CpuBackend::new(100), |()| {});
    assert!(n > 0, "{n}");
}

#[test]
fn a_session_that_cannot_open_keeps_nothing() {
    for model in models() {
        let (_session, n) =
            with_refusals(&mut (), |()| new_session(&model), |()| assert_eq!(model.session_bytes(), 0));
        assert!(n > 15, "{n}");
    }
}

#[test]
fn a_restore_point_that_lacks_memory_is_left_out() {
    for model in models() {
        let (text, other) = (tokens(290, 1), tokens(40, 2));
        for n in (0..300).step_by(7) {
            let mut session = session_that_keeps(&model, 1 << 24).unwrap();
            LEFT.set(Some(n));
            let result = prefill(&mut session, &text);
            LEFT.set(None);
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                let held = session.tokens().len();
                prefill(&mut session, &text[held..]).unwrap();
            }
            for kept in [200, 100] {
                let text = [&text[..kept], &other].concat();
                LEFT.set(Some(n / 7));
                let result = session.prompt(&text, &Cancel::default(), &mut |_, _| true);
                LEFT.set(None);
                let held = session.tokens();
                match result {
                    Ok(_) => assert_eq!(held, text),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                        assert!(held.len() > text.len() || text.starts_with(held));
                    }
                }
                session.prompt(&text, &Cancel::default(), &mut |_, _| true).unwrap();
                let mut fresh = session_with(&model, &text);
                assert_eq!(session.logits().unwrap(), fresh.logits().unwrap());
            }
        }
    }
}

#[test]
fn many_restore_points_lack_memory_one_after_the_other() {
    let model = &models()[0];
    let params = SessionParams { n_ctx: 3000, restore_bytes: 1 << 28, ..Default::default() };
    for n in 0..60 {
        let mut session = Session::new(model, &params).unwrap();
        for turn in 0..20 {
            let text = tokens(140, turn as u64);
            // Further and further from where it is refused, so that most points are made.
            LEFT.set(Some(n * (1 + turn)));
            let result = prefill(&mut session, &text);
            LEFT.set(None);
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                let n_done = session.tokens().len() - 140 * turn;
                prefill(&mut session, &text[n_done..]).unwrap();
            }
        }
        assert!(n < 30 || session.restore_points().unwrap().len() > 8, "{n}: {:?}", session.restore_points());
    }
}

#[test]
fn a_prompt_that_lacks_memory_can_go_on() {
    let text = tokens(170, 1);
    for model in models() {
        let mut session = new_session(&model).unwrap();
        let call = |session: &mut Session| prefill(session, &text[session.tokens().len()..]);
        let (_, n) = with_refusals(&mut session, call, |session| {
            assert_eq!(session.tokens(), &text[..session.tokens().len()]);
            assert!(session.tokens().len().is_multiple_of(50));
        });
        assert!(n > 5, "{n}");
        assert_same(&mut session, &mut session_with(&model, &text));
    }
}

#[test]
fn rows_of_a_prompt_are_all_there_after_going_on() {
    let text = tokens(120, 2);
    let rows: Vec<usize> = (0..40).map(|i| 3 * i).collect();
    for model in models() {
        let [n_vocab, d_model] = [model.config().n_vocab, model.config().d_model];
        let run = |session: &mut Session, logits: &mut [f32], hidden: &mut [f32]| {
            let done = session.tokens().len();
            let first = rows.partition_point(|&row| row < done);
            let left: Vec<usize> = granted(|| rows[first..].iter().map(|row| row - done).collect());
            let (logits, hidden) = (&mut logits[first * n_vocab..], &mut hidden[first * d_model..]);
            let (cancel, nothing) = (Cancel::default(), &mut |_, _| true);
            session.prefill_rows(&text[done..], &left, Some(logits), Some(hidden), &cancel, nothing)
        };
        let new = || (new_session(&model).unwrap(), vec![0.0; 40 * n_vocab], vec![0.0; 40 * d_model]);
        let (mut has, mut expected) = (new(), new());
        with_refusals(&mut has, |(session, logits, hidden)| run(session, logits, hidden), |_| {});
        run(&mut expected.0, &mut expected.1, &mut expected.2).unwrap();
        assert_eq!(has.0.tokens(), text);
        assert!((has.1, has.2) == (expected.1, expected.2));

        let mut session = new_session(&model).unwrap();
        let each = |session: &mut Session| {
            let mut n_rows = 0;
            let left = &text[session.tokens().len()..];
            session.prefill_each(left, &Cancel::default(), &mut |_, logits| {
                n_rows += logits.len() / n_vocab;
                Ok(())
            })?;
            assert_eq!(n_rows, left.len());
            Ok(())
        };
        with_refusals(&mut session, each, |_| {});
        assert_same(&mut session, &mut session_with(&model, &text));
    }
}

#[test]
fn a_token_that_lacks_memory_leaves_the_session_as_it_was() {
    let text = tokens(100, 3);
    for model in models() {
        let (mut session, mut expected) = (session_with(&model, &text), session_with(&model, &text));
        for token in tokens(4, 4) {
            let decode = |session: &mut Session| session.decode(token, &Cancel::default());
            with_refusals(&mut session, decode, |session| assert_same(session, &mut expected));
            expected.decode(token, &Cancel::default()).unwrap();
            assert_same(&mut session, &mut expected);
            let hidden = |session: &mut Session| session.hidden().map(<[f32]>::as_ptr);
            with_refusals(&mut session, hidden, |_| {});
            assert_eq!(session.hidden().unwrap(), expected.hidden().unwrap());
        }
    }
}

#[test]
fn a_batch_that_lacks_memory_leaves_all_of_its_sessions_as_they_were() {
    for (model, n_most) in models().into_iter().flat_map(|model| [(model.clone(), 1), (model, 3)]) {
        let new = || (0..9).map(|i| session_with(&model, &tokens(1 + 7 * i, i as u64))).collect::<Vec<_>>();
        let (mut sessions, mut expected) = (new(), new());
        let decode = |sessions: &mut Vec<Session>| {
            let part = |(i, session)| (session, &[7, 8, 9][..1 + i % n_most]);
            let mut batch: Vec<_> = granted(|| sessions.iter_mut().enumerate().map(part).collect());
            Session::step_batch(&mut batch, &Cancel::default())
        };
        let check = |sessions: &mut Vec<Session>, expected: &mut Vec<Session>| {
            sessions.iter_mut().zip(expected).for_each(|(session, expected)| assert_same(session, expected));
        };
        let (_, n) = with_refusals(&mut sessions, decode, |sessions| check(sessions, &mut expected));
        assert!(n > 15, "{n}");
        decode(&mut expected).unwrap();
        check(&mut sessions, &mut expected);
    }
}

#[test]
fn a_choice_that_lacks_memory_costs_no_random_number() {
    for model in models() {
        let mut session = session_with(&model, &tokens(100, 5));
        for params in [
            SamplerParams { repeat_penalty: 1.2, repeat_last_n: 90, ..Default::default() },
            SamplerParams { temperature: 1.0, seed: 8, ..Default::default() },
            SamplerParams { temperature: 0.9, top_k: 60, repeat_penalty: 0.9, seed: 9, ..Default::default() },
            SamplerParams { temperature: 0.9, top_k: 60, repeat_penalty: 1.1, seed: 9, ..Default::default() },
        ] {
            let mut expected = Sampler::new(&params).unwrap();
            let mut sampler = Sampler::new(&params).unwrap();
            for _ in 0..3 {
                let (token, _) = with_refusals(&mut sampler, |sampler| session.sample(sampler), |_| {});
                assert_eq!(token, session.sample(&mut expected).unwrap());
            }
        }
        let (top, n) = with_refusals(&mut session, |session| session.top_logprobs(100), |_| {});
        assert!(n > 3, "{n}");
        assert_eq!(top, session.top_logprobs(100).unwrap());
    }
}

#[test]
fn a_session_that_is_saved_or_loaded_without_memory_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    for model in models() {
        let text = tokens(170, 6);
        let (mut session, mut expected) = (session_with(&model, &text), session_with(&model, &text));
        let save = |session: &mut Session| session.save(&path, &Cancel::default(), &mut |_, _| true);
        let (_, n) = with_refusals(&mut session, save, |session| assert_same(session, &mut expected));
        assert!(n > 2, "{n}");
        let held = model.session_bytes();
        let params = SessionParams { n_ctx: 400, chunk_tokens: 50, ..Default::default() };
        let load = |()| Session::load(&model, &path, &params, &Cancel::default(), &mut |_, _| true);
        let still_held = |(): &mut ()| assert_eq!(model.session_bytes(), held);
        let (mut loaded, n) = with_refusals(&mut (), |&mut state| load(state), still_held);
        assert!(n > 15, "{n}");
        for session in [&mut session, &mut loaded] {
            session.decode(1, &Cancel::default()).unwrap();
        }
        assert_same(&mut loaded, &mut session);
    }
}

#[test]
fn a_fork_that_lacks_memory_leaves_the_session_as_it_was() {
    for model in models() {
        let text = tokens(170, 6);
        let (mut session, mut expected) = (session_with(&model, &text), session_with(&model, &text));
        let held = model.session_bytes();
        let fork = |session: &mut Session| session.fork(&SessionParams::default());
        let (mut forked, n) = with_refusals(&mut session, fork, |session| {
            assert_eq!(model.session_bytes(), held);
            assert_same(session, &mut expected);
        });
        assert!(n > 15, "{n}");
        // What it goes back into is shared: it needs memory for what comes instead.
        for (wanted, n_new) in [(160, 20), (155, 60), (30, 1)] {
            let kept = forked.rewind(wanted).unwrap();
            assert_eq!(expected.rewind(wanted).unwrap(), kept);
            let new = tokens(n_new, wanted as u64);
            let call = |forked: &mut Session| prefill(forked, &new[forked.tokens().len() - kept..]);
            let (_, n) = with_refusals(&mut forked, call, |forked| {
                assert_eq!(forked.tokens()[..kept], text[..kept]);
            });
            assert!(n > 2, "{n}");
            prefill(&mut expected, &new).unwrap();
            assert_same(&mut forked, &mut expected);
        }
        session.decode(1, &Cancel::default()).unwrap();
        let mut other = session_with(&model, &text);
        other.decode(1, &Cancel::default()).unwrap();
        assert_same(&mut session, &mut other);
    }
}

#[test]
fn numbers_of_a_session_file_take_no_more_memory_than_it_has_bytes() {
    let [model, _] = models();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    session_with(&model, &tokens(170, 6)).save(&path, &Cancel::default(), &mut |_, _| true).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let config = model.config();
    let identity = Identity {
        fingerprint: u128::from_le_bytes(*bytes[16..].first_chunk().unwrap()),
        kv_type: KvType::F16,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        attention: &config.attention,
    };
    let largest = |bytes: &[u8]| {
        let (mut from, told) = (bytes, &mut |_, _| Ok(()));
        let mut reader = Reader::new(&mut from, bytes.len(), told);
        LIVE.set([0; 4]);
        let result = identity.read(&mut reader, 400, config.n_vocab);
        let [_, _, largest, _] = LIVE.get();
        (result.is_ok(), largest)
    };
    assert!(largest(&bytes).0);
    for at in (8..52).step_by(4) {
        for word in [u32::MAX, 1 << 31, 100_000, 20_000, 5000] {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            let (is_ok, largest) = largest(&bytes);
            assert!(!is_ok && largest <= bytes.len(), "{word} at {at}: {largest} of {}", bytes.len());
        }
    }
}

/// What a call from C returned.
fn outcome(status: lg_status) -> Result<()> {
    match status {
        lg_status::LG_OK => Ok(()),
        lg_status::LG_ERR_OUT_OF_MEMORY => Err(longgen::Error::new(ErrorKind::OutOfMemory, "said in C")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn programs_in_c_are_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny_model::bytes(TensorType::F16)).unwrap();
    let path = CString::new(file.path().to_str().unwrap()).unwrap();
    let mut model = null_mut();
    // SAFETY: all pointers are those of locals, or NULL where that is allowed.
    unsafe {
        outcome(lg_model_open(path.as_ptr(), null(), &raw mut model, null_mut())).unwrap();
        let mut sessions = [null_mut::<lg_session>(); 30];
        for session in &mut sessions {
            let params =
                lg_session_params { struct_size: size_of::<lg_session_params>(), n_ctx: 60, ..zeroed() };
            let new =
                |session: &mut _| outcome(lg_session_new(model, &raw const params, session, null_mut()));
            with_refusals(session, new, |session| assert!(session.is_null()));
        }
        let decode = |sessions: &mut [*mut lg_session; 30]| {
            let tokens = [1; 30];
            outcome(lg_session_step_batch(sessions.as_ptr(), tokens.as_ptr(), null(), 30, null(), null_mut()))
        };
        let held = |sessions: &[*mut lg_session; 30]| sessions.map(|session| lg_session_n_tokens(session));
        for round in 0..3 {
            with_refusals(&mut sessions, decode, |sessions| assert_eq!(held(sessions), [round; 30]));
        }
        sessions.into_iter().for_each(|session| lg_session_free(session));
        lg_model_free(model);

        let stops = [400, 5000, 9].map(|n| CString::new("x".repeat(n)).unwrap());
        let stops = stops.each_ref().map(|stop| stop.as_ptr());
        let new = |stream: &mut _| outcome(lg_text_stream_new(stops.as_ptr(), 3, stream, null_mut()));
        let mut stream = null_mut();
        let (_, n) = with_refusals(&mut stream, new, |stream| assert!(stream.is_null()));
        assert!(n >= 2, "{n}");
        lg_text_stream_free(stream);
    }
}

/// The most memory that texts of many kinds take meanwhile is what is asked for first.
#[test]
fn a_text_that_is_too_long_for_the_memory_is_refused_before_it_takes_any() {
    let mut random = Random::new(31);
    let words =
        ["lighthouse", " the", "\n\n", "é", "🦀", " 1843", "7", "<|im_end|>", "\t", "_", "ﬁ", "a", " ", "ท"];
    // Lists grow by doubling: just below a power of two, and just above.
    let repeated = words.iter().flat_map(|word| [8000, 8300].map(|n| word.repeat(n)));
    let mixed = (0..20_000).map(|_| words[random.below(words.len())]).collect();
    let texts: Vec<String> = repeated.chain([mixed]).collect();
    for (name, tokenizer) in &tokenizers() {
        for text in &texts {
            LEFT.set(Some(0));
            let refused = tokenizer.encode(text, true, true);
            LEFT.set(None);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::OutOfMemory, "{name}");
            LIVE.set([0; 4]);
            tokenizer.encode(text, true, true).unwrap();
            let [_, most, largest, _] = LIVE.get();
            let (start, n_bytes) = (text.chars().take(20).collect::<String>(), text.len());
            assert!(most <= largest, "{name}: {start:?}, {n_bytes} bytes: {most} of {largest}");
        }
    }
}

/// A file that is nothing but a vocabulary.
fn vocabulary(
    model: &str,
    tokens: Vec<String>,
    merges: Vec<String>,
    kind: i32,
    pipeline: Option<String>,
) -> Vec<u8> {
    let text = |text: &str| OwnedValue::Str(text.to_owned());
    let n = tokens.len();
    let mut pairs = vec![
        ("tokenizer.ggml.model", text(model)),
        ("tokenizer.ggml.pre", text("llama-bpe")),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(vec![kind; n])),
        ("tokenizer.ggml.scores", OwnedValue::F32s((0..n).map(|i| i as f32).collect())),
        ("tokenizer.ggml.unknown_token_id", OwnedValue::U32(0)),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(tokens)),
        ("tokenizer.ggml.merges", OwnedValue::Strs(merges)),
    ];
    pairs.extend(pipeline.map(|pipeline| (keys::TOKENIZER_PIPELINE, OwnedValue::Str(pipeline))));
    metadata::file(&pairs)
}

/// Vocabularies that take much memory for their size. Tables grow by doubling: most have a few entries more than fit into
/// one of 2^13 or 2^14.
fn demanding_vocabularies() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (n, length) in [(7200, 0), (14_400, 0), (7200, 30), (7200, 300)] {
        for (model, kind) in [("gpt2", 1), ("gpt2", 3), ("gpt2", 4), ("llama", 1), ("llama", 3), ("llama", 4)]
        {
            let tokens = (0..n).map(|i| format!("{i:04x}{}", "x".repeat(length))).collect();
            let name = format!("{model}, {n} tokens of {} bytes, kind {kind}", 4 + length);
            files.push((name, vocabulary(model, tokens, Vec::new(), kind, None)));
        }
    }
    let parts: Vec<String> = (0..121).map(|i| format!("{i:02x}")).collect();
    let pairs: Vec<_> = parts.iter().flat_map(|a| parts.iter().map(move |b| [a, b])).collect();
    let tokens = parts.iter().cloned().chain(pairs.iter().map(|[a, b]| format!("{a}{b}"))).collect();
    let merges = pairs.iter().map(|[a, b]| format!("{a} {b}")).collect();
    files.push(("merges".to_owned(), vocabulary("gpt2", tokens, merges, 1, None)));

    let normalizers = |part: &str, n: usize| {
        let parts = vec![part; n].join(",");
        format!(r#""normalizer":{{"type":"Sequence","normalizers":[{parts}]}}"#)
    };
    let split =
        r#"{"type":"Split","pattern":{"Regex":"\\p{L}{100}(?!a)"},"behavior":"Isolated","invert":false}"#;
    let splits = [split; 5].join(",");
    let added = (0..7200).map(|i| {
        let flags = r#""single_word":false,"lstrip":false,"rstrip":false,"normalized":true,"special":false"#;
        format!(r#"{{"id":{i},"content":"{i:04x}",{flags}}}"#)
    });
    for part in [
        normalizers(r#"{"type":"NFC"}"#, 9000),
        normalizers(r#"{"type":"Replace","pattern":{"String":"a"},"content":"b"}"#, 9000),
        format!(r#""pre_tokenizer":{{"type":"Sequence","pretokenizers":[{splits}]}}"#),
        format!(r#""added_tokens":[{}]"#, added.collect::<Vec<_>>().join(",")),
        format!(r#""more":[{}0]"#, "0,".repeat(70_000)),
        format!(r#""more":[{}0]"#, r#"{"":0},"#.repeat(40_000)),
    ] {
        let pipeline = format!(r#"{{"decoder":{{"type":"ByteLevel"}},{part}}}"#);
        let tokens = (0..7200).map(|i| format!("{i:04x}")).collect();
        let name = format!("pipeline {}", &part[..60]);
        files.push((name, vocabulary("gpt2", tokens, Vec::new(), 1, Some(pipeline))));
    }
    files
}

/// The vocabularies of models that are at hand, and others that were made to be demanding.
fn vocabularies() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("tiny".to_owned(), tiny_model::text_bytes())];
    files.extend(
        files_of_vocabularies().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())),
    );
    files.extend(demanding_vocabularies());
    files
}

/// The most memory that vocabularies of many kinds take meanwhile is what is asked for first.
#[test]
fn a_vocabulary_that_is_too_large_for_the_memory_is_refused_before_it_takes_any() {
    for (name, bytes) in &vocabularies() {
        let directory = Directory::read(bytes).unwrap();
        let read = || Tokenizer::from_metadata(&directory.metadata);
        assert_asks_first(name, read).unwrap();
        // What is read before, by the library itself.
        for n in 0.. {
            LEFT.set(Some(n));
            let refused = read();
            LEFT.set(None);
            let error = refused.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{name}");
            if error.to_string().contains("a vocabulary of") {
                break;
            }
        }
    }
}

/// Calls `call` with all memory that it wants, then without what it asks for first, which must be the most that it takes.
#[track_caller]
fn assert_asks_first<T>(name: &str, call: impl Fn() -> Result<T>) -> Result<T> {
    LIVE.set([0; 4]);
    let result = call();
    let [_, most, largest, with_largest] = LIVE.get();
    assert!(most <= with_largest, "{name}: {most} of {with_largest}");
    LIMIT.set(largest);
    let refused = call();
    LIMIT.set(usize::MAX);
    let error = refused.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{name}");
    assert!(error.to_string().contains(&largest.to_string()), "{name}: {error}");
    result
}

#[test]
fn a_template_that_is_too_large_for_the_memory_is_not_compiled() {
    for part in
        ["{{a}}", "{{a[::]}}", "{{a|b|c|d}}", "{{a(b,c)}}", "{{{a:1,a:1}}}", "{%if a%}{%endif%}", "x\r"]
    {
        for n in [1, 30, 5000, 9000] {
            assert_asks_first(part, || ChatTemplate::new(&part.repeat(n), &[])).unwrap();
        }
    }
}

/// Templates that take all that they may, and those that print what they were given.
#[test]
fn a_conversation_that_is_too_long_for_the_memory_is_refused_before_it_takes_any() {
    let growing = |step: &str| {
        let start = r#"{% set ns = namespace(x="abcdefgh", y=[]) %}{% for i in range(100000) %}"#;
        format!("{start}{step}{{% endfor %}}")
    };
    let nested = |end: &str| {
        let step = "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
        format!("{{% set ns = namespace(x=[1]) %}}{step}{end}")
    };
    let too_much = [
        growing("{% set ns.x = ns.x ~ ns.x %}"),
        growing("{% set ns.x = ns.x + ns.x %}"),
        growing("{% set ns.x = ns.x * 7 %}"),
        growing(r#"{% set ns.x = ns.x|replace("a", "aa") %}"#),
        growing(r#"{% set ns.y = ns.y + ["x" * 60] %}"#),
        growing("{% set ns.y = [ns.y|length, {}, [], namespace()] %}"),
        growing(&"x".repeat(1000)),
        growing(&format!(
            "{{% set x %}}{}{{{{ ns.x }}}}{{% endset %}}{{% set ns.x = x %}}",
            "x".repeat(1000)
        )),
        nested("{{ ns.x }}"),
        nested("{{ {'a': ns.x} }}"),
        nested("{{ ns.x|tojson }}"),
        nested("{{ ', '.join(ns.x) }}"),
        nested("{{ '{}'.format(ns.x) }}"),
    ];
    let message = |i: usize| Message { role: "user".into(), content: "é\u{1}".repeat(1 + i % 9 * 1000) };
    let messages: Vec<Message> = (0..30).map(message).collect();
    for source in &too_much {
        let template = ChatTemplate::new(source, &[]).unwrap();
        let error = assert_asks_first(source, || template.render(&messages, true)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{source}: {error}");
    }
    for part in ["{{a}}", "{{messages[b]}}", "{{a==b==c}}"] {
        let template = ChatTemplate::new(&part.repeat(9000), &[]).unwrap();
        assert_asks_first(part, || template.render(&messages, true)).unwrap();
    }
    let lists = [format!("[{}0]", "0,".repeat(70_000)), format!("[{}{{}}]", r#"{"":0},"#.repeat(40_000))];
    for tools in lists {
        let variables = format!(r#"{{"tools": {tools}}}"#);
        for source in
            ["{{ messages }}", "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools|length }}"]
        {
            let template = ChatTemplate::new(source, &[]).unwrap();
            assert_asks_first(source, || template.render_with(&messages, &variables, true)).unwrap();
        }
    }
}
