//! Chat templates.

use std::ffi::c_char;

use super::guard::guard;
use super::model::{get, lg_model};
use super::params::check_flags;
use super::pointer::{Buffer, reference, slice, text};
use super::status::{lg_error, lg_status};
use crate::alloc::{try_collect_ok, try_string};
use crate::error::{Error, ErrorKind, Result};
use crate::text::Message;

/// `lg_model_apply_chat_template`: the text ends where the assistant's answer begins.
pub const LG_CHAT_ADD_GENERATION_PROMPT: u32 = 1;

/// One message of a conversation.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct lg_message {
    /// Who speaks: "system", "user", "assistant", or what else the template knows. UTF-8 without a zero byte at its end.
    pub role: *const c_char,
    /// Length of `role`.
    pub role_bytes: usize,
    /// What is said. UTF-8 without a zero byte at its end.
    pub content: *const c_char,
    /// Length of `content`.
    pub content_bytes: usize,
}

impl lg_message {
    /// # Safety
    /// As for [`text`], for both texts.
    unsafe fn checked(&self) -> Result<Message> {
        // SAFETY: as the caller says.
        let role = unsafe { text(self.role, self.role_bytes, "role") }?;
        // SAFETY: as the caller says.
        let content = unsafe { text(self.content, self.content_bytes, "content") }?;
        Ok(Message { role: try_string(role)?, content: try_string(content)? })
    }
}

/// Whether the model's file has a chat template. False for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_has_chat_template(model: *const lg_model) -> bool {
    // SAFETY: the caller's word.
    unsafe { get(model, false, |model| model.chat_template().is_some()) }
}

/// The text that a conversation is to the model, by the chat template of its file. Tokenize it with `LG_TOKENIZE_SPECIAL`
/// and `LG_TOKENIZE_ADD_BOS`: the template writes special tokens, and may write the first.
///
/// Templates are those of Hugging Face, in Jinja. One sees `messages`, `add_generation_prompt`, the model's special tokens,
/// and the members of the JSON object `variables`: `tools`, `documents`, `enable_thinking`, or what else it asks for; they
/// come before what it would see by these names otherwise. `variables` is `variables_bytes` of UTF-8; NULL with 0 is none.
/// Messages that have more than a role and a text, such as calls of tools or content in parts, come as the member `messages`;
/// `n_messages` must be 0 then. `flags` is `LG_CHAT_ADD_GENERATION_PROMPT` or 0.
///
/// `text` has room for `cap` bytes; `*n_bytes` is how many the text has, without a zero byte.
///
/// Errors: `LG_ERR_NOT_FOUND` if the model has no chat template; `LG_ERR_INVALID`, also if the template refuses the messages,
/// fails, or takes too many steps: with its line and what it says.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_apply_chat_template(
    model: *const lg_model,
    messages: *const lg_message,
    n_messages: usize,
    variables: *const c_char,
    variables_bytes: usize,
    flags: u32,
    text: *mut c_char,
    cap: usize,
    n_bytes: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (model, messages) =
            unsafe { (reference(model, "model")?, slice(messages, n_messages, "messages")?) };
        // SAFETY: as above.
        let variables = unsafe { self::text(variables, variables_bytes, "variables") }?;
        // SAFETY: as above.
        let out = unsafe { Buffer::new(text.cast::<u8>(), cap, n_bytes, ["text", "n_bytes"]) }?;
        check_flags(flags, LG_CHAT_ADD_GENERATION_PROMPT)?;
        // SAFETY: as above.
        let messages = try_collect_ok(messages.iter().map(|message| unsafe { message.checked() }))?;
        let none = || Error::new(ErrorKind::NotFound, "the model's file has no chat template");
        let template = model.model.chat_template().ok_or_else(none)?;
        out.fill(template.render_with(&messages, variables, flags != 0)?.as_bytes())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_apply_chat_template", error, body) }
}
