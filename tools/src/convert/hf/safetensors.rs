//! The tensors of a folder: one `model.safetensors`, or several files and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use longgen::backend::args::SharedBytes;
use longgen::weights::{Load, open};
use longgen_format::TensorType;
use safetensors::{Dtype, SafeTensors};

use super::json;
use crate::convert::source::SourceTensor;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors that nobody has taken yet, by name.
pub struct Weights(BTreeMap<String, Stored>);

struct Stored {
    dtype: Dtype,
    /// Outputs first.
    shape: Vec<usize>,
    file: SharedBytes,
    range: Range<usize>,
}

impl Weights {
    /// Maps the files of a folder and reads what is in them.
    ///
    /// # Errors
    /// Files that are missing or malformed, tensors that are in two files, or in the index only.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut weights = Self(BTreeMap::new());
        if folder.join(SINGLE).exists() {
            weights.add(&folder.join(SINGLE))?;
            return Ok(weights);
        }
        ensure!(
            folder.join(INDEX).exists(),
            "{}: weights are expected in {SINGLE}, or in files that {INDEX} lists, as transformers saves them; neither is \
             there",
            folder.display()
        );
        let index = json::read(&folder.join(INDEX))?;
        let map =
            index["weight_map"].as_object().with_context(|| format!("{INDEX}: weight_map is no object"))?;
        let mut files = BTreeSet::new();
        for (name, file) in map {
            let file = file.as_str().with_context(|| format!("{INDEX}: {name:?}: expected a file name"))?;
            let is_plain = Path::new(file).file_name().is_some_and(|name| name == file);
            ensure!(is_plain, "{INDEX}: {name:?}: {file:?} is no name of a file in the folder");
            files.insert(file);
        }
        for file in files {
            weights.add(&folder.join(file))?;
        }
        match map.keys().find(|name| !weights.0.contains_key(*name)) {
            None => Ok(weights),
            Some(name) => bail!("{INDEX}: tensor {name:?} is in none of the files"),
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = open(path, Load::Map)?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata((*file).as_ref()).with_context(|| path.display().to_string())?;
        // The data follows the header and its length.
        let data = header_bytes + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let range = data + begin..data + end;
            let stored = Stored { dtype: info.dtype, shape: info.shape.clone(), file: file.clone(), range };
            if self.0.insert(name.clone(), stored).is_some() {
                bail!("{}: tensor {name:?} is in another file too", path.display());
            }
        }
        Ok(())
    }

    /// Takes the tensor `from` out, under the name `to`.
    ///
    /// # Errors
    /// A tensor that is not there, or of an element type that cannot be converted.
    pub fn take(&mut self, from: &str, to: String) -> Result<SourceTensor> {
        let stored = self.0.remove(from).with_context(|| format!("tensor {from:?} is missing"))?;
        let ty = match stored.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::BF16 => TensorType::BF16,
            other => bail!("tensor {from:?} is {other:?}: F32, F16 and BF16 can be converted"),
        };
        ensure!(
            !stored.shape.is_empty() && !stored.shape.contains(&0),
            "tensor {from:?}: shape {:?} has no elements to convert",
            stored.shape
        );
        let shape = stored.shape.iter().rev().map(|&n| n as u64).collect();
        Ok(SourceTensor::in_file(to, shape, ty.into(), &stored.file, stored.range))
    }

    /// Names of the tensors that have not been taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
