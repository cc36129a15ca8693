//! Pointers from C, checked as far as a pointer can be: not NULL, aligned, and lengths that memory can have.
//!
//! That they point to what the header asks for is the callers' word, and the safety condition of everything here.

use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::path::Path;

use super::guard::guard_or;
use crate::alloc::{try_box, try_collect_ok, try_string};
use crate::error::{Error, ErrorKind, Result};

/// Moves a value behind a handle; [`free`] takes it back.
///
/// # Errors
/// `OutOfMemory`.
pub(super) fn into_handle<T>(value: T) -> Result<*mut T> {
    try_box(value).map(Box::into_raw)
}

/// Frees what a handle stands for; NULL stands for nothing.
///
/// # Safety
/// `handle` is NULL or comes from [`into_handle`], and nobody uses it any more.
pub(super) unsafe fn free<T>(handle: *mut T) {
    guard_or((), || {
        if !handle.is_null() {
            // SAFETY: as the caller says.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    });
}

/// # Safety
/// If neither NULL nor misaligned, `pointer` points to a `T` that lives and does not change for `'a`.
pub(super) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    check(pointer, name)?;
    // SAFETY: not NULL and aligned; the rest is the caller's word.
    Ok(unsafe { &*pointer })
}

/// What `body` says about what `handle` points to, or `fallback` for NULL and where it fails.
///
/// # Safety
/// As for [`reference`].
pub(super) unsafe fn get<T, R>(handle: *const T, fallback: R, body: impl FnOnce(&T) -> Result<R>) -> R {
    // SAFETY: as the caller says.
    guard_or(fallback, || body(unsafe { reference(handle, "handle") }?))
}

/// Where a result goes. It is not read, so it may be uninitialised.
///
/// # Safety
/// If neither NULL nor misaligned, `pointer` points to room for a `T` that nobody else uses for `'a`.
pub(super) unsafe fn output<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>> {
    check(pointer, name)?;
    // SAFETY: not NULL and aligned; the rest is the caller's word.
    Ok(unsafe { &mut *pointer.cast() })
}

/// Where `n` results go; NULL for none is fine.
///
/// # Safety
/// As for [`output`], of `n` elements.
pub(super) unsafe fn outputs<'a, T>(
    pointer: *mut T,
    n: usize,
    name: &str,
) -> Result<&'a mut [MaybeUninit<T>]> {
    if pointer.is_null() && n == 0 {
        return Ok(&mut []);
    }
    check(pointer, name)?;
    check_length::<T>(n, name)?;
    // SAFETY: not NULL, aligned, of a length that memory can have; the rest is the caller's word.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), n) })
}

/// A matrix of floats that a caller may want; `None` for NULL.
///
/// # Safety
/// As for [`output`], of as many floats as both sizes say. Whatever is in them makes floats.
pub(super) unsafe fn optional_floats<'a>(
    pointer: *mut f32,
    sizes: [usize; 2],
    name: &str,
) -> Result<Option<&'a mut [f32]>> {
    if pointer.is_null() {
        return Ok(None);
    }
    check(pointer, name)?;
    let n = sizes[0].saturating_mul(sizes[1]);
    check_length::<f32>(n, name)?;
    // SAFETY: not NULL, aligned, of a length that memory can have; the rest is the caller's word.
    Ok(Some(unsafe { std::slice::from_raw_parts_mut(pointer, n) }))
}

/// `n` elements; NULL for none is fine.
///
/// # Safety
/// If neither NULL nor misaligned, `pointer` points to `n` elements that live and do not change for `'a`.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, n: usize, name: &str) -> Result<&'a [T]> {
    if pointer.is_null() && n == 0 {
        return Ok(&[]);
    }
    check(pointer, name)?;
    check_length::<T>(n, name)?;
    // SAFETY: not NULL, aligned, of a length that memory can have; the rest is the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(pointer, n) })
}

/// `n_bytes` of UTF-8, which need no zero byte at their end.
///
/// # Safety
/// As for [`slice`].
pub(super) unsafe fn text<'a>(pointer: *const c_char, n_bytes: usize, name: &str) -> Result<&'a str> {
    // SAFETY: as the caller says.
    let bytes = unsafe { slice(pointer.cast::<u8>(), n_bytes, name) }?;
    std::str::from_utf8(bytes).map_err(|error| Error::invalid(format!("{name} is no UTF-8: {error}")))
}

/// UTF-8 up to a zero byte.
///
/// # Safety
/// If not NULL, `pointer` points to a string with a zero byte at its end that lives and does not change for `'a`.
pub(super) unsafe fn string<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    check(pointer, name)?;
    // SAFETY: not NULL; the rest is the caller's word.
    let string = unsafe { CStr::from_ptr(pointer) };
    string.to_str().map_err(|error| Error::invalid(format!("{name} is no UTF-8: {error}")))
}

/// A text for C programs; a zero byte in it would end it there.
pub(super) fn c_string(text: &str) -> CString {
    let text = text.split('\0').next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// `n` strings, each as [`string`] takes it.
///
/// # Safety
/// As for [`slice`], and for [`string`] of each element.
pub(super) unsafe fn strings(pointer: *const *const c_char, n: usize, name: &str) -> Result<Vec<String>> {
    // SAFETY: as the caller says.
    let pointers = unsafe { slice(pointer, n, name) }?;
    let string = |(i, &pointer): (usize, &*const c_char)| {
        // SAFETY: as the caller says.
        try_string(unsafe { self::string(pointer, &format!("{name}[{i}]")) }?)
    };
    try_collect_ok(pointers.iter().enumerate().map(string))
}

/// A path: bytes up to a zero byte, as the system's own calls take them.
///
/// # Safety
/// If not NULL, `pointer` points to a string with a zero byte at its end that lives and does not change for `'a`.
pub(super) unsafe fn path<'a>(pointer: *const c_char) -> Result<&'a Path> {
    use std::os::unix::ffi::OsStrExt;
    check(pointer, "path")?;
    // SAFETY: not NULL; the rest is the caller's word.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

/// A caller's array for results whose number it may not know: NULL and 0 ask for the number alone.
pub(super) struct Buffer<'a, T> {
    elements: Option<&'a mut [MaybeUninit<T>]>,
    n: &'a mut MaybeUninit<usize>,
}

impl<'a, T: Copy> Buffer<'a, T> {
    /// # Safety
    /// As for [`output`]: of `pointer` for `cap` elements, and of `n`.
    pub(super) unsafe fn new(pointer: *mut T, cap: usize, n: *mut usize, names: [&str; 2]) -> Result<Self> {
        let [name, n_name] = names;
        // SAFETY: as the caller says.
        let n = unsafe { output(n, n_name) }?;
        if pointer.is_null() && cap == 0 {
            return Ok(Self { elements: None, n });
        }
        // SAFETY: as the caller says.
        let elements = unsafe { outputs(pointer, cap, name) }?;
        Ok(Self { elements: Some(elements), n })
    }

    /// Writes all of `values` and their number.
    ///
    /// # Errors
    /// `TooSmall`, with nothing written but their number, if they do not fit.
    pub(super) fn fill(self, values: &[T]) -> Result<()> {
        self.fill_with(values.iter().copied())
    }

    /// The same for values that are made on the way.
    pub(super) fn fill_with(self, values: impl ExactSizeIterator<Item = T>) -> Result<()> {
        let n = values.len();
        self.n.write(n);
        if let Some(elements) = self.elements {
            let cap = elements.len();
            let Some(room) = elements.get_mut(..n) else {
                let message = format!("{n} elements do not fit in a buffer for {cap}");
                return Err(Error::new(ErrorKind::TooSmall, message));
            };
            room.iter_mut().zip(values).for_each(|(to, value)| _ = to.write(value));
        }
        Ok(())
    }
}

/// Refuses NULL, and a pointer that is not aligned.
pub(super) fn check<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(Error::invalid(format!("{name} is NULL")));
    }
    match pointer.is_aligned() {
        true => Ok(()),
        false => {
            Err(Error::invalid(format!("{name} at {pointer:p} is not aligned to {} bytes", align_of::<T>())))
        }
    }
}

fn check_length<T>(n: usize, name: &str) -> Result<()> {
    match n <= isize::MAX as usize / size_of::<T>() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{name}: {n} elements are more than memory can hold"))),
    }
}
