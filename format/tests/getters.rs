//! Getters give a number that fits, and name key and types otherwise: every getter meets every type.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use longgen_format::{Directory, Error, Metadata, OwnedValue, ValueType, Writer};

fn with_metadata(pairs: Vec<(&str, OwnedValue)>, test: impl FnOnce(&Metadata<'_>)) {
    let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let writer = Writer::new(Cursor::new(Vec::new()), pairs, Vec::new()).unwrap();
    let bytes = writer.finish().unwrap().into_inner();
    test(&Directory::read(&bytes).unwrap().metadata);
}

/// A value of every type, scalars first, and what integers, floats, booleans and strings may be read from.
fn one_of_each() -> Vec<(&'static str, OwnedValue)> {
    vec![
        ("integer.u8", OwnedValue::U8(7)),
        ("integer.i8", OwnedValue::I8(7)),
        ("integer.u16", OwnedValue::U16(7)),
        ("integer.i16", OwnedValue::I16(7)),
        ("integer.u32", OwnedValue::U32(7)),
        ("integer.i32", OwnedValue::I32(7)),
        ("integer.u64", OwnedValue::U64(7)),
        ("integer.i64", OwnedValue::I64(7)),
        ("float.f32", OwnedValue::F32(7.0)),
        ("float.f64", OwnedValue::F64(7.0)),
        ("bool", OwnedValue::Bool(true)),
        ("string", OwnedValue::Str("7".to_owned())),
        ("integers.u8", OwnedValue::U8s(vec![7])),
        ("integers.i8", OwnedValue::I8s(vec![7])),
        ("integers.u16", OwnedValue::U16s(vec![7])),
        ("integers.i16", OwnedValue::I16s(vec![7])),
        ("integers.u32", OwnedValue::U32s(vec![7])),
        ("integers.i32", OwnedValue::I32s(vec![7])),
        ("integers.u64", OwnedValue::U64s(vec![7])),
        ("integers.i64", OwnedValue::I64s(vec![7])),
        ("floats.f32", OwnedValue::F32s(vec![7.0])),
        ("floats.f64", OwnedValue::F64s(vec![7.0])),
        ("bools", OwnedValue::Bools(vec![true])),
        ("strings", OwnedValue::Strs(vec!["7".to_owned()])),
    ]
}

#[test]
fn every_getter_takes_its_types_and_refuses_the_others() {
    with_metadata(one_of_each(), |metadata| {
        for (key, _) in one_of_each() {
            let kind = key.split('.').next().unwrap();
            macro_rules! check {
                ($opt:ident, $require:ident, $kind:literal, $expected:expr) => {
                    match metadata.$opt(key) {
                        Ok(found) => {
                            assert_eq!(kind, $kind, "{key}");
                            assert_eq!(found.unwrap(), $expected, "{key}");
                            assert_eq!(metadata.$require(key).unwrap(), $expected, "{key}");
                        }
                        Err(error) => {
                            assert_ne!(kind, $kind, "{key}");
                            let required = metadata.$require(key).unwrap_err();
                            assert_eq!(error.to_string(), required.to_string());
                            assert!(matches!(&error, Error::WrongType { key: named, .. } if named == key), "{error}");
                        }
                    }
                };
            }
            check!(opt_u32, require_u32, "integer", 7);
            check!(opt_i32, require_i32, "integer", 7);
            check!(opt_u64, require_u64, "integer", 7);
            check!(opt_f32, require_f32, "float", 7.0);
            check!(opt_bool, require_bool, "bool", true);
            check!(opt_str, require_str, "string", "7");
            check!(opt_u32s, require_u32s, "integers", [7]);
            check!(opt_i32s, require_i32s, "integers", [7]);
            check!(opt_u64s, require_u64s, "integers", [7]);
            check!(opt_f32s, require_f32s, "floats", [7.0]);
            check!(opt_bools, require_bools, "bools", [true]);
            check!(opt_strs, require_strs, "strings", ["7"]);
        }
    });
}

#[test]
fn numbers_that_do_not_fit_are_errors() {
    let pairs = vec![
        ("minus", OwnedValue::I32(-1)),
        ("big", OwnedValue::U64(1 << 40)),
        ("max", OwnedValue::U64(u64::MAX)),
        ("wide", OwnedValue::F64(1e300)),
        ("minuses", OwnedValue::I8s(vec![1, -2])),
        ("text", OwnedValue::Str("x".to_owned())),
    ];
    with_metadata(pairs, |metadata| {
        assert_eq!(metadata.require_i32("minus").unwrap(), -1);
        assert_eq!(metadata.require_u64("big").unwrap(), 1 << 40);
        assert_eq!(metadata.require_i32s("minuses").unwrap(), [1, -2]);
        for (error, words) in [
            (metadata.require_u32("minus").unwrap_err(), ["\"minus\"", "-1", "u32"]),
            (metadata.require_u64("minus").unwrap_err(), ["\"minus\"", "-1", "u64"]),
            (metadata.require_u32("big").unwrap_err(), ["\"big\"", "1099511627776", "u32"]),
            (metadata.require_i32("max").unwrap_err(), ["\"max\"", "18446744073709551615", "i32"]),
            (metadata.require_f32("wide").unwrap_err(), ["\"wide\"", "1e300", "f32"]),
            (metadata.require_u32s("minuses").unwrap_err(), ["\"minuses\"", "-2", "u32"]),
            (metadata.require_u32("text").unwrap_err(), ["\"text\"", "string", "u32"]),
            (metadata.require_strs("text").unwrap_err(), ["\"text\"", "array", "string"]),
        ] {
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    });
}

#[test]
fn infinities_and_undefined_floats_stay_what_they_are() {
    let pairs = vec![("inf", OwnedValue::F64(f64::INFINITY)), ("nan", OwnedValue::F64(f64::NAN))];
    with_metadata(pairs, |metadata| {
        assert_eq!(metadata.require_f32("inf").unwrap(), f32::INFINITY);
        assert!(metadata.require_f32("nan").unwrap().is_nan());
    });
}

#[test]
fn missing_keys_are_nothing_or_an_error() {
    with_metadata(Vec::new(), |metadata| {
        assert_eq!(metadata.opt_u32("absent").unwrap(), None);
        assert_eq!(metadata.opt_strs("absent").unwrap(), None);
        for error in
            [metadata.require_u32("absent").unwrap_err(), metadata.require_strs("absent").unwrap_err()]
        {
            assert!(matches!(&error, Error::MissingKey { key } if key == "absent"), "{error}");
        }
    });
}

#[test]
fn arrays_may_be_empty_and_know_their_type() {
    let pairs = vec![("none", OwnedValue::Strs(Vec::new())), ("three", OwnedValue::I16s(vec![1, -1, 300]))];
    with_metadata(pairs, |metadata| {
        assert_eq!(metadata.require_strs("none").unwrap(), Vec::<&str>::new());
        let Some(longgen_format::Value::Array(three)) = metadata.get("three") else { panic!("no array") };
        assert_eq!((three.element_type(), three.len(), three.is_empty()), (ValueType::I16, 3, false));
    });
}
