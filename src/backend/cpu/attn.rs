//! Attention: softmax-weighted values, computed online over the keys.
//!
//! The keys of a query are folded in one canonical order, whoever computes it and whatever other queries share the
//! work: in absolute runs of at most [`RUN`] keys, ascending, of which only the visible keys are touched; runs make up
//! absolute spans of [`SPAN`] keys, whose results are merged in ascending order. Long contexts of few queries are
//! computed span by span on all threads, everything else query tile by query tile.

use super::CpuBackend;
use super::fold::{Fold, Rows, clear, exp, fold_len, merge};
use super::simd::{Kernel, LANES, Lanes, Simd};
use super::team::{Crew, Grid, Tile};
use super::workspace::Workspace;
use crate::attention::mask::Mask;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Keys that are folded at once: they stay in the level-1 cache as f32.
pub(super) const RUN: usize = 64;

/// Keys after which results are merged.
pub(super) const SPAN: usize = 512;

/// Rows, which are queries of single heads, that share the conversion of keys and values.
const TILE_ROWS: usize = 64;

/// Steps of at most so many tokens are computed span by span.
const SPLIT_TOKENS: usize = 4;

/// Elements of a head in whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Elements of the state of a query: see [`super::fold`].
pub(super) fn state_len(head_dim: usize) -> usize {
    padded(head_dim) + LANES
}

/// Elements of scratch that a thread needs.
pub(super) fn scratch_len(shape: &WorkspaceShape) -> usize {
    fold_len(TILE_ROWS.max(SPLIT_TOKENS * shape.n_heads), shape.head_dim)
}

/// Elements of the partial results of all spans.
pub(super) fn partials_len(shape: &WorkspaceShape) -> usize {
    let rows = shape.max_rows.min(SPLIT_TOKENS) * shape.n_heads;
    rows.saturating_mul(shape.n_ctx.div_ceil(SPAN)).saturating_mul(state_len(shape.head_dim))
}

/// What all sessions of an op share.
pub(super) struct Layer<'a> {
    pub q: &'a [f32],
    pub n_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    pub shape: KvShape,
    pub scale: f32,
    pub softcap: f32,
    pub sink_logits: Option<&'a [f32]>,
    pub mask: Mask,
    pub phases: &'a [u32],
}

pub(super) fn attn(
    simd: Simd,
    crew: Crew<'_>,
    ws: &mut Workspace,
    args: AttnArgs<'_, CpuBackend>,
) -> Result<()> {
    let AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs } = args;
    let KvShape { n_kv_heads, head_dim, block_size, .. } = shape;
    let phases = phases.of::<u32>();
    if n_kv_heads == 0 || n_heads % n_kv_heads != 0 || phases.len() != n_heads {
        let n_phases = phases.len();
        return Err(Error::invalid(format!("{n_heads} heads, {n_kv_heads} kv heads, {n_phases} phases")));
    }
    if block_size != mask.block_size() as usize || !block_size.is_power_of_two() || block_size < LANES {
        return Err(Error::invalid(format!("cache blocks of {block_size} tokens for {mask:?}")));
    }
    if n_heads > ws.shape.n_heads || head_dim > ws.shape.head_dim {
        let has = ws.shape;
        return Err(Error::invalid(format!(
            "{n_heads} heads of {head_dim} in a workspace for {} of {}",
            has.n_heads, has.head_dim
        )));
    }
    let layer = Layer {
        q: q.of(),
        n_heads,
        group: n_heads / n_kv_heads,
        shape,
        scale,
        softcap,
        sink_logits: sink_logits.map(|sinks| sinks.of()),
        mask,
        phases,
    };
    let out = out.of_mut::<f32>();
    let width = n_heads * head_dim;
    let (partials, scratch) = ws.for_attn();
    for seq in seqs {
        let (first, n_tokens) = (seq.desc.row as usize, seq.desc.n_tokens as usize);
        let end = seq.segments.last().map_or(0, |segment| segment.end.position(seq.desc));
        if n_tokens == 0 || end < seq.desc.end() {
            return Err(Error::invalid(format!("keys end at {end}, queries are {:?}", seq.desc)));
        }
        let out = &mut out[first * width..(first + n_tokens) * width];
        let n_spans = (seq.desc.pos as usize + n_tokens).div_ceil(SPAN);
        let n_partials = n_heads * n_tokens * n_spans * state_len(head_dim);
        if n_tokens <= SPLIT_TOKENS && n_spans > 1 && n_partials <= partials.len() {
            let partials = &mut partials[..n_partials];
            by_span(simd, crew, &layer, seq, out, n_spans, partials, scratch)?;
        } else {
            by_tile(simd, crew, &layer, seq, out, scratch)?;
        }
    }
    Ok(())
}

/// Each item folds all keys of some queries of one KV head.
fn by_tile(
    simd: Simd,
    crew: Crew<'_>,
    layer: &Layer<'_>,
    seq: &AttnSeq<'_, CpuBackend>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<()> {
    let (n_tokens, dim) = (seq.desc.n_tokens as usize, layer.shape.head_dim);
    let tile_tokens = (TILE_ROWS / layer.group).clamp(1, 16);
    let tile_shape = [tile_tokens, layer.group * dim];
    let grid = Grid::new(out, [n_tokens, layer.n_heads * dim], tile_shape);
    crew.for_each_tile(&mut [grid], scratch, |scratch, _, mut tile| {
        let rows = Rows { kv_head: tile.cols().start / tile_shape[1], tokens: tile.rows() };
        let states = simd.dispatch(Fold { layer, seq, rows: &rows, spans: 0..usize::MAX, scratch });
        simd.dispatch(Finish { layer, rows: &rows, states, tile: &mut tile });
    })
}

/// Each item folds one span of keys, for all queries of one KV head; then the spans of each head are merged.
#[expect(clippy::too_many_arguments, reason = "the parts of one op")]
fn by_span(
    simd: Simd,
    crew: Crew<'_>,
    layer: &Layer<'_>,
    seq: &AttnSeq<'_, CpuBackend>,
    out: &mut [f32],
    n_spans: usize,
    partials: &mut [f32],
    scratch: &mut [f32],
) -> Result<()> {
    let (n_tokens, dim) = (seq.desc.n_tokens as usize, layer.shape.head_dim);
    let states_len = n_tokens * layer.group * state_len(dim);
    crew.for_each_chunk(partials, states_len, scratch, |scratch, i, partial| {
        let (kv_head, span) = (i / n_spans, i % n_spans);
        let rows = Rows { kv_head, tokens: 0..n_tokens };
        let states = simd.dispatch(Fold { layer, seq, rows: &rows, spans: span..span + 1, scratch });
        partial.copy_from_slice(states);
    })?;
    let partials = &*partials;
    let tile_shape = [n_tokens, layer.group * dim];
    let grid = Grid::new(out, [n_tokens, layer.n_heads * dim], tile_shape);
    crew.for_each_tile(&mut [grid], scratch, |scratch, _, mut tile| {
        let rows = Rows { kv_head: tile.cols().start / tile_shape[1], tokens: tile.rows() };
        let spans = &partials[rows.kv_head * n_spans * states_len..][..n_spans * states_len];
        let states = &mut scratch[..states_len];
        simd.dispatch(MergeSpans { states, spans, head_dim: dim });
        simd.dispatch(Finish { layer, rows: &rows, states, tile: &mut tile });
    })
}

/// Merges the states of some rows over all spans.
struct MergeSpans<'a> {
    /// (n_rows)
    states: &'a mut [f32],
    /// (n_spans, n_rows)
    spans: &'a [f32],
    head_dim: usize,
}

impl Kernel for MergeSpans<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let Self { states, spans, head_dim } = self;
        clear(states, head_dim);
        for span in spans.chunks_exact(states.len()) {
            let len = state_len(head_dim);
            for (state, span) in states.chunks_exact_mut(len).zip(span.chunks_exact(len)) {
                merge(simd, state, span);
            }
        }
    }
}

/// Divides by the sum of the weights, in which a learned logit takes part.
struct Finish<'a, 't> {
    layer: &'a Layer<'a>,
    rows: &'a Rows,
    states: &'a mut [f32],
    tile: &'a mut Tile<'t>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let Self { layer, rows, states, tile } = self;
        let dim = layer.shape.head_dim;
        for (row, state) in states.chunks_exact_mut(state_len(dim)).enumerate() {
            let (token, head) = rows.place(layer, row);
            let (max, sum) = (state[padded(dim)], state[padded(dim) + 1]);
            let factor = match layer.sink_logits {
                None => 1.0 / sum,
                Some(logits) => {
                    let logit = logits[head];
                    let new_max = if logit > max { logit } else { max };
                    let shrink = exp(simd, max - new_max);
                    shrink / (sum * shrink + exp(simd, logit - new_max))
                }
            };
            let at = head % layer.group * dim;
            for (out, &x) in tile.row_mut(token)[at..at + dim].iter_mut().zip(&*state) {
                *out = x * factor;
            }
        }
    }
}
