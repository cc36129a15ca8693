//! The names of the metadata keys; `format/README.md` says what each means.

/// Version of the format that this crate writes, and the newest that it reads.
pub const CURRENT_FORMAT_VERSION: u32 = 1;

/// `longgen` for files of this format.
pub const GENERAL_ARCHITECTURE: &str = "general.architecture";
/// Alignment of tensor data in bytes.
pub const GENERAL_ALIGNMENT: &str = "general.alignment";
/// Name of the model.
pub const GENERAL_NAME: &str = "general.name";

/// Version of this format.
pub const FORMAT_VERSION: &str = "longgen.format_version";
/// The source's architecture; information only.
pub const BASE_ARCHITECTURE: &str = "longgen.base_architecture";
/// Layers.
pub const BLOCK_COUNT: &str = "longgen.block_count";
/// Longest context of the training, in tokens.
pub const CONTEXT_LENGTH: &str = "longgen.context_length";
/// Elements of the residual stream.
pub const EMBEDDING_LENGTH: &str = "longgen.embedding_length";
/// Elements of the gated unit.
pub const FEED_FORWARD_LENGTH: &str = "longgen.feed_forward_length";
/// Tokens of the vocabulary.
pub const VOCAB_SIZE: &str = "longgen.vocab_size";

/// Query heads.
pub const ATTENTION_HEAD_COUNT: &str = "longgen.attention.head_count";
/// KV heads.
pub const ATTENTION_HEAD_COUNT_KV: &str = "longgen.attention.head_count_kv";
/// Elements of a head's keys.
pub const ATTENTION_KEY_LENGTH: &str = "longgen.attention.key_length";
/// Elements of a head's values.
pub const ATTENTION_VALUE_LENGTH: &str = "longgen.attention.value_length";
/// Added to the mean square in norms.
pub const ATTENTION_LAYER_NORM_RMS_EPSILON: &str = "longgen.attention.layer_norm_rms_epsilon";
/// Per layer: `full`, `window` or `blocks`.
pub const ATTENTION_KIND: &str = "longgen.attention.kind";
/// Per layer: tokens of the window, the query included.
pub const ATTENTION_WINDOW_TOKENS: &str = "longgen.attention.window_tokens";
/// Per layer: first tokens that stay visible.
pub const ATTENTION_SINK_TOKENS: &str = "longgen.attention.sink_tokens";
/// Per layer: tokens of a block.
pub const ATTENTION_BLOCK_SIZE: &str = "longgen.attention.block_size";
/// Per layer: visible blocks, the query's included.
pub const ATTENTION_LOCAL_BLOCKS: &str = "longgen.attention.local_blocks";
/// Per layer: first blocks that stay visible.
pub const ATTENTION_SINK_BLOCKS: &str = "longgen.attention.sink_blocks";
/// Per layer: distance of the strided blocks; 0 for none.
pub const ATTENTION_STRIDE: &str = "longgen.attention.stride";
/// Layer after layer, per query head: shift of the strided blocks.
pub const ATTENTION_PHASES: &str = "longgen.attention.phases";

/// Base of the rotary frequencies.
pub const ROPE_FREQ_BASE: &str = "longgen.rope.freq_base";
/// Elements of a head that turn.
pub const ROPE_DIMENSION_COUNT: &str = "longgen.rope.dimension_count";
/// `adjacent` or `halves`.
pub const ROPE_PAIRING: &str = "longgen.rope.pairing";
/// Factor of cosines and sines.
pub const ROPE_ATTENTION_FACTOR: &str = "longgen.rope.attention_factor";

/// Kind of the norms.
pub const BLOCK_NORM: &str = "longgen.block.norm";
/// Function of the gated unit.
pub const BLOCK_ACTIVATION: &str = "longgen.block.activation";

/// A Hugging Face tokenizer.json without vocabulary and merges.
pub const TOKENIZER_PIPELINE: &str = "longgen.tokenizer.pipeline";

/// Name of the checksum.
pub const HASH_ALGORITHM: &str = "longgen.hash.algorithm";
/// Checksums of the tensors, in their order.
pub const HASH_TENSORS: &str = "longgen.hash.tensors";
/// Checksum of everything before the tensor data; the last key.
pub const HASH_HEADER: &str = "longgen.hash.header";

/// Every key under `longgen.attention.`, `longgen.rope.` and `longgen.block.`: a reader that meets another one there
/// must refuse the file.
pub const STRUCTURE: &[&str] = &[
    ATTENTION_HEAD_COUNT,
    ATTENTION_HEAD_COUNT_KV,
    ATTENTION_KEY_LENGTH,
    ATTENTION_VALUE_LENGTH,
    ATTENTION_LAYER_NORM_RMS_EPSILON,
    ATTENTION_KIND,
    ATTENTION_WINDOW_TOKENS,
    ATTENTION_SINK_TOKENS,
    ATTENTION_BLOCK_SIZE,
    ATTENTION_LOCAL_BLOCKS,
    ATTENTION_SINK_BLOCKS,
    ATTENTION_STRIDE,
    ATTENTION_PHASES,
    ROPE_FREQ_BASE,
    ROPE_DIMENSION_COUNT,
    ROPE_PAIRING,
    ROPE_ATTENTION_FACTOR,
    BLOCK_NORM,
    BLOCK_ACTIVATION,
];
