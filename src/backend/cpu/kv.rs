//! Cache blocks: keys as (head_dim, block_size), then values as (block_size, head_dim), in the cache's element type; then
//! the scales of the keys and those of the values, (block_size) each, if the type has them. Scales of neighbouring keys
//! are side by side as the keys' elements are.

use std::ops::Range;

use half::f16;

use super::CpuBackend;
use super::kv_elem::{Bf16, F16, F32, KvElem, Q8, load};
use super::simd::{Kernel, LANES, Lanes, Simd};
use super::team::Crew;
use crate::backend::args::*;
use crate::error::{Error, Result};

/// Tokens of a step from which on several threads append them.
const MANY_TOKENS: u32 = 64;

/// Parts of a buffer of cache blocks per thread, each filled by one thread.
const PARTS_PER_THREAD: usize = 8;

/// Where in a cache block its parts end.
fn part_ends(shape: &KvShape) -> [usize; 3] {
    let elems = shape.block_size * shape.head_dim * shape.ty.elem_bytes();
    [elems, 2 * elems, 2 * elems + shape.block_size * shape.ty.scale_bytes()]
}

/// Keys, values, scales of the keys and scales of the values of a cache block.
pub(super) fn parts<'a>(bytes: &'a [u8], shape: &KvShape) -> [&'a [u8]; 4] {
    let [keys, values, key_scales] = part_ends(shape);
    [&bytes[..keys], &bytes[keys..values], &bytes[values..key_scales], &bytes[key_scales..]]
}

/// The same to be written.
fn parts_mut<'a>(bytes: &'a mut [u8], shape: &KvShape) -> [&'a mut [u8]; 4] {
    let [keys_end, values_end, key_scales_end] = part_ends(shape);
    let (bytes, value_scales) = bytes.split_at_mut(key_scales_end);
    let (bytes, key_scales) = bytes.split_at_mut(values_end);
    let (keys, values) = bytes.split_at_mut(keys_end);
    [keys, values, key_scales, value_scales]
}

/// Turns pairs (x, y) of a head into (x cos - y sin, x sin + y cos).
#[inline(always)]
fn turn(head: &mut [f32], angles: &[f32], pairing: RopePairing) {
    let (angles, _) = angles.as_chunks::<2>();
    match pairing {
        RopePairing::Adjacent => {
            for ([x, y], [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
        RopePairing::Halves => {
            let (xs, ys) = head[..2 * angles.len()].split_at_mut(angles.len());
            for ((x, y), [cos, sin]) in xs.iter_mut().zip(ys).zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}

/// Angles of every row, or none.
#[derive(Clone, Copy)]
struct Angles<'a> {
    table: Option<&'a [f32]>,
    /// Elements of a row of the table.
    width: usize,
    pairing: RopePairing,
}

impl Angles<'_> {
    /// Turns a head of a row to its position.
    #[inline(always)]
    fn turn(&self, row: usize, head: &mut [f32]) {
        if let Some(table) = self.table {
            turn(head, &table[row * self.width..(row + 1) * self.width], self.pairing);
        }
    }
}

pub(super) fn rope_append(
    simd: Simd,
    crew: Crew<'_>,
    scratch: &mut [f32],
    args: RopeAppendArgs<'_, '_, CpuBackend>,
) -> Result<()> {
    let RopeAppendArgs { q, k, v, rope, n_heads, shape, seqs } = args;
    rope.check(shape.head_dim)?;
    let Rope { table, n_pairs, pairing } = rope;
    let angles = Angles { table: table.map(|table| table.of()), width: 2 * n_pairs, pairing };
    let (k, v) = (k.of::<f32>(), v.of::<f32>());
    for AppendSeq { desc, blocks, places } in seqs {
        let (first, n_tokens) = (desc.row as usize, desc.n_tokens as usize);
        let q_width = n_heads * shape.head_dim;
        let n_items = if desc.n_tokens < MANY_TOKENS { 1 } else { crew.n_threads() * PARTS_PER_THREAD };

        if angles.table.is_some() {
            let q = &mut q.of_mut::<f32>()[first * q_width..(first + n_tokens) * q_width];
            let n_rows = n_tokens.div_ceil(n_items);
            crew.for_each_chunk(q, n_rows * q_width, &mut [], |_, i, q| {
                simd.dispatch(TurnQueries { q, first_row: first + i * n_rows, q_width, angles, shape });
            })?;
        }
        let append = Append { k, v, angles, shape, desc: **desc, places: *places };
        let (blocks, block_bytes) = (blocks.bytes_mut(), shape.block_bytes());
        let n_places = blocks.len() / block_bytes;
        if let Some((_, _, place)) = append.blocks().find(|&(_, _, place)| place >= n_places) {
            return Err(Error::invalid(format!("cache block {place} in a buffer of {n_places}")));
        }
        let blocks = &mut blocks[..n_places * block_bytes];
        // Every part of the buffer is filled by whoever takes it, with those of the step's blocks that lie in it.
        let places_a_part = n_places.div_ceil(n_items);
        crew.for_each_chunk(blocks, places_a_part * block_bytes, scratch, |scratch, i, part| {
            let vector = &mut scratch[..shape.head_dim];
            simd.dispatch(AppendTo { append: &append, part, first_place: i * places_a_part, vector });
        })?;
    }
    Ok(())
}

struct TurnQueries<'a> {
    q: &'a mut [f32],
    first_row: usize,
    q_width: usize,
    angles: Angles<'a>,
    shape: KvShape,
}

impl Kernel for TurnQueries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, _: S) {
        for (row, q) in (self.first_row..).zip(self.q.chunks_exact_mut(self.q_width)) {
            for head in q.chunks_exact_mut(self.shape.head_dim) {
                self.angles.turn(row, head);
            }
        }
    }
}

/// Keys and values of one session's step on their way to its blocks.
struct Append<'a> {
    k: &'a [f32],
    v: &'a [f32],
    angles: Angles<'a>,
    shape: KvShape,
    desc: StepRows,
    places: BlockPlaces<'a, CpuBackend>,
}

impl Append<'_> {
    /// KV head, block and place of all blocks that the step's tokens touch.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (begin, n_tokens) = (self.desc.pos as usize, self.desc.n_tokens as usize);
        let blocks = begin / self.shape.block_size..(begin + n_tokens).div_ceil(self.shape.block_size);
        let heads = 0..self.shape.n_kv_heads;
        heads.flat_map(move |head| blocks.clone().map(move |block| (head, block))).map(|(head, block)| {
            let number = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
            let block_size = number(self.shape.block_size);
            (head, block, self.places.place(&self.desc, block_size, number(head), number(block)))
        })
    }
}

/// Writes those blocks of a step that lie in one part of the buffer.
struct AppendTo<'a> {
    append: &'a Append<'a>,
    part: &'a mut [u8],
    first_place: usize,
    /// (head_dim): working memory
    vector: &'a mut [f32],
}

impl Kernel for AppendTo<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        match self.append.shape.ty {
            KvType::F32 => self.run_as::<S, F32>(simd),
            KvType::F16 => self.run_as::<S, F16>(simd),
            KvType::Bf16 => self.run_as::<S, Bf16>(simd),
            KvType::Q8 => self.run_as::<S, Q8>(simd),
        }
    }
}

impl AppendTo<'_> {
    #[inline(always)]
    fn run_as<S: Lanes, E: KvElem>(self, simd: S) {
        let Self { append: &Append { k, v, angles, shape, desc, .. }, part, first_place, vector } = self;
        let (dim, block_size, block_bytes) = (shape.head_dim, shape.block_size, shape.block_bytes());
        let (begin, row_bytes) = (desc.pos as usize, dim * E::BYTES);
        for (head, block, place) in self.append.blocks() {
            let place = place.checked_sub(first_place).filter(|place| place * block_bytes < part.len());
            let Some(place) = place else { continue };
            let bytes = &mut part[place * block_bytes..(place + 1) * block_bytes];
            let [keys, values, key_scales, value_scales] = parts_mut(bytes, &shape);
            let start = block * block_size;
            let end = (start + block_size).min(begin + desc.n_tokens as usize);
            for position in start.max(begin)..end {
                let (row, in_block) = (desc.row as usize + position - begin, position - start);
                let source = (row * shape.n_kv_heads + head) * dim..(row * shape.n_kv_heads + head + 1) * dim;
                vector.copy_from_slice(&k[source.clone()]);
                angles.turn(row, vector);
                put_scale(key_scales, in_block, E::scale_row(simd, vector));
                for (i, key) in vector.chunks(LANES).enumerate() {
                    let mut elems = [0; LANES * 4];
                    E::store(simd, &mut elems[..key.len() * E::BYTES], load(simd, key));
                    for (j, elem) in elems.chunks_exact(E::BYTES).take(key.len()).enumerate() {
                        let at = ((i * LANES + j) * block_size + in_block) * E::BYTES;
                        keys[at..at + E::BYTES].copy_from_slice(elem);
                    }
                }
                vector.copy_from_slice(&v[source]);
                put_scale(value_scales, in_block, E::scale_row(simd, vector));
                let to = &mut values[in_block * row_bytes..(in_block + 1) * row_bytes];
                for (to, value) in to.chunks_mut(LANES * E::BYTES).zip(vector.chunks(LANES)) {
                    E::store(simd, to, load(simd, value));
                }
            }
        }
    }
}

/// Writes the scale of a token, if the type has any.
#[inline(always)]
fn put_scale(scales: &mut [u8], token: usize, scale: f16) {
    if let Some(to) = scales.as_chunks_mut().0.get_mut(token) {
        *to = scale.to_le_bytes();
    }
}

pub(super) fn copy_blocks(crew: Crew<'_>, part: &mut CopyPart<'_, CpuBackend>) -> Result<()> {
    let CopyPart { to, to_places, from, from_places, shape, desc, blocks, slots } = part;
    let (to, from, block_bytes) = (to.bytes_mut(), from.bytes(), shape.block_bytes());
    let (n_to, n_from) = (to.len() / block_bytes, from.len() / block_bytes);
    let number = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
    let block_size = number(shape.block_size);
    let copies = || {
        let touched = desc.pos / block_size..desc.last_block(block_size) + 1;
        let all = (0..number(shape.n_kv_heads)).flat_map(move |head| touched.clone().map(move |b| (head, b)));
        let chosen = all.filter(|&(head, block)| blocks.contains(slots, desc, block_size, head, block));
        chosen.map(|(head, block)| {
            let start = block * block_size;
            BlockCopy {
                from: from_places.place(desc, block_size, head, block),
                to: to_places.place(desc, block_size, head, block),
                tokens: (desc.pos.max(start) - start) as usize
                    ..(desc.end().min(start + block_size) - start) as usize,
            }
        })
    };
    if let Some(copy) = copies().find(|copy| copy.to >= n_to || copy.from >= n_from) {
        return Err(Error::invalid(format!("{copy:?} from {n_from} blocks to {n_to}")));
    }
    let to = &mut to[..n_to * block_bytes];
    let n_items = if desc.n_tokens < MANY_TOKENS { 1 } else { crew.n_threads() * PARTS_PER_THREAD };
    let places_a_part = n_to.div_ceil(n_items).max(1);
    crew.for_each_chunk(to, places_a_part * block_bytes, &mut [], |_, i, part| {
        for copy in copies().filter(|copy| copy.to / places_a_part == i) {
            let at = (copy.to - i * places_a_part) * block_bytes;
            let from = &from[copy.from * block_bytes..(copy.from + 1) * block_bytes];
            copy_tokens(&mut part[at..at + block_bytes], from, shape, copy.tokens);
        }
    })
}

/// Some tokens of one cache block on their way to another.
#[derive(Debug)]
struct BlockCopy {
    from: usize,
    to: usize,
    tokens: Range<usize>,
}

fn copy_tokens(to: &mut [u8], from: &[u8], shape: &KvShape, tokens: Range<usize>) {
    let [to_keys, to_values, to_key_scales, to_value_scales] = parts_mut(to, shape);
    let [keys, values, key_scales, value_scales] = parts(from, shape);
    let (elem, scale) = (shape.ty.elem_bytes(), shape.ty.scale_bytes());
    let bytes = |token_bytes: usize| tokens.start * token_bytes..tokens.end * token_bytes;
    let row_bytes = shape.block_size * elem;
    for (to, from) in to_keys.chunks_exact_mut(row_bytes).zip(keys.chunks_exact(row_bytes)) {
        to[bytes(elem)].copy_from_slice(&from[bytes(elem)]);
    }
    let values_at = bytes(shape.head_dim * elem);
    to_values[values_at.clone()].copy_from_slice(&values[values_at]);
    to_key_scales[bytes(scale)].copy_from_slice(&key_scales[bytes(scale)]);
    to_value_scales[bytes(scale)].copy_from_slice(&value_scales[bytes(scale)]);
}
