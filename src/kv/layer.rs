//! One layer of a session's cache during a step.

use crate::backend::Backend;
use crate::backend::args::*;

/// What a session holds of a layer, and where the keys and values of its coming step go.
///
/// Layers that never overwrite a block take them at once. In layers with a ring they go to a scratch, since the step's
/// queries may still see what they will overwrite; what must outlive it is copied once they have been answered.
pub struct LayerKv<'a, B: Backend> {
    /// Which rows of the step, at which positions.
    pub desc: &'a B::Descriptor,
    /// Shape of the cache blocks.
    pub shape: KvShape,
    /// What it shares with others, before its own blocks.
    pub prefix: Option<KvSegment<'a, B>>,
    /// Where the session's own blocks lie.
    pub slots: &'a B::Slots,
    /// The session's own blocks.
    pub blocks: &'a mut B::Buf,
    /// What there is beside them if they form a ring.
    pub ring: Option<RingKv<'a, B>>,
}

/// What a layer with a ring has beside it; both hold the blocks that a step touches, or the last ones of them.
pub struct RingKv<'a, B: Backend> {
    /// Blocks of the running step in the running layer.
    pub scratch: &'a mut B::Buf,
    /// Blocks per head of the scratch.
    pub scratch_blocks: u32,
    /// Blocks that go into the ring at the end of the step.
    pub staged: &'a mut B::Buf,
    /// Blocks per head that are staged.
    pub stage_blocks: u32,
}

impl<B: Backend> LayerKv<'_, B> {
    /// Where the keys and values of the coming step go.
    pub fn append_target(&mut self) -> AppendSeq<'_, B> {
        let Self { desc, slots, blocks, ring, .. } = self;
        match ring {
            None => AppendSeq { desc, blocks, places: BlockPlaces::Slots(*slots) },
            Some(RingKv { scratch, scratch_blocks: n_blocks, .. }) => {
                AppendSeq { desc, blocks: scratch, places: BlockPlaces::Step { n_blocks: *n_blocks } }
            }
        }
    }

    /// The session's own blocks, up to `end`.
    fn own(&self, end: SegmentEnd) -> KvSegment<'_, B> {
        KvSegment { blocks: self.blocks, places: BlockPlaces::Slots(self.slots), end }
    }

    /// What the tokens before the running step left; the session's own blocks come last.
    pub fn held(&self) -> Vec<KvSegment<'_, B>> {
        self.prefix.into_iter().chain([self.own(SegmentEnd::BeforeStep)]).collect()
    }

    /// What the tokens of the running step, and all before them, left.
    pub fn segments(&self) -> Vec<KvSegment<'_, B>> {
        match &self.ring {
            None => self.prefix.into_iter().chain([self.own(SegmentEnd::Step)]).collect(),
            Some(RingKv { scratch, scratch_blocks: n_blocks, .. }) => {
                let places = BlockPlaces::Step { n_blocks: *n_blocks };
                let step = KvSegment { blocks: &**scratch, places, end: SegmentEnd::Step };
                self.held().into_iter().chain([step]).collect()
            }
        }
    }

    /// The copies that take what must outlive the scratch from it, once the layer has attended to the step's tokens.
    pub fn stage(&mut self) -> Vec<CopyPart<'_, B>> {
        let Self { desc, shape, slots, blocks, ring, .. } = self;
        let Some(RingKv { scratch, scratch_blocks, staged, stage_blocks }) = ring else { return Vec::new() };
        let (desc, shape, slots, from) = (*desc, *shape, *slots, &**scratch);
        let from_places = BlockPlaces::Step { n_blocks: *scratch_blocks };
        let part =
            |to, to_places, blocks| CopyPart { to, to_places, from, from_places, shape, desc, blocks, slots };
        vec![
            part(&mut **blocks, BlockPlaces::Slots(slots), StepBlocks::Pinned),
            part(&mut **staged, BlockPlaces::Step { n_blocks: *stage_blocks }, StepBlocks::Ring),
        ]
    }
}
