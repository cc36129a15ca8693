//! The oracle: every op as its definition reads, one element after the other in f64, nothing shared with the fast
//! backends but the arguments. It runs whole models, slowly.

use std::ops::Range;

use half::{bf16, f16};
use longgen_format::quant;

use super::args::*;
use super::{Backend, DeviceInfo};
use crate::alloc::{HostBuf, Meter, try_collect, try_vec, try_with_capacity};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kv::slots::SlotMap;

/// Runs the ops by their definitions.
#[derive(Debug, Default)]
pub struct ReferenceBackend {
    meter: Meter,
}

/// What a step of the oracle needs: the flag that stops it.
#[derive(Debug, Default)]
pub struct ReferenceWorkspace {
    cancel: Cancel,
}

/// Where in a buffer of cache blocks the elements of a row lie, and its scale. A block holds `block_size` keys, then as many
/// values, row after row, then the scales of the keys and those of the values, if the type has any.
fn kv_row(shape: &KvShape, place: usize, is_value: bool, token: usize) -> [Range<usize>; 2] {
    let row = usize::from(is_value) * shape.block_size + token;
    let (elems, scale) = (shape.head_dim * shape.ty.elem_bytes(), shape.ty.scale_bytes());
    let rows = place * shape.block_bytes();
    let scales = rows + 2 * shape.block_size * elems;
    [rows + row * elems..rows + (row + 1) * elems, scales + row * scale..scales + (row + 1) * scale]
}

/// The scale of a row of 8-bit integers; NaN if there is none.
fn scale_of(row: &[f32]) -> f16 {
    let largest = row.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0);
    if row.iter().all(|x| x.is_finite()) && scale.is_finite() { scale } else { f16::NAN }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number within +-127")]
fn quant_of(x: f32, scale: f16) -> i8 {
    if scale > f16::ZERO { (x / scale.to_f32()).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

/// Writes a row as a cache of the type has it.
fn store_row(ty: KvType, blocks: &mut [u8], [elems, scale_at]: [Range<usize>; 2], row: &[f32]) {
    let scale = scale_of(row);
    for (to, &x) in blocks[elems].chunks_exact_mut(ty.elem_bytes()).zip(row) {
        match ty {
            KvType::F32 => to.copy_from_slice(&x.to_le_bytes()),
            KvType::F16 => to.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
            KvType::Bf16 => to.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
            KvType::Q8 => to.copy_from_slice(&quant_of(x, scale).to_le_bytes()),
        }
    }
    blocks[scale_at].copy_from_slice(&scale.to_le_bytes()[..ty.scale_bytes()]);
}

/// Reads a row behind what `to` holds.
fn load_row(ty: KvType, blocks: &[u8], [elems, scale_at]: [Range<usize>; 2], to: &mut Vec<f32>) {
    let half = |bytes: &[u8]| [bytes[0], bytes[1]];
    let elems = blocks[elems].chunks_exact(ty.elem_bytes());
    match ty {
        KvType::F32 => to.extend(elems.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))),
        KvType::F16 => to.extend(elems.map(|x| f16::from_le_bytes(half(x)).to_f32())),
        KvType::Bf16 => to.extend(elems.map(|x| bf16::from_le_bytes(half(x)).to_f32())),
        KvType::Q8 => {
            let scale = f16::from_le_bytes(half(&blocks[scale_at])).to_f32();
            to.extend(elems.map(|x| f32::from(i8::from_le_bytes([x[0]])) * scale));
        }
    }
}

fn weight_row(w: &WeightData, row: usize) -> Result<Vec<f32>> {
    let row_bytes = w.bytes().len() / w.rows;
    let mut out = try_vec(w.cols, 0.0)?;
    quant::dequantize(w.ty, &w.bytes()[row * row_bytes..(row + 1) * row_bytes], &mut out)?;
    Ok(out)
}

fn turn(head: &mut [f32], table: &[f32], n_pairs: usize, pairing: RopePairing) {
    for pair in 0..n_pairs {
        let (cos, sin) = (table[2 * pair], table[2 * pair + 1]);
        let (a, b) = match pairing {
            RopePairing::Adjacent => (2 * pair, 2 * pair + 1),
            RopePairing::Halves => (pair, pair + n_pairs),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cos - y * sin;
        head[b] = x * sin + y * cos;
    }
}

/// What a product's matrices are multiplied with.
fn values(input: &Input<'_, ReferenceBackend>, n_rows: usize, width: usize) -> Result<Vec<f64>> {
    match input {
        Input::Rows(x) => try_collect(x.of::<f32>()[..n_rows * width].iter().map(|&x| f64::from(x))),
        Input::Norm(Norm { x, first_row, weight, eps, .. }) => {
            let x = &x.of::<f32>()[first_row * width..(first_row + n_rows) * width];
            let mut normed = try_with_capacity(x.len())?;
            for x in x.chunks(width) {
                let mean_square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean_square + f64::from(*eps)).sqrt();
                let weighted = x.iter().zip(weight.of::<f32>()).map(|(&x, &w)| f64::from(x) * f64::from(w));
                normed.extend(weighted.map(|x| x * factor));
            }
            Ok(normed)
        }
    }
}

impl Backend for ReferenceBackend {
    type Buf = HostBuf;
    type Weight = WeightData;
    type Descriptor = StepRows;
    type Slots = SlotMap;
    type Workspace = ReferenceWorkspace;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "CPU, reference".into(), bandwidth: None }
    }

    fn alloc(&self, n_bytes: usize) -> Result<HostBuf> {
        HostBuf::new(n_bytes, &self.meter)
    }

    fn allocated_bytes(&self) -> usize {
        self.meter.n_bytes()
    }

    fn upload<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut HostBuf,
        at: usize,
        src: &[T],
    ) -> Result<()> {
        dst.of_mut()[at..at + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut [T],
        src: &HostBuf,
        at: usize,
    ) -> Result<()> {
        dst.copy_from_slice(&src.of()[at..at + dst.len()]);
        Ok(())
    }

    fn copy(&self, dst: &mut HostBuf, at: usize, src: &HostBuf, range: Range<usize>) -> Result<()> {
        dst.of_mut::<f32>()[at..at + range.len()].copy_from_slice(&src.of()[range]);
        Ok(())
    }

    fn weight(&self, data: WeightData) -> Result<WeightData> {
        Ok(data)
    }

    fn kv_block_bytes(&self, shape: &KvShape) -> usize {
        shape.block_bytes()
    }

    fn workspace_bytes(&self, _: &WorkspaceShape, _: Precision) -> usize {
        0
    }

    fn workspace(&self, _: &WorkspaceShape, _: Precision) -> Result<ReferenceWorkspace> {
        Ok(ReferenceWorkspace::default())
    }

    fn slots_bytes(&self, _: &SlotMap) -> usize {
        0
    }

    fn slots(&self, map: &SlotMap) -> Result<SlotMap> {
        Ok(map.clone())
    }

    fn descriptor_bytes(&self) -> usize {
        0
    }

    fn descriptor(&self) -> Result<StepRows> {
        Ok(StepRows::default())
    }

    fn describe(&self, desc: &mut StepRows, rows: StepRows) -> Result<()> {
        *desc = rows;
        Ok(())
    }

    fn run<T>(
        &self,
        workspace: &mut ReferenceWorkspace,
        cancel: &Cancel,
        step: impl FnOnce(&mut ReferenceWorkspace) -> Result<T>,
    ) -> Result<T> {
        workspace.cancel = cancel.clone();
        step(workspace)
    }

    fn commit(&self, workspace: &mut ReferenceWorkspace) {
        workspace.cancel = Cancel::default();
    }

    fn embed(&self, ws: &mut ReferenceWorkspace, args: EmbedArgs<'_, Self>) -> Result<()> {
        let width = args.table.cols;
        let tokens = &args.tokens.of::<u32>()[..args.n_tokens];
        for (out, &token) in args.out.of_mut::<f32>().chunks_mut(width).zip(tokens) {
            ws.cancel.check()?;
            if token as usize >= args.table.rows {
                return Err(Error::invalid(format!("token {token} of a vocabulary of {}", args.table.rows)));
            }
            for (out, value) in out.iter_mut().zip(weight_row(args.table, token as usize)?) {
                *out = value * args.scale;
            }
        }
        Ok(())
    }

    fn matmul(&self, ws: &mut ReferenceWorkspace, args: MatmulArgs<'_, '_, Self>) -> Result<()> {
        let input = match args.parts.first() {
            Some(part) => values(&args.input, args.n_rows, part.w.cols)?,
            None => Vec::new(),
        };
        for part in args.parts.iter_mut() {
            let (rows, cols) = (part.w.rows, part.w.cols);
            for row in 0..rows {
                ws.cancel.check()?;
                let w = weight_row(part.w, row)?;
                let bias = part.bias.map_or(0.0, |bias| bias.of::<f32>()[row]);
                for i in 0..args.n_rows {
                    let x = &input[i * cols..(i + 1) * cols];
                    let sum: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * x).sum();
                    let out = &mut part.out.of_mut::<f32>()[i * rows + row];
                    let before = if args.add { f64::from(*out) } else { 0.0 };
                    *out = to_f32(before + sum + f64::from(bias));
                }
            }
        }
        Ok(())
    }

    fn rope_table(&self, _: &mut ReferenceWorkspace, args: RopeTableArgs<'_, Self>) -> Result<()> {
        let n_pairs = args.n_pairs;
        for desc in args.seqs {
            for token in 0..desc.n_tokens {
                let row = (desc.row + token) as usize;
                let out = &mut args.out.of_mut::<f32>()[row * n_pairs * 2..(row + 1) * n_pairs * 2];
                for (pair, &inv_freq) in out.chunks_mut(2).zip(args.inv_freq.of::<f32>()) {
                    let angle = f64::from((desc.pos + token) as f32 * inv_freq);
                    pair[0] = to_f32(angle.cos()) * args.attention_factor;
                    pair[1] = to_f32(angle.sin()) * args.attention_factor;
                }
            }
        }
        Ok(())
    }

    fn rope_append(&self, _: &mut ReferenceWorkspace, args: RopeAppendArgs<'_, '_, Self>) -> Result<()> {
        let RopeAppendArgs { q, k, v, rope, n_heads, shape, seqs } = args;
        let Rope { table, n_pairs, pairing } = rope;
        let (n_kv, dim) = (shape.n_kv_heads, shape.head_dim);
        for seq in seqs {
            for token in 0..seq.desc.n_tokens {
                let row = (seq.desc.row + token) as usize;
                let position = (seq.desc.pos + token) as usize;
                let angles =
                    table.map(|table| &table.of::<f32>()[row * n_pairs * 2..(row + 1) * n_pairs * 2]);
                if let Some(angles) = angles {
                    for head in
                        q.of_mut::<f32>()[row * n_heads * dim..(row + 1) * n_heads * dim].chunks_mut(dim)
                    {
                        turn(head, angles, n_pairs, pairing);
                    }
                }
                for head in 0..n_kv {
                    let source = (row * n_kv + head) * dim..(row * n_kv + head + 1) * dim;
                    let mut key = try_collect(k.of::<f32>()[source.clone()].iter().copied())?;
                    if let Some(angles) = angles {
                        turn(&mut key, angles, n_pairs, pairing);
                    }
                    let block = index(position / shape.block_size)?;
                    let place = seq.places.place(seq.desc, index(shape.block_size)?, index(head)?, block);
                    let in_block = position % shape.block_size;
                    for (values, is_value) in [(&key[..], false), (&v.of::<f32>()[source], true)] {
                        let to = kv_row(&shape, place, is_value, in_block);
                        store_row(shape.ty, seq.blocks.bytes_mut(), to, values);
                    }
                }
            }
        }
        Ok(())
    }

    fn attn(&self, ws: &mut ReferenceWorkspace, args: AttnArgs<'_, Self>) -> Result<()> {
        let (dim, n_heads) = (args.shape.head_dim, args.n_heads);
        for seq in args.seqs {
            for (token, head) in (0..seq.desc.n_tokens).flat_map(|t| (0..n_heads).map(move |h| (t, h))) {
                ws.cancel.check()?;
                let at = ((seq.desc.row + token) as usize * n_heads + head) * dim;
                let query = &args.q.of::<f32>()[at..at + dim];
                let (position, phase) = (seq.desc.pos + token, args.phases.of::<u32>()[head]);
                let kv_head = index(head / (n_heads / args.shape.n_kv_heads))?;

                let n_keys = position as usize + 1;
                let (mut scores, mut values) = (try_with_capacity(n_keys)?, try_with_capacity(n_keys * dim)?);
                let mut key = try_with_capacity(dim)?;
                for j in (0..=position).filter(|&j| args.mask.sees(position, j, phase)) {
                    let read = |is_value, to: &mut Vec<f32>| {
                        let segment = seq.segments.iter().find(|segment| j < segment.end.position(seq.desc));
                        let segment =
                            segment.ok_or_else(|| Error::invalid(format!("no segment holds token {j}")))?;
                        let block_size = args.shape.block_size;
                        let block = index(j as usize / block_size)?;
                        let place = segment.places.place(seq.desc, index(block_size)?, kv_head, block);
                        let row = kv_row(&args.shape, place, is_value, j as usize % block_size);
                        load_row(args.shape.ty, segment.blocks.bytes(), row, to);
                        Ok::<_, Error>(())
                    };
                    key.clear();
                    read(false, &mut key)?;
                    read(true, &mut values)?;
                    let dot: f64 = query.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let score = dot * f64::from(args.scale);
                    let cap = f64::from(args.softcap);
                    scores.push(if cap > 0.0 { cap * (score / cap).tanh() } else { score });
                }
                let sink = args.sink_logits.map(|sinks| f64::from(sinks.of::<f32>()[head]));
                let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - max).exp()).sum();
                for d in 0..dim {
                    let values = values.iter().skip(d).step_by(dim);
                    let sum: f64 =
                        scores.iter().zip(values).map(|(s, &v)| (s - max).exp() * f64::from(v)).sum();
                    args.out.of_mut::<f32>()[at + d] = to_f32(sum / total);
                }
            }
        }
        Ok(())
    }

    fn copy_blocks(&self, _: &mut ReferenceWorkspace, args: CopyBlocksArgs<'_, '_, Self>) -> Result<()> {
        for CopyPart { to, to_places, from, from_places, shape, desc, blocks, slots } in args.parts {
            let (block_size, n_kv_heads) = (index(shape.block_size)?, index(shape.n_kv_heads)?);
            for (kv_head, position) in
                (0..n_kv_heads).flat_map(|h| (desc.pos..desc.end()).map(move |p| (h, p)))
            {
                let (block, in_block) = (position / block_size, (position % block_size) as usize);
                if blocks.contains(slots, desc, block_size, kv_head, block) {
                    let from_place = from_places.place(desc, block_size, kv_head, block);
                    let to_place = to_places.place(desc, block_size, kv_head, block);
                    for is_value in [false, true] {
                        let from_row = kv_row(shape, from_place, is_value, in_block);
                        let to_row = kv_row(shape, to_place, is_value, in_block);
                        for (to_part, from_part) in to_row.into_iter().zip(from_row) {
                            to.bytes_mut()[to_part].copy_from_slice(&from.bytes()[from_part]);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn glu(&self, _: &mut ReferenceWorkspace, args: GluArgs<'_, Self>) -> Result<()> {
        let Activation::Silu = args.activation;
        for (gate, &up) in args.gate.of_mut::<f32>()[..args.n_elems].iter_mut().zip(args.up.of::<f32>()) {
            let x = f64::from(*gate);
            *gate = to_f32(x / (1.0 + (-x).exp()) * f64::from(up));
        }
        Ok(())
    }

    fn top(&self, _: &mut ReferenceWorkspace, args: TopArgs<'_, Self>) -> Result<()> {
        args.check()?;
        let TopArgs { values, columns, x, width, n } = args;
        let x = &x.of::<f32>()[..width];
        let mut order = try_collect(0..width)?;
        order.sort_unstable_by(|&a, &b| {
            let by_value = match (x[a].is_nan(), x[b].is_nan()) {
                (false, false) => x[b].total_cmp(&x[a]),
                (a_is_nan, b_is_nan) => a_is_nan.cmp(&b_is_nan),
            };
            by_value.then(a.cmp(&b))
        });
        for (i, &column) in order[..n].iter().enumerate() {
            values.of_mut::<f32>()[i] = x[column];
            columns.of_mut::<u32>()[i] = index(column)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the rounding of the result to f32 is meant")]
fn to_f32(x: f64) -> f32 {
    x as f32
}

fn index(i: usize) -> Result<u32> {
    u32::try_from(i).map_err(|_| Error::invalid(format!("index {i} is too large")))
}
