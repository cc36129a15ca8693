//! Going back to fewer tokens.

use super::cache::{KvCache, LayerCache, LayerLayout};
use super::restore::{Occasion, RestorePoint, RingBlocks};
use crate::alloc::{try_collect, try_with_capacity};
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};

impl<B: Backend> LayerCache<B> {
    /// Lowest block from which on the layer still has all, once the tokens before `written` have been in the cache.
    pub(super) fn oldest_block(&self, written: u32) -> u32 {
        let newest = written.saturating_sub(1) / self.mask.block_size();
        self.layout.slots.oldest_intact(newest).max(self.first_held)
    }

    /// Lowest position whose token finds what it sees.
    fn oldest_position(&self, written: u32) -> u32 {
        self.mask.first_query_within(self.oldest_block(written))
    }
}

/// The slots of a block in all rings of a layer. Heads that never give the block up are not among them.
fn ring_slots(layout: &LayerLayout, block: u32) -> Result<Vec<u32>> {
    let slots = &layout.slots;
    let heads = slots.ring_heads().filter(|&head| !slots.is_pinned(head, block));
    try_collect(heads.map(|head| slots.slot(head, block)))
}

impl<B: Backend> KvCache<B> {
    /// Lowest position besides 0 that can be gone back to without a restore point.
    pub fn oldest_in_rings(&self) -> u32 {
        let oldest = self.layers.iter().map(|layer| layer.oldest_position(self.written));
        oldest.max().unwrap_or(0).min(self.n_tokens)
    }

    /// The highest position, at most `n_tokens`, that [`rewind`](Self::rewind) can go back to.
    pub fn nearest_restorable(&self, n_tokens: u32) -> u32 {
        match n_tokens >= self.oldest_in_rings() {
            true => n_tokens.min(self.n_tokens),
            false => self.points.nearest(n_tokens).unwrap_or(0),
        }
    }

    /// Layers that have given up what the token at `n_tokens` sees.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn layers_behind(&self, n_tokens: u32) -> Result<Vec<usize>> {
        let layers = self.layers.iter().enumerate();
        let behind =
            layers.filter(|(_, layer)| n_tokens < layer.oldest_position(self.written).min(self.n_tokens));
        try_collect(behind.map(|(i, _)| i))
    }

    /// Bytes that the restore points hold.
    pub fn restore_bytes(&self) -> usize {
        self.points.n_bytes()
    }

    /// Positions of the restore points, rising.
    pub fn restore_points(&self) -> impl Iterator<Item = u32> {
        self.points.positions()
    }

    /// Gives the restore point of this position, if there is one, another occasion.
    pub fn renew(&mut self, n_tokens: u32, occasion: Occasion) {
        self.points.renew(n_tokens, occasion);
    }

    /// Makes a restore point of what the cache holds, if there is room for one; one that is there gets the occasion.
    ///
    /// # Errors
    /// Those of the device.
    pub fn keep(&mut self, backend: &B, occasion: Occasion) -> Result<()> {
        let (n_tokens, written) = (self.n_tokens, self.written);
        if n_tokens == 0 || self.points.renew(n_tokens, occasion) {
            return Ok(());
        }
        let oldest = self.layers.iter().map(|layer| layer.oldest_position(written)).max();
        let Some(oldest) = oldest.filter(|&oldest| oldest <= n_tokens) else { return Ok(()) };
        let Self { layers, points, .. } = self;
        let layers: Vec<_> = try_collect(layers.iter().filter(|layer| layer.layout.slots.has_ring()))?;
        if layers.is_empty() {
            return Ok(());
        }
        let mut rings = try_with_capacity(layers.len())?;
        rings.extend(layers.iter().map(|layer| RingBlocks {
            first_block: layer.oldest_block(written).max(layer.layout.slots.first_in_ring()),
            last_block: (n_tokens - 1) / layer.mask.block_size(),
            block_size: layer.mask.block_size(),
            n_bytes: layer.layout.slots.ring_heads().count() * backend.kv_block_bytes(&layer.layout.shape),
        }));
        let hold = |layer: usize, block| {
            let LayerCache { layout, own, .. } = layers[layer];
            backend.hold(&own.buf, &ring_slots(layout, block)?, backend.kv_block_bytes(&layout.shape))
        };
        let point = RestorePoint { n_tokens, written, oldest, occasion, rings: Vec::new() };
        match points.add(point, &rings, hold) {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => Ok(()),
            result => result,
        }
    }

    /// Forgets the tokens from `n_tokens` on; the caller has asked [`nearest_restorable`](Self::nearest_restorable).
    ///
    /// # Errors
    /// Those of the device; the cache is empty then.
    pub fn rewind(&mut self, backend: &B, n_tokens: u32) -> Result<()> {
        let result = match n_tokens > 0 && n_tokens < self.oldest_in_rings() {
            true => self.restore(backend, n_tokens),
            false => Ok(()),
        };
        self.n_tokens = if result.is_ok() { n_tokens } else { 0 };
        if self.n_tokens == 0 {
            self.written = 0;
            self.layers.iter_mut().for_each(|layer| layer.first_held = 0);
        }
        self.points.truncate(self.n_tokens);
        result
    }

    /// Puts back into the rings what the token at `n_tokens` sees.
    fn restore(&mut self, backend: &B, n_tokens: u32) -> Result<()> {
        let Self { layers, points, .. } = self;
        let unrestorable =
            || Error::new(ErrorKind::Internal, format!("no restore point for {n_tokens} tokens"));
        let point = points.point_for(n_tokens).ok_or_else(unrestorable)?;
        let with_ring = layers.iter_mut().filter(|layer| layer.layout.slots.has_ring());
        for (LayerCache { layout, own, .. }, ring) in with_ring.zip(&point.rings) {
            let block_bytes = backend.kv_block_bytes(&layout.shape);
            for (block, held) in (ring.first_block..).zip(&ring.blocks) {
                backend.put_back(&mut own.buf, &ring_slots(layout, block)?, block_bytes, held)?;
            }
        }
        self.written = point.written;
        Ok(())
    }
}
