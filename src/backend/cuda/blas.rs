//! Products of many rows through cuBLASLt, if it is installed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::device::{Device, DeviceBuf};
use super::params::Address;
use crate::error::{Error, ErrorKind, Result};

/// `CUBLAS_OP_T`, which the bindings of this library lack.
const TRANSPOSED: i32 = 1;

/// `out` (n, m) = x (n, k) * transpose(w (m, k)), where rows of `out` are `out_width` apart; `out` += that if `add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub n: usize,
    pub m: usize,
    pub k: usize,
    pub out_width: usize,
    pub is_bf16: bool,
    pub add: bool,
}

/// How cuBLASLt computes products of one shape: asked for once.
#[derive(Clone, Copy)]
struct Recipe {
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt with the recipes of all shapes so far.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// transpose(w) * x, summed in f32
    operation: sys::cublasLtMatmulDesc_t,
    recipes: Mutex<HashMap<Product, Recipe>>,
}

// SAFETY: the library may be called from any thread; the recipes are behind a mutex.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

fn failed(what: &str) -> impl Fn(CublasError) -> Error {
    move |error| Error::new(ErrorKind::Device, format!("cublaslt: {what}: {:?}", error.0))
}

impl Blas {
    /// cuBLASLt, or `None` where it is not installed. The device is bound.
    pub fn load() -> Option<Self> {
        // SAFETY: loads the library if there is one; cudarc would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let handle = result::create_handle().ok()?;
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let operation = result::create_matmul_desc(compute, scale).ok()?;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let value = std::ptr::from_ref(&TRANSPOSED).cast::<c_void>();
        // SAFETY: the attribute has the type of its value.
        unsafe { result::set_matmul_desc_attribute(operation, attribute, value, size_of_val(&TRANSPOSED)) }
            .ok()?;
        Some(Self { handle, operation, recipes: Mutex::default() })
    }

    /// Computes a product.
    pub fn run(
        &self,
        device: &Device,
        product: Product,
        out: Address,
        x: Address,
        w: Address,
        workspace: &DeviceBuf,
    ) -> Result<()> {
        let recipe = self.recipe(product, workspace.n_bytes())?;
        let (alpha, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        // A null pointer is refused by the library.
        let pointer = |address: Address| usize::try_from(address).unwrap_or(0) as *mut c_void;
        // SAFETY: the layouts describe matrices within the buffers, as the op's wrapper has checked.
        unsafe {
            result::matmul(
                self.handle,
                self.operation,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(w),
                recipe.w,
                pointer(x),
                recipe.x,
                pointer(out),
                recipe.out,
                pointer(out),
                recipe.out,
                &recipe.algorithm,
                pointer(workspace.address()),
                workspace.n_bytes(),
                device.stream().cast(),
            )
        }
        .map_err(failed("a product failed"))
    }

    /// The library counts columns first: a (rows, cols) matrix of ours is its (cols, rows).
    fn recipe(&self, product: Product, workspace_bytes: usize) -> Result<Recipe> {
        let mut recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recipe) = recipes.get(&product) {
            return Ok(*recipe);
        }
        let Product { n, m, k, out_width, is_bf16, .. } = product;
        let ty = if is_bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_16F };
        let layout = |ty, rows: usize, cols: usize, width: usize| {
            let width = i64::try_from(width).unwrap_or(i64::MAX);
            result::create_matrix_layout(ty, rows as u64, cols as u64, width)
                .map_err(failed("no such matrix"))
        };
        let (w, x) = (layout(ty, k, m, k)?, layout(ty, k, n, k)?);
        let out = layout(sys::cudaDataType::CUDA_R_32F, m, n, out_width)?;
        let preference = result::create_matmul_pref().map_err(failed("no preferences"))?;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let value = std::ptr::from_ref(&workspace_bytes).cast::<c_void>();
        // SAFETY: the attribute is a size; the descriptors were made above.
        let found = unsafe {
            result::set_matmul_pref_attribute(preference, attribute, value, size_of::<usize>()).and_then(
                |()| {
                    result::get_matmul_algo_heuristic(self.handle, self.operation, w, x, out, out, preference)
                },
            )
        };
        // SAFETY: made above, and used no more.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        let found = found.map_err(failed(&format!("no way to multiply {product:?}")))?;
        let recipe = Recipe { w, x, out, algorithm: found.algo };
        recipes.insert(product, recipe);
        Ok(recipe)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let recipes = std::mem::take(&mut *self.recipes.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: made here, and used no more. An error here has nobody to be told to.
        unsafe {
            for layout in recipes.values().flat_map(|recipe| [recipe.w, recipe.x, recipe.out]) {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.operation);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
