//! What each layer of a model may look at.

use crate::alloc::try_collect;
use crate::attention::mask::Mask;
use crate::error::{Error, Result};

/// Bound of every number of a plan but token counts: far beyond any context, far below overflow.
const MAX_BLOCKS: u32 = 1 << 24;
/// Longest context that positions are made for.
pub const MAX_CTX: u32 = 1 << 30;

/// What one layer may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// Which keys a query sees.
    pub mask: Mask,
    /// Shift of the strided blocks, one per query head.
    pub phases: Vec<u32>,
}

impl LayerAttention {
    /// A layer whose heads all have phase 0.
    pub fn uniform(mask: Mask, n_heads: usize) -> Self {
        Self { mask, phases: vec![0; n_heads] }
    }

    /// The same again.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self { mask: self.mask, phases: try_collect(self.phases.iter().copied())? })
    }

    /// The kind's name in files and plans.
    pub fn kind(&self) -> &'static str {
        match self.mask {
            Mask::Full => "full",
            Mask::Window { .. } => "window",
            Mask::Blocks { .. } => "blocks",
        }
    }

    /// Checks every number against its range.
    ///
    /// # Errors
    /// `Invalid`, naming the number.
    pub fn check(&self, n_heads: usize) -> Result<()> {
        let at_most = |name: &str, value: u32, max: u32| match value <= max {
            true => Ok(()),
            false => Err(Error::invalid(format!("{name} {value} is above {max}"))),
        };
        let at_least_one = |name: &str, value: u32| match value {
            0 => Err(Error::invalid(format!("{name} 0: a token sees at least itself"))),
            _ => Ok(()),
        };
        if self.phases.len() != n_heads {
            return Err(Error::invalid(format!("{} phases for {n_heads} query heads", self.phases.len())));
        }
        match self.mask {
            Mask::Full => {}
            Mask::Window { window_tokens, sink_tokens } => {
                at_least_one("window_tokens", window_tokens)?;
                at_most("window_tokens", window_tokens, MAX_CTX)?;
                at_most("sink_tokens", sink_tokens, MAX_CTX)?;
            }
            Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
                if ![16, 32, 64, 128, 256].contains(&block_size) {
                    return Err(Error::invalid(format!(
                        "block_size {block_size} is none of 16, 32, 64, 128, 256"
                    )));
                }
                at_least_one("local_blocks", local_blocks)?;
                at_most("local_blocks", local_blocks, MAX_BLOCKS)?;
                at_most("sink_blocks", sink_blocks, MAX_BLOCKS)?;
                at_most("stride", stride, MAX_BLOCKS)?;
                for &phase in &self.phases {
                    at_most("phase", phase, MAX_BLOCKS)?;
                }
            }
        }
        Ok(())
    }
}

/// Layers that see everything in the LongGen recipe: the middle third, with `n_layers / 3` sparse ones at each end.
pub fn middle_third(n_layers: usize) -> std::ops::Range<usize> {
    let sparse = n_layers / 3;
    sparse..n_layers - sparse
}

/// LongGen's attention-sink kind: the first block of 64 tokens and the 32 most recent ones.
pub const LONGGEN_SINK: Mask = Mask::Blocks { block_size: 64, local_blocks: 32, sink_blocks: 1, stride: 0 };

/// LongGen's block-sparse kind: the 16 most recent blocks and one in 64 of the others.
pub const LONGGEN_BLOCKS: Mask =
    Mask::Blocks { block_size: 64, local_blocks: 16, sink_blocks: 0, stride: 64 };

/// Phases that spread the strided blocks evenly over the KV heads: `floor(g * stride / n_kv_heads)` for KV head g,
/// the same for all query heads of its group.
pub fn spread_phases(stride: u32, n_heads: usize, n_kv_heads: usize) -> Vec<u32> {
    let group = n_heads / n_kv_heads.max(1);
    (0..n_heads)
        .map(|head| {
            let phase = (head / group.max(1)) as u64 * u64::from(stride) / n_kv_heads.max(1) as u64;
            u32::try_from(phase).unwrap_or(u32::MAX)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_third_is_where_the_recipe_puts_it() {
        assert_eq!(middle_third(30), 10..20);
        assert_eq!(middle_third(32), 10..22);
        assert_eq!(middle_third(80), 26..54);
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let blocks = |block_size, local_blocks, stride| {
            let mask = Mask::Blocks { block_size, local_blocks, sink_blocks: 0, stride };
            LayerAttention::uniform(mask, 2).check(2).map_err(|error| error.to_string())
        };
        assert_eq!(blocks(64, 1, 8), Ok(()));
        assert!(blocks(48, 1, 8).unwrap_err().contains("block_size 48"));
        assert!(blocks(64, 0, 8).unwrap_err().contains("local_blocks"));
        assert!(blocks(64, 1, u32::MAX).unwrap_err().contains("stride"));
        let window = Mask::Window { window_tokens: 0, sink_tokens: 0 };
        assert!(LayerAttention::uniform(window, 2).check(2).is_err());
        assert!(LayerAttention::uniform(Mask::Full, 2).check(3).is_err());
    }
}
