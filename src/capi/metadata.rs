//! What else a model's file says: its key-value pairs.

use std::ffi::c_char;

use super::guard::guard;
use super::model::{get, lg_model};
use super::pointer::{Buffer, output, reference, string};
use super::status::{lg_error, lg_status};
use crate::error::Result;
use crate::model::metadata::ModelMetadata;

/// `lg_model_metadata_info`: an unsigned integer of 8 bits. These are GGUF's numbers.
pub const LG_METADATA_U8: u32 = 0;
/// `lg_model_metadata_info`: a signed integer of 8 bits.
pub const LG_METADATA_I8: u32 = 1;
/// `lg_model_metadata_info`: an unsigned integer of 16 bits.
pub const LG_METADATA_U16: u32 = 2;
/// `lg_model_metadata_info`: a signed integer of 16 bits.
pub const LG_METADATA_I16: u32 = 3;
/// `lg_model_metadata_info`: an unsigned integer of 32 bits.
pub const LG_METADATA_U32: u32 = 4;
/// `lg_model_metadata_info`: a signed integer of 32 bits.
pub const LG_METADATA_I32: u32 = 5;
/// `lg_model_metadata_info`: a float of 32 bits.
pub const LG_METADATA_F32: u32 = 6;
/// `lg_model_metadata_info`: true or false.
pub const LG_METADATA_BOOL: u32 = 7;
/// `lg_model_metadata_info`: a text.
pub const LG_METADATA_TEXT: u32 = 8;
/// `lg_model_metadata_info`: an unsigned integer of 64 bits.
pub const LG_METADATA_U64: u32 = 10;
/// `lg_model_metadata_info`: a signed integer of 64 bits.
pub const LG_METADATA_I64: u32 = 11;
/// `lg_model_metadata_info`: a float of 64 bits.
pub const LG_METADATA_F64: u32 = 12;

/// The pairs of a model, and the key that a caller means.
///
/// # Safety
/// As for [`reference`] and [`string`].
unsafe fn metadata<'a>(model: *const lg_model, key: *const c_char) -> Result<(&'a ModelMetadata, &'a str)> {
    // SAFETY: the caller's word.
    let (model, key) = unsafe { (reference(model, "model")?, string(key, "key")?) };
    Ok((model.model.metadata(), key))
}

/// Number of key-value pairs of the model's file. 0 for NULL.
///
/// # Safety
/// The caller must not free the model before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_n_metadata(model: *const lg_model) -> usize {
    // SAFETY: the caller's word.
    unsafe { get(model, 0, |model| model.metadata().len()) }
}

/// The key number `index` of the model's file, in its order.
///
/// `key` has room for `cap` bytes; `*n_bytes` is how many the key has together with the zero byte at its end.
///
/// Errors: `LG_ERR_INVALID`, also for an index that is not below `lg_model_n_metadata`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_key(
    model: *const lg_model,
    index: usize,
    key: *mut c_char,
    cap: usize,
    n_bytes: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let model = unsafe { reference(model, "model") }?;
        // SAFETY: as above.
        let key = unsafe { Buffer::new(key.cast::<u8>(), cap, n_bytes, ["key", "n_bytes"]) }?;
        key.fill(&[model.model.metadata().key(index)?.as_bytes(), &[0]].concat())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_key", error, body) }
}

/// What a key has: `*type` is one of `LG_METADATA_*`, and `*n_elements` how many values of this type there are, 1 unless it
/// is an array. `key` ends with a zero byte.
///
/// Errors: `LG_ERR_INVALID`, `LG_ERR_NOT_FOUND` for a key that is not there.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_info(
    model: *const lg_model,
    key: *const c_char,
    r#type: *mut u32,
    n_elements: *mut usize,
    is_array: *mut bool,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (metadata, key) = unsafe { metadata(model, key) }?;
        // SAFETY: as above.
        let (ty, is_array) = unsafe { (output(r#type, "type")?, output(is_array, "is_array")?) };
        // SAFETY: as above.
        let n_elements = unsafe { output(n_elements, "n_elements") }?;
        let shape = metadata.shape(key)?;
        ty.write(shape.ty.id());
        n_elements.write(shape.n_elems);
        is_array.write(shape.is_array);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_info", error, body) }
}

/// The value of a key, or the element `index` of its array; `index` is 0 for a key without an array. Integers of any width
/// are taken if they fit. `key` ends with a zero byte.
///
/// Errors: `LG_ERR_INVALID`, also for another type, for a number that does not fit, and for an element that is not there;
/// `LG_ERR_NOT_FOUND` for a key that is not there; `LG_ERR_FORMAT` if the file has been changed meanwhile.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_u64(
    model: *const lg_model,
    key: *const c_char,
    index: usize,
    value: *mut u64,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let ((metadata, key), value) = unsafe { (metadata(model, key)?, output(value, "value")?) };
        value.write(metadata.u64(key, index)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_u64", error, body) }
}

/// `lg_model_metadata_u64` for signed integers.
///
/// Errors: those of `lg_model_metadata_u64`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_i64(
    model: *const lg_model,
    key: *const c_char,
    index: usize,
    value: *mut i64,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let ((metadata, key), value) = unsafe { (metadata(model, key)?, output(value, "value")?) };
        value.write(metadata.i64(key, index)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_i64", error, body) }
}

/// `lg_model_metadata_u64` for floats of either width.
///
/// Errors: those of `lg_model_metadata_u64`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_f64(
    model: *const lg_model,
    key: *const c_char,
    index: usize,
    value: *mut f64,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let ((metadata, key), value) = unsafe { (metadata(model, key)?, output(value, "value")?) };
        value.write(metadata.f64(key, index)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_f64", error, body) }
}

/// `lg_model_metadata_u64` for true and false.
///
/// Errors: those of `lg_model_metadata_u64`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_bool(
    model: *const lg_model,
    key: *const c_char,
    index: usize,
    value: *mut bool,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let ((metadata, key), value) = unsafe { (metadata(model, key)?, output(value, "value")?) };
        value.write(metadata.bool(key, index)?);
        Ok(())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_bool", error, body) }
}

/// `lg_model_metadata_u64` for texts.
///
/// `text` has room for `cap` bytes; `*n_bytes` is how many the text has, without a zero byte at its end.
///
/// Errors: those of `lg_model_metadata_u64`.
///
/// # Safety
/// The caller must pass pointers as the conventions ask.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lg_model_metadata_text(
    model: *const lg_model,
    key: *const c_char,
    index: usize,
    text: *mut c_char,
    cap: usize,
    n_bytes: *mut usize,
    error: *mut lg_error,
) -> lg_status {
    let body = || {
        // SAFETY: the caller's word, as for all pointers of this function.
        let (metadata, key) = unsafe { metadata(model, key) }?;
        // SAFETY: as above.
        let text = unsafe { Buffer::new(text.cast::<u8>(), cap, n_bytes, ["text", "n_bytes"]) }?;
        text.fill(metadata.text(key, index)?.as_bytes())
    };
    // SAFETY: the caller's word.
    unsafe { guard("lg_model_metadata_text", error, body) }
}
