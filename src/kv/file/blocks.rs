//! The blocks of a cache on their way to a file and back.

use std::ops::Range;

use super::stream::{Reader, Writer};
use super::{Held, Identity, blocks_of};
use crate::alloc::{HostBuf, Meter, try_collect};
use crate::backend::Backend;
use crate::backend::args::KvShape;
use crate::error::Result;
use crate::kv::cache::{KvCache, LayerCache};

/// Blocks are moved in parts of so many bytes, or one by one if a block is larger.
const PART_BYTES: usize = 4 << 20;

/// Memory for what is moved together.
struct Part {
    blocks: HostBuf,
    /// Keys of one block.
    keys: HostBuf,
}

impl Part {
    fn new(identity: &Identity<'_>, held: &Held) -> Result<Self> {
        let shapes = (0..identity.attention.len()).map(|layer| identity.shape(layer));
        let n_bytes = shapes.clone().map(|shape| {
            let n_blocks = (held.n_tokens as usize).div_ceil(shape.block_size);
            n_blocks.min(blocks_of_part(&shape)) * shape.block_bytes()
        });
        let host = Meter::default();
        Ok(Self {
            blocks: HostBuf::new(n_bytes.max().unwrap_or(0), &host)?,
            keys: HostBuf::new(shapes.map(|shape| key_bytes(&shape)).max().unwrap_or(0), &host)?,
        })
    }

    /// Goes through the blocks that a file has of a layer, head by head: calls `move_part` with the head, the numbers of
    /// the blocks that are moved together, and memory for them and for the keys of one.
    fn each(
        &mut self,
        identity: &Identity<'_>,
        held: &Held,
        layer: usize,
        mut move_part: impl FnMut(usize, &[u32], &mut [u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (shape, attention) = (identity.shape(layer), &identity.attention[layer]);
        for head in 0..shape.n_kv_heads {
            let first_block = held.first_blocks[layer];
            let numbers =
                try_collect(blocks_of(attention, shape.n_kv_heads, head, first_block, held.n_tokens))?;
            for numbers in numbers.chunks(blocks_of_part(&shape)) {
                let blocks = &mut self.blocks.bytes_mut()[..numbers.len() * shape.block_bytes()];
                move_part(head, numbers, blocks, self.keys.bytes_mut())?;
            }
        }
        Ok(())
    }
}

fn blocks_of_part(shape: &KvShape) -> usize {
    (PART_BYTES / shape.block_bytes()).max(1)
}

/// Bytes of the keys of a block, without their scales.
fn key_bytes(shape: &KvShape) -> usize {
    shape.block_size * shape.head_dim * shape.ty.elem_bytes()
}

/// Turns the keys of a block from rows of `from_width` elements into columns.
fn transpose_keys(shape: &KvShape, from_width: usize, block: &mut [u8], copy: &mut [u8]) {
    fn transpose<const N: usize>(to: &mut [u8], from: &[u8], width: usize) {
        let (to, from) = (to.as_chunks_mut::<N>().0, from.as_chunks::<N>().0);
        let height = from.len() / width;
        for (y, row) in from.chunks_exact(width).enumerate() {
            for (x, elem) in row.iter().enumerate() {
                to[x * height + y] = *elem;
            }
        }
    }
    let (keys, copy) = (&mut block[..key_bytes(shape)], &mut copy[..key_bytes(shape)]);
    copy.copy_from_slice(keys);
    match shape.ty.elem_bytes() {
        1 => transpose::<1>(keys, copy, from_width),
        2 => transpose::<2>(keys, copy, from_width),
        _ => transpose::<4>(keys, copy, from_width),
    }
}

/// Clears what lies behind the first `n_tokens` tokens of a block of rows.
fn clear_behind(shape: &KvShape, n_tokens: usize, mut block: &mut [u8]) {
    let (row, scale) = (shape.head_dim * shape.ty.elem_bytes(), shape.ty.scale_bytes());
    for token_bytes in [row, row, scale, scale] {
        let (part, behind) = block.split_at_mut(shape.block_size * token_bytes);
        part[n_tokens * token_bytes..].fill(0);
        block = behind;
    }
}

impl<B: Backend> LayerCache<B> {
    /// Places among `blocks` of those that follow each other in a buffer of the layer, too; that buffer, and where the first
    /// of them lies there.
    fn runs<'a>(
        &self,
        head: usize,
        blocks: &'a [u32],
    ) -> impl Iterator<Item = (Range<usize>, &B::Buf, usize)> + use<'a, '_, B> {
        let n_bytes = self.layout.shape.block_bytes();
        let head = u32::try_from(head).unwrap_or(u32::MAX);
        let mut begin = 0;
        blocks.chunk_by(move |&a, &b| self.adjoin(head, a, b)).map(move |run| {
            begin += run.len();
            let home = self.home(run[0]);
            (begin - run.len()..begin, &home.buf, home.map.slot(head, run[0]) as usize * n_bytes)
        })
    }
}

impl<B: Backend> KvCache<B> {
    /// What a file of the cache has.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn held(&self) -> Result<Held> {
        let first_blocks = try_collect(self.layers.iter().map(|layer| layer.oldest_block(self.written)))?;
        Ok(Held { n_tokens: self.n_tokens, first_blocks })
    }

    /// Writes the blocks that are held, layer by layer.
    ///
    /// # Errors
    /// Those of the file and of the device; `OutOfMemory`.
    pub fn save(
        &self,
        backend: &B,
        identity: &Identity<'_>,
        held: &Held,
        file: &mut Writer<'_>,
    ) -> Result<()> {
        let mut part = Part::new(identity, held)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let shape = layer.layout.shape;
            let block_bytes = shape.block_bytes();
            part.each(identity, held, i, |head, numbers, bytes, keys| {
                for (run, buf, at) in layer.runs(head, numbers) {
                    let run = run.start * block_bytes..run.end * block_bytes;
                    backend.download(&mut bytes[run], buf, at)?;
                }
                for (&number, block) in numbers.iter().zip(bytes.chunks_exact_mut(block_bytes)) {
                    if backend.has_keys_by_dimension() {
                        transpose_keys(&shape, shape.block_size, block, keys);
                    }
                    let n_tokens = held.n_tokens as usize - number as usize * shape.block_size;
                    clear_behind(&shape, n_tokens.min(shape.block_size), block);
                }
                file.write(bytes)
            })?;
            file.write_hash()?;
        }
        Ok(())
    }

    /// Reads what [`save`](Self::save) has written into an empty cache, which shares nothing.
    ///
    /// # Errors
    /// Those of the file and of the device; `Format` for a damaged file; `OutOfMemory`. The cache is of no use then.
    pub fn load(
        &mut self,
        backend: &B,
        identity: &Identity<'_>,
        held: &Held,
        file: &mut Reader<'_>,
    ) -> Result<()> {
        let mut part = Part::new(identity, held)?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let shape = layer.layout.shape;
            let block_bytes = shape.block_bytes();
            part.each(identity, held, i, |head, numbers, bytes, keys| {
                file.read(bytes)?;
                if backend.has_keys_by_dimension() {
                    for block in bytes.chunks_exact_mut(block_bytes) {
                        transpose_keys(&shape, shape.head_dim, block, keys);
                    }
                }
                // Where this cache has a ring and the other had none, later blocks take the slots of earlier ones here, too.
                let runs: Vec<_> = try_collect(layer.runs(head, numbers).map(|(run, _, at)| (run, at)))?;
                for (run, at) in runs {
                    let run = run.start * block_bytes..run.end * block_bytes;
                    backend.upload(&mut layer.own.buf, at, &bytes[run])?;
                }
                Ok(())
            })?;
            file.check_hash(format_args!("layer {i}"))?;
            layer.first_held = held.first_blocks[i];
        }
        self.n_tokens = held.n_tokens;
        self.written = held.n_tokens;
        Ok(())
    }
}
