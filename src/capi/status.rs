//! What a call reports: its status, and an error with the details.

use std::ffi::{CStr, c_char};

use crate::error::ErrorKind;

/// Outcome of a call. Numbers never change; later versions may add some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum lg_status {
    /// Success.
    LG_OK = 0,
    /// An argument or a parameter is out of its range.
    LG_ERR_INVALID = 1,
    /// A file or a named thing does not exist.
    LG_ERR_NOT_FOUND = 2,
    /// The operating system could not read or write.
    LG_ERR_IO = 3,
    /// The bytes of a file are not what its format demands.
    LG_ERR_FORMAT = 4,
    /// Well-formed, but this library cannot do it.
    LG_ERR_UNSUPPORTED = 5,
    /// An allocation was refused.
    LG_ERR_OUT_OF_MEMORY = 6,
    /// A device or its driver failed.
    LG_ERR_DEVICE = 7,
    /// The session's context has no room for more tokens.
    LG_ERR_CONTEXT_FULL = 8,
    /// The caller asked to stop; the session stands where the last finished chunk left it.
    LG_ERR_CANCELLED = 9,
    /// An earlier `LG_ERR_INTERNAL` left this object unusable; it can only be freed.
    LG_ERR_POISONED = 10,
    /// A bug in the library.
    LG_ERR_INTERNAL = 11,
    /// A buffer is too small; the number that comes with it says how much is needed.
    LG_ERR_TOO_SMALL = 12,
    /// Another call is using this object.
    LG_ERR_BUSY = 13,
}

use lg_status::*;

impl From<ErrorKind> for lg_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => LG_ERR_INVALID,
            ErrorKind::NotFound => LG_ERR_NOT_FOUND,
            ErrorKind::Io => LG_ERR_IO,
            ErrorKind::Format => LG_ERR_FORMAT,
            ErrorKind::Unsupported => LG_ERR_UNSUPPORTED,
            ErrorKind::OutOfMemory => LG_ERR_OUT_OF_MEMORY,
            ErrorKind::Device => LG_ERR_DEVICE,
            ErrorKind::ContextFull => LG_ERR_CONTEXT_FULL,
            ErrorKind::Cancelled => LG_ERR_CANCELLED,
            ErrorKind::Poisoned => LG_ERR_POISONED,
            ErrorKind::Internal => LG_ERR_INTERNAL,
            ErrorKind::TooSmall => LG_ERR_TOO_SMALL,
            ErrorKind::Busy => LG_ERR_BUSY,
        }
    }
}

/// What a failed call has to say. It belongs to the caller; the library keeps no pointer to it.
///
/// Written only by a call that fails. Texts are UTF-8, end with a zero byte, and are cut between characters if they do
/// not fit.
#[repr(C)]
pub struct lg_error {
    /// Set by the caller: `sizeof(lg_error)`. A call with an error object that is smaller than the first version's
    /// fails with `LG_ERR_INVALID` and does nothing else.
    pub struct_size: usize,
    /// The `lg_status` that the call returned.
    pub code: u32,
    /// What went wrong, with names and numbers; for people, its wording may change.
    pub message: [c_char; 512],
    /// The function that failed, and for `LG_ERR_INTERNAL` the place in the library's source.
    pub r#where: [c_char; 124],
}

impl lg_error {
    /// Bytes of the struct in the first version, whose fields every caller has.
    const FIRST_SIZE: usize = 648;
}

const _: () = assert!(size_of::<lg_error>() >= lg_error::FIRST_SIZE);

/// The caller's [`lg_error`], if it wants one.
pub(super) struct ErrorOut(*mut lg_error);

impl ErrorOut {
    /// `None` if the error object cannot be written to.
    ///
    /// # Safety
    /// `error` is NULL or points to an [`lg_error`] that outlives the result and that nobody else uses meanwhile.
    pub(super) unsafe fn new(error: *mut lg_error) -> Option<Self> {
        if error.is_null() {
            return Some(Self(error));
        }
        // SAFETY: not NULL, aligned (checked first), so `struct_size` can be read.
        let fits = error.is_aligned() && unsafe { (*error).struct_size } >= lg_error::FIRST_SIZE;
        fits.then_some(Self(error))
    }

    /// Fills in the first version's fields; others are for callers whose `struct_size` has them.
    pub(super) fn write(self, status: lg_status, message: &str, place: &str) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: `new` found the first version's struct to be there; nothing is read, so it may be uninitialised.
        unsafe {
            (*self.0).code = status as u32;
            write_text(&raw mut (*self.0).message, message);
            write_text(&raw mut (*self.0).r#where, place);
        }
    }
}

/// Writes as many whole characters of `text` as fit together with the zero byte behind them.
///
/// # Safety
/// `to` is valid for writes.
unsafe fn write_text<const CAP: usize>(to: *mut [c_char; CAP], text: &str) {
    let to = to.cast::<u8>();
    let n_bytes = (0..CAP.min(text.len() + 1)).rev().find(|&n| text.is_char_boundary(n)).unwrap_or(0);
    // SAFETY: `n_bytes` is at most the text's length, and below `CAP`, which leaves room for the zero byte.
    unsafe {
        to.copy_from_nonoverlapping(text.as_ptr(), n_bytes);
        to.add(n_bytes).write(0);
    }
}

/// The meaning of a status in a few words, for any number: a string that lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn lg_status_str(status: u32) -> *const c_char {
    let name: &CStr = match status {
        0 => c"ok",
        1 => c"invalid argument",
        2 => c"not found",
        3 => c"input or output failed",
        4 => c"malformed file",
        5 => c"unsupported",
        6 => c"out of memory",
        7 => c"device failed",
        8 => c"context full",
        9 => c"cancelled",
        10 => c"object unusable after an internal error",
        11 => c"internal error",
        12 => c"buffer too small",
        13 => c"object in use by another call",
        _ => c"unknown status",
    };
    name.as_ptr()
}
