//! `lg_text_stream`: from tokens to text.

use std::ffi::c_char;

use super::exclusive::Exclusive;
use super::guard::guard;
use super::model::lg_model;
use super::pointer::{free, get, into_handle, output, reference, slice, strings};
use super::status::{lg_error, lg_status};
use super::tokenize::token_bytes;
use crate::error::Result;
use crate::text::TextStream;

/// The number of something that is not there.
pub const LG_INDEX_NONE: u32 = u32::MAX;

/// Turns the bytes of one token after the other into text: complete characters only, and an end at the first stop string.
///
/// What comes out in all is the text of all bytes at once up to the first stop string, however they were cut into tokens;
/// what is no UTF-8 becomes U+FFFD. Text is held back only while it could still become part of a character or of a stop
/// string. If several stop strings occur, the one that is complete first counts; of those that end at the same byte, the
/// longest. The stop string and everything behind it is dropped.
///
/// Threads: one caller at a time; a second one gets `LG_ERR_BUSY`. After `LG_ERR_INTERNAL` every call returns
/// `LG_ERR_POISONED`.
pub struct lg_text_stream {
    stream: Exclusive<TextStream>,
}

impl lg_text_stream {
    /// See [`Exclusive::with`].
    fn with<R>(&self, body: impl FnOnce(&mut TextStream) -> Result<R>) -> Result<R> {
        self.stream.with("text stream", body)
    }
}

/// Makes a text stream that ends at the first of `n_stops` strings; each ends with a zero byte. Empty ones are ignored.
/// `*out` is the caller's and is freed by `lg_text_stream_free`.
///
/// Errors: `LG_ERR_INVALID`, also for a stop string that is no UTF-8; `LG_ERR_OUT_OF_MEMORY`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_new(
    stops: *const *const c_char,
    n_stops: usize,
    out: *mut *mut lg_text_stream,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (stops, out) = unsafe { (strings(stops, n_stops, "stops")?, output(out, "out")?) };
        let stream = Exclusive::new(TextStream::new(stops));
        out.write(into_handle(lg_text_stream { stream })?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_text_stream_new", error, body) }
}

/// Writes where in the stream the text is that `advance` gives.
///
/// # Safety
/// As for [`reference`] and [`output`].
unsafe fn advance(
    stream: *mut lg_text_stream,
    text: *mut *const c_char,
    n_bytes: *mut usize,
    advance: impl FnOnce(&mut TextStream) -> Result<&str>,
) -> Result<()> {
    // SAFETY: the caller's word, as for all pointers of this function.
    let stream = unsafe { reference(stream, "stream") }?;
    // SAFETY: as above.
    let (out, n_bytes) = unsafe { (output(text, "text")?, output(n_bytes, "n_text")?) };
    stream.with(|stream| {
        let text = advance(stream)?;
        out.write(text.as_ptr().cast());
        n_bytes.write(text.len());
        Ok(())
    })
}

/// Takes the next bytes and gives the text that is certain now, which may be empty.
///
/// It is not copied: `*text` points to `*n_text` bytes in the stream, without a zero byte behind them, and is valid until
/// the stream is next pushed to, finished or freed.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_POISONED`. The bytes are not taken then.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_push(
    stream: *mut lg_text_stream,
    bytes: *const u8,
    n_bytes: usize,
    text: *mut *const c_char,
    n_text: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let bytes = unsafe { slice(bytes, n_bytes, "bytes") }?;
        // SAFETY: as above.
        unsafe { advance(stream, text, n_text, |stream| stream.push(bytes)) }
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_text_stream_push", error, body) }
}

/// The same for a token of `model`. Special tokens are no text and add nothing; to see them, push what
/// `lg_model_token_bytes` gives.
///
/// Errors: those of `lg_text_stream_push`, and `LG_ERR_INVALID` for a token beyond the vocabulary.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_push_token(
    stream: *mut lg_text_stream,
    model: *const lg_model,
    token: u32,
    text: *mut *const c_char,
    n_text: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let model = &unsafe { reference(model, "model") }?.model;
        token_bytes(model, token)?;
        // SAFETY: as above.
        unsafe { advance(stream, text, n_text, |stream| stream.push_token(model.tokenizer(), token)) }
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_text_stream_push_token", error, body) }
}

/// Ends the stream and gives the text that was held back, as `lg_text_stream_push` does; an unfinished character becomes
/// U+FFFD. The stream is empty afterwards and can be used for another text, unless it has stopped.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_OUT_OF_MEMORY`, `LG_ERR_POISONED`. The stream has not ended then.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_finish(
    stream: *mut lg_text_stream,
    text: *mut *const c_char,
    n_text: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    // SAFETY: the caller's word.
    let body = || unsafe { advance(stream, text, n_text, TextStream::finish) };
    // SAFETY: the caller's word.
    unsafe { guard("lg_text_stream_finish", error, body) }
}

/// The number of the stop string that ended the text, after which nothing comes out of the stream any more.
/// `LG_INDEX_NONE` if none did, for NULL, and while another call runs in the stream.
///
/// # Safety
/// The caller must not free the stream before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_stop_index(stream: *const lg_text_stream) -> u32 {
    // SAFETY: the caller's word.
    unsafe { get(stream, LG_INDEX_NONE, |stream| stream.with(|stream| Ok(index(stream.stop_index())))) }
}

/// A number, or `LG_INDEX_NONE`.
pub(super) fn index(index: Option<usize>) -> u32 {
    index.and_then(|index| u32::try_from(index).ok()).unwrap_or(LG_INDEX_NONE)
}

/// Frees a text stream. NULL does nothing.
///
/// # Safety
/// The caller must not use the stream or its text any more, in no thread and in no running call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_text_stream_free(stream: *mut lg_text_stream) {
    // SAFETY: the caller's word.
    unsafe { free(stream) }
}
