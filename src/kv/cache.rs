//! The keys and values of one session.
//!
//! A step appends its tokens to every layer and then takes effect as a whole. Layers that never overwrite a block
//! write in place, behind the last token that counts. In layers with a ring the step's tokens go to a scratch that
//! the layers share; once the layer has attended to them, pinned blocks move to their final slots and the blocks that
//! will be in the ring are staged. [`KvCache::commit`] puts the staged blocks into the rings when the last layer is
//! done. Until then nothing that the session may still read has changed, so a step that fails leaves no trace.

use crate::alloc::try_vec;
use crate::attention::plan::LayerAttention;
use crate::backend::Backend;
use crate::backend::args::*;
use crate::error::Result;
use crate::kv::slots::SlotMap;

/// Blocks that `n_tokens` tokens in a row can touch, wherever they begin.
fn blocks_touched(n_tokens: u32, block_size: u32) -> u32 {
    (n_tokens + block_size - 2) / block_size + 1
}

/// The cache blocks of one layer of a session, as numbers.
#[derive(Clone, Debug)]
pub struct LayerLayout {
    /// Shape of a block.
    pub shape: KvShape,
    /// Where the session's own blocks lie.
    pub slots: SlotMap,
    /// Blocks per head of the staging buffer; 0 if the layer has no ring.
    pub stage_blocks: u32,
    /// Blocks per head of the scratch, as this layer uses it; 0 if it has no ring.
    pub scratch_blocks: u32,
}

impl LayerLayout {
    /// What a layer needs for `n_ctx` tokens that arrive in steps of at most `chunk_tokens`.
    pub fn new(attention: &LayerAttention, shape: KvShape, n_ctx: u32, chunk_tokens: u32) -> Self {
        let n_kv_heads = u32::try_from(shape.n_kv_heads).unwrap_or(u32::MAX);
        let slots = SlotMap::new(&attention.mask, &attention.phases, n_kv_heads, n_ctx);
        let scratch_blocks = match slots.has_ring() {
            true => blocks_touched(chunk_tokens, attention.mask.block_size()),
            false => 0,
        };
        let stage_blocks = scratch_blocks.min(slots.ring_blocks());
        Self { shape, slots, stage_blocks, scratch_blocks }
    }

    /// Bytes of the session's own blocks.
    pub fn kv_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.slots.n_slots() as usize * backend.kv_block_bytes(&self.shape)
    }

    /// Bytes of the staging buffer.
    pub fn staging_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.stage_blocks as usize * self.shape.n_kv_heads * backend.kv_block_bytes(&self.shape)
    }

    /// Bytes of the scratch, as this layer uses it.
    pub fn scratch_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.scratch_blocks as usize * self.shape.n_kv_heads * backend.kv_block_bytes(&self.shape)
    }
}

/// Bytes of the scratch that all layers share.
pub fn scratch_bytes<B: Backend>(backend: &B, layers: &[LayerLayout]) -> usize {
    layers.iter().map(|layer| layer.scratch_bytes(backend)).max().unwrap_or(0)
}

struct LayerCache<B: Backend> {
    layout: LayerLayout,
    attention: LayerAttention,
    blocks: B::Buf,
    staged: B::Buf,
}

/// The keys and values of one session.
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    scratch: B::Buf,
    /// Tokens that count.
    n_tokens: u32,
    /// Behind the last token that was ever committed since the cache was empty; what a ring has lost depends on it.
    written: u32,
    /// Reused by every step, with room for the most that one needs.
    copies: Vec<BlockCopy>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates the cache; `layouts` and `attention` have one element per layer.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(backend: &B, layouts: Vec<LayerLayout>, attention: &[LayerAttention]) -> Result<Self> {
        let scratch = backend.alloc(scratch_bytes(backend, &layouts))?;
        let most_copies = layouts.iter().map(|layer| layer.scratch_blocks as usize * layer.shape.n_kv_heads);
        let mut copies = try_vec(most_copies.max().unwrap_or(0), BlockCopy::default())?;
        copies.clear();
        let layers = layouts
            .into_iter()
            .zip(attention)
            .map(|(layout, attention)| {
                let blocks = backend.alloc(layout.kv_bytes(backend))?;
                let staged = backend.alloc(layout.staging_bytes(backend))?;
                Ok(LayerCache { layout, attention: attention.clone(), blocks, staged })
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, scratch, n_tokens: 0, written: 0, copies })
    }

    /// Tokens that the cache holds.
    pub fn n_tokens(&self) -> u32 {
        self.n_tokens
    }

    /// Shape of a layer's blocks.
    pub fn shape(&self, layer: usize) -> KvShape {
        self.layers[layer].layout.shape
    }

    /// Where the keys and values of the coming step go in a layer.
    pub fn append_target<'a>(&'a mut self, layer: usize, desc: &'a B::Descriptor) -> AppendSeq<'a, B> {
        let layer = &mut self.layers[layer];
        match layer.layout.scratch_blocks {
            0 => {
                AppendSeq { desc, blocks: &mut layer.blocks, places: BlockPlaces::Slots(&layer.layout.slots) }
            }
            n_blocks => {
                let first_block = self.n_tokens / layer.attention.mask.block_size();
                AppendSeq {
                    desc,
                    blocks: &mut self.scratch,
                    places: BlockPlaces::Linear { first_block, n_blocks },
                }
            }
        }
    }

    /// What the `n_tokens` tokens of the running step, and all before them, left in a layer.
    pub fn segments(&self, layer: usize, n_tokens: u32) -> Vec<KvSegment<'_, B>> {
        let LayerCache { layout, attention, blocks, .. } = &self.layers[layer];
        let places = BlockPlaces::Slots(&layout.slots);
        let end = self.n_tokens + n_tokens;
        match layout.scratch_blocks {
            0 => vec![KvSegment { blocks, places, end }],
            n_blocks => {
                let first_block = self.n_tokens / attention.mask.block_size();
                let scratch = BlockPlaces::Linear { first_block, n_blocks };
                vec![
                    KvSegment { blocks, places, end: self.n_tokens },
                    KvSegment { blocks: &self.scratch, places: scratch, end },
                ]
            }
        }
    }

    /// Takes what must outlive the scratch from it, once the layer has attended to the step's `n_tokens` tokens.
    pub fn stage(&mut self, backend: &B, ws: &mut B::Workspace, layer: usize, n_tokens: u32) -> Result<()> {
        let step = StepBlocks::new(&self.layers[layer].layout, self.n_tokens, n_tokens);
        let layer = &mut self.layers[layer];
        if layer.layout.scratch_blocks == 0 {
            return Ok(());
        }
        let (shape, slots) = (layer.layout.shape, &layer.layout.slots);
        let copies = &mut self.copies;

        copies.clear();
        copies.extend(step.copies(|head, block| {
            let pinned = slots.is_pinned(head, block);
            pinned.then(|| (step.in_scratch(head, block), slots.slot(head, block) as usize))
        }));
        let from = &self.scratch;
        backend.copy_blocks(ws, CopyBlocksArgs { to: &mut layer.blocks, from, shape, copies })?;

        copies.clear();
        copies.extend(step.copies(|head, block| {
            let staged = block >= step.first_staged && !slots.is_pinned(head, block);
            staged.then(|| (step.in_scratch(head, block), step.in_staging(head, block)))
        }));
        backend.copy_blocks(ws, CopyBlocksArgs { to: &mut layer.staged, from, shape, copies })
    }

    /// Makes the step of `n_tokens` tokens count.
    ///
    /// # Errors
    /// Only those of a device that fails for good; the cache is unusable then.
    pub fn commit(&mut self, backend: &B, ws: &mut B::Workspace, n_tokens: u32) -> Result<()> {
        for layer in self.layers.iter_mut().filter(|layer| layer.layout.scratch_blocks > 0) {
            let slots = &layer.layout.slots;
            let step = StepBlocks::new(&layer.layout, self.n_tokens, n_tokens);
            self.copies.clear();
            self.copies.extend(step.copies(|head, block| {
                let staged = block >= step.first_staged && !slots.is_pinned(head, block);
                staged.then(|| (step.in_staging(head, block), slots.slot(head, block) as usize))
            }));
            let (to, from) = (&mut layer.blocks, &layer.staged);
            backend.copy_blocks(
                ws,
                CopyBlocksArgs { to, from, shape: layer.layout.shape, copies: &self.copies },
            )?;
        }
        self.n_tokens += n_tokens;
        self.written = self.written.max(self.n_tokens);
        Ok(())
    }

    /// Lowest position that [`rewind`](Self::rewind) can still go back to, besides 0.
    pub fn oldest_restorable(&self) -> u32 {
        let oldest = |layer: &LayerCache<B>| {
            let mask = &layer.attention.mask;
            let newest = self.written.saturating_sub(1) / mask.block_size();
            mask.first_query_within(layer.layout.slots.oldest_intact(newest))
        };
        let layers = self.layers.iter().filter(|layer| layer.layout.scratch_blocks > 0);
        layers.map(oldest).max().unwrap_or(0).min(self.n_tokens)
    }

    /// Forgets the tokens from `n_tokens` on; the caller has asked [`oldest_restorable`](Self::oldest_restorable).
    pub fn rewind(&mut self, n_tokens: u32) {
        debug_assert!(n_tokens == 0 || (self.oldest_restorable()..=self.n_tokens).contains(&n_tokens));
        self.n_tokens = n_tokens;
        if n_tokens == 0 {
            self.written = 0;
        }
    }
}

/// The blocks that a step's tokens touch in one layer.
#[derive(Clone, Copy)]
struct StepBlocks {
    block_size: u32,
    /// First position of the step, and the one behind its last.
    begin: u32,
    end: u32,
    first: u32,
    last: u32,
    first_staged: u32,
    stage_blocks: u32,
    scratch_blocks: u32,
    n_kv_heads: u32,
}

impl StepBlocks {
    fn new(layout: &LayerLayout, begin: u32, n_tokens: u32) -> Self {
        let block_size = u32::try_from(layout.shape.block_size).unwrap_or(u32::MAX);
        let end = begin + n_tokens;
        let (first, last) = (begin / block_size, (end - 1) / block_size);
        Self {
            block_size,
            begin,
            end,
            first,
            last,
            first_staged: first.max((last + 1).saturating_sub(layout.stage_blocks)),
            stage_blocks: layout.stage_blocks,
            scratch_blocks: layout.scratch_blocks,
            n_kv_heads: u32::try_from(layout.shape.n_kv_heads).unwrap_or(u32::MAX),
        }
    }

    fn in_scratch(&self, head: u32, block: u32) -> usize {
        BlockPlaces::Linear { first_block: self.first, n_blocks: self.scratch_blocks }.place(head, block)
    }

    fn in_staging(&self, head: u32, block: u32) -> usize {
        BlockPlaces::Linear { first_block: self.first_staged, n_blocks: self.stage_blocks }.place(head, block)
    }

    /// Copies of the step's tokens of those blocks that `route` gives a (from, to) place.
    fn copies<'a>(
        &'a self,
        route: impl Fn(u32, u32) -> Option<(usize, usize)> + 'a,
    ) -> impl Iterator<Item = BlockCopy> + 'a {
        let blocks =
            (0..self.n_kv_heads).flat_map(|head| (self.first..=self.last).map(move |block| (head, block)));
        blocks.filter_map(move |(head, block)| {
            let (from, to) = route(head, block)?;
            let start = block * self.block_size;
            let begin = (self.begin.max(start) - start) as usize;
            let end = (self.end.min(start + self.block_size) - start) as usize;
            Some(BlockCopy { from, to, begin, end })
        })
    }
}
