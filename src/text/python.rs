//! What chat templates expect of Python and Jinja where the engine is different: methods of strings, filters and tests.

use minijinja::value::{Kwargs, Rest, StringInput, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::guard;
use super::values::{self, List};

/// Where `str.splitlines` cuts, besides `\r\n`.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];

/// Makes an environment behave as Python's.
pub(super) fn extend(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match as_float(value) {
        Some(number) => Ok(out.write_str(&float(number))?),
        None => {
            guard::charge_text(state, value)?;
            if *state.auto_escape() != AutoEscape::None {
                // A byte may become six.
                state.consume_fuel(value.as_bytes().map_or(0, <[u8]>::len) as u64 / 8)?;
            }
            escape_formatter(out, state, value)
        }
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("trim", |state: &State, text: StringInput<'_>, chars: Option<&str>| {
        charge_strip(state, text.as_str(), chars)?;
        Ok::<_, Error>(strip(text.as_str(), chars, true, true).to_owned())
    });
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("iterable", has_items);
    environment.add_test("sequence", has_items);
}

/// A method of a text, a list or a map.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    // Some methods make texts of them, or look for them.
    args.iter().try_for_each(|arg| guard::charge_text(state, arg))?;
    let Some(text) = value.as_str() else {
        if let ("count", [item]) = (name, args) {
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
            guard::charge_search(state, item, value)?;
        }
        let result = unknown_method_callback(state, value, name, args)?;
        return values::known(state, result);
    };
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,) = from_args(args)?;
            charge_strip(state, text, chars)?;
            strip(text, chars, name != "rstrip", name != "lstrip").into()
        }
        "split" | "rsplit" => {
            let (separator, limit, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.map_or_else(|| kwargs.get("sep"), |separator| Ok(Some(separator)))?;
            let limit = limit.map_or_else(|| kwargs.get("maxsplit"), |limit| Ok(Some(limit)))?;
            kwargs.assert_all_used()?;
            // Negative is no limit.
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
            // Many short texts take more than a long one.
            let parts = split(text, separator, limit, name == "rsplit", &|| state.consume_fuel(1))?;
            List::value(state, parts.into_iter().map(Value::from).collect())?
        }
        "splitlines" => {
            let (keep_ends, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.map_or_else(|| kwargs.get("keepends"), |keep| Ok(Some(keep)))?;
            kwargs.assert_all_used()?;
            let lines = lines(text, keep_ends.unwrap_or(false), &|| state.consume_fuel(1))?;
            List::value(state, lines.into_iter().map(Value::from).collect())?
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
        _ => {
            if name == "format" {
                guard::charge_fields(state, value, args)?;
            }
            return unknown_method_callback(state, value, name, args);
        }
    })
}

/// Takes the fuel for looking up each character of a text among others.
fn charge_strip(state: &State, text: &str, chars: Option<&str>) -> Result<(), Error> {
    state.consume_fuel((text.len() as u64).saturating_mul(chars.map_or(0, str::len) as u64 / 64))
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
    charge: &dyn Fn() -> Result<(), Error>,
) -> Result<Vec<&'a str>, Error> {
    let mut parts = Vec::new();
    let mut push = |part| {
        charge()?;
        parts.push(part);
        Ok::<_, Error>(parts.len())
    };
    match (separator, from_end) {
        (Some(""), _) => return Err(empty_separator()),
        (Some(separator), false) => {
            text.splitn(limit.saturating_add(1), separator).try_for_each(|part| push(part).map(drop))?;
        }
        (Some(separator), true) => {
            text.rsplitn(limit.saturating_add(1), separator).try_for_each(|part| push(part).map(drop))?;
        }
        (None, _) => {
            let mut rest = strip(text, None, !from_end, from_end);
            let mut n = 0;
            while !rest.is_empty() {
                let (part, others) = match from_end {
                    _ if n == limit => (rest, ""),
                    false => rest.split_once(is_space).unwrap_or((rest, "")),
                    true => rest.rsplit_once(is_space).map_or((rest, ""), |(others, part)| (part, others)),
                };
                n = push(part)?;
                rest = strip(others, None, !from_end, from_end);
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts)
}

fn lines<'a>(
    mut text: &'a str,
    keep_ends: bool,
    charge: &dyn Fn() -> Result<(), Error>,
) -> Result<Vec<&'a str>, Error> {
    let mut lines = Vec::new();
    while !text.is_empty() {
        let (line, rest) = match text.find(LINE_ENDS) {
            None => (text.len(), text.len()),
            Some(at) if text[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + text[at..].chars().next().map_or(0, char::len_utf8)),
        };
        charge()?;
        lines.push(&text[..if keep_ends { rest } else { line }]);
        text = &text[rest..];
    }
    Ok(lines)
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
