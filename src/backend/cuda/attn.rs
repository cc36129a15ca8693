//! Attention: which kernel, how it is split, and what it is told of the cache.

use super::device::Matrix16;
use super::params::{self, MAX_PARTS, OUT_BF16, OUT_F16, OUT_F32, filled, word};
use super::workspace::Workspace;
use super::{CudaBackend, Slots, gemm, rows_of};
use crate::alloc::try_collect;
use crate::backend::args::*;
use crate::error::{Error, ErrorKind, Result};
use crate::kv::layer::LayerKv;

/// Tokens of a step from which on queries are computed in tiles.
const MANY_TOKENS: usize = 16;

/// Head sizes that the kernels of single rows are made for; smaller ones take the next.
const ROW_HEADS: [usize; 3] = [64, 128, 256];

/// Head sizes that single rows go through the tensor cores for, and query heads of a block there.
const DECODE_HEADS: [usize; 2] = [64, 128];
const DECODE_HEADS_AT_ONCE: usize = 8;

/// Largest head.
pub(super) const MAX_HEAD_DIM: usize = ROW_HEADS[ROW_HEADS.len() - 1];

/// Parts of the keys of a query, at most.
const MAX_SPLITS: usize = 64;

/// Partial results of a head that there is room for.
const PARTIALS: usize = MAX_SPLITS * MAX_PARTS;

/// Threads of the kernels of single rows.
const ROW_THREADS: u32 = 128;

/// Threads of Hopper's kernel of single rows, keys of one of its stages, and bytes that a row has in all stages together.
const HOPPER_ROW_THREADS: u32 = 288;
const HOPPER_CHUNK: usize = 64;
const HOPPER_STAGES_BYTES: usize = 6 * 256;

/// Keys, or queries, that Hopper's kernel of tiles copies at once, and blocks of its clusters.
const HOPPER_RUN: usize = 64;
const HOPPER_BLOCKS: usize = 2;

/// Elements of the partial results: of every query head, the weighted values, the largest score and the sum.
pub(super) fn partials_len(shape: &WorkspaceShape) -> usize {
    shape.n_heads.saturating_mul(shape.head_dim + 2).saturating_mul(PARTIALS)
}

/// Counters, zero between launches: of every query head, of the blocks that have left partial results; or the first one of
/// the items that Hopper's clusters have taken.
pub(super) fn arrivals_len(shape: &WorkspaceShape) -> usize {
    shape.n_heads.saturating_mul(PARTIALS)
}

/// Where blocks lie, as kernels take it.
pub(super) fn places(places: &BlockPlaces<'_, CudaBackend>) -> params::BlockPlaces {
    match *places {
        BlockPlaces::Slots(Slots(map)) => params::BlockPlaces { map: map.address(), n_blocks: 0, unused: 0 },
        BlockPlaces::Step { n_blocks } => params::BlockPlaces { map: 0, n_blocks, unused: 0 },
    }
}

/// Where keys and values are appended, as kernels take it.
pub(super) fn append_seq(seq: &AppendSeq<'_, CudaBackend>) -> params::AppendSeq {
    params::AppendSeq { rows: seq.desc.address(), blocks: seq.blocks.address(), places: places(&seq.places) }
}

fn segment(segment: &KvSegment<'_, CudaBackend>) -> params::Segment {
    let (end_kind, end) = match segment.end {
        SegmentEnd::Fixed(end) => (0, end),
        SegmentEnd::BeforeStep => (1, 0),
        SegmentEnd::Step => (2, 0),
    };
    params::Segment { blocks: segment.blocks.address(), places: places(&segment.places), end_kind, end }
}

/// How heads are turned, as kernels take it.
pub(super) fn rope(rope: &Rope<'_, CudaBackend>, n_rows: usize, head_dim: usize) -> Result<params::Rope> {
    rope.check(head_dim)?;
    let Rope { table, n_pairs, pairing } = *rope;
    if head_dim > MAX_HEAD_DIM {
        return Err(Error::invalid(format!(
            "{n_pairs} pairs in a head of {head_dim}: at most {MAX_HEAD_DIM}"
        )));
    }
    let pairing = match pairing {
        RopePairing::Adjacent => 0,
        RopePairing::Halves => 1,
    };
    let table = table.map_or(Ok(0), |table| table.f32s(n_rows * n_pairs * 2))?;
    Ok(params::Rope { table, n_pairs: word(n_pairs), pairing })
}

/// What a launch appends: for all its sessions, and where the token of each goes if it has no slot of its own yet.
struct Appended {
    append: params::Append,
    staged: Vec<(params::Address, u32)>,
}

/// Everything at once where a token of each session is decoded by Hopper's kernel: one launch less, or two with a ring.
pub(super) fn append_attn(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: AppendAttnArgs<'_, '_, CudaBackend>,
) -> Result<()> {
    let AppendAttnArgs { n_heads, mask, .. } = args;
    let Some(shape) = args.seqs.first().map(|seq| seq.shape) else { return Ok(()) };
    let is_served = shape.n_kv_heads > 0
        && n_heads.is_multiple_of(shape.n_kv_heads)
        && args.seqs.iter().all(|seq| seq.desc.rows.n_tokens == 1)
        && row_kernel(backend.limits.has_hopper, ws.precision, n_heads / shape.n_kv_heads, &shape)?.appends;
    if !is_served {
        return args.one_by_one(backend, ws);
    }
    let n_rows = rows_of(args.seqs.iter().map(|seq| seq.desc));
    let kv_elems = n_rows * shape.n_kv_heads * shape.head_dim;
    let append = params::Append {
        k: args.k.f32s(kv_elems)?,
        v: args.v.f32s(kv_elems)?,
        rope: rope(&args.rope, n_rows, shape.head_dim)?,
    };
    let staged_of = |seq: &LayerKv<'_, CudaBackend>| {
        seq.ring.as_ref().map_or((0, 0), |ring| (ring.staged.address(), ring.stage_blocks))
    };
    let staged = try_collect(args.seqs.iter().map(staged_of))?;
    let segments = try_collect(args.seqs.iter().map(LayerKv::held))?;
    let seqs = args.seqs.iter().zip(&segments).map(|(seq, segments)| AttnSeq { desc: seq.desc, segments });
    let seqs = try_collect(seqs)?;
    let AppendAttnArgs { out, q, scale, softcap, sink_logits, phases, .. } = args;
    let args = AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs: &seqs };
    run(backend, ws, &args, Some(&Appended { append, staged }), None)?;
    ws.keep_pace()
}

pub(super) fn attn(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: &AttnArgs<'_, CudaBackend>,
) -> Result<()> {
    run(backend, ws, args, None, None)
}

/// Whether [`attn_rounded`] serves it.
pub(super) fn takes_rounded(backend: &CudaBackend, ws: &Workspace, args: &AttnArgs<'_, CudaBackend>) -> bool {
    let n_tokens = |seq: &AttnSeq<'_, CudaBackend>| seq.desc.rows.n_tokens as usize;
    args.seqs.iter().all(|seq| has_hopper_tiles(backend, ws, &args.shape, args.softcap, n_tokens(seq)))
}

/// Attention of many tokens of one session, [if it is served](takes_rounded): queries are as `HeadsParams` has them, and
/// results are rounded to 16 bits.
pub(super) fn attn_rounded(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: &AttnArgs<'_, CudaBackend>,
    is_bf16: bool,
) -> Result<()> {
    if !takes_rounded(backend, ws, args) {
        return Err(Error::new(
            ErrorKind::Internal,
            "queries in 16 bits for a kernel that does not take them",
        ));
    }
    let ty = if is_bf16 { OUT_BF16 } else { OUT_F16 };
    run(backend, ws, args, None, Some(ty))
}

/// Whether Hopper's kernel of tiles computes attention of so many tokens.
pub(super) fn has_hopper_tiles(
    backend: &CudaBackend,
    ws: &Workspace,
    shape: &KvShape,
    softcap: f32,
    n_tokens: usize,
) -> bool {
    n_tokens >= MANY_TOKENS && hopper_tile(backend, ws.precision, shape, softcap).is_some()
}

/// With what is appended first, if that is done in the same launch; or with queries of 16 bits, and what results are rounded to.
fn run(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: &AttnArgs<'_, CudaBackend>,
    appended: Option<&Appended>,
    rounded: Option<u32>,
) -> Result<()> {
    let AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs } = args;
    let (n_heads, n_kv_heads, head_dim) = (*n_heads, shape.n_kv_heads, shape.head_dim);
    if n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
        return Err(Error::invalid(format!("{n_heads} heads, {n_kv_heads} kv heads")));
    }
    if shape.block_size != mask.block_size() as usize || !shape.block_size.is_multiple_of(16) {
        return Err(Error::invalid(format!("cache blocks of {} tokens for {mask:?}", shape.block_size)));
    }
    if n_heads > ws.shape.n_heads || head_dim > ws.shape.head_dim {
        let (has, dim) = (ws.shape.n_heads, ws.shape.head_dim);
        return Err(Error::invalid(format!(
            "{n_heads} heads of {head_dim} in a workspace for {has} of {dim}"
        )));
    }
    for seq in *seqs {
        let n_segments = seq.segments.len();
        if n_segments == 0 || n_segments > 3 || seq.desc.rows.n_tokens == 0 {
            return Err(Error::invalid(format!("{n_segments} segments for {:?}", seq.desc.rows)));
        }
    }
    let n_rows = rows_of(seqs.iter().map(|seq| seq.desc));
    // Sessions with a token each, as in decoding, are computed together.
    let at_once = if seqs.iter().all(|seq| seq.desc.rows.n_tokens == 1) { MAX_PARTS } else { 1 };
    let staged = |i: usize| appended.map_or((0, 0), |appended| appended.staged[i]);
    let described = try_collect(seqs.iter().enumerate().map(|(i, seq)| of_seq(seq, staged(i))))?;
    for (seqs, described) in seqs.chunks(at_once).zip(described.chunks(at_once)) {
        let params = params::Attn {
            out: out.f32s(n_rows * n_heads * head_dim)?,
            q: q.f32s(n_rows * n_heads * head_dim)?,
            sink_logits: sink_logits.map_or(Ok(0), |sinks| sinks.f32s(n_heads))?,
            phases: phases.f32s(n_heads)?,
            partials: ws.partials.address(),
            arrivals: ws.arrivals.address(),
            append: appended.map_or(params::Append::default(), |appended| appended.append),
            shape: shape.into(),
            mask: mask.into(),
            n_heads: word(n_heads),
            n_splits: 1,
            scale: *scale,
            softcap: *softcap,
            first_token: 0,
            n_tokens: seqs[0].desc.rows.n_tokens,
            unused: 0,
            seqs: filled(described),
        };
        let is_tiled = params.n_tokens as usize >= MANY_TOKENS;
        if let Some(tile) = hopper_tile(backend, ws.precision, shape, *softcap).filter(|_| is_tiled) {
            hopper_tiles(backend, ws, &tile, shape, &seqs[0], &params, rounded)?;
        } else if let Some(tile) = tile(ws.precision, shape, backend.limits.shared_bytes).filter(|_| is_tiled)
        {
            tiles(backend, &tile, &params)?;
        } else {
            rows(backend, ws.precision, seqs.len(), shape, &params)?;
        }
    }
    Ok(())
}

/// One session, as kernels take it, and its staged blocks: where they are, and how many there are of each head.
fn of_seq(seq: &AttnSeq<'_, CudaBackend>, (staged, stage_blocks): (params::Address, u32)) -> params::AttnSeq {
    let mut segments = [segment(&seq.segments[0]); 3];
    for (to, from) in segments.iter_mut().zip(seq.segments) {
        *to = segment(from);
    }
    let n_segments = word(seq.segments.len());
    params::AttnSeq { rows: seq.desc.address(), segments, staged, n_segments, stage_blocks }
}

/// A tiled kernel: its name, and how many queries it takes at once.
struct Tile {
    kernel: String,
    queries: usize,
    shared_bytes: u32,
}

/// The tiled kernels: head size, queries and keys of a tile. Of several for a head, those that need less memory come
/// last; the last ones are content with what any card has.
const TILES: [(usize, usize, usize); 5] =
    [(64, 128, 64), (96, 128, 64), (128, 128, 64), (128, 64, 64), (256, 64, 32)];

/// The tiled kernel for this shape, if there is one.
fn tile(precision: Precision, shape: &KvShape, max_shared_bytes: u32) -> Option<Tile> {
    let ty = match (precision, shape.ty) {
        (Precision::Fast, KvType::F16) => "f16",
        (Precision::Fast, KvType::Bf16) => "bf16",
        (Precision::Fast, KvType::Q8) => "q8",
        _ => return None,
    };
    // Queries, and two stages of keys and values, in rows of 16 bytes more than a head.
    let shared_bytes = |queries, keys| word((queries + 4 * keys) * (shape.head_dim + 8) * 2);
    TILES.into_iter().filter(|&(head_dim, ..)| head_dim == shape.head_dim).find_map(|(dim, queries, keys)| {
        let kernel = format!("attn_prefill_{ty}_{dim}_{queries}");
        let tile = Tile { kernel, queries, shared_bytes: shared_bytes(queries, keys) };
        Some(tile).filter(|tile| tile.shared_bytes <= max_shared_bytes)
    })
}

/// The kernel of `kernels/sm90`, if it serves this shape.
fn hopper_tile(backend: &CudaBackend, precision: Precision, shape: &KvShape, softcap: f32) -> Option<Tile> {
    let ty = match (precision, shape.ty) {
        (Precision::Fast, KvType::F16) => "f16",
        (Precision::Fast, KvType::Bf16) => "bf16",
        _ => return None,
    };
    let queries = match shape.head_dim {
        64 => 192,
        128 => 128,
        _ => return None,
    };
    let is_served =
        backend.limits.has_hopper && shape.block_size.is_multiple_of(HOPPER_RUN) && softcap == 0.0;
    // Two stages of queries, of 128 keys and of as many values, what goes with them, and what aligning it takes.
    let shared_bytes = word((2 * queries + 4 * 128) * shape.head_dim * 2 + 4096);
    let kernel = format!("attn_prefill_sm90_{ty}_{}", shape.head_dim);
    is_served.then_some(Tile { kernel, queries, shared_bytes })
}

fn hopper_tiles(
    backend: &CudaBackend,
    ws: &mut Workspace,
    tile: &Tile,
    shape: &KvShape,
    seq: &AttnSeq<'_, CudaBackend>,
    params: &params::Attn,
    rounded: Option<u32>,
) -> Result<()> {
    if backend.device.is_recording() {
        // Where the queries lie goes into the launch; the recording would be wrong for other rows.
        return Err(Error::new(
            ErrorKind::Internal,
            "attention of many tokens of a session cannot be recorded",
        ));
    }
    let (rows, is_bf16, n_heads) = (seq.desc.rows, shape.ty == KvType::Bf16, params.n_heads as usize);
    let mut maps = [params::TensorMap::default(); 3];
    for (map, segment) in maps.iter_mut().zip(seq.segments) {
        let (address, cols) = (segment.blocks.address(), shape.head_dim);
        let rows = segment.blocks.n_bytes() / (2 * cols);
        *map = backend.device.tensor_map(&Matrix16 { address, rows, cols, is_bf16 }, word(HOPPER_RUN))?;
    }
    let width = n_heads * shape.head_dim;
    let first = rows.row as usize * width;
    let address = match rounded {
        Some(_) => params.q + 2 * first as u64,
        None => {
            let x = params.q + (first * size_of::<f32>()) as u64;
            rounded_queries(backend, ws, x, rows.n_tokens as usize * width, is_bf16, params.scale)?
        }
    };
    let queries = Matrix16 { address, rows: rows.n_tokens as usize, cols: width, is_bf16 };
    // Heads that share keys, and as many more as leave room for the rest of what is read.
    let kv_bytes = (rows.pos + rows.n_tokens) as usize * 2 * shape.ty.row_bytes(shape.head_dim);
    let kv_heads_at_once = (backend.device.cache_bytes / 3 / kv_bytes).max(1);
    let heads_at_once = (n_heads / shape.n_kv_heads * kv_heads_at_once).min(n_heads);
    let params = params::AttnHopper {
        maps,
        queries: backend.device.tensor_map(&queries, word(HOPPER_RUN))?,
        attn: *params,
        heads_at_once: word(heads_at_once),
        out_type: rounded.unwrap_or(OUT_F32),
    };
    // One more than the tokens fill: they may begin within a tile.
    let n_tiles = (params.attn.n_tokens as usize).div_ceil(HOPPER_BLOCKS * tile.queries) + 1;
    let n_threads = 128 * (1 + word(tile.queries) / 64);
    let n_blocks = backend.device.blocks_at_once(&tile.kernel, n_threads, tile.shared_bytes)?;
    let n_clusters = (n_blocks.min(backend.limits.blocks) / HOPPER_BLOCKS).clamp(1, n_tiles * n_heads);
    let grid = [n_clusters * HOPPER_BLOCKS, 1, 1];
    backend.device.launch(&tile.kernel, grid, n_threads, tile.shared_bytes, &params)
}

/// See [`Backend::round_queries`](crate::backend::Backend::round_queries).
pub(super) fn round_queries(
    backend: &CudaBackend,
    ws: &mut Workspace,
    args: RoundQueriesArgs<'_, CudaBackend>,
) -> Result<()> {
    let RoundQueriesArgs { q, n_tokens, n_heads, shape, scale, softcap } = args;
    if !has_hopper_tiles(backend, ws, &shape, softcap, n_tokens) {
        return Ok(());
    }
    let n_elems = n_tokens * n_heads * shape.head_dim;
    rounded_queries(backend, ws, q.f32s(n_elems)?, n_elems, shape.ty == KvType::Bf16, scale)?;
    q.copy_from(0, &ws.activations, 0..2 * n_elems)
}

/// Leaves queries in the workspace as `HeadsParams` has them, but within the range of the type, and returns where.
fn rounded_queries(
    backend: &CudaBackend,
    ws: &mut Workspace,
    q: params::Address,
    n_elems: usize,
    is_bf16: bool,
    scale: f32,
) -> Result<params::Address> {
    let (out, room) = (ws.activations.address(), ws.activations.n_bytes());
    if 2 * n_elems > room {
        return Err(Error::invalid(format!("{n_elems} elements of queries in a workspace of {room} bytes")));
    }
    gemm::round(backend, out, q, n_elems, is_bf16, scale * std::f32::consts::LOG2_E)?;
    Ok(out)
}

fn tiles(backend: &CudaBackend, tile: &Tile, params: &params::Attn) -> Result<()> {
    // One more than the tokens fill: they may begin within a tile.
    let n_tiles = (params.n_tokens as usize).div_ceil(tile.queries) + 1;
    let grid = [n_tiles, params.n_heads as usize, 1];
    backend.device.launch(&tile.kernel, grid, 128, tile.shared_bytes, params)
}

/// A kernel of single rows.
struct RowKernel {
    kernel: String,
    /// Query heads of a block.
    heads_at_once: usize,
    n_threads: u32,
    shared_bytes: u32,
    /// Whether it can append the token of each session.
    appends: bool,
}

/// The kernel of single rows for this shape, and `group` query heads to a KV head.
fn row_kernel(has_hopper: bool, precision: Precision, group: usize, shape: &KvShape) -> Result<RowKernel> {
    let head_dim = shape.head_dim;
    let ty = match shape.ty {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Bf16 => "bf16",
        KvType::Q8 => "q8",
    };
    let is_decode =
        precision == Precision::Fast && shape.ty != KvType::F32 && DECODE_HEADS.contains(&head_dim);
    if is_decode && has_hopper && shape.block_size.is_multiple_of(HOPPER_CHUNK) {
        // Stages of as many keys and values, with the scales of 8-bit ones.
        let n_stages = HOPPER_STAGES_BYTES / (head_dim * shape.ty.elem_bytes());
        return Ok(RowKernel {
            kernel: format!("attn_decode_sm90_{ty}_{head_dim}"),
            heads_at_once: DECODE_HEADS_AT_ONCE,
            n_threads: HOPPER_ROW_THREADS,
            shared_bytes: word(n_stages * 2 * HOPPER_CHUNK * shape.ty.row_bytes(head_dim)),
            appends: true,
        });
    }
    if is_decode {
        let kernel = format!("attn_decode_{ty}_{head_dim}");
        let (heads_at_once, n_threads) = (DECODE_HEADS_AT_ONCE, ROW_THREADS);
        return Ok(RowKernel { kernel, heads_at_once, n_threads, shared_bytes: 0, appends: false });
    }
    let Some(dim) = ROW_HEADS.into_iter().find(|&dim| dim >= head_dim) else {
        return Err(Error::unsupported(format!(
            "attention heads of {head_dim}: at most {MAX_HEAD_DIM} work"
        )));
    };
    let heads_at_once = if group == 1 { 1 } else { 4 };
    let kernel = format!("attn_rows_{ty}_{dim}_{heads_at_once}");
    Ok(RowKernel { kernel, heads_at_once, n_threads: ROW_THREADS, shared_bytes: 0, appends: false })
}

fn rows(
    backend: &CudaBackend,
    precision: Precision,
    n_seqs: usize,
    shape: &KvShape,
    params: &params::Attn,
) -> Result<()> {
    let n_tokens = params.n_tokens as usize;
    let group = params.n_heads as usize / shape.n_kv_heads;
    let RowKernel { kernel, heads_at_once, n_threads, shared_bytes, .. } =
        row_kernel(backend.limits.has_hopper, precision, group, shape)?;
    let n_parts = shape.n_kv_heads * group.div_ceil(heads_at_once);
    // As many blocks as run at once: one more, and the device would be half idle while it runs.
    let n_blocks =
        backend.device.blocks_at_once(&kernel, n_threads, shared_bytes)?.min(backend.limits.blocks);
    let n_splits = (n_blocks / (n_parts * n_tokens * n_seqs)).clamp(1, MAX_SPLITS);
    // Several sessions have one token each.
    let tokens_at_once = PARTIALS / (n_splits * n_seqs);
    for first in (0..n_tokens).step_by(tokens_at_once) {
        let n = tokens_at_once.min(n_tokens - first);
        let params =
            params::Attn { n_splits: word(n_splits), first_token: word(first), n_tokens: word(n), ..*params };
        backend.device.launch(&kernel, [n_splits, n_parts, n * n_seqs], n_threads, shared_bytes, &params)?;
    }
    Ok(())
}
