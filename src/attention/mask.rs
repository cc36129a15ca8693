//! Who may look at whom, as pure integers.
//!
//! A [`Mask`] is what an attention kernel knows of a layer's kind. [`Mask::sees`] is the definition; everything else
//! here only finds the same pairs faster, a key block at a time, and is tested against it by brute force.

use std::ops::Range;

/// Tokens of one cache block in `full` and `window` layers.
pub const BLOCK_TOKENS: u32 = 64;

/// What a query token may see among the key tokens at or before its own position.
///
/// With `i` the query's position, `j` the key's, `b` the block size, `I = i / b`, `J = j / b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Every key.
    Full,
    /// `i - j < window_tokens` or `j < sink_tokens`.
    Window {
        /// Keys that are visible behind the query, its own included; at least 1.
        window_tokens: u32,
        /// First tokens of the context that stay visible for ever.
        sink_tokens: u32,
    },
    /// `I - J < local_blocks` or `J < sink_blocks` or `(J + phase) mod stride = 0`.
    Blocks {
        /// Tokens of a block, for the mask and for the cache.
        block_size: u32,
        /// Blocks that are visible behind the query, its own included; at least 1.
        local_blocks: u32,
        /// First blocks of the context that stay visible for ever.
        sink_blocks: u32,
        /// Distance of the strided blocks; 0 means that there are none.
        stride: u32,
    },
}

impl Mask {
    /// Tokens of one cache block of this layer.
    pub fn block_size(&self) -> u32 {
        match *self {
            Mask::Full | Mask::Window { .. } => BLOCK_TOKENS,
            Mask::Blocks { block_size, .. } => block_size,
        }
    }

    /// Whether a query at position `i`, of a head with this `phase`, sees the key at position `j`.
    pub fn sees(&self, i: u32, j: u32, phase: u32) -> bool {
        if j > i {
            return false;
        }
        match *self {
            Mask::Full => true,
            Mask::Window { window_tokens, sink_tokens } => i - j < window_tokens || j < sink_tokens,
            Mask::Blocks { block_size, local_blocks, .. } => {
                let (query_block, block) = (i / block_size, j / block_size);
                query_block - block < local_blocks || self.keeps(block, phase)
            }
        }
    }

    /// Whether a head with this `phase` sees `block` from everywhere behind it: a sink or a strided block.
    pub fn keeps(&self, block: u32, phase: u32) -> bool {
        match *self {
            Mask::Full => true,
            Mask::Window { .. } => block < self.sink_blocks(),
            Mask::Blocks { sink_blocks, stride, .. } => {
                block < sink_blocks
                    || (stride > 0 && (block % stride + phase % stride).is_multiple_of(stride))
            }
        }
    }

    /// Blocks at the start of the context that the cache never gives up.
    pub fn sink_blocks(&self) -> u32 {
        match *self {
            Mask::Full => 0,
            Mask::Window { sink_tokens, .. } => sink_tokens.div_ceil(BLOCK_TOKENS),
            Mask::Blocks { sink_blocks, .. } => sink_blocks,
        }
    }

    /// First block of which a query at position `i` sees a token because it is near.
    pub fn first_near_block(&self, i: u32) -> u32 {
        match *self {
            Mask::Full => 0,
            Mask::Window { window_tokens, .. } => (i + 1).saturating_sub(window_tokens) / BLOCK_TOKENS,
            Mask::Blocks { block_size, local_blocks, .. } => {
                (i / block_size + 1).saturating_sub(local_blocks)
            }
        }
    }

    /// First position from which on queries have no near token before `block`.
    pub fn first_query_within(&self, block: u32) -> u32 {
        match *self {
            _ if block == 0 => 0,
            Mask::Full => u32::MAX,
            Mask::Window { window_tokens, .. } => (block * BLOCK_TOKENS).saturating_add(window_tokens - 1),
            Mask::Blocks { block_size, local_blocks, .. } => {
                (block + local_blocks - 1).saturating_mul(block_size)
            }
        }
    }

    /// Blocks of which any of the queries `first..=last` of a head with this `phase` may see a token, ascending.
    pub fn visible_blocks(&self, first: u32, last: u32, phase: u32) -> impl Iterator<Item = u32> + use<> {
        self.visible_blocks_from(first, last, phase, 0)
    }

    /// The visible blocks from `from` on, found without going through those before.
    pub fn visible_blocks_from(
        &self,
        first: u32,
        last: u32,
        phase: u32,
        from: u32,
    ) -> impl Iterator<Item = u32> + use<> {
        let near = self.first_near_block(first);
        let sinks = self.sink_blocks().min(near);
        // Strided blocks between the sinks and the near ones: those with (block + phase) mod stride = 0.
        let (stride, first_strided) = match *self {
            Mask::Blocks { stride, .. } if stride > 0 => {
                let residue = (stride - phase % stride) % stride;
                let begin = sinks.max(from);
                let ahead = (residue + stride - begin % stride) % stride;
                (stride, begin.saturating_add(ahead))
            }
            _ => (1, near),
        };
        let strided = (first_strided..near).step_by(stride as usize);
        (from..sinks).chain(strided).chain(near.max(from)..=last / self.block_size())
    }

    /// Tokens of `block` that a query at position `i` sees, as two ascending ranges of positions; the second follows
    /// a gap that only a window behind sink tokens of the same block leaves, and is empty otherwise.
    pub fn visible_tokens(&self, i: u32, block: u32, phase: u32) -> [Range<u32>; 2] {
        let begin = block * self.block_size();
        let end = (begin + self.block_size()).min(i + 1);
        let all = [begin..end.max(begin), 0..0];
        let none = [0..0, 0..0];
        match *self {
            Mask::Full => all,
            Mask::Window { window_tokens, sink_tokens } => {
                let near = (i + 1).saturating_sub(window_tokens).max(begin).min(end.max(begin));
                let sink_end = sink_tokens.clamp(begin, end.max(begin));
                if sink_end >= near { all } else { [begin..sink_end, near..end.max(near)] }
            }
            Mask::Blocks { block_size, local_blocks, .. } => {
                let query_block = i / block_size;
                let near = block <= query_block && query_block - block < local_blocks;
                if near || self.keeps(block, phase) { all } else { none }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any mask with small numbers, so that short contexts reach every edge.
    pub(crate) fn any_mask() -> impl Strategy<Value = Mask> {
        prop_oneof![
            Just(Mask::Full),
            (1u32..200, 0u32..150)
                .prop_map(|(window_tokens, sink_tokens)| Mask::Window { window_tokens, sink_tokens }),
            (prop::sample::select(vec![16u32, 32, 64]), 1u32..5, 0u32..3, 0u32..6).prop_map(
                |(block_size, local_blocks, sink_blocks, stride)| Mask::Blocks {
                    block_size,
                    local_blocks,
                    sink_blocks,
                    stride
                }
            ),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn visible_tokens_are_those_that_the_definition_sees(
            mask in any_mask(), phase in 0u32..9, first in 0u32..700, n in 1u32..90,
        ) {
            let last = first + n - 1;
            let blocks: Vec<u32> = mask.visible_blocks(first, last, phase).collect();
            prop_assert!(blocks.is_sorted_by(|a, b| a < b));
            for from in [0, last / mask.block_size() / 2, last / mask.block_size() + 1] {
                let later: Vec<u32> = mask.visible_blocks_from(first, last, phase, from).collect();
                let expected: Vec<u32> = blocks.iter().copied().filter(|&block| block >= from).collect();
                prop_assert_eq!(later, expected, "from block {}", from);
            }
            for i in [first, last, (first + last) / 2] {
                let mut seen = Vec::new();
                for &block in &blocks {
                    for range in mask.visible_tokens(i, block, phase) {
                        seen.extend(range);
                    }
                }
                let expected: Vec<u32> = (0..=i).filter(|&j| mask.sees(i, j, phase)).collect();
                prop_assert_eq!(seen, expected, "query {}", i);
            }
        }
    }
}
