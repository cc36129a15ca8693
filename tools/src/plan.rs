//! Attention plans: from presets and flags, from JSON and back, and as a table.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use longgen::attention::mask::Mask;
use longgen::attention::plan::{LONGGEN_BLOCKS, LONGGEN_SINK, LayerAttention, middle_third, spread_phases};
use longgen::model::config::Config;
use serde_json::{Map, Value, json};

/// The model that a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanShape {
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
}

impl From<&Config> for PlanShape {
    fn from(config: &Config) -> Self {
        Self { n_layers: config.n_layers, n_heads: config.n_heads, n_kv_heads: config.n_kv_heads }
    }
}

/// The flags that choose a plan.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Attention plan")]
pub struct AttentionArgs {
    /// What each layer attends to: full, longgen-sink, longgen-blocks, or a JSON file; without it, what the model says
    #[arg(long, value_name = "PLAN")]
    pub attention: Option<String>,
    /// Tokens of a block, instead of the preset's 64
    #[arg(long, value_name = "TOKENS")]
    pub block: Option<u32>,
    /// Most recent blocks that stay visible, instead of the preset's 32 or 16
    #[arg(long, value_name = "BLOCKS")]
    pub local: Option<u32>,
    /// First blocks that stay visible, instead of the preset's 1 or 0
    #[arg(long, value_name = "BLOCKS")]
    pub sink: Option<u32>,
    /// Distance of the strided blocks, instead of the preset's 0 (none) or 64
    #[arg(long, value_name = "BLOCKS")]
    pub stride: Option<u32>,
    /// Shifts of the strided blocks, one per KV head or query head, instead of evenly spread ones
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub phases: Option<Vec<u32>>,
    /// Layers of a preset that see everything, like 10-21 or 0,10-19, or none; instead of the middle third
    #[arg(long, value_name = "LAYERS")]
    pub full_layers: Option<String>,
}

impl AttentionArgs {
    /// The plan that the flags ask for, or nothing if they leave it to the model.
    ///
    /// # Errors
    /// Flags that do not belong together, numbers out of range, a file that is no plan for this model.
    pub fn plan(&self, shape: PlanShape) -> Result<Option<Vec<LayerAttention>>> {
        if let Some(preset) = self.preset() {
            return self.with_preset(preset, shape).map(Some);
        }
        if let Some(flag) = self.preset_flag() {
            bail!("{flag} changes a preset: it needs --attention longgen-sink or longgen-blocks");
        }
        match self.attention.as_deref() {
            None => Ok(None),
            Some("full") => Ok(Some(full(shape))),
            Some(path) => read_file(Path::new(path), shape).map(Some),
        }
    }

    /// One layer alone as the flags ask for it: of a preset a sparse one, of a file its only one, else one that sees
    /// everything.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan), and KV heads that query heads cannot share evenly.
    pub fn layer(&self, n_heads: usize, n_kv_heads: usize) -> Result<LayerAttention> {
        ensure!(
            n_heads > 0 && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            "{n_heads} query heads cannot share {n_kv_heads} kv heads evenly"
        );
        ensure!(self.full_layers.is_none(), "--full-layers chooses among layers, and there is only one");
        let shape = PlanShape { n_layers: 1, n_heads, n_kv_heads };
        if let Some(preset) = self.preset() {
            return self.sparse_layer(preset, shape);
        }
        let plan = self.plan(shape)?.unwrap_or_else(|| full(shape));
        plan.into_iter().next().context("a plan without layers")
    }

    /// The sparse mask of the preset, if the flags name one.
    fn preset(&self) -> Option<Mask> {
        match self.attention.as_deref() {
            Some("longgen-sink") => Some(LONGGEN_SINK),
            Some("longgen-blocks") => Some(LONGGEN_BLOCKS),
            _ => None,
        }
    }

    /// The first flag given that means something only together with a sparse preset.
    fn preset_flag(&self) -> Option<&'static str> {
        let flags = [
            ("--block", self.block.is_some()),
            ("--local", self.local.is_some()),
            ("--sink", self.sink.is_some()),
            ("--stride", self.stride.is_some()),
            ("--phases", self.phases.is_some()),
            ("--full-layers", self.full_layers.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    fn with_preset(&self, preset: Mask, shape: PlanShape) -> Result<Vec<LayerAttention>> {
        let sparse = self.sparse_layer(preset, shape)?;
        let is_full = match &self.full_layers {
            Some(list) => parse_layers(list, shape.n_layers).context("--full-layers")?,
            None => (0..shape.n_layers).map(|i| middle_third(shape.n_layers).contains(&i)).collect(),
        };
        let full = LayerAttention::uniform(Mask::Full, shape.n_heads);
        Ok(is_full.into_iter().map(|is_full| if is_full { full.clone() } else { sparse.clone() }).collect())
    }

    /// A sparse layer of a preset, with the numbers that the flags change.
    fn sparse_layer(&self, preset: Mask, shape: PlanShape) -> Result<LayerAttention> {
        let Mask::Blocks { block_size, local_blocks, sink_blocks, stride } = preset else {
            return Ok(LayerAttention::uniform(preset, shape.n_heads));
        };
        let stride = self.stride.unwrap_or(stride);
        let mask = Mask::Blocks {
            block_size: self.block.unwrap_or(block_size),
            local_blocks: self.local.unwrap_or(local_blocks),
            sink_blocks: self.sink.unwrap_or(sink_blocks),
            stride,
        };
        let phases = match &self.phases {
            Some(phases) => per_query_head(phases.clone(), shape).context("--phases")?,
            None => spread_phases(stride, shape.n_heads, shape.n_kv_heads),
        };
        let sparse = LayerAttention { mask, phases };
        sparse.check(shape.n_heads).context("attention flags")?;
        Ok(sparse)
    }
}

/// The plan whose layers all see everything.
pub fn full(shape: PlanShape) -> Vec<LayerAttention> {
    vec![LayerAttention::uniform(Mask::Full, shape.n_heads); shape.n_layers]
}

/// Which of `n_layers` layers a list like `0,10-19` names; ranges include their end, `none` names no layer.
fn parse_layers(list: &str, n_layers: usize) -> Result<Vec<bool>> {
    let mut named = vec![false; n_layers];
    if list == "none" {
        return Ok(named);
    }
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let layer = |text: &str| {
            let layer: Result<usize, _> = text.trim().parse();
            layer.map_err(|_| anyhow!("{part:?} is no layer and no range of layers like 10-21"))
        };
        let (first, last) = (layer(first)?, layer(last)?);
        ensure!(first <= last, "{part:?} ends before it begins");
        ensure!(last < n_layers, "layer {last}: the model has {n_layers}, 0 to {}", n_layers - 1);
        named[first..=last].fill(true);
    }
    Ok(named)
}

/// Phases of all query heads, from one number for each of them or for each KV head.
fn per_query_head(phases: Vec<u32>, shape: PlanShape) -> Result<Vec<u32>> {
    let PlanShape { n_heads, n_kv_heads, .. } = shape;
    match phases.len() {
        n if n == n_heads => Ok(phases),
        n if n == n_kv_heads => {
            Ok(phases.iter().flat_map(|&phase| std::iter::repeat_n(phase, n_heads / n_kv_heads)).collect())
        }
        n => bail!("{n} numbers, expected {n_heads} (query heads) or {n_kv_heads} (kv heads)"),
    }
}

fn read_file(path: &Path, shape: PlanShape) -> Result<Vec<LayerAttention>> {
    let presets = "a plan is full, longgen-sink, longgen-blocks or a JSON file";
    let text = std::fs::read_to_string(path).with_context(|| format!("{} ({presets})", path.display()))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    from_json(&value, shape).with_context(|| path.display().to_string())
}

/// The plan in `{"attention": [..]}`, one object per layer, or in such an object under `"longgen"`.
///
/// # Errors
/// Whatever is missing, unknown, of the wrong type or out of range, with its path.
pub fn from_json(value: &Value, shape: PlanShape) -> Result<Vec<LayerAttention>> {
    let value = value.get("longgen").unwrap_or(value);
    let object = value.as_object().ok_or_else(|| wrong("plan", "an object", value))?;
    if let Some(unknown) = object.keys().find(|key| *key != "attention") {
        bail!("{unknown}: unknown field, a plan has only attention");
    }
    let layers = object.get("attention").context("attention is missing")?;
    let layers = layers.as_array().ok_or_else(|| wrong("attention", "a list", layers))?;
    let PlanShape { n_layers, .. } = shape;
    ensure!(layers.len() == n_layers, "attention: {} layers, the model has {n_layers}", layers.len());
    layers.iter().enumerate().map(|(i, layer)| layer_from_json(layer, i, shape)).collect()
}

fn layer_from_json(value: &Value, i: usize, shape: PlanShape) -> Result<LayerAttention> {
    let path = format!("attention[{i}]");
    let object = value.as_object().ok_or_else(|| wrong(&path, "an object", value))?;
    let fields = Fields { path: &path, object };
    let (mask, phases) = match fields.kind()? {
        "full" => {
            fields.refuse_others(&[])?;
            (Mask::Full, None)
        }
        "window" => {
            fields.refuse_others(&["window_tokens", "sink_tokens"])?;
            let window_tokens = fields.require_u32("window_tokens")?;
            (Mask::Window { window_tokens, sink_tokens: fields.u32_or_0("sink_tokens")? }, None)
        }
        "blocks" => {
            fields.refuse_others(&["block_size", "local_blocks", "sink_blocks", "stride", "phases"])?;
            let mask = Mask::Blocks {
                block_size: fields.require_u32("block_size")?,
                local_blocks: fields.require_u32("local_blocks")?,
                sink_blocks: fields.u32_or_0("sink_blocks")?,
                stride: fields.u32_or_0("stride")?,
            };
            (mask, fields.phases()?)
        }
        other => bail!("{path}.kind: {other:?}, expected full, window or blocks"),
    };
    let layer = match phases {
        Some(phases) => {
            let phases = per_query_head(phases, shape).with_context(|| format!("{path}.phases"))?;
            LayerAttention { mask, phases }
        }
        None => LayerAttention::uniform(mask, shape.n_heads),
    };
    layer.check(shape.n_heads).map_err(|error| anyhow!("{path}.{error}"))?;
    Ok(layer)
}

/// The fields of one layer.
struct Fields<'a> {
    path: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn kind(&self) -> Result<&'a str> {
        let kind = self.object.get("kind").with_context(|| format!("{}.kind is missing", self.path))?;
        kind.as_str().ok_or_else(|| wrong(&format!("{}.kind", self.path), "a string", kind))
    }

    fn refuse_others(&self, known: &[&str]) -> Result<()> {
        match self.object.keys().find(|key| *key != "kind" && !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) if known.is_empty() => bail!("{}.{key}: unknown field, this kind has none", self.path),
            Some(key) => bail!("{}.{key}: unknown field, this kind has {}", self.path, known.join(", ")),
        }
    }

    fn opt_u32(&self, name: &str) -> Result<Option<u32>> {
        self.object.get(name).map(|value| whole_number(value, &format!("{}.{name}", self.path))).transpose()
    }

    fn require_u32(&self, name: &str) -> Result<u32> {
        self.opt_u32(name)?.with_context(|| format!("{}.{name} is missing", self.path))
    }

    fn u32_or_0(&self, name: &str) -> Result<u32> {
        Ok(self.opt_u32(name)?.unwrap_or(0))
    }

    fn phases(&self) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.object.get("phases") else { return Ok(None) };
        let path = format!("{}.phases", self.path);
        let list = value.as_array().ok_or_else(|| wrong(&path, "a list", value))?;
        let phase = |(i, value)| whole_number(value, &format!("{path}[{i}]"));
        list.iter().enumerate().map(phase).collect::<Result<_>>().map(Some)
    }
}

fn whole_number(value: &Value, path: &str) -> Result<u32> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| wrong(path, "a whole number below 2^32", value))
}

fn wrong(path: &str, expected: &str, found: &Value) -> anyhow::Error {
    let found = match found {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        value => shown(value),
    };
    anyhow!("{path}: expected {expected}, found {found}")
}

/// A JSON value as errors show it: its beginning, for it may be anything.
pub(crate) fn shown(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

/// The layers of a plan in the words of a JSON plan: what goes under `"attention"`.
pub fn to_json(plan: &[LayerAttention]) -> Value {
    let layer = |layer: &LayerAttention| match layer.mask {
        Mask::Full => json!({"kind": layer.kind()}),
        Mask::Window { window_tokens, sink_tokens } => {
            json!({"kind": layer.kind(), "window_tokens": window_tokens, "sink_tokens": sink_tokens})
        }
        Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => json!({
            "kind": layer.kind(), "block_size": block_size, "local_blocks": local_blocks,
            "sink_blocks": sink_blocks, "stride": stride, "phases": layer.phases,
        }),
    };
    plan.iter().map(layer).collect()
}

/// Layers in a row that attend alike.
pub fn groups(plan: &[LayerAttention]) -> Vec<(Range<usize>, &LayerAttention)> {
    let mut begin = 0;
    let group = |layers: &[LayerAttention]| {
        let range = begin..begin + layers.len();
        begin = range.end;
        range
    };
    plan.chunk_by(|a, b| a == b)
        .map(group)
        .zip(plan.chunk_by(|a, b| a == b).map(|layers| &layers[0]))
        .collect()
}

/// A plan as lines of text, one for each group of layers; `note` adds something to the line of a group.
pub fn table(plan: &[LayerAttention], note: impl Fn(Range<usize>) -> String) -> String {
    let mut text = String::new();
    for (layers, layer) in groups(plan) {
        let line = format!("  layers {:<8} {:<7} {}", span(&layers), layer.kind(), describe(layer));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", format!("{line:<66}  {}", note(layers)).trim_end());
    }
    text
}

/// Consecutive layers, by their numbers.
fn span(layers: &Range<usize>) -> String {
    match layers.len() {
        1 => layers.start.to_string(),
        _ => format!("{}-{}", layers.start, layers.end - 1),
    }
}

/// Layers, rising, by their numbers.
pub fn spans(layers: &[usize]) -> String {
    let runs = layers.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| span(&(run[0]..run[0] + run.len()))).collect::<Vec<_>>().join(", ")
}

/// What a query of the layer sees, in words.
fn describe(layer: &LayerAttention) -> String {
    match layer.mask {
        Mask::Full => "everything".to_owned(),
        Mask::Window { window_tokens, sink_tokens: 0 } => format!("the last {window_tokens} tokens"),
        Mask::Window { window_tokens, sink_tokens } => {
            format!("the first {sink_tokens} and the last {window_tokens} tokens")
        }
        Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
            let first = if sink_blocks > 0 { format!("first {sink_blocks}, ") } else { String::new() };
            let mut text = format!("blocks of {block_size}: {first}last {local_blocks}");
            if stride > 0 {
                let phases: Vec<_> =
                    layer.phases.chunk_by(|a, b| a == b).map(|run| run[0].to_string()).collect();
                let _ = write!(text, ", 1 in {stride} (phases {})", phases.join(" "));
            }
            text
        }
    }
}
