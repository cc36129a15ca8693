//! From a session to an answer: token by token, as text.

use crate::alloc::{try_collect_ok, try_string};
use crate::cancel::{Cancel, OnProgress};
use crate::error::{ErrorKind, Result};
use crate::sampler::Sampler;
use crate::session::Session;
use crate::text::TextStream;

/// When an answer ends. By default only where the model ends it, or the context is full.
#[derive(Clone, Debug)]
pub struct GenerateParams {
    /// Most tokens of the answer; `usize::MAX` means any number.
    pub max_tokens: usize,
    /// Whether tokens that end an answer are tokens like any other; they are no text.
    pub ignore_end: bool,
    /// Strings that end the answer, as [`TextStream`] finds them. They are no part of it.
    pub stops: Vec<String>,
}

impl Default for GenerateParams {
    fn default() -> Self {
        Self { max_tokens: usize::MAX, ignore_end: false, stops: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    End,
    /// It has as many tokens as were asked for.
    Length,
    /// A stop string came, the one of this number.
    StopString(usize),
    /// The callback asked to stop.
    Callback,
    /// The context has no room for more.
    ContextFull,
    /// The caller's [`Cancel`] was set.
    Cancelled,
}

/// What [`Session::generate`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Tokens of the answer.
    pub n_tokens: usize,
    /// Why it ended.
    pub reason: StopReason,
    /// The last token of the answer, if the session does not hold it yet: nothing was computed behind it. To go on,
    /// generate behind it.
    pub pending_token: Option<u32>,
    /// The token with which the model ended the answer. It is no part of it: it was not told, and the session does not hold it.
    pub end_token: Option<u32>,
}

/// Told about each token of an answer, with the text that is certain since, which may be empty; and about no token, with the
/// text that was held back until the end, if there is any. False ends the answer: nothing more is told, and text that was
/// held back is dropped.
pub type OnText<'a> = &'a mut dyn FnMut(Option<u32>, &str) -> bool;

impl Session {
    /// Appends `tokens` as [`prefill`](Self::prefill) does, which tells `on_progress`, and generates an answer to all that the
    /// session then holds; without tokens, to what it holds. Special tokens of the answer are told, but are no text.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill), [`sample`](Self::sample) and [`decode`](Self::decode). `ContextFull` and
    /// `Cancelled` are errors until the first token of the answer only: then they end it. After an error, text that was held
    /// back has been told, and the session holds all tokens that were told, but for the last, or what
    /// [`prefill`](Self::prefill) leaves of a prompt.
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        tokens: &[u32],
        params: &GenerateParams,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
        on_text: OnText<'_>,
    ) -> Result<Generated> {
        if !tokens.is_empty() {
            self.prefill(tokens, cancel, on_progress)?;
        }
        cancel.check()?;
        let stops = try_collect_ok(params.stops.iter().map(|stop| try_string(stop)))?;
        let mut stream = TextStream::new(stops);
        let result = self.answer(sampler, params, cancel, &mut stream, on_text);
        let rest = stream.finish()?;
        let may_be_told = !matches!(result, Ok(Generated { reason: StopReason::Callback, .. }));
        if may_be_told && !rest.is_empty() {
            on_text(None, rest);
        }
        result
    }

    fn answer(
        &mut self,
        sampler: &mut Sampler,
        params: &GenerateParams,
        cancel: &Cancel,
        stream: &mut TextStream,
        on_text: OnText<'_>,
    ) -> Result<Generated> {
        let model = self.model().clone();
        let tokenizer = model.tokenizer();
        let mut answer =
            Generated { n_tokens: 0, reason: StopReason::Length, pending_token: None, end_token: None };
        let ended = |answer, reason| Ok(Generated { reason, ..answer });
        while answer.n_tokens < params.max_tokens {
            if let Some(token) = answer.pending_token {
                if let Err(error) = self.decode(token, cancel) {
                    return match error.kind() {
                        ErrorKind::ContextFull => ended(answer, StopReason::ContextFull),
                        ErrorKind::Cancelled => ended(answer, StopReason::Cancelled),
                        _ => Err(error),
                    };
                }
                answer.pending_token = None;
            }
            let token = self.sample(sampler)?;
            if tokenizer.is_end_of_generation(token) && !params.ignore_end {
                return ended(Generated { end_token: Some(token), ..answer }, StopReason::End);
            }
            answer.n_tokens += 1;
            answer.pending_token = Some(token);
            let goes_on = on_text(answer.pending_token, stream.push_token(tokenizer, token)?);
            match stream.stop_index() {
                Some(stop) => return ended(answer, StopReason::StopString(stop)),
                None if !goes_on => return ended(answer, StopReason::Callback),
                None => {}
            }
        }
        Ok(answer)
    }
}
