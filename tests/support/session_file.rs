//! A reader of session files by format/session.md alone.

use std::collections::BTreeMap;

use half::{bf16, f16};
use xxhash_rust::xxh3::xxh3_128;

/// What a file says.
pub struct SessionFile {
    pub bytes: Vec<u8>,
    pub fingerprint: u128,
    pub tokens: Vec<u32>,
    pub layers: Vec<Layer>,
    /// Its checksum included.
    pub header_bytes: usize,
    /// Where the checksums begin.
    hashes: Vec<usize>,
}

/// What a file says of a layer.
pub struct Layer {
    /// Of each KV head the blocks, and of each of their tokens the key and the value.
    pub heads: Vec<BTreeMap<u32, Vec<[Vec<f32>; 2]>>>,
}

impl SessionFile {
    /// Reads a file, and compares its checksums.
    pub fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(&bytes[..8], b"LGSESS\r\n");
        assert_eq!(word(8), 1);
        let ty = word(12);
        let [n_layers, n_heads, n_kv_heads, dim, n_tokens] = [32, 36, 40, 44, 48].map(|at| word(at) as usize);
        let layer_at = |i: usize| 52 + i * (24 + 4 * n_heads);
        let tokens_at = layer_at(n_layers);
        let mut at = tokens_at + 4 * n_tokens;
        let mut hashes = vec![at];
        at += 16;
        let header_bytes = at;

        let (elem, scale) = [(4, 0), (2, 0), (2, 0), (1, 2)][ty as usize];
        let element = |at: usize, scale: f32| match ty {
            0 => f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()),
            1 => f16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).to_f32(),
            2 => bf16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).to_f32(),
            _ => f32::from(i8::from_le_bytes([bytes[at]])) * scale,
        };
        let mut layers = Vec::new();
        for i in 0..n_layers {
            let numbers: Vec<usize> = (0..6 + n_heads).map(|n| word(layer_at(i) + 4 * n) as usize).collect();
            let (kind, first_block, phases) = (numbers[0], numbers[5], &numbers[6..]);
            let size = if kind == 2 { numbers[1] } else { 64 };
            let sees_for_ever = |block: usize, phase: usize| match kind {
                0 => true,
                1 => block < numbers[2].div_ceil(64),
                _ => block < numbers[3] || numbers[4] > 0 && (block + phase).is_multiple_of(numbers[4]),
            };
            let mut heads = Vec::new();
            for phases in phases.chunks(n_heads / n_kv_heads) {
                let mut blocks = BTreeMap::new();
                for block in 0..n_tokens.div_ceil(size) {
                    if block >= first_block || phases.iter().any(|&phase| sees_for_ever(block, phase)) {
                        let row = |token: usize, is_value: usize| {
                            let scales = at + 2 * size * dim * elem;
                            let scale = match scale {
                                0 => 1.0,
                                _ => {
                                    let at = scales + (is_value * size + token) * 2;
                                    f16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).to_f32()
                                }
                            };
                            let at = at + (is_value * size + token) * dim * elem;
                            (0..dim).map(|d| element(at + d * elem, scale)).collect()
                        };
                        let rows = (0..size).map(|token| [row(token, 0), row(token, 1)]).collect();
                        blocks.insert(u32::try_from(block).unwrap(), rows);
                        at += 2 * size * (dim * elem + scale);
                    }
                }
                heads.push(blocks);
            }
            layers.push(Layer { heads });
            hashes.push(at);
            at += 16;
        }
        assert_eq!(at, bytes.len());
        for &at in &hashes {
            assert_eq!(xxh3_128(&bytes[..at]).to_le_bytes(), bytes[at..at + 16]);
        }
        Self {
            bytes: bytes.to_vec(),
            fingerprint: u128::from_le_bytes(bytes[16..32].try_into().unwrap()),
            tokens: (0..n_tokens).map(|i| word(tokens_at + 4 * i)).collect(),
            layers,
            header_bytes,
            hashes,
        }
    }

    /// Makes the checksums of a file that differs from this one in its bytes match.
    pub fn sign(&self, bytes: &mut [u8]) {
        for &at in &self.hashes {
            let sum = xxh3_128(&bytes[..at]).to_le_bytes();
            bytes[at..at + 16].copy_from_slice(&sum);
        }
    }
}
