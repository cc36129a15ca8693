//! Reader, writer and checker of LongGen model files.
#![forbid(unsafe_code)]

/// Element types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// f32
    F32,
    /// f16
    F16,
    /// bf16
    BF16,
    /// q8_0
    Q8_0,
    /// q4_0
    Q4_0,
    /// q4_1
    Q4_1,
}
