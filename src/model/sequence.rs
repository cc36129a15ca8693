//! One sequence of tokens on a backend: its cache, its working memory, and the steps that append to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::alloc::{HostBuf, try_box, try_collect, try_vec, try_with_capacity};
use crate::backend::Backend;
use crate::backend::args::{StepRows, TopArgs};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kv::cache::KvCache;
use crate::kv::file;
use crate::kv::restore::Occasion;
use crate::model::forward::{SeqStep, Step, final_norm};
use crate::model::network::{Part, Parts, Sequence, Want};
use crate::model::scratch::Activations;
use crate::sampler::Candidate;
use crate::session::{MemoryPlan, SessionParams, Shape};

/// What a step that repeats itself consists of: the first word of its key. The others say whose buffers it works on.
mod repeated {
    /// A token without its logits.
    pub const TOKEN: u64 = 0;
    /// A token and its logits.
    pub const TOKEN_AND_LOGITS: u64 = 1;
    /// A token of each of several sessions: the layers.
    pub const BATCH_LAYERS: u64 = 2;
    /// The same: what comes last.
    pub const BATCH_ENDS: u64 = 3;
}

pub(super) struct NetworkSequence<B: Backend> {
    network: Arc<Parts<B>>,
    /// Another one for every sequence of the process, and whenever its buffers are replaced.
    id: u64,
    kv: KvCache<B>,
    acts: Activations<B>,
    workspace: B::Workspace,
    desc: B::Descriptor,
    /// (logits_rows, n_vocab), where the caller reads them
    logits: HostBuf,
    /// Whether the last row's logits are there.
    has_read_logits: bool,
    /// Where in `acts.x` the last token's row is, if it still is.
    last_row: Option<usize>,
    /// (d_model): its hidden state, where the caller reads it
    hidden: HostBuf,
    shape: Shape,
}

/// Another number for every call.
fn next_id() -> u64 {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

impl<B: Backend> NetworkSequence<B> {
    /// Allocates a sequence.
    pub fn new(network: &Arc<Parts<B>>, shape: &Shape) -> Result<Self> {
        let Parts { backend, config, .. } = &**network;
        let layouts = network.layouts(shape, &config.attention)?;
        let restore_bytes = network.restore_bytes(shape, &layouts);
        let kv = KvCache::new(backend, layouts, &config.attention, restore_bytes)?;
        Self::with_cache(network, shape, kv)
    }

    /// Allocates what a sequence has besides its cache.
    fn with_cache(network: &Arc<Parts<B>>, shape: &Shape, kv: KvCache<B>) -> Result<Self> {
        let Parts { backend, config, host, .. } = &**network;
        Ok(Self {
            id: next_id(),
            kv,
            acts: Activations::new(backend, config, shape.chunk_tokens as usize, shape.logits_rows)?,
            workspace: backend.workspace(&network.workspace_shape(shape), shape.precision)?,
            desc: backend.descriptor()?,
            logits: HostBuf::new(Activations::<B>::logits_bytes(config, shape.logits_rows), host)?,
            has_read_logits: false,
            last_row: None,
            hidden: HostBuf::new(Activations::<B>::hidden_bytes(config), host)?,
            shape: shape.clone(),
            network: network.clone(),
        })
    }

    /// Whether it is one of the network's.
    pub fn is_of(&self, network: &Arc<Parts<B>>) -> bool {
        Arc::ptr_eq(&self.network, network)
    }

    /// See [`Engine::step_batch`](super::network::Engine::step_batch). The first sequence lends its working memory.
    pub fn step_batch(batch: &mut [Part<'_, Self>], cancel: &Cancel) -> Result<()> {
        Self::check_alike(batch)?;
        let mut rows = try_with_capacity(batch.len())?;
        let mut n_rows = 0;
        for (sequence, tokens) in batch.iter_mut() {
            sequence.last_row = None;
            let own = sequence.describe(n_rows, tokens)?;
            n_rows += own.n_tokens;
            rows.push(own);
        }
        let (n_rows, n_sessions) = (n_rows as usize, batch.len());
        // Tokens of the same sessions are decoded again and again by the same ops.
        let is_repeated = n_rows == n_sessions;
        let key = |what: u64| {
            let ids = batch.iter().map(|(sequence, _)| sequence.id);
            is_repeated.then(|| try_collect([what].into_iter().chain(ids))).transpose()
        };
        let (layers_key, ends_key) = (key(repeated::BATCH_LAYERS)?, key(repeated::BATCH_ENDS)?);
        let tokens = try_collect(batch.iter().flat_map(|(_, tokens)| tokens.iter().copied()))?;

        let Some(((leader, _), members)) = batch.split_first_mut() else {
            return Err(Error::invalid("a batch of no sessions"));
        };
        let network = leader.network.clone();
        let Parts { backend, config, weights, .. } = &*network;
        let (n_vocab, d_model, logits_rows) = (config.n_vocab, config.d_model, leader.shape.logits_rows);
        backend.upload(&mut leader.acts.tokens, 0, &tokens)?;
        let mut seqs = try_with_capacity(n_sessions)?;
        seqs.push(SeqStep { desc: &leader.desc, kv: &mut leader.kv });
        let mut outs = try_with_capacity(n_sessions)?;
        for (member, _) in members {
            seqs.push(SeqStep { desc: &member.desc, kv: &mut member.kv });
            outs.push(&mut member.acts);
        }
        let acts = &mut leader.acts;
        backend.run(&mut leader.workspace, cancel, |ws| {
            let mut step = Step { backend, config, weights, acts, seqs: &mut seqs, n_rows };
            repeat(backend, ws, layers_key.as_deref(), |ws| step.layers(ws))?;
            let (mut head, mut rings) = step.ends()?;
            backend.commit(ws);
            if !is_repeated {
                head.gather(rows.iter().map(StepRows::last_row))?;
            }
            // A row for each session from here on. The leader's own logits are those of row 0 and stay where they were
            // computed: that row comes last.
            for first in (0..n_sessions).step_by(logits_rows).rev() {
                let n = logits_rows.min(n_sessions - first);
                head.logits(ws, first, n)?;
                for row in first.max(1)..first + n {
                    let from = (row - first) * n_vocab;
                    backend.copy(&mut outs[row - 1].logits, 0, &head.acts.logits, from..from + n_vocab)?;
                }
            }
            repeat(backend, ws, ends_key.as_deref(), |ws| {
                for (row, out) in (1..).zip(&mut outs) {
                    backend.copy(&mut out.x, 0, &head.acts.x, row * d_model..(row + 1) * d_model)?;
                }
                rings.fill(ws)
            })
        })?;
        for ((sequence, _), rows) in batch.iter_mut().zip(rows) {
            sequence.kv.advance(rows.n_tokens);
            sequence.has_read_logits = false;
            sequence.last_row = Some(0);
        }
        Ok(())
    }

    /// Whether all can be computed in the working memory of one.
    fn check_alike(batch: &[Part<'_, Self>]) -> Result<()> {
        let has = |(sequence, _): &Part<'_, Self>| (sequence.shape.kv_type, sequence.shape.precision);
        match batch.windows(2).find(|pair| has(&pair[0]) != has(&pair[1])) {
            Some(pair) => Err(Error::invalid(format!(
                "a batch of sessions that differ in cache type or precision: {:?} and {:?}",
                has(&pair[0]),
                has(&pair[1])
            ))),
            None => Ok(()),
        }
    }

    /// Sees to it that the tokens to come have places.
    fn make_room(&mut self) -> Result<()> {
        if self.kv.has_room() {
            return Ok(());
        }
        // What was recorded reads and writes other buffers.
        self.id = next_id();
        self.kv.make_room(&self.network.backend, &mut self.workspace)
    }

    /// Says that the coming `tokens` are rows of the step from `row` on; returns what was said.
    fn describe(&mut self, row: u32, tokens: &[u32]) -> Result<StepRows> {
        let n_tokens =
            u32::try_from(tokens.len()).map_err(|_| Error::invalid("a step of too many tokens"))?;
        self.make_room()?;
        let rows = StepRows { row, n_tokens, pos: self.kv.n_tokens() };
        self.network.backend.describe(&mut self.desc, rows)?;
        Ok(rows)
    }
}

/// Runs `ops`: as a call that repeats itself if there is a key.
fn repeat<B: Backend>(
    backend: &B,
    ws: &mut B::Workspace,
    key: Option<&[u64]>,
    mut ops: impl FnMut(&mut B::Workspace) -> Result<()>,
) -> Result<()> {
    match key {
        Some(key) => backend.repeat(ws, key, ops),
        None => ops(ws),
    }
}

impl<B: Backend> Sequence for NetworkSequence<B> {
    fn step(&mut self, tokens: &[u32], want: Want<'_, '_>, cancel: &Cancel) -> Result<()> {
        let network = self.network.clone();
        let Parts { backend, config, weights, .. } = &*network;
        let (n_rows, n_vocab, d_model) = (tokens.len(), config.n_vocab, config.d_model);
        let logits_rows = self.shape.logits_rows;
        self.last_row = None;
        let rows = self.describe(0, tokens)?;
        backend.upload(&mut self.acts.tokens, 0, tokens)?;
        let logits = self.logits.of_mut::<f32>();
        let (acts, desc, kv, id) = (&mut self.acts, &self.desc, &mut self.kv, self.id);
        backend.run(&mut self.workspace, cancel, |ws| {
            let seqs = &mut [SeqStep { desc, kv }];
            let mut step = Step { backend, config, weights, acts, seqs, n_rows };
            let is_last = match want {
                Want::Nothing => false,
                Want::Last => true,
                Want::Rows(wanted, first) => {
                    step.layers(ws)?;
                    let (mut head, mut rings) = step.ends()?;
                    if !wanted.hidden.is_empty() {
                        for part in wanted.parts(first..first + n_rows, n_rows) {
                            let row = wanted.rows[part.start] - first;
                            let hidden = &mut wanted.hidden[part.start * d_model..part.end * d_model];
                            backend.download(hidden, &head.acts.x, row * d_model)?;
                            final_norm(backend, config, weights, hidden)?;
                        }
                    }
                    let parts = wanted.parts(first..first + n_rows, logits_rows);
                    if let Some(hand_over) = &mut wanted.logits {
                        for part in parts {
                            let (row, n) = (wanted.rows[part.start] - first, part.len());
                            head.logits(ws, row, n)?;
                            backend.download(&mut logits[..n * n_vocab], &head.acts.logits, 0)?;
                            hand_over(part.start, &logits[..n * n_vocab])?;
                        }
                    }
                    backend.commit(ws);
                    return rings.fill(ws);
                }
            };
            let ops = |ws: &mut B::Workspace| {
                step.layers(ws)?;
                let (mut head, mut rings) = step.ends()?;
                // The logits of the step before are given up only for those of one that counts.
                backend.commit(ws);
                if is_last {
                    head.logits(ws, n_rows - 1, 1)?;
                }
                rings.fill(ws)
            };
            // Token after token is decoded by the same ops.
            let key = [if is_last { repeated::TOKEN_AND_LOGITS } else { repeated::TOKEN }, id];
            repeat(backend, ws, (n_rows == 1).then_some(&key), ops)
        })?;
        self.kv.advance(rows.n_tokens);
        self.has_read_logits = false;
        self.last_row = Some(rows.last_row());
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32]> {
        let logits = &mut self.logits.of_mut::<f32>()[..self.network.config.n_vocab];
        if !self.has_read_logits {
            self.network.backend.download(logits, &self.acts.logits, 0)?;
            self.has_read_logits = true;
        }
        Ok(logits)
    }

    fn hidden(&mut self) -> Result<&[f32]> {
        let Parts { backend, config, weights, .. } = &*self.network;
        let Some(row) = self.last_row else {
            return Err(Error::invalid(
                "no hidden state: the last row of the last step is not there any more",
            ));
        };
        let hidden = self.hidden.of_mut::<f32>();
        backend.download(hidden, &self.acts.x, row * config.d_model)?;
        final_norm(backend, config, weights, hidden)?;
        Ok(hidden)
    }

    fn top(&mut self, n: usize) -> Result<Vec<Candidate>> {
        let Parts { backend, config, .. } = &*self.network;
        let Activations { logits, top_values, top_columns, .. } = &mut self.acts;
        let (mut values, mut columns) = (try_vec(n, 0.0)?, try_vec(n, 0u32)?);
        backend.run(&mut self.workspace, &Cancel::default(), |ws| {
            let args =
                TopArgs { values: top_values, columns: top_columns, x: logits, width: config.n_vocab, n };
            backend.top(ws, args)
        })?;
        backend.download(&mut values, top_values, 0)?;
        backend.download(&mut columns, top_columns, 0)?;
        try_collect(columns.into_iter().zip(values).map(|(token, logit)| Candidate { token, logit }))
    }

    fn repeat_note(&self) -> Option<String> {
        self.network.backend.repeat_note(&self.workspace)
    }

    fn n_tokens(&self) -> u32 {
        self.kv.n_tokens()
    }

    fn keep(&mut self, occasion: Occasion) {
        // A point that cannot be made is not there: it only spares work. A device that has failed says so in the next step.
        _ = self.kv.keep(&self.network.backend, occasion);
    }

    fn renew(&mut self, n_tokens: usize, occasion: Occasion) {
        self.kv.renew(u32::try_from(n_tokens).unwrap_or(u32::MAX), occasion);
    }

    fn restore_points(&self) -> Result<Vec<usize>> {
        try_collect(self.kv.restore_points().map(|position| position as usize))
    }

    fn restore_bytes(&self) -> usize {
        self.kv.restore_bytes()
    }

    fn nearest_restorable(&self, n_tokens: u32) -> u32 {
        self.kv.nearest_restorable(n_tokens)
    }

    fn layers_behind(&self, n_tokens: u32) -> Result<Vec<usize>> {
        self.kv.layers_behind(n_tokens)
    }

    fn rewind(&mut self, n_tokens: u32) -> Result<()> {
        self.last_row = None;
        self.kv.rewind(&self.network.backend, n_tokens)
    }

    fn fork_plan(&self, params: &SessionParams) -> Result<MemoryPlan> {
        let Parts { backend, config, .. } = &*self.network;
        let shape = params.shape_of_fork(&self.shape, self.kv.n_tokens())?;
        let mut plan = self.network.plan(&shape, &config.attention)?;
        let forks = self.kv.plan_fork(self.network.layouts(&shape, &config.attention)?)?;
        for (layer, fork) in plan.layers.iter_mut().zip(&forks) {
            layer.n_slots = fork.own.n_slots();
            layer.kv_bytes = fork.kv_bytes(backend);
            plan.parent_bytes += fork.parent_bytes(backend);
        }
        Ok(plan)
    }

    fn fork(&mut self, params: &SessionParams) -> Result<Box<dyn Sequence>> {
        let network = self.network.clone();
        let Parts { backend, config, .. } = &*network;
        let shape = params.shape_of_fork(&self.shape, self.kv.n_tokens())?;
        let layouts = network.layouts(&shape, &config.attention)?;
        let restore_bytes = network.restore_bytes(&shape, &layouts);
        let plan = self.kv.plan_fork(layouts)?;
        // All else comes first: once the cache is forked, nothing is refused.
        let empty = KvCache::new(backend, Vec::new(), &[], 0)?;
        let mut fork = try_box(Self::with_cache(&network, &shape, empty)?)?;
        backend.run(&mut self.workspace, &Cancel::default(), |_| {
            backend.copy(&mut fork.acts.logits, 0, &self.acts.logits, 0..config.n_vocab)
        })?;
        fork.kv = self.kv.fork(backend, &mut self.workspace, plan, restore_bytes)?;
        // What was recorded reads and writes other buffers.
        self.id = next_id();
        Ok(fork)
    }

    fn save(&self, tokens: &[u32], file: &mut file::Writer<'_>) -> Result<()> {
        let (identity, held) = (self.network.identity(self.shape.kv_type), self.kv.held()?);
        identity.write(file, &held, tokens)?;
        self.kv.save(&self.network.backend, &identity, &held, file)
    }

    fn load(&mut self, file: &mut file::Reader<'_>) -> Result<Vec<u32>> {
        let network = self.network.clone();
        let identity = network.identity(self.shape.kv_type);
        let (held, tokens) = identity.read(file, self.shape.n_ctx, network.config.n_vocab)?;
        self.kv.load(&network.backend, &identity, &held, file)?;
        Ok(tokens)
    }
}
