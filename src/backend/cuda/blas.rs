//! Products of many rows through cuBLASLt, if it is installed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::device::{Device, DeviceBuf};
use super::gemm::Product;
use super::params::Address;
use crate::error::{Error, ErrorKind, Result};

/// `CUBLAS_OP_T`, which the bindings of this library lack.
const TRANSPOSED: i32 = 1;

/// What a recipe depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    n_rows: usize,
    n_outputs: usize,
    cols: usize,
    out_width: usize,
    is_bf16: bool,
    add: bool,
}

/// Shapes whose recipes are kept: prompts end in steps of any number of rows.
const MAX_RECIPES: usize = 512;

/// What a matrix looks like, to cuBLASLt. The library counts columns first: a (rows, cols) matrix of ours is its
/// (cols, rows).
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// `rows` rows of `cols` elements, `width` apart.
    fn new(ty: sys::cudaDataType, rows: usize, cols: usize, width: usize) -> Result<Self, CublasError> {
        let width = i64::try_from(width).unwrap_or(i64::MAX);
        result::create_matrix_layout(ty, cols as u64, rows as u64, width).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and used no more. An error here has nobody to be told to.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// How cuBLASLt computes products of one shape: asked for once.
struct Recipe {
    w: Layout,
    x: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt with the recipes of the shapes so far; `None` for those that it has none for.
pub(super) struct Blas {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    /// transpose(w) * x, summed in f32; null until it is made
    operation: sys::cublasLtMatmulDesc_t,
    recipes: Mutex<HashMap<Shape, Option<Recipe>>>,
}

// SAFETY: the library may be called from any thread; the recipes are behind a mutex.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// cuBLASLt, or `None` where it is not installed or does not work. The device is bound.
    pub fn load(device: &Arc<Device>) -> Option<Self> {
        // SAFETY: loads the library if there is one; cudarc would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let handle = result::create_handle().ok()?;
        let operation = std::ptr::null_mut();
        let mut blas = Self { device: device.clone(), handle, operation, recipes: Mutex::default() };
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        blas.operation = result::create_matmul_desc(compute, scale).ok()?;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let value = std::ptr::from_ref(&TRANSPOSED).cast::<c_void>();
        let n_bytes = size_of_val(&TRANSPOSED);
        // SAFETY: the attribute has the type of its value.
        unsafe { result::set_matmul_desc_attribute(blas.operation, attribute, value, n_bytes) }.ok()?;
        Some(blas)
    }

    /// Computes a product, unless it returns `false`: the library has no way to.
    pub fn run(&self, product: &Product, workspace: &DeviceBuf) -> Result<bool> {
        let Product { out, out_width, x, w, add } = *product;
        let shape =
            Shape { n_rows: x.rows, n_outputs: w.rows, cols: w.cols, out_width, is_bf16: w.is_bf16, add };
        let mut recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        if recipes.len() >= MAX_RECIPES && !recipes.contains_key(&shape) {
            recipes.clear();
        }
        let recipe = recipes.entry(shape).or_insert_with(|| self.recipe(shape, workspace.n_bytes()).ok());
        let Some(recipe) = recipe else { return Ok(false) };
        let (alpha, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        // A null pointer is refused by the library.
        let pointer = |address: Address| usize::try_from(address).unwrap_or(0) as *mut c_void;
        // SAFETY: the layouts describe matrices within the buffers, as the op's wrapper has checked.
        unsafe {
            result::matmul(
                self.handle,
                self.operation,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(w.address),
                recipe.w.0,
                pointer(x.address),
                recipe.x.0,
                pointer(out),
                recipe.out.0,
                pointer(out),
                recipe.out.0,
                &recipe.algorithm,
                pointer(workspace.address()),
                workspace.n_bytes(),
                self.device.stream().cast(),
            )
        }
        .map(|()| true)
        .map_err(|error| {
            Error::new(ErrorKind::Device, format!("cublaslt: {product:?} failed: {:?}", error.0))
        })
    }

    fn recipe(&self, shape: Shape, workspace_bytes: usize) -> Result<Recipe, CublasError> {
        let Shape { n_rows: n, n_outputs: m, cols: k, out_width, is_bf16, .. } = shape;
        let ty = if is_bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_16F };
        let (w, x) = (Layout::new(ty, m, k, k)?, Layout::new(ty, n, k, k)?);
        let out = Layout::new(sys::cudaDataType::CUDA_R_32F, n, m, out_width)?;
        let preference = result::create_matmul_pref()?;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let value = std::ptr::from_ref(&workspace_bytes).cast::<c_void>();
        let (handle, operation) = (self.handle, self.operation);
        // SAFETY: the attribute is a size; the descriptors were made above.
        let found = unsafe {
            result::set_matmul_pref_attribute(preference, attribute, value, size_of::<usize>()).and_then(
                |()| result::get_matmul_algo_heuristic(handle, operation, w.0, x.0, out.0, out.0, preference),
            )
        };
        // SAFETY: made above, and used no more.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        Ok(Recipe { w, x, out, algorithm: found?.algo })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        self.recipes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made here, and used no more. An error here has nobody to be told to.
        unsafe {
            if !self.operation.is_null() {
                let _ = result::destroy_matmul_desc(self.operation);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}
