//! The example of the specification parses to what is printed beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use longgen_format::{Directory, TensorType, quant};

#[test]
fn the_example_reads_as_it_says() {
    let text = include_str!("../README.md");
    let dump = text.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let bytes: Vec<u8> = dump
        .lines()
        .flat_map(|line| line.split_whitespace().skip(1).map(|byte| u8::from_str_radix(byte, 16).unwrap()))
        .collect();
    let directory = Directory::read(&bytes).unwrap();
    assert_eq!(directory.version(), 3);
    assert_eq!(directory.alignment(), 32);
    assert_eq!(directory.metadata.len(), 1);
    assert_eq!(directory.metadata.require_u32("a").unwrap(), 7);
    let tensor = directory.tensor("x").unwrap();
    assert_eq!((tensor.shape(), tensor.ty().unwrap(), tensor.offset()), (&[2u64][..], TensorType::F32, 0x60));
    let mut numbers = [0.0; 2];
    quant::dequantize(TensorType::F32, directory.tensor_bytes(tensor), &mut numbers).unwrap();
    assert_eq!(numbers, [1.0, -2.0]);
}

#[test]
fn every_key_that_readers_guard_is_in_the_specification() {
    let text = include_str!("../README.md");
    for key in longgen_format::keys::STRUCTURE {
        let last = key.rsplit_once('.').unwrap().1;
        assert!(text.contains(key) || text.contains(&format!("`.{last}`")), "{key}");
    }
}
