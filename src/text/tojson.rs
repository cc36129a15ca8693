//! The `tojson` filter of chat templates: JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it.
//!
//! The engine's own filter escapes `<`, `>`, `&` and `'` for HTML, which a prompt must not have.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::values::MAX_DEPTH;
use super::{guard, python};

/// `value | tojson`, with the arguments `ensure_ascii`, `indent`, `separators` and `sort_keys` of `json.dumps`.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    args: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let mut args = args.iter();
    let mut argument = |name: &str| -> Result<Option<Value>, Error> {
        Ok(kwargs
            .get::<Option<Value>>(name)?
            .or_else(|| args.next().cloned())
            .filter(|value| !value.is_none()))
    };
    let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ascii = flag(argument("ensure_ascii")?);
    let indent = match argument("indent")? {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = match argument("separators")? {
        None => (comma.to_owned(), ": ".to_owned()),
        Some(separators) => from_args(&separators.try_iter()?.collect::<Vec<_>>())?,
    };
    let sort_keys = flag(argument("sort_keys")?);
    kwargs.assert_all_used()?;
    let mut writer = Writer { state, out: String::new(), ascii, indent, comma, colon, sort_keys };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    ascii: bool,
    /// What one level is indented by; everything is on one line without.
    indent: Option<String>,
    /// Between the items of a list, and behind a key.
    comma: String,
    colon: String,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        let unserializable =
            |what: &str| Error::new(ErrorKind::BadSerialization, format!("{what} is not JSON"));
        if depth > MAX_DEPTH {
            return Err(unserializable(&format!("a value nested more than {} deep", MAX_DEPTH)));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let text = python::as_float(value).map_or_else(|| value.to_string(), python::float);
                self.out.push_str(&text);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()? {
                    self.state.consume_fuel(1)?;
                    items.push((None, item));
                }
                self.items('[', items, ']', depth)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    self.state.consume_fuel(1)?;
                    guard::charge_text(self.state, &key)?;
                    let item = value.get_item(&key)?;
                    items.push((Some(key_text(&key)), item));
                }
                if self.sort_keys {
                    items.sort_by(|(left, _), (right, _)| left.cmp(right));
                }
                self.items('{', items, '}', depth)?;
            }
            other => return Err(unserializable(&other.to_string())),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        items: Vec<(Option<String>, Value)>,
        close: char,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.comma);
            }
            self.new_line(depth + 1)?;
            if let Some(key) = key {
                self.string(&key)?;
                self.out.push_str(&self.colon);
            }
            // Templates choose how long they are.
            self.charge(self.comma.len() + self.colon.len())?;
            self.value(&item, depth + 1)?;
        }
        if !empty {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.charge(indent.len() * depth)?;
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        Ok(())
    }

    /// Bytes cost what the engine's own do.
    fn charge(&self, n_bytes: usize) -> Result<(), Error> {
        self.state.consume_fuel(n_bytes as u64 / 64)
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.charge(text.len())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// A key of an object, which JSON has only as text.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        _ => key.to_string(),
    }
}
