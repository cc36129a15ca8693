//! Restore points: what the rings of a cache held at some position, in the host's memory.
//!
//! A ring gives up what its layer no longer sees, so a sequence cannot go back further than its rings reach. A restore
//! point has the blocks of all rings at one position; nothing else in the cache is ever overwritten by what comes behind
//! it, so nothing else needs a copy. With the point of position n, all positions can be restored that see none but its
//! blocks: n, and about a block before it. A block that is full never changes again, and the points that hold it share it: those of a cache, and those of its forks.

use std::sync::Arc;

use crate::alloc::{try_collect, try_collect_ok, try_reserve};
use crate::error::Result;

/// Of the newest three points within so many tokens, the middle one goes.
const MIN_SPACING: u32 = 128;

/// Why there is a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A prompt begins or ends: a conversation may well go on differently from here.
    Turn,
    /// Many tokens have passed since the last one.
    Distance,
}

/// Which blocks of a layer's rings a point holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingBlocks {
    pub first_block: u32,
    pub last_block: u32,
    pub block_size: u32,
    /// Bytes of a block, those of all heads together.
    pub n_bytes: usize,
}

impl RingBlocks {
    fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        self.first_block..=self.last_block
    }
}

/// The blocks of a layer's rings, as they were at one position; an `H` has a block, of all heads together.
pub(super) struct HeldRing<H> {
    pub first_block: u32,
    block_size: u32,
    /// Most bytes of a block.
    n_bytes: usize,
    pub blocks: Vec<Arc<H>>,
}

impl<H> HeldRing<H> {
    fn block(&self, number: u32) -> Option<&Arc<H>> {
        self.blocks.get(number.checked_sub(self.first_block)? as usize)
    }

    /// Forgets the blocks behind the first `n_tokens` tokens.
    fn truncate(&mut self, n_tokens: u32) {
        let n_blocks = n_tokens.div_ceil(self.block_size).saturating_sub(self.first_block);
        self.blocks.truncate(n_blocks as usize);
    }

    /// Forgets the blocks before `first_block`.
    fn forget_before(&mut self, first_block: u32) {
        let n_blocks = first_block.saturating_sub(self.first_block) as usize;
        self.blocks.drain(..n_blocks.min(self.blocks.len()));
        self.first_block = self.first_block.max(first_block);
    }
}

/// The rings of all layers that have any, in the layers' order, as they were at one position.
pub(super) struct RestorePoint<H> {
    /// Tokens that the cache held.
    pub n_tokens: u32,
    /// See [`KvCache`](super::cache::KvCache).
    pub written: u32,
    /// Lowest position that can be restored from it.
    pub oldest: u32,
    pub occasion: Occasion,
    pub rings: Vec<HeldRing<H>>,
}

impl<H> RestorePoint<H> {
    /// The block, if the point has it and no more tokens can come into it.
    fn full_block(&self, ring: usize, block: u32) -> Option<&Arc<H>> {
        let ring = &self.rings[ring];
        ring.block(block).filter(|_| (block + 1) * ring.block_size <= self.n_tokens)
    }

    /// The same for another cache.
    fn try_clone(&self) -> Result<Self> {
        let ring = |ring: &HeldRing<H>| {
            let HeldRing { first_block, block_size, n_bytes, ref blocks } = *ring;
            let blocks = try_collect(blocks.iter().cloned())?;
            Ok(HeldRing { first_block, block_size, n_bytes, blocks })
        };
        let Self { n_tokens, written, oldest, occasion, ref rings } = *self;
        Ok(Self { n_tokens, written, oldest, occasion, rings: try_collect_ok(rings.iter().map(ring))? })
    }

    /// Bytes of the blocks that it does not share with the point before it.
    fn bytes_behind(&self, before: Option<&Self>) -> usize {
        let of_ring = |(i, ring): (usize, &HeldRing<H>)| -> usize {
            let is_shared = |number: u32, block: &Arc<H>| {
                let before = before.and_then(|before| before.rings[i].block(number));
                before.is_some_and(|before| Arc::ptr_eq(before, block))
            };
            let numbered = (ring.first_block..).zip(&ring.blocks);
            numbered.filter(|&(number, block)| !is_shared(number, block)).count() * ring.n_bytes
        };
        self.rings.iter().enumerate().map(of_ring).sum()
    }

    /// Makes it a point of fewer tokens.
    fn truncate(&mut self, n_tokens: u32) {
        self.n_tokens = n_tokens;
        self.rings.iter_mut().for_each(|ring| ring.truncate(n_tokens));
    }
}

/// Bytes of the blocks of points that follow each other: a block that several hold is shared by neighbours.
fn bytes_of<'a, H: 'a>(points: impl Iterator<Item = &'a RestorePoint<H>>) -> usize {
    let mut before = None;
    points.map(|point| point.bytes_behind(before.replace(point))).sum()
}

/// The restore points of one cache.
pub(super) struct RestorePoints<H> {
    /// In the order of their positions.
    points: Vec<RestorePoint<H>>,
    max_bytes: usize,
}

impl<H> RestorePoints<H> {
    /// None yet, and never more than `max_bytes` of blocks.
    pub fn new(max_bytes: usize) -> Self {
        Self { points: Vec::new(), max_bytes }
    }

    /// The same points for a cache of as many tokens that goes on by itself, or as many of them as there is room for.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_clone(&self, n_tokens: u32, max_bytes: usize) -> Result<Self> {
        let points = try_collect_ok(self.points.iter().map(RestorePoint::try_clone))?;
        let mut points = Self { points, max_bytes };
        while points.n_bytes() > max_bytes && points.drop_one(n_tokens, false) {}
        Ok(points)
    }

    /// Bytes of the blocks that the points hold, those among them that points of other caches hold, too.
    pub fn n_bytes(&self) -> usize {
        bytes_of(self.points.iter())
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
    pub fn point_for(&self, n_tokens: u32) -> Option<&RestorePoint<H>> {
        self.points.iter().find(|point| (point.oldest..=point.n_tokens).contains(&n_tokens))
    }

    /// Gives the point of this very position another occasion; returns whether there is one.
    pub fn renew(&mut self, n_tokens: u32, occasion: Occasion) -> bool {
        let point = self.points.iter_mut().find(|point| point.n_tokens == n_tokens);
        point.map(|point| point.occasion = occasion).is_some()
    }

    /// Forgets what lies behind `n_tokens`, where other tokens may come: a point that can restore this position becomes one
    /// of it.
    pub fn truncate(&mut self, n_tokens: u32) {
        let n_before = self.points.partition_point(|point| point.n_tokens <= n_tokens);
        self.points.truncate(n_before + 1);
        let Some(behind) = self.points.get_mut(n_before) else { return };
        let is_of_use = n_tokens > 0 && behind.oldest <= n_tokens;
        behind.truncate(n_tokens);
        if !is_of_use || self.positions().take(n_before).any(|position| position == n_tokens) {
            self.points.truncate(n_before);
        }
    }

    /// Adds a point, which lies behind all others and is to hold these blocks of each layer with rings. `hold` copies one: it
    /// gets the number of such a layer among them, and a block. Older points make room; if they could
    /// not make enough, nothing happens.
    ///
    /// # Errors
    /// Those of `hold`; `OutOfMemory`. There is no new point then, and those that made room for it are gone.
    pub fn add(
        &mut self,
        mut point: RestorePoint<H>,
        layers: &[RingBlocks],
        mut hold: impl FnMut(usize, u32) -> Result<H>,
    ) -> Result<()> {
        let n_bytes: usize = layers.iter().map(|layer| layer.numbers().count() * layer.n_bytes).sum();
        if n_bytes > self.max_bytes {
            return Ok(());
        }
        try_reserve(&mut self.points, 1)?;
        let needless = self.take_needless(&point, layers);
        let mut missing = self.missing_bytes(needless.as_ref(), layers);
        while bytes_of(self.points.iter().chain(&needless)) + missing > self.max_bytes
            && self.drop_one(point.n_tokens, needless.is_none() && missing < n_bytes)
        {
            missing = self.missing_bytes(needless.as_ref(), layers);
        }
        let ring = |(i, layer): (usize, &RingBlocks)| {
            let block = |block| match self.shared(needless.as_ref(), i, block) {
                Some(shared) => Ok(shared.clone()),
                None => Ok(Arc::new(hold(i, block)?)),
            };
            let blocks = try_collect_ok(layer.numbers().map(block))?;
            let RingBlocks { first_block, block_size, n_bytes, .. } = *layer;
            Ok(HeldRing { first_block, block_size, n_bytes, blocks })
        };
        point.rings = try_collect_ok(layers.iter().enumerate().map(ring))?;
        self.points.push(point);
        Ok(())
    }

    /// The block, as the newest point has it; one that is going is newer.
    fn shared<'a>(
        &'a self,
        going: Option<&'a RestorePoint<H>>,
        ring: usize,
        block: u32,
    ) -> Option<&'a Arc<H>> {
        going.or(self.points.last())?.full_block(ring, block)
    }

    /// Bytes of the blocks that are not there yet.
    fn missing_bytes(&self, going: Option<&RestorePoint<H>>, layers: &[RingBlocks]) -> usize {
        let of_layer = |(i, layer): (usize, &RingBlocks)| {
            layer.numbers().filter(|&block| self.shared(going, i, block).is_none()).count() * layer.n_bytes
        };
        layers.iter().enumerate().map(of_layer).sum()
    }

    /// Takes away the newest points if the coming one makes them needless; returns the newest of them with those of its
    /// blocks that the coming one shares.
    fn take_needless(&mut self, coming: &RestorePoint<H>, layers: &[RingBlocks]) -> Option<RestorePoint<H>> {
        let mut newest = None;
        while self.points.last().is_some_and(|last| coming.oldest <= last.oldest) {
            newest = newest.or(self.points.pop());
        }
        if let [.., before, _] = &self.points[..]
            && coming.n_tokens - before.n_tokens <= MIN_SPACING
        {
            newest = newest.or(self.points.pop());
        }
        let mut newest = newest?;
        for (ring, layer) in newest.rings.iter_mut().zip(layers) {
            let n_full = newest.n_tokens / ring.block_size;
            ring.truncate(n_full * ring.block_size);
            ring.forget_before(layer.first_block);
        }
        Some(newest)
    }

    /// Drops the point that is missed least to make room for one of `coming` tokens: rather one that only many tokens gave
    /// occasion to, and the further back, the more tokens may be computed again. The newest is the last to go if the coming
    /// one `shares` its blocks. Returns whether there was any.
    fn drop_one(&mut self, coming: u32, shares: bool) -> bool {
        let position = |i: usize| self.points.get(i).map_or(coming, |point| point.n_tokens);
        let cost = |i: usize| {
            let before = i.checked_sub(1).map_or(0, position);
            f64::from(position(i + 1) - before) / f64::from(coming - position(i) + 1)
        };
        let is_turn = |i: usize| self.points[i].occasion == Occasion::Turn;
        let n = self.points.len();
        let may_go = 0..if shares && n > 1 { n - 1 } else { n };
        let least = may_go.min_by(|&a, &b| is_turn(a).cmp(&is_turn(b)).then(cost(a).total_cmp(&cost(b))));
        least.map(|least| self.points.remove(least)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const BLOCK_SIZE: u32 = 16;
    const BLOCK_BYTES: usize = 100;

    /// Points of one layer whose ring has this many blocks.
    struct Rig {
        points: RestorePoints<u32>,
        ring: u32,
        n_read: usize,
    }

    impl Rig {
        fn new(ring: u32, max_blocks: usize) -> Self {
            Self { points: RestorePoints::new(max_blocks * BLOCK_BYTES), ring, n_read: 0 }
        }

        fn coming(&self, n_tokens: u32, occasion: Occasion) -> (RestorePoint<u32>, RingBlocks) {
            let last_block = (n_tokens - 1) / BLOCK_SIZE;
            let first_block = (last_block + 1).saturating_sub(self.ring);
            let oldest = if first_block == 0 { 0 } else { (first_block + self.ring - 2) * BLOCK_SIZE };
            let layer = RingBlocks { first_block, last_block, block_size: BLOCK_SIZE, n_bytes: BLOCK_BYTES };
            (RestorePoint { n_tokens, written: n_tokens, oldest, occasion, rings: Vec::new() }, layer)
        }

        /// Adds a point; returns how many blocks were read for it.
        fn add(&mut self, n_tokens: u32, occasion: Occasion) -> usize {
            let (point, layer) = self.coming(n_tokens, occasion);
            let n_read = self.n_read;
            self.points
                .add(point, &[layer], |_, block| {
                    self.n_read += 1;
                    Ok(block)
                })
                .unwrap();
            assert!(self.points.n_bytes() <= self.points.max_bytes);
            self.n_read - n_read
        }

        fn positions(&self) -> Vec<u32> {
            self.points.positions().collect()
        }
    }

    #[test]
    fn full_blocks_are_read_once() {
        let mut rig = Rig::new(33, 1000);
        assert_eq!(rig.add(1000, Occasion::Turn), 33);
        for n_tokens in 1001..1200 {
            // Those that are not full, and the one that has become it.
            let expected = if n_tokens % BLOCK_SIZE == 1 { 2 } else { 1 };
            assert!(rig.add(n_tokens, Occasion::Turn) <= expected, "{n_tokens}: {:?}", rig.positions());
        }
        assert!(rig.positions().len() < 6, "{:?}", rig.positions());
        assert_eq!(rig.add(5000, Occasion::Turn), 33);
        assert_eq!(rig.add(5030, Occasion::Turn), 3);
        assert_eq!(rig.add(5060, Occasion::Turn), 3);
    }

    #[test]
    fn a_point_that_never_fits_costs_no_other() {
        let mut rig = Rig::new(21, 20);
        rig.add(200, Occasion::Turn);
        assert_eq!((rig.add(1000, Occasion::Turn), rig.positions()), (0, vec![200]));
        let mut rig = Rig::new(21, 21);
        rig.add(200, Occasion::Turn);
        assert_eq!((rig.add(1000, Occasion::Turn), rig.positions()), (21, vec![1000]));
    }

    #[test]
    fn turns_outlast_what_only_many_tokens_gave_occasion_to() {
        let mut rig = Rig::new(10, 50);
        for (i, n_tokens) in (1000..9000).step_by(500).enumerate() {
            rig.add(n_tokens, if i % 4 == 1 { Occasion::Turn } else { Occasion::Distance });
        }
        assert_eq!(rig.positions(), [1500, 3500, 5500, 7500, 8500]);
        // The further back, the wider apart.
        let mut rig = Rig::new(10, 80);
        (500..20_000).step_by(500).for_each(|n_tokens| _ = rig.add(n_tokens, Occasion::Turn));
        let positions = rig.positions();
        let gaps: Vec<u32> = positions.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(positions.len() == 8 && gaps.first() > gaps.last(), "{positions:?}");
    }

    #[test]
    fn a_point_outlasts_others_or_not_as_its_last_occasion_says() {
        for (occasion, expected) in [(Occasion::Turn, 1000), (Occasion::Distance, 2000)] {
            let mut rig = Rig::new(10, 30);
            (1000..=3000).step_by(1000).for_each(|n_tokens| _ = rig.add(n_tokens, Occasion::Distance));
            assert!(rig.points.renew(3000, Occasion::Turn) && !rig.points.renew(3001, Occasion::Turn));
            assert!(rig.points.renew(1000, occasion));
            rig.add(4000, Occasion::Turn);
            assert_eq!(rig.positions(), [expected, 3000, 4000]);
        }
    }

    #[test]
    fn going_back_leaves_a_point_of_where_one_has_gone_to() {
        for (n_tokens, expected) in
            [(1000, vec![1000]), (999, vec![999]), (970, vec![]), (1400, vec![1000]), (0, vec![])]
        {
            let mut rig = Rig::new(4, 100);
            rig.add(1000, Occasion::Turn);
            rig.add(1500, Occasion::Turn);
            rig.points.truncate(n_tokens);
            assert_eq!(rig.positions(), expected, "{n_tokens}");
            assert!(expected.iter().all(|&n| rig.points.point_for(n).unwrap().n_tokens == n));
        }
        // What is behind has gone, so it is not shared either.
        let mut rig = Rig::new(4, 100);
        rig.add(1000, Occasion::Turn);
        rig.points.truncate(991);
        assert_eq!(rig.add(1020, Occasion::Turn), 3);
    }

    #[test]
    fn every_position_that_is_nearest_can_be_restored() {
        let mut rig = Rig::new(5, 30);
        (100..4000).step_by(130).for_each(|n_tokens| _ = rig.add(n_tokens, Occasion::Turn));
        for n_tokens in 0..4000 {
            let Some(nearest) = rig.points.nearest(n_tokens) else { continue };
            assert!(nearest <= n_tokens && rig.points.point_for(nearest).is_some(), "{n_tokens}: {nearest}");
        }
    }

    #[test]
    fn a_block_that_cannot_be_read_leaves_no_point() {
        let mut rig = Rig::new(5, 100);
        rig.add(1000, Occasion::Turn);
        let (point, layer) = rig.coming(2000, Occasion::Turn);
        let failed = |_: usize, block| match block {
            124 => Err(Error::new(ErrorKind::Device, "gone")),
            _ => Ok(block),
        };
        assert_eq!(rig.points.add(point, &[layer], failed).unwrap_err().kind(), ErrorKind::Device);
        assert_eq!((rig.positions(), rig.points.n_bytes()), (vec![1000], 5 * BLOCK_BYTES));
    }
}
