//! What chat templates expect of Python and Jinja where the engine is different: methods of strings, filters and tests.

use minijinja::value::{Kwargs, Rest, StringInput, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Where `str.splitlines` cuts, besides `\r\n`.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];

/// Most levels of lists and objects that become text.
pub(super) const MAX_DEPTH: usize = 100;

/// Makes an environment behave as Python's.
pub(super) fn extend(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match as_float(value) {
        Some(number) => Ok(out.write_str(&float(number))?),
        None => {
            charge_text(state, value, 0)?;
            escape_formatter(out, state, value)
        }
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("trim", |text: StringInput<'_>, chars: Option<&str>| {
        strip(text.as_str(), chars, true, true).to_owned()
    });
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("iterable", has_items);
    environment.add_test("sequence", has_items);
}

/// Takes the fuel for the text of what a value holds before the engine writes it: a list may hold another one many times,
/// and so be short in memory and endless as a text.
fn charge_text(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let message = format!("a value nested more than {MAX_DEPTH} deep has no text");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                charge_text(state, &item, depth + 1)?;
                if value.kind() == ValueKind::Map {
                    charge_text(state, &value.get_item(&item)?, depth + 1)?;
                }
            }
        }
        // Some bytes are written as an escape of six.
        _ if depth > 0 => state.consume_fuel(value.as_str().map_or(1, |text| text.len() as u64 / 8))?,
        _ => {}
    }
    Ok(())
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    // Some methods make texts of them.
    args.iter().try_for_each(|arg| charge_text(state, arg, 0))?;
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,) = from_args(args)?;
            strip(text, chars, name != "rstrip", name != "lstrip").into()
        }
        "split" | "rsplit" => {
            let (separator, limit, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.map_or_else(|| kwargs.get("sep"), |separator| Ok(Some(separator)))?;
            let limit = limit.map_or_else(|| kwargs.get("maxsplit"), |limit| Ok(Some(limit)))?;
            kwargs.assert_all_used()?;
            // Negative is no limit.
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
            split(text, separator, limit, name == "rsplit")?.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.map_or_else(|| kwargs.get("keepends"), |keep| Ok(Some(keep)))?;
            kwargs.assert_all_used()?;
            lines(text, keep_ends.unwrap_or(false)).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let last = name == "rpartition";
            let at = if last { text.rfind(separator) } else { text.find(separator) };
            let parts = match at {
                _ if separator.is_empty() => return Err(empty_separator()),
                Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        _ => return unknown_method_callback(state, value, name, args),
    })
}

/// Python takes four control characters for spaces that Unicode does not.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

fn empty_separator() -> Error {
    Error::new(ErrorKind::InvalidOperation, "the separator is empty")
}

/// Cuts at most `limit` times, from the end or from the beginning; without a separator at spaces, however many.
fn split<'a>(
    text: &'a str,
    separator: Option<&str>,
    limit: usize,
    from_end: bool,
) -> Result<Vec<&'a str>, Error> {
    let mut parts = Vec::new();
    match (separator, from_end) {
        (Some(""), _) => return Err(empty_separator()),
        (Some(separator), false) => parts.extend(text.splitn(limit.saturating_add(1), separator)),
        (Some(separator), true) => parts.extend(text.rsplitn(limit.saturating_add(1), separator)),
        (None, _) => {
            let mut rest = strip(text, None, !from_end, from_end);
            while !rest.is_empty() {
                let (part, others) = match from_end {
                    _ if parts.len() == limit => (rest, ""),
                    false => rest.split_once(is_space).unwrap_or((rest, "")),
                    true => rest.rsplit_once(is_space).map_or((rest, ""), |(others, part)| (part, others)),
                };
                parts.push(part);
                rest = strip(others, None, !from_end, from_end);
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

fn lines(mut text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    while !text.is_empty() {
        let (line, rest) = match text.find(LINE_ENDS) {
            None => (text.len(), text.len()),
            Some(at) if text[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + text[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(&text[..if keep_ends { rest } else { line }]);
        text = &text[rest..];
    }
    lines
}

/// Every run of letters begins with a capital one, also behind an apostrophe.
fn title(text: &str) -> String {
    let mut title = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => title.extend(c.to_lowercase()),
            false => title.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    title
}

/// The filter `default(default_value='', boolean=false)`.
fn default(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut args = args.iter().cloned();
    let mut argument = |name: &str| match args.next() {
        Some(value) => Ok(Some(value)),
        None => kwargs.get::<Option<Value>>(name),
    };
    let (other, boolean) = (argument("default_value")?, argument("boolean")?);
    kwargs.assert_all_used()?;
    let lacks = value.is_undefined() || boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if lacks { other.unwrap_or_else(|| "".into()) } else { value.clone() })
}

/// The filter `escape`, for HTML.
fn escape(text: StringInput<'_>) -> String {
    let text = text.as_str().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

/// Texts and maps are iterable and sequences to Jinja; none is neither.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}

/// The number, if it is one with a fraction, be it 0.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// A float as Python writes it.
pub(super) fn float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{number:?}"),
        exponent if exponent < 0 => format!("{digits}e-{:02}", -exponent),
        exponent => format!("{digits}e+{exponent:02}"),
    }
}
