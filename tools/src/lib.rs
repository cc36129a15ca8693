//! What the command-line tools share.
#![forbid(unsafe_code)]
