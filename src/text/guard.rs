//! What the engine does with values without asking for the fuel that it takes, with the fuel asked for: operators, filters,
//! tests and functions. `instructions.rs` puts them in place. Their names begin with a zero byte.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, functions};

use super::python;
use super::values::{self, List, Map, Namespace, shape, wrong};

pub(super) const ADD: &str = "\0add";
pub(super) const CONCAT: &str = "\0concat";
pub(super) const SLICE: &str = "\0slice";
pub(super) const LIST: &str = "\0list";
pub(super) const MAP: &str = "\0map";
/// A value that the engine made, as one that knows its shape.
pub(super) const KNOWN: &str = "\0known";
/// Charges values for what they hold, and leaves them in the order in which `UnpackList` takes them.
pub(super) const PASS: &str = "\0pass";
/// Charges a value and a key before the one is looked up in the other.
pub(super) const ITEM: &str = "\0item";
/// Its argument, a text for its characters, which are counted before the first.
pub(super) const ITERATE: &str = "\0iterate";
pub(super) const SET: &str = "\0set";
pub(super) const CHANGED: &str = "\0changed";
pub(super) const CYCLE: &str = "\0cycle";

/// Filters that take what the engine charges: they look at each item once, and not into it.
const SHALLOW: &str = "\0abs \0attr \0batch \0bool \0count \0d \0default \0first \0float \0int \0items \0last \0length \0list \
    \0map \0reject \0rejectattr \0reverse \0round \0select \0selectattr \0slice \0tojson";
/// Those that compare values, each with several others.
const SORTING: &str = "\0dictsort \0groupby \0max \0min \0sort \0unique";
/// Those that make texts of values.
const TEXTUAL: &str = "\0capitalize \0e \0escape \0format \0indent \0join \0lower \0pprint \0replace \0safe \0split \0string \
    \0title \0trim \0upper";
const OTHERS: &str = "\0sum";
/// Tests that look at more than the kind of a value.
const TESTS: &str = "\0!= \0< \0<= \0== \0> \0>= \0eq \0equalto \0ge \0greaterthan \0gt \0le \0lessthan \0lt \0ne \0sameas \
    \0startingwith \0endingwith \0in \0lower \0upper";

/// The guarded filter of this name.
pub(super) fn filter(name: &str) -> Option<&'static str> {
    filters().find(|guarded| is_name(guarded, name))
}

/// The guarded test of this name, if it needs that.
pub(super) fn test(name: &str) -> Option<&'static str> {
    TESTS.split(' ').find(|guarded| is_name(guarded, name))
}

fn filters() -> impl Iterator<Item = &'static str> {
    [SHALLOW, SORTING, TEXTUAL, OTHERS].into_iter().flat_map(|names| names.split(' '))
}

/// The engine takes names with spaces in them.
fn is_name(guarded: &str, name: &str) -> bool {
    name.chars().filter(|c| !c.is_ascii_whitespace()).eq(guarded.chars().skip(1))
}

pub(super) fn extend(environment: &mut Environment<'_>) {
    for name in filters() {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            apply_filter(state, name, args.into_values())
        });
    }
    for name in TESTS.split(' ') {
        environment.add_test(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            perform_test(state, name, &args.into_values())
        });
    }
    for name in ["\0!=", "\0<", "\0<=", "\0==", "\0>", "\0>=", "\0in"] {
        environment.add_function(name, move |state: &mut State, left: Value, right: Value| {
            compared(perform_test(state, name, &[left, right.clone()])?, right)
        });
    }
    environment.add_function("\0notin", |state: &mut State, left: Value, right: Value| {
        compared(!perform_test(state, "\0in", &[left, right.clone()])?, right)
    });
    // Neither Jinja nor Python has these.
    for name in ["chain", "zip", "lines"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    environment.add_function(ADD, add);
    environment.add_function(CONCAT, concat);
    environment.add_function(SLICE, slice);
    environment.add_function(LIST, |state: &State, items: Rest<Value>| List::value(state, items.0));
    environment.add_function(MAP, |state: &State, items: Rest<Value>| {
        Map::value(state, items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    });
    environment
        .add_function(KNOWN, |state: &State, value: ValueOrKwargs| values::known(state, value.into_value()));
    environment.add_function(PASS, |state: &State, args: Rest<ValueOrKwargs>| {
        let mut args = args.into_values();
        args.iter().try_for_each(|arg| state.consume_fuel(shape(state, arg)?.weight))?;
        args.reverse();
        Ok::<_, Error>(Value::from(Tuple::from(args)))
    });
    environment.add_function(ITEM, |state: &State, value: Value, key: Value| {
        let of_text = value.as_bytes().map_or(0, |text| text.len() as u64 / 64);
        state.consume_fuel((shape(state, &key)?.weight - 1).saturating_add(of_text))?;
        Ok::<_, Error>(Value::from(Tuple::from([key, value])))
    });
    environment.add_function(ITERATE, |value: ValueOrKwargs| value.into_value());
    environment.add_function(SET, |state: &State, value: Value, namespace: Value, name: &str| {
        match namespace.downcast_object_ref::<Namespace>() {
            Some(namespace) => namespace.set(state, name, value),
            None => Err(wrong(format!("can only assign to namespaces, not {}", namespace.kind()))),
        }
        .map(|()| Value::from(()))
    });
    for (name, method) in [(CHANGED, "changed"), (CYCLE, "cycle")] {
        environment.add_function(name, move |state: &mut State, object: Value, args: Rest<Value>| {
            state.consume_fuel(values::shape_of_items(state, &args)?.weight)?;
            object.call_method(state, method, &args)
        });
    }
    environment.add_function("range", |state: &State, lower: i32, upper: Option<i32>, step: Option<i32>| {
        let wide = |number: Option<i32>| number.map(|number| number as isize);
        values::known(state, functions::range(lower as isize, wide(upper), wide(step))?)
    });
    environment.add_function("dict", |state: &State, value: Option<Value>, kwargs: Kwargs| {
        if let Some(value) = &value {
            state.consume_fuel(shape(state, value)?.weight)?;
        }
        let map = functions::dict(value, kwargs)?;
        Map::value(
            state,
            map.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten().collect(),
        )
    });
    environment.add_function("namespace", |state: &State, items: Option<ValueOrKwargs>| {
        let namespace = Namespace::default();
        if let Some(items) = items.map(ValueOrKwargs::into_value) {
            if items.kind() != ValueKind::Map {
                let message = format!("expected object or keyword arguments, got {}", items.kind());
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            for (key, item) in
                items.as_object().and_then(|items| items.try_iter_pairs()).into_iter().flatten()
            {
                if let Some(key) = key.as_str() {
                    namespace.set(state, key, item)?;
                }
            }
        }
        Ok(Value::from_object(namespace))
    });
}

/// What a comparison of several leaves: its result, and what the next one compares with.
fn compared(result: bool, right: Value) -> Result<Value, Error> {
    Ok(Value::from(Tuple::from([Value::from(result), right])))
}

/// Takes the fuel for the text of a value: a list may hold another one many times, and so be short in memory and endless
/// as a text. Some bytes are written as an escape of four.
pub(super) fn charge_text(state: &State, value: &Value) -> Result<(), Error> {
    let weight = shape(state, value)?.weight;
    state.consume_fuel(if value.as_object().is_some() { weight.saturating_mul(4) } else { weight - 1 })
}

/// Takes the fuel for a comparison, which ends with the lighter of the two.
pub(super) fn charge_comparison(state: &State, left: &Value, right: &Value) -> Result<(), Error> {
    state.consume_fuel(shape(state, left)?.weight.min(shape(state, right)?.weight) - 1)
}

/// Fails where there is no fuel for so many bytes, which the engine charges once they are there.
fn ensure_bytes(state: &State, n_bytes: usize) -> Result<(), Error> {
    let fuel = n_bytes as u64 / 64;
    let remaining = state.fuel_levels().map_or(u64::MAX, |(_, remaining)| remaining);
    if fuel < remaining { Ok(()) } else { state.consume_fuel(fuel) }
}

/// Takes the fuel for the fields of a format, each of which may be as wide as the longest number in it, and any argument.
pub(super) fn charge_fields(state: &State, format: &Value, args: &[Value]) -> Result<(), Error> {
    let format = format.as_str().unwrap_or_default();
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widest = numbers.map(|digits| digits.parse().unwrap_or(u64::MAX)).max().unwrap_or(0);
    let mut fuel = 1_u64.saturating_add(widest / 16);
    for arg in args {
        fuel = fuel.saturating_add((shape(state, arg)?.weight - 1).saturating_mul(4));
    }
    state.consume_fuel(fuel.saturating_mul(format.matches(['{', '%']).count() as u64))
}

fn apply_filter(state: &mut State, name: &str, mut args: Vec<Value>) -> Result<Value, Error> {
    let n_items =
        args.first().and_then(Value::as_object).and_then(|list| list.enumerator_len()).unwrap_or(0) as u64;
    let is_one_of = |names: &str| names.split(' ').any(|other| other == name);
    if is_one_of(SHALLOW) || is_one_of(SORTING) {
        // Paths of attributes are followed for each item.
        let path_bytes: u64 = args.iter().skip(1).map(text_bytes).sum();
        state.consume_fuel((1 + n_items).saturating_mul(path_bytes / 16))?;
        // The engine looks for an item of those from the first on.
        if args.first().is_some_and(|value| value.kind() == ValueKind::Iterable) {
            state.consume_fuel(n_items)?;
        }
    }
    // Names of tests and of attributes may be values that it makes texts of, or looks up.
    if is_one_of("\0attr \0map \0reject \0rejectattr \0select \0selectattr") {
        for arg in args.iter().skip(1).filter(|arg| arg.as_object().is_some()) {
            let n_times = if name == "\0map" { 1 + n_items } else { 4 };
            state.consume_fuel(shape(state, arg)?.weight.saturating_mul(n_times))?;
        }
    }
    if is_one_of(TEXTUAL) {
        args.iter().try_for_each(|arg| charge_text(state, arg))?;
    }
    if let Some(value) = args.first() {
        let log = u64::from(u64::BITS - n_items.leading_zeros()) + 1;
        match name {
            _ if is_one_of(SORTING) => {
                state.consume_fuel(shape(state, value)?.weight.saturating_mul(log))?;
            }
            // Each line has the spaces of its level.
            "\0pprint" => {
                let shape = shape(state, value)?;
                state.consume_fuel(shape.weight.saturating_mul(4 * shape.depth as u64))?;
            }
            // Lists are joined one by one, and copied now and then.
            "\0sum" => {
                let of_kwargs = || args.last().filter(|arg| arg.is_kwargs())?.get_attr("start").ok();
                let start = args.get(2).cloned().or_else(of_kwargs).unwrap_or_default();
                if start.as_object().is_some() || start.as_str().is_some() {
                    state.consume_fuel(shape(state, value)?.weight.saturating_mul(1 + n_items / 8))?;
                }
            }
            "\0format" => charge_fields(state, value, &args[1..])?,
            "\0escape" | "\0e" => state.consume_fuel(text_bytes(value) / 16)?,
            "\0split" => return python::method(state, value, "split", &args[1..]),
            _ => {}
        }
    }
    match (name, args.len()) {
        // It calls itself for each level, of texts without end.
        ("\0map", 17..) => return Err(wrong("the filter map takes at most 16 arguments")),
        ("\0map", 2..) => replace_name(&mut args[1], filter),
        ("\0select" | "\0reject", 2..) => replace_name(&mut args[1], test),
        ("\0selectattr" | "\0rejectattr", 3..) => replace_name(&mut args[2], test),
        _ => {}
    }
    let result = state.apply_filter(&name[1..], &args)?;
    values::known(state, result)
}

/// Has the engine call what is guarded.
fn replace_name(name: &mut Value, guarded: fn(&str) -> Option<&'static str>) {
    if let Some(guarded) = name.as_str().and_then(guarded) {
        *name = Value::from(guarded);
    }
}

/// Bytes of a text, or of those that keyword arguments have.
fn text_bytes(value: &Value) -> u64 {
    let pairs = value.as_object().filter(|_| value.is_kwargs()).and_then(|kwargs| kwargs.try_iter_pairs());
    let of_kwargs: u64 = pairs
        .into_iter()
        .flatten()
        .map(|(_, item)| item.as_bytes().map_or(0, |text| text.len() as u64))
        .sum();
    of_kwargs + value.as_bytes().map_or(0, |text| text.len() as u64)
}

fn perform_test(state: &mut State, name: &str, args: &[Value]) -> Result<bool, Error> {
    match (name, args) {
        ("\0in", [value, container]) => charge_search(state, value, container)?,
        ("\0startingwith" | "\0endingwith", _) => args.iter().try_for_each(|arg| charge_text(state, arg))?,
        (_, [left, right]) => charge_comparison(state, left, right)?,
        (_, [value]) => charge_text(state, value)?,
        _ => {}
    }
    state.perform_test(&name[1..], args)
}

/// Takes the fuel for the comparisons of a value with what a container holds; the engine charges each item for one.
pub(super) fn charge_search(state: &State, value: &Value, container: &Value) -> Result<(), Error> {
    match container.as_object() {
        None if container.as_bytes().is_some() => charge_text(state, value),
        None if container.is_undefined() => Ok(()),
        None => Err(wrong("cannot perform a containment check on this value")),
        Some(object) => {
            let weight = shape(state, value)?.weight - 1;
            let n_items = object.enumerator_len().map_or(1, |n| n as u64);
            let most = if weight > 0 { shape(state, container)?.weight } else { 0 };
            state.consume_fuel(weight.saturating_mul(n_items).min(most.max(weight)))
        }
    }
}

fn add(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    let is_list =
        |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !value.is_tuple();
    let is_number = |value: &Value| value.is_number() || value.kind() == ValueKind::Bool;
    if left.kind() == ValueKind::String && right.kind() == ValueKind::String {
        return concat(state, left, right);
    }
    if is_list(&left) && is_list(&right) {
        return values::concatenated(state, &left, &right);
    }
    if left.is_tuple() && right.is_tuple() {
        let mut items = values::items(state, &left)?;
        items.extend(values::items(state, &right)?);
        return values::known(state, Value::from(Tuple::from(items)));
    }
    if is_number(&left) && is_number(&right) {
        return state.apply_filter("sum", &[Value::from(vec![right]), Value::from(()), left]);
    }
    let message =
        format!("tried to use + operator on unsupported types {} and {}", left.kind(), right.kind());
    Err(wrong(message))
}

fn concat(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    let pair = [&left, &right];
    ensure_bytes(state, pair.iter().map(|value| value.as_bytes().map_or(0, <[u8]>::len)).sum())?;
    for value in pair {
        if value.as_object().is_some() {
            charge_text(state, value)?;
        }
    }
    let is_safe = left.is_safe() && right.is_safe();
    if left.is_safe() != right.is_safe() && *state.auto_escape() != AutoEscape::None {
        let mut text = String::new();
        for value in pair {
            match value.as_str().filter(|_| value.is_safe()) {
                Some(safe) => text.push_str(safe),
                None => text.push_str(&state.format(value.clone())?),
            }
        }
        return Ok(Value::from_safe_string(text));
    }
    let text = match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => [left, right].concat(),
        _ => format!("{left}{right}"),
    };
    Ok(if is_safe { Value::from_safe_string(text) } else { Value::from(text) })
}

/// `value[start:stop:step]`.
fn slice(state: &State, value: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    let number = |value: Value| if value.is_none() { Ok(None) } else { i64::try_from(value).map(Some) };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if step == 0 {
        return Err(wrong("cannot slice by step size of 0"));
    }
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64 / 32)?;
            let chars: Vec<char> = text.chars().collect();
            let text: String = indexes(start, stop, step, chars.len()).map(|at| chars[at]).collect();
            Ok(Value::from(text))
        }
        ValueKind::None | ValueKind::Undefined => List::value(state, Vec::new()),
        ValueKind::Seq | ValueKind::Iterable => {
            if let (Some(list), 1, Some(len)) = (value.downcast_object_ref::<List>(), step, value.len()) {
                let (start, stop) = bounds(start, stop, step, len);
                return Ok(list.part(usize::try_from(start).unwrap_or(0), usize::try_from(stop).unwrap_or(0)));
            }
            let items = values::items(state, &value)?;
            let items: Vec<Value> =
                indexes(start, stop, step, items.len()).map(|at| items[at].clone()).collect();
            match value.is_tuple() {
                true => values::known(state, Value::from(Tuple::from(items))),
                false => List::value(state, items),
            }
        }
        kind => Err(wrong(format!("value of type {kind} cannot be sliced"))),
    }
}

/// Where a slice begins, and before what it ends.
fn bounds(start: Option<i64>, stop: Option<i64>, step: i64, len: usize) -> (i64, i64) {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |at: i64| if at < 0 { (at + len).max(low) } else { at.min(high) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    (start.map_or(first, clamp), stop.map_or(last, clamp))
}

fn indexes(start: Option<i64>, stop: Option<i64>, step: i64, len: usize) -> impl Iterator<Item = usize> {
    let (mut at, stop) = bounds(start, stop, step, len);
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        let now = usize::try_from(at).ok().filter(|_| inside)?;
        at = at.saturating_add(step);
        Some(now)
    })
}
