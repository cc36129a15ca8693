//! What each layer may look at: the kinds of attention, their masks, and the algebra of partial results.

pub mod mask;
pub mod merge;
pub mod plan;
