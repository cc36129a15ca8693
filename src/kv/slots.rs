//! Where the cache blocks of a layer lie, as pure integers.
//!
//! A slot is a place for one cache block of one KV head. Which slot a block has is a function of (block, head, plan)
//! alone, never of time, so nothing is ever moved:
//!
//! ```text
//! pinned blocks: block < S             slot = block                      S = sink blocks
//! strided:       residue in r_0..r_m   slot = S + R + (block / stride) * m + rank(block mod stride)
//! the others:                          slot = S + (block - S) mod R       R = ring blocks, the spare included
//! ```
//!
//! A head for which that takes as many slots as the context has blocks keeps one slot a block instead. Where all heads
//! do, the first F blocks may lie elsewhere, and need none: slot = block - F for the others.

use std::collections::TryReserveError;
use std::sync::Arc;

use crate::attention::mask::Mask;

/// Blocks that `n_tokens` tokens in a row can touch, wherever they begin.
pub(crate) fn blocks_touched(n_tokens: u32, block_size: u32) -> u32 {
    (n_tokens + block_size - 2) / block_size + 1
}

/// Slots of one KV head of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HeadSlots {
    /// Slot of block 0 of this head, counted over all heads of the layer; where the first blocks have none, below 0
    /// modulo 2^32.
    first: u32,
    sink_blocks: u32,
    ring_blocks: u32,
    /// Sorted residues modulo the stride of the blocks that any query head of the group keeps; empty if none.
    residues: Vec<u32>,
    n_slots: u32,
    /// Whether blocks take the slots of older ones.
    is_ring: bool,
}

/// Slots of one layer: a function from (KV head, block) to the place of that block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    stride: u32,
    heads: Arc<Vec<HeadSlots>>,
    n_slots: u32,
}

impl SlotMap {
    /// The slots that a layer with this mask needs for `n_ctx` tokens. `phases` has one number per query head, and
    /// query heads share KV heads in equal groups in order.
    ///
    /// # Errors
    /// If there is no memory for as many numbers as there are heads.
    pub fn new(mask: &Mask, phases: &[u32], n_kv_heads: u32, n_ctx: u32) -> Result<Self, TryReserveError> {
        let n_blocks = n_ctx.div_ceil(mask.block_size());
        let group = phases.len() / n_kv_heads.max(1) as usize;
        let stride = match *mask {
            Mask::Blocks { stride, .. } => stride,
            _ => 0,
        };
        // One block more than the window reaches into: a rewind of up to one block finds everything in place.
        let ring = match *mask {
            Mask::Full => n_blocks,
            Mask::Window { window_tokens, .. } => {
                (window_tokens - 1).div_ceil(mask.block_size()).saturating_add(2)
            }
            Mask::Blocks { local_blocks, .. } => local_blocks.saturating_add(1),
        };
        // More slots than can be counted are more than can be allocated: whoever asks for them is refused.
        let mut first = 0u32;
        let mut heads = Vec::new();
        heads.try_reserve_exact(n_kv_heads as usize)?;
        for head in 0..n_kv_heads as usize {
            let phases = &phases[head * group..(head + 1) * group];
            let slots = HeadSlots::new(first, mask.sink_blocks(), ring, stride, phases, n_blocks)?;
            first = first.saturating_add(slots.n_slots);
            heads.push(slots);
        }
        Ok(Self { stride, heads: Arc::new(heads), n_slots: first })
    }

    /// Where the blocks from `first_block` on lie if those before it lie elsewhere: these have no slots then. For layers
    /// in which nothing is ever overwritten.
    ///
    /// # Errors
    /// As in [`new`](Self::new).
    pub fn behind(&self, first_block: u32) -> Result<Self, TryReserveError> {
        if first_block == 0 {
            return Ok(self.clone());
        }
        let mut next = 0u32;
        let mut heads = Vec::new();
        heads.try_reserve_exact(self.heads.len())?;
        for head in &*self.heads {
            let n_slots = head.n_slots.saturating_sub(first_block);
            heads.push(HeadSlots {
                first: next.wrapping_sub(first_block),
                sink_blocks: first_block,
                ring_blocks: n_slots.max(1),
                residues: Vec::new(),
                n_slots,
                is_ring: false,
            });
            next = next.saturating_add(n_slots);
        }
        Ok(Self { stride: self.stride, heads: Arc::new(heads), n_slots: next })
    }

    /// The same as 32-bit words, for kernels: stride, longest ring; then of every head its first slot, sink blocks,
    /// ring blocks, where its residues begin, how many there are, and whether it is a ring; then all residues.
    pub fn words(&self) -> Vec<u32> {
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut words = vec![self.stride, self.ring_blocks()];
        let mut residues = 2 + 6 * self.heads.len();
        for head in &*self.heads {
            let HeadSlots { first, sink_blocks, ring_blocks, .. } = *head;
            let n_residues = head.residues.len();
            let is_ring = u32::from(head.is_ring);
            words.extend([first, sink_blocks, ring_blocks, word(residues), word(n_residues), is_ring]);
            residues += n_residues;
        }
        words.extend(self.heads.iter().flat_map(|head| &head.residues));
        words
    }

    /// Slots of all heads together.
    pub fn n_slots(&self) -> u32 {
        self.n_slots
    }

    /// Whether blocks take the slots of older ones in any head.
    pub fn has_ring(&self) -> bool {
        self.heads.iter().any(|head| head.is_ring)
    }

    /// Blocks of the longest ring of any head; 0 if nothing is ever overwritten.
    pub fn ring_blocks(&self) -> u32 {
        self.heads.iter().filter(|head| head.is_ring).map(|head| head.ring_blocks).max().unwrap_or(0)
    }

    /// Heads in which blocks take the slots of older ones.
    pub fn ring_heads(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&*self.heads).filter(|(_, head)| head.is_ring).map(|(i, _)| i)
    }

    /// The first block that lies in a ring of any head.
    pub fn first_in_ring(&self) -> u32 {
        self.heads.iter().filter(|head| head.is_ring).map(|head| head.sink_blocks).min().unwrap_or(0)
    }

    /// The slot of `block` in `kv_head`, counted over all heads of the layer.
    pub fn slot(&self, kv_head: u32, block: u32) -> u32 {
        let head = &self.heads[kv_head as usize];
        let in_head = if block < head.sink_blocks {
            block
        } else if let Some(rank) = self.rank(head, block) {
            let per_period = u32::try_from(head.residues.len()).unwrap_or(u32::MAX);
            head.sink_blocks + head.ring_blocks + block / self.stride * per_period + rank
        } else {
            head.sink_blocks + (block - head.sink_blocks) % head.ring_blocks
        };
        head.first.wrapping_add(in_head)
    }

    /// Whether block `b` of `kv_head` lies right behind block `a`.
    pub fn adjoin(&self, kv_head: u32, a: u32, b: u32) -> bool {
        self.slot(kv_head, b) == self.slot(kv_head, a) + 1
    }

    /// Whether no later block of `kv_head` ever takes the slot of `block`.
    pub fn is_pinned(&self, kv_head: u32, block: u32) -> bool {
        let head = &self.heads[kv_head as usize];
        !head.is_ring || block < head.sink_blocks || self.rank(head, block).is_some()
    }

    /// Lowest block that is sure to be intact in every ring once `newest` has been written.
    pub fn oldest_intact(&self, newest: u32) -> u32 {
        match self.ring_blocks() {
            0 => 0,
            // All rings of a layer have the same length: they differ only in whether they are needed.
            ring => {
                let sinks = self.heads.iter().map(|head| head.sink_blocks).min().unwrap_or(0);
                if newest < sinks + ring { 0 } else { newest - ring + 1 }
            }
        }
    }

    /// Which of the head's strided blocks of one period this is, if it is one.
    fn rank(&self, head: &HeadSlots, block: u32) -> Option<u32> {
        if head.residues.is_empty() {
            return None;
        }
        let rank = head.residues.binary_search(&(block % self.stride)).ok()?;
        u32::try_from(rank).ok()
    }
}

impl HeadSlots {
    fn new(
        first: u32,
        sinks: u32,
        ring: u32,
        stride: u32,
        phases: &[u32],
        n_blocks: u32,
    ) -> Result<Self, TryReserveError> {
        let mut residues = Vec::new();
        if stride > 0 {
            residues.try_reserve_exact(phases.len())?;
            residues.extend(phases.iter().map(|phase| (stride - phase % stride) % stride));
        }
        residues.sort_unstable();
        residues.dedup();
        let per_period = u32::try_from(residues.len()).unwrap_or(u32::MAX);
        let n_strided = match stride {
            0 => 0,
            _ => {
                let (periods, rest) = (n_blocks / stride, n_blocks % stride);
                let in_rest = residues.iter().filter(|&&residue| residue < rest).count();
                periods * per_period + u32::try_from(in_rest).unwrap_or(u32::MAX)
            }
        };
        let n_slots = sinks.saturating_add(ring).saturating_add(n_strided);
        Ok(if n_slots < n_blocks {
            Self { first, sink_blocks: sinks, ring_blocks: ring, residues, n_slots, is_ring: true }
        } else {
            let ring_blocks = n_blocks.max(1);
            Self {
                first,
                sink_blocks: 0,
                ring_blocks,
                residues: Vec::new(),
                n_slots: n_blocks,
                is_ring: false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::mask::tests::any_mask;
    use proptest::prelude::*;

    #[test]
    fn more_slots_than_can_be_counted_do_not_become_few() {
        // 2^26 blocks in each of 64 heads: 2^32 slots.
        let mask = Mask::Blocks { block_size: 16, local_blocks: 1, sink_blocks: 0, stride: 1 };
        assert_eq!(SlotMap::new(&mask, &[0; 64], 64, 1 << 30).unwrap().n_slots(), u32::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Writes a context block by block into slots, as a session would, and looks after every block whether what
        /// any head may still see is there, also from one block further back.
        #[test]
        fn everything_that_may_be_seen_is_in_its_slot(
            mask in any_mask(), n_ctx in 1u32..1500, n_kv_heads in 1u32..4, group in 1usize..4,
            phases in prop::collection::vec(0u32..9, 12),
        ) {
            let phases = &phases[..n_kv_heads as usize * group];
            let map = SlotMap::new(&mask, phases, n_kv_heads, n_ctx).unwrap();
            let block_size = mask.block_size();
            let n_blocks = n_ctx.div_ceil(block_size);
            let mut slots = vec![None; map.n_slots() as usize];
            for newest in 0..n_blocks {
                for head in 0..n_kv_heads {
                    let slot = &mut slots[map.slot(head, newest) as usize];
                    if let Some((other, old)) = slot.replace((head, newest)) {
                        prop_assert_eq!(other, head);
                        prop_assert!(!map.is_pinned(head, old), "pinned block {} lost to {}", old, newest);
                        prop_assert!(old < map.oldest_intact(newest));
                    }
                }
                // Queries anywhere in the newest block, or up to a block before its first token.
                let last = (newest + 1) * block_size - 1;
                for i in [last, newest * block_size, (newest * block_size).saturating_sub(block_size)] {
                    for (query_head, &phase) in phases.iter().enumerate() {
                        let head = u32::try_from(query_head / group).unwrap();
                        for block in (0..=i / block_size).filter(|&block| {
                            (block * block_size..=i).take(block_size as usize).any(|j| mask.sees(i, j, phase))
                        }) {
                            let slot = map.slot(head, block) as usize;
                            prop_assert_eq!(slots[slot], Some((head, block)), "query {} head {}", i, query_head);
                        }
                    }
                }
                let oldest = mask.first_query_within(map.oldest_intact(newest));
                prop_assert!(oldest <= (newest * block_size + 1).saturating_sub(block_size));
            }
        }

        #[test]
        fn blocks_behind_others_that_lie_elsewhere_have_a_slot_each_and_no_more(
            mask in any_mask(), n_ctx in 1u32..3000, n_kv_heads in 1u32..5, percent in 0u32..=100,
        ) {
            let map_of = |mask| SlotMap::new(mask, &vec![0; n_kv_heads as usize], n_kv_heads, n_ctx).unwrap();
            let without_ring = Some(map_of(&mask)).filter(|map| !map.has_ring());
            let whole = without_ring.unwrap_or_else(|| map_of(&Mask::Full));
            let n_blocks = whole.n_slots() / n_kv_heads;
            let first_block = n_blocks * percent / 100;
            let map = whole.behind(first_block).unwrap();
            // Head after head, block after block.
            let all = (0..n_kv_heads).flat_map(|head| (first_block..n_blocks).map(move |block| (head, block)));
            for (slot, (head, block)) in (0..).zip(all) {
                prop_assert_eq!(map.slot(head, block), slot, "block {} of {}", block, n_blocks);
                prop_assert!(map.is_pinned(head, block));
            }
            prop_assert_eq!(map.n_slots(), n_kv_heads * (n_blocks - first_block));
            prop_assert_eq!((map.has_ring(), map.ring_blocks(), map.oldest_intact(n_blocks)), (false, 0, 0));
            // Kernels are told in as many words.
            prop_assert_eq!(map.words().len(), whole.words().len());
        }

        #[test]
        fn no_slot_is_more_than_the_plan_needs(
            mask in any_mask(), n_ctx in 1u32..3000, phase in 0u32..9,
        ) {
            let map = SlotMap::new(&mask, &[phase], 1, n_ctx).unwrap();
            let n_blocks = n_ctx.div_ceil(mask.block_size());
            let needed = match mask {
                Mask::Full => n_blocks,
                Mask::Window { window_tokens, sink_tokens } => {
                    sink_tokens.div_ceil(64) + (window_tokens - 1).div_ceil(64) + 2
                }
                Mask::Blocks { local_blocks, sink_blocks, stride, .. } => {
                    let strided = (0..n_blocks).filter(|block| stride > 0 && (block + phase) % stride == 0);
                    sink_blocks + local_blocks + 1 + u32::try_from(strided.count()).unwrap()
                }
            };
            prop_assert_eq!(map.n_slots(), needed.min(n_blocks));
        }
    }
}
