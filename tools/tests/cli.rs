//! `lgconvert` as its user sees it: what it leaves on disk, prints and returns.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use longgen::Cancel;
use longgen_format::{Directory, TensorType};
use longgen_tools::convert::types::MatrixType;
use longgen_tools::convert::{self, Conversion, save};
use longgen_tools::plan::AttentionArgs;
use serde_json::{Value, json};
use support::program::{failure, printed, str};
use support::*;
use tempfile::TempDir;

fn lgconvert(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lgconvert")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// A folder with a checkpoint and an older file beside it.
struct Place {
    folder: TempDir,
    input: PathBuf,
    old: PathBuf,
}

impl Place {
    fn new(checkpoint: &Checkpoint) -> Self {
        let folder = TempDir::new().unwrap();
        let input = checkpoint.write(folder.path());
        let old = folder.path().join("out.gguf");
        fs::write(&old, "the old file").unwrap();
        Self { folder, input, old }
    }

    fn conversion(&self, matrices: MatrixType) -> Conversion {
        Conversion::new(convert::open(&self.input).unwrap(), &AttentionArgs::default(), matrices).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(&self.folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// Nothing has happened here.
    fn assert_untouched(&self) {
        assert_eq!(fs::read_to_string(&self.old).unwrap(), "the old file");
        assert_eq!(self.names(), ["model", "out.gguf"]);
    }
}

#[test]
fn a_failed_conversion_leaves_the_old_file_and_nothing_else() {
    let mut checkpoint = Checkpoint::new(WHOLE_BLOCKS, 1);
    let last = checkpoint.tensors.get_mut("model.layers.2.mlp.down_proj.weight").unwrap();
    *last.values.last_mut().unwrap() = f32::INFINITY;
    let place = Place::new(&checkpoint);
    let error = save(&place.conversion(MatrixType::Q8_0), &place.old, &Cancel::default(), &mut |_| {});
    assert!(format!("{:#}", error.unwrap_err()).contains("blk.2.ffn_down.weight"));
    place.assert_untouched();
}

#[test]
fn a_conversion_that_is_stopped_leaves_the_old_file_and_nothing_else() {
    let place = Place::new(&Checkpoint::new(WHOLE_BLOCKS, 1));
    let conversion = place.conversion(MatrixType::F32);
    let total: u64 = conversion.sizes().unwrap().iter().map(|(.., n_bytes)| n_bytes).sum();
    // At once, in the middle, and behind the last byte.
    for stop_at in [1, total / 2, total] {
        let cancel = Cancel::default();
        let mut progress = |written| {
            if written >= stop_at {
                cancel.cancel();
            }
        };
        let error = save(&conversion, &place.old, &cancel, &mut progress).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
        place.assert_untouched();
    }
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let place = Place::new(&Checkpoint::new(WHOLE_BLOCKS, 1));
    // No file may grow beyond some KiB; with the signal ignored, writing fails.
    let script = "ulimit -c 0; ulimit -f 100; trap '' XFSZ; exec \"$0\" \"$1\" -o \"$2\"";
    let run = |script: &str| {
        let args = [script, env!("CARGO_BIN_EXE_lgconvert"), str(&place.input), str(&place.old)];
        Command::new("sh").arg("-c").args(args).output().unwrap()
    };
    let message = failure(&run(script));
    assert!(message.contains("cannot write"), "{message:?}");
    place.assert_untouched();
    // Without that, the signal kills the process on the spot.
    let killed = run(&script.replace("trap '' XFSZ; ", ""));
    assert!(killed.status.signal().is_some());
    assert_eq!(fs::read_to_string(&place.old).unwrap(), "the old file");
}

/// A disk that is full after some bytes.
struct FullDisk {
    room: u64,
    file: Cursor<Vec<u8>>,
}

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.position() + bytes.len() as u64 > self.room {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for FullDisk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[test]
fn a_sink_that_fails_anywhere_fails_the_conversion() {
    let place = Place::new(&Checkpoint::new(WHOLE_BLOCKS, 1));
    let conversion = place.conversion(MatrixType::Q8_0);
    let write = |room| {
        let sink = FullDisk { room, file: Cursor::new(Vec::new()) };
        conversion.write(sink, &Cancel::default(), &mut |_| {}).map(|sink| sink.file.into_inner())
    };
    let whole = write(u64::MAX).unwrap();
    let n_bytes = whole.len() as u64;
    for room in [0, 1, 5000, n_bytes / 3, n_bytes / 2, n_bytes - 4096, n_bytes - 1] {
        let error = write(room).unwrap_err();
        assert!(format!("{error:#}").contains("cannot write"), "room for {room}: {error:#}");
    }
    assert!(write(n_bytes).unwrap() == whole);
}

#[test]
fn a_conversion_replaces_the_old_file_and_says_so() {
    let place = Place::new(&Checkpoint::new(ODD, 1));
    let output = lgconvert(&[str(&place.input), "-o", str(&place.old)]);
    let n_bytes = fs::metadata(&place.old).unwrap().len();
    let said = printed(&output);
    assert!(
        said.starts_with(str(&place.old)) && said.contains(&format!("{:.1} KiB", n_bytes as f64 / 1024.0))
    );
    assert!(output.stderr.is_empty());
    assert_eq!(place.names(), ["model", "out.gguf"]);
    assert!(fs::read(&place.old).unwrap() == support::convert(&place.input, MatrixType::Keep));
    // Readable for whoever may read new files here.
    let other = place.folder.path().join("other");
    fs::write(&other, "").unwrap();
    assert_eq!(fs::metadata(&place.old).unwrap().mode(), fs::metadata(&other).unwrap().mode());
}

#[test]
fn a_file_can_be_changed_in_its_place() {
    let place = Place::new(&Checkpoint::new(WHOLE_BLOCKS, 1));
    printed(&lgconvert(&[str(&place.input), "-o", str(&place.old)]));
    printed(&lgconvert(&[str(&place.old), "-o", str(&place.old), "--type", "q8_0"]));
    assert!(fs::read(&place.old).unwrap() == support::convert(&place.input, MatrixType::Q8_0));
}

#[test]
fn places_that_cannot_be_written_to_are_named() {
    let place = Place::new(&Checkpoint::new(ODD, 1));
    let missing = place.folder.path().join("no/such/out.gguf");
    assert!(failure(&lgconvert(&[str(&place.input), "-o", str(&missing)])).contains("no/such"));
    let message = failure(&lgconvert(&[str(&place.input), "-o", str(place.folder.path())]));
    assert!(message.contains("is a folder"), "{message:?}");
    place.assert_untouched();
}

#[test]
fn a_dry_run_shows_plan_and_sizes_and_writes_nothing() {
    let place = Place::new(&Checkpoint::new(WHOLE_BLOCKS, 1));
    let args = [str(&place.input), "-o", str(&place.old), "--dry-run", "--type", "q8_0"];
    let said = printed(&lgconvert(&args));
    assert!(said.contains("layers 0-2") && said.contains("full"), "{said}");
    assert!(said.contains("7 F32") && said.contains("22 Q8_0"), "{said}");
    printed(&lgconvert(&[str(&place.input), "--dry-run"]));
    let shown: Value =
        serde_json::from_str(&printed(&lgconvert(&[&args[..], &["--json"]].concat()))).unwrap();
    place.assert_untouched();

    // The file that the same flags write has all of it.
    let written = support::convert(&place.input, MatrixType::Q8_0);
    let directory = Directory::read(&written).unwrap();
    let of_type = |ty: &str| {
        let tensors = directory.tensors().iter().filter(|tensor| tensor.type_name() == ty);
        json!({"type": ty, "tensors": tensors.clone().count(), "bytes": tensors.map(|tensor| tensor.n_bytes()).sum::<u64>()})
    };
    assert_eq!(shown["types"], json!([of_type("Q8_0"), of_type("F32")]));
    let n_bytes: u64 = directory.tensors().iter().map(|tensor| tensor.n_bytes()).sum();
    assert_eq!(shown["bytes"], n_bytes);
    assert_eq!(shown["attention"], json!(vec![json!({"kind": "full"}); N_LAYERS]));
    assert_eq!(shown["warnings"], json!([]));
}

#[test]
fn a_plan_that_the_model_was_not_trained_for_is_warned_of() {
    let mut checkpoint = Checkpoint::new(ODD, 1);
    let warns = |checkpoint: &Checkpoint, args: &[&str]| {
        let place = Place::new(checkpoint);
        let output = lgconvert(&[&[str(&place.input), "--dry-run"], args].concat());
        printed(&output);
        String::from_utf8(output.stderr).unwrap().contains("warning: the model was not trained for this plan")
    };
    assert!(warns(&checkpoint, &["--attention", "longgen-sink"]));
    assert!(!warns(&checkpoint, &["--attention", "full"]));
    assert!(!warns(&checkpoint, &["--attention", "longgen-sink", "--full-layers", "0-2"]));
    let sink = json!({"kind": "blocks", "block_size": 64, "local_blocks": 32, "sink_blocks": 1});
    checkpoint.config["longgen"] = json!({"attention": [sink, {"kind": "full"}, sink]});
    assert!(!warns(&checkpoint, &["--attention", "longgen-sink"]));
    assert!(warns(&checkpoint, &["--attention", "longgen-sink", "--local", "8"]));
    assert!(!warns(&checkpoint, &["--attention", "full"]));
}

#[test]
fn flags_that_contradict_each_other_are_refused_before_anything_is_read() {
    for args in [
        &["in.gguf"][..],
        &["in.gguf", "-o", "out.gguf", "--type", "q5_k"],
        &["inspect"],
        &["inspect", "in.gguf", "--kv", "q8"],
        &["inspect", "in.gguf", "--ctx", "0"],
        &["in.gguf", "-o", "out.gguf", "--json"],
        &["verify", "in.gguf", "-o", "out.gguf"],
        &[],
    ] {
        assert_eq!(lgconvert(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn verify_finds_a_changed_byte_and_names_its_tensor() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    let mut bytes = tiny_model::bytes(TensorType::Q8_0);
    fs::write(&path, &bytes).unwrap();
    assert!(printed(&lgconvert(&["verify", str(&path)])).contains("42 tensors are intact"));
    let said: Value = serde_json::from_str(&printed(&lgconvert(&["verify", "--json", str(&path)]))).unwrap();
    assert_eq!(said, json!({"intact": true, "tensors": 42, "error": null}));
    let at = {
        let directory = Directory::read(&bytes).unwrap();
        usize::try_from(directory.tensor("blk.2.attn_v.weight").unwrap().offset()).unwrap() + 77
    };
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let message = failure(&lgconvert(&["verify", str(&path)]));
    assert!(message.contains("in.gguf") && message.contains("blk.2.attn_v.weight"), "{message}");
    let output = lgconvert(&["verify", "--json", str(&path)]);
    assert_eq!(failure(&output), message);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["intact"] == false && said["error"].as_str().unwrap().contains("blk.2.attn_v.weight"));
    // A plain file has nothing to compare with.
    let name = b"longgen.hash.algorithm";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at] = b'L';
    fs::write(&path, &bytes).unwrap();
    assert!(failure(&lgconvert(&["verify", str(&path)])).contains("no checksums"));
}
