//! What is written is what is read, and quantised numbers are what others make of the same bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use longgen_format::{Directory, OwnedValue, TensorDecl, TensorType, Writer, quant};
use proptest::prelude::*;

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
    fn quantising_loses_at_most_half_a_step(numbers in prop::collection::vec(-100.0f32..100.0, 64)) {
        for ty in TensorType::ALL {
            let mut bytes = vec![0; ty.row_bytes(64).unwrap()];
            let mut back = vec![0.0; 64];
            quant::quantize(ty, &numbers, &mut bytes).unwrap();
            quant::dequantize(ty, &bytes, &mut back).unwrap();
            for (block, back) in numbers.chunks(32).zip(back.chunks(32)) {
                let max = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let step = match ty {
                    TensorType::F32 => 0.0,
                    TensorType::F16 => max / 2048.0,
                    TensorType::BF16 => max / 256.0,
                    TensorType::Q8_0 => max / 127.0,
                    // A nibble's scale is itself a half, and the far end of its range is clipped.
                    _ => max / 6.0,
                };
                for (x, y) in block.iter().zip(back) {
                    prop_assert!((x - y).abs() <= step * 0.52 + max * 1e-3 + if ty == TensorType::Q4_0 { step * 0.5 } else { 0.0 },
                        "{}: {} became {}", ty, x, y);
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

    let mut writer =
        Writer::new(Cursor::new(Vec::new()), Vec::new(), vec![decl(&[2], TensorType::F32)]).unwrap();
    assert!(writer.write_tensor(&[0; 9]).is_err());
    assert!(writer.write_tensor(&[0; 4]).is_err());
    assert!(writer.finish().is_err(), "a tensor is not complete");
    let infinite = quant::quantize(TensorType::Q8_0, &[f32::INFINITY; 32], &mut [0; 34]).unwrap_err();
    assert!(infinite.to_string().contains("element 0"));
}
