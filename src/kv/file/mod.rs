//! Sessions in files: what `format/session.md` says byte by byte.

mod blocks;
mod header;
mod stream;

pub use header::{Held, Identity};
pub use stream::{Reader, Told, Writer};

use crate::attention::plan::LayerAttention;

/// The blocks of a KV head that a file has, rising: those from `first_block` on, and before it those that the head sees for
/// ever.
fn blocks_of(
    attention: &LayerAttention,
    n_kv_heads: usize,
    head: usize,
    first_block: u32,
    n_tokens: u32,
) -> impl Iterator<Item = u32> {
    let LayerAttention { mask, phases } = attention;
    let group = phases.len() / n_kv_heads;
    let phases = &phases[head * group..(head + 1) * group];
    let is_kept = move |block| phases.iter().any(|&phase| mask.keeps(block, phase));
    (0..n_tokens.div_ceil(mask.block_size())).filter(move |&block| block >= first_block || is_kept(block))
}
