//! Windows as other people's files spell them become the plan of the model file, and nothing else does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::{Device, Model, ModelParams};
use longgen_format::{OwnedValue, TensorType};
use longgen_tools::convert::types::MatrixType;
use serde_json::{Value, json};
use support::*;
use tempfile::TempDir;

/// The masks of a model file's layers.
fn masks(bytes: &[u8]) -> Result<Vec<Mask>, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let params = ModelParams { device: Device::Reference, ..Default::default() };
    let model = Model::open(&path, &params).map_err(|error| error.to_string())?;
    let layers = &model.config().attention;
    assert!(layers.iter().all(|layer| layer.phases == [0; N_HEADS]));
    Ok(layers.iter().map(|layer: &LayerAttention| layer.mask).collect())
}

const FULL: Mask = Mask::Full;

fn window(window_tokens: u32) -> Mask {
    Mask::Window { window_tokens, sink_tokens: 0 }
}

/// A folder of this family with more fields.
fn folder_with(model_type: &str, fields: &Value) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    checkpoint.config["model_type"] = model_type.into();
    for (field, value) in fields.as_object().unwrap() {
        checkpoint.config[field] = value.clone();
    }
    let path = checkpoint.write(folder.path());
    (folder, path)
}

#[test]
fn windows_of_a_folder_are_those_of_transformers() {
    let all_full = vec!["full_attention"; 3];
    let mixed = json!(["full_attention", "sliding_attention", "full_attention"]);
    let cases = [
        ("llama", json!({}), [FULL; 3]),
        ("llama", json!({"sliding_window": null, "use_sliding_window": false}), [FULL; 3]),
        ("mistral", json!({"sliding_window": null}), [FULL; 3]),
        ("mistral", json!({"sliding_window": 17}), [window(17); 3]),
        ("mistral", json!({"sliding_window": 1 << 30, "use_sliding_window": true}), [window(1 << 30); 3]),
        ("ministral", json!({"sliding_window": 1}), [window(1); 3]),
        ("llama", json!({"sliding_window": 9, "layer_types": mixed}), [FULL, window(9), FULL]),
        ("mistral", json!({"sliding_window": 9, "layer_types": mixed}), [FULL, window(9), FULL]),
        ("ministral", json!({"layer_types": all_full}), [FULL; 3]),
        ("ministral", json!({"sliding_window": 9, "layer_types": all_full}), [FULL; 3]),
        (
            "mistral",
            json!({"longgen": {"attention": [
                {"kind": "window", "window_tokens": 5}, {"kind": "full"}, {"kind": "full"}
            ]}}),
            [window(5), FULL, FULL],
        ),
    ];
    for (model_type, fields, expected) in cases {
        let (_folder, path) = folder_with(model_type, &fields);
        assert_eq!(masks(&convert(&path, MatrixType::Keep)).unwrap(), expected, "{model_type} {fields}");
    }
}

#[test]
fn windows_of_a_folder_that_are_not_clear_are_refused_by_name() {
    let full = json!({"attention": [{"kind": "full"}, {"kind": "full"}, {"kind": "full"}]});
    let all_full = vec!["full_attention"; 3];
    let types = |last: Value| json!({"layer_types": ["full_attention", "full_attention", last]});
    let cases = [
        ("llama", json!({"sliding_window": 64}), "sliding_window: layers of a llama model see everything"),
        ("mistral", json!({}), "sliding_window is missing, null means"),
        (
            "mistral",
            json!({"sliding_window": 0}),
            "sliding_window: expected a whole number from 1 to 1073741824, found 0",
        ),
        ("mistral", json!({"sliding_window": "9"}), "sliding_window: expected a whole number"),
        (
            "mistral",
            json!({"sliding_window": 9, "use_sliding_window": false}),
            "use_sliding_window: false, but sliding_window is 9",
        ),
        (
            "mistral",
            json!({"sliding_window": null, "use_sliding_window": true}),
            "use_sliding_window: true, but sliding_window is null",
        ),
        (
            "llama",
            json!({"layer_types": "full_attention"}),
            "layer_types: expected a list, found \"full_attention\"",
        ),
        ("llama", json!({"layer_types": ["full_attention"]}), "layer_types: 1 layers, the model has 3"),
        (
            "llama",
            types(json!("sliding_attention")),
            "layer_types[2]: \"sliding_attention\", but there is no sliding_window",
        ),
        (
            "mistral",
            types(json!("chunked_attention")),
            "layer_types[2]: \"chunked_attention\", expected full_attention or sliding_attention",
        ),
        ("mistral", types(json!(1)), "layer_types[2]: 1, expected full_attention"),
        ("mistral", json!({"longgen": full, "sliding_window": 9}), "sliding_window: longgen says"),
        ("llama", json!({"longgen": full, "layer_types": all_full}), "layer_types: longgen says"),
    ];
    for (model_type, fields, expected) in cases {
        let (_folder, path) = folder_with(model_type, &fields);
        let message = refusal(&path);
        let expected = format!("config.json: {expected}");
        assert!(message.starts_with(&expected), "{message:?} does not begin with {expected:?}");
    }
}

#[test]
fn windows_of_a_llama_file_are_those_of_its_keys() {
    let tokens = |n| ("llama.attention.sliding_window", OwnedValue::U32(n));
    let pattern = |value| ("llama.attention.sliding_window_pattern", value);
    let bools = |values: &[bool]| pattern(OwnedValue::Bools(values.to_vec()));
    let wrong = |message: &str| Err(message.to_owned());
    let cases = [
        (vec![], Ok([FULL; 3])),
        (vec![tokens(0)], Ok([FULL; 3])),
        (vec![tokens(20)], Ok([window(20); 3])),
        (vec![tokens(20), bools(&[true, false, true])], Ok([window(20), FULL, window(20)])),
        (vec![tokens(20), pattern(OwnedValue::U32(2))], Ok([window(20), FULL, window(20)])),
        (vec![tokens(20), pattern(OwnedValue::U32(3))], Ok([window(20), window(20), FULL])),
        (vec![tokens(20), pattern(OwnedValue::U32(1))], Ok([FULL; 3])),
        (
            vec![tokens(20), bools(&[true, false])],
            wrong("llama.attention.sliding_window_pattern: 2 elements, expected 3"),
        ),
        (
            vec![tokens(20), pattern(OwnedValue::U32(0))],
            wrong("llama.attention.sliding_window_pattern: 0 is not within 1..=4096"),
        ),
        (
            vec![tokens((1 << 30) + 1)],
            wrong("llama.attention.sliding_window: 1073741825 is not within 1..=1073741824"),
        ),
    ];
    let checkpoint = Checkpoint::new(ODD, 1);
    for (keys, expected) in cases {
        let found = masks(&checkpoint.gguf(TensorType::F32, &keys, None));
        match expected {
            Ok(expected) => assert_eq!(found.unwrap(), expected, "{keys:?}"),
            Err(expected) => {
                let message = found.unwrap_err();
                assert!(message.ends_with(&expected), "{message:?} does not end with {expected:?}");
            }
        }
    }
}

/// Gives a key of a file another u32.
fn patch(bytes: &mut [u8], key: &str, value: u32) {
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len();
    // Behind the key: the type, the value.
    bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn heads_and_layers_that_a_small_file_does_not_have_cost_nothing() {
    // A plan of so many numbers takes 32 GiB.
    let mut bytes = Checkpoint::new(ODD, 1).gguf(TensorType::F32, &[], None);
    patch(&mut bytes, "llama.block_count", 4096);
    let message = masks(&bytes).unwrap_err();
    assert!(message.ends_with("blk.3.attn_q.weight: no such tensor"), "{message:?}");
    patch(&mut bytes, "llama.attention.head_count", 1 << 21);
    let message = masks(&bytes).unwrap_err();
    assert!(message.ends_with("blk.0.attn_q.weight: 40 rows, the heads need 20971520"), "{message:?}");
}
