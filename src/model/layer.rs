//! The matrices of a model, as its file names them.

use std::collections::HashSet;

use longgen_format::TensorInfo;

use crate::alloc::try_collect_ok;
use crate::backend::Backend;
use crate::backend::args::Linear;
use crate::error::{Error, Result};
use crate::model::config::{Config, ROPE_FREQS};
use crate::model::opening::Opening;
use crate::weights::WeightFile;

/// One layer. Matrices are (outputs, inputs).
pub struct LayerWeights<B: Backend> {
    /// (n_heads), as `u32`: phases of the strided blocks
    pub phases: B::Buf,
    /// (d_model)
    pub attn_norm: B::Buf,
    /// (n_heads * head_dim, d_model)
    pub q: Linear<B>,
    /// (n_kv_heads * head_dim, d_model)
    pub k: Linear<B>,
    /// (n_kv_heads * head_dim, d_model)
    pub v: Linear<B>,
    /// (d_model, n_heads * head_dim)
    pub o: Linear<B>,
    /// (d_model)
    pub mlp_norm: B::Buf,
    /// (d_ff, d_model)
    pub gate: Linear<B>,
    /// (d_ff, d_model)
    pub up: Linear<B>,
    /// (d_model, d_ff)
    pub down: Linear<B>,
}

/// The whole model.
pub struct Weights<B: Backend> {
    /// (n_vocab, d_model)
    pub embedding: B::Weight,
    /// One element per layer.
    pub layers: Vec<LayerWeights<B>>,
    /// (d_model)
    pub output_norm: B::Buf,
    /// (n_pairs): rotation per position of each pair of a head, in radians
    pub inv_freq: B::Buf,
    /// (n_vocab, d_model); `None` where the embedding serves as the output too.
    pub output: Option<B::Weight>,
}

impl<B: Backend> Weights<B> {
    /// Finds every matrix of the model in its file, checks its shape, and takes it to the device: one pass of `opening`.
    ///
    /// # Errors
    /// `Format` for a tensor that is missing or has another shape than the model's numbers say, `Unsupported` for an
    /// element type that this runtime does not know; `Cancelled`.
    pub(super) fn load(
        backend: &B,
        file: &WeightFile<'_>,
        config: &Config,
        opening: &mut Opening<'_>,
    ) -> Result<Self> {
        let (d_model, n_vocab) = (config.d_model, config.n_vocab);
        let mut taken = HashSet::new();
        taken.try_reserve(file.directory.tensors().len() + 1)?;
        taken.insert(ROPE_FREQS.to_owned());
        let mut loader = Loader { backend, file, opening, n_loaded: 0, taken };
        let weights = Self {
            embedding: loader.matrix("token_embd.weight", n_vocab, d_model)?,
            layers: try_collect_ok((0..config.n_layers).map(|i| loader.layer(i, config)))?,
            output_norm: loader.vector("output_norm.weight", d_model)?,
            inv_freq: loader.numbers(&config.rope.inv_freq)?,
            output: match file.has("output.weight") {
                true => Some(loader.matrix("output.weight", n_vocab, d_model)?),
                false => None,
            },
        };
        loader.check_all_taken()?;
        opening.pass(file.bytes().len())?;
        Ok(weights)
    }
}

/// Takes tensors to the device, one by one.
struct Loader<'a, 'f, 'o, B: Backend> {
    backend: &'a B,
    file: &'a WeightFile<'f>,
    opening: &'a mut Opening<'o>,
    n_loaded: usize,
    /// Names of the tensors that the model is made of, so far.
    taken: HashSet<String>,
}

impl<B: Backend> Loader<'_, '_, '_, B> {
    fn layer(&mut self, i: usize, config: &Config) -> Result<LayerWeights<B>> {
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        let (q_dim, kv_dim) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let name = |part: &str| format!("blk.{i}.{part}");
        Ok(LayerWeights {
            phases: self.numbers(&config.attention[i].phases)?,
            attn_norm: self.vector(&name("attn_norm.weight"), d_model)?,
            q: self.linear(&name("attn_q"), q_dim, d_model)?,
            k: self.linear(&name("attn_k"), kv_dim, d_model)?,
            v: self.linear(&name("attn_v"), kv_dim, d_model)?,
            o: self.linear(&name("attn_output"), d_model, q_dim)?,
            mlp_norm: self.vector(&name("ffn_norm.weight"), d_model)?,
            gate: self.linear(&name("ffn_gate"), d_ff, d_model)?,
            up: self.linear(&name("ffn_up"), d_ff, d_model)?,
            down: self.linear(&name("ffn_down"), d_model, d_ff)?,
        })
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear<B>> {
        let bias = format!("{name}.bias");
        Ok(Linear {
            w: self.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: self.file.has(&bias).then(|| self.vector(&bias, rows)).transpose()?,
        })
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let data = self.file.matrix(name, rows, cols)?;
        self.taken.insert(name.to_owned());
        let n_bytes = data.range.len();
        let weight = self.backend.weight(data)?;
        self.told(n_bytes)?;
        Ok(weight)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<B::Buf> {
        let buf = self.numbers(&self.file.vector(name, n)?)?;
        self.taken.insert(name.to_owned());
        self.told(n * size_of::<f32>())?;
        Ok(buf)
    }

    fn numbers<T: bytemuck::NoUninit + bytemuck::AnyBitPattern>(&self, values: &[T]) -> Result<B::Buf> {
        let mut buf = self.backend.alloc(size_of_val(values))?;
        self.backend.upload(&mut buf, 0, values)?;
        Ok(buf)
    }

    /// A tensor that is left over may change what the model computes.
    fn check_all_taken(&self) -> Result<()> {
        let mut names = self.file.directory.tensors().iter().map(TensorInfo::name);
        match names.find(|name| !self.taken.contains(*name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::unsupported(format!("{name}: this tensor is unknown, and the model may need it")))
            }
        }
    }

    fn told(&mut self, n_bytes: usize) -> Result<()> {
        self.n_loaded += n_bytes;
        self.opening.reach(self.n_loaded, self.file.bytes().len())
    }
}
