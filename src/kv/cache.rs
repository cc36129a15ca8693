//! The keys and values of one session.
//!
//! A step appends its tokens to every layer and then takes effect as a whole. Layers that never overwrite a block
//! write in place, behind the last token that counts. In layers with a ring the step's tokens go to a scratch that
//! the layers share; once the layer has attended to them, pinned blocks move to their final slots and the blocks that
//! will be in the ring are staged. [`KvCache::fill_rings`] puts the staged blocks into the rings when the last layer
//! is done. Until then nothing that the session may still read has changed, so a step that fails leaves no trace. Nobody
//! reads a layer's scratch once the layer is done, and a backend that can do without it leaves it as it is.
//!
//! Forks share the blocks of layers without a ring that were full: see [`fork`](super::fork).

use crate::alloc::try_collect_ok;
use crate::attention::mask::Mask;
use crate::attention::plan::LayerAttention;
use crate::backend::Backend;
use crate::backend::args::*;
use crate::error::Result;
use crate::kv::blocks::{Blocks, Prefix, block_bytes};
use crate::kv::layer::{LayerKv, RingKv};
use crate::kv::restore::RestorePoints;
use crate::kv::slots::{SlotMap, blocks_touched};

/// The cache blocks of one layer of a session, as numbers.
#[derive(Clone, Debug)]
pub struct LayerLayout {
    /// Shape of a block.
    pub shape: KvShape,
    /// Where the blocks of a session lie that shares none.
    pub slots: SlotMap,
    /// Blocks per head of the staging buffer; 0 if the layer has no ring.
    pub stage_blocks: u32,
    /// Blocks per head of the scratch, as this layer uses it; 0 if it has no ring.
    pub scratch_blocks: u32,
}

impl LayerLayout {
    /// What a layer needs for `n_ctx` tokens that arrive in steps of at most `chunk_tokens`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(attention: &LayerAttention, shape: KvShape, n_ctx: u32, chunk_tokens: u32) -> Result<Self> {
        let n_kv_heads = u32::try_from(shape.n_kv_heads).unwrap_or(u32::MAX);
        let slots = SlotMap::new(&attention.mask, &attention.phases, n_kv_heads, n_ctx)?;
        let scratch_blocks = match slots.has_ring() {
            true => blocks_touched(chunk_tokens, attention.mask.block_size()),
            false => 0,
        };
        let stage_blocks = scratch_blocks.min(slots.ring_blocks());
        Ok(Self { shape, slots, stage_blocks, scratch_blocks })
    }

    /// Bytes of the blocks of a session that shares none.
    pub fn kv_bytes<B: Backend>(&self, backend: &B) -> usize {
        block_bytes(backend, &self.slots, &self.shape)
    }

    /// Bytes of the table that says where blocks lie.
    pub fn table_bytes<B: Backend>(&self, backend: &B) -> usize {
        backend.slots_bytes(&self.slots)
    }

    /// Bytes of the staging buffer.
    pub fn staging_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.stage_blocks as usize * self.shape.n_kv_heads * backend.kv_block_bytes(&self.shape)
    }

    /// Bytes of what the rings hold.
    pub fn ring_bytes<B: Backend>(&self, backend: &B) -> usize {
        let n_blocks = self.slots.ring_heads().count() * self.slots.ring_blocks() as usize;
        n_blocks * backend.kv_block_bytes(&self.shape)
    }

    /// Bytes of the scratch, as this layer uses it.
    pub fn scratch_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.scratch_blocks as usize * self.shape.n_kv_heads * backend.kv_block_bytes(&self.shape)
    }
}

/// Bytes of the scratch that all layers share.
pub fn scratch_bytes<'a, B: Backend>(backend: &B, layers: impl Iterator<Item = &'a LayerLayout>) -> usize {
    layers.map(|layer| layer.scratch_bytes(backend)).max().unwrap_or(0)
}

pub(super) struct LayerCache<B: Backend> {
    pub layout: LayerLayout,
    pub mask: Mask,
    /// What it shares with forks; nothing in a layer with a ring.
    pub prefix: Option<Prefix<B>>,
    /// The blocks behind those.
    pub own: Blocks<B>,
    staged: B::Buf,
    /// Lowest block that was there when the cache was loaded from a file; 0 if it was not.
    pub first_held: u32,
}

impl<B: Backend> LayerCache<B> {
    /// Allocates a layer whose own blocks are those that `own` has slots for.
    pub fn new(backend: &B, layout: LayerLayout, own: SlotMap, mask: Mask) -> Result<Self> {
        let own = Blocks::new(backend, own, &layout.shape)?;
        let staged = backend.alloc(layout.staging_bytes(backend))?;
        Ok(Self { layout, mask, prefix: None, own, staged, first_held: 0 })
    }

    /// Where a block lies.
    pub fn home(&self, block: u32) -> &Blocks<B> {
        let prefix = self.prefix.as_ref().filter(|prefix| block < prefix.n_blocks);
        prefix.map_or(&self.own, |prefix| &*prefix.blocks)
    }

    /// Whether block `b` of a head lies right behind block `a`.
    pub fn adjoin(&self, head: u32, a: u32, b: u32) -> bool {
        let home = self.home(a);
        std::ptr::eq(home, self.home(b)) && home.map.adjoin(head, a, b)
    }
}

/// The keys and values of one session.
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<LayerCache<B>>,
    pub(super) scratch: B::Buf,
    /// Tokens that count.
    pub(super) n_tokens: u32,
    /// Behind the last token that was ever committed since the cache was empty or restored; what a ring has lost depends
    /// on it.
    pub(super) written: u32,
    pub(super) points: RestorePoints<B::Held>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates the cache; `layouts` and `attention` have one element per layer. Restore points will take at most
    /// `restore_bytes` of the host's memory.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(
        backend: &B,
        layouts: Vec<LayerLayout>,
        attention: &[LayerAttention],
        restore_bytes: usize,
    ) -> Result<Self> {
        let scratch = backend.alloc(scratch_bytes(backend, layouts.iter()))?;
        let layer = |(layout, attention): (LayerLayout, &LayerAttention)| {
            let own = layout.slots.clone();
            LayerCache::new(backend, layout, own, attention.mask)
        };
        let layers = try_collect_ok(layouts.into_iter().zip(attention).map(layer))?;
        Ok(Self { layers, scratch, n_tokens: 0, written: 0, points: RestorePoints::new(restore_bytes) })
    }

    /// Tokens that the cache holds.
    pub fn n_tokens(&self) -> u32 {
        self.n_tokens
    }

    /// Shape of a layer's blocks.
    pub fn shape(&self, layer: usize) -> KvShape {
        self.layers[layer].layout.shape
    }

    /// What is held of a layer, and where the coming step's keys and values go: there must be [room](Self::has_room) for
    /// them.
    pub fn layer<'a>(&'a mut self, layer: usize, desc: &'a B::Descriptor) -> LayerKv<'a, B> {
        let LayerCache { layout, mask, prefix, own, staged, .. } = &mut self.layers[layer];
        let LayerLayout { shape, stage_blocks, scratch_blocks, .. } = *layout;
        let scratch = &mut self.scratch;
        let ring = (scratch_blocks > 0).then_some(RingKv { scratch, scratch_blocks, staged, stage_blocks });
        let prefix = prefix.as_ref().map(|Prefix { blocks, n_blocks }| KvSegment {
            blocks: &blocks.buf,
            places: BlockPlaces::Slots(&blocks.slots),
            end: SegmentEnd::Fixed(n_blocks * mask.block_size()),
        });
        let Blocks { slots, buf: blocks, .. } = own;
        LayerKv { desc, shape, prefix, slots, blocks, ring }
    }

    /// The copies that move the step's staged blocks into the rings: what the step's queries no longer see is
    /// overwritten.
    pub fn fill_rings<'a>(&'a mut self, desc: &'a B::Descriptor) -> impl Iterator<Item = CopyPart<'a, B>> {
        let with_ring = self.layers.iter_mut().filter(|layer| layer.layout.scratch_blocks > 0);
        let part = |layer: &'a mut LayerCache<B>| {
            let LayerCache { layout, own: Blocks { slots, buf: blocks, .. }, staged, .. } = layer;
            let LayerLayout { shape, stage_blocks, .. } = *layout;
            CopyPart {
                to: blocks,
                to_places: BlockPlaces::Slots(slots),
                from: staged,
                from_places: BlockPlaces::Step { n_blocks: stage_blocks },
                shape,
                desc,
                blocks: StepBlocks::Ring,
                slots,
            }
        };
        with_ring.map(part)
    }

    /// Makes the step of `n_tokens` tokens count, once the rings are filled.
    pub fn advance(&mut self, n_tokens: u32) {
        self.n_tokens += n_tokens;
        self.written = self.written.max(self.n_tokens);
    }
}
