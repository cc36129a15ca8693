//! Every allocation whose size comes from a file, a model or a caller: refused with an error, never with an abort.
#![allow(
    unsafe_code,
    reason = "owns aligned memory from the allocator, which hands out zeroed pages without touching them"
)]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::collections::TryReserveError;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// A cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// Room for exactly `n` elements, or `OutOfMemory`.
pub(crate) fn try_with_capacity<T>(n: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(n).map_err(|_| out_of_memory(n.saturating_mul(size_of::<T>())))?;
    Ok(vec)
}

/// Room for `n` more elements, or `OutOfMemory`.
pub(crate) fn try_reserve<T>(vec: &mut Vec<T>, n: usize) -> Result<()> {
    let needed = vec.len().saturating_add(n).saturating_mul(size_of::<T>());
    vec.try_reserve(n).map_err(|_| out_of_memory(needed))
}

/// `n` copies of `value`, or `OutOfMemory`.
pub(crate) fn try_vec<T: Clone>(n: usize, value: T) -> Result<Vec<T>> {
    let mut vec = try_with_capacity(n)?;
    vec.resize(n, value);
    Ok(vec)
}

/// All of `elements`, or `OutOfMemory`.
pub(crate) fn try_collect<T>(elements: impl Iterator<Item = T>) -> Result<Vec<T>> {
    try_collect_ok(elements.map(Ok))
}

/// All of `elements`, or the first error among them, or `OutOfMemory`.
pub(crate) fn try_collect_ok<T>(elements: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut vec = try_with_capacity(elements.size_hint().0)?;
    for element in elements {
        let element = element?;
        try_reserve(&mut vec, 1)?;
        vec.push(element);
    }
    Ok(vec)
}

/// A copy of a text, or `OutOfMemory`.
pub(crate) fn try_string(text: &str) -> Result<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| out_of_memory(text.len()))?;
    copy.push_str(text);
    Ok(copy)
}

/// Whether `n_bytes` can be had, or `OutOfMemory`: for other libraries that are about to take them, and would end the
/// process if they were refused.
pub(crate) fn check_room(n_bytes: usize) -> Result<()> {
    // Else the compiler would leave the allocation out.
    std::hint::black_box(try_with_capacity::<u8>(n_bytes)?);
    Ok(())
}

/// `value` in memory of its own, or `OutOfMemory`.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>> {
    const { assert!(size_of::<T>() > 0) };
    let layout = Layout::new::<T>();
    // SAFETY: the layout's size is not 0.
    let memory = NonNull::new(unsafe { alloc(layout) }.cast::<T>());
    let memory = memory.ok_or_else(|| out_of_memory(layout.size()))?;
    // SAFETY: just allocated by the global allocator for a `T`, as a box is.
    unsafe {
        memory.write(value);
        Ok(Box::from_raw(memory.as_ptr()))
    }
}

impl From<TryReserveError> for Error {
    fn from(error: TryReserveError) -> Self {
        Self::new(ErrorKind::OutOfMemory, error.to_string())
    }
}

fn out_of_memory(n_bytes: usize) -> Error {
    Error::new(ErrorKind::OutOfMemory, format!("cannot allocate {n_bytes} bytes of memory"))
}

/// Counts the bytes of the buffers that were made with it and still live.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n_bytes: usize) {
        self.0.fetch_add(n_bytes, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n_bytes: usize) {
        self.0.fetch_sub(n_bytes, Ordering::Relaxed);
    }
}

/// Zeroed host memory, aligned to a cache line and counted by a [`Meter`].
///
/// With debug assertions on it is filled with ones instead, which read as NaNs in every float type: whoever reads what
/// nobody wrote is found out.
#[derive(Debug)]
pub struct HostBuf {
    allocation: NonNull<u8>,
    /// Of the allocation.
    layout: Layout,
    /// Within the allocation, at the beginning of a cache line.
    memory: NonNull<u8>,
    n_bytes: usize,
    meter: Meter,
}

// SAFETY: a HostBuf owns its memory and gives access by the rules of references, like a Vec.
unsafe impl Send for HostBuf {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for HostBuf {}

impl HostBuf {
    /// Allocates `n_bytes`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(n_bytes: usize, meter: &Meter) -> Result<Self> {
        // Asked for an alignment, the allocator would write the zeros itself and so take every page at once.
        let size = n_bytes.checked_add(ALIGNMENT).ok_or_else(|| out_of_memory(n_bytes))?;
        let layout = Layout::array::<u8>(size).map_err(|_| out_of_memory(n_bytes))?;
        // SAFETY: the layout's size is at least that of a cache line.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) });
        let allocation = allocation.ok_or_else(|| out_of_memory(n_bytes))?;
        let to_line = allocation.addr().get().wrapping_neg() % ALIGNMENT;
        // SAFETY: less than ALIGNMENT bytes further, with n_bytes behind it, is within the allocation.
        let memory = unsafe { allocation.add(to_line) };
        meter.add(n_bytes);
        let mut buf = Self { allocation, layout, memory, n_bytes, meter: meter.clone() };
        if cfg!(debug_assertions) {
            buf.bytes_mut().fill(0xff);
        }
        Ok(buf)
    }

    /// Length in bytes.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The memory as bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `memory` is valid for `n_bytes`, initialised by alloc_zeroed, and borrowed with self.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.n_bytes) }
    }

    /// The memory as bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed mutably with self.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.n_bytes) }
    }

    /// The memory as elements of a plain type; bytes behind the last whole element are left out.
    pub fn of<T: bytemuck::AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes()[..self.n_bytes / size_of::<T>() * size_of::<T>()])
    }

    /// The memory as elements of a plain type; bytes behind the last whole element are left out.
    pub fn of_mut<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&mut self) -> &mut [T] {
        let n_bytes = self.n_bytes / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.bytes_mut()[..n_bytes])
    }
}

impl Drop for HostBuf {
    fn drop(&mut self) {
        self.meter.sub(self.n_bytes);
        // SAFETY: allocated in `new` with this very layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_machine_has_is_an_error() {
        for n_bytes in [usize::MAX, isize::MAX as usize, 1 << 46] {
            let error = HostBuf::new(n_bytes, &Meter::default()).map(|buf| buf.n_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(error.to_string().contains(&n_bytes.to_string()));
        }
    }

    #[test]
    fn memory_begins_with_a_cache_line_and_is_all_there() {
        for n_bytes in [0, 1, 63, 64, 65, 1000, 1 << 20] {
            let mut buf = HostBuf::new(n_bytes, &Meter::default()).unwrap();
            assert_eq!(buf.bytes().as_ptr().addr() % ALIGNMENT, 0);
            buf.bytes_mut().fill(7);
            assert!(buf.bytes().len() == n_bytes && buf.bytes().iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn the_meter_counts_what_lives() {
        let meter = Meter::default();
        let a = HostBuf::new(100, &meter).unwrap();
        let b = HostBuf::new(0, &meter).unwrap();
        assert_eq!(meter.n_bytes(), 100);
        assert_eq!(a.of::<f32>().len(), 25);
        drop((a, b));
        assert_eq!(meter.n_bytes(), 0);
    }

    #[test]
    fn fresh_memory_is_poisoned_where_it_is_checked() {
        let buf = HostBuf::new(64, &Meter::default()).unwrap();
        assert!(buf.of::<f32>().iter().all(|x| if cfg!(debug_assertions) { x.is_nan() } else { *x == 0.0 }));
    }
}
