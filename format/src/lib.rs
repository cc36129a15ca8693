//! Reader, writer and checker of LongGen model files.
#![forbid(unsafe_code)]
