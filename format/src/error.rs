//! What can be wrong with a file.

use std::collections::TryReserveError;

use crate::metadata::ValueType;

/// What is wrong, where: offsets are counted in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no memory for what the file says of itself.
    #[error("{0}")]
    OutOfMemory(#[from] TryReserveError),
    /// The file does not begin like a GGUF file.
    #[error("not a GGUF file: it begins with {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// A version of GGUF that this crate does not read.
    #[error("GGUF version {found}: versions 2 and 3 are readable{}", if (1..16).contains(&found.swap_bytes()) { " (this file is big-endian)" } else { "" })]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends before something does.
    #[error("at offset {offset}: {what} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Where it begins.
        offset: u64,
        /// What it is.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes up to the end of the file.
        left: u64,
    },
    /// A string is not UTF-8.
    #[error("at offset {offset}: {what} is not UTF-8")]
    NotUtf8 {
        /// Where the string begins.
        offset: u64,
        /// What it is.
        what: &'static str,
    },
    /// A key that programs in C could not ask for.
    #[error("key number {index}, {key:?}: its byte {at} is zero")]
    ZeroInKey {
        /// The key's number, from 0 on.
        index: usize,
        /// The key.
        key: String,
        /// Where the zero stands in it, from 0 on.
        at: usize,
    },
    /// A metadata value of an unknown type.
    #[error("at offset {offset}: key {key:?} has unknown value type {id}")]
    UnknownValueType {
        /// Where the type stands.
        offset: u64,
        /// The key.
        key: String,
        /// The type's number.
        id: u32,
    },
    /// An array of arrays.
    #[error("at offset {offset}: key {key:?} is an array of arrays, which no reader supports")]
    NestedArray {
        /// Where the element type stands.
        offset: u64,
        /// The key.
        key: String,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("at offset {offset}: key {key:?} has boolean {found}, expected 0 or 1")]
    BadBool {
        /// Where it stands.
        offset: u64,
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// The same key twice.
    #[error("key {key:?} appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The same tensor twice.
    #[error("tensor {tensor:?} appears twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// An alignment that is unusable.
    #[error("general.alignment {found}: expected a power of two from 8 to 1048576")]
    Alignment {
        /// The alignment.
        found: u64,
    },
    /// A key that is not there.
    #[error("key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key of another type than asked for.
    #[error("key {key:?}: expected {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What it is.
        found: ValueType,
    },
    /// A number that does not fit the type asked for.
    #[error("key {key:?}: {found} does not fit {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// The number.
        found: String,
    },
    /// An element that an array does not have.
    #[error("key {key:?}: no element {index}, there are {n_elems}")]
    NoElement {
        /// The key.
        key: String,
        /// The element that was asked for.
        index: usize,
        /// Number of elements.
        n_elems: usize,
    },
    /// A value that is no longer where it was.
    #[error("key {key:?}: the file has changed since it was opened")]
    Changed {
        /// The key.
        key: String,
    },
    /// A tensor of an impossible shape.
    #[error("tensor {tensor:?}: {reason}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor whose type nobody knows.
    #[error("tensor {tensor:?} has unknown type {id}")]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The type's number.
        id: u32,
    },
    /// A tensor of a type that model files do not have, but a converter reads.
    #[error(
        "tensor {tensor:?} is {name}: model files have F32, F16, BF16, Q8_0, Q4_0 and Q4_1; lgconvert --type makes one of them of it"
    )]
    ForeignTensorType {
        /// The tensor.
        tensor: String,
        /// The type's name.
        name: &'static str,
    },
    /// A tensor of a type that exists but is not supported.
    #[error(
        "tensor {tensor:?} is {name} (type {id}): supported are F32, F16, BF16, Q8_0, Q4_0 and Q4_1, and to be converted Q5_0, Q5_1, \
         Q4_K, Q5_K and Q6_K"
    )]
    UnsupportedTensorType {
        /// The tensor.
        tensor: String,
        /// The type's number.
        id: u32,
        /// The type's name.
        name: &'static str,
    },
    /// A tensor's data begins where it must not.
    #[error("tensor {tensor:?}: data offset {offset} is no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset in the tensor data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor's data reaches beyond the file.
    #[error("tensor {tensor:?}: {n_bytes} bytes at offset {offset} reach beyond the file's {file_bytes}")]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Where its data begins.
        offset: u64,
        /// Its length.
        n_bytes: u64,
        /// The file's length.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap at offset {offset}")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
        /// Where the other begins.
        offset: u64,
    },
    /// More bytes than are left of the tensor that is being written, or fewer where all were asked for.
    #[error("tensor {tensor:?}: expected {expected} more bytes, got {got}")]
    TensorLength {
        /// The tensor.
        tensor: String,
        /// Bytes that are left of it.
        expected: u64,
        /// Bytes that were given.
        got: u64,
    },
    /// Data for one tensor more than were declared.
    #[error("all {n_tensors} tensors have been written")]
    NoTensorLeft {
        /// Tensors that were declared.
        n_tensors: usize,
    },
    /// A file that was to be finished before all of its tensors were written.
    #[error("tensor {tensor:?} is incomplete: {missing} bytes are missing")]
    Unfinished {
        /// The first tensor that is not complete.
        tensor: String,
        /// Bytes that it lacks.
        missing: u64,
    },
    /// A buffer of another length than the elements need.
    #[error("{what}: expected {expected}, got {got}")]
    Length {
        /// What is measured.
        what: &'static str,
        /// What it should be.
        expected: u64,
        /// What it is.
        got: u64,
    },
    /// A number that cannot be quantised.
    #[error("element {index} is {value}: only finite numbers can be quantised")]
    NotFinite {
        /// Its index.
        index: usize,
        /// The number.
        value: f32,
    },
    /// A block of numbers that are too large for its half-precision scale.
    #[error("elements from {index} on need a scale of {scale}: half precision ends at 65504")]
    ScaleOverflow {
        /// Index of the block's first element.
        index: usize,
        /// The scale.
        scale: f32,
    },
    /// A file without checksums.
    #[error("the file has no checksums: key {key:?} is missing; lgconvert writes files that have them")]
    NoHashes {
        /// The key.
        key: &'static str,
    },
    /// Checksums that cannot be used.
    #[error("key {key:?}: {reason}")]
    BadHashes {
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Bytes that changed since the file was written.
    #[error("{what}: checksum is {found}, the file says {expected}")]
    HashMismatch {
        /// `header`, or the tensor's name.
        what: String,
        /// What the file says.
        expected: String,
        /// What the bytes give.
        found: String,
    },
    /// Bytes between tensors that changed since the file was written.
    #[error("at offset {offset}: padding is not zero")]
    Padding {
        /// Where.
        offset: u64,
    },
    /// Writing failed.
    #[error("cannot write: {0}")]
    Io(#[from] std::io::Error),
}
