//! A backend with working memory, and its ops as functions from vectors to vectors.
//!
//! Memory that nobody uploaded to is poisoned with NaNs, in every float type and every build.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use longgen::attention::mask::Mask;
use longgen::backend::Backend;
use longgen::backend::args::*;
use longgen::kv::slots::SlotMap;
use longgen::{Cancel, Result};
use longgen_format::TensorType;

use super::random::Random;

/// A backend and what its ops need.
pub struct Rig<'b, B: Backend> {
    /// The backend.
    pub backend: &'b B,
    /// What stops its steps.
    pub cancel: Cancel,
    ws: B::Workspace,
}

/// Large enough for all tests.
pub const SHAPE: WorkspaceShape = WorkspaceShape {
    max_rows: 300,
    max_cols: 5120,
    max_weight_elems: 640 * 640,
    n_heads: 12,
    head_dim: 256,
    n_ctx: 8448,
};

/// What norms add to the mean square.
const EPS: f32 = 1e-5;

/// One matrix of a product.
pub struct Product {
    /// The matrix.
    pub w: WeightData,
    /// Added to every row.
    pub bias: Option<Vec<f32>>,
    /// What the output holds before.
    pub before: Vec<f32>,
}

/// What a product's matrices are multiplied with.
pub struct Taken {
    /// (rows, cols)
    pub x: Vec<f32>,
    /// The first row that is normed, and the weight; without, all rows are taken as they are.
    pub norm: Option<(usize, Vec<f32>)>,
}

impl Taken {
    /// The rows that are multiplied.
    pub fn values(&self, n_rows: usize) -> Vec<f32> {
        let Some((first_row, weight)) = &self.norm else { return self.x.clone() };
        let rows = self.x.chunks(weight.len()).skip(*first_row).take(n_rows);
        rows.flat_map(|x| {
            let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
            x.iter().zip(weight).map(move |(x, w)| x / (mean_square + EPS).sqrt() * w)
        })
        .collect()
    }
}

/// A multilayer perceptron.
pub struct Mlp {
    /// (d_ff, d_model)
    pub gate: Product,
    /// (d_ff, d_model)
    pub up: Product,
    /// (d_model, d_ff)
    pub down: Product,
    /// (d_model)
    pub norm: Vec<f32>,
}

/// The tokens from the segment before to `end` in a buffer of their own.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Behind the last token.
    pub end: u32,
    /// Where the tokens lie.
    pub lie: Lie,
    /// Whether they are copied to another buffer, in two goes, before anybody reads them.
    pub copied: bool,
}

/// Where the tokens of a [`Part`] lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// In the slots of the layer.
    Slots,
    /// In one slot a block, in order.
    Order,
    /// In the step's scratch; they are the step's tokens.
    Scratch,
}

/// Attention of one layer over a context that is appended first.
#[derive(Clone, Debug)]
pub struct Context {
    /// Shape of the blocks.
    pub shape: KvShape,
    /// Query heads.
    pub n_heads: usize,
    /// Who sees whom.
    pub mask: Mask,
    /// One per query head.
    pub phases: Vec<u32>,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound of the scores.
    pub softcap: f32,
    /// One per query head.
    pub sink_logits: Option<Vec<f32>>,
    /// Pairs that are turned; 0 turns nothing.
    pub n_pairs: usize,
    /// Which elements make a pair.
    pub pairing: RopePairing,
    /// (n_ctx, n_heads, head_dim)
    pub q: Vec<f32>,
    /// (n_ctx, n_kv_heads, head_dim)
    pub k: Vec<f32>,
    /// (n_ctx, n_kv_heads, head_dim)
    pub v: Vec<f32>,
}

impl fmt::Debug for Mlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate {:?}, up {:?}, down {:?}", self.gate, self.up, self.down)
    }
}

impl fmt::Debug for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightData { ty, rows, cols, .. } = self.w;
        write!(f, "{rows} x {cols} of {ty}{}", if self.bias.is_some() { " with a bias" } else { "" })
    }
}

impl<'b, B: Backend> Rig<'b, B> {
    /// With working memory for [`SHAPE`].
    pub fn new(backend: &'b B, precision: Precision) -> Self {
        Self::with_shape(backend, precision, &SHAPE)
    }

    /// With working memory for another shape.
    pub fn with_shape(backend: &'b B, precision: Precision, shape: &WorkspaceShape) -> Self {
        Self { backend, cancel: Cancel::default(), ws: backend.workspace(shape, precision).unwrap() }
    }

    /// A buffer of these numbers.
    pub fn buf<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(&self, values: &[T]) -> B::Buf {
        let mut buf = self.backend.alloc(size_of_val(values)).unwrap();
        self.backend.upload(&mut buf, 0, values).unwrap();
        buf
    }

    /// A buffer of `n_bytes` that nobody wrote.
    pub fn poisoned(&self, n_bytes: usize) -> B::Buf {
        let mut buf = self.backend.alloc(n_bytes).unwrap();
        let nans = vec![f32::from_bits(u32::MAX); n_bytes / 4];
        self.backend.upload(&mut buf, 0, &nans).unwrap();
        buf
    }

    /// What a buffer begins with.
    pub fn read(&self, buf: &B::Buf, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        self.backend.download(&mut values, buf, 0).unwrap();
        values
    }

    /// Runs a step.
    pub fn run<T>(&mut self, step: impl FnOnce(&B, &mut B::Workspace) -> Result<T>) -> Result<T> {
        let backend = self.backend;
        backend.run(&mut self.ws, &self.cancel, |ws| step(backend, ws))
    }

    /// A session's rows.
    pub fn rows(&self, row: u32, n_tokens: u32, pos: u32) -> B::Descriptor {
        let mut desc = self.backend.descriptor().unwrap();
        self.backend.describe(&mut desc, StepRows { row, n_tokens, pos }).unwrap();
        desc
    }

    /// The outputs of all products, one after the other.
    pub fn matmul(&mut self, products: &[Product], x: &[f32], n_rows: usize, add: bool) -> Vec<f32> {
        self.matmul_with(products, &Taken { x: x.to_vec(), norm: None }, n_rows, add)
    }

    /// The same for rows or their norm.
    pub fn matmul_with(&mut self, products: &[Product], taken: &Taken, n_rows: usize, add: bool) -> Vec<f32> {
        let x = self.buf(&taken.x);
        let norm = taken.norm.as_ref().map(|(first_row, weight)| (*first_row, self.buf(weight)));
        let mut scratch = self.poisoned(size_of_val(&taken.x[..]));
        let layers: Vec<_> = products.iter().map(|p| self.linear(p)).collect();
        let mut outs: Vec<_> = products
            .iter()
            .map(|p| {
                if add {
                    self.buf(&p.before[..n_rows * p.w.rows])
                } else {
                    self.poisoned(n_rows * p.w.rows * 4)
                }
            })
            .collect();
        self.run(|backend, ws| {
            let parts =
                &mut outs.iter_mut().zip(&layers).map(|(out, layer)| layer.to(out)).collect::<Vec<_>>();
            let input = match &norm {
                None => Input::Rows(&x),
                Some((first_row, weight)) => Input::Norm(Norm {
                    x: &x,
                    first_row: *first_row,
                    weight,
                    eps: EPS,
                    scratch: &mut scratch,
                }),
            };
            backend.matmul(ws, MatmulArgs { parts, input, n_rows, add })
        })
        .unwrap();
        outs.iter().zip(products).flat_map(|(out, p)| self.read(out, n_rows * p.w.rows)).collect()
    }

    /// What a perceptron leaves in the residual stream.
    pub fn mlp(&mut self, mlp: &Mlp, x: &[f32]) -> Vec<f32> {
        let (d_model, d_ff) = (mlp.norm.len(), mlp.gate.w.rows);
        let n_rows = x.len() / d_model;
        let [gate, up, down] = [&mlp.gate, &mlp.up, &mlp.down].map(|p| self.linear(p));
        let (mut out, norm) = (self.buf(x), self.buf(&mlp.norm));
        let mut scratch = [d_model, d_ff, d_ff].map(|width| self.poisoned(n_rows * width * 4));
        self.run(|backend, ws| {
            let args = MlpArgs {
                x: &mut out,
                n_rows,
                norm: &norm,
                eps: EPS,
                gate: &gate,
                up: &up,
                down: &down,
                d_ff,
                activation: Activation::Silu,
                scratch: scratch.each_mut(),
            };
            backend.mlp(ws, args)
        })
        .unwrap();
        self.read(&out, x.len())
    }

    /// A layer of a model.
    pub fn linear(&self, product: &Product) -> Linear<B> {
        Linear {
            w: self.backend.weight(product.w.clone()).unwrap(),
            bias: product.bias.as_ref().map(|bias| self.buf(bias)),
        }
    }

    /// Appends the context up to the end of `n_tokens` tokens at `pos`, divided as `parts` say, and attends to it.
    /// Returns the tokens' turned queries and their attention.
    pub fn attend(&mut self, context: &Context, parts: &[Part], pos: u32, n_tokens: u32) -> [Vec<f32>; 2] {
        let mut batch = self.attend_all(context, &[(pos, n_tokens, parts)]);
        batch.pop().unwrap()
    }

    /// The same for several sessions in one call, each with (pos, n_tokens, parts).
    pub fn attend_all(&mut self, context: &Context, seqs: &[(u32, u32, &[Part])]) -> Vec<[Vec<f32>; 2]> {
        let width = context.n_heads * context.shape.head_dim;
        let (q, outs) = self.launched(context, seqs, 1, false);
        let out = self.read(&outs[0], q.len());
        let mut row = 0;
        let of_seq = |&(_, n_tokens, _): &(u32, u32, &[Part])| {
            let range = row * width..(row + n_tokens as usize) * width;
            row += n_tokens as usize;
            [q[range.clone()].to_vec(), out[range].to_vec()]
        };
        seqs.iter().map(of_seq).collect()
    }

    /// The attention that [`attend`](Self::attend) returns, of each of `n_launches` one right after the other.
    pub fn attend_again(
        &mut self,
        context: &Context,
        parts: &[Part],
        (pos, n_tokens): (u32, u32),
        n_launches: usize,
    ) -> Vec<Vec<f32>> {
        let (q, outs) = self.launched(context, &[(pos, n_tokens, parts)], n_launches, false);
        outs.iter().map(|out| self.read(out, q.len())).collect()
    }

    /// The words of the attention of queries that the backend has rounded, in the form in which it leaves it; what it does
    /// not write stays `u32::MAX`.
    pub fn attend_rounded(&mut self, context: &Context, parts: &[Part], pos: u32, n_tokens: u32) -> Vec<u32> {
        let (q, outs) = self.launched(context, &[(pos, n_tokens, parts)], 1, true);
        self.read(&outs[0], q.len()).iter().map(|x| x.to_bits()).collect()
    }

    /// Launches attention; returns all sessions' turned queries and the buffers of each launch.
    fn launched(
        &mut self,
        context: &Context,
        seqs: &[(u32, u32, &[Part])],
        n_launches: usize,
        rounds: bool,
    ) -> (Vec<f32>, Vec<B::Buf>) {
        let (slots, in_order) = (context.slots(), context.slots_in_order());
        let block_size = u32::try_from(context.shape.block_size).unwrap();
        let mut maps = Vec::new();
        for (_, _, parts) in seqs {
            let mut begin = 0;
            for part in *parts {
                // Blocks before those of the part have no slots in its buffer.
                let map = match part.lie {
                    Lie::Slots => slots.clone(),
                    Lie::Order | Lie::Scratch => in_order.behind(begin / block_size).unwrap(),
                };
                maps.push((self.backend.slots(&map).unwrap(), map.n_slots()));
                begin = part.end;
            }
        }
        let mut q_rows = Vec::new();
        let mut descs = Vec::new();
        let mut row = 0;
        for &(pos, n_tokens, _) in seqs {
            let turned = self.turned_queries(context, pos, n_tokens);
            q_rows.extend(turned);
            descs.push(self.rows(row, n_tokens, pos));
            row += n_tokens;
        }
        let (mut buffers, mut maps) = (Vec::new(), maps.iter());
        for (_, _, parts) in seqs {
            let mut begin = 0;
            for part in *parts {
                buffers.push(self.filled(context, part, begin, maps.next().unwrap()));
                begin = part.end;
            }
        }
        let mut filled = buffers.iter();
        let segments: Vec<Vec<_>> = seqs
            .iter()
            .map(|&(pos, n_tokens, parts)| {
                let segment = |part: &Part| {
                    let (blocks, places) = filled.next().unwrap();
                    let end = match part.end {
                        end if end == pos + n_tokens => SegmentEnd::Step,
                        end if end == pos => SegmentEnd::BeforeStep,
                        end => SegmentEnd::Fixed(end),
                    };
                    KvSegment { blocks, places: *places, end }
                };
                parts.iter().map(segment).collect()
            })
            .collect();
        let views: Vec<_> =
            descs.iter().zip(&segments).map(|(desc, segments)| AttnSeq { desc, segments }).collect();
        let (mut q, phases) = (self.buf(&q_rows), self.buf(&context.phases));
        let sinks = context.sink_logits.as_ref().map(|sinks| self.buf(sinks));
        let mut outs: Vec<_> = (0..n_launches).map(|_| self.poisoned(size_of_val(&q_rows[..]))).collect();
        let Context { shape, n_heads, mask, scale, softcap, .. } = *context;
        self.run(|backend, ws| {
            if rounds {
                let n_tokens = row as usize;
                let args = RoundQueriesArgs { q: &mut q, n_tokens, n_heads, shape, scale, softcap };
                backend.round_queries(ws, args)?;
            }
            outs.iter_mut().try_for_each(|out| {
                let (q, sink_logits) = (&q, sinks.as_ref());
                let (phases, seqs) = (&phases, &views[..]);
                let args =
                    AttnArgs { out, q, n_heads, shape, scale, softcap, sink_logits, mask, phases, seqs };
                if rounds { backend.attn_rounded(ws, args) } else { backend.attn(ws, args) }
            })
        })
        .unwrap();
        (q_rows, outs)
    }

    /// Queries of some tokens, turned.
    fn turned_queries(&mut self, context: &Context, pos: u32, n_tokens: u32) -> Vec<f32> {
        let width = context.n_heads * context.shape.head_dim;
        let rows = pos as usize * width..(pos + n_tokens) as usize * width;
        let mut q = self.buf(&context.q[rows.clone()]);
        let (n_bytes, places) = context.scratch(self.backend, pos, pos + n_tokens);
        let mut nowhere = self.poisoned(n_bytes);
        self.append(context, &mut q, &mut nowhere, places, pos, n_tokens);
        self.read(&q, rows.len())
    }

    /// A poisoned buffer in which the tokens from `begin` to the part's end have been appended, and where they lie.
    fn filled<'s>(
        &mut self,
        context: &Context,
        part: &Part,
        begin: u32,
        (slots, n_slots): &'s (B::Slots, u32),
    ) -> (B::Buf, BlockPlaces<'s, B>) {
        let block_size = u32::try_from(context.shape.block_size).unwrap();
        let (n_bytes, places, step) = match part.lie {
            Lie::Scratch => {
                let (n_bytes, places) = context.scratch(self.backend, begin, part.end);
                (n_bytes, places, u32::MAX)
            }
            _ => {
                let n_bytes = *n_slots as usize * self.backend.kv_block_bytes(&context.shape);
                // Block by block, as a ring is filled.
                (n_bytes, BlockPlaces::Slots(slots), block_size)
            }
        };
        let mut blocks = self.poisoned(n_bytes);
        let mut pos = begin;
        while pos < part.end {
            let end = part.end.min((pos / block_size * block_size).saturating_add(step));
            let mut q = self.buf(&vec![0.0; (end - pos) as usize * context.n_heads * context.shape.head_dim]);
            self.append(context, &mut q, &mut blocks, places, pos, end - pos);
            pos = end;
        }
        if part.copied && part.lie == Lie::Order && begin < part.end {
            blocks = self.copied(context, &blocks, n_bytes, begin..part.end, slots);
        }
        (blocks, places)
    }

    /// The tokens that were appended in order, in another buffer: the later ones first.
    fn copied(
        &mut self,
        context: &Context,
        from: &B::Buf,
        n_bytes: usize,
        tokens: Range<u32>,
        slots: &B::Slots,
    ) -> B::Buf {
        let mut to = self.poisoned(n_bytes);
        let middle = tokens.start + (tokens.end - tokens.start) / 3;
        for (pos, end) in [(middle, tokens.end), (tokens.start, middle)] {
            let desc = self.rows(0, end - pos, pos);
            let part = CopyPart {
                to: &mut to,
                to_places: BlockPlaces::Slots(slots),
                from,
                from_places: BlockPlaces::Slots(slots),
                shape: context.shape,
                desc: &desc,
                blocks: StepBlocks::Pinned,
                slots,
            };
            if pos < end {
                self.run(|backend, ws| backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut [part] }))
                    .unwrap();
            }
        }
        to
    }

    fn append(
        &mut self,
        context: &Context,
        q: &mut B::Buf,
        blocks: &mut B::Buf,
        places: BlockPlaces<'_, B>,
        pos: u32,
        n_tokens: u32,
    ) {
        let kv_width = context.shape.n_kv_heads * context.shape.head_dim;
        let rows = pos as usize * kv_width..(pos + n_tokens) as usize * kv_width;
        let (k, v) = (self.buf(&context.k[rows.clone()]), self.buf(&context.v[rows]));
        let desc = self.rows(0, n_tokens, pos);
        let inv_freq: Vec<f32> =
            (0..context.n_pairs).map(|pair| 0.7f32.powi(i32::try_from(pair).unwrap())).collect();
        let mut table = self.poisoned(n_tokens as usize * inv_freq.len() * 8);
        let (n_pairs, inv_freq) = (context.n_pairs, &self.buf(&inv_freq));
        self.run(|backend, ws| {
            let seqs = &[&desc];
            let angles = RopeTableArgs { out: &mut table, inv_freq, n_pairs, attention_factor: 1.1, seqs };
            backend.rope_table(ws, angles)?;
            let append = RopeAppendArgs {
                q,
                k: &k,
                v: &v,
                rope: Rope { table: (n_pairs > 0).then_some(&table), n_pairs, pairing: context.pairing },
                n_heads: context.n_heads,
                shape: context.shape,
                seqs: &mut [AppendSeq { desc: &desc, blocks, places }],
            };
            backend.rope_append(ws, append)
        })
        .unwrap();
    }
}

impl Context {
    /// The slots of this layer.
    fn slots(&self) -> SlotMap {
        self.slots_for(&self.mask)
    }

    /// One slot a block.
    fn slots_in_order(&self) -> SlotMap {
        let block_size = u32::try_from(self.shape.block_size).unwrap();
        self.slots_for(&Mask::Blocks { block_size, local_blocks: 1 << 20, sink_blocks: 0, stride: 0 })
    }

    fn slots_for(&self, mask: &Mask) -> SlotMap {
        let n_ctx = self.q.len() / (self.n_heads * self.shape.head_dim);
        let n_kv_heads = u32::try_from(self.shape.n_kv_heads).unwrap();
        SlotMap::new(mask, &self.phases, n_kv_heads, u32::try_from(n_ctx).unwrap()).unwrap()
    }

    /// Bytes of the scratch of a step, and where blocks lie in it.
    fn scratch<B: Backend>(&self, backend: &B, pos: u32, end: u32) -> (usize, BlockPlaces<'static, B>) {
        let block_size = u32::try_from(self.shape.block_size).unwrap();
        let n_blocks = end.div_ceil(block_size) - pos / block_size;
        let n_bytes = n_blocks as usize * self.shape.n_kv_heads * backend.kv_block_bytes(&self.shape);
        (n_bytes, BlockPlaces::Step { n_blocks })
    }
}

/// A matrix of any bytes that are finite numbers, at an odd place in a file.
pub fn random_weight(random: &mut Random, ty: TensorType, rows: usize, cols: usize) -> WeightData {
    let n_bytes = ty.row_bytes(cols).unwrap() * rows;
    let mut bytes: Vec<u8> = (0..n_bytes).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
    let half = |random: &mut Random, scale: f32| half::f16::from_f32(random.unit() * scale).to_le_bytes();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            TensorType::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            TensorType::F16 => block.copy_from_slice(&half(random, 1.0)),
            TensorType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.unit()).to_le_bytes()),
            TensorType::Q8_0 => block[..2].copy_from_slice(&half(random, 0.01)),
            _ => {
                block[..2].copy_from_slice(&half(random, 0.1));
                if ty == TensorType::Q4_1 {
                    block[2..4].copy_from_slice(&half(random, 0.5));
                }
            }
        }
    }
    let begin = 1 + random.below(7);
    let mut file = vec![0xff; begin];
    file.extend(bytes);
    file.push(0xff);
    WeightData { file: Arc::new(file), range: begin..begin + n_bytes, ty, rows, cols }
}
