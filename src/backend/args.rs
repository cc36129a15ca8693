//! The arguments of the ops: plain data, one struct an op, the same for every backend.
//!
//! Activations are rows of `f32` in a backend buffer, row after row: (n_rows, width). Outputs come first and belong
//! to the caller. Lengths are counted in elements.

use std::ops::Range;
use std::sync::Arc;

pub use longgen_format::TensorType;

use super::Backend;
use crate::alloc::try_collect;
use crate::attention::mask::Mask;
use crate::error::{Error, Result};
use crate::kv::layer::LayerKv;
use crate::kv::slots::SlotMap;

/// How precisely an op must compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 activations and accumulation.
    Exact,
    /// Activations may be rounded to 8 or 16 bits on their way into a matrix product.
    #[default]
    Fast,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    #[default]
    F16,
    /// Upper halves of 32-bit floats.
    Bf16,
    /// 8-bit integers. The key of a token and KV head is a row with one 16-bit scale, and so is its value.
    ///
    /// In f32 arithmetic: `scale = f16(max |x| / 127)` over the row, and each quant is `x / scale`, rounded to nearest,
    /// ties to even, and clamped to +-127; all are zero where the scale is. A row with a number that is not finite, or
    /// so large that its scale is not, gets NaN for its scale: whoever sees it computes NaN instead of a wrong number.
    Q8,
}

impl KvType {
    /// Bytes of one element, without its share of a scale.
    pub fn elem_bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
            KvType::Q8 => 1,
        }
    }

    /// Bytes of the scale of a row; 0 if rows have none.
    pub fn scale_bytes(self) -> usize {
        match self {
            KvType::F32 | KvType::F16 | KvType::Bf16 => 0,
            KvType::Q8 => 2,
        }
    }

    /// Bytes of a row, which is the key or the value of one token and KV head, with its scale.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        head_dim * self.elem_bytes() + self.scale_bytes()
    }
}

/// Read-only bytes that live as long as somebody holds them: a mapped file or memory.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix as it lies in the model file.
#[derive(Clone)]
pub struct WeightData {
    /// The file's bytes.
    pub file: SharedBytes,
    /// Where in the file the matrix lies: `rows` rows of `ty.row_bytes(cols)` bytes.
    pub range: Range<usize>,
    /// Element type; quantised ones are used as they are.
    pub ty: TensorType,
    /// Outputs of the product.
    pub rows: usize,
    /// Inputs of the product: the contiguous dimension.
    pub cols: usize,
}

impl WeightData {
    /// The bytes of the matrix.
    pub fn bytes(&self) -> &[u8] {
        &(*self.file).as_ref()[self.range.clone()]
    }
}

/// What a backend must know to set working memory aside for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkspaceShape {
    /// Most rows of one op.
    pub max_rows: usize,
    /// Widest input of a matrix product.
    pub max_cols: usize,
    /// Elements of the largest matrix.
    pub max_weight_elems: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Longest context.
    pub n_ctx: usize,
}

/// What changes in a session from step to step: which rows of the step are its own, and where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StepRows {
    /// First row of this session in the step's activations.
    pub row: u32,
    /// Rows, which are tokens, of this session in the step.
    pub n_tokens: u32,
    /// Position of the first of them; also how many tokens the session held before.
    pub pos: u32,
}

impl StepRows {
    /// Position behind the last token.
    pub fn end(&self) -> u32 {
        self.pos + self.n_tokens
    }

    /// The last row in the step's activations.
    pub fn last_row(&self) -> usize {
        (self.row + self.n_tokens) as usize - 1
    }

    /// The last block that the tokens touch.
    pub fn last_block(&self, block_size: u32) -> u32 {
        self.end().saturating_sub(1) / block_size
    }

    /// The first of the last `n_blocks` blocks that the tokens touch.
    pub fn first_block(&self, block_size: u32, n_blocks: u32) -> u32 {
        (self.pos / block_size).max((self.last_block(block_size) + 1).saturating_sub(n_blocks))
    }
}

/// `out[i] = scale * table[tokens[i]]`, for a (n_vocab, width) table.
pub struct EmbedArgs<'a, B: Backend> {
    /// (n_tokens, width)
    pub out: &'a mut B::Buf,
    /// (n_vocab, width)
    pub table: &'a B::Weight,
    /// (n_tokens), as `u32`: ids below the table's rows
    pub tokens: &'a B::Buf,
    /// Rows.
    pub n_tokens: usize,
    /// Factor of every element, 1 for most models.
    pub scale: f32,
}

/// What matrices are multiplied with: rows as wide as the matrices.
pub enum Input<'a, B: Backend> {
    /// (n_rows, cols)
    Rows(&'a B::Buf),
    /// The norm of rows.
    Norm(Norm<'a, B>),
}

/// Root-mean-square norm: `x / sqrt(mean(x^2) + eps) * weight`, row by row.
///
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
pub struct Norm<'a, B: Backend> {
    /// (n_rows, cols), beginning at row `first_row`
    pub x: &'a B::Buf,
    /// First row of `x` that is read.
    pub first_row: usize,
    /// (cols)
    pub weight: &'a B::Buf,
    /// Added to the mean square.
    pub eps: f32,
    /// (n_rows, cols), for backends that keep the norm somewhere: its contents are lost
    pub scratch: &'a mut B::Buf,
}

/// A linear layer of a model.
pub struct Linear<B: Backend> {
    /// (w.rows, w.cols)
    pub w: B::Weight,
    /// (w.rows)
    pub bias: Option<B::Buf>,
}

impl<B: Backend> Linear<B> {
    /// Its product, which goes to `out`.
    pub fn to<'a>(&'a self, out: &'a mut B::Buf) -> MatmulPart<'a, B> {
        MatmulPart { out, w: &self.w, bias: self.bias.as_ref() }
    }
}

/// One product of a [`MatmulArgs`].
pub struct MatmulPart<'a, B: Backend> {
    /// (n_rows, w.rows)
    pub out: &'a mut B::Buf,
    /// (w.rows, w.cols)
    pub w: &'a B::Weight,
    /// (w.rows), added to every row
    pub bias: Option<&'a B::Buf>,
}

/// `out = input * transpose(w) + bias` for one or several matrices with the same input, or `out += ...` if `add`.
///
/// On the processor, every output element is accumulated in one canonical order that does not depend on `n_rows` nor on
/// threads; devices take the way that is fastest for that many rows.
pub struct MatmulArgs<'a, 'p, B: Backend> {
    /// The products.
    pub parts: &'p mut [MatmulPart<'a, B>],
    /// What the matrices are multiplied with.
    pub input: Input<'a, B>,
    /// Rows of the input and of every output.
    pub n_rows: usize,
    /// Add to what the outputs hold already (a residual) instead of replacing it.
    pub add: bool,
}

/// Angles of the rotary position embedding for all rows of a step.
///
/// `out[row] = [cos(a_0), sin(a_0), cos(a_1), ...] * attention_factor` with `a_i = position * inv_freq[i]`, where the
/// product is rounded to f32 as the models were trained.
pub struct RopeTableArgs<'a, B: Backend> {
    /// (n_rows, n_pairs, 2)
    pub out: &'a mut B::Buf,
    /// (n_pairs): rotation per position of each pair, in radians
    pub inv_freq: &'a B::Buf,
    /// Pairs of the table.
    pub n_pairs: usize,
    /// Factor of every cosine and sine, 1 for most models.
    pub attention_factor: f32,
    /// Positions of the rows.
    pub seqs: &'a [&'a B::Descriptor],
}

/// Which elements of a head the rotary embedding turns together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopePairing {
    /// Elements 2i and 2i + 1 (plain `llama` GGUF files).
    #[default]
    Adjacent,
    /// Elements i and i + n/2 (Hugging Face).
    Halves,
}

/// Shape of the cache blocks of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// KV heads of the layer.
    pub n_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Tokens of one block.
    pub block_size: usize,
    /// Element type.
    pub ty: KvType,
}

impl KvShape {
    /// Bytes of one block, keys and values together, without anything between or behind them.
    pub fn block_bytes(&self) -> usize {
        2 * self.block_size * self.ty.row_bytes(self.head_dim)
    }
}

/// Where the block of a (KV head, block) lies in a buffer of cache blocks, as a number of blocks.
pub enum BlockPlaces<'a, B: Backend> {
    /// The session's own blocks.
    Slots(&'a B::Slots),
    /// The blocks that the step's tokens touch, the last `n_blocks` of them, head after head.
    Step {
        /// Blocks that are held of each head.
        n_blocks: u32,
    },
}

impl<B: Backend> Clone for BlockPlaces<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for BlockPlaces<'_, B> {}

impl<B: Backend<Slots = SlotMap>> BlockPlaces<'_, B> {
    /// Where the block lies, counted in blocks from the start of the buffer, while `rows` is the step.
    pub fn place(&self, rows: &StepRows, block_size: u32, kv_head: u32, block: u32) -> usize {
        match *self {
            BlockPlaces::Slots(map) => map.slot(kv_head, block) as usize,
            BlockPlaces::Step { n_blocks } => {
                let first = rows.first_block(block_size, n_blocks);
                kv_head as usize * n_blocks as usize + (block - first) as usize
            }
        }
    }
}

/// How the heads of a step's rows are turned to their positions.
pub struct Rope<'a, B: Backend> {
    /// From [`RopeTableArgs`]; `None` leaves queries and keys unturned.
    pub table: Option<&'a B::Buf>,
    /// Pairs of the table.
    pub n_pairs: usize,
    /// Which elements make a pair.
    pub pairing: RopePairing,
}

impl<B: Backend> Clone for Rope<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Rope<'_, B> {}

impl<B: Backend> Rope<'_, B> {
    /// Refuses pairs that heads of `head_dim` elements do not have.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(&self, head_dim: usize) -> Result<()> {
        let Self { table, n_pairs, .. } = *self;
        match 2 * n_pairs > head_dim || n_pairs == 0 && table.is_some() {
            true => Err(Error::invalid(format!("{n_pairs} pairs in a head of {head_dim}"))),
            false => Ok(()),
        }
    }
}

/// Turns queries and keys to their positions and appends keys and values to the cache, in the cache's type.
///
/// Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021: pair (x, y) of a head becomes
/// (x cos a - y sin a, x sin a + y cos a). Elements of a head beyond the table's pairs are left as they are.
pub struct RopeAppendArgs<'a, 'p, B: Backend> {
    /// (n_rows, n_heads, head_dim), turned in place
    pub q: &'a mut B::Buf,
    /// (n_rows, n_kv_heads, head_dim)
    pub k: &'a B::Buf,
    /// (n_rows, n_kv_heads, head_dim)
    pub v: &'a B::Buf,
    /// How queries and keys are turned.
    pub rope: Rope<'a, B>,
    /// Query heads.
    pub n_heads: usize,
    /// Shape of the cache blocks.
    pub shape: KvShape,
    /// The sessions of the step.
    pub seqs: &'p mut [AppendSeq<'a, B>],
}

/// One session of a [`RopeAppendArgs`].
pub struct AppendSeq<'a, B: Backend> {
    /// Which rows, at which positions.
    pub desc: &'a B::Descriptor,
    /// Where its keys and values go.
    pub blocks: &'a mut B::Buf,
    /// Where in it each block lies.
    pub places: BlockPlaces<'a, B>,
}

/// Part of a session's keys and values in one buffer: the tokens from the previous segment's end to `end`.
pub struct KvSegment<'a, B: Backend> {
    /// Cache blocks.
    pub blocks: &'a B::Buf,
    /// Where in it each block lies.
    pub places: BlockPlaces<'a, B>,
    /// Where the next one begins.
    pub end: SegmentEnd,
}

impl<B: Backend> Clone for KvSegment<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for KvSegment<'_, B> {}

/// The position behind the last token of a [`KvSegment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// The same in every step.
    Fixed(u32),
    /// Behind the tokens that the session held before the step.
    BeforeStep,
    /// Behind the step's tokens.
    Step,
}

impl SegmentEnd {
    /// The position, while `rows` is the step.
    pub fn position(self, rows: &StepRows) -> u32 {
        match self {
            SegmentEnd::Fixed(end) => end,
            SegmentEnd::BeforeStep => rows.pos,
            SegmentEnd::Step => rows.end(),
        }
    }
}

/// One session of an [`AttnArgs`].
pub struct AttnSeq<'a, B: Backend> {
    /// Which rows, at which positions; on a device, the address that kernels read them from.
    pub desc: &'a B::Descriptor,
    /// At most three, in order of position: a shared prefix, the session's own blocks, the step's scratch. The last
    /// one ends with the step.
    pub segments: &'a [KvSegment<'a, B>],
}

/// Attention of the rows of a step over the cache:
/// `out = sum_j softmax_j(cap(scale * q . k_j)) v_j` over the keys that the mask lets each query see, with
/// `cap(s) = softcap * tanh(s / softcap)`, and `exp(sink_logit)` added to the softmax's denominator if there is one.
///
/// Vaswani et al., "Attention Is All You Need", 2017; grouped heads: Ainslie et al., 2023. The result of a row does
/// not depend on the other rows of the step, nor on how its keys are spread over segments: on the processor to the bit,
/// on devices but for rounding. Keys and values that are not finite reach nobody who does not see them; only in
/// [`Precision::Fast`], where a device computes together what shares them, may values also reach other rows of the step
/// and other heads of the KV head.
pub struct AttnArgs<'a, B: Backend> {
    /// (n_rows, n_heads, head_dim)
    pub out: &'a mut B::Buf,
    /// (n_rows, n_heads, head_dim), turned
    pub q: &'a B::Buf,
    /// Query heads; KV heads serve them in equal groups in order.
    pub n_heads: usize,
    /// Shape of the cache blocks.
    pub shape: KvShape,
    /// Factor of the scores, 1 / sqrt(head_dim) for most models.
    pub scale: f32,
    /// Bound of the scores; 0 means none.
    pub softcap: f32,
    /// (n_heads), a learned logit in each head's softmax denominator
    pub sink_logits: Option<&'a B::Buf>,
    /// Who may look at whom.
    pub mask: Mask,
    /// (n_heads), as `u32`: which of the strided blocks each head sees, if the mask has any
    pub phases: &'a B::Buf,
    /// The sessions of the step.
    pub seqs: &'a [AttnSeq<'a, B>],
}

/// See [`Backend::round_queries`]; what else is said here is what [`AttnArgs`] will say.
pub struct RoundQueriesArgs<'a, B: Backend> {
    /// (n_tokens, n_heads, head_dim), turned
    pub q: &'a mut B::Buf,
    /// Tokens of the session.
    pub n_tokens: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Shape of the cache blocks.
    pub shape: KvShape,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound of the scores; 0 means none.
    pub softcap: f32,
}

/// What a layer does with queries, keys and values: [`RopeAppendArgs`], then [`AttnArgs`] over all that the sessions hold,
/// then the copies of [`LayerKv::stage`]. A backend may leave out the scratch, which nothing reads afterwards.
pub struct AppendAttnArgs<'a, 'p, B: Backend> {
    /// (n_rows, n_heads, head_dim)
    pub out: &'p mut B::Buf,
    /// (n_rows, n_heads, head_dim): contents are lost
    pub q: &'p mut B::Buf,
    /// (n_rows, n_kv_heads, head_dim)
    pub k: &'p mut B::Buf,
    /// (n_rows, n_kv_heads, head_dim)
    pub v: &'p mut B::Buf,
    /// How queries and keys are turned.
    pub rope: Rope<'a, B>,
    /// Query heads; KV heads serve them in equal groups in order.
    pub n_heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound of the scores; 0 means none.
    pub softcap: f32,
    /// (n_heads), a learned logit in each head's softmax denominator
    pub sink_logits: Option<&'a B::Buf>,
    /// Who may look at whom.
    pub mask: Mask,
    /// (n_heads), as `u32`: which of the strided blocks each head sees, if the mask has any
    pub phases: &'a B::Buf,
    /// The sessions of the step, with blocks of the same shape.
    pub seqs: &'p mut [LayerKv<'a, B>],
}

impl<B: Backend> AppendAttnArgs<'_, '_, B> {
    /// Runs one op after the other.
    pub fn one_by_one(self, backend: &B, ws: &mut B::Workspace) -> Result<()> {
        let Self { out, q, k, v, rope, n_heads, scale, softcap, sink_logits, mask, phases, seqs } = self;
        let Some(shape) = seqs.first().map(|seq| seq.shape) else { return Ok(()) };
        let mut targets = try_collect(seqs.iter_mut().map(LayerKv::append_target))?;
        let append = RopeAppendArgs { q, k, v, rope, n_heads, shape, seqs: &mut targets };
        backend.rope_append(ws, append)?;

        let segments = try_collect(seqs.iter().map(LayerKv::segments))?;
        let views = seqs.iter().zip(&segments).map(|(seq, segments)| AttnSeq { desc: seq.desc, segments });
        let views = try_collect(views)?;
        let attend =
            AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs: &views };
        backend.attn(ws, attend)?;

        let mut parts = try_collect(seqs.iter_mut().flat_map(LayerKv::stage))?;
        backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut parts })
    }
}

/// The attention of a layer: `x += o(attend(q(norm(x)), k(norm(x)), v(norm(x))))`.
pub struct AttentionArgs<'a, 'p, B: Backend> {
    /// (n_rows, d_model): the residual stream
    pub x: &'a mut B::Buf,
    /// Rows.
    pub n_rows: usize,
    /// (d_model): weight of the [`Norm`]
    pub norm: &'a B::Buf,
    /// Added to the mean square.
    pub eps: f32,
    /// (n_heads * head_dim, d_model)
    pub q: &'a Linear<B>,
    /// (n_kv_heads * head_dim, d_model)
    pub k: &'a Linear<B>,
    /// (n_kv_heads * head_dim, d_model)
    pub v: &'a Linear<B>,
    /// (d_model, n_heads * head_dim)
    pub o: &'a Linear<B>,
    /// (n_rows, d_model): contents are lost
    pub scratch: &'a mut B::Buf,
    /// What lies between the products; its rows are theirs, and their contents are lost.
    pub attend: AppendAttnArgs<'a, 'p, B>,
}

impl<B: Backend> AttentionArgs<'_, '_, B> {
    /// Runs one op after the other.
    pub fn one_by_one(self, backend: &B, ws: &mut B::Workspace) -> Result<()> {
        let Self { x, n_rows, norm, eps, q, k, v, o, scratch, attend } = self;
        let input = Input::Norm(Norm { x: &*x, first_row: 0, weight: norm, eps, scratch });
        let parts = &mut [q.to(&mut *attend.q), k.to(&mut *attend.k), v.to(&mut *attend.v)];
        backend.matmul(ws, MatmulArgs { parts, input, n_rows, add: false })?;
        let AppendAttnArgs { out, seqs, .. } = attend;
        backend.append_attn(ws, AppendAttnArgs { out: &mut *out, seqs: &mut *seqs, ..attend })?;
        let parts = &mut [o.to(x)];
        backend.matmul(ws, MatmulArgs { parts, input: Input::Rows(out), n_rows, add: true })
    }
}

/// Which of a step's blocks are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepBlocks {
    /// Those whose slots are never taken by others.
    Pinned,
    /// Of the others, those that the step itself does not overwrite.
    Ring,
}

impl StepBlocks {
    /// Whether `block`, which the tokens of `rows` touch, is one of them.
    pub fn contains(
        self,
        slots: &SlotMap,
        rows: &StepRows,
        block_size: u32,
        kv_head: u32,
        block: u32,
    ) -> bool {
        match self {
            StepBlocks::Pinned => slots.is_pinned(kv_head, block),
            StepBlocks::Ring => {
                block >= rows.first_block(block_size, slots.ring_blocks()) && !slots.is_pinned(kv_head, block)
            }
        }
    }
}

/// One copy of a [`CopyBlocksArgs`].
pub struct CopyPart<'a, B: Backend> {
    /// Destination.
    pub to: &'a mut B::Buf,
    /// Where in it each block lies.
    pub to_places: BlockPlaces<'a, B>,
    /// Source.
    pub from: &'a B::Buf,
    /// Where in it each block lies.
    pub from_places: BlockPlaces<'a, B>,
    /// Shape of the blocks of both.
    pub shape: KvShape,
    /// Which rows, at which positions.
    pub desc: &'a B::Descriptor,
    /// Which of the blocks that the rows touch.
    pub blocks: StepBlocks,
    /// The slots of the layer, which say what is pinned.
    pub slots: &'a B::Slots,
}

/// Copies keys and values of a step's tokens between buffers of cache blocks.
pub struct CopyBlocksArgs<'a, 'p, B: Backend> {
    /// The copies, of any layers and sessions: none reads what another one writes.
    pub parts: &'p mut [CopyPart<'a, B>],
}

/// Most elements that [`TopArgs`] can ask for.
pub const MAX_TOP: usize = 256;

/// The `n` largest elements of a row and their columns, largest first: as [`f32::total_cmp`] orders them, but with NaN
/// below everything, and of equal ones, as all NaNs are, the lower column first.
pub struct TopArgs<'a, B: Backend> {
    /// (n)
    pub values: &'a mut B::Buf,
    /// (n), as `u32`
    pub columns: &'a mut B::Buf,
    /// (width)
    pub x: &'a B::Buf,
    /// Elements of the row.
    pub width: usize,
    /// Elements that are wanted: at most [`MAX_TOP`] and `width`.
    pub n: usize,
}

impl<B: Backend> TopArgs<'_, B> {
    /// Refuses a number of elements that is out of range.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(&self) -> Result<()> {
        let (n, width) = (self.n, self.width);
        match n <= MAX_TOP.min(width) {
            true => Ok(()),
            false => Err(Error::invalid(format!("the {n} largest of {width} elements: at most {MAX_TOP}"))),
        }
    }
}

/// The function of a gated unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    #[default]
    Silu,
}

/// Gated linear unit: `gate = activation(gate) * up`, element by element.
///
/// Shazeer, "GLU Variants Improve Transformer", 2020.
pub struct GluArgs<'a, B: Backend> {
    /// (n_rows, width), replaced by the result
    pub gate: &'a mut B::Buf,
    /// (n_rows, width)
    pub up: &'a B::Buf,
    /// The function of the gate.
    pub activation: Activation,
    /// Elements in all.
    pub n_elems: usize,
}

/// The multilayer perceptron of a layer: `x += down(activation(gate(norm(x))) * up(norm(x)))`.
pub struct MlpArgs<'a, B: Backend> {
    /// (n_rows, d_model): the residual stream
    pub x: &'a mut B::Buf,
    /// Rows.
    pub n_rows: usize,
    /// (d_model): weight of the [`Norm`]
    pub norm: &'a B::Buf,
    /// Added to the mean square.
    pub eps: f32,
    /// (d_ff, d_model)
    pub gate: &'a Linear<B>,
    /// (d_ff, d_model)
    pub up: &'a Linear<B>,
    /// (d_model, d_ff)
    pub down: &'a Linear<B>,
    /// Elements between the products: rows of the first two matrices.
    pub d_ff: usize,
    /// The function of the gate.
    pub activation: Activation,
    /// (n_rows, d_model), (n_rows, d_ff) twice: contents are lost
    pub scratch: [&'a mut B::Buf; 3],
}
