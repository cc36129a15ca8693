//! Folding keys and values into the running results of some queries.
//!
//! A state is `padded(head_dim)` weighted values, then the highest score and the sum of the weights, both relative to
//! that score, as in [`crate::attention::merge`].

use std::ops::Range;

use super::CpuBackend;
use super::attn::{Layer, RUN, SPAN, padded, state_len};
use super::kv::parts;
use super::kv_elem::{Bf16, F16, F32, KvElem, Q8};
use super::simd::{Kernel, LANES, Lanes};
use crate::backend::args::*;

/// Vectors of a run.
const RUN_VECTORS: usize = RUN / LANES;

/// Rows of a register tile.
const GROUP: usize = 4;

/// Elements of scratch for `n_rows` rows.
pub(super) fn fold_len(n_rows: usize, head_dim: usize) -> usize {
    RUN * (head_dim + padded(head_dim) + 2) + n_rows * (RUN + 4 + 2 * state_len(head_dim))
}

/// Queries of some tokens of a session, for all query heads of one KV head: head after head.
#[derive(Clone)]
pub(super) struct Rows {
    pub kv_head: usize,
    /// Counted from the session's first row.
    pub tokens: Range<usize>,
}

impl Rows {
    /// Rows in all.
    pub fn len(&self, layer: &Layer<'_>) -> usize {
        self.tokens.len() * layer.group
    }

    /// Token and query head of a row.
    pub fn place(&self, layer: &Layer<'_>, row: usize) -> (usize, usize) {
        let n = self.tokens.len();
        (self.tokens.start + row % n, self.kv_head * layer.group + row / n)
    }
}

/// What a thread works with.
struct Work<'a> {
    /// (head_dim, RUN_VECTORS)
    keys: &'a mut [[[f32; LANES]; RUN_VECTORS]],
    /// (RUN, padded / 16)
    values: &'a mut [[f32; LANES]],
    /// (RUN): of the keys, if the cache's type has scales
    key_scales: &'a mut [[f32; LANES]],
    /// (RUN): of the values, likewise
    value_scales: &'a mut [[f32; LANES]],
    /// (n_rows): scores, then weights of the run's keys, in the end times the values' scales
    scores: &'a mut [[f32; RUN]],
    /// (n_rows): the keys that a row sees of the run, as begin and end of two ranges
    visible: &'a mut [[u32; 4]],
    /// (n_rows): results of the current span
    span: &'a mut [f32],
    /// (n_rows): results of the spans before
    total: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(scratch: &'a mut [f32], n_rows: usize, head_dim: usize) -> Self {
        let (keys, rest) = scratch.split_at_mut(RUN * head_dim);
        let (values, rest) = rest.split_at_mut(RUN * padded(head_dim));
        let (key_scales, rest) = rest.split_at_mut(RUN);
        let (value_scales, rest) = rest.split_at_mut(RUN);
        let (scores, rest) = rest.split_at_mut(RUN * n_rows);
        let (visible, rest) = rest.split_at_mut(4 * n_rows);
        let (span, rest) = rest.split_at_mut(n_rows * state_len(head_dim));
        Self {
            keys: keys.as_chunks_mut().0.as_chunks_mut().0,
            values: values.as_chunks_mut().0,
            key_scales: key_scales.as_chunks_mut().0,
            value_scales: value_scales.as_chunks_mut().0,
            scores: scores.as_chunks_mut().0,
            visible: bytemuck::cast_slice_mut(visible),
            span,
            total: &mut rest[..n_rows * state_len(head_dim)],
        }
    }
}

/// Folds the keys of `spans` that `rows` see. The result lies in the scratch.
pub(super) struct Fold<'a> {
    pub layer: &'a Layer<'a>,
    pub seq: &'a AttnSeq<'a, CpuBackend>,
    pub rows: &'a Rows,
    pub spans: Range<usize>,
    pub scratch: &'a mut [f32],
}

impl<'a> Kernel for Fold<'a> {
    /// The states of the rows.
    type Output = &'a mut [f32];

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) -> &'a mut [f32] {
        let Self { layer, seq, rows, spans, scratch } = self;
        let (dim, block_size) = (layer.shape.head_dim, layer.shape.block_size);
        let mut work = Work::new(scratch, rows.len(layer), dim);
        clear(work.span, dim);
        clear(work.total, dim);
        let mut run = Run { layer, seq, rows, block: 0, start: 0, len: RUN.min(block_size) };
        let mut next = spans.start * SPAN / block_size;
        let end = spans.end.saturating_mul(SPAN) / block_size;
        let mut span = spans.start;
        while let Some(block) = run.next_visible(next).filter(|&block| block < end) {
            for start in (block * block_size..(block + 1) * block_size).step_by(RUN) {
                if start / SPAN != span {
                    close_span(simd, &mut work, dim);
                    span = start / SPAN;
                }
                (run.block, run.start) = (block, start);
                run.fold(simd, &mut work);
            }
            next = block + 1;
        }
        close_span(simd, &mut work, dim);
        work.total
    }
}

/// Makes states those of no keys.
pub(super) fn clear(states: &mut [f32], head_dim: usize) {
    states.fill(0.0);
    for state in states.chunks_exact_mut(state_len(head_dim)) {
        state[padded(head_dim)] = f32::NEG_INFINITY;
    }
}

/// Merges the states of the span into those before, and begins a new one.
#[inline(always)]
fn close_span<S: Lanes>(simd: S, work: &mut Work<'_>, head_dim: usize) {
    let len = state_len(head_dim);
    for (total, span) in work.total.chunks_exact_mut(len).zip(work.span.chunks_exact(len)) {
        merge(simd, total, span);
    }
    clear(work.span, head_dim);
}

/// e^x
#[inline(always)]
pub(super) fn exp<S: Lanes>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(&mut lanes, simd.exp(simd.splat(x)));
    lanes[0]
}

/// Adds the keys of a state to those of another.
#[inline(always)]
pub(super) fn merge<S: Lanes>(simd: S, to: &mut [f32], from: &[f32]) {
    let at_max = to.len() - LANES;
    let (max, sum) = (to[at_max], to[at_max + 1]);
    let (from_max, from_sum) = (from[at_max], from[at_max + 1]);
    if from_sum == 0.0 {
        return;
    }
    if sum == 0.0 {
        to.copy_from_slice(from);
        return;
    }
    let new_max = if from_max > max { from_max } else { max };
    let (a, b) = (exp(simd, max - new_max), exp(simd, from_max - new_max));
    let (to_out, to_rest) = to.split_at_mut(at_max);
    for (to, from) in to_out.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
        let scaled = simd.mul(simd.load(to), simd.splat(a));
        simd.store(to, simd.fma(simd.load(from), simd.splat(b), scaled));
    }
    to_rest[0] = new_max;
    to_rest[1] = sum * a + from_sum * b;
}

/// What the quants of a run's keys and values are multiples of.
#[derive(Clone, Copy)]
struct Scales<'a> {
    keys: &'a [[f32; LANES]],
    values: &'a [[f32; LANES]],
}

/// Some neighbouring keys of one block.
struct Run<'a> {
    layer: &'a Layer<'a>,
    seq: &'a AttnSeq<'a, CpuBackend>,
    rows: &'a Rows,
    block: usize,
    /// Position of the first key.
    start: usize,
    len: usize,
}

/// Converts the elements that `from` begins with; the first `kept` lanes stay what they are.
#[inline(always)]
fn load_behind<S: Lanes, E: KvElem>(simd: S, to: &mut [f32; LANES], from: &[u8], kept: usize) {
    let mut x = E::load(simd, from);
    if kept > 0 {
        x = simd.select(0, kept, simd.load(to), x);
    }
    simd.store(to, x);
}

/// Positions and phases are u32; they come from u32 numbers and are used as such again.
#[inline(always)]
fn number(i: usize) -> u32 {
    u32::try_from(i).unwrap_or(u32::MAX)
}

impl Run<'_> {
    /// First block from `from` on of which any row may see a key.
    fn next_visible(&self, from: usize) -> Option<usize> {
        let Self { layer, rows, seq, .. } = self;
        let position = |token: usize| seq.desc.pos + number(token);
        let (first, last) = (position(rows.tokens.start), position(rows.tokens.end - 1));
        let heads = rows.kv_head * layer.group..(rows.kv_head + 1) * layer.group;
        let next = |head: usize| {
            layer.mask.visible_blocks_from(first, last, layer.phases[head], number(from)).next()
        };
        heads.filter_map(next).min().map(|block| block as usize)
    }

    #[inline(always)]
    fn fold<S: Lanes>(&self, simd: S, work: &mut Work<'_>) {
        let keys = self.find_visible(work);
        if keys.is_empty() {
            return;
        }
        match self.layer.shape.ty {
            KvType::F32 => self.load::<S, F32>(simd, work, keys),
            KvType::F16 => self.load::<S, F16>(simd, work, keys),
            KvType::Bf16 => self.load::<S, Bf16>(simd, work, keys),
            KvType::Q8 => self.load::<S, Q8>(simd, work, keys),
        }
        let n_rows = work.visible.len();
        for row in (0..n_rows).step_by(GROUP) {
            match n_rows - row {
                1 => self.fold_group::<S, 1>(simd, work, row),
                2 => self.fold_group::<S, 2>(simd, work, row),
                3 => self.fold_group::<S, 3>(simd, work, row),
                _ => self.fold_group::<S, 4>(simd, work, row),
            }
        }
    }

    /// Finds out what each row sees; returns the keys that any of them does, and those between.
    fn find_visible(&self, work: &mut Work<'_>) -> Range<usize> {
        let (mut begin, mut end) = (self.len, 0);
        for (row, visible) in work.visible.iter_mut().enumerate() {
            let (token, head) = self.rows.place(self.layer, row);
            let position = self.seq.desc.pos + number(token);
            let ranges =
                self.layer.mask.visible_tokens(position, number(self.block), self.layer.phases[head]);
            let mut local = [0; 4];
            for (local, range) in local.as_chunks_mut::<2>().0.iter_mut().zip(ranges) {
                let in_run =
                    |position: u32| position.saturating_sub(number(self.start)).min(number(self.len));
                *local = [in_run(range.start), in_run(range.end)];
                if local[0] < local[1] {
                    begin = begin.min(local[0] as usize);
                    end = end.max(local[1] as usize);
                }
            }
            *visible = local;
        }
        begin..end
    }

    /// Converts those `keys` of the run, and their values, that the segments hold. Elements stay in units of their
    /// row's scale.
    #[inline(always)]
    fn load<S: Lanes, E: KvElem>(&self, simd: S, work: &mut Work<'_>, keys: Range<usize>) {
        let shape = &self.layer.shape;
        let (dim, block_size) = (shape.head_dim, shape.block_size);
        let value_vectors = padded(dim) / LANES;
        let in_block = self.start - self.block * block_size;
        let mut held = 0;
        for segment in self.seq.segments {
            let segment_end = segment.end.position(self.seq.desc) as usize;
            let segment_end = segment_end.saturating_sub(self.start).min(keys.end);
            let (begin, end) = (keys.start.max(held), segment_end);
            held = held.max(segment_end);
            if begin >= end {
                continue;
            }
            let (head, block) = (number(self.rows.kv_head), number(self.block));
            let place = segment.places.place(self.seq.desc, number(block_size), head, block);
            let block_bytes = shape.block_bytes();
            let bytes = &segment.blocks.bytes()[place * block_bytes..(place + 1) * block_bytes];
            let [key_bytes, value_bytes, key_scales, value_scales] = parts(bytes, shape);
            for vector in begin / LANES..end.div_ceil(LANES) {
                // Lanes of keys that an earlier segment holds stay.
                let kept = begin.saturating_sub(vector * LANES);
                for (d, key) in work.keys.iter_mut().enumerate() {
                    let at = (d * block_size + in_block + vector * LANES) * E::BYTES;
                    load_behind::<S, E>(simd, &mut key[vector], &key_bytes[at..], kept);
                }
                if shape.ty.scale_bytes() > 0 {
                    let at = (in_block + vector * LANES) * F16::BYTES;
                    load_behind::<S, F16>(simd, &mut work.key_scales[vector], &key_scales[at..], kept);
                    load_behind::<S, F16>(simd, &mut work.value_scales[vector], &value_scales[at..], kept);
                }
            }
            for key in begin..end {
                let row =
                    &value_bytes[(in_block + key) * dim * E::BYTES..(in_block + key + 1) * dim * E::BYTES];
                let to = &mut work.values[key * value_vectors..(key + 1) * value_vectors];
                for (to, from) in to.iter_mut().zip(row.chunks(LANES * E::BYTES)) {
                    simd.store(to, E::load(simd, from));
                }
            }
        }
    }

    /// Folds the run into the states of R rows.
    #[inline(always)]
    fn fold_group<S: Lanes, const R: usize>(&self, simd: S, work: &mut Work<'_>, first: usize) {
        let Work { keys, values, key_scales, value_scales, scores, visible, span, .. } = work;
        let dim = self.layer.shape.head_dim;
        let mut queries = [&self.layer.q[..dim]; R];
        let mut seen = [[0; 4]; R];
        let (mut begin, mut end) = (self.len, 0);
        for r in 0..R {
            let (token, head) = self.rows.place(self.layer, first + r);
            let at = ((self.seq.desc.row as usize + token) * self.layer.n_heads + head) * dim;
            queries[r] = &self.layer.q[at..at + dim];
            seen[r] = visible[first + r].map(|key| key as usize);
            for [range_begin, range_end] in seen[r].as_chunks::<2>().0 {
                if range_begin < range_end {
                    begin = begin.min(*range_begin);
                    end = end.max(*range_end);
                }
            }
        }
        if begin >= end {
            return;
        }
        let vectors = begin / LANES..end.div_ceil(LANES);
        let scores: &mut [[f32; RUN]; R] = match scores[first..].first_chunk_mut() {
            Some(scores) => scores,
            None => return,
        };

        let mut vector = vectors.start;
        while vector < vectors.end {
            if S::MANY_REGISTERS && vector + 4 <= vectors.end {
                score::<S, R, 4>(simd, &queries, keys, vector, scores);
                vector += 4;
            } else {
                score::<S, R, 1>(simd, &queries, keys, vector, scores);
                vector += 1;
            }
        }
        let len = state_len(dim);
        let states = &mut span[first * len..(first + R) * len];
        let has_scales = self.layer.shape.ty.scale_bytes() > 0;
        let scales = has_scales.then_some(Scales { keys: key_scales, values: value_scales });
        for r in 0..R {
            self.weigh(simd, &mut scores[r], &seen[r], &mut states[r * len..(r + 1) * len], scales);
        }
        let n_columns = padded(dim) / LANES;
        let mut column = 0;
        while column < n_columns {
            if S::MANY_REGISTERS && column + 4 <= n_columns {
                add_values::<S, R, 4>(simd, scores, &seen, values, states, column);
                column += 4;
            } else {
                add_values::<S, R, 1>(simd, scores, &seen, values, states, column);
                column += 1;
            }
        }
    }

    /// Turns the scores of a row into weights, and makes its state ready for their values. The scales of keys and
    /// values, if there are any, become part of the scores and of the weights.
    #[inline(always)]
    fn weigh<S: Lanes>(
        &self,
        simd: S,
        scores: &mut [f32; RUN],
        seen: &[usize; 4],
        state: &mut [f32],
        scales: Option<Scales<'_>>,
    ) {
        let [begin, end, second_begin, second_end] = *seen;
        if begin >= end && second_begin >= second_end {
            return;
        }
        let first = if begin < end { begin } else { second_begin } / LANES;
        let last = if second_begin < second_end { second_end } else { end }.div_ceil(LANES);
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        let scale = simd.splat(self.layer.scale);
        let (cap, per_cap) = (simd.splat(self.layer.softcap), simd.splat(1.0 / self.layer.softcap));
        let none = simd.splat(f32::NEG_INFINITY);
        let mut largest = none;
        for (i, vector) in vectors.iter_mut().enumerate().take(last).skip(first) {
            let mut score = simd.mul(simd.load(vector), scale);
            if let Some(scales) = scales {
                score = simd.mul(score, simd.load(&scales.keys[i]));
            }
            if self.layer.softcap > 0.0 {
                score = simd.mul(cap, simd.tanh(simd.mul(score, per_cap)));
            }
            simd.store(vector, score);
            largest = simd.max(only_seen(simd, seen, i, score, none), largest);
        }
        let (out, rest) = state.split_at_mut(state.len() - LANES);
        let (max, largest) = (rest[0], simd.largest(largest));
        let new_max = if largest > max { largest } else { max };
        let shift = simd.splat(new_max);
        let mut sum = simd.splat(0.0);
        for (i, vector) in vectors.iter_mut().enumerate().take(last).skip(first) {
            let weight = simd.exp(simd.sub(simd.load(vector), shift));
            let weight = only_seen(simd, seen, i, weight, simd.splat(0.0));
            sum = simd.add(sum, weight);
            let factor = match scales {
                Some(scales) => simd.mul(weight, simd.load(&scales.values[i])),
                None => weight,
            };
            simd.store(vector, factor);
        }
        let sum = simd.sum(sum);
        if new_max > max && rest[1] > 0.0 {
            let shrink = exp(simd, max - new_max);
            rest[1] *= shrink;
            for out in out.as_chunks_mut().0 {
                let shrunk = simd.mul(simd.load(out), simd.splat(shrink));
                simd.store(out, shrunk);
            }
        }
        rest[0] = new_max;
        rest[1] += sum;
    }
}

/// `x` in the lanes of keys that a row sees, `other` in the others, of a vector of the run.
#[inline(always)]
fn only_seen<S: Lanes>(simd: S, seen: &[usize; 4], vector: usize, x: S::F, other: S::F) -> S::F {
    let [begin, end, second_begin, second_end] = seen.map(|key| key.saturating_sub(vector * LANES));
    simd.select(second_begin, second_end, x, simd.select(begin, end, x, other))
}

/// Products of R queries with V vectors of keys.
#[inline(always)]
fn score<S: Lanes, const R: usize, const V: usize>(
    simd: S,
    queries: &[&[f32]; R],
    keys: &[[[f32; LANES]; RUN_VECTORS]],
    first: usize,
    scores: &mut [[f32; RUN]; R],
) {
    let mut acc = [[simd.splat(0.0); V]; R];
    for (d, key) in keys.iter().enumerate() {
        let mut k = [simd.splat(0.0); V];
        for (k, key) in k.iter_mut().zip(&key[first..first + V]) {
            *k = simd.load(key);
        }
        for r in 0..R {
            let q = simd.splat(queries[r][d]);
            for v in 0..V {
                acc[r][v] = simd.fma(k[v], q, acc[r][v]);
            }
        }
    }
    for r in 0..R {
        for (to, acc) in scores[r].as_chunks_mut().0[first..first + V].iter_mut().zip(acc[r]) {
            simd.store(to, acc);
        }
    }
}

/// Adds the weighted values of C vectors of elements to R states, for the keys that each row sees, ascending.
#[inline(always)]
fn add_values<S: Lanes, const R: usize, const C: usize>(
    simd: S,
    weights: &[[f32; RUN]; R],
    seen: &[[usize; 4]; R],
    values: &[[f32; LANES]],
    states: &mut [f32],
    column: usize,
) {
    let (n_columns, len) = (values.len() / RUN, states.len() / R);
    let mut acc = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        let (state, _) = states[r * len..(r + 1) * len].as_chunks();
        for (acc, state) in acc[r].iter_mut().zip(&state[column..column + C]) {
            *acc = simd.load(state);
        }
    }
    for range in 0..2 {
        let ends = |r: usize| (seen[r][2 * range], seen[r][2 * range + 1]);
        // Keys that all rows see; each row sees others before or behind them.
        let (mut begin, mut end) = (0, RUN);
        for r in 0..R {
            begin = begin.max(ends(r).0);
            end = end.min(ends(r).1);
        }
        if begin >= end {
            (begin, end) = (RUN, RUN);
        }
        for r in 0..R {
            for key in ends(r).0..ends(r).1.min(begin) {
                add_value(simd, &mut acc[r], weights[r][key], &values[key * n_columns + column..]);
            }
        }
        let common = values[begin * n_columns..end * n_columns].chunks_exact(n_columns);
        for (key, value) in (begin..end).zip(common) {
            let mut v = [simd.splat(0.0); C];
            for (v, value) in v.iter_mut().zip(&value[column..column + C]) {
                *v = simd.load(value);
            }
            for r in 0..R {
                let weight = simd.splat(weights[r][key]);
                for c in 0..C {
                    acc[r][c] = simd.fma(weight, v[c], acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for key in ends(r).0.max(end)..ends(r).1 {
                add_value(simd, &mut acc[r], weights[r][key], &values[key * n_columns + column..]);
            }
        }
    }
    for r in 0..R {
        let (state, _) = states[r * len..(r + 1) * len].as_chunks_mut();
        for (state, acc) in state[column..column + C].iter_mut().zip(acc[r]) {
            simd.store(state, acc);
        }
    }
}

#[inline(always)]
fn add_value<S: Lanes, const C: usize>(simd: S, acc: &mut [S::F; C], weight: f32, value: &[[f32; LANES]]) {
    for (acc, value) in acc.iter_mut().zip(value) {
        *acc = simd.fma(simd.splat(weight), simd.load(value), *acc);
    }
}
