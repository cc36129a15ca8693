//! What the specification prints is what this crate does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use longgen_format::{Directory, TensorType, keys, quant};
use xxhash_rust::xxh3::xxh3_128;

const README: &str = include_str!("../README.md");

fn from_hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// The example's fields: offset, bytes, meaning.
fn example() -> Vec<(usize, Vec<u8>, &'static str)> {
    let dump = README.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let field = |line: &'static str| {
        let (offset, rest) = line.split_once("  ").unwrap();
        let (bytes, meaning) = rest.split_once("  ").unwrap();
        (usize::from_str_radix(offset, 16).unwrap(), from_hex(bytes), meaning.trim())
    };
    dump.lines().map(field).collect()
}

#[test]
fn the_example_reads_as_it_says() {
    let mut bytes = Vec::new();
    for (offset, field, meaning) in example() {
        assert_eq!(offset, bytes.len(), "{meaning}");
        bytes.extend(field);
    }
    let directory = Directory::read(&bytes).unwrap();
    assert_eq!((directory.version(), directory.alignment(), directory.data_offset()), (3, 32, 0x80));
    assert_eq!(directory.metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "kind"]);
    assert_eq!(directory.metadata.require_u32("a").unwrap(), 7);
    assert_eq!(directory.metadata.require_strs("kind").unwrap(), ["full"]);
    assert_eq!(directory.tensors().len(), 1);
    let tensor = directory.tensor("x").unwrap();
    assert_eq!((tensor.shape(), tensor.ty().unwrap(), tensor.offset()), (&[2u64][..], TensorType::F32, 0x80));
    let mut numbers = [f32::NAN; 2];
    quant::dequantize(TensorType::F32, directory.tensor_bytes(tensor), &mut numbers).unwrap();
    assert_eq!(numbers, [1.0, -2.0]);
}

#[test]
fn every_byte_of_the_example_is_needed() {
    let bytes: Vec<u8> = example().into_iter().flat_map(|(_, field, _)| field).collect();
    for n in 0..bytes.len() {
        assert!(Directory::read(&bytes[..n]).is_err(), "{n} bytes");
    }
}

/// The digits in the specification come from another implementation.
#[test]
fn checksums_are_the_ones_of_the_specification() {
    let table = README.split("| bytes | checksum |\n| --- | --- |\n").nth(1).unwrap();
    let rows: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let bytes = if cells[1] == "none" { Vec::new() } else { from_hex(cells[1]) };
        assert_eq!(format!("{:032x}", xxh3_128(&bytes)), cells[2]);
    }
}

#[test]
fn the_table_of_element_types_is_this_crates() {
    for ty in TensorType::ALL {
        let row = format!("| {ty} | {} | {}, {} |", ty.id(), ty.block_elems(), ty.block_bytes());
        assert!(README.contains(&row), "{row}");
    }
}

#[test]
fn every_key_is_in_the_specification() {
    let others = [
        keys::GENERAL_ARCHITECTURE,
        keys::GENERAL_ALIGNMENT,
        keys::GENERAL_NAME,
        keys::FORMAT_VERSION,
        keys::BASE_ARCHITECTURE,
        keys::BLOCK_COUNT,
        keys::CONTEXT_LENGTH,
        keys::EMBEDDING_LENGTH,
        keys::FEED_FORWARD_LENGTH,
        keys::VOCAB_SIZE,
        keys::TOKENIZER_PIPELINE,
        keys::HASH_ALGORITHM,
        keys::HASH_TENSORS,
        keys::HASH_HEADER,
    ];
    for key in keys::STRUCTURE.iter().chain(&others) {
        assert!(README.contains(&format!("`{key}`")), "{key}");
    }
}
