//! Models in files, and what is compared of them.

use std::sync::Arc;

use longgen::{Device, Model, ModelParams};

use super::random::Random;
use super::tiny_model;

/// A model file that goes when it is dropped.
pub struct File(tempfile::TempPath);

impl File {
    /// With these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Self(file.into_temp_path())
    }

    /// The model.
    pub fn open(&self, device: Device, n_threads: usize) -> Arc<Model> {
        Arc::new(Model::open(&self.0, &ModelParams { device, n_threads, ..Default::default() }).unwrap())
    }
}

/// The processor, and the first CUDA device if this build and this machine have one.
pub fn devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    match longgen::backend::cuda::CudaBackend::new(0) {
        Ok(_) => return vec![Device::Cpu, Device::Cuda(0)],
        Err(error) => super::say_skipped_on_cuda(&error),
    }
    vec![Device::Cpu]
}

/// Root mean square of the difference, relative to that of the expected numbers.
pub fn distance(has: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(has.len(), expected.len());
    let squares =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let difference = squares(&mut has.iter().zip(expected).map(|(a, b)| a - b));
    (difference / squares(&mut expected.iter().copied())).sqrt()
}

/// Random tokens of the tiny model.
pub fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| u32::try_from(random.below(tiny_model::N_VOCAB)).unwrap()).collect()
}
