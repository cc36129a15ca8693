//! JSON files and their fields, with errors that name both.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value};

use crate::plan::shown;

/// Reads a JSON file.
pub fn read(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).with_context(|| format!("{} is no JSON", path.display()))
}

/// Bytes of a text file that are read at most: the largest vocabularies take some 40 MB.
const MAX_BYTES: u64 = 1 << 28;

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    let read = || {
        let metadata = std::fs::metadata(path)?;
        ensure!(metadata.is_file(), "this is no file");
        let n_bytes = metadata.len();
        ensure!(n_bytes <= MAX_BYTES, "the file has {n_bytes} bytes, more than {MAX_BYTES} are not read");
        Ok(std::fs::read_to_string(path)?)
    };
    read().with_context(|| path.display().to_string())
}

/// The same for a file that need not be there.
pub fn read_text_if_present(path: &Path) -> Result<Option<String>> {
    if path.exists() { read_text(path).map(Some) } else { Ok(None) }
}

/// An object of a JSON file; a field that is null counts as missing.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    name: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// `name` is what errors call it.
    pub fn new(name: &'a str, value: &'a Value) -> Result<Self> {
        let fields = value.as_object().with_context(|| format!("{name}: expected an object"))?;
        Ok(Self { name, fields })
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there, null or not.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Names and values of all fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.fields.iter().map(|(field, value)| (field.as_str(), value))
    }

    fn opt<T>(&self, field: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let wrong = || anyhow!("{}: {field}: expected {what}, found {}", self.name, shown(value));
        convert(value).ok_or_else(wrong).map(Some)
    }

    fn missing(&self, field: &str) -> anyhow::Error {
        anyhow!("{}: {field} is missing", self.name)
    }

    /// A whole number from 1 to `max`.
    pub fn opt_up_to(&self, field: &str, max: u32) -> Result<Option<u32>> {
        let what = format!("a whole number from 1 to {max}");
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        self.opt(field, &what, |value| number(value).filter(|n| (1..=max).contains(n)))
    }

    pub fn require_up_to(&self, field: &str, max: u32) -> Result<u32> {
        self.opt_up_to(field, max)?.ok_or_else(|| self.missing(field))
    }

    /// A number above 0 that is neither 0 nor infinite as `f32`, which files store.
    pub fn opt_positive(&self, field: &str) -> Result<Option<f64>> {
        let range = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
        self.opt(field, "a number above 0", |value| value.as_f64().filter(|x| range.contains(x)))
    }

    pub fn require_positive(&self, field: &str) -> Result<f64> {
        self.opt_positive(field)?.ok_or_else(|| self.missing(field))
    }

    pub fn opt_bool(&self, field: &str) -> Result<Option<bool>> {
        self.opt(field, "true or false", Value::as_bool)
    }

    pub fn opt_str(&self, field: &str) -> Result<Option<&'a str>> {
        self.opt(field, "a string", Value::as_str)
    }

    pub fn require_str(&self, field: &str) -> Result<&'a str> {
        self.opt_str(field)?.ok_or_else(|| self.missing(field))
    }

    pub fn opt_list(&self, field: &str) -> Result<Option<&'a [Value]>> {
        self.opt(field, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn opt_object(&self, field: &'a str) -> Result<Option<Object<'a>>> {
        let fields = self.opt(field, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Object { name: field, fields }))
    }
}
