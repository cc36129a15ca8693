//! A session: one rewindable sequence of tokens with its memory.

mod file;
mod fork;
mod plan;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::alloc::{try_collect, try_reserve};
use crate::backend::args::MAX_TOP;
use crate::cancel::{Cancel, OnProgress, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::kv::restore::Occasion;
use crate::logprobs::{LogTotal, TokenLogprob};
use crate::model::Model;
use crate::model::network::{HandOver, Part, Rows, Sequence, Want};
use crate::sampler::{Candidate, Place, Sampler};

pub(crate) use plan::Shape;
pub use plan::{LayerPlan, MemoryPlan, SessionParams};

/// Tokens that are decoded between restore points.
const DECODED_PER_POINT: usize = 1024;

/// What a session has done since it was opened or reset. What was stopped or failed counts as far as it stayed; what was
/// rewound goes on counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompts, also the parts of several tokens that [`Session::step_batch`] appended.
    pub prompt: Work,
    /// Tokens that were appended one by one, by [`Session::decode`] and [`Session::step_batch`].
    pub generated: Work,
}

/// Tokens, and how long it took to compute them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens.
    pub n_tokens: u64,
    /// Time that passed during their steps; that of a batch counts in each of its sessions.
    pub time: Duration,
}

impl Work {
    fn add(&mut self, n_tokens: usize, time: Duration) {
        self.n_tokens += n_tokens as u64;
        self.time += time;
    }
}

/// What [`Session::prompt`] has found in the session, and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompted {
    /// Tokens at the beginning of the prompt that the session held.
    pub n_common: usize,
    /// Those of them that were kept. One that ends the prompt is computed again if its logits are not there.
    pub n_reused: usize,
    /// Tokens that were computed.
    pub n_computed: usize,
    /// Layers that had given up what they needed where fewer tokens were kept than could have been.
    pub limiting_layers: Vec<usize>,
}

/// One sequence of tokens with its keys and values; one caller at a time.
pub struct Session {
    model: Arc<Model>,
    sequence: Box<dyn Sequence>,
    tokens: Vec<u32>,
    n_ctx: u32,
    chunk_tokens: usize,
    n_bytes: usize,
    kv_bytes: usize,
    has_logits: bool,
    /// Where the last part of several tokens in a batch ended, unless the session was rewound since: one that follows it goes
    /// on with the same prompt.
    part_end: usize,
    counters: Counters,
}

impl Session {
    /// Opens a session: allocates exactly what [`Model::plan`] says for the same parameters.
    ///
    /// # Errors
    /// `Invalid`; `OutOfMemory`, also for more than [`max_bytes`](SessionParams::max_bytes), and then nothing has been
    /// allocated.
    pub fn new(model: &Arc<Model>, params: &SessionParams) -> Result<Self> {
        let (sequence, plan) = model.sequence(params)?;
        Ok(Self::empty(model, sequence, &plan))
    }

    /// A session of what was planned and allocated.
    fn empty(model: &Arc<Model>, sequence: Box<dyn Sequence>, plan: &MemoryPlan) -> Self {
        Self {
            n_ctx: plan.n_ctx,
            chunk_tokens: plan.chunk_tokens as usize,
            sequence,
            model: model.clone(),
            tokens: Vec::new(),
            n_bytes: plan.total_bytes(),
            kv_bytes: plan.kv_bytes(),
            has_logits: false,
            part_end: 0,
            counters: Counters::default(),
        }
    }

    /// The model of this session.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokens that the session holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens at their beginning `tokens` and those that the session holds have in common.
    pub fn n_common(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(held, token)| held == token).count()
    }

    /// Longest context in tokens.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// Most tokens that run through the layers together.
    pub fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// Bytes of memory that the session took, all of it, on whatever device it lies: what [`Model::plan`] said, or
    /// [`fork_plan`](Self::fork_plan).
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Those of them that are its own cache of keys and values.
    pub fn kv_bytes(&self) -> usize {
        self.kv_bytes
    }

    /// What the session has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Makes the session hold `tokens` and nothing else, and computes the logits behind the last one: what is held already
    /// from the beginning on is kept as far as it can be gone back to (see [`rewind`](Self::rewind)), and the rest is
    /// computed. Every prompt of a conversation can so be given as a whole. The logits are those of a session that has
    /// computed everything: on the processor to the bit.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill), for all of `tokens`; what is kept stays then.
    pub fn prompt(
        &mut self,
        tokens: &[u32],
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
    ) -> Result<Prompted> {
        self.check_behind(0, tokens)?;
        let n_common = self.n_common(tokens);
        let is_all = n_common == self.tokens.len() && n_common == tokens.len() && self.has_logits;
        // Else the last token is computed again, for its logits.
        let wanted = if is_all { n_common } else { n_common.min(tokens.len() - 1) };
        let behind = self.sequence.layers_behind(u32::try_from(wanted).unwrap_or(u32::MAX))?;
        let n_reused = self.rewind(wanted)?;
        let limiting_layers = if n_reused < wanted { behind } else { Vec::new() };
        let n_computed = tokens.len() - n_reused;
        // Where the two part there will be a restore point: they may part there again.
        let (common, new) = tokens[n_reused..].split_at(wanted - n_reused);
        for part in [common, new].into_iter().filter(|part| !part.is_empty()) {
            let n_before = self.tokens.len() - n_reused;
            self.prefill(part, cancel, &mut |done, _| on_progress(n_before + done, n_computed))?;
        }
        Ok(Prompted { n_common, n_reused, n_computed, limiting_layers })
    }

    /// Appends `tokens`, chunk by chunk, and computes the logits behind the last one. `on_progress` is told after each chunk
    /// how many tokens are done. Makes restore points before the tokens, behind them, and at ends of chunks that lie one, two,
    /// four, ... chunks before the last one's.
    ///
    /// # Errors
    /// `Invalid` for no tokens or an id beyond the vocabulary, `ContextFull` if they do not all fit; both before
    /// anything is computed. `Cancelled`: the chunks that had finished count, the others do not; [`tokens`](Self::tokens)
    /// says which.
    pub fn prefill(&mut self, tokens: &[u32], cancel: &Cancel, on_progress: OnProgress<'_>) -> Result<()> {
        self.append(tokens, None, cancel, on_progress)
    }

    /// The same, handing over the logits behind every token: the number of the first token among `tokens`, and one row
    /// of the vocabulary's size per token. An error that `each` returns ends the call like a cancel. It runs
    /// within a step and must not compute in this model's sessions itself.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill), and those of `each`.
    pub fn prefill_each(&mut self, tokens: &[u32], cancel: &Cancel, each: HandOver<'_>) -> Result<()> {
        let rows = try_collect(0..tokens.len())?;
        let wanted = Rows { rows: &rows, logits: Some(each), hidden: &mut [] };
        self.append(tokens, Some(wanted), cancel, &mut |_, _| true)
    }

    /// Appends `tokens` like [`prefill`](Self::prefill), and computes what is wanted of chosen ones: `rows` are their
    /// numbers among `tokens`, rising. `logits`, (rows, n_vocab), gets the logits behind each. `hidden`, (rows, d_model),
    /// gets the last hidden state of each, behind the final norm, which the output matrix is multiplied with. `None`
    /// spares the work. There are [`logits`](Self::logits) afterwards if those behind the last token were wanted.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill); the rows of chunks that had finished are there then. `Invalid` for rows that
    /// do not rise or are beyond the tokens, and for outputs of another length.
    pub fn prefill_rows(
        &mut self,
        tokens: &[u32],
        rows: &[usize],
        logits: Option<&mut [f32]>,
        hidden: Option<&mut [f32]>,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
    ) -> Result<()> {
        let (n_vocab, d_model) = (self.model.config().n_vocab, self.model.config().d_model);
        check_rows(rows, tokens.len())?;
        for (name, out, width) in [("logits", &logits, n_vocab), ("hidden states", &hidden, d_model)] {
            if let Some(has) = out.as_ref().map(|out| out.len()).filter(|&has| has != rows.len() * width) {
                let n_rows = rows.len();
                return Err(Error::invalid(format!(
                    "room for {has} {name}: {n_rows} rows have {width} each"
                )));
            }
        }
        let mut copy = logits.map(|logits| {
            move |first: usize, rows: &[f32]| {
                logits[first * n_vocab..][..rows.len()].copy_from_slice(rows);
                Ok(())
            }
        });
        let logits = copy.as_mut().map(|copy| copy as HandOver<'_>);
        let wanted = Rows { rows, logits, hidden: hidden.unwrap_or_default() };
        self.append(tokens, Some(wanted), cancel, on_progress)
    }

    /// Appends `tokens`, chunk by chunk, and computes what is wanted of them: the logits behind the last one if nothing else
    /// is.
    fn append(
        &mut self,
        tokens: &[u32],
        mut wanted: Option<Rows<'_>>,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
    ) -> Result<()> {
        self.check(tokens)?;
        cancel.check()?;
        self.sequence.keep(Occasion::Turn);
        let n_tokens = tokens.len();
        let leaves_logits = wanted
            .as_ref()
            .is_none_or(|rows| rows.logits.is_some() && rows.rows.last() == Some(&(n_tokens - 1)));
        // The logits of the step before are given up row by row.
        self.has_logits &= wanted.as_ref().is_none_or(|rows| rows.logits.is_none());
        let mut done = 0;
        for chunk in tokens.chunks(self.chunk_tokens) {
            let n_left = n_tokens - done - chunk.len();
            let want = match &mut wanted {
                Some(rows) => Want::Rows(rows, done),
                None if n_left == 0 => Want::Last,
                None => Want::Nothing,
            };
            let time = self.step(chunk, want, cancel)?;
            self.counters.prompt.add(chunk.len(), time);
            done += chunk.len();
            self.has_logits = n_left == 0 && leaves_logits;
            match n_left.div_ceil(self.chunk_tokens) {
                0 => self.sequence.keep(Occasion::Turn),
                n if n.is_power_of_two() => self.sequence.keep(Occasion::Distance),
                _ => {}
            }
            go_on(on_progress(done, n_tokens))?;
        }
        Ok(())
    }

    /// Appends one token and computes the logits behind it. Every so many tokens there is a restore point.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill).
    pub fn decode(&mut self, token: u32, cancel: &Cancel) -> Result<()> {
        self.check(&[token])?;
        let time = self.step(&[token], Want::Last, cancel)?;
        self.decoded(time);
        Ok(())
    }

    /// Notes that a token was decoded.
    fn decoded(&mut self, time: Duration) {
        self.counters.generated.add(1, time);
        self.has_logits = true;
        if self.tokens.len().is_multiple_of(DECODED_PER_POINT) {
            self.sequence.keep(Occasion::Distance);
        }
    }

    /// Appends one or more tokens to each of several sessions of one model, at their own positions, and computes the logits
    /// behind each one's last: in one step, which reads the weights once. So a prompt can be computed chunk by chunk
    /// beside the tokens of others, who need not wait for all of it. On the processor each session gets the bits that it
    /// gets alone.
    ///
    /// The first session lends its working memory: all tokens together are at most a chunk of it, and how many rows of
    /// logits it was opened for is how many are computed together.
    ///
    /// A single token counts as generated, several are a part of a prompt. Parts that follow each other are one prompt:
    /// there are restore points where it begins and where it ends, like those of [`prefill`](Self::prefill), and, with as
    /// little weight as those between its chunks, where one part follows another.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode) for any of them, and `Invalid` for no sessions, sessions of several models, more
    /// tokens of a session than its own chunks have, more of all than those of the first, or different types of cache or
    /// precisions. All of them stand where they stood then, but for their logits after an error of the device.
    pub fn step_batch(batch: &mut [(&mut Session, &[u32])], cancel: &Cancel) -> Result<()> {
        let Some((first, _)) = batch.first() else { return Err(Error::invalid("a batch of no sessions")) };
        let (model, most) = (first.model.clone(), first.chunk_tokens);
        for (i, (session, tokens)) in batch.iter_mut().enumerate() {
            if !Arc::ptr_eq(&session.model, &model) {
                return Err(Error::invalid("a batch with sessions of several models"));
            }
            session
                .check_part(tokens)
                .map_err(|error| Error::new(error.kind(), format!("session {i} of the batch: {error}")))?;
            try_reserve(&mut session.tokens, tokens.len())?;
        }
        let n_tokens: usize = batch.iter().map(|(_, tokens)| tokens.len()).sum();
        if n_tokens > most {
            return Err(Error::invalid(format!(
                "a batch of {n_tokens} tokens: the first session's chunks hold {most}"
            )));
        }
        cancel.check()?;
        let begin_prompts = |(session, tokens): &&mut (&mut Session, &[u32])| {
            tokens.len() > 1 && session.part_end != session.tokens.len()
        };
        batch.iter_mut().filter(begin_prompts).for_each(|(session, _)| session.sequence.keep(Occasion::Turn));
        let parts =
            batch.iter_mut().map(|(session, tokens)| -> Part<'_, _> { (&mut *session.sequence, *tokens) });
        let mut parts = try_collect(parts)?;
        let begun = Instant::now();
        let result = model.step_batch(&mut parts, cancel);
        let time = begun.elapsed();
        for (session, tokens) in batch {
            match &result {
                Ok(()) => session.took_part(tokens, time),
                Err(error) => session.has_logits &= leaves_logits(error),
            }
        }
        result
    }

    /// Whether `tokens` can be the session's part of a batch.
    fn check_part(&self, tokens: &[u32]) -> Result<()> {
        self.check(tokens)?;
        let (has, most) = (tokens.len(), self.chunk_tokens);
        match has <= most {
            true => Ok(()),
            false => Err(Error::invalid(format!("{has} tokens: its chunks hold {most}"))),
        }
    }

    /// Notes that `tokens` were appended in a batch.
    fn took_part(&mut self, tokens: &[u32], time: Duration) {
        let begin = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        if tokens.len() == 1 {
            return self.decoded(time);
        }
        if self.part_end == begin {
            // The prompt did not end there.
            self.sequence.renew(begin, Occasion::Distance);
        }
        self.counters.prompt.add(tokens.len(), time);
        self.has_logits = true;
        self.part_end = self.tokens.len();
        self.sequence.keep(Occasion::Turn);
    }

    /// Logits behind the last token: (n_vocab).
    ///
    /// # Errors
    /// `Invalid` if nothing has been computed behind the session's last token; `Device`.
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.check_logits()?;
        self.sequence.logits()
    }

    /// The last hidden state behind the last token, behind the final norm: (d_model). The output matrix times it is the
    /// logits.
    ///
    /// # Errors
    /// `Invalid` if the session is empty or was rewound, or if a call that was to append tokens has failed since; `Device`.
    pub fn hidden(&mut self) -> Result<&[f32]> {
        self.sequence.hidden()
    }

    /// The `n` likeliest tokens behind the last one, likeliest first, found where the logits are: at most
    /// [`MAX_TOP`] and the vocabulary.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits); `Invalid` for more tokens than that.
    pub fn top(&mut self, n: usize) -> Result<Vec<Candidate>> {
        self.check_logits()?;
        let most = MAX_TOP.min(self.model.config().n_vocab);
        if n > most {
            return Err(Error::invalid(format!("the {n} likeliest tokens: at most {most} can be had")));
        }
        self.sequence.top(n)
    }

    /// The `n` likeliest tokens with their log-probabilities over the whole vocabulary, likeliest first: at most
    /// [`MAX_TOP`] and the vocabulary. Takes all logits from the device.
    ///
    /// # Errors
    /// Those of [`top`](Self::top).
    pub fn top_logprobs(&mut self, n: usize) -> Result<Vec<TokenLogprob>> {
        let top = self.top(n)?;
        let total = LogTotal::of(self.logits()?);
        let logprob = |Candidate { token, logit }| TokenLogprob { token, logprob: total.logprob(logit) };
        try_collect(top.into_iter().map(logprob))
    }

    /// The log-probability of `token` behind the last one, over the whole vocabulary. Takes all logits from the device.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits); `Invalid` for a token beyond the vocabulary.
    pub fn logprob(&mut self, token: u32) -> Result<f32> {
        self.check_tokens(&[token])?;
        let logits = self.logits()?;
        Ok(LogTotal::of(logits).logprob(logits[token as usize]))
    }

    /// Chooses the token that comes next, from no more logits than the sampler looks at. The tokens that the session holds
    /// are what its penalties look back at.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits) and of [`Sampler::sample`].
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let place = sampler.behind(&self.tokens)?;
        self.sample_at(place)
    }

    /// The same among the tokens that a mask allows: those whose bit is set, bit `token % 32` of word `token / 32`, as
    /// grammar engines fill masks. Tokens behind the last word are not allowed.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn sample_masked(&mut self, sampler: &mut Sampler, mask: &[u32]) -> Result<u32> {
        let place = sampler.behind(&self.tokens)?.masked(mask);
        self.sample_at(place)
    }

    fn sample_at(&mut self, place: Place<'_>) -> Result<u32> {
        let most = MAX_TOP.min(self.model.config().n_vocab);
        match place.n_candidates().filter(|&n| n <= most) {
            Some(n) => place.sample_from(&self.top(n)?),
            None => {
                self.check_logits()?;
                place.sample(self.sequence.logits()?)
            }
        }
    }

    /// How decoding runs on the device, if there is something to tell.
    pub fn decode_note(&self) -> Option<String> {
        self.sequence.repeat_note()
    }

    fn check_logits(&self) -> Result<()> {
        match self.has_logits {
            true => Ok(()),
            false => Err(Error::invalid("no logits: the session has computed nothing behind its last token")),
        }
    }

    /// Goes back to `n_tokens` tokens and returns how many the session holds then: that many, or fewer where layers have
    /// given up what they would need and no restore point has it. Going back to one cache block behind the furthest token
    /// so far always works, and so does going back to where a prompt began or ended, or up to 128 tokens before that, as long
    /// as its restore point has room.
    ///
    /// # Errors
    /// `Invalid` if the session holds fewer tokens; `Device`, and then it is empty.
    pub fn rewind(&mut self, n_tokens: usize) -> Result<usize> {
        if n_tokens > self.tokens.len() {
            let has = self.tokens.len();
            return Err(Error::invalid(format!(
                "cannot rewind to {n_tokens} tokens, the session holds {has}"
            )));
        }
        if n_tokens == self.tokens.len() {
            return Ok(n_tokens);
        }
        let kept = self.sequence.nearest_restorable(u32::try_from(n_tokens).unwrap_or(u32::MAX));
        let result = self.sequence.rewind(kept);
        self.tokens.truncate(self.sequence.n_tokens() as usize);
        self.has_logits = false;
        self.part_end = 0;
        result.map(|()| self.tokens.len())
    }

    /// Positions, rising, of what can be gone back to where layers have given up a part of the context.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn restore_points(&self) -> Result<Vec<usize>> {
        self.sequence.restore_points()
    }

    /// Bytes of the host's memory that restore points hold now.
    pub fn restore_bytes(&self) -> usize {
        self.sequence.restore_bytes()
    }

    /// Forgets everything: the session is as it was when it was opened.
    pub fn reset(&mut self) {
        // An empty cache needs nothing from the device.
        _ = self.sequence.rewind(0);
        self.tokens.clear();
        self.has_logits = false;
        self.part_end = 0;
        self.counters = Counters::default();
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let n_vocab = self.model.config().n_vocab;
        match tokens.iter().find(|&&token| token as usize >= n_vocab) {
            Some(token) => Err(Error::invalid(format!("token {token} of a vocabulary of {n_vocab}"))),
            None => Ok(()),
        }
    }

    /// Whether `tokens` can be appended.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        self.check_behind(self.tokens.len(), tokens)
    }

    /// Whether `tokens` can stand behind the first `has` tokens.
    fn check_behind(&self, has: usize, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("no tokens"));
        }
        self.check_tokens(tokens)?;
        let (new, n_ctx) = (tokens.len(), self.n_ctx);
        match new <= (n_ctx as usize).saturating_sub(has) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::ContextFull,
                format!("{new} more tokens behind {has} do not fit in a context of {n_ctx}"),
            )),
        }
    }

    /// Appends a chunk; returns how long it took.
    fn step(&mut self, tokens: &[u32], want: Want<'_, '_>, cancel: &Cancel) -> Result<Duration> {
        try_reserve(&mut self.tokens, tokens.len())?;
        let begun = Instant::now();
        let result = self.sequence.step(tokens, want, cancel);
        self.has_logits &= result.as_ref().is_err_and(leaves_logits);
        result?;
        self.tokens.extend_from_slice(tokens);
        Ok(begun.elapsed())
    }
}

/// Refuses rows that do not rise or that `n_tokens` tokens do not have.
fn check_rows(rows: &[usize], n_tokens: usize) -> Result<()> {
    if let Some(pair) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::invalid(format!("rows must rise: {} behind {}", pair[1], pair[0])));
    }
    match rows.last().filter(|&&row| row >= n_tokens) {
        Some(row) => Err(Error::invalid(format!("row {row} of {n_tokens} tokens"))),
        None => Ok(()),
    }
}

/// Whether a step that ended like this has not touched the logits of the one before. Where the device itself fails, they
/// may be half-way between the two.
fn leaves_logits(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Device | ErrorKind::Internal)
}
