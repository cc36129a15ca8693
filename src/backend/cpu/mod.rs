//! The CPU.

mod attn;
mod fold;
mod kv;
mod kv_elem;
mod matmul;
mod quant;
mod rowwise;
mod simd;
mod team;
mod workspace;

use std::ops::Range;

use crate::alloc::{HostBuf, Meter};
use crate::backend::args::*;
use crate::backend::{Backend, DeviceInfo};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kv::slots::SlotMap;
use simd::Simd;
pub use simd::SimdLevel;
use team::{Crew, Team};
pub use workspace::Workspace;

/// Runs the ops with vector instructions on a team of threads.
///
/// A cache block holds `block_size` keys as (head_dim, block_size), so that scores of neighbouring keys are computed
/// side by side, then as many values as (block_size, head_dim); then, in types that have them, the scales of the keys
/// and those of the values, (block_size) each.
pub struct CpuBackend {
    simd: Simd,
    team: Team,
    meter: Meter,
}

impl CpuBackend {
    /// A backend with this many threads, the caller of each step included, and the best instructions there are.
    ///
    /// # Errors
    /// `Invalid` for no threads, `OutOfMemory` if the system has no more threads.
    pub fn new(n_threads: usize) -> Result<Self> {
        Ok(Self { simd: Simd::best(), team: Team::new(n_threads)?, meter: Meter::default() })
    }

    /// The same with the instructions of a level.
    ///
    /// # Errors
    /// Also `Unsupported` where the processor lacks them.
    pub fn with_level(n_threads: usize, level: SimdLevel) -> Result<Self> {
        let simd = Simd::new(level)
            .ok_or_else(|| Error::unsupported(format!("this processor does not have {level:?}")))?;
        Ok(Self { simd, ..Self::new(n_threads)? })
    }

    fn crew<'a>(&'a self, cancel: &'a Cancel) -> Crew<'a> {
        self.team.crew(Some(cancel))
    }
}

impl Backend for CpuBackend {
    type Buf = HostBuf;
    type Weight = WeightData;
    type Descriptor = StepRows;
    type Slots = SlotMap;
    type Workspace = Workspace;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: format!("CPU, {} threads", self.team.n_threads()), bandwidth: None }
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
        if !quant::SUPPORTED.contains(&data.ty) {
            return Err(Error::unsupported(format!(
                "the cpu backend has no product with {} weights",
                data.ty
            )));
        }
        let expected = data.ty.row_bytes(data.cols).and_then(|row| row.checked_mul(data.rows));
        let held = (*data.file).as_ref().get(data.range.clone()).map(<[u8]>::len);
        match expected {
            Some(expected) if held == Some(expected) && expected > 0 => Ok(data),
            _ => Err(Error::invalid(format!(
                "a {} matrix of {} x {} in bytes {:?} of a file of {}",
                data.ty,
                data.rows,
                data.cols,
                data.range,
                (*data.file).as_ref().len()
            ))),
        }
    }

    fn kv_block_bytes(&self, shape: &KvShape) -> usize {
        shape.block_bytes()
    }

    fn has_keys_by_dimension(&self) -> bool {
        true
    }

    fn workspace_bytes(&self, shape: &WorkspaceShape, precision: Precision) -> usize {
        Workspace::n_bytes(shape, precision, self.team.n_threads())
    }

    fn workspace(&self, shape: &WorkspaceShape, precision: Precision) -> Result<Workspace> {
        Workspace::new(shape, precision, self.team.n_threads(), &self.meter)
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
        workspace: &mut Workspace,
        cancel: &Cancel,
        step: impl FnOnce(&mut Workspace) -> Result<T>,
    ) -> Result<T> {
        workspace.cancel = cancel.clone();
        self.team.run(|| step(workspace))
    }

    fn commit(&self, workspace: &mut Workspace) {
        workspace.cancel = Cancel::default();
    }

    fn embed(&self, ws: &mut Workspace, args: EmbedArgs<'_, Self>) -> Result<()> {
        rowwise::embed(self.simd, self.crew(&ws.cancel), args)
    }

    fn matmul(&self, ws: &mut Workspace, args: MatmulArgs<'_, '_, Self>) -> Result<()> {
        let cancel = ws.cancel.clone();
        matmul::matmul(self.simd, self.crew(&cancel), ws, args)
    }

    fn rope_table(&self, ws: &mut Workspace, args: RopeTableArgs<'_, Self>) -> Result<()> {
        rowwise::rope_table(self.crew(&ws.cancel), args)
    }

    fn rope_append(&self, ws: &mut Workspace, args: RopeAppendArgs<'_, '_, Self>) -> Result<()> {
        let cancel = ws.cancel.clone();
        kv::rope_append(self.simd, self.crew(&cancel), ws.for_attn().1, args)
    }

    fn attn(&self, ws: &mut Workspace, args: AttnArgs<'_, Self>) -> Result<()> {
        let cancel = ws.cancel.clone();
        attn::attn(self.simd, self.crew(&cancel), ws, args)
    }

    fn copy_blocks(&self, ws: &mut Workspace, args: CopyBlocksArgs<'_, '_, Self>) -> Result<()> {
        args.parts.iter_mut().try_for_each(|part| kv::copy_blocks(self.crew(&ws.cancel), part))
    }

    fn glu(&self, ws: &mut Workspace, args: GluArgs<'_, Self>) -> Result<()> {
        rowwise::glu(self.simd, self.crew(&ws.cancel), args)
    }

    fn top(&self, _: &mut Workspace, args: TopArgs<'_, Self>) -> Result<()> {
        args.check()?;
        rowwise::top(args);
        Ok(())
    }
}
