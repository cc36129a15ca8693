//! What is in a model file or in a Hugging Face folder, for people and for programs.

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use longgen::attention::plan::LayerAttention;
use longgen::backend::args::KvShape;
use longgen::kv::slots::SlotMap;
use longgen::model::config::Config;
use longgen::weights::{Load, WeightFile};
use longgen_format::{Array, Directory, Metadata, TensorInfo, Value, Writer, keys};
use serde_json::json;

use crate::convert;
use crate::convert::source::{Source, SourceTensor};
use crate::plan::{self, PlanShape};
use crate::run_args::{KvArg, name};

/// Characters of a terminal's line.
const LINE_CHARS: usize = 80;
/// Fewest characters that are shown of a value.
const SHOWN_CHARS: usize = 24;

/// A model to be looked at: nothing of it is computed with.
pub struct Contents {
    /// Where it is.
    path: String,
    /// GGUF version, alignment and bytes, of a file.
    file: Option<(u32, u64, u64)>,
    /// Keys and values, as JSON and on a line.
    metadata: Vec<(String, serde_json::Value, String)>,
    tensors: Vec<Tensor>,
    /// What the layers attend to, or why that is not known.
    plan: std::result::Result<Plan, String>,
}

struct Tensor {
    name: String,
    ty: String,
    shape: Vec<u64>,
    n_bytes: u64,
    /// Where it begins in a file.
    offset: Option<u64>,
    hash: Option<String>,
}

/// Everything that the size of a cache depends on.
struct Plan {
    attention: Vec<LayerAttention>,
    shape: PlanShape,
    head_dim: usize,
}

/// The cache that is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Tokens of its context.
    pub n_ctx: u32,
    /// Element type.
    pub kv: KvArg,
}

impl Contents {
    /// Looks at a file, or at a folder under the names that its parts get in one.
    ///
    /// # Errors
    /// A file that cannot be read, a folder that cannot be converted.
    pub fn open(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => Self::of_folder(path),
            false => Self::of_file(path),
        }
    }

    fn of_file(path: &Path) -> Result<Self> {
        let bytes = longgen::weights::open(path, Load::Map)?;
        let path = path.display().to_string();
        let directory = Directory::read((*bytes).as_ref()).with_context(|| path.clone())?;
        let hashes = directory.metadata.opt_strs(keys::HASH_TENSORS)?.unwrap_or_default();
        let tensor = |(i, tensor): (usize, &TensorInfo<'_>)| Tensor {
            name: tensor.name().to_owned(),
            ty: tensor.type_name().to_owned(),
            shape: tensor.shape().to_vec(),
            n_bytes: tensor.n_bytes(),
            offset: Some(tensor.offset()),
            hash: hashes.get(i).map(|&hash| hash.to_owned()),
        };
        let plan = |config: Config| Plan {
            shape: (&config).into(),
            head_dim: config.head_dim,
            attention: config.attention,
        };
        let config = Config::read(&WeightFile { bytes: &bytes, directory: &directory });
        Ok(Self {
            path,
            file: Some((directory.version(), directory.alignment(), (*bytes).as_ref().len() as u64)),
            metadata: pairs(&directory.metadata),
            tensors: directory.tensors().iter().enumerate().map(tensor).collect(),
            plan: config.map(plan).map_err(|error| error.to_string()),
        })
    }

    fn of_folder(path: &Path) -> Result<Self> {
        let Source { dims, metadata, tensors, attention, .. } = convert::open(path)?;
        let shape = PlanShape::from(&dims);
        let tensor = |tensor: SourceTensor| Tensor {
            ty: tensor.ty.to_string(),
            n_bytes: tensor.bytes().len() as u64,
            name: tensor.name,
            shape: tensor.shape,
            offset: None,
            hash: None,
        };
        // A file of nothing but keys: values are read from files.
        let file = Writer::new(Cursor::new(Vec::new()), metadata, Vec::new())?.finish()?.into_inner();
        let mut metadata = pairs(&Directory::read(&file)?.metadata);
        metadata.retain(|(key, ..)| !key.starts_with("longgen.hash.") && key != keys::GENERAL_ALIGNMENT);
        Ok(Self {
            path: path.display().to_string(),
            file: None,
            metadata,
            tensors: tensors.into_iter().map(tensor).collect(),
            plan: Ok(Plan {
                attention: attention.unwrap_or_else(|| plan::full(shape)),
                shape,
                head_dim: dims.head_dim,
            }),
        })
    }

    /// Everything as text of lines that a terminal has room for where possible; with `cache`, also the bytes of that.
    pub fn text(&self, cache: Option<Cache>) -> String {
        let n_bytes = self.tensors.iter().map(|tensor| tensor.n_bytes).sum();
        let what = match self.file {
            Some((version, _, n_bytes)) => format!("GGUF version {version}, {}", size(n_bytes)),
            None => "Hugging Face folder, under the names of a model file".to_owned(),
        };
        let mut text = format!("{}: {what}\n\nmetadata ({} keys)\n", self.path, self.metadata.len());
        // Writing to a string cannot fail.
        for (key, _, shown) in &self.metadata {
            let _ = writeln!(text, "  {key} = {shown}");
        }
        let _ = writeln!(text, "\ntensors ({}, {})", self.tensors.len(), size(n_bytes));
        for Tensor { name, ty, shape, n_bytes, .. } in &self.tensors {
            let shape: Vec<_> = shape.iter().map(u64::to_string).collect();
            let _ = writeln!(text, "  {name:<32} {ty:<6} {:<16} {:>12}", shape.join(" x "), size(*n_bytes));
        }
        text.push_str("\nattention\n");
        match (&self.plan, cache) {
            (Err(error), _) => {
                let _ = writeln!(text, "  unknown: {error}");
            }
            (Ok(plan), None) => text.push_str(&plan::table(&plan.attention, |_| String::new())),
            (Ok(plan), Some(cache)) => text.push_str(&plan.text(cache)),
        }
        text
    }

    /// The same for programs: `attention` holds the layers in the words of a JSON plan, or null if the runtime does not
    /// know the file.
    pub fn json(&self, cache: Option<Cache>) -> serde_json::Value {
        let metadata = self.metadata.iter().map(|(key, value, _)| (key.clone(), value.clone()));
        let tensor = |tensor: &Tensor| {
            let Tensor { name, ty, shape, n_bytes, offset, hash } = tensor;
            json!({
                "name": name, "type": ty, "shape": shape, "offset": offset, "bytes": n_bytes, "hash": hash,
            })
        };
        let plan = self.plan.as_ref().ok();
        let mut shown = json!({
            "gguf_version": self.file.map(|(version, ..)| version),
            "alignment": self.file.map(|(_, alignment, _)| alignment),
            "bytes": self.file.map(|(.., n_bytes)| n_bytes),
            "metadata": metadata.collect::<serde_json::Map<_, _>>(),
            "tensors": self.tensors.iter().map(tensor).collect::<Vec<_>>(),
            "attention": plan.map(|plan| plan::to_json(&plan.attention)),
        });
        if let Some(cache) = cache {
            shown["kv_bytes"] = plan.map(|plan| plan.json(cache)).into();
        }
        shown
    }
}

impl Plan {
    /// Bytes of the keys and values of each layer if the layers attended like this: what a session allocates for them.
    fn kv_bytes(&self, attention: &[LayerAttention], cache: Cache) -> Vec<u64> {
        let Self { shape: PlanShape { n_kv_heads, .. }, head_dim, .. } = *self;
        let heads = u32::try_from(n_kv_heads).unwrap_or(u32::MAX);
        let of_layer = |layer: &LayerAttention| {
            let block_size = layer.mask.block_size() as usize;
            let block = KvShape { n_kv_heads, head_dim, block_size, ty: cache.kv.into() };
            let slots = SlotMap::new(&layer.mask, &layer.phases, heads, cache.n_ctx)
                .expect("room for a few numbers a head");
            u64::from(slots.n_slots()) * block.block_bytes() as u64
        };
        attention.iter().map(of_layer).collect()
    }

    /// What they would be if all layers saw everything.
    fn full_kv_bytes(&self, cache: Cache) -> u64 {
        self.kv_bytes(&plan::full(self.shape), cache).iter().sum()
    }

    fn text(&self, cache: Cache) -> String {
        let own = self.kv_bytes(&self.attention, cache);
        let mut text = plan::table(&self.attention, |layers| size(own[layers].iter().sum()));
        let (n_ctx, kv) = (cache.n_ctx, name(&cache.kv));
        let (own, full) = (size(own.iter().sum()), size(self.full_kv_bytes(cache)));
        let _ = writeln!(text, "  kv cache of {n_ctx} tokens in {kv}: {own}, with full attention {full}");
        text
    }

    fn json(&self, cache: Cache) -> serde_json::Value {
        let own = self.kv_bytes(&self.attention, cache);
        json!({
            "n_ctx": cache.n_ctx, "type": name(&cache.kv),
            "layers": own, "total": own.iter().sum::<u64>(), "full": self.full_kv_bytes(cache),
        })
    }
}

fn pairs(metadata: &Metadata<'_>) -> Vec<(String, serde_json::Value, String)> {
    let pair = |(key, value): (&str, &Value<'_>)| {
        let room = LINE_CHARS.saturating_sub(format!("  {key} = ").chars().count()).max(SHOWN_CHARS);
        (key.to_owned(), to_json(value), shown(value, room))
    };
    metadata.iter().map(pair).collect()
}

fn to_json(value: &Value<'_>) -> serde_json::Value {
    match *value {
        Value::UInt(_, x) => x.into(),
        Value::Int(_, x) => x.into(),
        Value::Float(_, x) => x.into(),
        Value::Bool(x) => x.into(),
        Value::Str(x) => x.into(),
        Value::Array(array) => array.iter().map(|value| to_json(&value)).collect(),
    }
}

/// A value in at most about `room` characters.
fn shown(value: &Value<'_>, room: usize) -> String {
    match value {
        Value::UInt(_, x) => x.to_string(),
        Value::Int(_, x) => x.to_string(),
        Value::Float(_, x) => x.to_string(),
        Value::Bool(x) => x.to_string(),
        Value::Str(x) => shown_text(x, room),
        Value::Array(array) => shown_array(array, room),
    }
}

fn shown_text(text: &str, room: usize) -> String {
    let whole = format!("{text:?}");
    let length = format!("... ({} bytes)", text.len());
    match whole.chars().count() > room {
        false => whole,
        true => whole.chars().take(room.saturating_sub(length.len())).chain(length.chars()).collect(),
    }
}

fn shown_array(array: &Array<'_>, room: usize) -> String {
    let length = format!("] ({} x {})", array.len(), array.element_type());
    let room = room.saturating_sub("[, ...".len() + length.len());
    let mut text = "[".to_owned();
    for (i, value) in array.iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        let item = shown(&value, room);
        if i > 0 && text.chars().count() + comma.len() + item.chars().count() > room {
            text.push_str(", ...");
            break;
        }
        let _ = write!(text, "{comma}{item}");
    }
    text + &length
}

/// A number of bytes in the unit that suits it.
pub fn size(n_bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| n_bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", n_bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{n_bytes} B"),
    }
}
