//! The one error type of the runtime.

use std::fmt;

/// Result of every fallible call of the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a program sees it; one for each `lg_status` of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or a parameter is out of its range.
    Invalid,
    /// A file or a named thing does not exist.
    NotFound,
    /// The operating system could not read or write.
    Io,
    /// The bytes of a file are not what its format demands.
    Format,
    /// Well-formed, but this runtime cannot do it.
    Unsupported,
    /// An allocation was refused.
    OutOfMemory,
    /// A device or its driver failed.
    Device,
    /// The session's context has no room for more tokens.
    ContextFull,
    /// The caller asked to stop; the session stands where the last finished chunk left it.
    Cancelled,
    /// An earlier failure left this object unusable.
    Poisoned,
    /// A bug in the runtime.
    Internal,
    /// A buffer is too small; nothing is written to it.
    TooSmall,
    /// Another call is using this object.
    Busy,
}

/// An error: its kind, and what happened where.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind`; `message` says what, where and the numbers, in lower case.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An argument is out of its range.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Well-formed, but not supported here.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A model file that does not hold together.
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message)
    }

    /// What went wrong, as a program sees it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<longgen_format::Error> for Error {
    fn from(error: longgen_format::Error) -> Self {
        use longgen_format::Error as E;
        let kind = match error {
            E::ForeignTensorType { .. }
            | E::UnsupportedTensorType { .. }
            | E::UnknownTensorType { .. }
            | E::NoHashes { .. }
            | E::Version { .. } => ErrorKind::Unsupported,
            E::Io(_) => ErrorKind::Io,
            E::OutOfMemory(_) => ErrorKind::OutOfMemory,
            _ => ErrorKind::Format,
        };
        Self::new(kind, error.to_string())
    }
}
