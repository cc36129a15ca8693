//! What a model is: its numbers and its special tokens.

use std::ffi::{CString, c_char};

use super::model::{LG_TOKEN_NONE, get, lg_model};
use super::pointer;
use crate::model::Model;
use crate::text::SpecialToken;

/// `lg_model_special_token`: begins a text.
pub const LG_SPECIAL_BOS: u32 = 0;
/// `lg_model_special_token`: ends a text. A model may end its answers with other tokens as well: ask
/// `lg_model_is_end_of_generation`.
pub const LG_SPECIAL_EOS: u32 = 1;
/// `lg_model_special_token`: ends a turn of a conversation.
pub const LG_SPECIAL_EOT: u32 = 2;
/// `lg_model_special_token`: ends a message of a turn that goes on.
pub const LG_SPECIAL_EOM: u32 = 3;
/// `lg_model_special_token`: stands for what no other token can spell.
pub const LG_SPECIAL_UNK: u32 = 4;
/// `lg_model_special_token`: stands between parts.
pub const LG_SPECIAL_SEP: u32 = 5;
/// `lg_model_special_token`: fills up what is too short.
pub const LG_SPECIAL_PAD: u32 = 6;
/// `lg_model_special_token`: begins what is to be classified.
pub const LG_SPECIAL_CLS: u32 = 7;
/// `lg_model_special_token`: stands for what is to be guessed.
pub const LG_SPECIAL_MASK: u32 = 8;
/// `lg_model_special_token`: fill in the middle: comes before the part in front of the gap.
pub const LG_SPECIAL_FIM_PREFIX: u32 = 9;
/// `lg_model_special_token`: fill in the middle: comes before the part behind the gap.
pub const LG_SPECIAL_FIM_SUFFIX: u32 = 10;
/// `lg_model_special_token`: fill in the middle: comes before what fills the gap.
pub const LG_SPECIAL_FIM_MIDDLE: u32 = 11;
/// `lg_model_special_token`: fill in the middle: fills up what is too short.
pub const LG_SPECIAL_FIM_PAD: u32 = 12;
/// `lg_model_special_token`: fill in the middle: comes before the name of a repository.
pub const LG_SPECIAL_FIM_REPOSITORY: u32 = 13;
/// `lg_model_special_token`: fill in the middle: stands between files.
pub const LG_SPECIAL_FIM_SEPARATOR: u32 = 14;

/// A number of a model: all of them are far below 2^32.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One of a model's strings, or NULL for NULL.
///
/// # Safety
/// As for [`pointer::reference`].
unsafe fn string(model: *const lg_model, body: impl FnOnce(&lg_model) -> &CString) -> *const c_char {
    // SAFETY: the caller's word.
    unsafe { pointer::get(model, std::ptr::null(), |model| Ok(body(model).as_ptr())) }
}

/// The architecture that the file names: "longgen", "llama" for a plain GGUF, or any for a model that was opened with
/// `vocab_only`. A string that lives as long as the model; NULL for NULL.
///
/// # Safety
/// The caller must not free the model before this returns, and must not use the string after that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_architecture(model: *const lg_model) -> *const c_char {
    // SAFETY: the caller's word.
    unsafe { string(model, |model| &model.architecture) }
}

/// What the model runs on, for people: a string that lives as long as the model. Empty for one that was opened with
/// `vocab_only`; NULL for NULL.
///
/// # Safety
/// The caller must not free the model before this returns, and must not use the string after that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_device(model: *const lg_model) -> *const c_char {
    // SAFETY: the caller's word.
    unsafe { string(model, |model| &model.device) }
}

/// Number of tokens in the vocabulary, which is the number of logits. Token ids are below it. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_vocab(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().n_vocab)) }
}

/// Longest context, in tokens, that the model was trained for. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_ctx_train(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| model.config().n_ctx_train) }
}

/// Number of layers. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_layers(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().n_layers)) }
}

/// Number of query heads of a layer. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_heads(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().n_heads)) }
}

/// Number of KV heads of a layer, which query heads share in equal groups, in order. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_kv_heads(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().n_kv_heads)) }
}

/// Number of elements of a head. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_head_dim(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().head_dim)) }
}

/// Number of elements of a hidden state. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_d_model(model: *const lg_model) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| number(model.config().d_model)) }
}

/// Number of parameters: elements of all tensors of the file. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_params(model: *const lg_model) -> u64 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| model.n_params()) }
}

/// Bytes of all tensors of the file. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_bytes(model: *const lg_model) -> u64 {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| model.tensor_bytes() as u64) }
}

/// The token that has the task `which`, one of `LG_SPECIAL_*`: `LG_TOKEN_NONE` if the file names none, for NULL, and for
/// a number without a meaning.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_special_token(model: *const lg_model, which: u32) -> u32 {
    // `LG_SPECIAL_*` are in the order of the Rust API.
    let which = SpecialToken::ALL.get(which as usize);
    let token = |model: &Model| which.and_then(|&which| model.tokenizer().special_token(which));
    // SAFETY: the caller's word.
    unsafe { get(model, LG_TOKEN_NONE, |model| token(model).unwrap_or(LG_TOKEN_NONE)) }
}

/// Whether a generation is over when the model chooses `token`. False for NULL and for numbers that are no token.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_is_end_of_generation(model: *const lg_model, token: u32) -> bool {
    // SAFETY: the caller's word.
    unsafe { get(model, false, |model| model.tokenizer().is_end_of_generation(token)) }
}

/// Whether `token` is no text, but steers the model or stands for what no token can spell. False for NULL and for numbers
/// that are no token.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_is_special(model: *const lg_model, token: u32) -> bool {
    // SAFETY: the caller's word.
    unsafe { get(model, false, |model| model.tokenizer().is_special(token)) }
}
