//! NVIDIA cards, through kernels of our own and, where it is installed, cuBLASLt for products of many rows that Hopper's
//! kernel is not for.
//!
//! All work goes through one stream. Ops only queue; [`Backend::run`] waits for what a step queued.
#![allow(unsafe_code, reason = "calls the driver, whose handles and addresses are the device's")]

mod attention;
mod attn;
mod blas;
mod device;
mod gemm;
mod gemm_sm90;
mod graph;
mod held;
mod matmul;
mod matvec;
mod params;
#[cfg(test)]
mod ptx_test;
mod weight;
mod workspace;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::args::*;
use crate::backend::{Backend, CHUNK_TOKENS, DeviceInfo};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::kv::slots::{SlotMap, blocks_touched};
use blas::Blas;
use device::Device;
pub use device::DeviceBuf;
use graph::{Graph, Recording};
pub use held::Held;
use params::{MAX_PARTS, filled, word};
pub use weight::Weight;
use weight::type_name;
pub use workspace::Workspace;

/// Threads of the kernel that looks up a row.
const EMBED_THREADS: u32 = 256;

/// Heads that a block of threads turns and appends.
const APPEND_WARPS: usize = 8;

/// Threads of the kernel that copies blocks of the cache.
const COPY_THREADS: u32 = 128;

/// Threads of the kernel that finds the largest elements.
const TOP_THREADS: u32 = 1024;

/// Shared memory that a block of threads can have on every card from compute capability 8.0 on.
const LEAST_SHARED_BYTES: u32 = 99 * 1024;

/// See [`CudaBackend::with_few_blocks`].
const FEW_BLOCKS: usize = 5;

/// Recorded steps that a session keeps.
const MAX_RECORDINGS: usize = 16;

/// Runs the ops on a CUDA device.
///
/// A cache block holds `block_size` keys as (block_size, head_dim), then as many values.
pub struct CudaBackend {
    device: Arc<Device>,
    blas: Option<Blas>,
    limits: Limits,
    /// Held by the running step.
    step: Mutex<()>,
}

/// What kernels may count on.
struct Limits {
    /// Shared memory of a block of threads.
    shared_bytes: u32,
    /// Whether products of a few rows may keep those rows in it.
    keeps_x: bool,
    /// Blocks of kernels whose blocks go from tile to tile.
    blocks: usize,
    /// Whether kernels that are for Hopper alone may be chosen.
    has_hopper: bool,
}

/// The rows of a session, here and on the device.
pub struct Descriptor {
    rows: StepRows,
    on_device: DeviceBuf,
}

impl Descriptor {
    fn address(&self) -> params::Address {
        self.on_device.address()
    }
}

/// Rows of all sessions.
fn rows_of<'a>(descs: impl Iterator<Item = &'a Descriptor>) -> usize {
    descs.map(|desc| (desc.rows.row + desc.rows.n_tokens) as usize).max().unwrap_or(0)
}

/// Tokens of the session with most of them.
fn most_tokens<'a>(descs: impl Iterator<Item = &'a Descriptor>) -> usize {
    descs.map(|desc| desc.rows.n_tokens as usize).max().unwrap_or(0)
}

/// [`SlotMap::words`] on the device.
pub struct Slots(DeviceBuf);

impl CudaBackend {
    /// A backend on the `ordinal`-th visible device.
    ///
    /// # Errors
    /// `Device`: no driver, one too old, no such device, or a device too old for the kernels.
    pub fn new(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        Ok(Self {
            blas: Blas::load(&device),
            limits: Limits {
                shared_bytes: device.max_shared_bytes,
                keeps_x: true,
                blocks: usize::MAX,
                has_hopper: device.is_hopper,
            },
            device,
            step: Mutex::default(),
        })
    }

    /// The same with so few blocks of kernels that go from tile to tile that small work too keeps them going, and without
    /// cuBLASLt, so that all products are of our own kernels.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_few_blocks(ordinal: usize) -> Result<Self> {
        let mut backend = Self::new(ordinal)?;
        backend.limits.blocks = FEW_BLOCKS;
        backend.blas = None;
        Ok(backend)
    }

    /// The same with the kernels that cards before Hopper have, whatever this one is, on all it has.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn portable(ordinal: usize) -> Result<Self> {
        let mut backend = Self::new(ordinal)?;
        backend.limits.has_hopper = false;
        Ok(backend)
    }

    /// The same with what is there on every card, whatever this one has: without cuBLASLt, products of many rows are
    /// our own, without Hopper's kernels and with the least shared memory attention takes smaller tiles, and a few blocks
    /// do all the work of a few rows, keeping nothing.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_the_least(ordinal: usize) -> Result<Self> {
        let limits = Limits {
            shared_bytes: LEAST_SHARED_BYTES,
            keeps_x: false,
            blocks: FEW_BLOCKS,
            has_hopper: false,
        };
        Ok(Self { blas: None, limits, ..Self::new(ordinal)? })
    }

    /// Waits for the running step, and lets none begin meanwhile.
    fn between_steps(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.bind()?;
        Ok(guard)
    }
}

impl Backend for CudaBackend {
    type Buf = DeviceBuf;
    type Weight = Weight;
    type Descriptor = Descriptor;
    type Slots = Slots;
    type Workspace = Workspace;
    type Held = Held;

    fn info(&self) -> DeviceInfo {
        let blas = if self.blas.is_some() { "" } else { ", without cuBLASLt" };
        DeviceInfo { name: format!("{}{blas}", self.device.name), bandwidth: self.device.bandwidth }
    }

    fn max_head_dim(&self) -> usize {
        attn::MAX_HEAD_DIM
    }

    /// Hopper's products fill the card only with many rows, and a quantised matrix is converted once a step.
    fn most_chunk_tokens(&self) -> u32 {
        if self.limits.has_hopper { 8192 } else { CHUNK_TOKENS }
    }

    fn free_bytes(&self) -> Option<usize> {
        self.device.bind().and_then(|()| self.device.memory()).ok().map(|(free, _)| free)
    }

    fn alloc(&self, n_bytes: usize) -> Result<DeviceBuf> {
        self.device.alloc(n_bytes)
    }

    fn allocated_bytes(&self) -> usize {
        self.device.meter.n_bytes()
    }

    fn upload<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut DeviceBuf,
        at: usize,
        src: &[T],
    ) -> Result<()> {
        dst.upload(at * size_of::<T>(), bytemuck::cast_slice(src))
    }

    fn download<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut [T],
        src: &DeviceBuf,
        at: usize,
    ) -> Result<()> {
        src.download(bytemuck::cast_slice_mut(dst), at * size_of::<T>())
    }

    fn copy(&self, dst: &mut DeviceBuf, at: usize, src: &DeviceBuf, range: Range<usize>) -> Result<()> {
        let size = size_of::<f32>();
        dst.copy_from(at * size, src, range.start * size..range.end * size)
    }

    fn hold(&self, src: &DeviceBuf, places: &[u32], n_bytes: usize) -> Result<Held> {
        let _guard = self.between_steps()?;
        Held::new(&self.device, src, places, n_bytes)
    }

    fn put_back(&self, dst: &mut DeviceBuf, places: &[u32], n_bytes: usize, held: &Held) -> Result<()> {
        let _guard = self.between_steps()?;
        held.put_back(dst, places, n_bytes)
    }

    fn weight(&self, data: WeightData) -> Result<Weight> {
        Weight::upload(&self.device, &data)
    }

    fn kv_block_bytes(&self, shape: &KvShape) -> usize {
        shape.block_bytes()
    }

    fn workspace_bytes(&self, shape: &WorkspaceShape, precision: Precision) -> usize {
        Workspace::n_bytes(shape, precision)
    }

    fn workspace(&self, shape: &WorkspaceShape, precision: Precision) -> Result<Workspace> {
        Workspace::new(&self.device, shape, precision)
    }

    fn slots_bytes(&self, map: &SlotMap) -> usize {
        size_of_val(&map.words()[..])
    }

    fn slots(&self, map: &SlotMap) -> Result<Slots> {
        let words = map.words();
        let mut buf = self.alloc(size_of_val(&words[..]))?;
        self.upload(&mut buf, 0, &words)?;
        Ok(Slots(buf))
    }

    fn descriptor_bytes(&self) -> usize {
        size_of::<StepRows>()
    }

    fn descriptor(&self) -> Result<Descriptor> {
        Ok(Descriptor { rows: StepRows::default(), on_device: self.alloc(size_of::<StepRows>())? })
    }

    fn describe(&self, desc: &mut Descriptor, rows: StepRows) -> Result<()> {
        desc.rows = rows;
        self.upload(&mut desc.on_device, 0, &[rows.row, rows.n_tokens, rows.pos])
    }

    fn run<T>(
        &self,
        workspace: &mut Workspace,
        cancel: &Cancel,
        step: impl FnOnce(&mut Workspace) -> Result<T>,
    ) -> Result<T> {
        let _guard = self.between_steps()?;
        workspace.cancel = cancel.clone();
        let result = step(workspace);
        // Also after an error: nothing may be under way in buffers that the caller is free to drop.
        self.device.synchronize().and(result)
    }

    fn commit(&self, workspace: &mut Workspace) {
        workspace.cancel = Cancel::default();
    }

    fn repeat(
        &self,
        workspace: &mut Workspace,
        key: &[u64],
        mut ops: impl FnMut(&mut Workspace) -> Result<()>,
    ) -> Result<()> {
        workspace.check()?;
        // What is replayed cannot wait where it fills rings.
        self.device.wait_for_copies()?;
        let recording = match workspace.recordings.get(key) {
            Some(Recording::Graph(graph)) => return graph.launch(),
            Some(Recording::Failed(_)) => return ops(workspace),
            None => {
                ops(workspace)?;
                Recording::Seen
            }
            Some(Recording::Seen) => match Graph::record(&self.device, || ops(workspace)) {
                Ok(graph) => {
                    graph.launch()?;
                    Recording::Graph(graph)
                }
                Err(error) => {
                    ops(workspace)?;
                    Recording::Failed(error.to_string())
                }
            },
        };
        // Batches come and go; what they left is not worth finding out one by one.
        if workspace.recordings.len() >= MAX_RECORDINGS {
            workspace.recordings.clear();
        }
        workspace.recordings.insert(key.into(), recording);
        Ok(())
    }

    fn repeat_note(&self, workspace: &Workspace) -> Option<String> {
        let (mut n_graphs, mut n_nodes) = (0, 0);
        for recording in workspace.recordings.values() {
            match recording {
                Recording::Seen => {}
                Recording::Graph(graph) => (n_graphs, n_nodes) = (n_graphs + 1, n_nodes + graph.n_nodes()),
                Recording::Failed(why) => return Some(format!("kernels are launched one by one: {why}")),
            }
        }
        (n_graphs > 0).then(|| format!("decoding replays CUDA graphs: {n_graphs}, of {n_nodes} nodes"))
    }

    fn embed(&self, ws: &mut Workspace, args: EmbedArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        let EmbedArgs { out, table, tokens, n_tokens, scale } = args;
        let params = params::Embed {
            out: out.f32s(n_tokens * table.cols)?,
            table: table.params(),
            tokens: tokens.f32s(n_tokens)?,
            scale,
            unused: 0,
        };
        let name = format!("embed_{}", type_name(table)?);
        self.device.launch(&name, [n_tokens, 1, 1], EMBED_THREADS, 0, &params)
    }

    fn matmul(&self, ws: &mut Workspace, args: MatmulArgs<'_, '_, Self>) -> Result<()> {
        ws.check()?;
        matmul::matmul(self, ws, args)
    }

    fn rope_table(&self, ws: &mut Workspace, args: RopeTableArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        let RopeTableArgs { out, inv_freq, n_pairs, attention_factor, seqs } = args;
        let out = out.f32s(rows_of(seqs.iter().copied()) * n_pairs * 2)?;
        for seqs in seqs.chunks(MAX_PARTS) {
            let rows: Vec<_> = seqs.iter().map(|desc| desc.address()).collect();
            let params = params::RopeTable {
                out,
                inv_freq: inv_freq.f32s(n_pairs)?,
                n_pairs: word(n_pairs),
                attention_factor,
                rows: filled(&rows),
            };
            let grid = [most_tokens(seqs.iter().copied()), seqs.len(), 1];
            self.device.launch("rope_table", grid, 64, 0, &params)?;
        }
        Ok(())
    }

    fn rope_append(&self, ws: &mut Workspace, args: RopeAppendArgs<'_, '_, Self>) -> Result<()> {
        ws.check()?;
        let RopeAppendArgs { q, k, v, rope, n_heads, shape, seqs } = args;
        let n_rows = rows_of(seqs.iter().map(|seq| seq.desc));
        let kv_width = shape.n_kv_heads * shape.head_dim;
        for seqs in seqs.chunks(MAX_PARTS) {
            let params = params::RopeAppend {
                q: q.f32s(n_rows * n_heads * shape.head_dim)?,
                k: k.f32s(n_rows * kv_width)?,
                v: v.f32s(n_rows * kv_width)?,
                rope: attn::rope(&rope, n_rows, shape.head_dim)?,
                shape: (&shape).into(),
                n_heads: word(n_heads),
                unused: 0,
                seqs: filled(&seqs.iter().map(attn::append_seq).collect::<Vec<_>>()),
            };
            let n_tokens = most_tokens(seqs.iter().map(|seq| seq.desc));
            let grid = [n_tokens, (n_heads + shape.n_kv_heads).div_ceil(APPEND_WARPS), seqs.len()];
            let shared_bytes = word(APPEND_WARPS * shape.head_dim * size_of::<f32>());
            self.device.launch("rope_append", grid, 32 * word(APPEND_WARPS), shared_bytes, &params)?;
        }
        Ok(())
    }

    fn attn(&self, ws: &mut Workspace, args: AttnArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        attn::attn(self, ws, &args)?;
        ws.keep_pace()
    }

    fn round_queries(&self, ws: &mut Workspace, args: RoundQueriesArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        attn::round_queries(self, ws, args)
    }

    fn attn_rounded(&self, ws: &mut Workspace, args: AttnArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        match attn::takes_rounded(self, ws, &args) {
            true => attn::attn_rounded(self, ws, &args, args.shape.ty == KvType::Bf16)?,
            false => attn::attn(self, ws, &args)?,
        }
        ws.keep_pace()
    }

    fn append_attn(&self, ws: &mut Workspace, args: AppendAttnArgs<'_, '_, Self>) -> Result<()> {
        ws.check()?;
        attn::append_attn(self, ws, args)
    }

    fn attention(&self, ws: &mut Workspace, args: AttentionArgs<'_, '_, Self>) -> Result<()> {
        ws.check()?;
        attention::attention(self, ws, args)
    }

    fn copy_blocks(&self, ws: &mut Workspace, args: CopyBlocksArgs<'_, '_, Self>) -> Result<()> {
        ws.check()?;
        let fills = |part: &CopyPart<'_, Self>| {
            part.blocks == StepBlocks::Ring && matches!(part.to_places, BlockPlaces::Slots(_))
        };
        if !self.device.is_recording() && args.parts.iter().any(fills) {
            self.device.wait_for_copies()?;
        }
        for parts in args.parts.chunks(MAX_PARTS) {
            let of_part = |part: &CopyPart<'_, Self>| params::CopyPart {
                to: part.to.address(),
                from: part.from.address(),
                to_places: attn::places(&part.to_places),
                from_places: attn::places(&part.from_places),
                rows: part.desc.address(),
                slots: part.slots.0.address(),
                shape: (&part.shape).into(),
                pinned: u32::from(part.blocks == StepBlocks::Pinned),
                unused: 0,
            };
            let params = params::CopyBlocks { parts: filled(&parts.iter().map(of_part).collect::<Vec<_>>()) };
            let n_kv_heads = parts.iter().map(|part| part.shape.n_kv_heads).max().unwrap_or(0);
            // Wherever the tokens begin: a recorded step is replayed at other positions.
            let n_blocks = |part: &CopyPart<'_, Self>| {
                blocks_touched(part.desc.rows.n_tokens, word(part.shape.block_size)) as usize
            };
            let grid = [parts.iter().map(n_blocks).max().unwrap_or(0), n_kv_heads, parts.len()];
            self.device.launch("copy_blocks", grid, COPY_THREADS, 0, &params)?;
        }
        Ok(())
    }

    fn glu(&self, ws: &mut Workspace, args: GluArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        matmul::glu(self, args)
    }

    fn mlp(&self, ws: &mut Workspace, args: MlpArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        matmul::mlp(self, ws, args)
    }

    fn top(&self, ws: &mut Workspace, args: TopArgs<'_, Self>) -> Result<()> {
        ws.check()?;
        args.check()?;
        let TopArgs { values, columns, x, width, n } = args;
        let params = params::Top {
            values: values.f32s(n)?,
            columns: columns.f32s(n)?,
            x: x.f32s(width)?,
            width: word(width),
            n: word(n),
        };
        self.device.launch("top", [usize::from(n > 0), 1, 1], TOP_THREADS, 0, &params)
    }
}
