//! The seam between the transformer, written once, and the machines that run it.

pub mod args;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod held;
pub mod reference;

use std::ops::Range;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::kv::slots::SlotMap;
use args::*;

/// What a backend runs on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceInfo {
    /// What people call it.
    pub name: String,
    /// What its memory can deliver at best, in bytes per second, where the device says it.
    pub bandwidth: Option<f64>,
}

/// What this build can run models with.
pub const NAMES: &[&str] = if cfg!(feature = "cuda") { &["cpu", "cuda"] } else { &["cpu"] };

/// Tokens of a step by default.
pub const CHUNK_TOKENS: u32 = 2048;

/// A device that can run the transformer.
///
/// Ops write only their outputs and the workspace, allocate nothing, and return `Cancelled` soon after the cancel flag
/// of the enclosing [`run`](Backend::run) was set; their outputs are undefined then.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Memory of the device.
    type Buf: Send + Sync;
    /// A matrix where the device can use it.
    type Weight: Send + Sync;
    /// The rows of one session in a step, where ops can read them.
    type Descriptor: Send + Sync;
    /// Where the cache blocks of a layer lie, as ops read it.
    type Slots: Send + Sync;
    /// Working memory of one session's steps, and how precisely they compute.
    type Workspace: Send;
    /// Copies of blocks of a buffer, in memory of the host.
    type Held: Send + Sync;

    /// What it runs on.
    fn info(&self) -> DeviceInfo;

    /// Largest heads that it can compute attention of.
    fn max_head_dim(&self) -> usize {
        usize::MAX
    }

    /// Tokens of a step of a long context by default: more gain little, and need more memory.
    fn most_chunk_tokens(&self) -> u32 {
        CHUNK_TOKENS
    }

    /// Bytes that can still be allocated, where the device knows it.
    fn free_bytes(&self) -> Option<usize> {
        None
    }

    /// Allocates `n_bytes`, zeroed; poisoned with NaNs instead where debug assertions are on.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn alloc(&self, n_bytes: usize) -> Result<Self::Buf>;

    /// Bytes that buffers and workspaces of this backend occupy now, as [`alloc`](Backend::alloc) counted them.
    fn allocated_bytes(&self) -> usize;

    /// Writes `src` from element `at` on.
    fn upload<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut Self::Buf,
        at: usize,
        src: &[T],
    ) -> Result<()>;

    /// Reads from element `at` on, once the work of the running step is done.
    fn download<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(
        &self,
        dst: &mut [T],
        src: &Self::Buf,
        at: usize,
    ) -> Result<()>;

    /// Copies the `f32` of a range of `src` to `dst`, from element `at` on, within [`run`](Backend::run).
    fn copy(&self, dst: &mut Self::Buf, at: usize, src: &Self::Buf, range: Range<usize>) -> Result<()>;

    /// Copies blocks of `n_bytes` to memory of the host: those at multiples `places` of their length. That may go on while
    /// steps run: [`copy_blocks`](Backend::copy_blocks), where it fills rings, and [`put_back`](Backend::put_back) wait for it,
    /// and nothing else may overwrite them.
    ///
    /// # Errors
    /// `OutOfMemory`, and those of the device.
    fn hold(&self, src: &Self::Buf, places: &[u32], n_bytes: usize) -> Result<Self::Held>;

    /// Copies what [`hold`](Backend::hold) has copied to other places, or back.
    ///
    /// # Errors
    /// Those of the device.
    fn put_back(&self, dst: &mut Self::Buf, places: &[u32], n_bytes: usize, held: &Self::Held) -> Result<()>;

    /// Makes a matrix usable.
    ///
    /// # Errors
    /// `Unsupported` for an element type that the backend cannot multiply with.
    fn weight(&self, data: WeightData) -> Result<Self::Weight>;

    /// Bytes of one cache block: keys, values, then the scales of the keys and those of the values, (block_size) each, if
    /// the type has them, and nothing between.
    fn kv_block_bytes(&self, shape: &KvShape) -> usize;

    /// Whether a block's keys lie as (head_dim, block_size); else they lie as (block_size, head_dim), as values always do.
    fn has_keys_by_dimension(&self) -> bool {
        false
    }

    /// Bytes that [`workspace`](Backend::workspace) will allocate.
    fn workspace_bytes(&self, shape: &WorkspaceShape, precision: Precision) -> usize;

    /// Sets working memory aside for a session.
    fn workspace(&self, shape: &WorkspaceShape, precision: Precision) -> Result<Self::Workspace>;

    /// Bytes that [`slots`](Backend::slots) will allocate.
    fn slots_bytes(&self, map: &SlotMap) -> usize;

    /// Makes a layer's slots readable.
    fn slots(&self, map: &SlotMap) -> Result<Self::Slots>;

    /// Bytes that [`descriptor`](Backend::descriptor) will allocate.
    fn descriptor_bytes(&self) -> usize;

    /// A session's descriptor, of no rows yet.
    fn descriptor(&self) -> Result<Self::Descriptor>;

    /// Says which rows of the coming step are the session's.
    fn describe(&self, desc: &mut Self::Descriptor, rows: StepRows) -> Result<()>;

    /// Runs the ops that `step` calls, with the device's threads or streams at hand. Steps of one backend exclude each
    /// other.
    ///
    /// # Errors
    /// Those of `step`, and `Internal` if a thread of the device panicked.
    fn run<T>(
        &self,
        workspace: &mut Self::Workspace,
        cancel: &Cancel,
        step: impl FnOnce(&mut Self::Workspace) -> Result<T>,
    ) -> Result<T>;

    /// Ends the time in which the running step can be cancelled: what it does from here on is done to the end.
    fn commit(&self, workspace: &mut Self::Workspace);

    /// Calls `ops`, within [`run`](Backend::run). Calls with the same workspace and `key` call the same ops with the
    /// same arguments - all that changes lies in buffers and descriptors - so a backend may record one of the first
    /// and replay it.
    fn repeat(
        &self,
        workspace: &mut Self::Workspace,
        key: &[u64],
        ops: impl FnMut(&mut Self::Workspace) -> Result<()>,
    ) -> Result<()> {
        let (_, mut ops) = (key, ops);
        ops(workspace)
    }

    /// How steps that repeat themselves are run, if that is worth telling.
    fn repeat_note(&self, workspace: &Self::Workspace) -> Option<String> {
        let _ = workspace;
        None
    }

    /// See [`EmbedArgs`].
    fn embed(&self, ws: &mut Self::Workspace, args: EmbedArgs<'_, Self>) -> Result<()>;
    /// See [`MatmulArgs`].
    fn matmul(&self, ws: &mut Self::Workspace, args: MatmulArgs<'_, '_, Self>) -> Result<()>;
    /// See [`RopeTableArgs`].
    fn rope_table(&self, ws: &mut Self::Workspace, args: RopeTableArgs<'_, Self>) -> Result<()>;
    /// See [`RopeAppendArgs`].
    fn rope_append(&self, ws: &mut Self::Workspace, args: RopeAppendArgs<'_, '_, Self>) -> Result<()>;
    /// See [`AttnArgs`].
    fn attn(&self, ws: &mut Self::Workspace, args: AttnArgs<'_, Self>) -> Result<()>;
    /// See [`AppendAttnArgs`].
    fn append_attn(&self, ws: &mut Self::Workspace, args: AppendAttnArgs<'_, '_, Self>) -> Result<()> {
        args.one_by_one(self, ws)
    }
    /// See [`AttentionArgs`].
    fn attention(&self, ws: &mut Self::Workspace, args: AttentionArgs<'_, '_, Self>) -> Result<()> {
        args.one_by_one(self, ws)
    }
    /// Leaves queries in `q` in the form in which [`attention`](Self::attention) passes so many of one session on, which may
    /// take fewer bits: for benches of attention alone.
    fn round_queries(&self, _ws: &mut Self::Workspace, _args: RoundQueriesArgs<'_, Self>) -> Result<()> {
        Ok(())
    }
    /// [`attn`](Self::attn) of one session whose queries have been [rounded](Self::round_queries), and whose results are in
    /// the form in which `attention` wants them.
    fn attn_rounded(&self, ws: &mut Self::Workspace, args: AttnArgs<'_, Self>) -> Result<()> {
        self.attn(ws, args)
    }
    /// See [`CopyBlocksArgs`].
    fn copy_blocks(&self, ws: &mut Self::Workspace, args: CopyBlocksArgs<'_, '_, Self>) -> Result<()>;
    /// See [`GluArgs`].
    fn glu(&self, ws: &mut Self::Workspace, args: GluArgs<'_, Self>) -> Result<()>;
    /// See [`MlpArgs`].
    fn mlp(&self, ws: &mut Self::Workspace, args: MlpArgs<'_, Self>) -> Result<()> {
        let MlpArgs { x, n_rows, norm, eps, gate, up, down, d_ff, activation, scratch } = args;
        let [normed, gates, ups] = scratch;
        let input = Input::Norm(Norm { x: &*x, first_row: 0, weight: norm, eps, scratch: normed });
        let parts = &mut [gate.to(gates), up.to(ups)];
        self.matmul(ws, MatmulArgs { parts, input, n_rows, add: false })?;
        self.glu(ws, GluArgs { gate: gates, up: ups, activation, n_elems: n_rows * d_ff })?;
        let parts = &mut [down.to(x)];
        self.matmul(ws, MatmulArgs { parts, input: Input::Rows(gates), n_rows, add: true })
    }
    /// See [`TopArgs`].
    fn top(&self, ws: &mut Self::Workspace, args: TopArgs<'_, Self>) -> Result<()>;
}
