//! Ops that go row by row: embedding, norm, positions and appending to the cache, gated unit, copies of blocks.

use std::marker::PhantomData;

use half::f16;

use super::quant::{WideFormat, load_rest, with_wide_format};
use super::simd::{Kernel, LANES, Lanes, Level};
use super::{CpuBackend, Workspace};
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Elements of one item: some microseconds of work.
const ITEM_ELEMS: usize = 1 << 13;

/// Rows of one item.
fn item_rows(width: usize) -> usize {
    (ITEM_ELEMS / width.max(1)).max(1)
}

pub fn embed(level: Level, ws: &mut Workspace, args: EmbedArgs<'_, CpuBackend>) -> Result<()> {
    struct Row<'a, F> {
        row: &'a [u8],
        out: &'a mut [f32],
        scale: f32,
        format: PhantomData<F>,
    }
    impl<F: WideFormat> Kernel for Row<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let scale = L::splat(self.scale);
            let whole = self.out.len() / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                F::load::<L>(self.row, at).mul(scale).store(&mut self.out[at..]);
            }
            if whole < self.out.len() {
                let mut rest = [0.0; LANES];
                load_rest::<L, F>(self.row, whole).mul(scale).store(&mut rest);
                let out = &mut self.out[whole..];
                out.copy_from_slice(&rest[..out.len()]);
            }
        }
    }
    let EmbedArgs { out, table, tokens, scale } = args;
    let width = table.cols;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= table.rows) {
        return Err(Error::invalid(format!("token {token} of a vocabulary of {}", table.rows)));
    }
    let row_bytes = table.bytes().len() / table.rows;
    let n = item_rows(width);
    let out = &mut out.of_mut::<f32>()[..tokens.len() * width];
    ws.crew.for_each_chunk(out, n * width, |i, out| {
        for (out, &token) in out.chunks_exact_mut(width).zip(&tokens[i * n..]) {
            let row = &table.bytes()[token as usize * row_bytes..][..row_bytes];
            with_wide_format!(table.ty, F => level.run(Row::<F> { row, out, scale, format: PhantomData }), else ());
        }
    })
}

pub fn norm(level: Level, ws: &mut Workspace, args: NormArgs<'_, CpuBackend>) -> Result<()> {
    struct Row<'a> {
        out: &'a mut [f32],
        x: &'a [f32],
        weight: &'a [f32],
        eps: f32,
    }
    impl Kernel for Row<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let Self { out, x, weight, eps } = self;
            let whole = x.len() / LANES * LANES;
            let mut sums = L::splat(0.0);
            for x in x[..whole].chunks_exact(LANES) {
                let x = L::load(x);
                sums = x.mul_add(x, sums);
            }
            let rest: f32 = x[whole..].iter().map(|x| x * x).sum();
            let factor = 1.0 / ((sums.sum() + rest) / x.len() as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        }
    }
    let NormArgs { out, x, first_row, weight, n_rows, width, eps } = args;
    let (x, weight) =
        (&x.of::<f32>()[first_row * width..(first_row + n_rows) * width], &weight.of::<f32>()[..width]);
    let n = item_rows(width);
    ws.crew.for_each_chunk(&mut out.of_mut::<f32>()[..n_rows * width], n * width, |i, out| {
        for (out, x) in out.chunks_exact_mut(width).zip(x[i * n * width..].chunks_exact(width)) {
            level.run(Row { out, x, weight, eps });
        }
    })
}

pub fn glu(level: Level, ws: &mut Workspace, args: GluArgs<'_, CpuBackend>) -> Result<()> {
    struct Elements<'a> {
        gate: &'a mut [f32],
        up: &'a [f32],
    }
    impl Kernel for Elements<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let whole = self.gate.len() / LANES * LANES;
            let (gate, gate_rest) = self.gate.split_at_mut(whole);
            for (gate, up) in gate.chunks_exact_mut(LANES).zip(self.up.chunks_exact(LANES)) {
                silu_times::<L>(gate, up);
            }
            let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
            gate[..gate_rest.len()].copy_from_slice(gate_rest);
            up[..gate_rest.len()].copy_from_slice(&self.up[whole..]);
            silu_times::<L>(&mut gate, &up);
            gate_rest.copy_from_slice(&gate[..gate_rest.len()]);
        }
    }
    /// `gate = gate / (1 + exp(-gate)) * up`, sixteen at a time.
    #[inline(always)]
    fn silu_times<L: Lanes>(gate: &mut [f32], up: &[f32]) {
        let (x, one) = (L::load(gate), L::splat(1.0));
        let e = L::splat(0.0).sub(x).exp();
        x.div(one.add(e)).mul(L::load(up)).store(gate);
    }
    let GluArgs { gate, up, activation: Activation::Silu, n_elems } = args;
    let up = &up.of::<f32>()[..n_elems];
    ws.crew.for_each_chunk(&mut gate.of_mut::<f32>()[..n_elems], ITEM_ELEMS, |i, gate| {
        let up = &up[i * ITEM_ELEMS..][..gate.len()];
        level.run(Elements { gate, up });
    })
}

#[expect(clippy::cast_possible_truncation, reason = "cosines and sines are rounded to f32")]
pub fn rope_table(ws: &mut Workspace, args: RopeTableArgs<'_, CpuBackend>) -> Result<()> {
    let RopeTableArgs { out, inv_freq, attention_factor, seqs } = args;
    let width = inv_freq.len() * 2;
    for desc in seqs {
        let (row, n_tokens) = (desc.row as usize, desc.n_tokens as usize);
        let out = &mut out.of_mut::<f32>()[row * width..(row + n_tokens) * width];
        // A sine takes as long as some dozen other elements.
        let n = item_rows(width * 16);
        ws.crew.for_each_chunk(out, n * width, |i, out| {
            for (position, out) in (desc.pos as usize + i * n..).zip(out.chunks_exact_mut(width)) {
                for (pair, inv_freq) in out.chunks_exact_mut(2).zip(inv_freq) {
                    // The angle is rounded to f32, as the models were trained; its sine is not rounded twice.
                    let (sin, cos) = f64::from(position as f32 * inv_freq).sin_cos();
                    pair[0] = cos as f32 * attention_factor;
                    pair[1] = sin as f32 * attention_factor;
                }
            }
        })?;
    }
    Ok(())
}

/// Turns one head by the angles of its row, (n_pairs, 2).
fn turn(head: &mut [f32], angles: &[f32], pairing: RopePairing) {
    match pairing {
        RopePairing::Adjacent => {
            for (pair, angle) in head.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
                let (x, y) = (pair[0], pair[1]);
                pair[0] = x * angle[0] - y * angle[1];
                pair[1] = x * angle[1] + y * angle[0];
            }
        }
        RopePairing::Halves => {
            let (first, second) = head.split_at_mut(angles.len() / 2);
            for ((x, y), angle) in first.iter_mut().zip(second).zip(angles.chunks_exact(2)) {
                (*x, *y) = (*x * angle[0] - *y * angle[1], *x * angle[1] + *y * angle[0]);
            }
        }
    }
}

pub fn rope_append(ws: &mut Workspace, args: RopeAppendArgs<'_, '_, CpuBackend>) -> Result<()> {
    let RopeAppendArgs { q, k, v, table, n_pairs, pairing, n_heads, shape, seqs } = args;
    let dim = shape.head_dim;
    let angles_of =
        |row: usize| table.map(|table| &table.of::<f32>()[row * n_pairs * 2..(row + 1) * n_pairs * 2]);
    for seq in seqs {
        let StepRows { row, n_tokens, pos } = *seq.desc;
        let (first_row, n_tokens) = (row as usize, n_tokens as usize);
        let width = n_heads * dim;
        let queries = &mut q.of_mut::<f32>()[first_row * width..(first_row + n_tokens) * width];
        let n = item_rows(width);
        ws.crew.for_each_chunk(queries, n * width, |i, rows| {
            for (row, heads) in (first_row + i * n..).zip(rows.chunks_exact_mut(width)) {
                if let Some(angles) = angles_of(row) {
                    heads.chunks_exact_mut(dim).for_each(|head| turn(head, angles, pairing));
                }
            }
        })?;
        // The keys of a block are far from each other in it: too little work, too scattered, to be shared out.
        let mut key = [0.0; 512];
        let key = &mut key[..dim];
        for token in 0..n_tokens {
            let (row, position) = (first_row + token, pos as usize + token);
            let (block, in_block) = (position / shape.block_size, position % shape.block_size);
            for head in 0..shape.n_kv_heads {
                let source = (row * shape.n_kv_heads + head) * dim..(row * shape.n_kv_heads + head + 1) * dim;
                key.copy_from_slice(&k.of::<f32>()[source.clone()]);
                if let Some(angles) = angles_of(row) {
                    turn(key, angles, pairing);
                }
                let place = seq.places.place(to_u32(head)?, to_u32(block)?);
                let value = &v.of::<f32>()[source];
                match shape.ty {
                    KvType::F32 => {
                        put(seq.blocks.of_mut::<f32>(), &shape, place, in_block, key, value, |x| x)
                    }
                    KvType::F16 => {
                        put(seq.blocks.of_mut::<f16>(), &shape, place, in_block, key, value, f16::from_f32);
                    }
                }
            }
        }
        ws.crew.check()?;
    }
    Ok(())
}

/// Writes a token's key and value into its block.
fn put<E>(
    blocks: &mut [E],
    shape: &KvShape,
    place: usize,
    in_block: usize,
    key: &[f32],
    value: &[f32],
    convert: impl Fn(f32) -> E,
) {
    let elems = shape.head_dim * shape.block_size;
    let block = &mut blocks[place * 2 * elems..(place + 1) * 2 * elems];
    let (keys, values) = block.split_at_mut(elems);
    for (to, &x) in keys[in_block..].iter_mut().step_by(shape.block_size).zip(key) {
        *to = convert(x);
    }
    for (to, &x) in values[in_block * shape.head_dim..].iter_mut().zip(value) {
        *to = convert(x);
    }
}

pub fn copy_blocks(args: CopyBlocksArgs<'_, CpuBackend>) -> Result<()> {
    let CopyBlocksArgs { to, from, shape, copies } = args;
    match shape.ty {
        KvType::F32 => copy_all(to.of_mut::<f32>(), from.of::<f32>(), &shape, copies),
        KvType::F16 => copy_all(to.of_mut::<u16>(), from.of::<u16>(), &shape, copies),
    }
    Ok(())
}

fn copy_all<E: Copy>(to: &mut [E], from: &[E], shape: &KvShape, copies: &[BlockCopy]) {
    let elems = shape.head_dim * shape.block_size;
    for copy in copies {
        let to = &mut to[copy.to * 2 * elems..(copy.to + 1) * 2 * elems];
        let from = &from[copy.from * 2 * elems..(copy.from + 1) * 2 * elems];
        if copy.begin == 0 && copy.end == shape.block_size {
            to.copy_from_slice(from);
            continue;
        }
        let (to_keys, to_values) = to.split_at_mut(elems);
        let (from_keys, from_values) = from.split_at(elems);
        let rows = to_keys.chunks_exact_mut(shape.block_size).zip(from_keys.chunks_exact(shape.block_size));
        for (to, from) in rows {
            to[copy.begin..copy.end].copy_from_slice(&from[copy.begin..copy.end]);
        }
        let values = copy.begin * shape.head_dim..copy.end * shape.head_dim;
        to_values[values.clone()].copy_from_slice(&from_values[values]);
    }
}

fn to_u32(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::invalid(format!("{n} is beyond 32 bits")))
}
