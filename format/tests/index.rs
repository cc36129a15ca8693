//! Values that are found by an index are those that the file was written with, whatever their types, keys and lengths.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use longgen_format::{Directory, Error, MetadataIndex, OwnedValue, ValueShape, ValueType, Writer};
use proptest::prelude::*;

/// Text with characters of every length, zero bytes, and nothing at all.
fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!['a', '.', '\0', 'é', '▁', '🦀']), 0..12)
        .prop_map(|chars| chars.into_iter().collect())
}

/// The same without zero bytes, which no key has.
fn any_key() -> impl Strategy<Value = String> {
    any_text().prop_map(|text| text.replace('\0', "z"))
}

fn any_value() -> impl Strategy<Value = OwnedValue> {
    macro_rules! any_of {
        ($($scalar:ident, $array:ident, $ty:ty;)*) => {
            prop_oneof![
                $(
                    any::<$ty>().prop_map(OwnedValue::$scalar),
                    prop::collection::vec(any::<$ty>(), 0..40).prop_map(OwnedValue::$array),
                )*
                any_text().prop_map(OwnedValue::Str),
                prop::collection::vec(any_text(), 0..300).prop_map(OwnedValue::Strs),
            ]
        };
    }
    any_of! {
        U8, U8s, u8;
        I8, I8s, i8;
        U16, U16s, u16;
        I16, I16s, i16;
        U32, U32s, u32;
        I32, I32s, i32;
        U64, U64s, u64;
        I64, I64s, i64;
        F32, F32s, f32;
        F64, F64s, f64;
        Bool, Bools, bool;
    }
}

/// A value as the test sees it, one element after the other.
#[derive(Clone, Debug)]
enum Element {
    Number(i128),
    Float(f64),
    Bool(bool),
    Text(String),
}

/// What the index must say of a value: its type, whether it is an array, and its elements.
fn expected(value: &OwnedValue) -> (ValueType, bool, Vec<Element>) {
    macro_rules! cases {
        ($($scalar:ident, $array:ident, $as:ident, $element:expr;)*) => {
            match value.clone() {
                $(
                    OwnedValue::$scalar(x) => (ValueType::$as, false, vec![($element)(x)]),
                    OwnedValue::$array(xs) => (ValueType::$as, true, xs.into_iter().map($element).collect()),
                )*
            }
        };
    }
    cases! {
        U8, U8s, U8, |x| Element::Number(i128::from(x));
        I8, I8s, I8, |x| Element::Number(i128::from(x));
        U16, U16s, U16, |x| Element::Number(i128::from(x));
        I16, I16s, I16, |x| Element::Number(i128::from(x));
        U32, U32s, U32, |x| Element::Number(i128::from(x));
        I32, I32s, I32, |x| Element::Number(i128::from(x));
        U64, U64s, U64, |x| Element::Number(i128::from(x));
        I64, I64s, I64, |x| Element::Number(i128::from(x));
        F32, F32s, F32, |x| Element::Float(f64::from(x));
        F64, F64s, F64, Element::Float;
        Bool, Bools, Bool, Element::Bool;
        Str, Strs, Str, Element::Text;
    }
}

/// Every getter on one element: one gives it, the others say why not.
fn check(index: &MetadataIndex, bytes: &[u8], key: &str, i: usize, element: &Element) {
    let number = match element {
        Element::Number(x) => Some(*x),
        _ => None,
    };
    let refused = |error: Error| match number {
        Some(_) => assert!(matches!(error, Error::OutOfRange { .. } | Error::WrongType { .. }), "{error}"),
        None => assert!(matches!(error, Error::WrongType { .. }), "{error}"),
    };
    match index.u64(bytes, key, i) {
        Ok(x) => assert_eq!(number, Some(i128::from(x))),
        Err(error) => {
            assert!(number.is_none_or(|x| u64::try_from(x).is_err()));
            refused(error);
        }
    }
    match index.i64(bytes, key, i) {
        Ok(x) => assert_eq!(number, Some(i128::from(x))),
        Err(error) => {
            assert!(number.is_none_or(|x| i64::try_from(x).is_err()));
            refused(error);
        }
    }
    match (index.f64(bytes, key, i), element) {
        (Ok(x), Element::Float(expected)) => assert_eq!(x.to_bits(), expected.to_bits()),
        (result, Element::Float(_)) => panic!("{result:?}"),
        (result, _) => refused(result.unwrap_err()),
    }
    match (index.bool(bytes, key, i), element) {
        (Ok(x), Element::Bool(expected)) => assert_eq!(x, *expected),
        (result, Element::Bool(_)) => panic!("{result:?}"),
        (result, _) => refused(result.unwrap_err()),
    }
    match (index.str(bytes, key, i), element) {
        (Ok(x), Element::Text(expected)) => assert_eq!(x, expected),
        (result, Element::Text(_)) => panic!("{result:?}"),
        (result, _) => refused(result.unwrap_err()),
    }
}

proptest! {
    #[test]
    fn values_are_those_that_the_file_was_written_with(
        pairs in prop::collection::hash_map(any_key(), any_value(), 0..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let writer = Writer::new(Cursor::new(Vec::new()), pairs.clone(), Vec::new()).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        let directory = Directory::read(&bytes).unwrap();
        let index = directory.metadata_index().unwrap();
        // The index holds for a copy of the header as well.
        let header = bytes[..usize::try_from(directory.data_offset()).unwrap().min(bytes.len())].to_vec();
        drop(bytes);

        // The writer may add keys of its own.
        let keys: Vec<&str> = (0..index.len()).map(|i| index.key(&header, i).unwrap()).collect();
        prop_assert_eq!(index.key(&header, index.len()), None);
        for (i, (key, value)) in pairs.iter().enumerate() {
            prop_assert!(keys.contains(&key.as_str()), "{}: {:?}", i, key);
            let (ty, is_array, elements) = expected(value);
            let shape = ValueShape { ty, is_array, n_elems: elements.len() };
            prop_assert_eq!(index.shape(&header, key).unwrap(), shape);
            for (i, element) in elements.iter().enumerate() {
                check(&index, &header, key, i, element);
            }
            for i in [elements.len(), usize::MAX] {
                let error = index.str(&header, key, i).unwrap_err();
                assert!(matches!(error, Error::NoElement { .. }), "{error}");
            }
        }
        let absent = "a key that no test has";
        assert!(matches!(index.shape(&header, absent), Err(Error::MissingKey { .. })));

        // Bytes that change meanwhile give other values or errors, and never more than that.
        let mut changed = header.clone();
        for (at, byte) in damage {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        for bytes in [&changed[..], &changed[..changed.len() / 2], &[]] {
            for (key, value) in &pairs {
                let n_elems = expected(value).2.len();
                (0..n_elems).for_each(|i| _ = index.str(bytes, key, i).map(str::to_owned));
                (0..n_elems).for_each(|i| _ = (index.u64(bytes, key, i), index.f64(bytes, key, i)));
            }
        }
    }
}
