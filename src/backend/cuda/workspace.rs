//! Working memory of one session's steps.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags};

use super::device::{Device, DeviceBuf, failed};
use super::graph::Recording;
use super::{attn, gemm};
use crate::alloc::try_vec;
use crate::backend::args::{Precision, WorkspaceShape};
use crate::cancel::Cancel;
use crate::error::Result;

/// Everything that ops need besides their arguments, allocated once.
pub struct Workspace {
    pub(super) shape: WorkspaceShape,
    pub(super) precision: Precision,
    /// The flag of the running step.
    pub(super) cancel: Cancel,
    /// (max_rows, max_cols or n_heads * head_dim): activations in 16 bits
    pub(super) activations: DeviceBuf,
    /// Rows of a matrix in 16 bits, as many as fit
    pub(super) dequantized: DeviceBuf,
    /// What cuBLASLt works with
    pub(super) blas: DeviceBuf,
    /// Attention over parts of the keys, before they are merged
    pub(super) partials: DeviceBuf,
    /// How many of these parts are there; see [`attn::arrivals_len`]
    pub(super) arrivals: DeviceBuf,
    /// What repeated steps launch.
    pub(super) recordings: HashMap<Box<[u64]>, Recording>,
    pace: Pace,
}

/// Bytes of the activations, the matrix, cuBLASLt's memory, the partials and the arrivals.
fn sizes(shape: &WorkspaceShape, precision: Precision) -> [usize; 5] {
    let partials = attn::partials_len(shape).saturating_mul(size_of::<f32>());
    let arrivals = attn::arrivals_len(shape).saturating_mul(size_of::<u32>());
    let cols = shape.max_cols.max(shape.n_heads.saturating_mul(shape.head_dim));
    match precision {
        Precision::Exact => [0, 0, 0, partials, arrivals],
        Precision::Fast => [
            shape.max_rows.saturating_mul(cols).saturating_mul(2),
            shape.max_weight_elems.min(gemm::MAX_DEQUANTIZED).saturating_mul(2),
            gemm::BLAS_BYTES,
            partials,
            arrivals,
        ],
    }
}

impl Workspace {
    /// Bytes that [`new`](Self::new) allocates.
    pub(super) fn n_bytes(shape: &WorkspaceShape, precision: Precision) -> usize {
        sizes(shape, precision).into_iter().fold(0, usize::saturating_add)
    }

    /// Allocates it.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(device: &Arc<Device>, shape: &WorkspaceShape, precision: Precision) -> Result<Self> {
        let [activations, dequantized, blas, partials, arrivals] = sizes(shape, precision);
        let zeros = try_vec(arrivals, 0u8)?;
        let mut arrivals = device.alloc(arrivals)?;
        arrivals.upload(0, &zeros)?;
        Ok(Self {
            shape: *shape,
            precision,
            cancel: Cancel::default(),
            activations: device.alloc(activations)?,
            dequantized: device.alloc(dequantized)?,
            blas: device.alloc(blas)?,
            partials: device.alloc(partials)?,
            arrivals,
            recordings: HashMap::new(),
            pace: Pace::new(device)?,
        })
    }

    /// `Ok` unless the step was cancelled; one that is recorded is not stopped half-way.
    pub(super) fn check(&self) -> Result<()> {
        if self.pace.device.is_recording() { Ok(()) } else { self.cancel.check() }
    }

    /// Keeps the host from running more than a layer ahead of the device, so that a cancelled step soon ends.
    pub(super) fn keep_pace(&mut self) -> Result<()> {
        if self.pace.device.is_recording() { Ok(()) } else { self.pace.step() }
    }
}

/// Two events of which one lies ahead.
struct Pace {
    device: Arc<Device>,
    events: [sys::CUevent; 2],
    next: usize,
}

// SAFETY: events may be used from any thread that has the device bound.
unsafe impl Send for Pace {}

impl Pace {
    fn new(device: &Arc<Device>) -> Result<Self> {
        device.bind()?;
        let mut pace = Self { device: device.clone(), events: [std::ptr::null_mut(); 2], next: 0 };
        for event in &mut pace.events {
            *event = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(failed("cannot make an event"))?;
        }
        Ok(pace)
    }

    fn step(&mut self) -> Result<()> {
        let (now, before) = (self.events[self.next], self.events[1 - self.next]);
        self.next = 1 - self.next;
        // SAFETY: the events live as long as self; waiting for one that was never recorded returns at once.
        unsafe {
            result::event::record(now, self.device.stream()).and_then(|()| result::event::synchronize(before))
        }
        .map_err(failed("a kernel failed"))
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            for event in self.events.into_iter().filter(|event| !event.is_null()) {
                // SAFETY: nobody waits for it any more. An error here has nobody to be told to.
                let _ = unsafe { result::event::destroy(event) };
            }
        }
    }
}
