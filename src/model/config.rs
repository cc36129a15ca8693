//! The numbers of a model, read from its file once, checked, and trusted from then on.

use longgen_format::{Metadata, Value, keys};

use crate::alloc::{try_collect, try_collect_ok, try_vec};
use crate::attention::mask::Mask;
use crate::attention::plan::{LayerAttention, MAX_CTX};
use crate::backend::args::{Activation, RopePairing};
use crate::error::{Error, Result};
use crate::model::llama;
use crate::weights::WeightFile;

/// Bound of every dimension: products of three of them fit in 64 bits.
pub const MAX_DIM: u32 = 1 << 21;
/// Most layers of a model.
pub const MAX_LAYERS: u32 = 1 << 12;
/// Most elements of a head.
pub const MAX_HEAD_DIM: u32 = 512;
/// Most tokens of a vocabulary.
pub const MAX_VOCAB: u32 = MAX_DIM * 8;

/// Name of the divisors of the rotary frequencies.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// Rotary position embedding.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    /// Rotation per position of each pair, in radians; half as many as elements of a head that turn.
    pub inv_freq: Vec<f32>,
    /// Factor of cosines and sines.
    pub attention_factor: f32,
    /// Which elements make a pair.
    pub pairing: RopePairing,
}

/// Everything about a model but its weights and its vocabulary.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Architecture that the file names: `longgen`, `llama` for a plain GGUF, or any if only the text was opened.
    pub architecture: String,
    /// Name of the model, if its file gives one.
    pub name: Option<String>,
    /// Layers.
    pub n_layers: usize,
    /// Elements of the residual stream.
    pub d_model: usize,
    /// Elements of the gated unit.
    pub d_ff: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads; query heads share them in equal groups in order.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub n_vocab: usize,
    /// Longest context that the model was trained for.
    pub n_ctx_train: u32,
    /// Added to the mean square in norms.
    pub norm_eps: f32,
    /// Factor of the embedding's rows.
    pub embedding_scale: f32,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Function of the gated unit.
    pub activation: Activation,
    /// Position embedding.
    pub rope: Rope,
    /// What each layer may look at.
    pub attention: Vec<LayerAttention>,
}

impl Config {
    /// What can be said of a model that is opened for its text alone: names. All numbers are 0.
    ///
    /// # Errors
    /// `Format` for a file that does not say what it is.
    pub(super) fn of_text(metadata: &Metadata<'_>) -> Result<Self> {
        Ok(Self {
            architecture: metadata.require_str(keys::GENERAL_ARCHITECTURE)?.to_owned(),
            name: metadata.opt_str("general.name")?.map(str::to_owned),
            ..Self::default()
        })
    }

    /// Reads the numbers of a LongGen file or of a plain `llama` GGUF.
    ///
    /// # Errors
    /// `Format` naming the key that is missing or wrong, `Unsupported` naming what this runtime does not know.
    pub fn read(file: &WeightFile<'_>) -> Result<Self> {
        let metadata = &file.directory.metadata;
        let architecture = metadata.require_str(keys::GENERAL_ARCHITECTURE)?;
        match architecture {
            "longgen" => {
                let version = metadata.require_u32(keys::FORMAT_VERSION)?;
                if version != keys::CURRENT_FORMAT_VERSION {
                    return Err(Error::unsupported(format!(
                        "{}: version {version}, this runtime reads {}",
                        keys::FORMAT_VERSION,
                        keys::CURRENT_FORMAT_VERSION
                    )));
                }
                refuse_unknown_keys(metadata)?;
            }
            "llama" => llama::check_keys(metadata)?,
            other => {
                return Err(Error::unsupported(format!(
                    "architecture {other:?}: this runtime reads longgen files and plain llama ones; lgconvert may know it"
                )));
            }
        }
        Reader { metadata, prefix: architecture }.config(file)
    }
}

struct Reader<'a> {
    metadata: &'a Metadata<'a>,
    prefix: &'a str,
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn dim(&self, name: &str, max: u32) -> Result<usize> {
        self.in_range(name, self.metadata.require_u32(&self.key(name))?, max)
    }

    fn in_range(&self, name: &str, value: u32, max: u32) -> Result<usize> {
        match (1..=max).contains(&value) {
            true => Ok(value as usize),
            false => Err(Error::format(format!("{}: {value} is not within 1..={max}", self.key(name)))),
        }
    }

    fn positive(&self, name: &str, value: f32) -> Result<f32> {
        match value.is_finite() && value > 0.0 {
            true => Ok(value),
            false => Err(Error::format(format!("{}: {value} is not a positive number", self.key(name)))),
        }
    }

    fn config(&self, file: &WeightFile<'_>) -> Result<Config> {
        let metadata = self.metadata;
        let n_layers = self.dim("block_count", MAX_LAYERS)?;
        let d_model = self.dim("embedding_length", MAX_DIM)?;
        let n_heads = self.dim("attention.head_count", MAX_DIM)?;
        let n_kv_heads = match metadata.opt_u32(&self.key("attention.head_count_kv"))? {
            Some(n) => self.in_range("attention.head_count_kv", n, MAX_DIM)?,
            None => n_heads,
        };
        if n_heads % n_kv_heads != 0 {
            return Err(Error::format(format!("{n_heads} query heads cannot share {n_kv_heads} kv heads")));
        }
        let head_dim = match metadata.opt_u32(&self.key("attention.key_length"))? {
            Some(n) => self.in_range("attention.key_length", n, MAX_DIM)?,
            None if d_model % n_heads == 0 => d_model / n_heads,
            None => return Err(Error::format(format!("{n_heads} heads cannot share {d_model} elements"))),
        };
        if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM as usize {
            return Err(Error::unsupported(format!(
                "heads of {head_dim} elements: even numbers up to {MAX_HEAD_DIM} work"
            )));
        }
        let value_length = metadata.opt_u32(&self.key("attention.value_length"))?;
        if value_length.is_some_and(|n| n as usize != head_dim) {
            return Err(Error::unsupported("values of another length than keys"));
        }
        let embedding = file.directory.tensor("token_embd.weight");
        let embedding = embedding.ok_or_else(|| Error::format("token_embd.weight: no such tensor"))?;
        let n_vocab = embedding.shape().get(1).copied().unwrap_or(0);
        let n_vocab = self.in_range("vocab_size", u32::try_from(n_vocab).unwrap_or(u32::MAX), MAX_VOCAB)?;
        let n_ctx_train = self.dim("context_length", MAX_CTX)?;
        Ok(Config {
            architecture: self.prefix.to_owned(),
            name: metadata.opt_str("general.name")?.map(str::to_owned),
            n_layers,
            d_model,
            d_ff: self.dim("feed_forward_length", MAX_DIM)?,
            n_heads,
            n_kv_heads,
            head_dim,
            n_vocab,
            n_ctx_train: u32::try_from(n_ctx_train).unwrap_or(MAX_CTX),
            norm_eps: self.positive(
                "attention.layer_norm_rms_epsilon",
                metadata.require_f32(&self.key("attention.layer_norm_rms_epsilon"))?,
            )?,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            activation: self.block_structure()?,
            rope: self.rope(file, head_dim)?,
            attention: match self.prefix {
                "longgen" => self.attention_plan(n_layers, n_heads)?,
                _ => {
                    check_queries(file, n_layers, n_heads * head_dim)?;
                    self.gguf_windows(n_layers, n_heads)?
                }
            },
        })
    }

    /// What a layer is made of; a plain `llama` file does not say, it is one kind of block.
    fn block_structure(&self) -> Result<Activation> {
        if self.prefix == "longgen" {
            for (key, only) in [(keys::BLOCK_NORM, "rms_norm"), (keys::BLOCK_ACTIVATION, "silu")] {
                let value = self.metadata.require_str(key)?;
                if value != only {
                    return Err(Error::unsupported(format!("{key}: {value:?}, this runtime knows {only:?}")));
                }
            }
        }
        Ok(Activation::Silu)
    }

    fn rope(&self, file: &WeightFile<'_>, head_dim: usize) -> Result<Rope> {
        let metadata = self.metadata;
        let base = metadata.opt_f32(&self.key("rope.freq_base"))?.unwrap_or(10_000.0);
        let base = self.positive("rope.freq_base", base)?;
        let n_dims = match metadata.opt_u32(&self.key("rope.dimension_count"))? {
            Some(n) => {
                self.in_range("rope.dimension_count", n, u32::try_from(head_dim).unwrap_or(u32::MAX))?
            }
            None => head_dim,
        };
        if n_dims % 2 != 0 {
            return Err(Error::format(format!("{}: {n_dims} is odd", self.key("rope.dimension_count"))));
        }
        let pairing = match self.prefix {
            "longgen" => match metadata.require_str(keys::ROPE_PAIRING)? {
                "adjacent" => RopePairing::Adjacent,
                "halves" => RopePairing::Halves,
                other => {
                    return Err(Error::unsupported(format!(
                        "{}: {other:?}, expected adjacent or halves",
                        keys::ROPE_PAIRING
                    )));
                }
            },
            _ => RopePairing::Adjacent,
        };
        // As the models were trained: powers and quotients in f32.
        let frequencies = (0..n_dims / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / n_dims as f32));
        let mut inv_freq: Vec<f32> = try_collect(frequencies)?;
        if file.has(ROPE_FREQS) {
            for (inv_freq, factor) in inv_freq.iter_mut().zip(file.vector(ROPE_FREQS, n_dims / 2)?) {
                *inv_freq /= self.positive(ROPE_FREQS, factor)?;
            }
        }
        let linear = self.plain_scaling()?;
        inv_freq.iter_mut().for_each(|inv_freq| *inv_freq /= linear);
        let attention_factor = metadata.opt_f32(&self.key("rope.attention_factor"))?.unwrap_or(1.0);
        Ok(Rope {
            inv_freq,
            attention_factor: self.positive("rope.attention_factor", attention_factor)?,
            pairing,
        })
    }

    /// The divisor of all frequencies in a plain `llama` file that scales positions linearly.
    fn plain_scaling(&self) -> Result<f32> {
        if self.prefix == "longgen" {
            return Ok(1.0);
        }
        let (ty, factor) = ("rope.scaling.type", "rope.scaling.factor");
        match self.metadata.opt_str(&self.key(ty))? {
            Some("none") => Ok(1.0),
            // A file that gives a factor and no type means linear scaling.
            None => self.positive(factor, self.metadata.opt_f32(&self.key(factor))?.unwrap_or(1.0)),
            Some("linear") => self.positive(factor, self.metadata.require_f32(&self.key(factor))?),
            Some(other) => {
                Err(Error::unsupported(format!("{}: {other:?}, none and linear work", self.key(ty))))
            }
        }
    }

    fn attention_plan(&self, n_layers: usize, n_heads: usize) -> Result<Vec<LayerAttention>> {
        let metadata = self.metadata;
        let per_layer = |key: &str| -> Result<Vec<u32>> {
            let values = metadata.require_u32s(key)?;
            check_length(key, values.len(), n_layers)?;
            Ok(values)
        };
        let kinds = metadata.require_strs(keys::ATTENTION_KIND)?;
        check_length(keys::ATTENTION_KIND, kinds.len(), n_layers)?;
        let window_tokens = per_layer(keys::ATTENTION_WINDOW_TOKENS)?;
        let sink_tokens = per_layer(keys::ATTENTION_SINK_TOKENS)?;
        let block_size = per_layer(keys::ATTENTION_BLOCK_SIZE)?;
        let local_blocks = per_layer(keys::ATTENTION_LOCAL_BLOCKS)?;
        let sink_blocks = per_layer(keys::ATTENTION_SINK_BLOCKS)?;
        let stride = per_layer(keys::ATTENTION_STRIDE)?;
        let phases = metadata.require_u32s(keys::ATTENTION_PHASES)?;
        check_length(keys::ATTENTION_PHASES, phases.len(), n_layers * n_heads)?;

        let layer = |(i, kind): (usize, &str)| {
            let mask = match kind {
                "full" => Mask::Full,
                "window" => Mask::Window { window_tokens: window_tokens[i], sink_tokens: sink_tokens[i] },
                "blocks" => Mask::Blocks {
                    block_size: block_size[i],
                    local_blocks: local_blocks[i],
                    sink_blocks: sink_blocks[i],
                    stride: stride[i],
                },
                other => {
                    return Err(Error::unsupported(format!(
                        "{}: layer {i} is {other:?}, expected full, window or blocks",
                        keys::ATTENTION_KIND
                    )));
                }
            };
            let phases = try_collect(phases[i * n_heads..(i + 1) * n_heads].iter().copied())?;
            let layer = LayerAttention { mask, phases };
            layer
                .check(n_heads)
                .map_err(|error| Error::format(format!("attention of layer {i}: {error}")))?;
            Ok(layer)
        };
        try_collect_ok(kinds.into_iter().enumerate().map(layer))
    }

    /// Full attention, or the window that the keys of a plain file ask for: in every layer, or where its pattern says.
    fn gguf_windows(&self, n_layers: usize, n_heads: usize) -> Result<Vec<LayerAttention>> {
        let metadata = self.metadata;
        let layer = |mask| Ok(LayerAttention { mask, phases: try_vec(n_heads, 0)? });
        let name = "attention.sliding_window";
        let window_tokens = match metadata.opt_u32(&self.key(name))? {
            None | Some(0) => return try_collect_ok((0..n_layers).map(|_| layer(Mask::Full))),
            Some(n) => n,
        };
        self.in_range(name, window_tokens, MAX_CTX)?;
        let window = Mask::Window { window_tokens, sink_tokens: 0 };
        let key = self.key("attention.sliding_window_pattern");
        let is_window: Vec<bool> = match metadata.get(&key) {
            None => try_vec(n_layers, true)?,
            Some(Value::Array(_)) => metadata.require_bools(&key)?,
            // Every n-th layer sees everything.
            Some(_) => {
                let period = self.dim("attention.sliding_window_pattern", MAX_LAYERS)?;
                try_collect((0..n_layers).map(|i| i % period < period - 1))?
            }
        };
        check_length(&key, is_window.len(), n_layers)?;
        let mask = |is_window| if is_window { window } else { Mask::Full };
        try_collect_ok(is_window.into_iter().map(|is_window| layer(mask(is_window))))
    }
}

/// Checks that the query matrices of a plain file have all those rows. A plan has a number for every head of every layer:
/// only behind this is it known to be no larger than the file.
fn check_queries(file: &WeightFile<'_>, n_layers: usize, n_rows: usize) -> Result<()> {
    for i in 0..n_layers {
        let name = format!("blk.{i}.attn_q.weight");
        let tensor = file.directory.tensor(&name);
        let tensor = tensor.ok_or_else(|| Error::format(format!("{name}: no such tensor")))?;
        let has = tensor.shape().get(1).copied().unwrap_or(1);
        if has != n_rows as u64 {
            return Err(Error::format(format!("{name}: {has} rows, the heads need {n_rows}")));
        }
    }
    Ok(())
}

fn check_length(key: &str, has: usize, expected: usize) -> Result<()> {
    match has == expected {
        true => Ok(()),
        false => Err(Error::format(format!("{key}: {has} elements, expected {expected}"))),
    }
}

/// A key that says something about attention, positions or blocks and that this runtime does not know could change
/// what the model computes.
fn refuse_unknown_keys(metadata: &Metadata<'_>) -> Result<()> {
    let guarded = ["longgen.attention.", "longgen.rope.", "longgen.block."];
    for (key, _) in metadata.iter() {
        if guarded.iter().any(|prefix| key.starts_with(prefix)) && !keys::STRUCTURE.contains(&key) {
            return Err(Error::unsupported(format!("{key}: this runtime does not know this key")));
        }
    }
    Ok(())
}
