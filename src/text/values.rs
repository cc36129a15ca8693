//! What templates make of lists, maps and namespaces. The engine frees, compares and prints values as deep and as often as
//! they hold others, so each of ours knows its shape, and none holds itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Most levels of lists and maps in a value.
pub(super) const MAX_DEPTH: usize = 100;

/// Most names of a namespace, which the engine collects each time that it goes through them.
const MAX_NAMES: usize = 1000;

/// What it takes to walk through a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Levels of lists and maps.
    pub depth: usize,
    /// One for each value that it holds, as often as it holds it, and one for each 64 bytes of texts.
    pub weight: u64,
}

impl Shape {
    /// Of a list or a map that holds this, too.
    fn with(self, item: Shape) -> Result<Shape, Error> {
        let shape =
            Shape { depth: self.depth.max(item.depth + 1), weight: self.weight.saturating_add(item.weight) };
        if shape.depth > MAX_DEPTH {
            return Err(wrong(format!("a value is nested more than {MAX_DEPTH} deep")));
        }
        Ok(shape)
    }
}

const EMPTY: Shape = Shape { depth: 1, weight: 1 };

pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The shape of a value that stands by itself: a namespace may, and a loop.
pub(super) fn shape(state: &State, value: &Value) -> Result<Shape, Error> {
    match value.downcast_object_ref::<Namespace>() {
        Some(namespace) => {
            let items: Vec<Value> = namespace.items().values().cloned().collect();
            shape_of_items(state, &items)
        }
        None if is_loop(value) => Ok(EMPTY),
        None => shape_of_item(state, value, 0),
    }
}

/// The shape of what a list of these has. Neither namespaces nor loops can be in it: they could come to hold the list.
pub(super) fn shape_of_items(state: &State, items: &[Value]) -> Result<Shape, Error> {
    items.iter().try_fold(EMPTY, |shape, item| shape.with(shape_of_item(state, item, 1)?))
}

/// Takes fuel for each value that does not know its own shape.
pub(super) fn shape_of_item(state: &State, value: &Value, level: usize) -> Result<Shape, Error> {
    let object = match (known_shape(value), value.as_object()) {
        (Some(shape), _) => return Ok(shape),
        (None, Some(object)) => object,
        (None, None) => return Ok(EMPTY),
    };
    if level > MAX_DEPTH {
        return Err(wrong(format!("a value is nested more than {MAX_DEPTH} deep")));
    }
    if object.downcast_ref::<Namespace>().is_some() || is_loop(value) {
        return Err(wrong("a list, a map or a namespace cannot hold a namespace or a loop"));
    }
    let mut shape = EMPTY;
    if object.repr() == ObjectRepr::Map {
        for (key, item) in object.try_iter_pairs().into_iter().flatten() {
            state.consume_fuel(1)?;
            shape = shape.with(shape_of_item(state, &key, level + 1)?)?;
            shape = shape.with(shape_of_item(state, &item, level + 1)?)?;
        }
    } else {
        for item in object.try_iter().into_iter().flatten() {
            state.consume_fuel(1)?;
            shape = shape.with(shape_of_item(state, &item, level + 1)?)?;
        }
    }
    Ok(shape)
}

/// The engine's variable `loop`, whose type has no name outside of it.
fn is_loop(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::loop_object::Loop"))
}

/// A list: the beginning of a buffer that longer lists share, so that a template which adds message by message to a list
/// takes linear time. All lists of a buffer are of one depth; so none can hold one of the others.
#[derive(Debug)]
pub(super) struct List {
    buffer: Arc<Mutex<Vec<Value>>>,
    start: usize,
    end: usize,
    shape: Shape,
}

impl List {
    /// Takes the fuel for its memory.
    pub(super) fn value(state: &State, items: Vec<Value>) -> Result<Value, Error> {
        charge_slots(state, items.len())?;
        let shape = shape_of_items(state, &items)?;
        Ok(Self::of(items, shape))
    }

    fn of(items: Vec<Value>, shape: Shape) -> Value {
        let end = items.len();
        Value::from_object(List { buffer: Arc::new(Mutex::new(items)), start: 0, end, shape })
    }

    fn items(&self) -> MutexGuard<'_, Vec<Value>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the items behind its own.
    fn extended(&self, state: &State, items: Vec<Value>) -> Result<Value, Error> {
        charge_slots(state, items.len())?;
        let added = shape_of_items(state, &items)?;
        let shape = Shape {
            depth: self.shape.depth.max(added.depth),
            weight: self.shape.weight.saturating_add(added.weight),
        };
        let mut buffer = self.items();
        if buffer.len() == self.end && shape.depth == self.shape.depth {
            buffer.extend(items);
            let end = buffer.len();
            return Ok(Value::from_object(List {
                buffer: self.buffer.clone(),
                start: self.start,
                end,
                shape,
            }));
        }
        charge_slots(state, self.end - self.start)?;
        let mut copy = Vec::with_capacity(self.end - self.start + items.len());
        copy.extend_from_slice(&buffer[self.start..self.end]);
        copy.extend(items);
        Ok(Self::of(copy, shape))
    }

    /// The items from `start` to `end`, without a copy.
    pub(super) fn part(&self, start: usize, end: usize) -> Value {
        let [start, end] = [start, end.max(start)].map(|at| (self.start + at).min(self.end));
        Value::from_object(List { buffer: self.buffer.clone(), start, end, shape: self.shape })
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.start.checked_add(key.as_usize()?)?;
        if at < self.end { self.items().get(at).cloned() } else { None }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.end - self.start)
    }
}

/// The two lists in one.
pub(super) fn concatenated(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let right = items(state, right)?;
    match left.downcast_object_ref::<List>() {
        Some(list) => list.extended(state, right),
        None => {
            let mut left = items(state, left)?;
            left.extend(right);
            List::value(state, left)
        }
    }
}

/// The items of a list or of what else can be iterated over.
pub(super) fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        charge_slots(state, 1)?;
        items.push(item?);
    }
    Ok(items)
}

/// A value that knows its shape where the engine made a list that does not. Fails where it is nested too deep.
pub(super) fn known(state: &State, value: Value) -> Result<Value, Error> {
    let is_list = value.kind() == ValueKind::Iterable || value.downcast_object_ref::<Vec<Value>>().is_some();
    if is_list {
        return List::value(state, items(state, &value)?);
    }
    if value.is_tuple() || value.is_kwargs() {
        shape_of_call(state, &value)?;
    }
    Ok(value)
}

/// Keyword arguments may hold namespaces and loops, since no list and no map holds them.
fn shape_of_call(state: &State, value: &Value) -> Result<(), Error> {
    for item in value.as_object().and_then(DynObject::try_iter_pairs).into_iter().flatten() {
        state.consume_fuel(1)?;
        match value.is_kwargs() {
            true => shape(state, &item.1)?,
            false => shape_of_item(state, &item.1, 1)?,
        };
    }
    if value.is_tuple() {
        shape_of_item(state, value, 0)?;
    }
    Ok(())
}

/// A map that knows its shape.
#[derive(Debug)]
pub(super) struct Map {
    inner: DynObject,
    shape: Shape,
}

impl Map {
    /// Takes the fuel for its memory, and for its keys, which are hashed.
    pub(super) fn value(state: &State, pairs: Vec<(Value, Value)>) -> Result<Value, Error> {
        charge_slots(state, pairs.len().saturating_mul(2))?;
        let mut shape = EMPTY;
        for (key, item) in &pairs {
            let key = shape_of_item(state, key, 1)?;
            state.consume_fuel(key.weight)?;
            shape = shape.with(key)?.with(shape_of_item(state, item, 1)?)?;
        }
        Ok(Self::of(pairs, shape))
    }

    fn of(pairs: Vec<(Value, Value)>, shape: Shape) -> Value {
        let inner = Value::from_pairs(pairs);
        match inner.as_object().cloned() {
            Some(inner) => Value::from_object(Map { inner, shape }),
            None => inner,
        }
    }
}

impl Object for Map {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.inner.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.inner.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.inner.enumerate()
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.inner.enumerator_len()
    }
}

/// What the function `namespace` makes: the only thing that a template can change.
#[derive(Debug, Default)]
pub(super) struct Namespace(Mutex<BTreeMap<Arc<str>, Value>>);

impl Namespace {
    fn items(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, state: &State, name: &str, value: Value) -> Result<(), Error> {
        charge_slots(state, 4)?;
        shape_of_item(state, &value, 1)?;
        let mut items = self.items();
        if items.len() >= MAX_NAMES && !items.contains_key(name) {
            return Err(wrong(format!("a namespace has more than {MAX_NAMES} names")));
        }
        items.insert(name.into(), value);
        Ok(())
    }
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.items().get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items().keys().cloned().map(Value::from).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items().len())
    }
}

/// A list that a template is given. It may be deeper than those that it makes itself.
pub(super) fn list(items: Vec<Value>) -> Value {
    let shape = shape_of_given(items.iter());
    List::of(items, shape)
}

/// A map that a template is given.
pub(super) fn map(pairs: Vec<(Value, Value)>) -> Value {
    let shape = shape_of_given(pairs.iter().flat_map(|(key, item)| [key, item]));
    Map::of(pairs, shape)
}

fn shape_of_given<'a>(items: impl Iterator<Item = &'a Value>) -> Shape {
    items.fold(EMPTY, |shape, item| {
        let item = known_shape(item).unwrap_or(EMPTY);
        Shape { depth: shape.depth.max(item.depth + 1), weight: shape.weight.saturating_add(item.weight) }
    })
}

/// Without a walk.
fn known_shape(value: &Value) -> Option<Shape> {
    let Some(object) = value.as_object() else {
        return Some(Shape {
            depth: 0,
            weight: 1 + value.as_bytes().map_or(0, |text| text.len() as u64 / 64),
        });
    };
    let list = object.downcast_ref().map(|list: &List| list.shape);
    list.or_else(|| object.downcast_ref().map(|map: &Map| map.shape))
}

/// What a template is given as JSON.
pub(super) fn from_json(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Array(items) => list(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(pairs) => {
            map(pairs.into_iter().map(|(key, item)| (Value::from(key), from_json(item))).collect())
        }
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(bool) => Value::from(bool),
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

/// Slots of a list are two for one fuel, as the engine's own are.
fn charge_slots(state: &State, n: usize) -> Result<(), Error> {
    state.consume_fuel((n as u64).div_ceil(2))
}
