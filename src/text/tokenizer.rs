//! The tokenizer of a model: byte-pair encoding with the pipeline of its file.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizer};

use super::merges;
use super::pipeline::Pipeline;
use super::scores::Scores;
use super::special::{SpecialToken, SpecialTokens};
use super::vocabulary::{Merges, TokenKind, Vocabulary};
use crate::alloc::check_room;
use crate::error::{Error, ErrorKind, Result};

/// Control tokens that end a turn or a document in the models that have them.
const END_TOKENS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eos|>",
];

/// Bytes of memory that a text takes at most while it is tokenized, for each of its own: measured by `tests/faults.rs`.
const ROOM_PER_BYTE: usize = 384;

/// Longest run of whitespace, in characters, that the splitting patterns are trusted with: their engine keeps a state
/// for each and gives up in silence at 1,000,000.
const MAX_WHITESPACE_RUN: usize = 500_000;

/// Turns text into tokens and tokens into text. Immutable; can be used by many threads at once.
pub struct Tokenizer {
    model: BytePairs,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Matches every added token in a text.
    with_special: AddedVocabulary,
    /// Matches the added tokens that a user's text may spell.
    without_special: AddedVocabulary,
    tokens: Vec<Token>,
    special: SpecialTokens,
    add_bos: bool,
    /// Spaces to drop from the start of a decoded text, at most.
    strip_start: usize,
}

/// What joins the characters of a text to tokens.
enum BytePairs {
    Ranked(Box<BPE>),
    Scored(Scores),
}

impl BytePairs {
    fn new(vocabulary: &Vocabulary<'_>, pipeline: &Pipeline) -> Result<Self> {
        match &vocabulary.merges {
            Merges::Ranked(pairs) => {
                merges::model(vocabulary, pairs, pipeline).map(|model| Self::Ranked(Box::new(model)))
            }
            Merges::Scored(scores) => Scores::new(vocabulary, scores, pipeline).map(Self::Scored),
        }
    }

    fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<tokenizers::Token>> {
        match self {
            Self::Ranked(model) => model.tokenize(text),
            Self::Scored(scores) => {
                // Nobody asks where in the text a token was.
                let token = |id| tokenizers::Token::new(id, String::new(), (0, 0));
                Ok(scores.tokenize(text).into_iter().map(token).collect())
            }
        }
    }
}

struct Token {
    piece: Box<str>,
    bytes: Box<[u8]>,
    special: bool,
    ends_generation: bool,
}

impl Tokenizer {
    /// Builds a tokenizer from a vocabulary and a pipeline, in time linear in the vocabulary but for sorting scores.
    pub(super) fn new(vocabulary: &Vocabulary<'_>, pipeline: Pipeline) -> Result<Self> {
        vocabulary.check()?;
        for (id, token) in &pipeline.added_tokens {
            let found = vocabulary.tokens.get(*id as usize);
            if found != Some(&token.content.as_str()) {
                let content = &token.content;
                return Err(Error::format(format!(
                    "tokenizer added token {content:?} has id {id}, but the vocabulary has {found:?} there"
                )));
            }
        }
        let model = BytePairs::new(vocabulary, &pipeline)?;
        let normalizer = pipeline.normalizer.as_ref();
        let with_special = added_vocabulary(&pipeline.added_tokens, |_| true, normalizer)?;
        let without_special = added_vocabulary(&pipeline.added_tokens, |token| !token.special, normalizer)?;
        let token = |(id, piece, kind): (u32, &str, TokenKind)| Token {
            piece: piece.into(),
            bytes: pipeline.decoder.bytes(piece, kind).into(),
            special: kind.is_special(),
            ends_generation: vocabulary.special.iter().any(|(token, it)| it == id && token.ends_generation())
                || (kind.is_special() && END_TOKENS.contains(&piece)),
        };
        Ok(Self {
            model,
            with_special,
            without_special,
            tokens: vocabulary.ids().map(token).collect(),
            special: vocabulary.special,
            add_bos: vocabulary.add_bos,
            strip_start: pipeline.decoder.strip_start,
            normalizer: pipeline.normalizer,
            pre_tokenizer: pipeline.pre_tokenizer,
        })
    }

    /// The tokens of `text`.
    ///
    /// With `special`, special tokens spelt in the text become those tokens: for text that a chat template made.
    /// Without, they are text like any other, so that a user's words cannot steer the model.
    ///
    /// With `add_bos`, the beginning-of-text token comes first if the model wants one ([`adds_bos`](Self::adds_bos))
    /// and the text does not spell it itself. An end-of-text token is never appended.
    ///
    /// # Errors
    /// `OutOfMemory` for a text that is too long for the memory there is, which takes up to 384 bytes for each
    /// of its own meanwhile; more than 500,000 whitespace characters in a row; or parts of the tokenizer that contradict each other.
    pub fn encode(&self, text: &str, special: bool, add_bos: bool) -> Result<Vec<u32>> {
        let run = longest_whitespace_run(text);
        if run > MAX_WHITESPACE_RUN {
            return Err(Error::invalid(format!(
                "text has {run} whitespace characters in a row, at most {MAX_WHITESPACE_RUN} can be tokenized"
            )));
        }
        check_room(text.len().saturating_mul(ROOM_PER_BYTE))?;
        let internal = |error| Error::new(ErrorKind::Internal, format!("tokenizer: {error}"));
        let added = if special { &self.with_special } else { &self.without_special };
        let mut pieces = added.extract_and_normalize(self.normalizer.as_ref(), text);
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(internal)?;
        }
        pieces.tokenize(|piece| self.model.tokenize(piece.get())).map_err(internal)?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        let mut ids =
            splits.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten()).map(|token| token.id).peekable();
        let bos = self.bos().filter(|bos| add_bos && self.add_bos && ids.peek() != Some(bos));
        Ok(bos.into_iter().chain(ids).collect())
    }

    /// The text of `ids`, without special tokens if `skip_special`. Bytes that are no UTF-8 become U+FFFD, ids that are
    /// no token add nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let tokens =
            ids.iter().filter_map(|&id| self.token(id)).filter(|token| !(skip_special && token.special));
        let bytes: Vec<u8> = tokens.flat_map(|token| token.bytes.iter().copied()).collect();
        let spaces = bytes.iter().take(self.strip_start).take_while(|&&byte| byte == b' ').count();
        String::from_utf8_lossy(&bytes[spaces..]).into_owned()
    }

    /// The bytes that token `id` adds to a text; they need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.token(id).map(|token| &*token.bytes)
    }

    /// Token `id` as the vocabulary writes it, for example `Ġthe`.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.token(id).map(|token| &*token.piece)
    }

    /// Number of tokens; ids are below it. A model's output may have more rows than this.
    pub fn n_vocab(&self) -> usize {
        self.tokens.len()
    }

    /// Checks that each token has a row of an embedding of `n_rows`.
    ///
    /// # Errors
    /// `Format` for tokens that have none.
    pub fn check_rows(&self, n_rows: usize) -> Result<()> {
        match self.n_vocab() <= n_rows {
            true => Ok(()),
            false => Err(Error::format(format!(
                "tokenizer.ggml.tokens: {} tokens, token_embd.weight has {n_rows} rows",
                self.n_vocab()
            ))),
        }
    }

    /// The token that has this task, if the file names one.
    pub fn special_token(&self, token: SpecialToken) -> Option<u32> {
        self.special.get(token).filter(|&id| self.token(id).is_some())
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.special_token(SpecialToken::Bos)
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<u32> {
        self.special_token(SpecialToken::Eos)
    }

    /// Whether the model wants every text to begin with [`bos`](Self::bos).
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether `id` is a control token or the unknown token: no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| token.special)
    }

    /// Whether a generation is over when the model chooses `id`.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| token.ends_generation)
    }

    fn token(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)
    }
}

/// In characters.
fn longest_whitespace_run(text: &str) -> usize {
    text.split(|c: char| !c.is_whitespace())
        .filter(|run| run.len() > 1)
        .map(|run| run.chars().count())
        .max()
        .unwrap_or(0)
}

/// The matcher of those added tokens that `wanted` names.
fn added_vocabulary(
    added: &[(u32, AddedToken)],
    wanted: impl Fn(&AddedToken) -> bool,
    normalizer: Option<&NormalizerWrapper>,
) -> Result<AddedVocabulary> {
    let wanted: Vec<_> = added.iter().filter(|(_, token)| wanted(token)).collect();
    // Added tokens take their ids from a model: this one knows nothing else.
    let names: Vocab = wanted.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
    let model = BPE::builder().vocab_and_merges(names, Vec::new()).cache_capacity(0).build();
    let model = model.map_err(|error| Error::format(format!("tokenizer added tokens: {error}")))?;
    let tokens: Vec<_> = wanted.iter().map(|(_, token)| token.clone()).collect();
    let mut vocabulary = AddedVocabulary::new();
    vocabulary.add_tokens(&tokens, &model, normalizer);
    Ok(vocabulary)
}
