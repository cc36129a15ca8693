//! Whatever is done to sessions, in whatever order, they hold what a new one that computes everything would hold; and
//! however long it is done, memory stays what it was.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::{env, fs};

use longgen::{Cancel, Device, KvType, Model, Session, SessionParams};
use longgen_format::TensorType;
use support::model::{File, devices, distance, tokens};
use support::random::Random;
use support::tiny_model;

const N_CTX: u32 = 700;

/// Most sessions at a time.
const MAX_SESSIONS: usize = 4;

/// Turns of the long run, unless LONGGEN_SOAK_TURNS says how many.
const TURNS: usize = 300;

/// One test at a time: what one holds in memory is not what the other has lost.
static ALONE: Mutex<()> = Mutex::new(());

/// A session, and the text that it should hold.
struct Twin {
    session: Session,
    text: Vec<u32>,
}

/// Sessions of one model to which random things happen.
struct Crowd {
    model: Arc<Model>,
    device: Device,
    kv_type: KvType,
    twins: Vec<Twin>,
    random: Random,
    folder: tempfile::TempDir,
}

impl Crowd {
    fn new(device: Device, kv_type: KvType, seed: u64) -> Self {
        let model = File::new(&tiny_model::bytes(TensorType::Q8_0)).open(device, 2);
        let mut crowd = Self {
            model,
            device,
            kv_type,
            twins: Vec::new(),
            random: Random::new(seed),
            folder: tempfile::tempdir().unwrap(),
        };
        crowd.open();
        crowd
    }

    /// Parameters that change nothing of what is computed.
    fn params(&mut self) -> SessionParams {
        let random = &mut self.random;
        let chunk_tokens = [33, 64, 100][random.below(3)];
        let restore_bytes = [1, 60_000, 1 << 24][random.below(3)];
        SessionParams {
            n_ctx: N_CTX,
            chunk_tokens,
            kv_type: self.kv_type,
            restore_bytes,
            ..Default::default()
        }
    }

    fn open(&mut self) {
        let params = self.params();
        self.twins.push(Twin { session: Session::new(&self.model, &params).unwrap(), text: Vec::new() });
    }

    fn some_tokens(&mut self, most: usize) -> Vec<u32> {
        tokens(1 + self.random.below(most), self.random.bits())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("session")
    }

    /// Does something to a session, or to several; says what, and to which.
    fn act(&mut self) -> (&'static str, Vec<usize>) {
        let i = self.random.below(self.twins.len());
        let n = self.twins[i].text.len();
        let room = N_CTX as usize - n;
        let most = if self.random.below(4) == 0 { 300 } else { 30 };
        let new = self.some_tokens(most);
        let cancel = Cancel::default();
        match self.random.below(10) {
            0 | 1 => {
                let text = self.edited(i, &new);
                let twin = &mut self.twins[i];
                twin.session.prompt(&text, &cancel, &mut |_, _| true).unwrap();
                twin.text = text;
                ("prompt", vec![i])
            }
            2 if new.len() <= room => {
                let twin = &mut self.twins[i];
                twin.session.prefill(&new, &cancel, &mut |_, _| true).unwrap();
                twin.text.extend(new);
                ("prefill", vec![i])
            }
            3 | 4 if new.len() <= room => {
                let twin = &mut self.twins[i];
                for &token in &new {
                    twin.session.decode(token, &cancel).unwrap();
                }
                twin.text.extend(new);
                ("decode", vec![i])
            }
            5 if n > 0 => {
                let to = self.random.below(n);
                let twin = &mut self.twins[i];
                let reached = twin.session.rewind(to).unwrap();
                assert!(reached <= to);
                twin.text.truncate(reached);
                ("rewind", vec![i])
            }
            6 if n > 0 => {
                let (params, path) = (self.params(), self.file());
                self.twins[i].session.save(&path, &cancel, &mut |_, _| true).unwrap();
                let loaded = Session::load(&self.model, &path, &params, &cancel, &mut |_, _| true);
                self.twins[i].session = loaded.unwrap();
                ("save and load", vec![i])
            }
            7 => {
                let text = self.edited(i, &new);
                let after = self.random.below(text.len() + 1);
                let twin = &mut self.twins[i];
                let stopped = twin.session.prompt(&text, &cancel, &mut |done, _| done < after);
                let held = twin.session.tokens().to_vec();
                assert!(text.starts_with(&held) && (stopped.is_err() || held == text));
                twin.text = held;
                ("cancel", vec![i])
            }
            8 => match self.twins.len() {
                MAX_SESSIONS => {
                    self.twins.swap_remove(i);
                    ("close", Vec::new())
                }
                _ if n == 0 || self.random.below(3) == 0 => {
                    self.open();
                    ("open", Vec::new())
                }
                last => {
                    let restore_bytes = self.params().restore_bytes;
                    let params = SessionParams { restore_bytes, ..Default::default() };
                    let twin = &mut self.twins[i];
                    let (session, text) = (twin.session.fork(&params).unwrap(), twin.text.clone());
                    self.twins.push(Twin { session, text });
                    ("fork", vec![i, last])
                }
            },
            _ if self.twins.iter().all(|twin| twin.text.len() + 5 <= N_CTX as usize) => {
                let parts: Vec<_> = self.twins.iter().map(|_| 1 + self.random.below(5)).collect();
                let parts: Vec<_> = parts.into_iter().map(|n| tokens(n, self.random.bits())).collect();
                let mut batch: Vec<_> = self
                    .twins
                    .iter_mut()
                    .zip(&parts)
                    .map(|(twin, part)| (&mut twin.session, &part[..]))
                    .collect();
                Session::step_batch(&mut batch, &cancel).unwrap();
                self.twins.iter_mut().zip(parts).for_each(|(twin, part)| twin.text.extend(part));
                ("batch", (0..self.twins.len()).collect())
            }
            _ => ("nothing", Vec::new()),
        }
    }

    /// The session's text with another end.
    fn edited(&mut self, i: usize, new: &[u32]) -> Vec<u32> {
        let text = &self.twins[i].text;
        let n_kept = self.random.below(text.len() + 1);
        let mut edited = [&text[..n_kept], new].concat();
        edited.truncate(N_CTX as usize);
        edited
    }

    /// The session holds what it should, and its logits are those of one that computes everything.
    fn check(&mut self, i: usize, what: &str) {
        let Twin { session, text } = &mut self.twins[i];
        assert_eq!(session.tokens(), text, "{what}");
        let Ok(logits) = session.logits() else { return };
        let params =
            SessionParams { n_ctx: N_CTX, kv_type: self.kv_type, restore_bytes: 1, ..Default::default() };
        let mut fresh = Session::new(&self.model, &params).unwrap();
        fresh.prefill(text, &Cancel::default(), &mut |_, _| true).unwrap();
        let differs = distance(logits, fresh.logits().unwrap());
        // How a card splits the keys of a query depends on the length of the step, and rounds accordingly.
        let allowed = if self.device == Device::Cpu { 0.0 } else { 0.03 };
        assert!(differs <= allowed, "{:?} {:?}: {what}: differs by {differs}", self.device, self.kv_type);
    }
}

#[test]
fn sessions_are_what_new_ones_would_be() {
    let _alone = ALONE.lock();
    for device in devices() {
        for (seed, kv_type) in [(1, KvType::F16), (2, KvType::Q8), (3, KvType::F32), (4, KvType::F16)] {
            let mut crowd = Crowd::new(device, kv_type, seed);
            let mut history = Vec::new();
            for _ in 0..150 {
                let (what, to) = crowd.act();
                history.push(what);
                for i in to {
                    crowd.check(i, &format!("seed {seed}, after {history:?}"));
                }
            }
            // The text of a session that has come this far without logits is right, too.
            for i in 0..crowd.twins.len() {
                if crowd.twins[i].text.len() < N_CTX as usize {
                    crowd.twins[i].text.push(7);
                    crowd.twins[i].session.decode(7, &Cancel::default()).unwrap();
                    crowd.check(i, "at last");
                }
            }
        }
    }
}

/// Bytes of the process that are in memory.
fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn memory_stays_what_it_was() {
    let _alone = ALONE.lock();
    let turns = env::var("LONGGEN_SOAK_TURNS").map_or(TURNS, |turns| turns.parse().unwrap());
    for device in devices() {
        let mut crowd = Crowd::new(device, KvType::F16, 5);
        let (mut resident, mut files) = (0, 0);
        for turn in 0..turns {
            let (what, to) = crowd.act();
            if turn % 50 == 0 {
                to.into_iter().for_each(|i| crowd.check(i, what));
            }
            let (bytes, open) = (resident_bytes(), open_files());
            match turn {
                // What there may be of sessions, points and allocators' reserves has been there by then.
                _ if turn < turns / 2 => (resident, files) = (resident.max(bytes), files.max(open)),
                _ => assert!(
                    bytes < resident + (4 << 20) && open <= files,
                    "turn {turn}: {bytes} bytes and {open} files instead of {resident} and {files}"
                ),
            }
        }
        eprintln!("{device:?}: {turns} turns, at most {resident} bytes in memory, {} now", resident_bytes());
        drop(crowd);
    }
}
