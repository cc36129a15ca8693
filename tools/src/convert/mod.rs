//! From checkpoints to model files.
//!
//! [`open`] reads what is to be converted and checks that nothing is missing or left over, [`Conversion::new`] decides
//! what becomes of it, and [`save`] writes it.

mod gguf;
mod hf;
pub mod names;
mod save;
pub mod source;
pub mod types;

use std::io::{Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use longgen::Cancel;
use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::weights::Load;
use longgen_format::{OwnedValue, TensorDecl, TensorType, Writer, keys};

pub use self::save::save;
use self::source::{Source, SourceTensor};
use self::types::MatrixType;
use crate::plan::{self, AttentionArgs, PlanShape};

/// The keys of the attention plan.
const PLAN_KEYS: &[&str] = &[
    keys::ATTENTION_KIND,
    keys::ATTENTION_WINDOW_TOKENS,
    keys::ATTENTION_SINK_TOKENS,
    keys::ATTENTION_BLOCK_SIZE,
    keys::ATTENTION_LOCAL_BLOCKS,
    keys::ATTENTION_SINK_BLOCKS,
    keys::ATTENTION_STRIDE,
    keys::ATTENTION_PHASES,
];

/// The pairs that say what kind of file it is.
fn identity(base_architecture: &str) -> Vec<(String, OwnedValue)> {
    vec![
        (keys::GENERAL_ARCHITECTURE.to_owned(), OwnedValue::Str("longgen".to_owned())),
        (keys::FORMAT_VERSION.to_owned(), OwnedValue::U32(keys::CURRENT_FORMAT_VERSION)),
        (keys::BASE_ARCHITECTURE.to_owned(), OwnedValue::Str(base_architecture.to_owned())),
    ]
}

/// The pairs that say what a layer is made of.
fn structure(pairing: &str) -> [(String, OwnedValue); 3] {
    let pairs =
        [(keys::ROPE_PAIRING, pairing), (keys::BLOCK_NORM, "rms_norm"), (keys::BLOCK_ACTIVATION, "silu")];
    pairs.map(|(key, value)| (key.to_owned(), OwnedValue::Str(value.to_owned())))
}

/// Reads a Hugging Face folder or a GGUF file.
///
/// # Errors
/// What is wrong with it, or cannot be converted.
pub fn open(path: &Path) -> Result<Source> {
    match path.is_dir() {
        true => hf::read(path),
        false => {
            gguf::read(&longgen::weights::open(path, Load::Map)?).with_context(|| path.display().to_string())
        }
    }
}

/// A file to be written, decided to the last byte.
pub struct Conversion {
    metadata: Vec<(String, OwnedValue)>,
    tensors: Vec<(SourceTensor, TensorType)>,
    /// The plan of the file.
    pub attention: Vec<LayerAttention>,
    /// What the user should know although the conversion is possible.
    pub warnings: Vec<String>,
}

impl Conversion {
    /// Decides on plan and types.
    ///
    /// # Errors
    /// Flags that do not fit the model, a tensor that cannot have the type.
    pub fn new(source: Source, attention: &AttentionArgs, matrices: MatrixType) -> Result<Self> {
        let Source { dims, mut metadata, tensors, attention: brought, mut warnings } = source;
        let shape = PlanShape::from(&dims);
        let brought = brought.unwrap_or_else(|| plan::full(shape));
        let attention = attention.plan(shape)?.unwrap_or_else(|| brought.clone());
        let untrained = |(ours, theirs): &(&LayerAttention, _)| ours != theirs && ours.mask != Mask::Full;
        let n_untrained = attention.iter().zip(&brought).filter(untrained).count();
        if n_untrained > 0 {
            warnings.push(format!(
                "the model was not trained for this plan: {n_untrained} of its {} layers will see less than they are \
                 used to, and long contexts will suffer",
                dims.n_layers
            ));
        }

        if let Some(file_type) = matrices.file_type() {
            set(&mut metadata, "general.file_type", OwnedValue::U32(file_type));
        }
        let typed = |tensor: SourceTensor| types::target(&tensor, matrices).map(|ty| (tensor, ty));
        let tensors: Vec<_> = tensors.into_iter().map(typed).collect::<Result<_>>()?;
        if tensors.iter().any(|(_, ty)| ty.block_elems() > 1) {
            // The version of the block layouts.
            set(&mut metadata, "general.quantization_version", OwnedValue::U32(2));
        }
        // Last, where it stays when the result is converted again.
        metadata.extend(plan_pairs(&attention));
        Ok(Self { metadata, tensors, attention, warnings })
    }

    fn decls(&self) -> Vec<TensorDecl> {
        let decl = |(tensor, ty): &(SourceTensor, TensorType)| TensorDecl {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: *ty,
        };
        self.tensors.iter().map(decl).collect()
    }

    /// Bytes of the tensors to be written, for each type of elements that occurs: how many tensors, how many bytes.
    ///
    /// # Errors
    /// A tensor whose bytes cannot be counted.
    pub fn sizes(&self) -> Result<Vec<(TensorType, usize, u64)>> {
        let mut sizes: Vec<(TensorType, usize, u64)> = Vec::new();
        for decl in self.decls() {
            let n_bytes = decl.n_bytes()?;
            match sizes.iter_mut().find(|(ty, ..)| *ty == decl.ty) {
                Some((_, count, total)) => (*count, *total) = (*count + 1, *total + n_bytes),
                None => sizes.push((decl.ty, 1, n_bytes)),
            }
        }
        Ok(sizes)
    }

    /// Bytes of all tensors to be written.
    ///
    /// # Errors
    /// Those of [`sizes`](Self::sizes).
    pub fn n_bytes(&self) -> Result<u64> {
        Ok(self.sizes()?.iter().map(|(.., n_bytes)| n_bytes).sum())
    }

    /// Writes the file; `progress` is told the bytes of tensors written so far.
    ///
    /// # Errors
    /// Numbers that a type cannot hold, a sink that fails, a request to stop.
    pub fn write<W: Write + Seek>(
        &self,
        sink: W,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<W> {
        let mut writer = Writer::new(sink, self.metadata.clone(), self.decls())?;
        let mut written = 0;
        for (tensor, ty) in &self.tensors {
            types::convert(tensor, *ty, |bytes| {
                check(cancel)?;
                writer.write_part(bytes)?;
                written += bytes.len() as u64;
                progress(written);
                Ok(())
            })?;
        }
        Ok(writer.finish()?)
    }
}

/// `Ok` unless somebody asked to stop.
fn check(cancel: &Cancel) -> Result<()> {
    match cancel.is_cancelled() {
        false => Ok(()),
        true => bail!("stopped"),
    }
}

/// Gives a key a value, in its place if it is there already.
fn set(metadata: &mut Vec<(String, OwnedValue)>, key: &str, value: OwnedValue) {
    match metadata.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => metadata.push((key.to_owned(), value)),
    }
}

/// A plan as keys of a model file: a number that a layer's kind does not have is 0.
fn plan_pairs(attention: &[LayerAttention]) -> Vec<(String, OwnedValue)> {
    let window = |layer: &LayerAttention| match layer.mask {
        Mask::Window { window_tokens, sink_tokens } => [window_tokens, sink_tokens],
        _ => [0; 2],
    };
    let blocks = |layer: &LayerAttention| match layer.mask {
        Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
            [block_size, local_blocks, sink_blocks, stride]
        }
        _ => [0; 4],
    };
    let numbers =
        |number: &dyn Fn(&LayerAttention) -> u32| OwnedValue::U32s(attention.iter().map(number).collect());
    let kinds = attention.iter().map(|layer| layer.kind().to_owned()).collect();
    let phases = attention.iter().flat_map(|layer| layer.phases.iter().copied()).collect();
    let pairs = [
        (keys::ATTENTION_KIND, OwnedValue::Strs(kinds)),
        (keys::ATTENTION_WINDOW_TOKENS, numbers(&|layer| window(layer)[0])),
        (keys::ATTENTION_SINK_TOKENS, numbers(&|layer| window(layer)[1])),
        (keys::ATTENTION_BLOCK_SIZE, numbers(&|layer| blocks(layer)[0])),
        (keys::ATTENTION_LOCAL_BLOCKS, numbers(&|layer| blocks(layer)[1])),
        (keys::ATTENTION_SINK_BLOCKS, numbers(&|layer| blocks(layer)[2])),
        (keys::ATTENTION_STRIDE, numbers(&|layer| blocks(layer)[3])),
        (keys::ATTENTION_PHASES, OwnedValue::U32s(phases)),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
