//! Copies of blocks in memory of the host.
//!
//! The device reaches that memory itself: a kernel copies all places at once, in the order of the stream, and nobody waits for
//! it. The system must lock such memory page by page, which takes longer than the copies; so it is taken in slabs, and what is
//! given back is used again.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;

use super::device::{Device, DeviceBuf};
use super::params::{self, Address, filled, word};
use crate::alloc::{try_collect, try_reserve};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slab, unless one copy takes more.
const SLAB_BYTES: usize = 32 << 20;

/// Reachable by kernels, of every context.
const FLAGS: u32 = 1 | 2;

/// Bytes that a block of threads copies.
const PART_BYTES: usize = 8192;

/// Threads of the kernel that copies.
const THREADS: u32 = 128;

/// Blocks of a cache, one behind the other.
pub struct Held {
    device: Arc<Device>,
    address: Address,
    n_bytes: usize,
}

impl Held {
    /// See [`Backend::hold`](crate::backend::Backend::hold); no step runs.
    pub(super) fn new(device: &Arc<Device>, src: &DeviceBuf, places: &[u32], n_bytes: usize) -> Result<Self> {
        let of_all = places.len() * n_bytes;
        let address = device.slabs.take(of_all)?;
        let held = Self { device: device.clone(), address, n_bytes: of_all };
        held.copy(src, places, n_bytes, true)?;
        Ok(held)
    }

    /// See [`Backend::put_back`](crate::backend::Backend::put_back); no step runs.
    pub(super) fn put_back(&self, dst: &mut DeviceBuf, places: &[u32], n_bytes: usize) -> Result<()> {
        self.copy(dst, places, n_bytes, false)
    }

    fn copy(&self, buf: &DeviceBuf, places: &[u32], n_bytes: usize, to_host: bool) -> Result<()> {
        let has = |place: &u32| buf.n_bytes() / n_bytes > *place as usize;
        if places.len() * n_bytes != self.n_bytes || !places.iter().all(has) {
            let there = buf.n_bytes();
            return Err(Error::invalid(format!(
                "places {places:?} of {n_bytes} bytes in a buffer of {there}"
            )));
        }
        for (i, places) in places.chunks(params::MAX_PLACES).enumerate() {
            let params = params::MoveBlocks {
                blocks: buf.address(),
                held: self.address + (i * params::MAX_PLACES * n_bytes) as u64,
                n_bytes: word(n_bytes),
                to_host: u32::from(to_host),
                places: filled(places),
            };
            let grid = [n_bytes.div_ceil(PART_BYTES), places.len(), 1];
            self.device.launch("move_blocks", grid, THREADS, 0, &params)?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.device.give_back(self.address);
    }
}

/// Memory of the host that kernels reach, in parts of the same length.
struct Slab {
    begin: Address,
    part_bytes: usize,
    n_parts: usize,
    /// Beginnings of those that nobody has.
    free: Vec<Address>,
}

/// All slabs of a device.
#[derive(Default)]
pub(super) struct Slabs(Mutex<Vec<Slab>>);

impl Slabs {
    /// A part of so many bytes; the device is bound to this thread.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn take(&self, n_bytes: usize) -> Result<Address> {
        if n_bytes == 0 {
            return Ok(0);
        }
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free =
            slabs.iter_mut().filter(|slab| slab.part_bytes == n_bytes).find_map(|slab| slab.free.pop());
        if let Some(part) = free {
            return Ok(part);
        }
        let n_parts = (SLAB_BYTES / n_bytes).max(1);
        try_reserve(&mut slabs, 1)?;
        let mut free = try_collect((0..n_parts as u64).map(|i| i * n_bytes as u64))?;
        // SAFETY: memory of this size is allocated.
        let begin = unsafe { result::malloc_host(n_parts * n_bytes, FLAGS) }.map_err(|error| {
            let what = format!("cannot lock {} bytes of the host's memory: {error}", n_parts * n_bytes);
            Error::new(ErrorKind::OutOfMemory, what)
        })?;
        let begin = begin.expose_provenance() as u64;
        free.iter_mut().for_each(|part| *part += begin);
        let part = free.pop();
        slabs.push(Slab { begin, part_bytes: n_bytes, n_parts, free });
        Ok(part.unwrap_or(begin))
    }

    /// Gives back a part. Returns the beginning of its slab if nobody has any part of it and others have free parts, too.
    pub fn give_back(&self, part: Address) -> Option<Address> {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let i = slabs.iter().position(|slab| slab.has(part))?;
        slabs[i].free.push(part);
        let Slab { begin, part_bytes, n_parts, ref free } = slabs[i];
        let has_others =
            |slab: &Slab| slab.begin != begin && slab.part_bytes == part_bytes && !slab.free.is_empty();
        (free.len() == n_parts && slabs.iter().any(has_others)).then(|| slabs.swap_remove(i).begin)
    }

    /// The beginnings of all, which are nobody's then.
    pub fn take_all(&self) -> impl Iterator<Item = Address> {
        let slabs = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        slabs.into_iter().map(|slab| slab.begin)
    }
}

impl Slab {
    fn has(&self, part: Address) -> bool {
        (self.begin..self.begin + (self.n_parts * self.part_bytes) as u64).contains(&part)
    }
}
