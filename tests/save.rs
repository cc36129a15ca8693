//! Sessions in files: one that is loaded goes on as the one that was saved, and no other file is taken for one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod support;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use longgen::attention::mask::Mask;
use longgen::{
    Cancel, Device, Error, ErrorKind, KvType, Model, ModelParams, Precision, Session, SessionParams,
};
use longgen_format::TensorType;
use support::model::{File, devices, distance, tokens};
use support::random::Random;
use support::session_file::SessionFile;
use support::{brute_force, tiny_model};

const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8];

/// Says to a process of its own which file to save to.
const SAVE_TO: &str = "LONGGEN_TEST_SAVE_TO";

/// Where sessions are saved.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("session")
    }

    fn with(bytes: &[u8]) -> Self {
        let folder = Self::new();
        fs::write(folder.path(), bytes).unwrap();
        folder
    }

    /// There are no other files.
    fn has_only_the_session(&self) -> bool {
        let mut names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.all(|name| name == "session")
    }
}

fn model(device: Device, n_threads: usize) -> Arc<Model> {
    File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, n_threads)
}

fn params(n_ctx: u32, chunk_tokens: u32, kv_type: KvType) -> SessionParams {
    SessionParams { n_ctx, chunk_tokens, kv_type, ..Default::default() }
}

fn prompt(session: &mut Session, text: &[u32]) {
    session.prompt(text, &Cancel::default(), &mut |_, _| true).unwrap();
}

fn save(session: &Session, path: &Path) {
    session.save(path, &Cancel::default(), &mut |_, _| true).unwrap();
}

fn load(model: &Arc<Model>, path: &Path, params: &SessionParams) -> Result<Session, Error> {
    Session::load(model, path, params, &Cancel::default(), &mut |_, _| true)
}

fn saved(session: &Session) -> Vec<u8> {
    let folder = Folder::new();
    save(session, &folder.path());
    fs::read(folder.path()).unwrap()
}

fn loaded(model: &Arc<Model>, bytes: &[u8], params: &SessionParams) -> Result<Session, Error> {
    load(model, &Folder::with(bytes).path(), params)
}

/// A session with a past: prompts, tokens one by one, edits, rewinds.
fn with_a_past(model: &Arc<Model>, params: &SessionParams, random: &mut Random) -> Session {
    let mut session = Session::new(model, params).unwrap();
    for _ in 0..random.below(5) {
        let held = session.tokens().len();
        let n_common = held - random.below(held / 3 + 1);
        let most = (params.n_ctx as usize - 60 - n_common).min(400);
        let new = tokens(1 + random.below(most), random.bits());
        let text = [&session.tokens()[..n_common], &new].concat();
        prompt(&mut session, &text);
        for token in tokens(random.below(50), random.bits()) {
            session.decode(token, &Cancel::default()).unwrap();
        }
        let held = session.tokens().len();
        if random.below(3) == 0 {
            session.rewind(held - random.below(60).min(held)).unwrap();
        }
    }
    session
}

/// Both go on with the same logits: to the bit where they are computed on the processor.
fn go_on(device: Device, kept: &mut Session, other: &mut Session, random: &mut Random) {
    let room = (kept.n_ctx().min(other.n_ctx()) as usize).saturating_sub(kept.tokens().len());
    for token in tokens(random.below(30).min(room), random.bits()) {
        for session in [&mut *kept, &mut *other] {
            session.decode(token, &Cancel::default()).unwrap();
        }
        let differs = distance(other.logits().unwrap(), kept.logits().unwrap());
        let allowed = if device == Device::Cpu { 0.0 } else { 0.03 };
        assert!(differs <= allowed, "{device:?}: differs by {differs}");
    }
}

#[test]
fn a_loaded_session_goes_on_as_the_one_that_was_saved() {
    for device in devices() {
        let models = [model(device, 2), model(device, 1)];
        for (seed, kv_type) in (0..24).zip(KV_TYPES.into_iter().cycle()) {
            let random = &mut Random::new(seed + 100);
            // From this context on the tiny model has rings.
            let n_ctx = [150, 600, 1500][random.below(3)];
            let mut kept = with_a_past(&models[0], &params(n_ctx, 64, kv_type), random);
            let bytes = saved(&kept);

            let n_held = kept.tokens().len() as u32;
            let contexts = [n_ctx, n_held.max(1), n_held + 1 + random.below(100) as u32, 1700];
            let other = params(contexts[random.below(4)], 1 + random.below(99) as u32, kv_type);
            let mut session = loaded(&models[1], &bytes, &other).unwrap();
            assert_eq!(session.tokens(), kept.tokens());
            assert!(session.logits().is_err() && session.restore_points().unwrap().is_empty());
            go_on(device, &mut kept, &mut session, random);
            // What it has computed since is saved like what it has read, by a session of any chunk.
            let mut again = loaded(&models[0], &saved(&session), &params(1700, 64, kv_type)).unwrap();
            go_on(device, &mut session, &mut again, random);

            // Whatever it can go back to, the text is what counts.
            for _ in 0..4 {
                let held = session.tokens().to_vec();
                let room = session.n_ctx() as usize;
                let n_common = random.below(held.len() + 1).min(room - 1);
                let n_new = (1 + random.below(80)).min(room - n_common);
                let text = [&held[..n_common], &tokens(n_new, random.bits())].concat();
                let mut fresh = Session::new(&models[0], &params(1700, 100, kv_type)).unwrap();
                prompt(&mut session, &text);
                prompt(&mut fresh, &text);
                let differs = distance(session.logits().unwrap(), fresh.logits().unwrap());
                assert!(differs <= if device == Device::Cpu { 0.0 } else { 0.03 }, "differs by {differs}");
            }
        }
    }
}

#[test]
fn a_loaded_session_goes_back_as_far_as_the_one_that_was_saved() {
    let model = model(Device::Cpu, 2);
    let without_points = SessionParams { restore_bytes: 1, ..params(1500, 64, KvType::F16) };
    for seed in 0..40 {
        let random = &mut Random::new(seed);
        let mut kept = with_a_past(&model, &without_points, random);
        let mut session = loaded(&model, &saved(&kept), &without_points).unwrap();
        let held = kept.tokens().len();
        let to = held - random.below(150).min(held);
        assert_eq!(session.rewind(to).unwrap(), kept.rewind(to).unwrap(), "{to} of {held}");
    }
    // Whoever computes nothing new still needs the logits of the last token, and that alone.
    let text = tokens(700, 1);
    let mut kept = Session::new(&model, &without_points).unwrap();
    prompt(&mut kept, &text);
    let mut session = loaded(&model, &saved(&kept), &without_points).unwrap();
    let did = session.prompt(&text, &Cancel::default(), &mut |_, _| true).unwrap();
    assert_eq!((did.n_reused, did.n_computed), (699, 1));
    assert_eq!(session.logits().unwrap(), kept.logits().unwrap());
    // What it makes itself can be gone back to.
    prompt(&mut session, &[&text[..], &tokens(400, 2)].concat());
    let mut with_points = loaded(&model, &saved(&kept), &params(1500, 64, KvType::F16)).unwrap();
    prompt(&mut with_points, &[&text[..], &tokens(400, 2)].concat());
    assert_eq!((session.rewind(700).unwrap(), with_points.rewind(700).unwrap()), (0, 700));
    prompt(&mut with_points, &text);
    assert_eq!(with_points.logits().unwrap(), kept.logits().unwrap());
}

#[test]
fn every_device_writes_the_same_file_of_the_same_session() {
    let all = [devices(), vec![Device::Reference]].concat();
    let models: Vec<_> = all.iter().map(|&device| model(device, 2)).collect();
    for kv_type in KV_TYPES {
        let params = SessionParams { precision: Precision::Exact, ..params(400, 64, kv_type) };
        for computes in &models {
            let mut session = Session::new(computes, &params).unwrap();
            prompt(&mut session, &tokens(230, 3));
            let bytes = saved(&session);
            let mut outputs = Vec::new();
            for model in &models {
                let mut session = loaded(model, &bytes, &params).unwrap();
                assert!(saved(&session) == bytes, "{kv_type:?} on {}", model.device().name);
                session.decode(7, &Cancel::default()).unwrap();
                outputs.push(session.logits().unwrap().to_vec());
            }
            for output in &outputs {
                let differs = distance(output, &outputs[0]);
                assert!(differs < 0.01, "{kv_type:?}: differs by {differs}");
            }
        }
    }
}

#[test]
fn a_file_has_what_its_description_says() {
    let file = tiny_model::bytes(TensorType::F32);
    let model = File::new(&file).open(Device::Cpu, 2);
    for (n_tokens, kv_type, allowed) in [
        (0, KvType::F16, 0.0),
        (1, KvType::F32, 1e-5),
        (80, KvType::Q8, 0.1),
        (301, KvType::F32, 5e-5),
        (256, KvType::F16, 5e-3),
        (237, KvType::Bf16, 0.03),
        (270, KvType::Q8, 0.1),
    ] {
        let text = tokens(n_tokens, 5);
        let params = SessionParams { precision: Precision::Exact, ..params(700, 64, kv_type) };
        let mut session = Session::new(&model, &params).unwrap();
        if n_tokens > 0 {
            prompt(&mut session, &text);
        }
        let bytes = saved(&session);
        let read = SessionFile::read(&bytes);
        assert_eq!(read.tokens, text);
        assert_eq!(read.fingerprint, fingerprint(&file));
        let expected = brute_force::keys_and_values(&file, &tiny_model::plan(), &text);
        for (i, layer) in read.layers.iter().enumerate() {
            let mask = tiny_model::plan()[i].mask;
            for (head, blocks) in layer.heads.iter().enumerate() {
                // All that the next token of any query head sees.
                for (position, head) in (0..n_tokens as u32).flat_map(|j| [(j, 2 * head), (j, 2 * head + 1)])
                {
                    let phase = tiny_model::plan()[i].phases[head];
                    let block = position / mask.block_size();
                    assert!(!mask.sees(n_tokens as u32, position, phase) || blocks.contains_key(&block));
                }
                for (&block, rows) in blocks {
                    for (token, [key, value]) in rows.iter().enumerate() {
                        let position = block as usize * mask.block_size() as usize + token;
                        let [expected_key, expected_value] = match expected[i].get(position) {
                            Some(heads) => heads[head].clone(),
                            None => [vec![0.0; tiny_model::HEAD_DIM], vec![0.0; tiny_model::HEAD_DIM]],
                        };
                        if position >= n_tokens {
                            assert!(
                                (key, value) == (&expected_key, &expected_value),
                                "behind the last token"
                            );
                            continue;
                        }
                        for (has, expected) in [(key, expected_key), (value, expected_value)] {
                            let differs = distance(has, &expected);
                            assert!(
                                differs <= allowed,
                                "{kv_type:?}: layer {i} position {position}: {differs}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// By the formula of format/session.md.
fn fingerprint(file: &[u8]) -> u128 {
    let directory = longgen_format::Directory::read(file).unwrap();
    let mut covered = file[..directory.data_offset() as usize].to_vec();
    for tensor in directory.tensors() {
        let data = directory.tensor_bytes(tensor);
        let n = data.len().min(4096);
        covered.extend(&data[..n]);
        covered.extend(&data[(data.len() - n) / 2..][..n]);
        covered.extend(&data[data.len() - n..]);
    }
    xxhash_rust::xxh3::xxh3_128(&covered)
}

/// A session that has rings, and blocks that rings have lost.
fn example(model: &Arc<Model>) -> Vec<u8> {
    let mut session = Session::new(model, &params(600, 64, KvType::Q8)).unwrap();
    prompt(&mut session, &tokens(200, 8));
    saved(&session)
}

#[test]
fn damage_is_found_wherever_it_is() {
    let model = model(Device::Cpu, 1);
    let params = params(600, 64, KvType::Q8);
    let bytes = example(&model);
    assert!(loaded(&model, &bytes, &params).is_ok());
    let random = &mut Random::new(1);
    let folder = Folder::with(&[]);
    let refused = |bytes: &[u8], what: &str| {
        fs::write(folder.path(), bytes).unwrap();
        match load(&model, &folder.path(), &params) {
            Ok(_) => panic!("{what}"),
            Err(error) => error,
        }
    };
    let places: Vec<_> = (0..600).chain((0..600).map(|_| random.below(bytes.len()))).collect();
    for i in places {
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << random.below(8);
        refused(&damaged, &format!("byte {i} was changed"));
    }
    for n in (0..300).chain((0..300).map(|_| random.below(bytes.len()))) {
        let error = refused(&bytes[..n], &format!("{n} bytes are left"));
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        assert!(error.to_string().contains(&format!("truncated: {n} bytes")), "{error}");
    }
    for more in [1, 16, 5000] {
        let error = refused(&[&bytes[..], &vec![0; more]].concat(), "it is longer than it says");
        assert!(error.to_string().contains("the session takes only"), "{error}");
    }
    for _ in 0..1000 {
        let n = random.below(400);
        let mut noise: Vec<u8> = (0..n).map(|_| random.bits() as u8).collect();
        let n_true = random.below(60).min(n);
        noise[..n_true].copy_from_slice(&bytes[..n_true]);
        refused(&noise, "noise");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused_though_all_checksums_match() {
    let model = model(Device::Cpu, 1);
    let params = params(600, 64, KvType::Q8);
    let original = SessionFile::read(&example(&model));
    let random = &mut Random::new(2);
    for _ in 0..2000 {
        let mut bytes = original.bytes.clone();
        let n_words = original.header_bytes / 4 - 4;
        for _ in 0..1 + random.below(2) {
            let at = 4 * (2 + random.below(n_words - 2));
            let word = [random.bits() as u32, random.below(300) as u32, u32::MAX, 0][random.below(4)];
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        original.sign(&mut bytes);
        if let Ok(mut session) = loaded(&model, &bytes, &params) {
            // Other tokens of the vocabulary are a session, too, and so is one that goes back less far.
            prompt(&mut session, &tokens(400, 3));
        }
    }
    let changed = |at: usize, word: u32| {
        let mut bytes = original.bytes.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        original.sign(&mut bytes);
        let error = loaded(&model, &bytes, &params).map(|_| ()).unwrap_err();
        (error.kind(), error.to_string())
    };
    let layer = |i: usize| 52 + i * 4 * (6 + tiny_model::N_HEADS);
    for (at, word, kind, says) in [
        (8, 2, ErrorKind::Unsupported, "version 2, this runtime reads 1"),
        (12, 4, ErrorKind::Unsupported, "a cache of type 4, which is unknown"),
        (12, 1, ErrorKind::Invalid, "type of the cache: f16 in the file, q8 in the session"),
        (20, 0, ErrorKind::Invalid, "a session of another model: fingerprint"),
        (layer(2), 7, ErrorKind::Invalid, "attention of layer 2: kind 7, which is unknown in the file"),
        (
            layer(0) + 4,
            71,
            ErrorKind::Invalid,
            "layer 0: window (window_tokens 71, sink_tokens 5) in the file, window (window_tokens 70, sink_tokens 5)",
        ),
        (layer(1) + 20, 1, ErrorKind::Format, "layer 1: the blocks from 1 on are too few"),
        (layer(2) + 20, 13, ErrorKind::Format, "layer 2: the blocks from 13 on are too few"),
        (layer(3) + 20, u32::MAX, ErrorKind::Format, "layer 3: the blocks from 4294967295 on are too few"),
        (
            layer(3) + 28,
            3,
            ErrorKind::Invalid,
            "attention of layer 3: phase of head 1: 3 in the file, 1 in the session",
        ),
        (layer(4), 258, ErrorKind::Format, "token 258 of a vocabulary of 258"),
    ] {
        let (has, message) = changed(at, word);
        assert!(has == kind && message.contains(says), "{has:?} {message}");
    }
    // Counts make the header longer than the file, or end it elsewhere.
    for at in (32..52).step_by(4) {
        for word in [u32::MAX, 0, 1 << 31, 5] {
            changed(at, word);
        }
    }
}

#[test]
fn a_session_that_does_not_go_with_the_model_is_refused_by_what_differs() {
    let bytes = example(&model(Device::Cpu, 1));
    let says = |model: &Arc<Model>, params: &SessionParams| {
        let error = loaded(model, &bytes, params).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("/session: "), "the file is named: {error}");
        (error.kind(), error.to_string())
    };
    let fitting = params(600, 64, KvType::Q8);
    // Another type, and the same with one weight changed.
    let mut file = tiny_model::bytes(TensorType::Q8_0);
    let (kind, message) =
        says(&File::new(&tiny_model::bytes(TensorType::F16)).open(Device::Cpu, 1), &fitting);
    assert!(kind == ErrorKind::Invalid && message.contains("a session of another model"), "{message}");
    let data =
        longgen_format::Directory::read(&file).unwrap().tensor("blk.2.attn_v.weight").unwrap().offset();
    file[data as usize + 5] ^= 1;
    let (_, message) = says(&File::new(&file).open(Device::Cpu, 1), &fitting);
    assert!(message.contains("a session of another model"), "{message}");

    let mut attention = tiny_model::plan();
    attention[1].mask = Mask::Window { window_tokens: 9, sink_tokens: 2 };
    let open = ModelParams { attention: Some(attention), ..Default::default() };
    let file: Arc<Vec<u8>> = Arc::new(tiny_model::bytes(TensorType::Q8_0));
    let open = Model::from_bytes(file, &open, &Cancel::default(), &mut |_, _| true, &mut |_, _| {});
    let (kind, message) = says(&Arc::new(open.unwrap()), &fitting);
    let expected =
        "attention of layer 1: full in the file, window (window_tokens 9, sink_tokens 2) in the session";
    assert!(kind == ErrorKind::Invalid && message.contains(expected), "{message}");

    let model = model(Device::Cpu, 1);
    let (kind, message) = says(&model, &params(600, 64, KvType::F16));
    let expected = "type of the cache: q8 in the file, f16 in the session";
    assert!(kind == ErrorKind::Invalid && message.contains(expected), "{message}");
    let (kind, message) = says(&model, &params(199, 64, KvType::Q8));
    let expected = "the session's 200 tokens do not fit in a context of 199";
    assert!(kind == ErrorKind::ContextFull && message.contains(expected), "{message}");

    let error = loaded(&model, &tiny_model::bytes(TensorType::F16), &fitting).map(|_| ()).unwrap_err();
    assert!(error.kind() == ErrorKind::Format && error.to_string().contains("this is not a session file"));
    let error = load(&model, Path::new("/nowhere/session"), &fitting).map(|_| ()).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("/nowhere/session"));
}

#[test]
fn a_file_that_cannot_be_written_leaves_everything_as_it_was() {
    let model = model(Device::Cpu, 1);
    let mut session = Session::new(&model, &params(600, 64, KvType::F16)).unwrap();
    prompt(&mut session, &tokens(200, 8));
    let folder = Folder::with(b"what was there");
    for path in ["/proc/session", "/nowhere/session", "/dev/full", "/", "", folder.0.path().to_str().unwrap()]
    {
        let error = session.save(path, &Cancel::default(), &mut |_, _| true).unwrap_err();
        assert!([ErrorKind::Io, ErrorKind::NotFound].contains(&error.kind()), "{error}");
        assert!(error.to_string().starts_with(&format!("{path}: ")), "{error}");
        let is_said = error.to_string().ends_with("not a file: nothing else is replaced");
        assert_eq!(is_said, Path::new(path).exists(), "{error}");
    }
    assert!(!fs::metadata("/dev/full").unwrap().is_file());

    // The disk is full: files of this process must not grow.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""]).arg(env::current_exe().unwrap());
    shell.args(["--exact", "saves_where_nothing_fits", "--ignored"]).env(SAVE_TO, folder.path());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(fs::read(folder.path()).unwrap(), b"what was there");
    assert!(folder.has_only_the_session());
}

#[test]
#[ignore = "a_file_that_cannot_be_written_leaves_everything_as_it_was runs it in a process of its own"]
fn saves_where_nothing_fits() {
    let Some(path) = env::var_os(SAVE_TO) else { return };
    // The model is not written to a file here.
    let bytes: Arc<Vec<u8>> = Arc::new(tiny_model::bytes(TensorType::Q8_0));
    let params = ModelParams::default();
    let model = Model::from_bytes(bytes, &params, &Cancel::default(), &mut |_, _| true, &mut |_, _| {});
    let mut session = Session::new(&Arc::new(model.unwrap()), &self::params(600, 64, KvType::F16)).unwrap();
    prompt(&mut session, &tokens(200, 8));
    let error = session.save(&path, &Cancel::default(), &mut |_, _| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
}

#[test]
fn a_call_that_is_stopped_leaves_everything_as_it_was() {
    let model = model(Device::Cpu, 1);
    let params = params(600, 64, KvType::F16);
    let mut session = Session::new(&model, &params).unwrap();
    prompt(&mut session, &tokens(200, 8));
    let folder = Folder::with(b"what was there");
    let n_looks = (0..).find(|&n| {
        let result = session.save(folder.path(), &Cancel::after(n), &mut |_, _| true);
        assert!(folder.has_only_the_session());
        if let Err(error) = &result {
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert_eq!(fs::read(folder.path()).unwrap(), b"what was there");
        }
        result.is_ok()
    });
    assert!(n_looks > Some(4), "{n_looks:?}");
    for n in 0.. {
        match Session::load(&model, folder.path(), &params, &Cancel::after(n), &mut |_, _| true) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
        }
    }
    // Progress rises to the length of the file.
    let metadata = fs::metadata(folder.path()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o077, 0, "it is nobody else's");
    let n_bytes = metadata.len() as usize;
    let mut told = Vec::new();
    session
        .save(folder.path(), &Cancel::default(), &mut |done, all| {
            told.push((done, all));
            true
        })
        .unwrap();
    Session::load(&model, folder.path(), &params, &Cancel::default(), &mut |done, all| {
        told.push((done, all));
        true
    })
    .unwrap();
    assert!(told.iter().all(|&(done, all)| done <= all && all == n_bytes));
    assert_eq!(told.iter().filter(|&&(done, _)| done == n_bytes).count(), 2);
    let n_falls = told.windows(2).filter(|pair| pair[1].0 <= pair[0].0).count();
    assert_eq!(n_falls, 1, "where loading begins");
}

#[test]
fn a_process_that_is_killed_leaves_a_session() {
    let model = model(Device::Cpu, 1);
    let folder = Folder::new();
    let random = &mut Random::new(4);
    for _ in 0..12 {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "saves_until_it_is_killed", "--ignored", "--nocapture"]);
        let mut child = command.env(SAVE_TO, folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let n_saves = 1 + random.below(20);
        assert_eq!(lines.filter(|line| line.as_ref().unwrap() == "saved").take(n_saves).count(), n_saves);
        child.kill().unwrap();
        child.wait().unwrap();
        let session = load(&model, &folder.path(), &params(600, 64, KvType::F16)).unwrap();
        let seed = session.tokens().len() as u64;
        assert!([200, 350].contains(&seed));
        assert_eq!(session.tokens(), tokens(seed as usize, seed));
    }
}

#[test]
#[ignore = "a_process_that_is_killed_leaves_a_session runs it in a process of its own"]
fn saves_until_it_is_killed() {
    let Some(path) = env::var_os(SAVE_TO) else { return };
    let model = model(Device::Cpu, 1);
    let sessions = [200, 350].map(|n| {
        let mut session = Session::new(&model, &params(600, 64, KvType::F16)).unwrap();
        prompt(&mut session, &tokens(n, n as u64));
        session
    });
    for session in sessions.iter().cycle() {
        save(session, Path::new(&path));
        // It is the one who reads this that ends.
        if std::io::stdout().write_all(b"saved\n").is_err() {
            return;
        }
    }
}
