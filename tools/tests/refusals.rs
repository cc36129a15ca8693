//! What cannot be converted is refused, with the name of what is wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::PathBuf;

use longgen_format::{OwnedValue, SourceType, TensorType};
use longgen_tools::convert::types::MatrixType;
use longgen_tools::plan::AttentionArgs;
use safetensors::Dtype;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}

/// Changes a folder and converts it.
fn refusal_of(change: impl FnOnce(&mut Checkpoint)) -> String {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    change(&mut checkpoint);
    refusal(&checkpoint.write(folder.path()))
}

#[test]
fn numbers_of_a_config_that_cannot_be_run() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("model_type", json!("mamba"), &["model_type", "mamba", "llama"]),
        ("model_type", Value::Null, &["model_type is missing"]),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu", "silu"]),
        ("hidden_size", json!("44"), &["hidden_size", "whole number", "44"]),
        ("hidden_size", Value::Null, &["hidden_size is missing"]),
        ("hidden_size", json!(48), &["token_embd.weight", "[44, 258]", "[48, 258]"]),
        ("num_hidden_layers", json!(0), &["num_hidden_layers", "from 1 to 4096", "found 0"]),
        ("num_hidden_layers", json!(4), &["model.layers.3.input_layernorm.weight", "missing"]),
        ("num_hidden_layers", json!(4097), &["num_hidden_layers", "from 1 to 4096", "found 4097"]),
        ("num_hidden_layers", json!(2), &["model.layers.2."]),
        ("num_key_value_heads", json!(3), &["4 query heads", "3 kv heads"]),
        ("num_key_value_heads", json!(0), &["num_key_value_heads", "from 1", "found 0"]),
        ("num_attention_heads", json!(0), &["num_attention_heads", "from 1", "found 0"]),
        ("num_attention_heads", json!(u32::MAX), &["num_attention_heads", "2097152", "4294967295"]),
        ("num_attention_heads", json!(1 << 21), &["blk.0.attn_q.weight", "[44, 40]", "[44, 20971520]"]),
        ("hidden_size", json!((1 << 21) + 1), &["hidden_size", "from 1 to 2097152", "2097153"]),
        ("intermediate_size", json!((1 << 21) + 1), &["intermediate_size", "2097152", "2097153"]),
        ("vocab_size", json!((1 << 24) + 1), &["vocab_size", "16777216", "16777217"]),
        ("max_position_embeddings", json!((1 << 30) + 1), &["max_position_embeddings", "1073741824"]),
        ("head_dim", json!(9), &["heads of 9 elements"]),
        ("head_dim", json!(4_000_000_000u32), &["4000000000"]),
        ("rms_norm_eps", json!(0), &["rms_norm_eps", "above 0"]),
        ("rms_norm_eps", json!(1e-300), &["rms_norm_eps", "above 0"]),
        ("rope_theta", json!(-1.0), &["rope_theta", "above 0"]),
        ("rope_theta", json!(1e300), &["rope_theta", "1e+300"]),
        ("partial_rotary_factor", json!(0.5), &["partial_rotary_factor", "0.5"]),
        ("quantization_config", json!({"quant_method": "gptq"}), &["quantization_config"]),
        ("attention_bias", json!(true), &["model.layers.0.self_attn.q_proj.bias", "missing"]),
        ("attention_bias", json!("yes"), &["attention_bias", "true or false"]),
        ("tie_word_embeddings", json!(false), &["lm_head.weight", "missing"]),
        ("vocab_size", json!(200), &["258 tokens", "200 rows"]),
        ("vocab_size", json!(300), &["token_embd.weight", "[44, 258]", "[44, 300]"]),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}), &["yarn", "llama3"]),
        ("rope_scaling", json!({"type": "dynamic", "factor": 4.0}), &["dynamic"]),
        ("rope_scaling", json!({"type": "linear"}), &["rope_scaling", "factor is missing"]),
        ("rope_scaling", json!({"factor": 4.0}), &["factor without a rope type"]),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}), &["low_freq_factor is missing"]),
        ("rope_scaling", json!([1]), &["rope_scaling", "an object"]),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4, "llama_4_scaling_beta": 0.1}),
            &["llama_4_scaling_beta"],
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}),
            &["rope_parameters", "sliding_attention", "full_attention"],
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4, "full_attention": {"rope_theta": 1e4}}),
            &["rope_parameters", "rope_theta", "full_attention"],
        ),
        ("longgen", json!({"attention": [{"kind": "full"}]}), &["config.json: longgen", "1 layers", "3"]),
    ];
    for (field, value, parts) in cases {
        let message = refusal_of(|checkpoint| checkpoint.config[*field] = value.clone());
        assert_names(&message, parts);
    }
}

#[test]
fn fields_of_a_config_that_change_what_a_model_computes() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    let plain = convert(&checkpoint.write(folder.path()), MatrixType::Keep);
    let cases = [
        ("attn_logit_softcapping", json!(50.0), Value::Null),
        ("final_logit_softcapping", json!(30.0), Value::Null),
        ("query_pre_attn_scalar", json!(256), Value::Null),
        ("attention_multiplier", json!(0.015625), Value::Null),
        ("no_rope_layers", json!([1, 1, 0]), Value::Null),
        ("attention_chunk_size", json!(8192), Value::Null),
        ("max_window_layers", json!(28), Value::Null),
        ("use_qk_norm", json!(true), json!(false)),
        ("embedding_multiplier", json!(12.0), json!(1.0)),
        ("residual_multiplier", json!(0.22), json!(1)),
        ("logits_scaling", json!(8.0), json!(1.0)),
        ("partial_rotary_factor", json!(0.5), json!(1.0)),
        ("hidden_act", json!("gelu"), json!("silu")),
    ];
    for (field, changes, neutral) in cases {
        checkpoint.config[field] = changes.clone();
        let message = refusal(&checkpoint.write(folder.path()));
        let wanted =
            format!("config.json: {field}: {changes} changes what the model computes, only {neutral} ");
        assert!(message.starts_with(&wanted.replace("1.0 ", "1 ")), "{message:?}");
        checkpoint.config[field] = neutral;
        assert!(convert(&checkpoint.write(folder.path()), MatrixType::Keep) == plain, "{field}");
    }
    // What matters in training only.
    for (field, value) in [("attention_dropout", json!(0.1)), ("pretraining_tp", json!(2))] {
        checkpoint.config[field] = value;
        assert!(convert(&checkpoint.write(folder.path()), MatrixType::Keep) == plain, "{field}");
    }
}

#[test]
fn two_ways_to_say_how_positions_turn() {
    let message = refusal_of(|checkpoint| {
        checkpoint.config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
        checkpoint.config["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0});
    });
    assert_names(&message, &["rope_parameters", "rope_scaling"]);
}

#[test]
fn tensors_of_a_folder_that_are_too_many_too_few_or_of_another_kind() {
    let extra = refusal_of(|checkpoint| checkpoint.add("model.layers.0.self_attn.q_norm.weight", &[10], 1));
    assert_names(&extra, &["model.layers.0.self_attn.q_norm.weight"]);
    let bias = refusal_of(|checkpoint| checkpoint.add("model.layers.0.mlp.up_proj.bias", &[51], 1));
    assert_names(&bias, &["model.layers.0.mlp.up_proj.bias", "config.json"]);
    let missing = refusal_of(|checkpoint| {
        checkpoint.tensors.remove("model.norm.weight");
    });
    assert_names(&missing, &["model.norm.weight", "missing"]);
    let shape = refusal_of(|checkpoint| checkpoint.add("model.layers.1.mlp.up_proj.weight", &[44, 51], 1));
    assert_names(&shape, &["blk.1.ffn_up.weight", "[51, 44]", "[44, 51]"]);
    let dtype = refusal_of(|checkpoint| checkpoint.dtype = Dtype::F64);
    assert_names(&dtype, &["model.embed_tokens.weight", "F64", "BF16"]);
    let scalar = refusal_of(|checkpoint| checkpoint.add("model.norm.weight", &[], 1));
    assert_names(&scalar, &["model.norm.weight", "[]"]);
}

#[test]
fn files_of_a_folder_that_are_missing_or_damaged() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    let path = checkpoint.write(folder.path());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let bytes = fs::read(path.join(name)).unwrap();
        fs::write(path.join(name), &bytes[..bytes.len() - 1]).unwrap();
        assert_names(&refusal(&path), &[name]);
        fs::remove_file(path.join(name)).unwrap();
        assert_names(&refusal(&path), &[name]);
        fs::write(path.join(name), &bytes).unwrap();
    }

    fs::remove_file(path.join("model.safetensors")).unwrap();
    checkpoint.n_files = 2;
    checkpoint.write(folder.path());
    let index_path = path.join("model.safetensors.index.json");
    let index_text = fs::read(&index_path).unwrap();
    fs::remove_file(&index_path).unwrap();
    assert_names(&refusal(&path), &["expected in model.safetensors", "model.safetensors.index.json"]);
    fs::write(&index_path, index_text).unwrap();
    let index: Value = serde_json::from_str(&fs::read_to_string(&index_path).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = index.clone();
        change(&mut changed["weight_map"]);
        fs::write(&index_path, changed.to_string()).unwrap();
        refusal(&path)
    };
    let outside = with(&|map| map["model.norm.weight"] = "../model-0.safetensors".into());
    assert_names(&outside, &["model.norm.weight", "../model-0.safetensors"]);
    assert_names(
        &with(&|map| map["model.norm.weight"] = "model-7.safetensors".into()),
        &["model-7.safetensors"],
    );
    assert_names(&with(&|map| map["lost"] = "model-0.safetensors".into()), &["lost", "none of the files"]);
    assert_names(&with(&|map| *map = json!(3)), &["weight_map"]);
    fs::copy(path.join("model-0.safetensors"), path.join("copy.safetensors")).unwrap();
    assert_names(&with(&|map| map["again"] = "copy.safetensors".into()), &["in another file too"]);
}

/// A `llama` file with further keys, converted.
fn refusal_of_gguf(keys: &[(&str, OwnedValue)], change: impl FnOnce(&mut Checkpoint)) -> String {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("in.gguf");
    let mut checkpoint = Checkpoint::new(ODD, 1);
    change(&mut checkpoint);
    fs::write(&path, checkpoint.gguf(TensorType::F32, keys, None)).unwrap();
    refusal(&path)
}

#[test]
fn keys_of_a_llama_file_that_may_change_what_it_computes() {
    let str = |text: &str| OwnedValue::Str(text.to_owned());
    let cases: &[(&str, OwnedValue, &[&str])] = &[
        ("llama.attention.clamp_kqv", OwnedValue::F32(8.0), &["llama.attention.clamp_kqv"]),
        ("llama.logit_scale", OwnedValue::F32(8.0), &["llama.logit_scale"]),
        ("llama.expert_count", OwnedValue::U32(8), &["llama.expert_count", "8"]),
        ("llama.rope.scaling.type", str("yarn"), &["llama.rope.scaling.type", "yarn", "linear"]),
        ("llama.rope.scaling.type", str("linear"), &["llama.rope.scaling.factor"]),
        ("llama.rope.scaling.factor", OwnedValue::F32(-2.0), &["llama.rope.scaling.factor", "-2"]),
        ("split.count", OwnedValue::U16(3), &["split.count", "3"]),
    ];
    for (key, value, parts) in cases {
        assert_names(&refusal_of_gguf(&[(key, value.clone())], |_| {}), parts);
    }
}

#[test]
fn tensors_of_a_llama_file_that_are_unknown_missing_or_of_another_shape() {
    let unknown = refusal_of_gguf(&[], |checkpoint| checkpoint.add("blk.0.ffn_gate_inp.weight", &[8, 44], 1));
    assert_names(&unknown, &["blk.0.ffn_gate_inp.weight", "unknown"]);
    let missing = refusal_of_gguf(&[], |checkpoint| {
        checkpoint.tensors.remove("model.layers.2.mlp.up_proj.weight");
    });
    assert_names(&missing, &["blk.2.ffn_up.weight", "missing"]);
    let shape = refusal_of_gguf(&[], |checkpoint| checkpoint.add("model.norm.weight", &[43], 1));
    assert_names(&shape, &["output_norm.weight", "[43]", "[44]"]);
}

#[test]
fn files_that_are_no_model_that_is_known() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    assert_names(&refusal(&path), &["in.gguf"]);
    fs::write(&path, "GGML").unwrap();
    assert_names(&refusal(&path), &["in.gguf", "not a GGUF file"]);
    let bytes = Checkpoint::new(ODD, 1).gguf(TensorType::F32, &[], None);
    let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"mamba");
    fs::write(&path, &other).unwrap();
    assert_names(&refusal(&path), &["in.gguf", "mamba", "llama"]);
    // Cut off in the metadata, between, and in the data.
    for length in [0, 30, bytes.len() / 4, bytes.len() - 5000] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_names(&refusal(&path), &["in.gguf"]);
    }
}

#[test]
fn an_element_type_that_is_not_supported_is_named_with_its_tensor() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    // Q3_K, and one that can be converted, but not kept.
    for (id, parts) in [(11, ["Q3_K", "supported"]), (SourceType::Q4K.id(), ["Q4_K", "--type q8_0"])] {
        fs::write(&path, of_large_blocks(id)).unwrap();
        assert_names(&refusal(&path), &["blk.1.ffn_up.weight", parts[0], parts[1]]);
    }
}

#[test]
fn types_that_cannot_hold_the_numbers() {
    let folder = TempDir::new().unwrap();
    let refusal = |checkpoint: &Checkpoint, matrices| {
        let path = checkpoint.write(folder.path());
        format!("{:#}", convert_with(&path, matrices, &AttentionArgs::default()).unwrap_err())
    };
    let odd = Checkpoint::new(ODD, 1);
    for matrices in [MatrixType::Q8_0, MatrixType::Q4_0] {
        assert_names(&refusal(&odd, matrices), &["token_embd.weight", "44", "32", "bf16"]);
    }
    let mut checkpoint = Checkpoint::new(WHOLE_BLOCKS, 1);
    let name = "model.layers.2.mlp.down_proj.weight";
    checkpoint.tensors.get_mut(name).unwrap().values[161] = 65520.0;
    assert_names(
        &refusal(&checkpoint, MatrixType::F16),
        &["blk.2.ffn_down.weight", "row 1", "element 1", "65520"],
    );
    checkpoint.tensors.get_mut(name).unwrap().values[161] = f32::NAN;
    assert_names(&refusal(&checkpoint, MatrixType::Q8_0), &["blk.2.ffn_down.weight", "row 1", "NaN"]);
    // The largest number of f16, and what f16 rounds to it, are no reason.
    checkpoint.tensors.get_mut(name).unwrap().values[161] = 65519.0;
    convert(&checkpoint.write(folder.path()), MatrixType::F16);
}
