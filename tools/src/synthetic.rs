//! Models of well-known shapes with random weights, to measure speed without a file.

use std::io::Cursor;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use longgen::{Cancel, Model, ModelParams, OnProgress};
use longgen_format::{OwnedValue, TensorDecl, TensorType, Writer};
use rayon::prelude::*;

use crate::plan::PlanShape;
use crate::random::SplitMix;

/// Shapes that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// 32 layers of 4096, 32 heads
    #[value(name = "llama-2-7b")]
    Llama2_7b,
    /// 80 layers of 8192, 64 heads that share 8 KV heads
    #[value(name = "llama-2-70b")]
    Llama2_70b,
    /// 32 layers of 4096, 32 heads that share 8 KV heads, a vocabulary of 128256
    #[value(name = "llama-3-8b")]
    Llama3_8b,
    /// 16 layers of 2048, 32 heads that share 8 KV heads, a vocabulary of 128256
    #[value(name = "llama-3.2-1b")]
    Llama32_1b,
    /// 30 layers of 576, 9 heads that share 3 KV heads
    #[value(name = "smollm2-135m")]
    SmolLm2_135m,
}

/// Types of the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Type {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
}

impl From<Type> for TensorType {
    fn from(ty: Type) -> Self {
        match ty {
            Type::F32 => TensorType::F32,
            Type::F16 => TensorType::F16,
            Type::Bf16 => TensorType::BF16,
            Type::Q8_0 => TensorType::Q8_0,
            Type::Q4_0 => TensorType::Q4_0,
            Type::Q4_1 => TensorType::Q4_1,
        }
    }
}

impl From<Shape> for PlanShape {
    fn from(shape: Shape) -> Self {
        let Dims { n_layers, n_heads, n_kv_heads, .. } = shape.dims();
        Self { n_layers, n_heads, n_kv_heads }
    }
}

struct Dims {
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    n_vocab: usize,
    has_output: bool,
}

impl Shape {
    fn dims(self) -> Dims {
        let dims = |n_layers, d_model, d_ff, n_heads, n_kv_heads, n_vocab, has_output| Dims {
            n_layers,
            d_model,
            d_ff,
            n_heads,
            n_kv_heads,
            n_vocab,
            has_output,
        };
        match self {
            Shape::Llama2_7b => dims(32, 4096, 11_008, 32, 32, 32_000, true),
            Shape::Llama2_70b => dims(80, 8192, 28_672, 64, 8, 32_000, true),
            Shape::Llama3_8b => dims(32, 4096, 14_336, 32, 8, 128_256, true),
            Shape::Llama32_1b => dims(16, 2048, 8192, 32, 8, 128_256, false),
            Shape::SmolLm2_135m => dims(30, 576, 1536, 9, 3, 49_152, false),
        }
    }

    /// The model in memory: a plain `llama` file of random numbers that stay finite, with full attention.
    ///
    /// # Errors
    /// Too little memory, and what opening a file can meet.
    pub fn open(self, ty: Type, params: &ModelParams, on_progress: OnProgress<'_>) -> Result<Model> {
        let Dims { n_layers, d_model, d_ff, n_heads, n_kv_heads, n_vocab, has_output } = self.dims();
        let kv_dim = d_model / n_heads * n_kv_heads;
        let matrix = |name: String, cols: usize, rows: usize| TensorDecl {
            name,
            shape: vec![cols as u64, rows as u64],
            ty: ty.into(),
        };
        let vector = |name: String, n: usize| TensorDecl { name, shape: vec![n as u64], ty: TensorType::F32 };
        let mut tensors = vec![matrix("token_embd.weight".into(), d_model, n_vocab)];
        for i in 0..n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            tensors.extend([
                vector(name("attn_norm"), d_model),
                matrix(name("attn_q"), d_model, d_model),
                matrix(name("attn_k"), d_model, kv_dim),
                matrix(name("attn_v"), d_model, kv_dim),
                matrix(name("attn_output"), d_model, d_model),
                vector(name("ffn_norm"), d_model),
                matrix(name("ffn_gate"), d_model, d_ff),
                matrix(name("ffn_up"), d_model, d_ff),
                matrix(name("ffn_down"), d_ff, d_model),
            ]);
        }
        tensors.push(vector("output_norm.weight".into(), d_model));
        if has_output {
            tensors.push(matrix("output.weight".into(), d_model, n_vocab));
        }
        let mut sizes = Vec::new();
        for tensor in &tensors {
            sizes.push(usize::try_from(tensor.n_bytes()?)?);
        }

        let mut file = Vec::new();
        let total: usize = sizes.iter().map(|size| size + 4096).sum();
        file.try_reserve_exact(total + (1 << 24)).context("too little memory for this model")?;
        let mut writer = Writer::new(Cursor::new(file), self.metadata()?, tensors.clone())?;
        // One buffer for all: the system would clear fresh memory page by page.
        let mut bytes = vec![0; sizes.iter().copied().max().unwrap_or(0)];
        for (i, (tensor, &n_bytes)) in tensors.iter().zip(&sizes).enumerate() {
            randomize(tensor.ty, &mut bytes[..n_bytes], i as u64);
            writer.write_tensor(&bytes[..n_bytes])?;
        }
        let file = Arc::new(writer.finish()?.into_inner());
        Ok(Model::from_bytes(file, params, &Cancel::default(), on_progress, &mut |_, _| {})?)
    }

    fn metadata(self) -> Result<Vec<(String, OwnedValue)>> {
        let Dims { n_layers, d_model, d_ff, n_heads, n_kv_heads, n_vocab, .. } = self.dims();
        let u32 = |n: usize| Ok::<_, anyhow::Error>(OwnedValue::U32(u32::try_from(n)?));
        let str = |text: &str| OwnedValue::Str(text.to_owned());
        // No text is read or written: any distinct tokens do.
        let tokens = (0..n_vocab).map(|id| format!("<{id}>")).collect();
        let pairs = [
            ("general.architecture", str("llama")),
            ("general.name", str("random weights")),
            ("llama.block_count", u32(n_layers)?),
            ("llama.context_length", u32(1 << 17)?),
            ("llama.embedding_length", u32(d_model)?),
            ("llama.feed_forward_length", u32(d_ff)?),
            ("llama.attention.head_count", u32(n_heads)?),
            ("llama.attention.head_count_kv", u32(n_kv_heads)?),
            ("llama.attention.layer_norm_rms_epsilon", OwnedValue::F32(1e-5)),
            ("llama.rope.freq_base", OwnedValue::F32(500_000.0)),
            ("tokenizer.ggml.model", str("gpt2")),
            ("tokenizer.ggml.pre", str("gpt-2")),
            ("tokenizer.ggml.tokens", OwnedValue::Strs(tokens)),
            ("tokenizer.ggml.merges", OwnedValue::Strs(Vec::new())),
        ];
        Ok(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// Fills `bytes` with numbers of either sign and two magnitudes around 0.01, and for f32, which only norms have, around
/// 1.
fn randomize(ty: TensorType, bytes: &mut [u8], seed: u64) {
    const PART: usize = 1 << 20;
    bytes.par_chunks_mut(PART / 18 / 20 / 34 * 18 * 20 * 34).enumerate().for_each(|(i, part)| {
        let mut random = SplitMix::new(seed, i);
        for bytes in part.chunks_mut(8) {
            bytes.copy_from_slice(&random.bits().to_le_bytes()[..bytes.len()]);
        }
        // Keeps the low bits and the sign of each number, and gives it an exponent.
        for block in part.chunks_exact_mut(ty.block_bytes()) {
            match ty {
                TensorType::F32 => {
                    block[3] = 0x3f;
                    block[2] = 0x80 | block[2] & 0x1f;
                }
                TensorType::BF16 => block[1] = 0x3c | block[1] & 0x80,
                TensorType::F16 => block[1] = 0x20 | block[1] & 0x83,
                _ => {
                    // A scale of 2^-12 for 8 bits, 2^-9 for 4; a minimum of -8 times that.
                    let is_8_bit = ty == TensorType::Q8_0;
                    block[..2].copy_from_slice(&(if is_8_bit { 0x0c00u16 } else { 0x1800 }).to_le_bytes());
                    if ty == TensorType::Q4_1 {
                        block[2..4].copy_from_slice(&0xa400u16.to_le_bytes());
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use longgen_format::quant;

    #[test]
    fn random_weights_are_small_and_of_either_sign() {
        for ty in TensorType::ALL {
            let n = 32 * 4000;
            let mut bytes = vec![0; ty.row_bytes(n).unwrap_or(0)];
            randomize(ty, &mut bytes, 7);
            let mut values = vec![0.0; n];
            quant::dequantize(ty, &bytes, &mut values).unwrap();
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
            let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            match ty {
                TensorType::F32 => assert!(mean > 0.9 && most < 1.3, "{ty}: {mean} {most}"),
                _ => assert!(mean.abs() < 1e-3 && most > 0.01 && most < 0.1, "{ty}: {mean} {most}"),
            }
        }
    }
}
