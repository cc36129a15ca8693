//! What a session file says before its cache blocks, and whether that is what a session can take.

use std::fmt::Display;

use super::blocks_of;
use super::stream::{HASH_BYTES, Reader, Writer};
use crate::alloc::{try_collect, try_vec, try_with_capacity};
use crate::attention::mask::Mask;
use crate::attention::plan::LayerAttention;
use crate::backend::args::{KvShape, KvType};
use crate::error::{Error, ErrorKind, Result};

/// How a session file begins.
const MAGIC: [u8; 8] = *b"LGSESS\r\n";
/// Of the format.
const VERSION: u32 = 1;
/// Bytes before the layers.
const BEGIN_BYTES: usize = 52;
/// What is counted before the layers.
const COUNTS: [&str; 4] = ["layers", "query heads", "kv heads", "elements of a head"];
/// 32-bit words of a layer besides its phases.
const LAYER_WORDS: usize = 6;
/// The cache types, by their numbers in a file.
const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8];

/// What computes a session; a file is read only by what would have written it.
pub struct Identity<'a> {
    /// Tells the model's file from others.
    pub fingerprint: u128,
    /// Element type of the cache.
    pub kv_type: KvType,
    /// Query heads of each layer.
    pub n_heads: usize,
    /// KV heads of each layer.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What each layer may look at.
    pub attention: &'a [LayerAttention],
}

/// Which tokens and blocks a cache has.
pub struct Held {
    /// Tokens.
    pub n_tokens: u32,
    /// Of each layer the block from which on all blocks are there.
    pub first_blocks: Vec<u32>,
}

/// A mask as a file has it.
fn mask_words(mask: &Mask) -> [u32; 5] {
    match *mask {
        Mask::Full => [0; 5],
        Mask::Window { window_tokens, sink_tokens } => [1, window_tokens, sink_tokens, 0, 0],
        Mask::Blocks { block_size, local_blocks, sink_blocks, stride } => {
            [2, block_size, local_blocks, sink_blocks, stride]
        }
    }
}

/// The same in words.
fn describe(mask: [u32; 5]) -> String {
    match mask {
        [0, ..] => "full".into(),
        [1, window, sinks, ..] => format!("window (window_tokens {window}, sink_tokens {sinks})"),
        [2, size, local, sinks, stride] => {
            format!("blocks (block_size {size}, local_blocks {local}, sink_blocks {sinks}, stride {stride})")
        }
        [kind, ..] => format!("kind {kind}, which is unknown"),
    }
}

/// Something is not the same in a file and in the session that is to take it.
fn differs(what: impl Display, file: impl Display, session: impl Display) -> Error {
    Error::invalid(format!("{what}: {file} in the file, {session} in the session"))
}

fn type_name(kv_type: u32) -> Result<String> {
    let unknown = || Error::unsupported(format!("a cache of type {kv_type}, which is unknown"));
    KV_TYPES.get(kv_type as usize).map(|ty| format!("{ty:?}").to_lowercase()).ok_or_else(unknown)
}

fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a file begins with.
struct Begin {
    kv_type: u32,
    fingerprint: u128,
    counts: [u32; COUNTS.len()],
    n_tokens: u32,
}

impl Begin {
    fn of(identity: &Identity<'_>, n_tokens: u32) -> Self {
        let Identity { fingerprint, kv_type, n_heads, n_kv_heads, head_dim, attention } = *identity;
        let kv_type = KV_TYPES.iter().position(|&ty| ty == kv_type).unwrap_or(KV_TYPES.len());
        let counts = [attention.len(), n_heads, n_kv_heads, head_dim].map(word);
        Self { kv_type: word(kv_type), fingerprint, counts, n_tokens }
    }

    /// Bytes of the whole header.
    fn header_bytes(&self) -> u64 {
        let [n_layers, n_heads, ..] = self.counts.map(u128::from);
        let words = n_layers * (LAYER_WORDS as u128 + n_heads) + u128::from(self.n_tokens);
        u64::try_from((BEGIN_BYTES + HASH_BYTES) as u128 + 4 * words).unwrap_or(u64::MAX)
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let Self { kv_type, fingerprint, counts, n_tokens } = self;
        bytes.extend(MAGIC);
        bytes.extend([VERSION, *kv_type].map(u32::to_le_bytes).as_flattened());
        bytes.extend(fingerprint.to_le_bytes());
        bytes.extend(counts.map(u32::to_le_bytes).as_flattened());
        bytes.extend(n_tokens.to_le_bytes());
    }

    fn read(file: &mut Reader<'_>) -> Result<Self> {
        let mut bytes = [0; BEGIN_BYTES];
        file.check_has(bytes.len() as u64, "the shortest session takes more than")?;
        file.read(&mut bytes)?;
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::format("this is not a session file"));
        }
        let words = bytes[MAGIC.len()..].as_chunks::<4>().0;
        let mut words = words.iter().map(|&word| u32::from_le_bytes(word));
        let mut next = || words.next().unwrap_or(0);
        let version = next();
        if version != VERSION {
            return Err(Error::unsupported(format!("version {version}, this runtime reads {VERSION}")));
        }
        Ok(Self {
            kv_type: next(),
            fingerprint: (0..4).fold(0, |all, i| all | u128::from(next()) << (32 * i)),
            counts: std::array::from_fn(|_| next()),
            n_tokens: next(),
        })
    }

    /// Refuses a file that begins otherwise than the session's own would.
    fn check_same(&self, own: &Self) -> Result<()> {
        let (file, this) = (self.fingerprint, own.fingerprint);
        if file != this {
            return Err(Error::invalid(format!(
                "a session of another model: fingerprint {file:032x}, this model has {this:032x}"
            )));
        }
        let (file, this) = (type_name(self.kv_type)?, type_name(own.kv_type)?);
        if file != this {
            return Err(differs("type of the cache", file, this));
        }
        for (what, (file, own)) in COUNTS.into_iter().zip(self.counts.into_iter().zip(own.counts)) {
            if file != own {
                return Err(differs(what, file, own));
            }
        }
        Ok(())
    }
}

impl Identity<'_> {
    /// Shape of a layer's blocks.
    pub(super) fn shape(&self, layer: usize) -> KvShape {
        let Self { kv_type: ty, n_kv_heads, head_dim, attention, .. } = *self;
        let block_size = attention[layer].mask.block_size() as usize;
        KvShape { n_kv_heads, head_dim, block_size, ty }
    }

    /// Bytes of a whole file.
    fn file_bytes(&self, held: &Held) -> u64 {
        let header = Begin::of(self, held.n_tokens).header_bytes();
        let of_layer = |(i, attention): (usize, &LayerAttention)| {
            let blocks = |head| {
                blocks_of(attention, self.n_kv_heads, head, held.first_blocks[i], held.n_tokens).count()
            };
            let n_blocks: usize = (0..self.n_kv_heads).map(blocks).sum();
            n_blocks as u64 * self.shape(i).block_bytes() as u64 + HASH_BYTES as u64
        };
        header + self.attention.iter().enumerate().map(of_layer).sum::<u64>()
    }

    /// Writes the header of a session that holds these tokens.
    ///
    /// # Errors
    /// Those of the file; `OutOfMemory`.
    pub fn write(&self, file: &mut Writer<'_>, held: &Held, tokens: &[u32]) -> Result<()> {
        file.expect(usize::try_from(self.file_bytes(held)).unwrap_or(usize::MAX));
        let begin = Begin::of(self, held.n_tokens);
        let mut bytes = try_with_capacity(usize::try_from(begin.header_bytes()).unwrap_or(usize::MAX))?;
        begin.write(&mut bytes);
        for (LayerAttention { mask, phases }, &first_block) in self.attention.iter().zip(&held.first_blocks) {
            let words = mask_words(mask).into_iter().chain([first_block]).chain(phases.iter().copied());
            bytes.extend(words.flat_map(u32::to_le_bytes));
        }
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        file.write(&bytes)?;
        file.write_hash()
    }

    /// Reads a header and checks that a session of this identity, and of this context and vocabulary, can take what follows;
    /// returns the tokens, too.
    ///
    /// # Errors
    /// Those of the file; `Format` for one that is damaged, `Unsupported` for one of another version, `Invalid` for one of
    /// another model, plan or cache type, `ContextFull` for too many tokens; `OutOfMemory`.
    pub fn read(&self, file: &mut Reader<'_>, n_ctx: u32, n_vocab: usize) -> Result<(Held, Vec<u32>)> {
        let begin = Begin::read(file)?;
        let n_bytes = begin.header_bytes();
        file.check_has(n_bytes, "the header takes")?;
        let n_left = usize::try_from(n_bytes).unwrap_or(usize::MAX) - BEGIN_BYTES - HASH_BYTES;
        let mut bytes = try_vec(n_left, 0u8)?;
        file.read(&mut bytes)?;
        file.check_hash("header")?;

        let n_tokens = begin.n_tokens;
        begin.check_same(&Begin::of(self, n_tokens))?;
        if n_tokens > n_ctx {
            return Err(Error::new(
                ErrorKind::ContextFull,
                format!("the session's {n_tokens} tokens do not fit in a context of {n_ctx}"),
            ));
        }
        let mut words = bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
        let first_blocks = self.read_layers(&mut words, n_tokens)?;
        let tokens = try_collect(words)?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= n_vocab) {
            return Err(Error::format(format!("token {token} of a vocabulary of {n_vocab}")));
        }
        let held = Held { n_tokens, first_blocks };
        let (has, needed) = (file.n_bytes(), self.file_bytes(&held));
        file.check_has(needed, "the session takes")?;
        match needed == has as u64 {
            true => Ok((held, tokens)),
            false => Err(Error::format(format!("{has} bytes, the session takes only {needed}"))),
        }
    }

    /// Compares the layers with the session's; returns the first blocks that are there.
    fn read_layers(&self, words: &mut impl Iterator<Item = u32>, n_tokens: u32) -> Result<Vec<u32>> {
        let mut first_blocks = try_with_capacity(self.attention.len())?;
        for (i, LayerAttention { mask, phases }) in self.attention.iter().enumerate() {
            let mut next = || words.next().unwrap_or(0);
            let file: [u32; 5] = std::array::from_fn(|_| next());
            let own = mask_words(mask);
            if file != own {
                return Err(differs(format_args!("attention of layer {i}"), describe(file), describe(own)));
            }
            let first_block = next();
            for (head, &phase) in phases.iter().enumerate() {
                let file = next();
                if file != phase {
                    return Err(differs(
                        format_args!("attention of layer {i}: phase of head {head}"),
                        file,
                        phase,
                    ));
                }
            }
            // What comes next must find what it sees.
            if first_block > n_tokens.div_ceil(mask.block_size())
                || mask.first_query_within(first_block) > n_tokens
            {
                return Err(Error::format(format!(
                    "layer {i}: the blocks from {first_block} on are too few for what comes behind {n_tokens} tokens"
                )));
            }
            first_blocks.push(first_block);
        }
        Ok(first_blocks)
    }
}
