//! A small model with random weights, as a Hugging Face folder and as a plain `llama` GGUF file.
#![allow(dead_code, reason = "every test uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod conversations;
pub mod fields;
pub mod hostile;
pub mod program;
#[path = "../../../tests/support/python.rs"]
pub mod python;
#[path = "../../../tests/support/random.rs"]
pub mod random;
pub mod terminal;
#[path = "../../../tests/support/tiny_model.rs"]
pub mod tiny_model;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use longgen::Cancel;
use longgen_format::{Directory, OwnedValue, TensorDecl, TensorType, Writer, quant};
use longgen_tools::convert::types::MatrixType;
use longgen_tools::convert::{self, Conversion};
use longgen_tools::plan::AttentionArgs;
use random::Random;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Layers of the model.
pub const N_LAYERS: usize = 3;
/// Query heads.
pub const N_HEADS: usize = 4;
/// KV heads.
pub const N_KV_HEADS: usize = 2;

/// Sizes of the model.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub d_model: usize,
    pub head_dim: usize,
    pub d_ff: usize,
}

/// Rows that no block type divides.
pub const ODD: Sizes = Sizes { d_model: 44, head_dim: 10, d_ff: 51 };
/// Rows of whole blocks.
pub const WHOLE_BLOCKS: Sizes = Sizes { d_model: 96, head_dim: 32, d_ff: 160 };

/// A tensor of a folder: outputs first.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A Hugging Face folder before it is written.
#[derive(Clone)]
pub struct Checkpoint {
    pub sizes: Sizes,
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    pub dtype: Dtype,
    pub n_files: usize,
    pub tokenizer: Value,
    pub tokenizer_config: Value,
}

impl Checkpoint {
    /// Random weights that bf16 holds exactly; the output is the embedding.
    pub fn new(sizes: Sizes, seed: u64) -> Self {
        let Sizes { d_model, head_dim, d_ff } = sizes;
        let (q_dim, kv_dim) = (N_HEADS * head_dim, N_KV_HEADS * head_dim);
        let mut random = Random::new(seed);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, offset: f32, scale: f32| {
            let values = random.vector(shape.iter().product(), scale);
            let values = values.iter().map(|x| bf16::from_f32(x + offset).to_f32()).collect();
            tensors.insert(name, Tensor { shape, values });
        };
        add("model.embed_tokens.weight".to_owned(), vec![tiny_model::N_VOCAB, d_model], 0.0, 1.0);
        add("model.norm.weight".to_owned(), vec![d_model], 1.0, 0.2);
        for i in 0..N_LAYERS {
            for (part, rows, cols) in [
                ("self_attn.q_proj", q_dim, d_model),
                ("self_attn.k_proj", kv_dim, d_model),
                ("self_attn.v_proj", kv_dim, d_model),
                ("self_attn.o_proj", d_model, q_dim),
                ("mlp.gate_proj", d_ff, d_model),
                ("mlp.up_proj", d_ff, d_model),
                ("mlp.down_proj", d_model, d_ff),
            ] {
                add(format!("model.layers.{i}.{part}.weight"), vec![rows, cols], 0.0, 0.4);
            }
            for part in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{i}.{part}.weight"), vec![d_model], 1.0, 0.2);
            }
        }
        let config = json!({
            "model_type": "llama", "hidden_size": d_model, "intermediate_size": d_ff,
            "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "num_key_value_heads": N_KV_HEADS,
            "head_dim": head_dim, "vocab_size": tiny_model::N_VOCAB, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        let (tokenizer, tokenizer_config) = tokenizer();
        Self { sizes, config, tensors, dtype: Dtype::F32, n_files: 1, tokenizer, tokenizer_config }
    }

    /// Gives the model biases or an output of its own.
    pub fn add(&mut self, name: &str, shape: &[usize], seed: u64) {
        let values = Random::new(seed).vector(shape.iter().product(), 0.5);
        self.tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), values });
    }

    /// Writes the folder `model` into another one.
    pub fn write(&self, parent: &Path) -> PathBuf {
        let folder = parent.join("model");
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();
        write("config.json", &self.config);
        write("tokenizer.json", &self.tokenizer);
        write("tokenizer_config.json", &self.tokenizer_config);
        if self.n_files == 1 {
            let tensors: Vec<_> = self.tensors.iter().collect();
            fs::write(folder.join("model.safetensors"), self.safetensors(&tensors)).unwrap();
            return folder;
        }
        let mut map = serde_json::Map::new();
        for i in 0..self.n_files {
            let file = format!("model-{i}.safetensors");
            let tensors: Vec<_> = self.tensors.iter().skip(i).step_by(self.n_files).collect();
            fs::write(folder.join(&file), self.safetensors(&tensors)).unwrap();
            map.extend(tensors.iter().map(|(name, _)| ((*name).clone(), file.clone().into())));
        }
        write("model.safetensors.index.json", &json!({ "weight_map": map }));
        folder
    }

    fn safetensors(&self, tensors: &[(&String, &Tensor)]) -> Vec<u8> {
        let bytes = |tensor: &Tensor| -> Vec<u8> {
            let values = tensor.values.iter();
            match self.dtype {
                Dtype::F16 => values.flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                Dtype::F64 => values.flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
                _ => values.flat_map(|&x| x.to_le_bytes()).collect(),
            }
        };
        let data: Vec<_> = tensors.iter().map(|(_, tensor)| bytes(tensor)).collect();
        let view = |((name, tensor), data)| {
            (String::clone(name), TensorView::new(self.dtype, Tensor::clone(tensor).shape, data).unwrap())
        };
        safetensors::serialize(tensors.iter().copied().zip(data.iter().map(Vec::as_slice)).map(view), None)
            .unwrap()
    }

    /// The same model as the files of llama.cpp hold it, with further keys, or others than the tiny model's tokenizer has,
    /// and divisors of the frequencies.
    pub fn gguf(&self, ty: TensorType, keys: &[(&str, OwnedValue)], rope_freqs: Option<Vec<f32>>) -> Vec<u8> {
        let Sizes { d_model, head_dim, d_ff } = self.sizes;
        let u32 = |n: usize| OwnedValue::U32(n.try_into().unwrap());
        let mut metadata: Vec<(String, OwnedValue)> = vec![
            ("general.architecture".to_owned(), OwnedValue::Str("llama".to_owned())),
            ("llama.block_count".to_owned(), u32(N_LAYERS)),
            ("llama.context_length".to_owned(), u32(512)),
            ("llama.embedding_length".to_owned(), u32(d_model)),
            ("llama.feed_forward_length".to_owned(), u32(d_ff)),
            ("llama.attention.head_count".to_owned(), u32(N_HEADS)),
            ("llama.attention.head_count_kv".to_owned(), u32(N_KV_HEADS)),
            ("llama.attention.key_length".to_owned(), u32(head_dim)),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), OwnedValue::F32(1e-5)),
            ("llama.rope.freq_base".to_owned(), OwnedValue::F32(5000.0)),
        ];
        metadata.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let own = tiny_model::bytes(TensorType::F32);
        let tokenizer = Directory::read(&own).unwrap();
        let is_new = |key: &str| keys.iter().all(|(name, _)| *name != key);
        let tokenizer = tokenizer.metadata.iter();
        let tokenizer = tokenizer.filter(|(key, _)| key.starts_with("tokenizer.") && is_new(key));
        metadata.extend(tokenizer.map(|(key, value)| (key.to_owned(), value.into())));

        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        if let Some(values) = rope_freqs {
            tensors.push(("rope_freqs.weight".to_owned(), Tensor { shape: vec![values.len()], values }));
        }
        for (name, tensor) in &self.tensors {
            let name = gguf_name(name);
            let adjacent = name.contains("attn_q.") || name.contains("attn_k.");
            tensors
                .push((name, if adjacent { pairs_side_by_side(tensor, head_dim) } else { tensor.clone() }));
        }
        let decl = |(name, tensor): &(String, Tensor)| TensorDecl {
            name: name.clone(),
            shape: tensor.shape.iter().rev().map(|&n| n as u64).collect(),
            ty: if tensor.shape.len() == 1 { TensorType::F32 } else { ty },
        };
        let decls: Vec<_> = tensors.iter().map(decl).collect();
        let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, decls.clone()).unwrap();
        for (decl, (_, tensor)) in decls.iter().zip(&tensors) {
            let mut data = vec![0; decl.n_bytes().unwrap().try_into().unwrap()];
            quant::quantize(decl.ty, &tensor.values, &mut data).unwrap();
            writer.write_tensor(&data).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }
}

/// llama.cpp's name of a tensor of a folder.
pub fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Within each head, row i and row i + d/2 become rows 2i and 2i + 1.
fn pairs_side_by_side(tensor: &Tensor, head_dim: usize) -> Tensor {
    let cols = tensor.values.len() / tensor.shape[0];
    let mut values = Vec::new();
    for head in 0..tensor.shape[0] / head_dim {
        for i in 0..head_dim / 2 {
            for row in [i, i + head_dim / 2] {
                let row = head * head_dim + row;
                values.extend_from_slice(&tensor.values[row * cols..(row + 1) * cols]);
            }
        }
    }
    Tensor { shape: tensor.shape.clone(), values }
}

/// The byte-level tokenizer of the tiny model as a folder has it.
fn tokenizer() -> (Value, Value) {
    let bytes = tiny_model::bytes(TensorType::F32);
    let directory = Directory::read(&bytes).unwrap();
    let tokens = directory.metadata.require_strs("tokenizer.ggml.tokens").unwrap();
    let vocab: serde_json::Map<_, _> =
        tokens.iter().take(256).enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let added = |id: u32| {
        json!({"id": id, "content": tokens[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": level, "decoder": level, "post_processor": null,
        "added_tokens": [added(tiny_model::BOS), added(tiny_model::EOS)],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = json!({"bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": true});
    (tokenizer, config)
}

/// Converts without flags but the type, into memory.
pub fn convert(input: &Path, matrices: MatrixType) -> Vec<u8> {
    convert_with(input, matrices, &AttentionArgs::default()).unwrap()
}

/// Converts into memory.
pub fn convert_with(
    input: &Path,
    matrices: MatrixType,
    attention: &AttentionArgs,
) -> anyhow::Result<Vec<u8>> {
    let conversion = Conversion::new(convert::open(input)?, attention, matrices)?;
    let sink = conversion.write(Cursor::new(Vec::new()), &Cancel::default(), &mut |_| {})?;
    Ok(sink.into_inner())
}

/// A `llama` file whose matrix `blk.1.ffn_up.weight`, of 256 columns in Q8_0, is said to have the type with GGML's number
/// `id`, a block of which has at most as many bytes.
pub fn of_large_blocks(id: u32) -> Vec<u8> {
    let checkpoint = Checkpoint::new(Sizes { d_model: 256, head_dim: 32, d_ff: 256 }, 1);
    let mut bytes = checkpoint.gguf(TensorType::Q8_0, &[], None);
    let name = b"blk.1.ffn_up.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // Behind the name: the number of dimensions, two dimensions, the type.
    let ty = &mut bytes[at + 20..at + 24];
    assert_eq!(ty, TensorType::Q8_0.id().to_le_bytes());
    ty.copy_from_slice(&id.to_le_bytes());
    bytes
}

/// The message of the failure that a conversion ends with.
pub fn refusal(input: &Path) -> String {
    match convert_with(input, MatrixType::Keep, &AttentionArgs::default()) {
        Ok(_) => panic!("{} was converted", input.display()),
        Err(error) => format!("{error:#}"),
    }
}
