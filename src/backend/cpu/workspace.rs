//! Working memory of one session's steps.

use super::{attn, matmul, quant};
use crate::alloc::{HostBuf, Meter};
use crate::backend::args::{Precision, WorkspaceShape};
use crate::cancel::Cancel;
use crate::error::Result;

/// Everything that ops need besides their arguments, allocated once.
pub struct Workspace {
    pub(super) shape: WorkspaceShape,
    pub(super) precision: Precision,
    /// The flag of the running step.
    pub(super) cancel: Cancel,
    /// (max_rows, max_cols / 32): 8-bit activations
    activations: HostBuf,
    /// (n_threads): what each thread works with
    scratch: HostBuf,
    /// Attention over spans of keys, before they are merged
    partials: HostBuf,
}

/// Bytes of the activations, the scratch and the partials.
fn sizes(shape: &WorkspaceShape, precision: Precision, n_threads: usize) -> [usize; 3] {
    let blocks = match precision {
        Precision::Exact => 0,
        Precision::Fast => shape.max_rows.saturating_mul(shape.max_cols / quant::BLOCK),
    };
    let of_thread = matmul::scratch_len(shape.max_cols).max(attn::scratch_len(shape)).next_multiple_of(16);
    [
        blocks.saturating_mul(size_of::<quant::ActivationBlock>()),
        of_thread.saturating_mul(n_threads * size_of::<f32>()),
        attn::partials_len(shape).saturating_mul(size_of::<f32>()),
    ]
}

impl Workspace {
    /// Bytes that [`new`](Self::new) allocates.
    pub(super) fn n_bytes(shape: &WorkspaceShape, precision: Precision, n_threads: usize) -> usize {
        sizes(shape, precision, n_threads).into_iter().fold(0, usize::saturating_add)
    }

    /// Allocates it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(
        shape: &WorkspaceShape,
        precision: Precision,
        n_threads: usize,
        meter: &Meter,
    ) -> Result<Self> {
        let [activations, scratch, partials] = sizes(shape, precision, n_threads);
        Ok(Self {
            shape: *shape,
            precision,
            cancel: Cancel::default(),
            activations: HostBuf::new(activations, meter)?,
            scratch: HostBuf::new(scratch, meter)?,
            partials: HostBuf::new(partials, meter)?,
        })
    }

    /// The 8-bit activations and the scratch of all threads.
    pub(super) fn for_matmul(&mut self) -> (&mut [quant::ActivationBlock], &mut [f32]) {
        (self.activations.of_mut(), self.scratch.of_mut())
    }

    /// The partials and the scratch of all threads.
    pub(super) fn for_attn(&mut self) -> (&mut [f32], &mut [f32]) {
        (self.partials.of_mut(), self.scratch.of_mut())
    }
}
