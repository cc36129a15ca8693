//! Attention over cache blocks.
//!
//! A block of a KV head holds its keys dimension-major, (head_dim, block_size), so that scores come out with lanes along
//! the keys and need no sums over lanes, and then its values token by token, (block_size, head_dim).
//!
//! One order of accumulation per query and head, whoever is computed beside it: keys are folded in units of at most 64
//! that begin at fixed positions, ascending, the invisible ones left out; units within a span of 512 positions fold by
//! online softmax (Milakov and Gimelshein, 2018) into a partial result, and partials merge in the order of their spans
//! (the algebra of `attention::merge`). A lone query is cut into its spans, to be shared between threads; many queries
//! are cut into tiles, each of which walks over all spans. Both give the same bits.

use super::simd::{Kernel, LANES, Lanes, Level};
use super::team::{Matrix, Tile};
use super::{CpuBackend, Workspace};
use crate::alloc::HostBuf;
use crate::attention::mask::Mask;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Positions of a span.
const SPAN: u32 = 512;
/// Most keys that are folded together.
const UNIT: usize = 64;
/// Most queries, times heads, of a tile.
const TILE: usize = 16;
/// Longest head.
const MAX_HEAD_DIM: usize = 512;
/// Numbers of a partial result besides its output: maximum and sum.
const EXTRA: usize = 2;

/// Numbers that the partial results of a lone query take.
pub fn partial_elems(shape: &WorkspaceShape) -> usize {
    n_spans(shape.n_ctx) * shape.n_heads * (shape.head_dim + EXTRA)
}

/// Spans of a context.
pub fn n_spans(n_ctx: usize) -> usize {
    n_ctx.div_ceil(SPAN as usize)
}

pub fn attn(level: Level, ws: &mut Workspace, args: AttnArgs<'_, CpuBackend>) -> Result<()> {
    let KvShape { head_dim, ty, .. } = args.shape;
    if head_dim > MAX_HEAD_DIM || !args.n_heads.is_multiple_of(args.shape.n_kv_heads) {
        let (n_heads, n_kv_heads) = (args.n_heads, args.shape.n_kv_heads);
        return Err(Error::unsupported(format!("{n_heads} heads of {head_dim} over {n_kv_heads} kv heads")));
    }
    let AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs } = args;
    let sinks = sink_logits.map(HostBuf::of::<f32>);
    let call = Call { q: q.of(), n_heads, shape, scale, softcap, sinks, mask, phases };
    for seq in seqs {
        match ty {
            KvType::F32 => attend_seq::<f32>(level, ws, &call, out.of_mut(), seq)?,
            KvType::F16 => attend_seq::<u16>(level, ws, &call, out.of_mut(), seq)?,
        }
    }
    Ok(())
}

/// What all sessions of a call share.
struct Call<'a> {
    /// (n_rows, n_heads, head_dim)
    q: &'a [f32],
    n_heads: usize,
    shape: KvShape,
    scale: f32,
    softcap: f32,
    /// (n_heads)
    sinks: Option<&'a [f32]>,
    mask: Mask,
    /// (n_heads)
    phases: &'a [u32],
}

/// One session's keys and values.
struct Keys<'a, E> {
    segments: [Option<Segment<'a, E>>; 3],
}

struct Segment<'a, E> {
    blocks: &'a [E],
    places: BlockPlaces<'a>,
    begin: u32,
    end: u32,
}

/// One query of one head.
#[derive(Clone, Copy)]
struct Query<'a> {
    /// (head_dim)
    q: &'a [f32],
    position: u32,
    phase: u32,
}

/// An element of the cache: f32, or the bits of a half.
trait Element: bytemuck::Pod + Sync {
    fn load<L: Lanes>(from: &[Self]) -> L;
}

impl Element for f32 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[f32]) -> L {
        L::load(from)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn load<L: Lanes>(from: &[u16]) -> L {
        L::load_f16(from)
    }
}

/// Attention of one session's rows.
fn attend_seq<E: Element>(
    level: Level,
    ws: &mut Workspace,
    call: &Call<'_>,
    out: &mut [f32],
    seq: &AttnSeq<'_, CpuBackend>,
) -> Result<()> {
    let StepRows { row, n_tokens, pos } = *seq.desc;
    let width = call.n_heads * call.shape.head_dim;
    let (row, n_tokens) = (row as usize, n_tokens as usize);
    let out = &mut out[row * width..(row + n_tokens) * width];
    let q = &call.q[row * width..(row + n_tokens) * width];
    if seq.segments.len() > 3
        || seq.segments.last().is_none_or(|last| last.end as usize != pos as usize + n_tokens)
    {
        return Err(Error::invalid("the segments of a session end behind the last token of the step"));
    }
    let mut begin = 0;
    let mut keys = Keys { segments: [const { None }; 3] };
    for (to, from) in keys.segments.iter_mut().zip(seq.segments) {
        *to = Some(Segment { blocks: from.blocks.of::<E>(), places: from.places, begin, end: from.end });
        begin = from.end;
    }
    match n_tokens {
        1 => lone_query(level, ws, call, &keys, q, pos, out),
        _ => tiles(level, ws, call, &keys, q, pos, out),
    }
}

/// One token: every (KV head, span) is an item, and its partial results merge afterwards.
fn lone_query<E: Element>(
    level: Level,
    ws: &mut Workspace,
    call: &Call<'_>,
    keys: &Keys<'_, E>,
    q: &[f32],
    position: u32,
    out: &mut [f32],
) -> Result<()> {
    let (dim, n_kv_heads) = (call.shape.head_dim, call.shape.n_kv_heads);
    let group = call.n_heads / n_kv_heads;
    let spans = ws.spans.of_mut::<u32>();
    let mut n_spans = 0;
    let mut visible = Spans::new(call.mask, position, position, call.phases);
    while let Some(span) = visible.next() {
        spans[n_spans] = span;
        n_spans += 1;
    }
    let spans = &spans[..n_spans];
    // (kv head, span, head of the group, head_dim + 2)
    let per_item = group * (dim + EXTRA);
    let partials = &mut ws.partials.of_mut::<f32>()[..n_kv_heads * n_spans * per_item];
    ws.crew.for_each_chunk(partials, per_item, |item, partials| {
        let kv_head = item / n_spans;
        let mut outputs = partials;
        for first in (0..group).step_by(TILE) {
            let heads = kv_head * group + first..kv_head * group + group.min(first + TILE);
            let (now, later) = outputs.split_at_mut(heads.len() * (dim + EXTRA));
            outputs = later;
            let mut queries = [Query { q: &[], position, phase: 0 }; TILE];
            for (query, head) in queries.iter_mut().zip(heads.clone()) {
                *query = Query { q: &q[head * dim..(head + 1) * dim], position, phase: call.phases[head] };
            }
            let queries = &queries[..heads.len()];
            level.run(SpanKernel {
                call,
                keys,
                kv_head,
                queries,
                span: spans[item % n_spans],
                partials: now,
            });
        }
    })?;
    let partials = &*partials;
    ws.crew.for_each_chunk(out, dim, |head, out| {
        let (kv_head, in_group) = (head / group, head % group);
        let mut total = Total::default();
        for span in 0..n_spans {
            let at = (kv_head * n_spans + span) * per_item + in_group * (dim + EXTRA);
            total.merge(out, &partials[at..at + dim + EXTRA]);
        }
        total.finish(out, call.sinks.map(|sinks| sinks[head]));
    })
}

/// Many tokens: every (tile of tokens, KV head) is an item that walks over the spans.
fn tiles<E: Element>(
    level: Level,
    ws: &mut Workspace,
    call: &Call<'_>,
    keys: &Keys<'_, E>,
    q: &[f32],
    pos: u32,
    out: &mut [f32],
) -> Result<()> {
    let (dim, n_heads) = (call.shape.head_dim, call.n_heads);
    let group = n_heads / call.shape.n_kv_heads;
    let n_rows = q.len() / (n_heads * dim);
    let tile_tokens = (TILE / group).max(1);
    let matrix = Matrix { out, n_rows, n_cols: n_heads * dim };
    ws.crew.for_each_tile([Some(matrix)], tile_tokens, group * dim, |_, mut out| {
        let kv_head = out.cols.start / (group * dim);
        for first in (0..group).step_by(TILE) {
            let heads = first..group.min(first + TILE);
            level.run(TileKernel { call, keys, kv_head, q, pos, heads, out: &mut out });
        }
    })
}

/// The spans, ascending, of which a query at `first..=last` of any of these phases may see a token.
///
/// A cursor rather than an iterator of closures: kernels loop over it, and what they call must be inlined.
struct Spans<'a> {
    mask: Mask,
    phases: &'a [u32],
    /// First near block of the first query; from it on everything may be seen.
    near: u32,
    last: u32,
    /// The next block to look at.
    block: u32,
}

impl<'a> Spans<'a> {
    fn new(mask: Mask, first: u32, last: u32, phases: &'a [u32]) -> Self {
        Self { mask, phases, near: mask.first_near_block(first), last: last / mask.block_size(), block: 0 }
    }

    /// The first block at or behind the cursor that may be seen.
    fn next_block(&self) -> Option<u32> {
        let kept = |&phase: &u32| self.mask.next_kept(self.block, phase).unwrap_or(u32::MAX);
        let phases = match self.mask {
            Mask::Blocks { stride: 1.., .. } => self.phases,
            _ => &self.phases[..1],
        };
        let kept = phases.iter().map(kept).min().unwrap_or(u32::MAX);
        Some(self.block.max(self.near).min(kept)).filter(|&block| block <= self.last)
    }

    fn next(&mut self) -> Option<u32> {
        let per_span = SPAN / self.mask.block_size();
        let span = self.next_block()? / per_span;
        self.block = (span + 1) * per_span;
        Some(span)
    }
}

/// What has been merged of one query's partial results, besides its output.
struct Total {
    max: f32,
    sum: f32,
}

impl Default for Total {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Total {
    /// Adds a partial result: `out`, then maximum and sum.
    #[inline(always)]
    fn merge(&mut self, out: &mut [f32], partial: &[f32]) {
        let (values, extra) = partial.split_at(out.len());
        let (max, sum) = (extra[0], extra[1]);
        if sum == 0.0 {
            return;
        }
        if self.sum == 0.0 {
            out.copy_from_slice(values);
            *self = Self { max, sum };
            return;
        }
        let highest = if max > self.max { max } else { self.max };
        let (a, b) = ((self.max - highest).exp(), (max - highest).exp());
        for (out, value) in out.iter_mut().zip(values) {
            *out = *out * a + value * b;
        }
        *self = Self { max: highest, sum: self.sum * a + sum * b };
    }

    /// Divides by the sum, to which a learned logit adds its share.
    #[inline(always)]
    fn finish(self, out: &mut [f32], sink: Option<f32>) {
        let mut factor = 1.0 / self.sum;
        if let Some(sink) = sink {
            let highest = if sink > self.max { sink } else { self.max };
            let scale = (self.max - highest).exp();
            factor = scale / (self.sum * scale + (sink - highest).exp());
        }
        out.iter_mut().for_each(|x| *x *= factor);
    }
}

/// The partial results of some queries over one span.
struct SpanKernel<'a, E> {
    call: &'a Call<'a>,
    keys: &'a Keys<'a, E>,
    kv_head: usize,
    queries: &'a [Query<'a>],
    span: u32,
    /// (queries, head_dim + 2)
    partials: &'a mut [f32],
}

impl<E: Element> Kernel for SpanKernel<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { call, keys, kv_head, queries, span, partials } = self;
        attend_span::<L, E>(call, keys, kv_head, queries, span, partials);
    }
}

/// All spans of the queries of a tile.
struct TileKernel<'a, 'o, E> {
    call: &'a Call<'a>,
    keys: &'a Keys<'a, E>,
    kv_head: usize,
    /// (n_rows, n_heads, head_dim)
    q: &'a [f32],
    /// Position of row 0.
    pos: u32,
    /// Which heads of the group.
    heads: std::ops::Range<usize>,
    out: &'a mut Tile<'o>,
}

impl<E: Element> Kernel for TileKernel<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { call, keys, kv_head, q, pos, heads, out } = self;
        let (dim, n_heads) = (call.shape.head_dim, call.n_heads);
        let first_head = kv_head * (n_heads / call.shape.n_kv_heads);
        let rows = out.rows.clone();
        let position = |row: usize| pos + u32::try_from(row).unwrap_or(u32::MAX);
        let mut queries = [Query { q: &[], position: 0, phase: 0 }; TILE];
        let mut phases = [0; TILE];
        let places = rows.clone().flat_map(|row| heads.clone().map(move |head| (row, head)));
        let n_queries = rows.len() * heads.len();
        for (i, (row, head)) in places.enumerate() {
            let (head, at) = (first_head + head, (row * n_heads + first_head + head) * dim);
            phases[i] = call.phases[head];
            queries[i] = Query { q: &q[at..at + dim], position: position(row), phase: phases[i] };
        }
        let queries = &queries[..n_queries];
        let mut partials = [0.0; TILE * (MAX_HEAD_DIM + EXTRA)];
        let partials = &mut partials[..n_queries * (dim + EXTRA)];
        let mut totals = [const { Total { max: f32::NEG_INFINITY, sum: 0.0 } }; TILE];
        let (first, last) = (position(rows.start), position(rows.end - 1));
        let mut spans = Spans::new(call.mask, first, last, &phases[..heads.len()]);
        while let Some(span) = spans.next() {
            attend_span::<L, E>(call, keys, kv_head, queries, span, partials);
            for (i, partial) in partials.chunks_exact(dim + EXTRA).enumerate() {
                let (row, head) = (rows.start + i / heads.len(), heads.start + i % heads.len());
                totals[i].merge(&mut out.row_mut(row)[head * dim..(head + 1) * dim], partial);
            }
        }
        for (i, total) in totals.into_iter().take(n_queries).enumerate() {
            let (row, head) = (rows.start + i / heads.len(), heads.start + i % heads.len());
            let sink = call.sinks.map(|sinks| sinks[first_head + head]);
            total.finish(&mut out.row_mut(row)[head * dim..(head + 1) * dim], sink);
        }
    }
}

/// Folds the visible keys of one span into the queries' partial results.
#[inline(always)]
fn attend_span<L: Lanes, E: Element>(
    call: &Call<'_>,
    keys: &Keys<'_, E>,
    kv_head: usize,
    queries: &[Query<'_>],
    span: u32,
    partials: &mut [f32],
) {
    let dim = call.shape.head_dim;
    let block_size = call.mask.block_size();
    let unit = UNIT.min(call.shape.block_size);
    for partial in partials.chunks_exact_mut(dim + EXTRA) {
        partial.fill(0.0);
        partial[dim] = f32::NEG_INFINITY;
    }
    let last = queries.iter().map(|query| query.position).max().unwrap_or(0);
    let blocks_per_span = SPAN / block_size;
    let blocks = span * blocks_per_span..((span + 1) * blocks_per_span).min(last / block_size + 1);
    let mut scores = [[0.0f32; UNIT]; TILE];
    for block in blocks {
        for offset in (0..block_size as usize).step_by(unit) {
            let begin = block * block_size + to_u32(offset);
            // Per query: its visible keys of this unit, as ranges within it.
            let mut visible = [[(0, 0); 2]; TILE];
            let mut any = (unit, 0);
            for (visible, query) in visible.iter_mut().zip(queries) {
                let tokens = call.mask.visible_tokens(query.position, block, query.phase);
                for (visible, tokens) in visible.iter_mut().zip(tokens) {
                    let clip = |token: u32| (token.saturating_sub(begin) as usize).min(unit);
                    *visible = (clip(tokens.start), clip(tokens.end));
                    if visible.0 < visible.1 {
                        any = (any.0.min(visible.0), any.1.max(visible.1));
                    }
                }
            }
            if any.0 >= any.1 {
                continue;
            }
            let unit = UnitKeys { call, keys, kv_head, block, offset, begin, len: unit, any };
            unit.scores::<L>(queries, &mut scores);
            for (i, partial) in partials.chunks_exact_mut(dim + EXTRA).enumerate() {
                soften::<L>(call, &mut scores[i][..unit.len], &visible[i], partial);
            }
            unit.add_values::<L>(queries.len(), &scores, &visible, partials);
        }
    }
}

/// Scores become weights: folds the visible ones into maximum and sum, rescales the output so far.
#[inline(always)]
fn soften<L: Lanes>(call: &Call<'_>, scores: &mut [f32], visible: &[(usize, usize); 2], partial: &mut [f32]) {
    let dim = partial.len() - EXTRA;
    let is_whole = visible[0] == (0, scores.len());
    if visible.iter().all(|range| range.0 >= range.1) {
        return;
    }
    let scale = L::splat(call.scale);
    let mut highest = L::splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact_mut(LANES) {
        let mut score = L::load(scores).mul(scale);
        if call.softcap > 0.0 {
            // tanh x = 1 - 2 / (e^2x + 1)
            let e = score.mul(L::splat(2.0 / call.softcap)).exp();
            let tanh = L::splat(1.0).sub(L::splat(2.0).div(e.add(L::splat(1.0))));
            score = tanh.mul(L::splat(call.softcap));
        }
        score.store(scores);
    }
    if !is_whole {
        hide(scores, visible, f32::NEG_INFINITY);
    }
    for scores in scores.chunks_exact(LANES) {
        highest = L::load(scores).max(highest);
    }
    let (before, sum) = (partial[dim], partial[dim + 1]);
    let max = highest.max_lane();
    let max = if max > before { max } else { before };
    for scores in scores.chunks_exact_mut(LANES) {
        L::load(scores).sub(L::splat(max)).exp().store(scores);
    }
    if !is_whole {
        hide(scores, visible, 0.0);
    }
    let mut added = L::splat(0.0);
    for scores in scores.chunks_exact(LANES) {
        added = added.add(L::load(scores));
    }
    if max > before && sum > 0.0 {
        let factor = (before - max).exp();
        partial[dim + 1] *= factor;
        partial[..dim].iter_mut().for_each(|x| *x *= factor);
    }
    partial[dim] = max;
    partial[dim + 1] += added.sum();
}

/// Overwrites what is not within the ranges.
#[inline(always)]
fn hide(scores: &mut [f32], visible: &[(usize, usize); 2], with: f32) {
    for (i, score) in scores.iter_mut().enumerate() {
        if !visible.iter().any(|range| (range.0..range.1).contains(&i)) {
            *score = with;
        }
    }
}

/// The keys and values of one unit.
struct UnitKeys<'a, E> {
    call: &'a Call<'a>,
    keys: &'a Keys<'a, E>,
    kv_head: usize,
    block: u32,
    /// First token within the block.
    offset: usize,
    /// First position.
    begin: u32,
    /// Tokens.
    len: usize,
    /// From the first to behind the last token that any query sees, within the unit.
    any: (usize, usize),
}

impl<E: Element> UnitKeys<'_, E> {
    /// The cache blocks that hold visible tokens of the unit, with those tokens as a range within it.
    #[inline(always)]
    fn pieces(&self) -> impl Iterator<Item = (&[E], std::ops::Range<usize>)> {
        let KvShape { head_dim, block_size, .. } = self.call.shape;
        self.keys.segments.iter().flatten().filter_map(move |segment| {
            let clip = |token: u32| token.saturating_sub(self.begin) as usize;
            let tokens = clip(segment.begin).max(self.any.0)..clip(segment.end).min(self.any.1);
            if tokens.is_empty() {
                return None;
            }
            let elems = 2 * block_size * head_dim;
            let place = segment.places.place(to_u32(self.kv_head), self.block);
            Some((&segment.blocks[place * elems..(place + 1) * elems], tokens))
        })
    }

    /// Scores of all queries with the visible keys; places of other keys may hold anything.
    #[inline(always)]
    fn scores<L: Lanes>(&self, queries: &[Query<'_>], scores: &mut [[f32; UNIT]; TILE]) {
        match self.len {
            16 => self.scores_of::<L, 1>(queries, scores),
            32 => self.scores_of::<L, 2>(queries, scores),
            _ => self.scores_of::<L, 4>(queries, scores),
        }
    }

    #[inline(always)]
    fn scores_of<L: Lanes, const V: usize>(&self, queries: &[Query<'_>], scores: &mut [[f32; UNIT]; TILE]) {
        for (block, tokens) in self.pieces() {
            let mut first = 0;
            while first < queries.len() {
                let n = (queries.len() - first).min(if L::WIDE { 4 } else { 2 });
                let (queries, scores) = (&queries[first..first + n], &mut scores[first..first + n]);
                match n {
                    4 => self.score_tile::<L, 4, V>(block, &tokens, queries, scores),
                    3 => self.score_tile::<L, 3, V>(block, &tokens, queries, scores),
                    2 => self.score_tile::<L, 2, V>(block, &tokens, queries, scores),
                    _ => self.score_tile::<L, 1, V>(block, &tokens, queries, scores),
                }
                first += n;
            }
        }
    }

    #[inline(always)]
    fn score_tile<L: Lanes, const Q: usize, const V: usize>(
        &self,
        block: &[E],
        tokens: &std::ops::Range<usize>,
        queries: &[Query<'_>],
        scores: &mut [[f32; UNIT]],
    ) {
        let KvShape { head_dim, block_size, .. } = self.call.shape;
        let mut q: [&[f32]; Q] = [&[]; Q];
        for i in 0..Q {
            q[i] = &queries[i].q[..head_dim];
        }
        let mut sums = [[L::splat(0.0); V]; Q];
        for (d, keys) in block[..head_dim * block_size].chunks_exact(block_size).enumerate() {
            let keys = &keys[self.offset..self.offset + V * LANES];
            let mut lanes = [L::splat(0.0); V];
            for v in 0..V {
                lanes[v] = E::load(&keys[v * LANES..(v + 1) * LANES]);
            }
            for i in 0..Q {
                let q = L::splat(q[i][d]);
                for v in 0..V {
                    sums[i][v] = q.mul_add(lanes[v], sums[i][v]);
                }
            }
        }
        for i in 0..Q {
            let mut row = [0.0; UNIT];
            for v in 0..V {
                sums[i][v].store(&mut row[v * LANES..(v + 1) * LANES]);
            }
            // Tokens of other pieces have their scores from there.
            scores[i][tokens.clone()].copy_from_slice(&row[tokens.clone()]);
        }
    }

    /// Adds the weighted values to the outputs, key after key.
    #[inline(always)]
    fn add_values<L: Lanes>(
        &self,
        n_queries: usize,
        weights: &[[f32; UNIT]; TILE],
        visible: &[[(usize, usize); 2]; TILE],
        partials: &mut [f32],
    ) {
        let KvShape { head_dim, block_size, .. } = self.call.shape;
        let whole = [(0, self.len), (0, 0)];
        for (block, tokens) in self.pieces() {
            let values = &block[head_dim * block_size..][self.offset * head_dim..];
            let mut first = 0;
            while first < n_queries {
                // Queries that see the whole unit share its values; a key that a query does not see is never touched
                // for it, not even with weight 0: its value may be infinite.
                let most = (n_queries - first).min(if L::WIDE { 4 } else { 2 });
                let n = visible[first..first + most].iter().take_while(|ranges| **ranges == whole).count();
                let partials = &mut partials[first * (head_dim + EXTRA)..];
                match n {
                    4 => value_tile::<L, E, 4>(values, head_dim, &tokens, &weights[first..], partials),
                    3 => value_tile::<L, E, 3>(values, head_dim, &tokens, &weights[first..], partials),
                    2 => value_tile::<L, E, 2>(values, head_dim, &tokens, &weights[first..], partials),
                    _ => {
                        for range in visible[first] {
                            let tokens = tokens.start.max(range.0)..tokens.end.min(range.1);
                            value_tile::<L, E, 1>(values, head_dim, &tokens, &weights[first..], partials);
                        }
                    }
                }
                first += n.max(1);
            }
        }
    }
}

/// `partials[i] += sum over tokens of weights[i][token] * values[token]`, 64 dimensions at a time.
#[inline(always)]
fn value_tile<L: Lanes, E: Element, const Q: usize>(
    values: &[E],
    head_dim: usize,
    tokens: &std::ops::Range<usize>,
    weights: &[[f32; UNIT]],
    partials: &mut [f32],
) {
    let mut d = 0;
    while d < head_dim {
        if head_dim - d >= 4 * LANES {
            value_columns::<L, E, Q, 4>(values, head_dim, d, tokens, weights, partials);
            d += 4 * LANES;
        } else {
            value_columns::<L, E, Q, 1>(values, head_dim, d, tokens, weights, partials);
            d += LANES;
        }
    }
}

#[inline(always)]
fn value_columns<L: Lanes, E: Element, const Q: usize, const V: usize>(
    values: &[E],
    head_dim: usize,
    d: usize,
    tokens: &std::ops::Range<usize>,
    weights: &[[f32; UNIT]],
    partials: &mut [f32],
) {
    let stride = head_dim + EXTRA;
    // The last vector of an odd head is filled up with zeros.
    let n = (V * LANES).min(head_dim - d);
    let is_whole = n == V * LANES;
    let mut sums = [[L::splat(0.0); V]; Q];
    for i in 0..Q {
        let row = &partials[i * stride + d..i * stride + d + n];
        let mut filled = [0.0; UNIT];
        filled[..n].copy_from_slice(row);
        for v in 0..V {
            sums[i][v] = L::load(&filled[v * LANES..]);
        }
    }
    for token in tokens.clone() {
        let row = &values[token * head_dim + d..token * head_dim + d + n];
        let mut value = [L::splat(0.0); V];
        if is_whole {
            for v in 0..V {
                value[v] = E::load(&row[v * LANES..(v + 1) * LANES]);
            }
        } else {
            let mut filled = [E::zeroed(); LANES];
            filled[..n].copy_from_slice(row);
            value[0] = E::load(&filled);
        }
        for i in 0..Q {
            let weight = L::splat(weights[i][token]);
            for v in 0..V {
                sums[i][v] = weight.mul_add(value[v], sums[i][v]);
            }
        }
    }
    for i in 0..Q {
        let mut filled = [0.0; UNIT];
        for v in 0..V {
            sums[i][v].store(&mut filled[v * LANES..]);
        }
        partials[i * stride + d..i * stride + d + n].copy_from_slice(&filled[..n]);
    }
}

/// Heads and tokens of a block are far below 2^32.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
