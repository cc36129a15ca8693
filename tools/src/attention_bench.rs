//! The speed of attention alone: one layer, with random queries, keys and values.

use std::time::Instant;

#[cfg(not(feature = "cuda"))]
use anyhow::bail;
use anyhow::{Result, ensure};
use clap::value_parser;
use longgen::attention::plan::{LayerAttention, MAX_CTX};
use longgen::backend::Backend;
use longgen::backend::args::*;
use longgen::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use longgen::backend::cuda::CudaBackend;
use longgen::backend::reference::ReferenceBackend;
use longgen::kv::cache::{KvCache, LayerLayout};
use longgen::kv::layer::LayerKv;
use longgen::{Cancel, Device};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::eval::summary;
use crate::plan::{self, AttentionArgs};
use crate::random::fill_normal;
use crate::run_args::{ComputeArgs, name};

/// Tokens that the context before the queries arrives in at a time.
const STEP_TOKENS: u32 = 2048;

/// Keys and values that are read before any is read again: several times what the cache of a device holds.
const ROTATED_BYTES: u64 = 256 << 20;

/// A sample has as many calls as take that long, so that neither the clock nor the last call's end counts.
const SAMPLE_SECONDS: f64 = 0.05;

/// Calls of one query, at least, that are recorded together: launching the recording takes time, too.
const REPEATED_CALLS: usize = 8;

/// Random numbers that the host makes at a time.
const UPLOAD_ELEMS: usize = 1 << 22;

/// The flags of `lgeval bench-attention`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchAttentionArgs {
    /// Query heads
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u16).range(1..=4096))]
    pub heads: u16,
    /// KV heads, which query heads share in equal groups
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u16).range(1..=4096))]
    pub kv_heads: u16,
    /// Elements of a head
    #[arg(long, default_value_t = 128, value_parser = value_parser!(u16).range(1..=4096))]
    pub head_dim: u16,
    /// Tokens of the context
    #[arg(long, default_value_t = 4096, value_parser = value_parser!(u32).range(1..=i64::from(MAX_CTX)))]
    pub tokens: u32,
    /// Only the last tokens are queries, as in a step of a long prompt [default: all are]
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub chunk: Option<u32>,
    /// Only the last token is a query, as in decoding
    #[arg(long, conflicts_with = "chunk")]
    pub decode: bool,
    /// Of the kernels for CUDA devices, those that cards before Hopper have are timed, on any card
    #[cfg(feature = "cuda")]
    #[arg(long)]
    pub portable: bool,
    /// Repetitions
    #[arg(short, long, default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Where and how.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Of a preset, a sparse layer is timed.
    #[command(flatten)]
    pub attention: AttentionArgs,
}

impl BenchAttentionArgs {
    /// What the flags ask for.
    ///
    /// # Errors
    /// Flags that do not belong together, and more queries than tokens.
    pub fn bench(&self) -> Result<AttentionBench> {
        let n_queries = if self.decode { 1 } else { self.chunk.unwrap_or(self.tokens) };
        ensure!(n_queries <= self.tokens, "--chunk {n_queries} of --tokens {}", self.tokens);
        #[cfg(feature = "cuda")]
        ensure!(
            !self.portable || matches!(self.compute.device, Device::Cuda(_)),
            "--portable is for --device cuda"
        );
        Ok(AttentionBench {
            n_kv_heads: self.kv_heads.into(),
            head_dim: self.head_dim.into(),
            n_tokens: self.tokens,
            n_queries,
            attention: self.attention.layer(self.heads.into(), self.kv_heads.into())?,
            #[cfg(feature = "cuda")]
            portable: self.portable,
            repeat: usize::try_from(self.repeat)?,
            compute: self.compute.clone(),
        })
    }
}

/// What is to be timed: the last `n_queries` of `n_tokens` tokens attend to all of them.
#[derive(Clone, Debug)]
pub struct AttentionBench {
    /// KV heads.
    pub n_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Context in tokens, the queries' included.
    pub n_tokens: u32,
    /// Queries of each head, at least one. One alone is what decoding does.
    pub n_queries: u32,
    /// Who sees whom, with a phase for each query head.
    pub attention: LayerAttention,
    /// Whether CUDA devices do without the kernels that are for Hopper alone.
    #[cfg(feature = "cuda")]
    pub portable: bool,
    /// Samples.
    pub repeat: usize,
    /// Where and how.
    pub compute: ComputeArgs,
}

/// How long attention took.
#[derive(Clone, Debug)]
pub struct AttentionTimes {
    /// Name of the device.
    pub device: String,
    /// Milliseconds of one call, one number a sample.
    pub ms: Vec<f64>,
    /// Calls of a sample.
    pub n_calls: usize,
    /// Caches that the calls go through in turn.
    pub n_caches: usize,
}

impl AttentionBench {
    /// Times it.
    ///
    /// # Errors
    /// Heads that the device cannot compute, too little memory, and whatever fails on the device.
    pub fn run(&self, cancel: &Cancel) -> Result<AttentionTimes> {
        let on_cpu = || {
            let all = || std::thread::available_parallelism().map_or(1, usize::from);
            self.run_on(&CpuBackend::new(self.compute.threads.unwrap_or_else(all))?, cancel)
        };
        match self.compute.device {
            Device::Cpu => on_cpu(),
            Device::Reference => self.run_on(&ReferenceBackend::default(), cancel),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) if self.portable => self.run_on(&CudaBackend::portable(ordinal)?, cancel),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => self.run_on(&CudaBackend::new(ordinal)?, cancel),
            #[cfg(feature = "cuda")]
            Device::Auto => match CudaBackend::new(0) {
                Ok(backend) => self.run_on(&backend, cancel),
                Err(error) => {
                    eprintln!("running on the CPU: {error}");
                    on_cpu()
                }
            },
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => {
                bail!("this build cannot use CUDA devices: it was built without the feature `cuda`")
            }
            #[cfg(not(feature = "cuda"))]
            Device::Auto => on_cpu(),
        }
    }

    fn run_on<B: Backend>(&self, backend: &B, cancel: &Cancel) -> Result<AttentionTimes> {
        let (device, head_dim, max) = (backend.info().name, self.head_dim, backend.max_head_dim());
        ensure!(head_dim <= max, "attention heads of {head_dim} elements: {device} can use at most {max}");

        let mut layer = Layer::new(self, backend, cancel)?;
        layer.fill()?;
        // Once for the kernels to be loaded, once more for a recording.
        layer.time(if self.is_decoding() { 2 } else { 1 })?;
        let mut n_rounds = 1;
        while layer.time(n_rounds)? < SAMPLE_SECONDS {
            n_rounds *= 2;
        }
        let n_calls = n_rounds * layer.calls_per_round;
        let sample = |_| Ok(1e3 * layer.time(n_rounds)? / n_calls as f64);
        let ms = (0..self.repeat).map(sample).collect::<Result<_>>()?;
        Ok(AttentionTimes { device, ms, n_calls, n_caches: layer.caches.len() })
    }

    /// Trillions of floating-point operations per second if a call takes that many milliseconds: a product and a sum
    /// for each pair and element, of scores and of values.
    pub fn tflops(&self, ms: f64) -> f64 {
        4.0 * self.head_dim as f64 * self.pairs() as f64 / ms / 1e9
    }

    /// Billions of bytes of keys and values per second, for the only query there is.
    pub fn gbs(&self, ms: f64) -> Option<f64> {
        self.is_decoding().then(|| self.last_query_bytes() as f64 / ms / 1e6)
    }

    /// All that was asked for and came out, as a JSON object.
    pub fn to_json(&self, times: &AttentionTimes) -> Value {
        let (min, median, max) = summary(&times.ms);
        json!({
            "device": times.device,
            "implementation": self.implementation(),
            "attention": plan::to_json(std::slice::from_ref(&self.attention))[0],
            "heads": self.n_heads(),
            "kv_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "tokens": self.n_tokens,
            "queries": self.n_queries,
            "kv": name(&self.compute.kv),
            "precision": name(&self.compute.precision),
            "pairs": self.pairs(),
            "caches": times.n_caches,
            "calls": times.n_calls,
            "ms": {"min": min, "median": median, "max": max},
            "tflops": self.tflops(median),
            "gbs": self.gbs(median),
        })
    }

    /// What raw results tell it from others by.
    fn implementation(&self) -> &'static str {
        #[cfg(feature = "cuda")]
        if self.portable {
            return "longgen-portable";
        }
        "longgen"
    }

    /// Query heads.
    pub fn n_heads(&self) -> usize {
        self.attention.phases.len()
    }

    /// Whether there is a single query.
    pub fn is_decoding(&self) -> bool {
        self.n_queries == 1
    }

    /// Pairs of a query and a key that it sees, of all heads.
    pub fn pairs(&self) -> u64 {
        let mut phases = self.attention.phases.clone();
        phases.sort_unstable();
        let queries = self.n_tokens - self.n_queries..self.n_tokens;
        let of_phase = |heads: &[u32]| {
            let visible = |i| self.visible_tokens(i, &heads[..1]);
            heads.len() as u64 * queries.clone().into_par_iter().map(visible).sum::<u64>()
        };
        phases.chunk_by(|a, b| a == b).map(of_phase).sum()
    }

    /// Bytes of the keys and values that the last query sees, scales included.
    pub fn last_query_bytes(&self) -> u64 {
        let group = self.n_heads() / self.n_kv_heads;
        let visible = |phases| self.visible_tokens(self.n_tokens - 1, phases);
        let n_tokens: u64 = self.attention.phases.chunks(group).map(visible).sum();
        n_tokens * 2 * self.compute.kv_type().row_bytes(self.head_dim) as u64
    }

    /// Keys that a query at position `i` sees in any head with one of these phases.
    fn visible_tokens(&self, i: u32, phases: &[u32]) -> u64 {
        let mask = &self.attention.mask;
        let tokens = |block, phase| {
            mask.visible_tokens(i, block, phase).iter().map(|range| range.len() as u64).sum::<u64>()
        };
        let of_phase =
            |&phase| mask.visible_blocks(i, i, phase).map(move |block| (block, tokens(block, phase)));
        if let [phase] = phases {
            return of_phase(phase).map(|(_, n)| n).sum();
        }
        // Phases differ in which blocks they show, not in what they show of one.
        let mut blocks: Vec<_> = phases.iter().flat_map(of_phase).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.into_iter().map(|(_, n)| n).sum()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn kv_shape(&self) -> KvShape {
        let block_size = self.attention.mask.block_size() as usize;
        KvShape {
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            block_size,
            ty: self.compute.kv_type(),
        }
    }
}

/// Fills a buffer with random numbers, others for every `seed`, which moves on.
fn randomize<B: Backend>(backend: &B, buf: &mut B::Buf, n_elems: usize, seed: &mut u64) -> Result<()> {
    let mut values = vec![0.0; n_elems.min(UPLOAD_ELEMS)];
    for at in (0..n_elems).step_by(UPLOAD_ELEMS) {
        let values = &mut values[..UPLOAD_ELEMS.min(n_elems - at)];
        fill_normal(values, *seed);
        *seed += 1;
        backend.upload(buf, at, values)?;
    }
    Ok(())
}

/// One layer on a device, with what its attention reads and writes.
struct Layer<'a, B: Backend> {
    bench: &'a AttentionBench,
    backend: &'a B,
    cancel: &'a Cancel,
    workspace: B::Workspace,
    desc: B::Descriptor,
    /// All hold the same numbers.
    caches: Vec<KvCache<B>>,
    calls_per_round: usize,
    /// (n_heads), as `u32`
    phases: B::Buf,
    /// (step_tokens, n_heads, head_dim)
    q: B::Buf,
    /// (step_tokens, n_kv_heads, head_dim)
    k: B::Buf,
    /// (step_tokens, n_kv_heads, head_dim)
    v: B::Buf,
    /// (n_queries, n_heads, head_dim)
    out: B::Buf,
    /// Of the next random numbers.
    seed: u64,
}

impl<'a, B: Backend> Layer<'a, B> {
    fn new(bench: &'a AttentionBench, backend: &'a B, cancel: &'a Cancel) -> Result<Self> {
        let (n_heads, head_dim, n_tokens) = (bench.n_heads(), bench.head_dim, bench.n_tokens);
        let step_tokens = bench.n_queries.max(STEP_TOKENS.min(n_tokens - bench.n_queries));
        let bytes = |n_tokens: u32, n_heads: usize| n_tokens as usize * n_heads * head_dim * size_of::<f32>();
        let shape = WorkspaceShape {
            max_rows: step_tokens as usize,
            max_cols: 0,
            max_weight_elems: 0,
            n_heads,
            head_dim,
            n_ctx: n_tokens as usize,
        };
        let layout = LayerLayout::new(&bench.attention, bench.kv_shape(), n_tokens, step_tokens)?;
        let attention = std::slice::from_ref(&bench.attention);
        let n_caches = match bench.is_decoding() {
            true => usize::try_from(ROTATED_BYTES.div_ceil(bench.last_query_bytes()))?,
            false => 1,
        };
        let cache = |_| Ok(KvCache::new(backend, vec![layout.clone()], attention, 0)?);
        let mut phases = backend.alloc(size_of_val(&attention[0].phases[..]))?;
        backend.upload(&mut phases, 0, &attention[0].phases)?;
        Ok(Self {
            bench,
            backend,
            cancel,
            workspace: backend.workspace(&shape, bench.compute.precision())?,
            desc: backend.descriptor()?,
            caches: (0..n_caches).map(cache).collect::<Result<_>>()?,
            calls_per_round: match bench.is_decoding() {
                true => REPEATED_CALLS.next_multiple_of(n_caches),
                false => 1,
            },
            phases,
            q: backend.alloc(bytes(step_tokens, n_heads))?,
            k: backend.alloc(bytes(step_tokens, bench.n_kv_heads))?,
            v: backend.alloc(bytes(step_tokens, bench.n_kv_heads))?,
            out: backend.alloc(bytes(bench.n_queries, n_heads))?,
            seed: 0,
        })
    }

    /// Appends all tokens to every cache; those of the queries stay the running step's.
    fn fill(&mut self) -> Result<()> {
        let AttentionBench { n_tokens, n_queries, .. } = *self.bench;
        let first_query = n_tokens - n_queries;
        for pos in (0..first_query).step_by(STEP_TOKENS as usize) {
            let n = STEP_TOKENS.min(first_query - pos);
            self.append(pos, n)?;
            self.keep(n)?;
        }
        self.append(first_query, n_queries)?;
        let Self { bench, backend, workspace, q, seed, .. } = self;
        let (n_tokens, n_heads) = (n_queries as usize, bench.n_heads());
        randomize(*backend, q, n_tokens * n_heads * bench.head_dim, seed)?;
        let (shape, scale) = (bench.kv_shape(), bench.scale());
        let args = RoundQueriesArgs { q, n_tokens, n_heads, shape, scale, softcap: 0.0 };
        backend.run(workspace, self.cancel, |ws| backend.round_queries(ws, args))?;
        Ok(())
    }

    /// Begins a step of `n` tokens at `pos`.
    fn append(&mut self, pos: u32, n: u32) -> Result<()> {
        let Self { bench, backend, desc, caches, q, k, v, seed, .. } = self;
        let n_elems = n as usize * bench.n_kv_heads * bench.head_dim;
        randomize(*backend, k, n_elems, seed)?;
        randomize(*backend, v, n_elems, seed)?;
        backend.describe(desc, StepRows { row: 0, n_tokens: n, pos })?;
        backend.run(&mut self.workspace, self.cancel, |ws| {
            caches.iter_mut().try_for_each(|cache| {
                let mut layer = cache.layer(0, desc);
                let shape = layer.shape;
                let args = RopeAppendArgs {
                    q,
                    k,
                    v,
                    rope: Rope { table: None, n_pairs: 0, pairing: RopePairing::Halves },
                    n_heads: bench.n_heads(),
                    shape,
                    seqs: &mut [layer.append_target()],
                };
                backend.rope_append(ws, args)
            })
        })?;
        Ok(())
    }

    /// Ends the running step of `n` tokens: they count from now on.
    fn keep(&mut self, n: u32) -> Result<()> {
        let Self { backend, desc, caches, .. } = self;
        backend.run(&mut self.workspace, self.cancel, |ws| {
            caches.iter_mut().try_for_each(|cache| {
                backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut cache.layer(0, desc).stage() })?;
                backend.copy_blocks(
                    ws,
                    CopyBlocksArgs { parts: &mut cache.fill_rings(desc).collect::<Vec<_>>() },
                )
            })
        })?;
        caches.iter_mut().for_each(|cache| cache.advance(n));
        Ok(())
    }

    /// Seconds of that many rounds through the caches, until the device is done with them.
    fn time(&mut self, n_rounds: usize) -> Result<f64> {
        let Self { bench, backend, desc, caches, calls_per_round, phases, q, out, .. } = self;
        let layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer(0, desc)).collect();
        let views: Vec<_> = layers.iter().map(LayerKv::segments).collect();
        let mut round = |ws: &mut B::Workspace| {
            views.iter().cycle().take(*calls_per_round).try_for_each(|segments| {
                let args = AttnArgs {
                    out,
                    q,
                    n_heads: bench.n_heads(),
                    shape: bench.kv_shape(),
                    scale: bench.scale(),
                    softcap: 0.0,
                    sink_logits: None,
                    mask: bench.attention.mask,
                    phases,
                    seqs: &[AttnSeq { desc, segments }],
                };
                backend.attn_rounded(ws, args)
            })
        };
        let start = Instant::now();
        backend.run(&mut self.workspace, self.cancel, |ws| {
            (0..n_rounds).try_for_each(|_| {
                // As sessions do: they replay what a decoded token launches.
                if bench.is_decoding() { backend.repeat(ws, &[], &mut round) } else { round(ws) }
            })
        })?;
        // The device is done when this is here.
        let mut first = [0.0f32];
        backend.download(&mut first, out, 0)?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(first[0].is_finite(), "attention to random numbers gave {}", first[0]);
        Ok(seconds)
    }
}
