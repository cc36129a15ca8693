//! The processor, with its threads and vector instructions.

mod attn;
mod matmul;
mod quant;
mod rowwise;
pub mod simd;
mod team;

use simd::Level;
use team::{Crew, Team};

use super::Backend;
use super::args::*;
use crate::alloc::{HostBuf, Meter};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// Runs the ops on the processor. Quantised weights are used as they lie in the file.
pub struct CpuBackend {
    team: Team,
    level: Level,
    meter: Meter,
}

impl CpuBackend {
    /// A backend of this many threads, the caller's included, with the best instructions of the machine.
    ///
    /// # Errors
    /// `OutOfMemory` if the system gives no threads.
    pub fn new(n_threads: usize) -> Result<Self> {
        Self::with_level(n_threads, Level::available()[0])
    }

    /// The same with other instructions, which must be [`available`](Level::available).
    ///
    /// # Errors
    /// As for [`new`](Self::new), and `Unsupported` for instructions that the machine does not have.
    pub fn with_level(n_threads: usize, level: Level) -> Result<Self> {
        if !Level::available().contains(&level) {
            return Err(Error::unsupported(format!("this machine has no {level}")));
        }
        Ok(Self { team: Team::new(n_threads)?, level, meter: Meter::default() })
    }
}

/// Working memory of a session's steps.
pub struct Workspace {
    precision: Precision,
    /// (max_rows, pairs of blocks, 64): activations rounded to bytes
    quants: HostBuf,
    /// (max_rows, pairs of blocks, 4) f32: their scales
    scales: HostBuf,
    /// (kv heads, spans, heads of the group, head_dim + 2) f32: a lone query's partial attention
    partials: HostBuf,
    /// (spans) u32: those that a lone query sees
    spans: HostBuf,
    /// The threads of the running step.
    crew: Crew,
}

/// Bytes of quants, scales, partials and spans.
fn workspace_parts(shape: &WorkspaceShape, precision: Precision) -> [usize; 4] {
    let (quants, scales) = match precision {
        Precision::Fast => matmul::quant_bytes(shape.max_rows, shape.max_cols),
        Precision::Exact => (0, 0),
    };
    let partials = attn::partial_elems(shape) * size_of::<f32>();
    [quants, scales, partials, attn::n_spans(shape.n_ctx) * size_of::<u32>()]
}

impl Backend for CpuBackend {
    type Buf = HostBuf;
    type Weight = WeightData;
    type Descriptor = StepRows;
    type Workspace = Workspace;

    fn alloc(&self, n_bytes: usize) -> Result<HostBuf> {
        HostBuf::new(n_bytes, &self.meter)
    }

    fn allocated_bytes(&self) -> usize {
        self.meter.n_bytes()
    }

    fn upload(&self, dst: &mut HostBuf, at: usize, src: &[f32]) -> Result<()> {
        dst.of_mut()[at..at + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&self, dst: &mut [f32], src: &HostBuf, at: usize) -> Result<()> {
        dst.copy_from_slice(&src.of()[at..at + dst.len()]);
        Ok(())
    }

    fn weight(&self, data: WeightData) -> Result<WeightData> {
        let expected = data.ty.row_bytes(data.cols).and_then(|row| row.checked_mul(data.rows));
        if data.rows == 0 || expected != Some(data.bytes().len()) {
            let (rows, cols, has) = (data.rows, data.cols, data.bytes().len());
            return Err(Error::invalid(format!("{rows}x{cols} {} in {has} bytes", data.ty)));
        }
        // Wide types are read as numbers, so they must lie where numbers may.
        let alignment = if data.ty.block_elems() == 1 { data.ty.block_bytes() } else { 1 };
        if !data.bytes().as_ptr().addr().is_multiple_of(alignment) {
            return Err(Error::unsupported(format!("{} data at an odd address", data.ty)));
        }
        Ok(data)
    }

    fn kv_block_bytes(&self, shape: &KvShape) -> usize {
        2 * shape.block_size * shape.head_dim * shape.ty.bytes()
    }

    fn workspace_bytes(&self, shape: &WorkspaceShape, precision: Precision) -> usize {
        workspace_parts(shape, precision).iter().sum()
    }

    fn workspace(&self, shape: &WorkspaceShape, precision: Precision) -> Result<Workspace> {
        let [quants, scales, partials, spans] = workspace_parts(shape, precision);
        Ok(Workspace {
            precision,
            quants: self.alloc(quants)?,
            scales: self.alloc(scales)?,
            partials: self.alloc(partials)?,
            spans: self.alloc(spans)?,
            crew: Crew::default(),
        })
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
        workspace: &mut Workspace,
        cancel: &Cancel,
        step: impl FnOnce(&mut Workspace) -> Result<T>,
    ) -> Result<T> {
        self.team.enter(cancel, |crew| {
            workspace.crew = crew;
            let result = step(workspace);
            workspace.crew = Crew::default();
            result
        })
    }

    fn embed(&self, ws: &mut Workspace, args: EmbedArgs<'_, Self>) -> Result<()> {
        rowwise::embed(self.level, ws, args)
    }

    fn norm(&self, ws: &mut Workspace, args: NormArgs<'_, Self>) -> Result<()> {
        rowwise::norm(self.level, ws, args)
    }

    fn matmul(&self, ws: &mut Workspace, args: MatmulArgs<'_, '_, Self>) -> Result<()> {
        matmul::matmul(self.level, ws, args)
    }

    fn rope_table(&self, ws: &mut Workspace, args: RopeTableArgs<'_, Self>) -> Result<()> {
        rowwise::rope_table(ws, args)
    }

    fn rope_append(&self, ws: &mut Workspace, args: RopeAppendArgs<'_, '_, Self>) -> Result<()> {
        rowwise::rope_append(ws, args)
    }

    fn attn(&self, ws: &mut Workspace, args: AttnArgs<'_, Self>) -> Result<()> {
        attn::attn(self.level, ws, args)
    }

    fn copy_blocks(&self, _: &mut Workspace, args: CopyBlocksArgs<'_, Self>) -> Result<()> {
        rowwise::copy_blocks(args)
    }

    fn glu(&self, ws: &mut Workspace, args: GluArgs<'_, Self>) -> Result<()> {
        rowwise::glu(self.level, ws, args)
    }
}
