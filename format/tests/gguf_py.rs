//! A file of ours opens in the Python package `gguf`, which finds in it what was written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/python.rs"]
mod python;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use longgen_format::{Directory, OwnedValue, TensorDecl, TensorType, Writer, quant};

/// Numbers with both signs and different magnitudes.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + i as f32 / 10.0)).collect()
}

#[test]
fn the_gguf_package_reads_what_we_write() {
    let Some(python) = python::with("gguf") else { return };
    let values = [
        ("general.architecture", OwnedValue::Str("longgen".to_owned()), "['STRING'] longgen"),
        ("a.u8", OwnedValue::U8(255), "['UINT8'] 255"),
        ("a.i8", OwnedValue::I8(-128), "['INT8'] -128"),
        ("a.u16", OwnedValue::U16(65535), "['UINT16'] 65535"),
        ("a.i16", OwnedValue::I16(-2), "['INT16'] -2"),
        ("a.u32", OwnedValue::U32(u32::MAX), "['UINT32'] 4294967295"),
        ("a.i32", OwnedValue::I32(i32::MIN), "['INT32'] -2147483648"),
        ("a.u64", OwnedValue::U64(1 << 63), "['UINT64'] 9223372036854775808"),
        ("a.i64", OwnedValue::I64(-3), "['INT64'] -3"),
        ("a.f32", OwnedValue::F32(0.25), "['FLOAT32'] 0.25"),
        ("a.f64", OwnedValue::F64(1e300), "['FLOAT64'] 1e+300"),
        ("a.bool", OwnedValue::Bool(true), "['BOOL'] True"),
        ("a.str", OwnedValue::Str("größer".to_owned()), "['STRING'] größer"),
        ("a.u32s", OwnedValue::U32s(vec![1, 2, 3]), "['ARRAY', 'UINT32'] [1, 2, 3]"),
        ("a.i32s", OwnedValue::I32s(vec![-1, 0]), "['ARRAY', 'INT32'] [-1, 0]"),
        ("a.f32s", OwnedValue::F32s(vec![0.5, -2.0]), "['ARRAY', 'FLOAT32'] [0.5, -2.0]"),
        ("a.bools", OwnedValue::Bools(vec![true, false]), "['ARRAY', 'BOOL'] [True, False]"),
        (
            "a.strs",
            OwnedValue::Strs(vec!["full".to_owned(), String::new()]),
            "['ARRAY', 'STRING'] ['full', '']",
        ),
    ];
    let decls: Vec<_> = TensorType::ALL
        .into_iter()
        .map(|ty| TensorDecl { name: format!("t.{ty}"), shape: vec![64, 3], ty })
        .collect();
    let metadata = values.iter().map(|(key, value, _)| ((*key).to_owned(), value.clone())).collect();
    let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, decls.clone()).unwrap();
    for decl in &decls {
        let mut bytes = vec![0xa5; decl.ty.row_bytes(64 * 3).unwrap()];
        quant::quantize(decl.ty, &numbers(64 * 3), &mut bytes).unwrap();
        writer.write_tensor(&bytes).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    let directory = Directory::read(&bytes).unwrap();
    directory.verify(|_| {}).unwrap();

    let mut expected = vec!["alignment 4096".to_owned()];
    expected.extend(values.iter().map(|(key, _, printed)| format!("key {key} {printed}")));
    let text = |key| directory.metadata.require_str(key).unwrap();
    let hashes: Vec<_> = directory.metadata.require_strs("longgen.hash.tensors").unwrap();
    let hashes: Vec<_> = hashes.iter().map(|digits| format!("'{digits}'")).collect();
    expected.push("key general.alignment ['UINT32'] 4096".to_owned());
    expected.push("key longgen.hash.algorithm ['STRING'] xxh3-128".to_owned());
    expected.push(format!("key longgen.hash.tensors ['ARRAY', 'STRING'] [{}]", hashes.join(", ")));
    expected.push(format!("key longgen.hash.header ['STRING'] {}", text("longgen.hash.header")));
    for tensor in directory.tensors() {
        let ty = tensor.ty().unwrap();
        let mut back = vec![f32::NAN; 64 * 3];
        quant::dequantize(ty, directory.tensor_bytes(tensor), &mut back).unwrap();
        let numbers: Vec<_> = back.iter().map(|x| format!("{:08x}", x.to_bits())).collect();
        expected.push(format!(
            "tensor {} {ty} [64, 3] {} {}",
            tensor.name(),
            tensor.offset(),
            numbers.join(" ")
        ));
    }

    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf_py.bin");
    fs::write(&path, &bytes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf_py.py");
    let output =
        Command::new(python).env("PYTHONIOENCODING", "utf-8").arg(script).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<_> = printed.lines().collect();
    for (printed, expected) in printed.iter().zip(&expected) {
        assert_eq!(printed, expected);
    }
    assert_eq!(printed.len(), expected.len());
}
