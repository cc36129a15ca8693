//! Text to tokens and back.

use std::ffi::c_char;

use super::guard::guard;
use super::model::lg_model;
use super::params::check_flags;
use super::pointer::{Buffer, reference, text};
use super::status::{lg_error, lg_status};
use crate::error::{Error, Result};
use crate::model::Model;

/// `lg_model_tokenize`: special tokens that the text spells, such as "<|im_end|>", become those tokens. For text that a
/// chat template made; in a user's words they would let the user steer the model.
pub const LG_TOKENIZE_SPECIAL: u32 = 1;
/// `lg_model_tokenize`: the beginning-of-text token comes first, if the model wants one and the text does not spell it.
pub const LG_TOKENIZE_ADD_BOS: u32 = 2;

/// The tokens of a text.
///
/// `text` is `n_bytes` of UTF-8 without a zero byte at its end; NULL with 0 is the empty text. `flags` is any of
/// `LG_TOKENIZE_*` together. `tokens` has room for `cap` tokens; `*n_tokens` is how many the text has.
///
/// Errors: `LG_ERR_INVALID`, also for text that is no UTF-8; `LG_ERR_OUT_OF_MEMORY` for one that is too long for the memory
/// there is, of which a text takes some hundred times its length meanwhile.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_tokenize(
    model: *const lg_model,
    text: *const c_char,
    n_bytes: usize,
    flags: u32,
    tokens: *mut u32,
    cap: usize,
    n_tokens: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, text) = unsafe { (reference(model, "model")?, self::text(text, n_bytes, "text")?) };
        // SAFETY: as above.
        let tokens = unsafe { Buffer::new(tokens, cap, n_tokens, ["tokens", "n_tokens"]) }?;
        check_flags(flags, LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS)?;
        let has = |flag| flags & flag != 0;
        tokens.fill(&model.model.tokenizer().encode(
            text,
            has(LG_TOKENIZE_SPECIAL),
            has(LG_TOKENIZE_ADD_BOS),
        )?)
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_tokenize", error, body) }
}

/// The bytes that a token adds to a text. They need not be whole characters, and no zero byte follows them.
///
/// `bytes` has room for `cap` bytes; `*n_bytes` is how many the token has: special tokens have their spelling, rows of the
/// output that are no token of the vocabulary have 0.
///
/// Errors: `LG_ERR_INVALID`, also for a token beyond the vocabulary.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_token_bytes(
    model: *const lg_model,
    token: u32,
    bytes: *mut u8,
    cap: usize,
    n_bytes: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let model = unsafe { reference(model, "model") }?;
        // SAFETY: as above.
        let bytes = unsafe { Buffer::new(bytes, cap, n_bytes, ["bytes", "n_bytes"]) }?;
        bytes.fill(token_bytes(&model.model, token)?)
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_token_bytes", error, body) }
}

/// A model's output may have more rows than its vocabulary has tokens; those stand for no text.
pub(super) fn token_bytes(model: &Model, token: u32) -> Result<&[u8]> {
    let n_vocab = model.config().n_vocab;
    match token as usize >= n_vocab {
        true => Err(Error::invalid(format!("token {token} of a vocabulary of {n_vocab}"))),
        false => Ok(model.tokenizer().token_bytes(token).unwrap_or_default()),
    }
}
