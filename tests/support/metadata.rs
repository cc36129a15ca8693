//! Metadata: files that consist of nothing else, random pairs, and pairs as tests/capi/metadata.c prints them.

use std::fmt::{Display, Write};
use std::io::Cursor;

use longgen_format::{Directory, Metadata, OwnedValue, ValueType, Writer};

use super::random::Random;

/// A file that consists of these keys only.
pub fn file(metadata: &[(&str, OwnedValue)]) -> Vec<u8> {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Writer::new(Cursor::new(Vec::new()), metadata, Vec::new()).unwrap().finish().unwrap().into_inner()
}

/// Reads a file that consists of these keys only.
pub fn with_metadata<T>(metadata: &[(&str, OwnedValue)], read: impl FnOnce(&Metadata<'_>) -> T) -> T {
    read(&Directory::read(&file(metadata)).unwrap().metadata)
}

/// A text of up to 11 characters of one to four bytes, or the zero byte.
fn random_text(random: &mut Random) -> String {
    (0..random.below(12)).map(|_| ['a', '.', '\0', 'é', '▁', '🦀'][random.below(6)]).collect()
}

/// For every type a value and an array; arrays of different lengths, empty ones among them.
pub fn random_values(random: &mut Random) -> Vec<OwnedValue> {
    let mut values = Vec::new();
    macro_rules! numbers {
        ($($ty:ty, $scalar:ident, $array:ident;)*) => {$(
            let mut number = || <$ty>::from_le_bytes(*random.bits().to_le_bytes().first_chunk().unwrap());
            values.push(OwnedValue::$scalar(number()));
            for n in [0, 1, 37] {
                values.push(OwnedValue::$array((0..n).map(|_| number()).collect()));
            }
        )*};
    }
    numbers! {
        u8, U8, U8s;
        i8, I8, I8s;
        u16, U16, U16s;
        i16, I16, I16s;
        u32, U32, U32s;
        i32, I32, I32s;
        u64, U64, U64s;
        i64, I64, I64s;
        f32, F32, F32s;
        f64, F64, F64s;
    }
    values.extend([false, true].map(OwnedValue::Bool));
    values.push(OwnedValue::Bools((0..21).map(|_| random.below(2) == 1).collect()));
    values.push(OwnedValue::Str(random_text(random)));
    for n in [0, 1, 64, 65, 200] {
        values.push(OwnedValue::Strs((0..n).map(|_| random_text(random)).collect()));
    }
    values
}

/// A pair as tests/capi/metadata.c prints it.
pub fn printed(key: &str, value: &OwnedValue) -> String {
    let hex = |text: &str| text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let mut line = hex(key);
    fn elements<T: Display>(ty: ValueType, is_array: bool, values: impl Iterator<Item = T>) -> String {
        let mut n = 0;
        let values = values.fold(String::new(), |text, value| {
            n += 1;
            format!("{text} {value}")
        });
        format!(" {} {} {n}{values}", ty.id(), u8::from(is_array))
    }
    macro_rules! cases {
        ($($ty:ident, $scalar:ident, $array:ident, $print:expr;)*) => {
            match value {
                $(
                    OwnedValue::$scalar(x) => elements(ValueType::$ty, false, [x].into_iter().map($print)),
                    OwnedValue::$array(xs) => elements(ValueType::$ty, true, xs.iter().map($print)),
                )*
            }
        };
    }
    let value = cases! {
        U8, U8, U8s, |x| x.to_string();
        I8, I8, I8s, |x| x.to_string();
        U16, U16, U16s, |x| x.to_string();
        I16, I16, I16s, |x| x.to_string();
        U32, U32, U32s, |x| x.to_string();
        I32, I32, I32s, |x| x.to_string();
        U64, U64, U64s, |x| x.to_string();
        I64, I64, I64s, |x| x.to_string();
        F32, F32, F32s, |x| format!("{:x}", f64::from(*x).to_bits());
        F64, F64, F64s, |x| format!("{:x}", x.to_bits());
        Bool, Bool, Bools, |x| u8::from(*x).to_string();
        Str, Str, Strs, |x| hex(x);
    };
    write!(line, "{value}").unwrap();
    line
}
