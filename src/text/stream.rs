//! A stream of tokens as text: complete characters only, and an end at the first stop string.

use super::Tokenizer;
use crate::error::{Error, ErrorKind, Result};

/// Turns the bytes of one token after the other into text.
///
/// What comes out in all is what [`String::from_utf8_lossy`] would make of all the bytes at once, up to the first stop
/// string, however the bytes were cut into tokens. Text is held back only while it could still become part of a
/// character or of a stop string.
///
/// If several stop strings occur, the one that is complete first counts; of those that end at the same byte, the
/// longest. The stop string and everything after it is dropped.
///
/// ```
/// # fn main() -> longgen::Result<()> {
/// let mut stream = longgen::text::TextStream::new(["\n\n", "###"]);
/// assert_eq!(stream.push(b"caf\xC3")?, "caf");
/// assert_eq!(stream.push(b"\xA9 #")?, "é ");
/// assert_eq!(stream.push(b"1 ##")?, "#1 ");
/// assert_eq!(stream.push(b"# more")?, "");
/// assert_eq!(stream.stop_index(), Some(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    stops: Vec<String>,
    /// The start of a character whose end has not come yet; three bytes at most between two calls.
    bytes: Vec<u8>,
    /// The first `released` bytes were given out by the last call, the others are held back.
    text: String,
    released: usize,
    stop_index: Option<usize>,
}

impl TextStream {
    /// A stream that ends at the first of `stops`. Empty stop strings are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(Into::into).collect();
        Self { stops, bytes: Vec::new(), text: String::new(), released: 0, stop_index: None }
    }

    /// Takes the bytes of the next token and gives the text that is certain now, which may be empty.
    ///
    /// # Errors
    /// `OutOfMemory`; the bytes are not taken then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<&str> {
        self.advance(bytes, false)
    }

    /// The same for a token. Special tokens are no text and add nothing, nor do ids that are no token.
    ///
    /// # Errors
    /// `OutOfMemory`; the token is not taken then.
    pub fn push_token(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<&str> {
        match tokenizer.token_bytes(token) {
            Some(bytes) if !tokenizer.is_special(token) => self.push(bytes),
            _ => self.push(&[]),
        }
    }

    /// Ends the stream and gives the text that was held back; an unfinished character becomes U+FFFD.
    ///
    /// The stream is empty afterwards and can be used for another text, unless it has stopped.
    ///
    /// # Errors
    /// `OutOfMemory`; the stream has not ended then.
    pub fn finish(&mut self) -> Result<&str> {
        self.advance(&[], true)
    }

    /// The number of the stop string that ended the text, if one did. Nothing comes out of the stream any more.
    pub fn stop_index(&self) -> Option<usize> {
        self.stop_index
    }

    fn advance(&mut self, bytes: &[u8], last: bool) -> Result<&str> {
        self.text.drain(..self.released);
        self.released = 0;
        if self.stop_index.is_none() {
            self.take(bytes)?;
            decode(&mut self.bytes, &mut self.text, last);
            self.released = self.release(last);
        }
        Ok(&self.text[..self.released])
    }

    /// Appends to `bytes`, and makes room in `text` for what they become.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let n_bytes = self.bytes.len() + bytes.len();
        let no_room = |_| Error::new(ErrorKind::OutOfMemory, format!("cannot hold {n_bytes} bytes of text"));
        self.bytes.try_reserve(bytes.len()).map_err(no_room)?;
        let n_before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        // What is no character becomes one of three bytes.
        let n_text = self.bytes.utf8_chunks().map(|chunk| chunk.valid().len() + 3).sum();
        self.text.try_reserve(n_text).map_err(no_room).inspect_err(|_| self.bytes.truncate(n_before))
    }

    /// How many bytes of `text` are certain; cuts it off at a stop string.
    fn release(&mut self, last: bool) -> usize {
        let found = (self.stops.iter().enumerate())
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(index, stop)| Some((self.text.find(stop.as_str())?, stop.len(), index)))
            .min_by_key(|&(start, len, _)| (start + len, start));
        if let Some((start, _, index)) = found {
            self.text.truncate(start);
            self.stop_index = Some(index);
            return start;
        }
        if last { self.text.len() } else { self.text.len() - self.held() }
    }

    /// Length of the longest end of `text` with which a stop string begins.
    fn held(&self) -> usize {
        let longest = |stop: &String| {
            let ends = stop.char_indices().map(|(len, _)| len).skip(1);
            ends.filter(|&len| self.text.ends_with(&stop[..len])).max().unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

/// Moves all that is decided from `bytes` to `text`; what could still become a character stays, unless `last`.
fn decode(bytes: &mut Vec<u8>, text: &mut String, last: bool) {
    let mut undecided = 0;
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let bad = chunk.invalid();
        let unfinished = std::str::from_utf8(bad).is_err_and(|error| error.error_len().is_none());
        if unfinished && !last && chunks.peek().is_none() {
            undecided = bad.len();
        } else if !bad.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    bytes.drain(..bytes.len() - undecided);
}
