//! A model of a few layers with random weights and every kind of attention, as bytes of a model file.

use std::io::Cursor;

use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen_format::{OwnedValue, TensorDecl, TensorType, Writer, keys, quant};

use super::random::Random;

/// Tokens of the vocabulary: one per byte, then two control tokens.
pub const N_VOCAB: usize = 258;
/// Begins every text.
pub const BOS: u32 = 256;
/// Ends a text.
pub const EOS: u32 = 257;
/// Query heads.
pub const N_HEADS: usize = 4;
/// KV heads.
pub const N_KV_HEADS: usize = 2;

/// Elements of a head.
pub const HEAD_DIM: usize = 32;

/// Widths of the residual stream and of the perceptron.
pub const WIDTHS: [usize; 2] = [64, 96];

/// Full, window with sinks, blocks with a sink, blocks with a stride and a phase per query head.
pub fn plan() -> Vec<LayerAttention> {
    let blocks = |local_blocks, sink_blocks, stride| Mask::Blocks {
        block_size: 16,
        local_blocks,
        sink_blocks,
        stride,
    };
    vec![
        LayerAttention::uniform(Mask::Window { window_tokens: 70, sink_tokens: 5 }, N_HEADS),
        LayerAttention::uniform(Mask::Full, N_HEADS),
        LayerAttention::uniform(blocks(2, 1, 0), N_HEADS),
        LayerAttention { mask: blocks(1, 0, 4), phases: vec![0, 1, 2, 2] },
    ]
}

/// The bytes of a model file whose matrices have this type.
pub fn bytes(ty: TensorType) -> Vec<u8> {
    bytes_with(ty, &plan())
}

/// The same with another plan.
pub fn bytes_with(ty: TensorType, plan: &[LayerAttention]) -> Vec<u8> {
    bytes_of(ty, plan, WIDTHS, &[])
}

/// The same with the first two layers, but rows so wide that every warp of a device has several parts of them.
pub fn wide_bytes(ty: TensorType) -> Vec<u8> {
    bytes_of(ty, &plan()[..2], [1056, 8288], &[])
}

/// The same with more keys.
pub fn bytes_with_metadata(ty: TensorType, more: &[(String, OwnedValue)]) -> Vec<u8> {
    bytes_of(ty, &plan(), WIDTHS, more)
}

fn bytes_of(
    ty: TensorType,
    plan: &[LayerAttention],
    widths: [usize; 2],
    more: &[(String, OwnedValue)],
) -> Vec<u8> {
    let [d_model, d_ff] = widths;
    let (q_dim, kv_dim) = (N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM);
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![d_model, N_VOCAB])];
    for i in 0..plan.len() {
        for (name, shape) in [
            ("attn_norm.weight", vec![d_model]),
            ("attn_q.weight", vec![d_model, q_dim]),
            ("attn_q.bias", vec![q_dim]),
            ("attn_k.weight", vec![d_model, kv_dim]),
            ("attn_v.weight", vec![d_model, kv_dim]),
            ("attn_output.weight", vec![q_dim, d_model]),
            ("ffn_norm.weight", vec![d_model]),
            ("ffn_gate.weight", vec![d_model, d_ff]),
            ("ffn_up.weight", vec![d_model, d_ff]),
            ("ffn_down.weight", vec![d_ff, d_model]),
        ] {
            tensors.push((format!("blk.{i}.{name}"), shape));
        }
    }
    tensors.push(("output_norm.weight".to_owned(), vec![d_model]));

    let decl = |(name, shape): &(String, Vec<usize>)| TensorDecl {
        name: name.clone(),
        shape: shape.iter().map(|&dim| dim as u64).collect(),
        ty: if shape.len() == 1 { TensorType::F32 } else { ty },
    };
    let decls: Vec<_> = tensors.iter().map(decl).collect();
    let metadata = [metadata(plan, widths), more.to_vec()].concat();
    let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, decls.clone()).unwrap();
    let mut random = Random::new(1);
    for (decl, (name, shape)) in decls.iter().zip(&tensors) {
        let n: usize = shape.iter().product();
        // Whatever the width, products are of one size.
        let size = 0.3 * (WIDTHS[0] as f32 / d_model as f32).sqrt();
        let mut values = random.vector(n, if name.contains("token_embd") { 1.0 } else { size });
        if name.contains("norm") {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        let mut data = vec![0; usize::try_from(decl.n_bytes().unwrap()).unwrap()];
        quant::quantize(decl.ty, &values, &mut data).unwrap();
        writer.write_tensor(&data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn metadata(plan: &[LayerAttention], [d_model, d_ff]: [usize; 2]) -> Vec<(String, OwnedValue)> {
    let u32s = |number: &dyn Fn(&Mask) -> u32| {
        OwnedValue::U32s(plan.iter().map(|layer| number(&layer.mask)).collect())
    };
    let u32 = |n: usize| OwnedValue::U32(u32::try_from(n).unwrap());
    let str = |text: &str| OwnedValue::Str(text.to_owned());
    let block = |field: &dyn Fn(u32, u32, u32, u32) -> u32| {
        u32s(&|mask| match *mask {
            Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
                field(block_size, local_blocks, sink_blocks, stride)
            }
            _ => 0,
        })
    };
    let window = |field: &dyn Fn(u32, u32) -> u32| {
        u32s(&|mask| match *mask {
            Mask::Window { window_tokens, sink_tokens } => field(window_tokens, sink_tokens),
            _ => 0,
        })
    };
    // The printable form of each byte in byte-level vocabularies: itself where it is visible, moved up otherwise.
    let mut moved = 256u32..;
    let is_visible = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| {
            let code = if is_visible(&byte) { u32::from(byte) } else { moved.next().unwrap() };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.extend(["<|bos|>".to_owned(), "<|eos|>".to_owned()]);
    let kinds = (0..N_VOCAB).map(|id| if id < 256 { 1 } else { 3 }).collect();

    let pairs = [
        (keys::GENERAL_ARCHITECTURE, str("longgen")),
        (keys::GENERAL_NAME, str("tiny")),
        (keys::FORMAT_VERSION, OwnedValue::U32(1)),
        (keys::BLOCK_COUNT, u32(plan.len())),
        (keys::CONTEXT_LENGTH, OwnedValue::U32(1024)),
        (keys::EMBEDDING_LENGTH, u32(d_model)),
        (keys::FEED_FORWARD_LENGTH, u32(d_ff)),
        (keys::ATTENTION_HEAD_COUNT, u32(N_HEADS)),
        (keys::ATTENTION_HEAD_COUNT_KV, u32(N_KV_HEADS)),
        (keys::ATTENTION_KEY_LENGTH, u32(HEAD_DIM)),
        (keys::ATTENTION_LAYER_NORM_RMS_EPSILON, OwnedValue::F32(1e-5)),
        (keys::ATTENTION_KIND, OwnedValue::Strs(plan.iter().map(|layer| layer.kind().to_owned()).collect())),
        (keys::ATTENTION_WINDOW_TOKENS, window(&|tokens, _| tokens)),
        (keys::ATTENTION_SINK_TOKENS, window(&|_, sinks| sinks)),
        (keys::ATTENTION_BLOCK_SIZE, block(&|size, _, _, _| size)),
        (keys::ATTENTION_LOCAL_BLOCKS, block(&|_, local, _, _| local)),
        (keys::ATTENTION_SINK_BLOCKS, block(&|_, _, sinks, _| sinks)),
        (keys::ATTENTION_STRIDE, block(&|_, _, _, stride| stride)),
        (
            keys::ATTENTION_PHASES,
            OwnedValue::U32s(plan.iter().flat_map(|layer| layer.phases.clone()).collect()),
        ),
        (keys::ROPE_FREQ_BASE, OwnedValue::F32(10_000.0)),
        (keys::ROPE_PAIRING, str("halves")),
        (keys::BLOCK_NORM, str("rms_norm")),
        (keys::BLOCK_ACTIVATION, str("silu")),
        ("tokenizer.ggml.model", str("gpt2")),
        ("tokenizer.ggml.pre", str("gpt-2")),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(tokens)),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(kinds)),
        ("tokenizer.ggml.merges", OwnedValue::Strs(Vec::new())),
        ("tokenizer.ggml.bos_token_id", OwnedValue::U32(BOS)),
        ("tokenizer.ggml.eos_token_id", OwnedValue::U32(EOS)),
        ("tokenizer.ggml.add_bos_token", OwnedValue::Bool(true)),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
