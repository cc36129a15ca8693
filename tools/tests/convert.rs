//! Conversions: the result computes what the source does, holds its values, and does not depend on how it was made.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::{Cancel, Device, Model, ModelParams, Session, SessionParams};
use longgen_format::{Directory, OwnedValue, SourceType, TensorType, keys, quant};
use longgen_tools::convert::types::MatrixType;
use longgen_tools::plan::{self, AttentionArgs, PlanShape};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use support::random::Random;
use support::*;
use tempfile::TempDir;

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn open(path: &Path) -> Arc<Model> {
    let params = ModelParams { device: Device::Reference, verify: false, ..Default::default() };
    Arc::new(Model::open(path, &params).unwrap())
}

/// Logits behind every token of a random text.
fn logits(path: &Path, n_tokens: usize) -> Vec<f32> {
    let mut random = Random::new(77);
    let text: Vec<u32> = (0..n_tokens).map(|_| random.below(256).try_into().unwrap()).collect();
    let mut session = Session::new(&open(path), &SessionParams::default()).unwrap();
    let mut all = Vec::new();
    let each = &mut |_: usize, logits: &[f32]| {
        all.extend_from_slice(logits);
        Ok(())
    };
    session.prefill_each(&text, &Cancel::default(), each).unwrap();
    all
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "differ by {worst}");
}

#[test]
fn a_converted_llama_file_computes_the_same_bits() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    checkpoint.add("model.layers.1.self_attn.q_proj.bias", &[N_HEADS * ODD.head_dim], 5);
    checkpoint.add("lm_head.weight", &[tiny_model::N_VOCAB, ODD.d_model], 6);
    let linear = [
        ("llama.rope.scaling.type", OwnedValue::Str("linear".to_owned())),
        ("llama.rope.scaling.factor", OwnedValue::F32(3.0)),
    ];
    let off = [("llama.rope.scaling.type", OwnedValue::Str("none".to_owned())), linear[1].clone()];
    let window = [
        ("llama.attention.sliding_window", OwnedValue::U32(20)),
        ("llama.attention.sliding_window_pattern", OwnedValue::Bools(vec![true, false, true])),
    ];
    // Powers of two, so that the order of the divisions does not matter.
    let divisors: Vec<f32> = vec![1.0, 1.0, 2.0, 8.0, 4.0];
    for (keys, divisors) in [
        (&linear[..], None),
        (&linear[1..], None),
        (&off, None),
        (&window, Some(divisors.clone())),
        (&linear, Some(divisors)),
        (&[], None),
    ] {
        let plain = write(&folder, "plain.gguf", &checkpoint.gguf(TensorType::F16, keys, divisors));
        let converted = write(&folder, "converted.gguf", &convert(&plain, MatrixType::Keep));
        assert_eq!(logits(&plain, 100), logits(&converted, 100));
    }
}

#[test]
fn a_folder_and_a_llama_file_of_one_model_compute_the_same() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 2);
    checkpoint.config["rope_scaling"] = json!({"type": "linear", "factor": 2.5});
    checkpoint.config["attention_bias"] = true.into();
    checkpoint.config["mlp_bias"] = true.into();
    checkpoint.config["tie_word_embeddings"] = false.into();
    checkpoint.add("lm_head.weight", &[tiny_model::N_VOCAB, ODD.d_model], 9);
    let Sizes { d_model, head_dim, d_ff } = ODD;
    for i in 0..N_LAYERS {
        for (part, n) in [
            ("self_attn.q_proj", N_HEADS * head_dim),
            ("self_attn.k_proj", N_KV_HEADS * head_dim),
            ("self_attn.v_proj", N_KV_HEADS * head_dim),
            ("self_attn.o_proj", d_model),
            ("mlp.gate_proj", d_ff),
            ("mlp.up_proj", d_ff),
            ("mlp.down_proj", d_model),
        ] {
            checkpoint.add(&format!("model.layers.{i}.{part}.bias"), &[n], 10 + i as u64);
        }
    }
    let from_folder = write(&folder, "a.gguf", &convert(&checkpoint.write(folder.path()), MatrixType::Keep));
    // Linear scaling by a file that gives no type for it.
    let keys = [("llama.rope.scaling.factor", OwnedValue::F32(2.5))];
    let plain = write(&folder, "plain.gguf", &checkpoint.gguf(TensorType::F32, &keys, None));
    let from_file = write(&folder, "b.gguf", &convert(&plain, MatrixType::Keep));
    let expected = logits(&from_folder, 60);
    assert_close(&expected, &logits(&from_file, 60), 1e-4);
    assert_close(&expected, &logits(&plain, 60), 1e-4);
}

#[test]
fn llama3_scaling_gives_the_frequencies_of_its_definition() {
    let folder = TempDir::new().unwrap();
    let sizes = Sizes { head_dim: 128, ..ODD };
    let mut checkpoint = Checkpoint::new(sizes, 3);
    for (spelling, is_per_type) in
        [("rope_scaling", false), ("rope_parameters", false), ("rope_parameters", true)]
    {
        let config = checkpoint.config.as_object_mut().unwrap();
        config.remove("rope_scaling");
        config.insert("rope_theta".to_owned(), 500000.0.into());
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let per_type = json!({"full_attention": scaling, "sliding_attention": scaling});
        config.insert(spelling.to_owned(), if is_per_type { per_type } else { scaling });
        let file = write(&folder, "out.gguf", &convert(&checkpoint.write(folder.path()), MatrixType::Keep));
        let model = open(&file);
        for (pair, &found) in model.config().rope.inv_freq.iter().enumerate() {
            let inv_freq = 1.0 / 500000f64.powf(pair as f64 / 64.0);
            let wavelength = 2.0 * std::f64::consts::PI / inv_freq;
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            let expected = match wavelength {
                w if w < 8192.0 / 4.0 => inv_freq,
                w if w > 8192.0 => inv_freq / 8.0,
                _ => (1.0 - smooth) * inv_freq / 8.0 + smooth * inv_freq,
            };
            assert!((f64::from(found) / expected - 1.0).abs() < 1e-6, "pair {pair}: {found}, not {expected}");
        }
        assert_eq!(model.config().rope.inv_freq.len(), 64);
    }
}

/// What elements of each type mean, from their definition.
fn decode(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let u16_at = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    match ty {
        TensorType::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        TensorType::F16 => bytes.chunks(2).map(|b| f16::from_bits(u16_at(b)).to_f32()).collect(),
        TensorType::BF16 => bytes.chunks(2).map(|b| bf16::from_bits(u16_at(b)).to_f32()).collect(),
        TensorType::Q8_0 => {
            let block = |b: &[u8]| {
                let scale = f16::from_bits(u16_at(b)).to_f32();
                b[2..].iter().map(|&q| scale * f32::from(q.cast_signed())).collect::<Vec<_>>()
            };
            bytes.chunks(34).flat_map(block).collect()
        }
        _ => {
            let block = |b: &[u8]| {
                let scale = f16::from_bits(u16_at(b)).to_f32();
                let number = |nibble: u8| scale * (f32::from(nibble) - 8.0);
                let (low, high) = (b[2..].iter().map(|q| q & 15), b[2..].iter().map(|q| q >> 4));
                low.chain(high).map(number).collect::<Vec<_>>()
            };
            bytes.chunks(18).flat_map(block).collect()
        }
    }
}

/// The largest error that each type allows for a number of a block with the largest magnitude `max`.
fn allowed(ty: TensorType, x: f32, max: f32) -> f32 {
    match ty {
        TensorType::F16 => x.abs() / 2048.0 + 6e-8,
        TensorType::BF16 => x.abs() / 256.0,
        TensorType::Q8_0 => max / 254.0 * 1.06,
        // The number opposite to the extreme one is cut off at 7 of 8.
        TensorType::Q4_0 => max / 8.0 * 1.01,
        _ => 0.0,
    }
}

#[test]
fn every_matrix_holds_the_values_of_the_source_in_the_type_asked_for() {
    let folder = TempDir::new().unwrap();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut checkpoint = Checkpoint::new(WHOLE_BLOCKS, 4);
        checkpoint.dtype = dtype;
        let input = checkpoint.write(folder.path());
        for (matrices, ty) in [
            (MatrixType::F32, TensorType::F32),
            (MatrixType::F16, TensorType::F16),
            (MatrixType::Bf16, TensorType::BF16),
            (MatrixType::Q8_0, TensorType::Q8_0),
            (MatrixType::Q4_0, TensorType::Q4_0),
        ] {
            let bytes = convert(&input, matrices);
            let directory = Directory::read(&bytes).unwrap();
            directory.verify(|_| {}).unwrap();
            assert_eq!(directory.tensors().len(), checkpoint.tensors.len());
            for (name, source) in &checkpoint.tensors {
                let name = gguf_name(name);
                let tensor = directory.tensor(&name).unwrap();
                let expected_ty = if source.shape.len() == 1 { TensorType::F32 } else { ty };
                assert_eq!(tensor.ty().unwrap(), expected_ty, "{name}");
                let shape: Vec<_> = source.shape.iter().rev().map(|&n| n as u64).collect();
                assert_eq!(tensor.shape(), shape, "{name}");
                // The values are made so that all three types of the source hold them, f16 up to its precision.
                let stored = |&x: &f32| if dtype == Dtype::F16 { f16::from_f32(x).to_f32() } else { x };
                let expected: Vec<f32> = source.values.iter().map(stored).collect();
                let found = decode(expected_ty, directory.tensor_bytes(tensor));
                for (found, expected) in found.chunks(32).zip(expected.chunks(32)) {
                    let max = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    for (found, &x) in found.iter().zip(expected) {
                        assert!(
                            (found - x).abs() <= allowed(expected_ty, x, max),
                            "{name}: {x} became {found}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_tensor_of_several_chunks_is_converted_row_by_row() {
    // 258 rows of 8,416 elements: twice the elements of a chunk, and some.
    let folder = TempDir::new().unwrap();
    let checkpoint = Checkpoint::new(Sizes { d_model: 8416, head_dim: 32, d_ff: 32 }, 8);
    let bytes = convert(&checkpoint.write(folder.path()), MatrixType::Q8_0);
    let directory = Directory::read(&bytes).unwrap();
    let embedding = directory.tensor("token_embd.weight").unwrap();
    let source = &checkpoint.tensors["model.embed_tokens.weight"].values;
    let mut expected = vec![0; source.len() / 32 * 34];
    quant::quantize(TensorType::Q8_0, source, &mut expected).unwrap();
    assert!(directory.tensor_bytes(embedding) == expected);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut checkpoint = Checkpoint::new(WHOLE_BLOCKS, 6);
    let whole = convert(&checkpoint.write(here.path()), MatrixType::Q8_0);
    assert!(whole == convert(&checkpoint.write(here.path()), MatrixType::Q8_0));
    checkpoint.n_files = 3;
    let split = checkpoint.write(there.path());
    assert!(whole == convert(&split, MatrixType::Q8_0), "one file or three, the model is the same");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(whole == one_thread.install(|| convert(&split, MatrixType::Q8_0)));
}

#[test]
fn a_result_converted_again_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    let bytes = convert(&Checkpoint::new(WHOLE_BLOCKS, 7).write(folder.path()), MatrixType::Q8_0);
    let first = write(&folder, "first.gguf", &bytes);
    assert!(convert(&first, MatrixType::Keep) == bytes);
    assert!(
        convert(&first, MatrixType::Q8_0) == bytes,
        "numbers of q8_0 blocks are those of their own blocks"
    );
}

#[test]
fn a_new_plan_changes_nothing_but_the_plan() {
    let folder = TempDir::new().unwrap();
    let input = write(&folder, "in.gguf", &tiny_model::bytes(TensorType::Q8_0));
    let sink =
        AttentionArgs { attention: Some("longgen-sink".to_owned()), local: Some(2), ..Default::default() };
    let bytes = convert_with(&input, MatrixType::Keep, &sink).unwrap();
    let (before, after) = (fs::read(&input).unwrap(), Directory::read(&bytes).unwrap());
    let before = Directory::read(&before).unwrap();
    for (a, b) in before.tensors().iter().zip(after.tensors()) {
        assert_eq!(
            (a.name(), a.type_id(), before.tensor_bytes(a)),
            (b.name(), b.type_id(), after.tensor_bytes(b))
        );
    }
    for (key, value) in before.metadata.iter() {
        let plan = key.starts_with("longgen.attention.") && !key.contains("head_count");
        if !plan && !key.starts_with("longgen.hash.") {
            assert_eq!(
                after.metadata.get(key).map(|value| value.into()),
                Some(OwnedValue::from(value)),
                "{key}"
            );
        }
    }
    let out = write(&folder, "out.gguf", &bytes);
    let blocks = Mask::Blocks { block_size: 64, local_blocks: 2, sink_blocks: 1, stride: 0 };
    let masks = [blocks, Mask::Full, Mask::Full, blocks];
    let expected = masks.map(|mask| LayerAttention::uniform(mask, tiny_model::N_HEADS));
    assert_eq!(open(&out).config().attention, expected);
}

#[test]
fn metadata_of_a_llama_file_is_kept_under_its_new_names() {
    let folder = TempDir::new().unwrap();
    let kept = [
        ("general.name", OwnedValue::Str("näme".to_owned())),
        ("general.tags", OwnedValue::Strs(vec!["a".to_owned(), String::new()])),
        ("somebody.else", OwnedValue::I64s(vec![-1, i64::MAX])),
    ];
    let input =
        write(&folder, "in.gguf", &Checkpoint::new(WHOLE_BLOCKS, 1).gguf(TensorType::Q8_0, &kept, None));
    let bytes = convert(&input, MatrixType::Keep);
    let metadata = Directory::read(&bytes).unwrap().metadata;
    assert_eq!(metadata.iter().next().unwrap().0, "general.architecture");
    assert_eq!(metadata.require_str(keys::GENERAL_ARCHITECTURE).unwrap(), "longgen");
    assert_eq!(metadata.require_str(keys::BASE_ARCHITECTURE).unwrap(), "llama");
    assert_eq!(metadata.require_str(keys::ROPE_PAIRING).unwrap(), "adjacent");
    assert_eq!(metadata.require_u32(keys::EMBEDDING_LENGTH).unwrap(), 96);
    assert!(metadata.iter().all(|(key, _)| !key.starts_with("llama.")));
    // The file only names its pipeline.
    assert!(metadata.require_str(keys::TOKENIZER_PIPELINE).unwrap().contains("ByteLevel"));
    for (key, value) in kept {
        assert_eq!(metadata.get(key).map(|found| found.into()), Some(value), "{key}");
    }
}

#[test]
fn the_text_of_a_llama_file_with_scores_is_the_text_of_its_result() {
    let folder = TempDir::new().unwrap();
    let mut tokens =
        ["<unk>", "▁", "h", "e", "l", "o", "he", "ll", "hell", "▁hell"].map(str::to_owned).to_vec();
    tokens.extend((tokens.len()..256).map(|id| format!("<{id}>")));
    tokens.extend(["<s>", "</s>"].map(str::to_owned));
    let scores = (0u16..).take(tokens.len()).map(|id| -f32::from(id)).collect();
    let types = (0..tokens.len()).map(|id| if id == 0 { 2 } else { 1 + 2 * i32::from(id >= 256) }).collect();
    let scored = [
        ("tokenizer.ggml.model", OwnedValue::Str("llama".to_owned())),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(tokens)),
        ("tokenizer.ggml.scores", OwnedValue::F32s(scores)),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(types)),
        ("tokenizer.ggml.unknown_token_id", OwnedValue::U32(0)),
    ];
    let input = write(&folder, "in.gguf", &Checkpoint::new(ODD, 1).gguf(TensorType::F32, &scored, None));
    let bytes = convert(&input, MatrixType::Keep);
    let metadata = Directory::read(&bytes).unwrap().metadata;
    assert!(metadata.require_str(keys::TOKENIZER_PIPELINE).unwrap().contains("Prepend"));
    let (plain, converted) = (open(&input), open(&write(&folder, "out.gguf", &bytes)));
    for text in ["hello hell", " hell</s>ox", ""] {
        let ids = plain.tokenizer().encode(text, true, true).unwrap();
        assert_eq!(converted.tokenizer().encode(text, true, true).unwrap(), ids);
        assert_eq!(converted.tokenizer().decode(&ids, false), plain.tokenizer().decode(&ids, false));
    }
    assert_eq!(plain.tokenizer().encode("hell", false, true).unwrap(), [256, 9]);
}

#[test]
fn the_text_of_a_folder_is_the_text_of_its_file() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    checkpoint.tokenizer_config["chat_template"] = "{{ messages[0].content }}!".into();
    let input = checkpoint.write(folder.path());
    fs::write(input.join("generation_config.json"), json!({"eos_token_id": [257, 7]}).to_string()).unwrap();
    let file = write(&folder, "out.gguf", &convert(&input, MatrixType::Keep));
    let model = open(&file);
    assert!(model.chat_template().is_some());
    assert_eq!(model.config().name.as_deref(), Some("model"));
    let bytes = fs::read(&file).unwrap();
    let metadata = Directory::read(&bytes).unwrap().metadata;
    assert_eq!(metadata.require_u32("tokenizer.ggml.eos_token_id").unwrap(), 257);
    assert_eq!(metadata.require_u32("tokenizer.ggml.eot_token_id").unwrap(), 7);

    // A template in a file of its own goes before the other.
    fs::write(input.join("chat_template.jinja"), "{{ bos_token }}").unwrap();
    let bytes = convert(&input, MatrixType::Keep);
    let metadata = Directory::read(&bytes).unwrap().metadata;
    assert_eq!(metadata.require_str("tokenizer.chat_template").unwrap(), "{{ bos_token }}");
}

#[test]
fn an_output_that_repeats_a_tied_embedding_is_left_out() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = Checkpoint::new(ODD, 1);
    let without = convert(&checkpoint.write(folder.path()), MatrixType::Keep);
    let embedding = checkpoint.tensors["model.embed_tokens.weight"].clone();
    checkpoint.tensors.insert("lm_head.weight".to_owned(), embedding);
    checkpoint.add("model.layers.0.self_attn.rotary_emb.inv_freq", &[ODD.head_dim / 2], 1);
    assert!(without == convert(&checkpoint.write(folder.path()), MatrixType::Keep));
}

#[test]
fn a_trained_checkpoint_needs_no_flag() {
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/longgen-tiny-8k");
    let folder = TempDir::new().unwrap();
    let out = write(&folder, "tiny.gguf", &convert(&input, MatrixType::Keep));
    let model = open(&out);
    let blocks = |local_blocks, sink_blocks, stride| Mask::Blocks {
        block_size: 64,
        local_blocks,
        sink_blocks,
        stride,
    };
    let sink = LayerAttention::uniform(blocks(4, 1, 0), 4);
    let full = LayerAttention::uniform(Mask::Full, 4);
    let strided = LayerAttention { mask: blocks(2, 0, 8), phases: vec![1, 1, 5, 5] };
    let expected: Vec<_> = [sink, full, strided].iter().flat_map(|layer| vec![layer.clone(); 3]).collect();
    assert_eq!(model.config().attention, expected);
    assert_eq!(model.config().name.as_deref(), Some("longgen-tiny-8k"));

    // Rows and bytes are those of the source.
    let (source, bytes) = (fs::read(input.join("model.safetensors")).unwrap(), fs::read(&out).unwrap());
    let (source, directory) = (SafeTensors::deserialize(&source).unwrap(), Directory::read(&bytes).unwrap());
    let (mut matrices, mut n_bytes) = (0, 0);
    for (name, tensor) in source.iter().filter(|(_, tensor)| tensor.shape().len() == 2) {
        let written = directory.tensor(&gguf_name(name)).unwrap();
        assert_eq!(written.ty().unwrap(), TensorType::BF16);
        assert!(directory.tensor_bytes(written) == tensor.data(), "{name}");
        (matrices, n_bytes) = (matrices + 1, n_bytes + tensor.data().len());
    }
    assert_eq!((matrices, n_bytes > 15_000_000), (64, true));
}

#[test]
fn types_that_model_files_do_not_have_become_the_numbers_that_they_stand_for() {
    const NAME: &str = "blk.1.ffn_up.weight";
    let folder = TempDir::new().unwrap();
    for ty in SourceType::FOREIGN {
        let bytes = of_large_blocks(ty.id());
        let source = Directory::read(&bytes).unwrap();
        let mut numbers = vec![0.0; 256 * 256];
        ty.dequantize(source.tensor_bytes(source.tensor(NAME).unwrap()), &mut numbers).unwrap();
        let numbers: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();

        let converted = convert(&write(&folder, "in.gguf", &bytes), MatrixType::F32);
        let converted = Directory::read(&converted).unwrap();
        let tensor = converted.tensor(NAME).unwrap();
        assert_eq!(tensor.ty().unwrap(), TensorType::F32);
        assert_eq!(converted.tensor_bytes(tensor), numbers, "{ty}");
    }
}

/// Any layer's attention, small numbers and large ones.
fn any_layer() -> impl Strategy<Value = LayerAttention> {
    let mask = prop_oneof![
        Just(Mask::Full),
        (1u32..1 << 30, 0u32..1 << 30)
            .prop_map(|(window_tokens, sink_tokens)| Mask::Window { window_tokens, sink_tokens }),
        (prop::sample::select(vec![16u32, 32, 64, 128, 256]), 1u32..1 << 24, 0u32..100, 0u32..70).prop_map(
            |(block_size, local_blocks, sink_blocks, stride)| Mask::Blocks {
                block_size,
                local_blocks,
                sink_blocks,
                stride
            }
        ),
    ];
    (mask, prop::collection::vec(0u32..100, N_HEADS)).prop_map(|(mask, phases)| match mask {
        Mask::Blocks { .. } => LayerAttention { mask, phases },
        _ => LayerAttention::uniform(mask, N_HEADS),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_plan_of_a_folder_arrives_in_the_file(plan in prop::collection::vec(any_layer(), N_LAYERS)) {
        let folder = TempDir::new().unwrap();
        let mut checkpoint = Checkpoint::new(ODD, 1);
        checkpoint.config["longgen"] = json!({"attention": plan::to_json(&plan)});
        let shape = PlanShape { n_layers: N_LAYERS, n_heads: N_HEADS, n_kv_heads: N_KV_HEADS };
        prop_assert_eq!(&plan::from_json(&checkpoint.config["longgen"], shape).unwrap(), &plan);
        let out = write(&folder, "out.gguf", &convert(&checkpoint.write(folder.path()), MatrixType::Keep));
        let model = open(&out);
        prop_assert_eq!(&model.config().attention, &plan);
    }
}
