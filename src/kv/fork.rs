//! Forks: caches that hold the same tokens, and share what they can.
//!
//! In layers without a ring, blocks that are full never change again. At a fork they become a prefix that the two caches
//! share and to which nobody writes any more; both get buffers of their own for the blocks behind it, and copies of what
//! they hold already. A cache has one prefix at most: the fork of a fork shares that, and copies what lies behind it.
//! Layers with a ring are small; the fork gets a copy of what they hold.
//!
//! A cache that goes back into its prefix shares less of it from then on. Its own buffers reach further back when tokens
//! come that need them to.

use std::mem;
use std::sync::Arc;

use super::blocks::{Blocks, Prefix, block_bytes};
use super::cache::{KvCache, LayerCache, LayerLayout, scratch_bytes};
use super::restore::RestorePoints;
use super::slots::SlotMap;
use crate::alloc::{try_collect, try_collect_ok, try_with_capacity};
use crate::backend::Backend;
use crate::backend::args::KvShape;
use crate::cancel::Cancel;
use crate::error::Result;

/// What a fork takes of a layer, as numbers.
pub struct LayerFork {
    /// Of the fork, if it shared nothing.
    pub layout: LayerLayout,
    /// Where its own blocks lie.
    pub own: SlotMap,
    /// Blocks that it shares.
    n_shared: u32,
    /// Where the blocks of the cache that is forked will lie if it gives up those that it has.
    parent: Option<SlotMap>,
}

impl LayerFork {
    /// Bytes of its own blocks.
    pub fn kv_bytes<B: Backend>(&self, backend: &B) -> usize {
        block_bytes(backend, &self.own, &self.layout.shape)
    }

    /// Bytes that the cache which is forked takes in addition.
    pub fn parent_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.parent.as_ref().map_or(0, |map| Blocks::n_bytes(backend, map, &self.layout.shape))
    }
}

impl<B: Backend> LayerCache<B> {
    fn fork(&self, layout: LayerLayout, n_tokens: u32) -> Result<LayerFork> {
        let n_full = n_tokens / self.mask.block_size();
        let n_shared = match &self.prefix {
            _ if self.layout.slots.has_ring() || layout.slots.has_ring() => 0,
            Some(prefix) => prefix.n_blocks.min(n_full),
            None => n_full,
        };
        let gives_up = n_shared > 0 && self.prefix.is_none();
        let parent = gives_up.then(|| self.layout.slots.behind(n_shared)).transpose()?;
        Ok(LayerFork { own: layout.slots.behind(n_shared)?, layout, n_shared, parent })
    }

    /// Copies what is held of the blocks from `first_block` on, as far as `to` has a place for it, within
    /// [`Backend::run`].
    fn copy_to(
        &self,
        backend: &B,
        to: &mut Blocks<B>,
        first_block: u32,
        [n_tokens, written]: [u32; 2],
    ) -> Result<()> {
        let KvShape { n_kv_heads, .. } = self.layout.shape;
        let n_elems = backend.kv_block_bytes(&self.layout.shape) / size_of::<f32>();
        let n_blocks = n_tokens.div_ceil(self.mask.block_size());
        let (oldest_here, oldest_there) =
            (self.oldest_block(written), to.map.oldest_intact(n_blocks.saturating_sub(1)));
        for head in 0..u32::try_from(n_kv_heads).unwrap_or(u32::MAX) {
            let is_copied = |&block: &u32| {
                (block >= oldest_here || self.own.map.is_pinned(head, block))
                    && (block >= oldest_there || to.map.is_pinned(head, block))
            };
            let blocks = try_collect((first_block..n_blocks).filter(is_copied))?;
            for run in blocks.chunk_by(|&a, &b| self.adjoin(head, a, b) && to.map.adjoin(head, a, b)) {
                let home = self.home(run[0]);
                let from = home.map.slot(head, run[0]) as usize * n_elems;
                let at = to.map.slot(head, run[0]) as usize * n_elems;
                backend.copy(&mut to.buf, at, &home.buf, from..from + run.len() * n_elems)?;
            }
        }
        Ok(())
    }

    /// Whether tokens behind the first `n_tokens` come into its own blocks.
    fn has_room(&self, n_tokens: u32) -> bool {
        self.prefix.as_ref().is_none_or(|prefix| prefix.n_blocks * self.mask.block_size() <= n_tokens)
    }

    /// Makes its own blocks reach back to that of the token at `n_tokens`, which is one of the prefix.
    fn make_room(&mut self, backend: &B, ws: &mut B::Workspace, counts: [u32; 2]) -> Result<()> {
        let Self { layout, prefix, .. } = self;
        let is_free = |prefix: &mut Prefix<B>| {
            Arc::strong_count(&prefix.blocks) == 1 && prefix.blocks.map.n_slots() >= layout.slots.n_slots()
        };
        if let Some(blocks) = prefix.take_if(is_free).and_then(|prefix| Arc::into_inner(prefix.blocks)) {
            // Nobody else reads it any more, and it has all that is held.
            self.own = blocks;
            return Ok(());
        }
        let n_shared = counts[0] / self.mask.block_size();
        // What there is holds nothing that counts: it need not be there beside what takes its place.
        let nothing = self.layout.slots.behind(u32::MAX / self.mask.block_size())?;
        self.own = Blocks::new(backend, nothing, &self.layout.shape)?;
        let mut own = Blocks::new(backend, self.layout.slots.behind(n_shared)?, &self.layout.shape)?;
        backend.run(ws, &Cancel::default(), |_| self.copy_to(backend, &mut own, n_shared, counts))?;
        self.own = own;
        self.prefix =
            self.prefix.take().filter(|_| n_shared > 0).map(|prefix| Prefix { n_blocks: n_shared, ..prefix });
        Ok(())
    }
}

impl<B: Backend> KvCache<B> {
    /// What a fork takes, layer by layer; `layouts` are those that it would have by itself, for no fewer tokens than are
    /// held.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn plan_fork(&self, layouts: Vec<LayerLayout>) -> Result<Vec<LayerFork>> {
        let forks = self.layers.iter().zip(layouts).map(|(layer, layout)| layer.fork(layout, self.n_tokens));
        try_collect_ok(forks)
    }

    /// A cache that holds the same and goes on by itself, as planned for what is held now. It has the same restore points
    /// as far as `restore_bytes` go, but none if its context is such that rings are needed in other heads.
    ///
    /// # Errors
    /// `OutOfMemory`, and those of the device; nothing has changed then.
    pub fn fork(
        &mut self,
        backend: &B,
        ws: &mut B::Workspace,
        plan: Vec<LayerFork>,
        restore_bytes: usize,
    ) -> Result<Self> {
        let Self { n_tokens, written, .. } = *self;
        let has_same_rings = self
            .layers
            .iter()
            .zip(&plan)
            .all(|(layer, fork)| layer.layout.slots.ring_heads().eq(fork.layout.slots.ring_heads()));
        let (fork_written, points) = match has_same_rings {
            true => (written, self.points.try_clone(n_tokens, restore_bytes)?),
            false => (n_tokens, RestorePoints::new(restore_bytes)),
        };
        let scratch = backend.alloc(scratch_bytes(backend, plan.iter().map(|fork| &fork.layout)))?;
        let alloc = |(layer, fork): (&LayerCache<B>, LayerFork)| {
            let LayerFork { layout, own, n_shared, parent } = fork;
            let parent = parent.map(|map| Blocks::new(backend, map, &layout.shape)).transpose()?;
            let mut fork = LayerCache::new(backend, layout, own, layer.mask)?;
            fork.first_held = if has_same_rings { layer.first_held } else { layer.oldest_block(written) };
            Ok((fork, n_shared, parent))
        };
        let mut forks = try_collect_ok(self.layers.iter().zip(plan).map(alloc))?;
        let mut layers = try_with_capacity(forks.len())?;
        backend.run(ws, &Cancel::default(), |_| {
            for (layer, (fork, n_shared, parent)) in self.layers.iter().zip(&mut forks) {
                for own in parent.iter_mut().chain([&mut fork.own]) {
                    layer.copy_to(backend, own, *n_shared, [n_tokens, written])?;
                }
            }
            Ok(())
        })?;
        // Nothing is refused from here on.
        for (layer, (mut fork, n_shared, parent)) in self.layers.iter_mut().zip(forks) {
            if let Some(own) = parent {
                let blocks = Arc::new(mem::replace(&mut layer.own, own));
                layer.prefix = Some(Prefix { blocks, n_blocks: n_shared });
            }
            let shared = layer.prefix.as_ref().filter(|_| n_shared > 0);
            fork.prefix = shared.map(|prefix| Prefix { blocks: prefix.blocks.clone(), n_blocks: n_shared });
            layers.push(fork);
        }
        Ok(Self { layers, scratch, n_tokens, written: fork_written, points })
    }

    /// Whether the tokens to come have places: not where the cache has gone back into what it shares.
    pub fn has_room(&self) -> bool {
        self.layers.iter().all(|layer| layer.has_room(self.n_tokens))
    }

    /// Makes places for the tokens to come: gives other buffers to layers that lack them.
    ///
    /// # Errors
    /// `OutOfMemory`, and those of the device; the cache holds what it held then.
    pub fn make_room(&mut self, backend: &B, ws: &mut B::Workspace) -> Result<()> {
        let Self { n_tokens, written, ref mut layers, .. } = *self;
        let mut without = layers.iter_mut().filter(|layer| !layer.has_room(n_tokens));
        without.try_for_each(|layer| layer.make_room(backend, ws, [n_tokens, written]))
    }
}
