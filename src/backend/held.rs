//! Copies of blocks, where the device computes in the host's memory.

use crate::alloc::{HostBuf, Meter};
use crate::error::Result;

/// See [`Backend::hold`](super::Backend::hold).
pub(super) fn hold(src: &HostBuf, places: &[u32], n_bytes: usize) -> Result<HostBuf> {
    let mut held = HostBuf::new(places.len() * n_bytes, &Meter::default())?;
    for (block, &place) in held.bytes_mut().chunks_exact_mut(n_bytes).zip(places) {
        block.copy_from_slice(&src.bytes()[place as usize * n_bytes..][..n_bytes]);
    }
    Ok(held)
}

/// See [`Backend::put_back`](super::Backend::put_back).
pub(super) fn put_back(dst: &mut HostBuf, places: &[u32], n_bytes: usize, held: &HostBuf) {
    for (block, &place) in held.bytes().chunks_exact(n_bytes).zip(places) {
        dst.bytes_mut()[place as usize * n_bytes..][..n_bytes].copy_from_slice(block);
    }
}
