//! What is written is what is read, and quantised numbers are what others make of the same bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use longgen_format::{Directory, Error, OwnedValue, TensorDecl, TensorType, Writer, quant};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

fn any_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        any::<u8>().prop_map(OwnedValue::U8),
        any::<i8>().prop_map(OwnedValue::I8),
        any::<u16>().prop_map(OwnedValue::U16),
        any::<i32>().prop_map(OwnedValue::I32),
        any::<u64>().prop_map(OwnedValue::U64),
        any::<i64>().prop_map(OwnedValue::I64),
        (-1e30f32..1e30).prop_map(OwnedValue::F32),
        (-1e300f64..1e300).prop_map(OwnedValue::F64),
        any::<bool>().prop_map(OwnedValue::Bool),
        ".{0,20}".prop_map(OwnedValue::Str),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(OwnedValue::U32s),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(OwnedValue::I16s),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(OwnedValue::Bools),
        prop::collection::vec(".{0,9}", 0..9).prop_map(OwnedValue::Strs),
    ]
}

fn any_tensor() -> impl Strategy<Value = (Vec<u64>, TensorType)> {
    (prop::sample::select(TensorType::ALL.to_vec()), 1u64..5, prop::collection::vec(1u64..6, 0..3)).prop_map(
        |(ty, blocks, rest)| {
            let mut shape = vec![blocks * ty.block_elems() as u64];
            shape.extend(rest);
            (shape, ty)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(
        values in prop::collection::vec(any_value(), 0..12),
        tensors in prop::collection::vec(any_tensor(), 0..6),
        seed in any::<u8>(),
    ) {
        let metadata: Vec<_> = values.iter().enumerate().map(|(i, value)| (format!("k.{i}"), value.clone())).collect();
        let decls: Vec<_> = tensors.iter().enumerate()
            .map(|(i, (shape, ty))| TensorDecl { name: format!("t.{i}"), shape: shape.clone(), ty: *ty }).collect();
        let data: Vec<Vec<u8>> = decls.iter().enumerate()
            .map(|(i, decl)| vec![seed.wrapping_add(u8::try_from(i).unwrap()); usize::try_from(decl.n_bytes().unwrap()).unwrap()])
            .collect();
        let write = |parts: bool| {
            let mut writer = Writer::new(Cursor::new(Vec::new()), metadata.clone(), decls.clone()).unwrap();
            for data in &data {
                match parts {
                    true => data.chunks(7).for_each(|part| writer.write_part(part).unwrap()),
                    false => writer.write_tensor(data).unwrap(),
                }
            }
            writer.finish().unwrap().into_inner()
        };
        let bytes = write(false);
        prop_assert_eq!(&bytes, &write(true));

        let directory = Directory::read(&bytes).unwrap();
        directory.verify(|_| {}).unwrap();
        for (key, value) in &metadata {
            prop_assert_eq!(&OwnedValue::from(directory.metadata.get(key).unwrap()), value);
        }
        prop_assert_eq!(directory.tensors().len(), decls.len());
        for (decl, data) in decls.iter().zip(&data) {
            let tensor = directory.tensor(&decl.name).unwrap();
            prop_assert_eq!(tensor.shape(), &decl.shape[..]);
            prop_assert_eq!(tensor.ty().unwrap(), decl.ty);
            prop_assert_eq!(directory.tensor_bytes(tensor), &data[..]);
            prop_assert!(tensor.offset().is_multiple_of(4096));
        }
    }

    #[test]
    fn quantising_loses_at_most_a_step(numbers in prop::collection::vec(-100.0f32..100.0, 64)) {
        for ty in TensorType::ALL {
            let mut bytes = vec![0; ty.row_bytes(64).unwrap()];
            let mut back = vec![0.0; 64];
            quant::quantize(ty, &numbers, &mut bytes).unwrap();
            quant::dequantize(ty, &bytes, &mut back).unwrap();
            for (block, back) in numbers.chunks(32).zip(back.chunks(32)) {
                let max = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let range = block.iter().copied().fold(f32::MIN, f32::max) - block.iter().copied().fold(f32::MAX, f32::min);
                // Half a step, but of Q4_0 a whole one, as its scale has one step less on one side; 11 and 8 significant
                // bits.
                let bound = match ty {
                    TensorType::F16 => max / 2048.0,
                    TensorType::BF16 => max / 256.0,
                    TensorType::Q8_0 => max / 127.0 / 2.0,
                    TensorType::Q4_0 => max / 8.0,
                    TensorType::Q4_1 => range / 15.0 / 2.0,
                    _ => 0.0,
                };
                // Scale and minimum are halves: both may be off by 2^-11, and a range is up to twice the maximum.
                let scales = if ty.block_elems() > 1 { 3.0 * max / 2048.0 } else { 0.0 };
                for (x, y) in block.iter().zip(back) {
                    prop_assert!((x - y).abs() <= (bound + scales) * 1.0001, "{}: {} became {}", ty, x, y);
                }
            }
        }
    }
}

#[test]
fn writers_say_what_is_wrong() {
    let decl = |shape: &[u64], ty| TensorDecl { name: "t".to_owned(), shape: shape.to_vec(), ty };
    let new = |decls: Vec<TensorDecl>| Writer::new(Cursor::new(Vec::new()), Vec::new(), decls).map(|_| ());
    assert!(new(vec![decl(&[33], TensorType::Q8_0)]).is_err());
    assert!(new(vec![decl(&[], TensorType::F32)]).is_err());
    assert!(new(vec![decl(&[1 << 62, 8], TensorType::F32)]).is_err());
    assert!(new(vec![decl(&[1], TensorType::F32), decl(&[1], TensorType::F32)]).is_err());
}

#[test]
fn writers_take_exactly_the_bytes_of_every_tensor() {
    let decl = |name: &str, n: u64| TensorDecl { name: name.to_owned(), shape: vec![n], ty: TensorType::F32 };
    let new = || Writer::new(Cursor::new(Vec::new()), Vec::new(), vec![decl("a", 2), decl("b", 1)]).unwrap();

    let mut writer = new();
    let error = writer.write_tensor(&[0; 9]).unwrap_err();
    assert!(
        matches!(&error, Error::TensorLength { tensor, expected: 8, got: 9 } if tensor == "a"),
        "{error}"
    );
    let error = writer.write_tensor(&[0; 4]).unwrap_err();
    assert!(matches!(error, Error::TensorLength { expected: 8, got: 4, .. }), "{error}");
    // What was refused was not written.
    writer.write_part(&[1; 3]).unwrap();
    writer.write_part(&[]).unwrap();
    writer.write_tensor(&[2; 5]).unwrap();
    writer.write_tensor(&[3; 4]).unwrap();
    for bytes in [&[][..], &[0]] {
        assert!(matches!(writer.write_part(bytes), Err(Error::NoTensorLeft { n_tensors: 2 })));
        assert!(matches!(writer.write_tensor(bytes), Err(Error::NoTensorLeft { n_tensors: 2 })));
    }
    let bytes = writer.finish().unwrap().into_inner();
    let directory = Directory::read(&bytes).unwrap();
    directory.verify(|_| {}).unwrap();
    assert_eq!(directory.tensor_bytes(&directory.tensors()[0]), [1, 1, 1, 2, 2, 2, 2, 2]);
    assert_eq!(directory.tensor_bytes(&directory.tensors()[1]), [3; 4]);

    let mut writer = new();
    writer.write_part(&[0; 7]).unwrap();
    let error = writer.finish().map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Unfinished { tensor, missing: 1 } if tensor == "a"), "{error}");
}

#[test]
fn the_header_is_the_specifications() {
    let metadata = vec![
        // The writer's own keys: what is given is left out.
        ("general.alignment".to_owned(), OwnedValue::U32(64)),
        ("longgen.hash.header".to_owned(), OwnedValue::U8(1)),
        ("k".to_owned(), OwnedValue::U8(7)),
    ];
    let decls = vec![TensorDecl { name: "t".to_owned(), shape: vec![3], ty: TensorType::F32 }];
    let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, decls).unwrap();
    writer.write_tensor(&[9; 12]).unwrap();
    let bytes = writer.finish().unwrap().into_inner();
    let directory = Directory::read(&bytes).unwrap();
    assert_eq!((directory.version(), directory.alignment(), directory.data_offset()), (3, 4096, 4096));
    assert_eq!(bytes.len(), 2 * 4096);
    let keys: Vec<_> = directory.metadata.iter().map(|(key, _)| key).collect();
    let hashes = ["longgen.hash.algorithm", "longgen.hash.tensors", "longgen.hash.header"];
    assert_eq!(keys, [&["k", "general.alignment"][..], &hashes].concat());
    let [algorithm, tensors, header] = hashes;
    assert_eq!(directory.metadata.require_str(algorithm).unwrap(), "xxh3-128");
    let hex = |bytes: &[u8]| format!("{:032x}", xxh3_128(bytes));
    assert_eq!(directory.metadata.require_strs(tensors).unwrap(), [hex(&[9; 12])]);

    let digits = directory.metadata.require_str(header).unwrap();
    let mut zeroed = bytes[..4096].to_vec();
    let at = zeroed.windows(32).position(|window| window == digits.as_bytes()).unwrap();
    zeroed[at..at + 32].fill(b'0');
    assert_eq!(hex(&zeroed), digits);
}
