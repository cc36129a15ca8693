//! Metadata as it lies in the file: checked when it is read, decoded when it is asked for.

use std::collections::HashMap;
use std::fmt;

use byteorder::{ByteOrder, LittleEndian as LE};

use crate::Error;

/// Types of metadata values, with GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// 0
    U8,
    /// 1
    I8,
    /// 2
    U16,
    /// 3
    I16,
    /// 4
    U32,
    /// 5
    I32,
    /// 6
    F32,
    /// 7: one byte, 0 or 1
    Bool,
    /// 8: u64 length, then UTF-8
    Str,
    /// 9: u32 element type, u64 count, then the elements
    Array,
    /// 10
    U64,
    /// 11
    I64,
    /// 12
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(crate) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// GGUF's number of the type.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; for strings and arrays the least that one takes.
    pub(crate) const fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        };
        f.write_str(name)
    }
}

/// A value, with strings and arrays where they lie in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer of any width.
    UInt(ValueType, u64),
    /// A signed integer of any width.
    Int(ValueType, i64),
    /// A float of either width.
    Float(ValueType, f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Str(&'a str),
    /// An array of equal types.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The type that the file gives it.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::UInt(ty, _) | Self::Int(ty, _) | Self::Float(ty, _) => *ty,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::Str,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// Decodes a scalar from exactly its bytes.
    pub(crate) fn scalar(ty: ValueType, bytes: &[u8]) -> Option<Value<'a>> {
        Some(match ty {
            ValueType::U8 => Self::UInt(ty, bytes[0].into()),
            ValueType::I8 => Self::Int(ty, bytes[0].cast_signed().into()),
            ValueType::U16 => Self::UInt(ty, LE::read_u16(bytes).into()),
            ValueType::I16 => Self::Int(ty, LE::read_i16(bytes).into()),
            ValueType::U32 => Self::UInt(ty, LE::read_u32(bytes).into()),
            ValueType::I32 => Self::Int(ty, LE::read_i32(bytes).into()),
            ValueType::U64 => Self::UInt(ty, LE::read_u64(bytes)),
            ValueType::I64 => Self::Int(ty, LE::read_i64(bytes)),
            ValueType::F32 => Self::Float(ty, LE::read_f32(bytes).into()),
            ValueType::F64 => Self::Float(ty, LE::read_f64(bytes)),
            ValueType::Bool => Self::Bool(bytes[0] != 0),
            ValueType::Str | ValueType::Array => return None,
        })
    }
}

/// An array where it lies in the file; its elements have been checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub(crate) ty: ValueType,
    pub(crate) len: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.ty
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, decoded one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (ty, mut rest) = (self.ty, self.bytes);
        (0..self.len).filter_map(move |_| {
            if ty == ValueType::Str {
                let n_bytes = usize::try_from(LE::read_u64(rest)).ok()?;
                let (text, behind) = rest[8..].split_at(n_bytes);
                rest = behind;
                // Checked when the file was read.
                return std::str::from_utf8(text).ok().map(Value::Str);
            }
            let (bytes, behind) = rest.split_at(usize::try_from(ty.min_bytes()).ok()?);
            rest = behind;
            Value::scalar(ty, bytes)
        })
    }
}

/// The key-value pairs of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Metadata<'a> {
    pub(crate) entries: Vec<(&'a str, Value<'a>)>,
    pub(crate) by_key: HashMap<&'a str, usize>,
}

/// Why a value is not one of the type asked for.
pub(crate) enum Mismatch {
    Type,
    Range,
}

/// Which Rust types a value converts to: integers without loss, floats rounded to the nearest.
pub(crate) trait FromValue<'a>: Sized {
    const NAME: &'static str;
    fn from_value(value: &Value<'a>) -> Result<Self, Mismatch>;
}

macro_rules! from_integer {
    ($($ty:ty),*) => {$(
        impl<'a> FromValue<'a> for $ty {
            const NAME: &'static str = stringify!($ty);
            fn from_value(value: &Value<'a>) -> Result<Self, Mismatch> {
                match *value {
                    Value::UInt(_, x) => x.try_into().map_err(|_| Mismatch::Range),
                    Value::Int(_, x) => x.try_into().map_err(|_| Mismatch::Range),
                    _ => Err(Mismatch::Type),
                }
            }
        }
    )*};
}
from_integer!(u32, i32, u64, i64);

impl<'a> FromValue<'a> for f32 {
    const NAME: &'static str = "f32";
    #[expect(clippy::cast_possible_truncation, reason = "rounding a float to the width asked for")]
    fn from_value(value: &Value<'a>) -> Result<Self, Mismatch> {
        match *value {
            Value::Float(_, x) if x.is_finite() && !(x as f32).is_finite() => Err(Mismatch::Range),
            Value::Float(_, x) => Ok(x as f32),
            _ => Err(Mismatch::Type),
        }
    }
}

impl<'a> FromValue<'a> for f64 {
    const NAME: &'static str = "f64";
    fn from_value(value: &Value<'a>) -> Result<Self, Mismatch> {
        match *value {
            Value::Float(_, x) => Ok(x),
            _ => Err(Mismatch::Type),
        }
    }
}

impl<'a> FromValue<'a> for bool {
    const NAME: &'static str = "bool";
    fn from_value(value: &Value<'a>) -> Result<Self, Mismatch> {
        match *value {
            Value::Bool(x) => Ok(x),
            _ => Err(Mismatch::Type),
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const NAME: &'static str = "string";
    fn from_value(value: &Value<'a>) -> Result<Self, Mismatch> {
        match *value {
            Value::Str(x) => Ok(x),
            _ => Err(Mismatch::Type),
        }
    }
}

pub(crate) fn convert<'a, T: FromValue<'a>>(key: &str, value: &Value<'a>) -> Result<T, Error> {
    T::from_value(value).map_err(|mismatch| {
        let (key, expected) = (key.to_owned(), T::NAME);
        match (mismatch, value) {
            (Mismatch::Range, Value::UInt(_, x)) => Error::OutOfRange { key, expected, found: x.to_string() },
            (Mismatch::Range, Value::Int(_, x)) => Error::OutOfRange { key, expected, found: x.to_string() },
            (Mismatch::Range, Value::Float(_, x)) => {
                Error::OutOfRange { key, expected, found: format!("{x:?}") }
            }
            (_, value) => Error::WrongType { key, expected, found: value.value_type() },
        }
    })
}

impl<'a> Metadata<'a> {
    /// All pairs in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        self.entries.iter().map(|(key, value)| (*key, value))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.by_key.get(key).map(|&i| &self.entries[i].1)
    }

    fn opt<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get(key).map(|value| convert(key, value)).transpose()
    }

    fn opt_all<T: FromValue<'a>>(&self, key: &str) -> Result<Option<Vec<T>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                let mut values = Vec::new();
                values.try_reserve_exact(array.len())?;
                for value in array.iter() {
                    values.push(convert(key, &value)?);
                }
                Ok(Some(values))
            }
            Some(value) => {
                Err(Error::WrongType { key: key.to_owned(), expected: "array", found: value.value_type() })
            }
        }
    }
}

fn require<T>(key: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::MissingKey { key: key.to_owned() })
}

/// For every type a getter that requires the key and one that does not. Integers of any width are taken if they fit.
macro_rules! getters {
    ($($ty:ty, $what:literal, $opt:ident, $require:ident, $opt_all:ident, $require_all:ident;)*) => {
        impl<'a> Metadata<'a> {$(
            #[doc = concat!("The ", $what, " of a key, or nothing if the key is missing; an error if it is something else.")]
            pub fn $opt(&self, key: &str) -> Result<Option<$ty>, Error> {
                self.opt(key)
            }
            #[doc = concat!("The ", $what, " of a key; an error if it is missing or something else.")]
            pub fn $require(&self, key: &str) -> Result<$ty, Error> {
                require(key, self.opt(key)?)
            }
            #[doc = concat!("The array of ", $what, "s of a key, or nothing if the key is missing; an error if it is something else.")]
            pub fn $opt_all(&self, key: &str) -> Result<Option<Vec<$ty>>, Error> {
                self.opt_all(key)
            }
            #[doc = concat!("The array of ", $what, "s of a key; an error if it is missing or something else.")]
            pub fn $require_all(&self, key: &str) -> Result<Vec<$ty>, Error> {
                require(key, self.opt_all(key)?)
            }
        )*}
    };
}
getters! {
    u32, "u32", opt_u32, require_u32, opt_u32s, require_u32s;
    i32, "i32", opt_i32, require_i32, opt_i32s, require_i32s;
    u64, "u64", opt_u64, require_u64, opt_u64s, require_u64s;
    f32, "f32", opt_f32, require_f32, opt_f32s, require_f32s;
    bool, "bool", opt_bool, require_bool, opt_bools, require_bools;
    &'a str, "string", opt_str, require_str, opt_strs, require_strs;
}
