//! Holes that readers of GGUF files have had, each tried at every door: the runtime's, and lgconvert's. What comes in is
//! refused or works; nothing panics, and nothing takes memory that the file does not have.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longgen::{Cancel, Device, Model, ModelParams};
use longgen_format::{Directory, OwnedValue, TensorDecl, TensorInfo, TensorType, Writer, keys};
use support::fields::{Field, Kind, fields};
use support::hostile::{HUGE, Outcome, convert_path, limit_memory, outcome};
use support::{Checkpoint, ODD, tiny_model};
use tempfile::TempDir;

/// A way into the product for GGUF files, and a file that it lets in.
struct Door {
    name: &'static str,
    file: Vec<u8>,
    open: fn(&[u8]) -> Outcome,
}

impl Door {
    fn all() -> [Self; 3] {
        let llama = Checkpoint::new(ODD, 1).gguf(TensorType::F32, &[], None);
        [
            Self { name: "a model file", file: tiny_model::bytes(TensorType::Q8_0), open: open_model },
            Self { name: "a llama file", file: llama.clone(), open: open_model },
            Self { name: "a llama file to be converted", file: llama, open: convert_file },
        ]
    }

    fn try_file(&self, what: &str, file: &[u8]) -> Outcome {
        outcome(&format!("{}, {what}", self.name), || (self.open)(file))
    }

    fn assert_refused(&self, what: &str, file: &[u8]) -> String {
        self.try_file(what, file).expect_err(&format!("{}, {what}: let in", self.name))
    }
}

fn open_model(file: &[u8]) -> Outcome {
    let params = ModelParams { device: Device::Reference, ..ModelParams::default() };
    let model = Model::from_bytes(
        Arc::new(file.to_vec()),
        &params,
        &Cancel::default(),
        &mut |_, _| true,
        &mut |_, _| {},
    );
    model.map(|_| ()).map_err(|error| error.to_string())
}

fn convert_file(file: &[u8]) -> Outcome {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    fs::write(&path, file).unwrap();
    convert_path(&path)
}

/// Puts each of some numbers into each field of some kinds; those that are larger than it must be refused.
fn damage(kinds: &[Kind], numbers: &[u64], must_be_refused: impl Fn(&Field, u64, u64) -> bool) {
    for door in Door::all() {
        door.try_file("as it is", &door.file).unwrap();
        for field in fields(&door.file).iter().filter(|field| kinds.contains(&field.kind)) {
            let was = field.get(&door.file);
            for number in numbers.iter().copied().chain([was.wrapping_sub(1), was + 1]) {
                let file = field.set(&door.file, number);
                if field.get(&file) == was {
                    continue;
                }
                let what = format!("{:?} of {:?} is {number}, not {was}", field.kind, field.owner);
                let outcome = door.try_file(&what, &file);
                let must = must_be_refused(field, was, field.get(&file));
                assert!(!must || outcome.is_err(), "{}, {what}: let in", door.name);
            }
        }
    }
}

/// CVE-2024-21836, CVE-2024-23605.
#[test]
fn counts_that_are_multiplied_into_an_allocation() {
    damage(&[Kind::Count], &HUGE, |_, _, _| true);
}

/// CVE-2024-23496, CVE-2024-21825.
#[test]
fn lengths_that_wrap() {
    damage(&[Kind::StringBytes, Kind::ArrayLength], &HUGE, |_, was, is| is > was + (1 << 19));
}

/// CVE-2024-21802; and dimensions whose product is 0, 1 or little in 64 bits.
#[test]
fn dimensions_that_wrap() {
    damage(&[Kind::NDims, Kind::Dim], &HUGE, |field, was, is| {
        // A vocabulary may have fewer tokens than its embedding has rows, of which one more lies in the padding.
        field.owner != "token_embd.weight" || is != was + 1
    });
    for door in Door::all() {
        let all = fields(&door.file);
        let dims: Vec<_> = all.iter().filter(|field| field.kind == Kind::Dim).collect();
        for pair in dims.windows(2).filter(|pair| pair[0].owner == pair[1].owner) {
            for (rows, cols) in [(1 << 32, 1 << 32), (1 << 63, 2), (3, u64::MAX / 3 + 1), (0, 4), (4, 0)] {
                let file = pair[1].set(&pair[0].set(&door.file, rows), cols);
                door.assert_refused(&format!("{:?} is {rows} x {cols}", pair[0].owner), &file);
            }
        }
    }
}

/// CVE-2024-32878: whatever the field in which an error lies.
#[test]
fn an_error_in_every_field() {
    let numbers: Vec<u64> = (0..45).chain(HUGE).collect();
    damage(&[Kind::ValueType, Kind::TensorType], &numbers, |field, _, is| {
        is > if field.kind == Kind::TensorType { 42 } else { 12 }
    });
}

/// CVE-2024-41130.
#[test]
fn files_cut_off_at_every_byte() {
    for door in Door::all() {
        let data = usize::try_from(Directory::read(&door.file).unwrap().data_offset()).unwrap();
        // Within the data, only some.
        for n in (0..data).step_by(3).chain((data..door.file.len() - 4096).step_by(10_007)) {
            door.assert_refused(&format!("cut off at {n}"), &door.file[..n]);
        }
    }
}

/// CVE-2025-53630 and CVE-2026-27940, sums of sizes; CVE-2026-33298, bytes of a row; and padding that wraps.
#[test]
fn sizes_that_wrap() {
    // GGML's number, elements and bytes of a block.
    let types = [
        (0, 1, 4),
        (1, 1, 2),
        (2, 32, 18),
        (3, 32, 20),
        (6, 32, 22),
        (7, 32, 24),
        (8, 32, 34),
        (10, 256, 84),
        (11, 256, 110),
        (12, 256, 144),
        (13, 256, 176),
        (14, 256, 210),
        (28, 1, 8),
        (30, 1, 2),
    ];
    for door in Door::all() {
        let all = fields(&door.file);
        let of = |kind| all.iter().filter(move |field| field.kind == kind);
        let matrix = &of(Kind::NDims).find(|field| field.get(&door.file) == 2).unwrap().owner;
        let [cols, rows] =
            [0, 1].map(|i| of(Kind::Dim).filter(|field| &field.owner == matrix).nth(i).unwrap());
        let ty = of(Kind::TensorType).find(|field| &field.owner == matrix).unwrap();
        for (id, elems, bytes) in types {
            // The fewest blocks whose bytes wrap, and what pads to nothing.
            for blocks in [u64::MAX / bytes + 1, (u64::MAX - 31) / bytes, u64::MAX / bytes] {
                let file = rows.set(&cols.set(&ty.set(&door.file, id), elems), blocks);
                door.assert_refused(&format!("{blocks} blocks of type {id}"), &file);
            }
        }
        // Each fits into 64 bits, their sum does not.
        let file = of(Kind::Dim).fold(door.file.clone(), |file, dim| match dim.owner == *matrix {
            true => file,
            false => dim.set(&file, 1 << 31),
        });
        door.assert_refused("tensors of 2^31 x 2^31", &file);
    }
}

/// CVE-2026-7482: what lies behind the end does not get into a result.
#[test]
fn tensors_beyond_the_end() {
    for door in Door::all() {
        for field in fields(&door.file).iter().filter(|field| field.kind == Kind::Offset) {
            let end = door.file.len() as u64 / 4096 * 4096;
            for offset in HUGE.into_iter().chain([end, end + 4096, field.get(&door.file) + 8]) {
                let file = field.set(&door.file, offset);
                door.assert_refused(&format!("{:?} at {offset}", field.owner), &file);
            }
        }
    }
}

/// ollama #24997, CVE-2025-0317: an alignment that is divided by, or not one of two.
#[test]
fn alignments_that_no_file_has() {
    for door in Door::all() {
        for alignment in [0, 1, 3, 33, 1 << 21, 1 << 31, u64::MAX] {
            let value = match u32::try_from(alignment) {
                Ok(alignment) => OwnedValue::U32(alignment),
                Err(_) => OwnedValue::U64(alignment),
            };
            // A key of the same length, in place of which it comes.
            let file =
                changed(&door.file, |metadata, _| metadata.push(("general.alignmenu".to_owned(), value)));
            let file = renamed(
                &renamed(&file, keys::GENERAL_ALIGNMENT, "general.alignmenx"),
                "general.alignmenu",
                keys::GENERAL_ALIGNMENT,
            );
            let message = door.assert_refused(&format!("alignment {alignment}"), &file);
            assert!(message.contains(&alignment.to_string()), "{}: {message}", door.name);
        }
    }
}

/// The file with other pairs or tensors.
fn changed(
    file: &[u8],
    change: impl FnOnce(&mut Vec<(String, OwnedValue)>, &mut Vec<(TensorDecl, Vec<u8>)>),
) -> Vec<u8> {
    let directory = Directory::read(file).unwrap();
    let mut metadata = directory.metadata.iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let tensor = |tensor: &TensorInfo<'_>| {
        let (name, shape) = (tensor.name().to_owned(), tensor.shape().to_vec());
        (TensorDecl { name, shape, ty: tensor.ty().unwrap() }, directory.tensor_bytes(tensor).to_vec())
    };
    let mut tensors = directory.tensors().iter().map(tensor).collect();
    change(&mut metadata, &mut tensors);
    let decls = tensors.iter().map(|(decl, _)| decl.clone()).collect();
    let mut writer = Writer::new(std::io::Cursor::new(Vec::new()), metadata, decls).unwrap();
    tensors.iter().for_each(|(_, data)| writer.write_tensor(data).unwrap());
    writer.finish().unwrap().into_inner()
}

/// The file with another key of as many letters.
fn renamed(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    let mut file = file.to_vec();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    file
}

/// Keys that a file cannot do without: of a model file, and of a `llama` file.
const REQUIRED: [&[&str]; 2] = [
    &[
        "general.architecture",
        "longgen.format_version",
        "longgen.block_count",
        "longgen.context_length",
        "longgen.embedding_length",
        "longgen.feed_forward_length",
        "longgen.attention.head_count",
        "longgen.attention.layer_norm_rms_epsilon",
        "longgen.attention.kind",
        "longgen.attention.window_tokens",
        "longgen.attention.sink_tokens",
        "longgen.attention.block_size",
        "longgen.attention.local_blocks",
        "longgen.attention.sink_blocks",
        "longgen.attention.stride",
        "longgen.attention.phases",
        "longgen.rope.pairing",
        "longgen.block.norm",
        "longgen.block.activation",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ],
    &[
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ],
];

fn required_of(door: &Door) -> &'static [&'static str] {
    REQUIRED[usize::from(door.name != "a model file")]
}

/// The keys of a file that its writer does not set.
fn keys_of(file: &[u8]) -> Vec<(String, OwnedValue)> {
    let directory = Directory::read(file).unwrap();
    let pairs = directory.metadata.iter().map(|(key, value)| (key.to_owned(), value.into()));
    pairs.filter(|(key, _)| !key.starts_with("longgen.hash") && key != keys::GENERAL_ALIGNMENT).collect()
}

/// CVE-2025-0312, CVE-2024-12055.
#[test]
fn each_key_removed() {
    for door in Door::all() {
        for (key, _) in keys_of(&door.file) {
            let file = changed(&door.file, |metadata, _| metadata.retain(|(other, _)| *other != key));
            match door.try_file(&format!("without {key}"), &file) {
                Ok(()) => {
                    assert!(!required_of(&door).contains(&key.as_str()), "{}: without {key}", door.name)
                }
                Err(message) => {
                    // Without the others a number is taken for another, which tensors may contradict.
                    let is_named = message.contains(&key) || !required_of(&door).contains(&key.as_str());
                    assert!(is_named, "{}: without {key}: {message}", door.name);
                }
            }
        }
    }
}

/// CVE-2024-8063; and ggml's #26690, arrays whose elements are of another type.
#[test]
fn each_key_of_a_wrong_type() {
    use OwnedValue::*;
    let text = || "x".to_owned();
    for door in Door::all() {
        for (key, value) in keys_of(&door.file) {
            let wrong = match &value {
                Str(_) => vec![U32(1), F32(1.0), Bool(true), Strs(vec![text()]), U8s(vec![1])],
                Bool(_) => vec![U32(1), Str(text()), Bools(vec![true])],
                F32(_) => vec![Str(text()), Bool(true), F32s(vec![1.0])],
                Strs(_) => vec![Str(text()), U32(1), U8s(vec![1]), F32s(vec![1.0]), Bools(vec![true])],
                U32s(_) | I32s(_) => vec![U32(1), F32s(vec![1.0]), Strs(vec![text()]), Bools(vec![true])],
                _ => vec![Str(text()), Bool(true), F64(1.0), U32s(vec![1]), I8(-1)],
            };
            for wrong in wrong {
                let what = format!("{key} is {wrong:?}");
                let file = changed(&door.file, |metadata, _| {
                    metadata
                        .iter_mut()
                        .filter(|(other, _)| *other == key)
                        .for_each(|(_, value)| *value = wrong.clone());
                });
                match door.try_file(&what, &file) {
                    Ok(()) => {
                        assert!(!required_of(&door).contains(&key.as_str()), "{}, {what}: let in", door.name)
                    }
                    Err(message) => assert!(message.contains(&key), "{}, {what}: {message}", door.name),
                }
            }
        }
    }
}

/// CVE-2025-0315, CVE-2025-66960 and ggml's #25821: numbers of a model that nothing in the file backs.
#[test]
fn numbers_of_a_model_that_its_tensors_do_not_have() {
    for door in Door::all() {
        let numbers =
            keys_of(&door.file).into_iter().filter(|(_, value)| matches!(value, OwnedValue::U32(_)));
        let names: Vec<_> = numbers.map(|(key, _)| key).filter(|key| !key.starts_with("general.")).collect();
        // Each alone, and the count of layers with each: many layers of many heads.
        for key in &names {
            for number in [0, 513, 4096, 1 << 21, 1 << 31, u32::MAX] {
                for n_layers in [None, Some(4096)] {
                    let file = changed(&door.file, |metadata, _| {
                        for (other, value) in metadata.iter_mut() {
                            if other.ends_with(".block_count")
                                && let Some(n) = n_layers
                            {
                                *value = OwnedValue::U32(n);
                            }
                            if other == key {
                                *value = OwnedValue::U32(number);
                            }
                        }
                    });
                    let what = format!("{key} is {number}, with {n_layers:?} layers");
                    let outcome = door.try_file(&what, &file);
                    assert!(n_layers.is_none() || outcome.is_err(), "{}, {what}: let in", door.name);
                }
            }
        }
    }
}

/// What a model was trained with and nobody computes.
#[test]
fn tensors_that_nobody_knows() {
    for door in Door::all() {
        for name in
            ["blk.0.attn_q_norm.weight", "blk.0.attn_sinks", "blk.99.attn_q.weight", "rope_freqs.bias", "x"]
        {
            let file = changed(&door.file, |_, tensors| {
                let decl = TensorDecl { name: name.to_owned(), shape: vec![8], ty: TensorType::F32 };
                tensors.push((decl, vec![0; 32]));
            });
            let message = door.assert_refused(name, &file);
            assert!(message.contains(name), "{}, {name}: {message}", door.name);
        }
    }
}

/// ggml's #26511: the text of a byte token that is no number.
#[test]
fn byte_tokens_that_are_no_bytes() {
    for door in Door::all() {
        for text in ["<0x-1>", "<0xZZ>", "<0x>", "<0x100>", "<0x+1>", ""] {
            let file = changed(&door.file, |metadata, _| {
                for (key, value) in metadata {
                    match value {
                        OwnedValue::Strs(tokens) if key == "tokenizer.ggml.tokens" => {
                            tokens[7] = text.to_owned()
                        }
                        OwnedValue::I32s(kinds) if key == "tokenizer.ggml.token_type" => kinds[7] = 6,
                        _ => {}
                    }
                }
            });
            let _ = door.try_file(&format!("byte token {text:?}"), &file);
        }
    }
}

/// CVE-2024-39720.
#[test]
fn files_of_a_few_bytes() {
    for door in Door::all() {
        for n in 0..=32 {
            door.assert_refused(&format!("{n} zeros"), &vec![0; n]);
            door.assert_refused(&format!("{n} bytes of magic"), &b"GGUF".repeat(8)[..n]);
        }
    }
}

/// CVE-2025-49847: a token whose length is no number of 32 bits. The file has holes instead of its bytes.
#[test]
fn a_token_of_two_gigabytes() {
    limit_memory();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    let mut file = b"GGUF".to_vec();
    let string = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(3u32.to_le_bytes());
    file.extend([0u64, 1].iter().flat_map(|n| n.to_le_bytes()));
    string(&mut file, "tokenizer.ggml.tokens");
    file.extend([9u32, 8].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([1u64, 1 << 31].iter().flat_map(|n| n.to_le_bytes()));
    fs::write(&path, &file).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(file.len() as u64 + (1 << 31)).unwrap();
    let params = ModelParams { device: Device::Reference, ..ModelParams::default() };
    assert!(Model::open(&path, &params).is_err());
    assert!(convert_path(&path).is_err());
}

/// Searching for every key among those before it takes half an hour.
#[test]
fn a_million_keys() {
    let limit = Duration::from_secs(10);
    for door in Door::all() {
        let prefix = if door.name == "a model file" { "longgen" } else { "general" };
        let file = changed(&door.file, |metadata, _| {
            metadata.extend((0..1_000_000).map(|i| (format!("{prefix}.key.{i}"), OwnedValue::U8(1))));
        });
        let start = Instant::now();
        door.try_file("a million keys", &file).unwrap();
        assert!(start.elapsed() < limit, "{}: {:?}", door.name, start.elapsed());
    }
}
