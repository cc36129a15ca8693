//! What is converted: the same for every kind of input.

use std::ops::Range;
use std::sync::Arc;

use longgen::attention::plan::LayerAttention;
use longgen::backend::args::SharedBytes;
use longgen_format::{OwnedValue, SourceType, TensorType};

use super::names::Dims;

/// A model to be converted.
pub struct Source {
    /// The numbers that give tensors their shapes.
    pub dims: Dims,
    /// The key-value pairs of the output, without the attention plan.
    pub metadata: Vec<(String, OwnedValue)>,
    /// The tensors of the output, in its order and under its names.
    pub tensors: Vec<SourceTensor>,
    /// The plan that the model brings; `None` means that every layer sees everything.
    pub attention: Option<Vec<LayerAttention>>,
    /// What the user should know although the conversion goes on.
    pub warnings: Vec<String>,
}

/// A tensor to be converted: rows of elements, as they lie in the input.
pub struct SourceTensor {
    /// Its name in the output.
    pub name: String,
    /// Its dimensions, inputs first.
    pub shape: Vec<u64>,
    /// Type of its elements.
    pub ty: SourceType,
    bytes: SharedBytes,
    range: Range<usize>,
}

impl SourceTensor {
    /// A tensor whose data is a range of a file.
    pub fn in_file(
        name: String,
        shape: Vec<u64>,
        ty: SourceType,
        file: &SharedBytes,
        range: Range<usize>,
    ) -> Self {
        Self { name, shape, ty, bytes: file.clone(), range }
    }

    /// A vector that no file has.
    pub fn computed(name: &str, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let range = 0..bytes.len();
        let shape = vec![values.len() as u64];
        Self { name: name.to_owned(), shape, ty: TensorType::F32.into(), bytes: Arc::new(bytes), range }
    }

    /// All of its data.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// Elements of a row.
    pub fn row_elems(&self) -> usize {
        usize::try_from(self.shape[0]).unwrap_or(usize::MAX)
    }

    /// Whether it is one row: a norm, a bias, the divisors of the frequencies.
    pub fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }
}
