//! Tokens that have a task, as files name them.

/// The task of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialToken {
    /// Begins a text.
    Bos,
    /// Ends a text.
    Eos,
    /// Ends a turn of a conversation.
    Eot,
    /// Ends a message of a turn that goes on.
    Eom,
    /// Stands for what no other token can spell.
    Unk,
    /// Stands between parts.
    Sep,
    /// Fills up what is too short.
    Pad,
    /// Begins what is to be classified.
    Cls,
    /// Stands for what is to be guessed.
    Mask,
    /// Fill in the middle: comes before the part in front of the gap.
    FimPrefix,
    /// Fill in the middle: comes before the part behind the gap.
    FimSuffix,
    /// Fill in the middle: comes before what fills the gap.
    FimMiddle,
    /// Fill in the middle: fills up what is too short.
    FimPad,
    /// Fill in the middle: comes before the name of a repository.
    FimRepository,
    /// Fill in the middle: stands between files.
    FimSeparator,
}

impl SpecialToken {
    /// All of them, in their order.
    pub const ALL: [Self; 15] = [
        Self::Bos,
        Self::Eos,
        Self::Eot,
        Self::Eom,
        Self::Unk,
        Self::Sep,
        Self::Pad,
        Self::Cls,
        Self::Mask,
        Self::FimPrefix,
        Self::FimSuffix,
        Self::FimMiddle,
        Self::FimPad,
        Self::FimRepository,
        Self::FimSeparator,
    ];

    /// The metadata key of its id, with GGUF's spelling.
    pub fn key(self) -> &'static str {
        match self {
            Self::Bos => "tokenizer.ggml.bos_token_id",
            Self::Eos => "tokenizer.ggml.eos_token_id",
            Self::Eot => "tokenizer.ggml.eot_token_id",
            Self::Eom => "tokenizer.ggml.eom_token_id",
            Self::Unk => "tokenizer.ggml.unknown_token_id",
            Self::Sep => "tokenizer.ggml.seperator_token_id",
            Self::Pad => "tokenizer.ggml.padding_token_id",
            Self::Cls => "tokenizer.ggml.cls_token_id",
            Self::Mask => "tokenizer.ggml.mask_token_id",
            Self::FimPrefix => "tokenizer.ggml.fim_pre_token_id",
            Self::FimSuffix => "tokenizer.ggml.fim_suf_token_id",
            Self::FimMiddle => "tokenizer.ggml.fim_mid_token_id",
            Self::FimPad => "tokenizer.ggml.fim_pad_token_id",
            Self::FimRepository => "tokenizer.ggml.fim_rep_token_id",
            Self::FimSeparator => "tokenizer.ggml.fim_sep_token_id",
        }
    }

    /// Whether a generation is over when the model chooses it.
    pub(super) fn ends_generation(self) -> bool {
        matches!(self, Self::Eos | Self::Eot | Self::Eom)
    }
}

/// The ids that a file gives for its special tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpecialTokens([Option<u32>; SpecialToken::ALL.len()]);

impl SpecialTokens {
    pub(super) fn with(mut self, token: SpecialToken, id: Option<u32>) -> Self {
        self.0[token as usize] = id;
        self
    }

    pub(super) fn get(&self, token: SpecialToken) -> Option<u32> {
        self.0[token as usize]
    }

    /// Those that there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SpecialToken, u32)> {
        SpecialToken::ALL.into_iter().filter_map(|token| Some((token, self.get(token)?)))
    }
}
