//! Restore points: what the rings of a cache held at some position, in the host's memory.
//!
//! A ring gives up what its layer no longer sees, so a sequence cannot go back further than its rings reach. A restore
//! point has the blocks of all rings at one position; nothing else in the cache is ever overwritten by what comes behind
//! it, so nothing else needs a copy. With the point of position n, all positions can be restored that see none but its
//! blocks: n, and about a block before it. A block that is full never changes again, and the points that hold it share it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::alloc::{HostBuf, Meter, try_collect_ok};
use crate::error::Result;

/// Of three points within so many tokens, the middle one goes.
const MIN_SPACING: u32 = 128;

/// The blocks of a layer's rings, those of all heads together, as they were at one position.
pub(super) struct HeldRing {
    pub first_block: u32,
    pub blocks: Vec<Arc<HostBuf>>,
}

/// The rings of all layers that have any, in the layers' order, as they were at one position.
pub(super) struct RestorePoint {
    /// Tokens that the cache held.
    pub n_tokens: u32,
    /// See [`KvCache`](super::cache::KvCache).
    pub written: u32,
    /// Lowest position that can be restored from it.
    pub oldest: u32,
    pub rings: Vec<HeldRing>,
}

/// Which blocks of a layer's rings a point is to hold.
pub(super) struct RingBlocks {
    pub first_block: u32,
    pub last_block: u32,
    pub block_size: u32,
    /// Bytes of a block, those of all heads together.
    pub n_bytes: usize,
}

/// The restore points of one cache.
pub(super) struct RestorePoints {
    /// In the order of their positions.
    points: VecDeque<RestorePoint>,
    max_bytes: usize,
    held: Meter,
}

impl RestorePoints {
    /// None yet, and never more than `max_bytes` of them.
    pub fn new(max_bytes: usize) -> Self {
        Self { points: VecDeque::new(), max_bytes, held: Meter::default() }
    }

    /// Bytes that the points hold.
    pub fn n_bytes(&self) -> usize {
        self.held.n_bytes()
    }

    /// Positions of the points, rising.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        self.points.iter().map(|point| point.n_tokens)
    }

    /// The highest position, at most `n_tokens`, that a point can restore.
    pub fn nearest(&self, n_tokens: u32) -> Option<u32> {
        let point = self.points.iter().rev().find(|point| point.oldest <= n_tokens)?;
        Some(point.n_tokens.min(n_tokens))
    }

    /// The point that restores a position.
    pub fn point_for(&self, n_tokens: u32) -> Option<&RestorePoint> {
        self.points.iter().find(|point| (point.oldest..=point.n_tokens).contains(&n_tokens))
    }

    /// Whether there is a point of this very position.
    pub fn has(&self, n_tokens: u32) -> bool {
        self.positions().any(|position| position == n_tokens)
    }

    /// Forgets the points of positions behind `n_tokens`: other tokens may come there.
    pub fn truncate(&mut self, n_tokens: u32) {
        self.points.retain(|point| point.n_tokens <= n_tokens);
    }

    /// Adds a point, which lies behind all others and is to hold these blocks of each layer with rings. `read` gets the
    /// number of such a layer among them, a block, and where its bytes go. Older points make room; if that does not help,
    /// there is no new point.
    ///
    /// # Errors
    /// Those of `read`; `OutOfMemory`. The points are as they were then, but for those that made room.
    pub fn add(
        &mut self,
        mut point: RestorePoint,
        layers: &[RingBlocks],
        mut read: impl FnMut(usize, u32, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.drop_what_is_close(&point);
        while self.held.n_bytes() + self.missing_bytes(layers) > self.max_bytes {
            if !self.drop_one(point.n_tokens) {
                return Ok(());
            }
        }
        let ring = |(i, layer): (usize, &RingBlocks)| {
            let block = |block| match self.full_block(i, layer, block) {
                Some(shared) => Ok(shared.clone()),
                None => {
                    let mut buf = HostBuf::new(layer.n_bytes, &self.held)?;
                    read(i, block, buf.bytes_mut())?;
                    Ok(Arc::new(buf))
                }
            };
            let blocks = try_collect_ok((layer.first_block..=layer.last_block).map(block))?;
            Ok(HeldRing { first_block: layer.first_block, blocks })
        };
        point.rings = try_collect_ok(layers.iter().enumerate().map(ring))?;
        self.points.push_back(point);
        Ok(())
    }

    /// The block as the newest point has it, if no more tokens can come into it.
    fn full_block(&self, layer: usize, of: &RingBlocks, block: u32) -> Option<&Arc<HostBuf>> {
        let point = self.points.back()?;
        if (block + 1) * of.block_size > point.n_tokens {
            return None;
        }
        let HeldRing { first_block, blocks } = &point.rings[layer];
        blocks.get(block.checked_sub(*first_block)? as usize)
    }

    /// Bytes that a point of these blocks takes beside those of the newest one.
    fn missing_bytes(&self, layers: &[RingBlocks]) -> usize {
        let of_layer = |(i, layer): (usize, &RingBlocks)| {
            let missing =
                (layer.first_block..=layer.last_block).filter(|&b| self.full_block(i, layer, b).is_none());
            missing.count() * layer.n_bytes
        };
        layers.iter().enumerate().map(of_layer).sum()
    }

    /// Drops the newest points if the coming one makes them needless.
    fn drop_what_is_close(&mut self, coming: &RestorePoint) {
        while self.points.back().is_some_and(|newest| coming.oldest <= newest.oldest) {
            self.points.pop_back();
        }
        let n = self.points.len();
        if n >= 2 && coming.n_tokens - self.points[n - 2].n_tokens <= MIN_SPACING {
            self.points.pop_back();
        }
    }

    /// Drops the point that is missed least: the further back, the more tokens may be computed again. The newest stays if
    /// there are others, since the next one shares its blocks. Returns whether there was any.
    fn drop_one(&mut self, n_tokens: u32) -> bool {
        let position =
            |i: Option<usize>| i.and_then(|i| self.points.get(i)).map_or(0, |point| point.n_tokens);
        let cost = |&i: &usize| {
            let gap = position(Some(i + 1)) - position(i.checked_sub(1));
            f64::from(gap) / f64::from(n_tokens - position(Some(i)) + 1)
        };
        let others = 0..self.points.len().saturating_sub(1);
        let least = others.min_by(|a, b| cost(a).total_cmp(&cost(b)));
        self.points.remove(least.unwrap_or(0)).is_some()
    }
}
