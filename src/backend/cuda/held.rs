//! Copies of blocks in memory of the host.
//!
//! The device reaches that memory itself: a kernel copies all places at once, beside the steps, and only what overwrites blocks
//! waits for it. The system must find such memory and lock it page by page, which takes longer than the copies; so pages are
//! large, are found by several threads, and what is given back stays for the next copies until the device is closed.

use std::alloc::{Layout, alloc, dealloc};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cudarc::driver::sys::{self, CUstream};

use super::device::{Device, DeviceBuf};
use super::params::{self, Address, filled, word};
use crate::alloc::{try_reserve, try_with_capacity};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slab, unless one copy takes more: the first, and the largest.
const SLAB_BYTES: [usize; 2] = [2 << 20, 256 << 20];

/// Bytes of a large page, and of one where the system has no large ones.
const LARGE_PAGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// Threads that find the pages of a slab.
const FINDERS: usize = 8;

/// Reachable by kernels, of every context.
const FLAGS: u32 = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;

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
        held.copy(src, places, n_bytes, Some(device.copier()?))?;
        Ok(held)
    }

    /// See [`Backend::put_back`](crate::backend::Backend::put_back); no step runs.
    pub(super) fn put_back(&self, dst: &mut DeviceBuf, places: &[u32], n_bytes: usize) -> Result<()> {
        self.device.wait_for_copies()?;
        self.copy(dst, places, n_bytes, None)
    }

    /// Copies to the host on the stream for that, or from there as a step would.
    fn copy(&self, buf: &DeviceBuf, places: &[u32], n_bytes: usize, to_host: Option<CUstream>) -> Result<()> {
        let stream = to_host.unwrap_or_else(|| self.device.stream());
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
                to_host: u32::from(to_host.is_some()),
                places: filled(places),
            };
            let grid = [n_bytes.div_ceil(PART_BYTES), places.len(), 1];
            self.device.launch_on(stream, "move_blocks", grid, THREADS, 0, &params)?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.device.slabs.give_back(self.address);
    }
}

/// Memory of the host that the device reaches; the device is bound to the thread that makes it or drops it.
pub(super) struct Locked {
    memory: NonNull<u8>,
    layout: Layout,
    /// Where the device finds it.
    address: Address,
}

// SAFETY: it owns its memory, which only kernels touch.
unsafe impl Send for Locked {}

impl Locked {
    /// # Errors
    /// `OutOfMemory`.
    fn new(n_bytes: usize) -> Result<Self> {
        let refused = |why: String| {
            let what = format!("cannot lock {n_bytes} bytes of the host's memory: {why}");
            Error::new(ErrorKind::OutOfMemory, what)
        };
        let layout = Layout::from_size_align(n_bytes, LARGE_PAGE_BYTES);
        let layout = layout.map_err(|error| refused(error.to_string()))?;
        // SAFETY: the layout's size is not 0.
        let memory =
            NonNull::new(unsafe { alloc(layout) }).ok_or_else(|| refused("there are too few".into()))?;
        // SAFETY: just allocated. Where there are no large pages, small ones do.
        let _ = unsafe { libc::madvise(memory.as_ptr().cast(), n_bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: nobody has read it yet.
        find_pages(unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().cast(), n_bytes) });
        let mut address = 0;
        // SAFETY: the memory is there, page by page, until it is given back below or by `drop`.
        let locked = unsafe {
            sys::cuMemHostRegister_v2(memory.as_ptr().cast(), n_bytes, FLAGS).result().and_then(|()| {
                sys::cuMemHostGetDevicePointer_v2(&mut address, memory.as_ptr().cast(), 0).result()
            })
        };
        let made = Self { memory, layout, address };
        locked.map_err(|error| refused(error.to_string()))?;
        Ok(made)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: `new` has allocated and registered it, and nothing that is queued uses it any more. An error here has nobody
        // to be told to.
        unsafe {
            let _ = sys::cuMemHostUnregister(self.memory.as_ptr().cast());
            dealloc(self.memory.as_ptr(), self.layout);
        }
    }
}

/// Writes to every page, so that the system finds them all now, by several threads.
fn find_pages(memory: &mut [MaybeUninit<u8>]) {
    let touch = |part: &mut [MaybeUninit<u8>]| {
        part.iter_mut().step_by(PAGE_BYTES).for_each(|byte| _ = byte.write(0));
    };
    let parts = memory.chunks_mut(memory.len().div_ceil(FINDERS).next_multiple_of(LARGE_PAGE_BYTES));
    thread::scope(|scope| {
        for part in parts {
            // Without a thread for it the driver finds them.
            _ = thread::Builder::new().spawn_scoped(scope, move || touch(part));
        }
    });
}

/// Memory of the host that kernels reach, in parts of the same length.
struct Slab {
    memory: Locked,
    part_bytes: usize,
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
        // Each is as large as all before it: there are few, and at most half of what they have is free.
        let held: usize = slabs.iter().map(Slab::n_bytes).sum();
        let n_parts = (held.clamp(SLAB_BYTES[0], SLAB_BYTES[1]) / n_bytes).max(1);
        try_reserve(&mut slabs, 1)?;
        let mut free = try_with_capacity(n_parts)?;
        let memory = Locked::new(n_parts * n_bytes)?;
        let begin = memory.address;
        free.extend((1..n_parts as u64).map(|i| begin + i * n_bytes as u64));
        slabs.push(Slab { memory, part_bytes: n_bytes, free });
        Ok(begin)
    }

    /// Gives back a part; what is queued may still use it, since whoever takes it next is queued behind that.
    fn give_back(&self, part: Address) {
        let mut slabs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slab = slabs.iter_mut().find(|slab| slab.has(part));
        // There is room: it had been among them.
        slab.into_iter().for_each(|slab| slab.free.push(part));
    }

    /// Forgets all, which are nobody's by then.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Slab {
    fn n_bytes(&self) -> usize {
        self.memory.layout.size()
    }

    fn has(&self, part: Address) -> bool {
        let begin = self.memory.address;
        (begin..begin + self.n_bytes() as u64).contains(&part)
    }
}
