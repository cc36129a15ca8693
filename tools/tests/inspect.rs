//! `lgconvert inspect`: what is in a model, and what a cache of it takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use longgen::{KvType, Model, ModelParams, Session, SessionParams};
use longgen_format::{Directory, SourceType, TensorType};
use longgen_tools::convert::types::MatrixType;
use serde_json::{Value, json};
use support::program::*;
use support::{of_large_blocks, tiny_model};
use tempfile::TempDir;

const LGCONVERT: &str = env!("CARGO_BIN_EXE_lgconvert");
const LGRUN: &str = env!("CARGO_BIN_EXE_lgrun");
const KV_TYPES: [(&str, KvType); 4] =
    [("f32", KvType::F32), ("f16", KvType::F16), ("bf16", KvType::Bf16), ("q8", KvType::Q8)];

fn lgconvert(args: &[&str]) -> std::process::Output {
    run(LGCONVERT, args)
}

/// What inspect shows of a model as JSON.
fn shown(path: &Path, args: &[&str]) -> Value {
    let output = lgconvert(&[&["inspect", str(path), "--json"], args].concat());
    serde_json::from_str(&printed(&output)).unwrap()
}

#[test]
fn inspect_shows_what_is_in_a_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    fs::write(&path, tiny_model::bytes(TensorType::Q8_0)).unwrap();
    let said = printed(&lgconvert(&["inspect", str(&path)]));
    for part in [
        "longgen.embedding_length = 64",
        "general.name = \"tiny\"",
        "(258 x string)",
        "blk.3.ffn_down.weight",
        "Q8_0",
        "96 x 64",
        "the first 5 and the last 70 tokens",
        "blocks of 16: last 1, 1 in 4 (phases 0 1 2)",
    ] {
        assert!(said.contains(part), "{said}\ndoes not show {part:?}");
    }
    // But for the path, all lines fit in a terminal.
    assert!(said.lines().skip(1).all(|line| line.chars().count() <= 80), "{said}");
    assert_quiet_without_reader(LGCONVERT, &["inspect", "--json", str(&path)], 1);
}

#[test]
fn inspect_as_json_is_complete_and_a_plan() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    let bytes = tiny_model::bytes(TensorType::Q8_0);
    fs::write(&path, &bytes).unwrap();
    let shown: Value =
        serde_json::from_str(&printed(&lgconvert(&["inspect", str(&path), "--json"]))).unwrap();
    let directory = Directory::read(&bytes).unwrap();
    assert_eq!(shown["metadata"].as_object().unwrap().len(), directory.metadata.len());
    assert_eq!(shown["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), tiny_model::N_VOCAB);
    assert_eq!(shown["bytes"], bytes.len());
    let tensors = shown["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), directory.tensors().len());
    for (shown, tensor) in tensors.iter().zip(directory.tensors()) {
        assert_eq!(shown["name"], tensor.name());
        assert_eq!(shown["offset"], tensor.offset());
        assert_eq!(shown["hash"].as_str().unwrap().len(), 32);
    }
    // The plan goes back into a file whose layers all see everything.
    let (plan, full, out) =
        (folder.path().join("plan.json"), folder.path().join("full"), folder.path().join("out"));
    fs::write(&plan, json!({"attention": shown["attention"]}).to_string()).unwrap();
    printed(&lgconvert(&[str(&path), "-o", str(&full), "--attention", "full"]));
    assert!(fs::read(&full).unwrap() != bytes);
    printed(&lgconvert(&[str(&full), "-o", str(&out), "--attention", str(&plan)]));
    let converted = support::convert(&path, MatrixType::Keep);
    assert!(fs::read(&out).unwrap() == converted);
}

/// The last number of each line that begins with a label.
fn numbers(table: &str, label: &str) -> Vec<u64> {
    let number = |line: &str| {
        let words = line.replace(',', "");
        words.split_whitespace().filter_map(|word| word.parse().ok()).next_back().unwrap()
    };
    table.lines().filter(|line| line.trim_start().starts_with(label)).map(number).collect()
}

#[test]
fn a_cache_takes_what_lgrun_plans_and_what_a_session_allocates() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("in.gguf");
    fs::write(&path, tiny_model::bytes(TensorType::Q8_0)).unwrap();
    let model = Arc::new(Model::open(&path, &ModelParams { n_threads: 1, ..Default::default() }).unwrap());
    for (kv, kv_type) in KV_TYPES {
        for n_ctx in [1, 100, 1000, 70_001] {
            let ctx = n_ctx.to_string();
            let shown = &shown(&path, &["--ctx", &ctx, "--kv", kv])["kv_bytes"];
            assert_eq!((&shown["n_ctx"], &shown["type"]), (&json!(n_ctx), &json!(kv)));

            let table = printed(&run(LGRUN, &["-m", str(&path), "--plan", "-c", &ctx, "--kv", kv]));
            assert_eq!(numbers(&table, "KV cache"), [shown["total"].as_u64().unwrap()], "{table}");
            let full = table.split_once("would take ").unwrap().1.split(' ').next().unwrap();
            assert_eq!(full.replace(',', ""), shown["full"].to_string());

            let params = SessionParams { n_ctx, kv_type, ..Default::default() };
            let plan = model.plan(&params).unwrap();
            let layers: Vec<_> = plan.layers.iter().map(|layer| layer.kv_bytes).collect();
            assert_eq!(shown["layers"], json!(layers));
            let session = Session::new(&model, &params).unwrap();
            let others = plan.total_bytes() - plan.kv_bytes();
            assert_eq!(shown["total"], model.session_bytes() - others);
            drop(session);
        }
    }
}

#[test]
fn the_cache_of_a_model_that_cannot_be_run_is_known() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, ty: u32| {
        let path = folder.path().join(name);
        fs::write(&path, of_large_blocks(ty)).unwrap();
        path
    };
    let (runs, foreign) = (write("q8_0", TensorType::Q8_0.id()), write("q4_k", SourceType::Q4K.id()));
    let params = ModelParams { n_threads: 1, ..Default::default() };
    assert!(Model::open(&foreign, &params).is_err());
    let model = Model::open(&runs, &params).unwrap();
    let plan = model.plan(&SessionParams { n_ctx: 3000, ..Default::default() }).unwrap();
    let shown = shown(&foreign, &["--ctx", "3000"]);
    // The type that lgrun has without --kv, too.
    assert_eq!(shown["kv_bytes"]["total"], plan.kv_bytes());
    let said = printed(&lgconvert(&["inspect", str(&foreign), "--ctx", "3000"]));
    let mebibytes = format!("{:.1} MiB", plan.kv_bytes() as f64 / f64::from(1 << 20));
    let line = format!("kv cache of 3000 tokens in f16: {mebibytes}, with full attention {mebibytes}");
    assert!(said.contains("Q4_K") && said.contains(&line), "{said}");
}

#[test]
fn a_folder_is_what_its_file_will_be() {
    let folder = Path::new(TINY);
    let file = Path::new(tiny());
    let args = ["--ctx", "8192", "--kv", "q8"];
    let (before, after) = (shown(folder, &args), shown(file, &args));
    assert_eq!(before["attention"], after["attention"]);
    assert_eq!(before["kv_bytes"], after["kv_bytes"]);
    for (key, value) in before["metadata"].as_object().unwrap() {
        assert_eq!(*value, after["metadata"][key], "{key}");
    }
    let names_and_shapes = |shown: &Value| {
        let tensors = shown["tensors"].as_array().unwrap().iter();
        tensors.map(|tensor| (tensor["name"].clone(), tensor["shape"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(names_and_shapes(&before), names_and_shapes(&after));
    let said = printed(&lgconvert(&["inspect", str(folder), "--ctx", "8192", "--kv", "q8"]));
    assert!(said.contains("kv cache of 8192 tokens in q8: "), "{said}");
}
