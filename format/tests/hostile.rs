//! Files that were damaged or made to do damage: an error that says where, never a panic, never a large allocation.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::time::{Duration, Instant};

use longgen_format::{Directory, Error, OwnedValue, TensorDecl, TensorType, Writer, keys};

/// A file by hand: every number as it is wanted.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(n_tensors: u64, n_keys: u64) -> Self {
        Self::default().bytes(b"GGUF").u32(3).u64(n_tensors).u64(n_keys)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, x: u32) -> Self {
        self.bytes(&x.to_le_bytes())
    }

    fn u64(self, x: u64) -> Self {
        self.bytes(&x.to_le_bytes())
    }

    fn str(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.str(name).u32(u32::try_from(dims.len()).unwrap());
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }

    /// Zeros up to the tensor data, and `n` bytes of it.
    fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }

    fn error(&self) -> Error {
        Directory::read(&self.0).map(|_| ()).expect_err("the file must be refused")
    }
}

/// A small file with every kind of value, and tensors.
fn small_file() -> Vec<u8> {
    let metadata = vec![
        ("a.u8".to_owned(), OwnedValue::U8(1)),
        ("a.bool".to_owned(), OwnedValue::Bool(true)),
        ("a.f64".to_owned(), OwnedValue::F64(0.5)),
        ("a.str".to_owned(), OwnedValue::Str("größer".to_owned())),
        ("a.strs".to_owned(), OwnedValue::Strs(vec!["x".to_owned(), String::new()])),
        ("a.i16s".to_owned(), OwnedValue::I16s(vec![-1, 2, 3])),
        ("a.bools".to_owned(), OwnedValue::Bools(vec![true, false])),
    ];
    let decl =
        |name: &str, shape: &[u64], ty| TensorDecl { name: name.to_owned(), shape: shape.to_vec(), ty };
    let decls = vec![decl("t0", &[3], TensorType::F32), decl("t1", &[32, 2], TensorType::Q8_0)];
    let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, decls).unwrap();
    writer.write_tensor(&[1; 12]).unwrap();
    writer.write_tensor(&[2; 68]).unwrap();
    writer.finish().unwrap().into_inner()
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let file = small_file();
    Directory::read(&file).unwrap().verify(|_| {}).unwrap();
    let end_of_data = 4096 + 4096 + 68;
    for n in 0..end_of_data {
        assert!(Directory::read(&file[..n]).is_err(), "{n} bytes");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let file = small_file();
    for i in 0..file.len() {
        // Every bit of the header; one of each byte of the long runs of zeros behind it.
        for bit in if i < 1500 { 0..8 } else { i % 8..i % 8 + 1 } {
            let mut damaged = file.clone();
            damaged[i] ^= 1 << bit;
            let result = Directory::read(&damaged).and_then(|directory| directory.verify(|_| {}));
            assert!(result.is_err(), "bit {bit} of byte {i}");
        }
    }
}

#[test]
fn any_byte_may_be_anything() {
    let file = small_file();
    let header = Directory::read(&file).unwrap().metadata.require_str(keys::HASH_HEADER).unwrap();
    let end_of_keys = header.as_ptr().addr() + header.len() - file.as_ptr().addr();
    let mut damaged = file.clone();
    // Behind the keys: two tensor infos of 2 + 4 + 8 or 16 + 4 + 8 bytes and a name length each, then padding.
    for i in 0..end_of_keys + 100 {
        for byte in (0..=255).filter(|&byte| byte != file[i]) {
            damaged[i] = byte;
            if let Ok(directory) = Directory::read(&damaged) {
                for (_, value) in directory.metadata.iter() {
                    let _ = OwnedValue::from(value);
                }
                let lengths = directory.tensors().iter().map(|tensor| {
                    assert_eq!(directory.tensor_bytes(tensor).len() as u64, tensor.n_bytes());
                    tensor.n_bytes()
                });
                assert!(lengths.sum::<u64>() <= file.len() as u64);
                assert!(directory.verify(|_| {}).is_err(), "byte {i} = {byte}");
            }
        }
        damaged[i] = file[i];
    }
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    for count in [1 << 20, 1 << 32, u64::MAX / 8, 1 << 63, u64::MAX] {
        assert!(matches!(Raw::header(0, count).error(), Error::Truncated { .. }));
        assert!(matches!(Raw::header(count, 0).error(), Error::Truncated { .. }));
        for ty in [0, 1, 4, 6, 7, 8, 10, 12] {
            let array = Raw::header(0, 1).str("k").u32(9).u32(ty).u64(count);
            assert!(matches!(array.error(), Error::Truncated { .. }), "type {ty}");
        }
        assert!(
            matches!(Raw::header(0, 1).u64(count).bytes(&[0; 8]).error(), Error::Truncated { .. }),
            "key"
        );
        assert!(
            matches!(Raw::header(0, 1).str("k").u32(8).u64(count).error(), Error::Truncated { .. }),
            "string"
        );
        assert!(
            matches!(Raw::header(1, 0).u64(count).bytes(&[0; 64]).error(), Error::Truncated { .. }),
            "name"
        );
    }
}

#[test]
fn dimensions_whose_product_wraps_are_refused() {
    let shapes: [&[u64]; 8] = [
        &[1 << 32, 1 << 32],
        &[1 << 63, 2],
        &[1 << 22, 1 << 22, 1 << 22],
        &[u64::MAX],
        &[u64::MAX, u64::MAX],
        &[u64::MAX / 3, 4],
        &[0],
        &[4, 0],
    ];
    for shape in shapes {
        for ty in [0, 8] {
            let error = Raw::header(1, 0).tensor("t", shape, ty, 0).data(64).error();
            assert!(matches!(error, Error::Shape { .. } | Error::OutOfFile { .. }), "{shape:?}: {error}");
        }
    }
    for n_dims in [0, 5, u32::MAX] {
        let raw = Raw::header(1, 0).str("t").u32(n_dims).bytes(&[1; 200]);
        assert!(matches!(raw.error(), Error::Shape { .. }));
    }
    assert!(matches!(Raw::header(1, 0).tensor("t", &[33], 8, 0).data(68).error(), Error::Shape { .. }));
}

#[test]
fn tensors_stay_inside_the_file_and_apart() {
    let two = |a: u64, b: u64| Raw::header(2, 0).tensor("a", &[8], 0, a).tensor("b", &[16], 0, b).data(96);
    assert!(Directory::read(&two(0, 32).0).is_ok());
    assert!(Directory::read(&two(64, 0).0).is_ok());
    assert!(matches!(two(0, 0).error(), Error::Overlap { .. }));
    assert!(matches!(two(32, 0).error(), Error::Overlap { .. }));
    assert!(matches!(two(0, 64).error(), Error::OutOfFile { .. }));
    assert!(matches!(two(0, 8).error(), Error::Misaligned { .. }));
    for offset in [u64::MAX - 31, 1 << 63, (1 << 63) + 32] {
        assert!(matches!(two(0, offset).error(), Error::OutOfFile { .. }), "{offset}");
    }
    let twice = Raw::header(2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    assert!(matches!(twice.error(), Error::DuplicateTensor { tensor } if tensor == "a"));
}

#[test]
fn alignments_that_no_file_has_are_refused() {
    for (ty, alignment) in
        [(4, 0), (4, 3), (4, 1), (4, 4), (4, 33), (4, 1 << 31), (10, 1 << 63), (10, 1 << 32)]
    {
        let raw = Raw::header(0, 1).str("general.alignment").u32(ty);
        let raw = if ty == 4 { raw.u32(u32::try_from(alignment).unwrap()) } else { raw.u64(alignment) };
        assert!(matches!(raw.error(), Error::Alignment { found } if found == alignment));
    }
    let text = Raw::header(0, 1).str("general.alignment").u32(8).str("32");
    assert!(matches!(text.error(), Error::WrongType { .. }));
    for alignment in (3..=20).map(|log2| 1 << log2) {
        let raw = Raw::header(0, 1).str("general.alignment").u32(4).u32(alignment);
        assert_eq!(Directory::read(&raw.0).unwrap().alignment(), u64::from(alignment));
    }
    let above = Raw::header(0, 1).str("general.alignment").u32(4).u32(1 << 21);
    assert!(matches!(above.error(), Error::Alignment { found } if found == 1 << 21));
}

#[test]
fn malformed_values_are_named() {
    let twice = Raw::header(0, 2).str("k").u32(0).bytes(&[1]).str("k").u32(0).bytes(&[1]);
    assert!(matches!(twice.error(), Error::DuplicateKey { key } if key == "k"));
    let zero = Raw::header(0, 2).str("a").u32(0).bytes(&[1]).str("key\0word").u32(0).bytes(&[1]);
    let error = zero.error();
    assert!(matches!(&error, Error::ZeroInKey { index: 1, at: 3, key } if key == "key\0word"));
    assert_eq!(error.to_string(), r#"key number 1, "key\0word": its byte 3 is zero"#);
    let written = vec![("a".to_owned(), OwnedValue::U8(1)), ("\0".to_owned(), OwnedValue::U8(1))];
    let written = Writer::new(Cursor::new(Vec::new()), written, Vec::new()).map(|_| ());
    assert!(matches!(written, Err(Error::ZeroInKey { index: 1, at: 0, .. })));
    let ty = Raw::header(0, 1).str("k").u32(13).bytes(&[0; 32]);
    assert!(matches!(ty.error(), Error::UnknownValueType { id: 13, .. }));
    let nested = Raw::header(0, 1).str("k").u32(9).u32(9).u64(1).bytes(&[0; 32]);
    assert!(matches!(nested.error(), Error::NestedArray { .. }));
    let bool = Raw::header(0, 1).str("k").u32(7).bytes(&[2]);
    assert!(matches!(bool.error(), Error::BadBool { found: 2, .. }));
    let bools = Raw::header(0, 1).str("k").u32(9).u32(7).u64(3).bytes(&[1, 0, 7]);
    assert!(matches!(bools.error(), Error::BadBool { found: 7, .. }));
    let utf8 = Raw::header(0, 1).str("k").u32(8).u64(2).bytes(&[0xc3, 0x28]);
    assert!(matches!(utf8.error(), Error::NotUtf8 { .. }));
    for id in [4, 5, 31, 43, 1000, u32::MAX] {
        let unknown = Raw::header(1, 0).tensor("t", &[256], id, 0).data(1024).error();
        assert!(
            matches!(&unknown, Error::UnknownTensorType { tensor, id: found } if tensor == "t" && *found == id)
        );
    }
    // A type that exists but cannot be read is an error only for whoever wants that tensor.
    let q2_k = Raw::header(1, 0).tensor("t", &[256], 10, 0).data(84);
    let directory = Directory::read(&q2_k.0).unwrap();
    let error = directory.tensors()[0].ty().unwrap_err().to_string();
    assert!(error.contains("\"t\"") && error.contains("Q2_K") && error.contains("10"), "{error}");
    // Its size is known, so its place is checked.
    let beyond = Raw::header(1, 0).tensor("t", &[256], 10, 0).data(83).error();
    assert!(matches!(beyond, Error::OutOfFile { n_bytes: 84, .. }));
    let shared = Raw::header(2, 0).tensor("t", &[256], 10, 0).tensor("u", &[8], 0, 64).data(160).error();
    assert!(matches!(shared, Error::Overlap { .. }));
}

#[test]
fn other_files_are_not_models() {
    for n in 0..32 {
        assert!(Directory::read(&vec![0; n]).is_err());
        assert!(Directory::read(&b"GGUF".repeat(8)[..n]).is_err());
    }
    let version = |version: u32| Raw::default().bytes(b"GGUF").u32(version).u64(0).u64(0);
    for unreadable in [0, 1, 4, u32::MAX] {
        let error = version(unreadable).error();
        assert!(matches!(error, Error::Version { found } if found == unreadable));
        assert!(!error.to_string().contains("big-endian"), "{error}");
    }
    assert!(version(3u32.swap_bytes()).error().to_string().contains("big-endian"));
    for readable in [2, 3] {
        assert_eq!(Directory::read(&version(readable).0).unwrap().version(), readable);
    }
}

#[test]
fn sizes_and_their_sums_do_not_wrap() {
    for n_bytes in [1u64 << 62, 1 << 63, u64::MAX - 4095, u64::MAX - 31, u64::MAX - 3] {
        let error = Raw::header(1, 0).tensor("t", &[n_bytes / 4], 0, 0).data(64).error();
        assert!(matches!(error, Error::OutOfFile { .. }), "{n_bytes}: {error}");
    }
    // The fewest blocks whose bytes wrap: to 0 for F32 and F16, to less than a block for the others.
    for (id, elems, bytes) in [(0, 1, 4), (1, 1, 2), (8, 32, 34), (2, 32, 18), (12, 256, 144)] {
        let blocks = u64::MAX / bytes + 1;
        let error = Raw::header(1, 0).tensor("t", &[elems, blocks], id, 0).data(512).error();
        assert!(matches!(error, Error::Shape { .. }), "type {id}: {error}");
    }
    // Padded to the alignment, each of these takes 2^62 bytes: the end of the fourth is not a number of 64 bits.
    let decl = |i: u64| TensorDecl { name: format!("t{i}"), shape: vec![u64::MAX / 16], ty: TensorType::F32 };
    let new = |n| Writer::new(Cursor::new(Vec::new()), Vec::new(), (0..n).map(decl).collect()).map(|_| ());
    new(3).unwrap();
    assert!(matches!(new(4), Err(Error::Shape { tensor, .. }) if tensor == "t3"));
}

#[test]
fn a_million_keys_open_in_linear_time() {
    let mut raw = Raw::header(0, 1_000_000);
    for i in 0..1_000_000 {
        raw = raw.str(&format!("key.{i}")).u32(0).bytes(&[1]);
    }
    let start = Instant::now();
    assert_eq!(Directory::read(&raw.0).unwrap().metadata.len(), 1_000_000);
    // Some 0.2 s; a quadratic search takes half an hour.
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_million_tensors_open_in_linear_time() {
    let n = 1_000_000u64;
    let raw =
        (0..n).fold(Raw::header(n, 0), |raw, i| raw.tensor(&format!("t{i}"), &[8], 0, (n - 1 - i) * 32));
    let raw = raw.data(32 * 1_000_000);
    let start = Instant::now();
    assert_eq!(Directory::read(&raw.0).unwrap().tensors().len() as u64, n);
    // As above.
    assert!(start.elapsed() < Duration::from_secs(20));
}
