//! Holes that readers of model files have had, tried with Hugging Face folders: their JSON, and their files of tensors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::hostile::{HUGE, Outcome, convert_path, outcome};
use support::{Checkpoint, ODD};
use tempfile::TempDir;

/// A folder, and the JSON in it: the files, and the header of the tensors.
struct Folder {
    temporary: TempDir,
    header: Value,
    data: Vec<u8>,
}

const TENSORS: &str = "model.safetensors";
const TEXTS: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

impl Folder {
    fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let folder = Checkpoint::new(ODD, 1).write(temporary.path());
        let tensors = fs::read(folder.join(TENSORS)).unwrap();
        let n = usize::try_from(u64::from_le_bytes(tensors[..8].try_into().unwrap())).unwrap();
        let header = serde_json::from_slice(&tensors[8..8 + n]).unwrap();
        Self { temporary, header, data: tensors[8 + n..].to_vec() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join("model").join(name)
    }

    /// Converts with other bytes in one of the files.
    fn try_with(&self, what: &str, name: &str, bytes: &[u8]) -> Outcome {
        let path = self.path(name);
        let was = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let outcome =
            outcome(&format!("{name}: {what}"), || convert_path(&self.temporary.path().join("model")));
        fs::write(&path, was).unwrap();
        outcome
    }

    fn assert_refused(&self, what: &str, name: &str, bytes: &[u8]) -> String {
        let message = self.try_with(what, name, bytes).expect_err(&format!("{name}, {what}: let in"));
        assert!(message.contains(name), "{name}, {what}: {message}");
        message
    }

    /// The file of tensors with another header.
    fn tensors(&self, header: &str) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn value(&self, name: &str) -> Value {
        if name == TENSORS {
            return self.header.clone();
        }
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn bytes_of(&self, name: &str, value: &Value) -> Vec<u8> {
        if name == TENSORS { self.tensors(&value.to_string()) } else { value.to_string().into_bytes() }
    }
}

/// Pointers to the values in a document; of many that lie side by side, the first ones.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    const LISTED: usize = 24;
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .take(4)
                .for_each(|(i, item)| pointers(item, &format!("{at}/{i}"), found));
        }
        Value::Object(fields) => fields.iter().take(LISTED).for_each(|(name, field)| {
            pointers(field, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
        }),
        _ => {}
    }
}

/// CVE-2024-8063, CVE-2025-0312, CVE-2024-12055, CVE-2025-0315, and CVE-2024-32878: any field of any file of a folder may be
/// anything, or missing.
#[test]
fn every_value_of_a_folder_may_be_anything() {
    let folder = Folder::new();
    for name in TEXTS.into_iter().chain([TENSORS]) {
        let document = folder.value(name);
        folder.try_with("as it is", name, &folder.bytes_of(name, &document)).unwrap();
        let mut all = Vec::new();
        pointers(&document, "", &mut all);
        for pointer in all {
            let values = [
                json!(null),
                json!(true),
                json!(-1),
                json!(0),
                json!(1.5),
                json!(u32::MAX),
                json!(u64::MAX),
                json!(1e308),
                json!(""),
                json!("x\u{0}y"),
                json!([]),
                json!({}),
                json!([[[]]]),
                json!(vec![0; 1000]),
            ];
            for value in values {
                let mut changed = document.clone();
                let what = format!("{pointer} is {:.40}", value.to_string());
                *changed.pointer_mut(&pointer).unwrap() = value;
                let _ = folder.try_with(&what, name, &folder.bytes_of(name, &changed));
            }
            if let Some((parent, field)) = pointer.rsplit_once('/') {
                let mut changed = document.clone();
                if let Some(fields) = changed.pointer_mut(parent).unwrap().as_object_mut() {
                    fields.remove(&field.replace("~1", "/").replace("~0", "~"));
                    let _ = folder.try_with(
                        &format!("without {pointer}"),
                        name,
                        &folder.bytes_of(name, &changed),
                    );
                }
            }
        }
    }
}

/// CVE-2024-39720.
#[test]
fn files_of_a_few_bytes() {
    let folder = Folder::new();
    for name in TEXTS.into_iter().chain([TENSORS]) {
        for n in 0..=32 {
            folder.assert_refused(&format!("{n} zeros"), name, &vec![0; n]);
            folder.assert_refused(&format!("{n} braces"), name, "{".repeat(n).as_bytes());
        }
    }
}

/// CVE-2025-49847: a token whose length is no number of 32 bits. The file has holes instead of its bytes.
#[test]
fn a_token_of_two_gigabytes() {
    let folder = Folder::new();
    let path = folder.path("tokenizer.json");
    fs::write(&path, r#"{"model": {"type": "BPE", "merges": [], "vocab": {""#).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 31).unwrap();
    let outcome = outcome("a long token", || convert_path(&folder.temporary.path().join("model")));
    let message = outcome.unwrap_err();
    assert!(message.contains("tokenizer.json") && message.contains("2147483648 bytes"), "{message}");
}

/// CVE-2024-21836, CVE-2024-23605, CVE-2024-23496: lengths; CVE-2024-41130: truncation; CVE-2024-21802, CVE-2025-53630,
/// CVE-2026-27940, CVE-2026-33298: shapes and sizes that wrap; CVE-2026-7482: places beyond the end.
#[test]
fn headers_of_safetensors() {
    let folder = Folder::new();
    let file = folder.bytes_of(TENSORS, &folder.header);
    for n in HUGE.into_iter().chain([0, 1, folder.header.to_string().len() as u64 + 1]) {
        let mut file = file.clone();
        file[..8].copy_from_slice(&n.to_le_bytes());
        folder.assert_refused(&format!("a header of {n}"), TENSORS, &file);
    }
    for n in (0..4096).step_by(11).chain([file.len() - 1]) {
        folder.assert_refused(&format!("cut off at {n}"), TENSORS, &file[..n]);
    }
    let norm = "model.norm.weight";
    let end = folder.data.len() as u64;
    let places = [
        json!([end, end + 176]),
        json!([u64::MAX - 175, u64::MAX]),
        json!([176, 0]),
        json!([0, 1u64 << 40]),
        json!([0]),
    ];
    let shapes = [
        json!([1u64 << 32, 1u64 << 32]),
        json!([u64::MAX, u64::MAX]),
        json!([1u64 << 63, 2]),
        json!([0, 44]),
        json!([]),
        json!([-44]),
        json!(vec![1; 100_000]),
    ];
    for (field, values) in [("data_offsets", &places[..]), ("shape", &shapes[..])] {
        for value in values {
            let mut header = folder.header.clone();
            header[norm][field] = value.clone();
            let bytes = folder.bytes_of(TENSORS, &header);
            let what = format!("{field} is {:.40}", value.to_string());
            folder.try_with(&what, TENSORS, &bytes).expect_err(&what);
        }
    }
}

/// Documents that take more to read than they say.
#[test]
fn bombs_of_json() {
    let folder = Folder::new();
    let n = 1_000_000;
    let bombs = [
        ("nested arrays", "[".repeat(n)),
        ("nested objects", "{\"a\":".repeat(n)),
        ("a long number", "1".repeat(n)),
        ("a large exponent", "1e999999999".to_owned()),
        ("half an escape", "\"\\ud800".to_owned()),
    ];
    for name in TEXTS {
        for (what, bomb) in &bombs {
            folder.assert_refused(what, name, bomb.as_bytes());
            folder.assert_refused(what, name, format!("{{\"model_type\": {bomb}").as_bytes());
        }
    }
    for (what, bomb) in &bombs {
        folder.assert_refused(what, TENSORS, &folder.tensors(bomb));
    }
    // An array of a million where one number, or one for each layer, is expected.
    let mut config = folder.value("config.json");
    config["hidden_size"] = json!(vec![44; n]);
    let message = folder.assert_refused("many sizes", "config.json", config.to_string().as_bytes());
    assert!(message.len() < 1000, "a message of {} bytes", message.len());
    let mut header = folder.header.clone();
    for i in 0..n {
        header[format!("t{i}")] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    }
    let start = Instant::now();
    folder.try_with("a million tensors", TENSORS, &folder.bytes_of(TENSORS, &header)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// Steps of a tokenizer that double what the last one made.
#[test]
fn replacements_that_double() {
    let folder = Folder::new();
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let tokenizer = folder.value("tokenizer.json");
    for (field, kind, steps) in
        [("decoder", "Sequence", "decoders"), ("normalizer", "Sequence", "normalizers")]
    {
        let mut changed = tokenizer.clone();
        changed[field] = json!({"type": kind, steps: vec![double.clone(); 60]});
        let outcome = folder.try_with(field, "tokenizer.json", changed.to_string().as_bytes());
        let message = outcome.expect_err(field);
        assert!(message.contains(field) && message.contains("times as long"), "{message}");
    }
}
