//! Metadata without a borrow: where keys and values lie in a file, for programs that keep the file's bytes by themselves.
//!
//! A vocabulary is most of what metadata there is, so nothing of it is copied: strings stay where they are, and of an
//! array of them the place of one in [`STRINGS_PER_MARK`] is remembered.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian as LE};

use crate::metadata::{Array, FromValue, Value, ValueType, convert};
use crate::{Directory, Error};

/// Strings of an array from one whose place is remembered to the next, which are gone through to find those between.
const STRINGS_PER_MARK: usize = 64;

/// Bytes of a string's length.
const LENGTH_BYTES: usize = 8;

/// Where the key-value pairs of a file lie in it.
///
/// Methods are given the file's bytes, or as many of them as [`Directory::data_offset`] says. With bytes that have changed
/// since they find other values or [`Error::Changed`].
#[derive(Clone, Debug)]
pub struct MetadataIndex {
    /// In the order of the file.
    entries: Vec<Entry>,
    /// Numbers of the entries, in the order of their keys.
    by_key: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: Range<usize>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Scalar(Value<'static>),
    Str(Range<usize>),
    /// `marks` is where every [`STRINGS_PER_MARK`]-th string begins, its length included; there are none for other types.
    Array {
        ty: ValueType,
        len: usize,
        bytes: Range<usize>,
        marks: Vec<usize>,
    },
}

/// What a key has: a value, or an array of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueShape {
    /// The value's type; that of the elements of an array.
    pub ty: ValueType,
    /// Whether it is an array.
    pub is_array: bool,
    /// How many values there are; 1 if it is no array.
    pub n_elems: usize,
}

impl Directory<'_> {
    /// Where the key-value pairs lie in the bytes that the directory was read from.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn metadata_index(&self) -> Result<MetadataIndex, Error> {
        let range = |part: &[u8]| {
            // Every part lies in the file's own bytes.
            let begin = part.as_ptr().addr() - self.bytes.as_ptr().addr();
            begin..begin + part.len()
        };
        let place = |value: &Value<'_>| -> Result<Place, Error> {
            Ok(match *value {
                Value::UInt(ty, x) => Place::Scalar(Value::UInt(ty, x)),
                Value::Int(ty, x) => Place::Scalar(Value::Int(ty, x)),
                Value::Float(ty, x) => Place::Scalar(Value::Float(ty, x)),
                Value::Bool(x) => Place::Scalar(Value::Bool(x)),
                Value::Str(text) => Place::Str(range(text.as_bytes())),
                Value::Array(array) => {
                    let Array { ty, len, bytes } = array;
                    let begin = range(bytes).start;
                    Place::Array { ty, len, bytes: range(bytes), marks: marks(&array, begin)? }
                }
            })
        };
        let mut entries = with_capacity(self.metadata.len())?;
        for (key, value) in self.metadata.iter() {
            entries.push(Entry { key: range(key.as_bytes()), place: place(value)? });
        }
        let mut by_key = with_capacity(entries.len())?;
        by_key.extend(0..entries.len());
        by_key.sort_unstable_by_key(|&i: &usize| &self.bytes[entries[i].key.clone()]);
        Ok(MetadataIndex { entries, by_key })
    }
}

/// Room for `n` elements.
fn with_capacity<T>(n: usize) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    values.try_reserve_exact(n)?;
    Ok(values)
}

/// Where every [`STRINGS_PER_MARK`]-th string of an array begins that begins at `begin`.
fn marks(array: &Array<'_>, begin: usize) -> Result<Vec<usize>, Error> {
    if array.ty != ValueType::Str {
        return Ok(Vec::new());
    }
    let mut marks = with_capacity(array.len.div_ceil(STRINGS_PER_MARK))?;
    let mut at = begin;
    for (i, value) in array.iter().enumerate() {
        let Value::Str(text) = value else { break };
        if i % STRINGS_PER_MARK == 0 {
            marks.push(at);
        }
        at += LENGTH_BYTES + text.len();
    }
    Ok(marks)
}

/// A string, its length first, that begins at `at`: the text, and where it ends.
fn string(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let begin = at.checked_add(LENGTH_BYTES)?;
    let n_bytes = usize::try_from(LE::read_u64(bytes.get(at..begin)?)).ok()?;
    let end = begin.checked_add(n_bytes)?;
    Some((bytes.get(begin..end)?, end))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

impl Place {
    fn shape(&self) -> ValueShape {
        let scalar = |ty| ValueShape { ty, is_array: false, n_elems: 1 };
        match self {
            Self::Scalar(value) => scalar(value.value_type()),
            Self::Str(_) => scalar(ValueType::Str),
            Self::Array { ty, len, .. } => ValueShape { ty: *ty, is_array: true, n_elems: *len },
        }
    }

    /// The element number `i`; `None` if the bytes are no longer what they were.
    fn element<'b>(&self, bytes: &'b [u8], i: usize) -> Option<Value<'b>> {
        match self {
            Self::Scalar(value) => Some(*value),
            Self::Str(range) => text(bytes.get(range.clone())?).map(Value::Str),
            Self::Array { ty: ValueType::Str, marks, .. } => {
                let mut at = *marks.get(i / STRINGS_PER_MARK)?;
                for _ in 0..i % STRINGS_PER_MARK {
                    (_, at) = string(bytes, at)?;
                }
                text(string(bytes, at)?.0).map(Value::Str)
            }
            Self::Array { ty, bytes: range, .. } => {
                let n_bytes = usize::try_from(ty.min_bytes()).ok()?;
                Value::scalar(*ty, bytes.get(range.clone())?.chunks_exact(n_bytes).nth(i)?)
            }
        }
    }
}

impl MetadataIndex {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key of the pair number `i` in the order of the file; nothing if there are not so many.
    pub fn key<'b>(&self, bytes: &'b [u8], i: usize) -> Option<&'b str> {
        text(bytes.get(self.entries.get(i)?.key.clone())?)
    }

    fn place(&self, bytes: &[u8], key: &str) -> Result<&Place, Error> {
        let of_entry = |&i: &usize| bytes.get(self.entries[i].key.clone()).unwrap_or_default();
        match self.by_key.binary_search_by_key(&key.as_bytes(), of_entry) {
            Ok(found) => Ok(&self.entries[self.by_key[found]].place),
            Err(_) => Err(Error::MissingKey { key: key.to_owned() }),
        }
    }

    /// What a key has.
    ///
    /// # Errors
    /// [`Error::MissingKey`].
    pub fn shape(&self, bytes: &[u8], key: &str) -> Result<ValueShape, Error> {
        self.place(bytes, key).map(Place::shape)
    }

    fn get<'b, T: FromValue<'b>>(&self, bytes: &'b [u8], key: &str, i: usize) -> Result<T, Error> {
        let place = self.place(bytes, key)?;
        let n_elems = place.shape().n_elems;
        if i >= n_elems {
            return Err(Error::NoElement { key: key.to_owned(), index: i, n_elems });
        }
        let value = place.element(bytes, i).ok_or_else(|| Error::Changed { key: key.to_owned() })?;
        convert(key, &value)
    }

    /// The string number `i` of a key; number 0 is the value of a key that has no array.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::NoElement`], [`Error::WrongType`], [`Error::Changed`].
    pub fn str<'b>(&self, bytes: &'b [u8], key: &str, i: usize) -> Result<&'b str, Error> {
        self.get(bytes, key, i)
    }
}

/// Getters of numbers. Integers of any width are taken if they fit.
macro_rules! getters {
    ($($ty:ident)*) => {
        impl MetadataIndex {$(
            #[doc = concat!("The ", stringify!($ty), " number `i` of a key; number 0 is the value of a key that has no array.")]
            ///
            /// # Errors
            /// [`Error::MissingKey`], [`Error::NoElement`], [`Error::WrongType`], [`Error::OutOfRange`], [`Error::Changed`].
            pub fn $ty(&self, bytes: &[u8], key: &str, i: usize) -> Result<$ty, Error> {
                self.get(bytes, key, i)
            }
        )*}
    };
}
getters! { u64 i64 f64 bool }
