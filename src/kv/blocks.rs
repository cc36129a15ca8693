//! The buffers that cache blocks lie in.

use std::sync::Arc;

use super::slots::SlotMap;
use crate::backend::Backend;
use crate::backend::args::KvShape;
use crate::error::Result;

/// Cache blocks of a layer in a buffer.
pub(super) struct Blocks<B: Backend> {
    /// Where each of them lies.
    pub map: SlotMap,
    /// The same where ops can read it.
    pub slots: B::Slots,
    pub buf: B::Buf,
}

impl<B: Backend> Blocks<B> {
    /// Allocates room for all blocks that have a slot.
    pub fn new(backend: &B, map: SlotMap, shape: &KvShape) -> Result<Self> {
        let buf = backend.alloc(block_bytes(backend, &map, shape))?;
        Ok(Self { slots: backend.slots(&map)?, buf, map })
    }

    /// Bytes that [`new`](Self::new) will allocate.
    pub fn n_bytes(backend: &B, map: &SlotMap, shape: &KvShape) -> usize {
        block_bytes(backend, map, shape) + backend.slots_bytes(map)
    }
}

/// Bytes of the blocks that have a slot.
pub(super) fn block_bytes<B: Backend>(backend: &B, map: &SlotMap, shape: &KvShape) -> usize {
    map.n_slots() as usize * backend.kv_block_bytes(shape)
}

/// The first blocks of a layer, where they are shared with other caches: nobody writes to them.
pub(super) struct Prefix<B: Backend> {
    pub blocks: Arc<Blocks<B>>,
    /// How many of them are shared.
    pub n_blocks: u32,
}
