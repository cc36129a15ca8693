//! Structs that may grow, of parameters and of results: `struct_size` says which version the caller was compiled with.

use std::marker::PhantomData;

use super::pointer::check;
use crate::error::{Error, Result};

/// No version of such a struct will be larger; whoever says more never set `struct_size`.
const MAX_SIZE: usize = 4096;

/// A struct of the C interface that may grow. In one of parameters, zero means the default for each of its fields.
///
/// # Safety
/// `repr(C)`, begins with `struct_size: usize`, has no padding, and any bytes make a valid value.
pub(super) unsafe trait Params: Copy {
    /// Bytes of the struct in the first version that had it.
    const FIRST_SIZE: usize;
}

/// The parameters behind `pointer`, all zero for NULL. Fields that the caller's version did not have are zero.
///
/// # Errors
/// `Invalid` if `struct_size` is none, or if a field behind those that this version knows is not zero.
///
/// # Safety
/// If not NULL, `pointer` points to as many readable bytes as the `struct_size` at its beginning says.
pub(super) unsafe fn read<T: Params>(pointer: *const T, name: &str) -> Result<T> {
    let mut params = std::mem::MaybeUninit::<T>::zeroed();
    if !pointer.is_null() {
        let known = size_of::<T>();
        // SAFETY: as the caller says.
        let size = unsafe { size_of_version(pointer, name) }?;
        // SAFETY: the caller vouches for `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), size) };
        if let Some(at) = (known..size).find(|&at| bytes[at] != 0) {
            return Err(Error::unsupported(format!(
                "{name}: byte {at} is set, this version knows {known} bytes"
            )));
        }
        let n_bytes = size.min(known);
        // SAFETY: `params` has `known` bytes.
        unsafe { params.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), n_bytes) };
    }
    // SAFETY: any bytes make a valid `T`, and all of them are initialised.
    Ok(unsafe { params.assume_init() })
}

/// # Safety
/// `pointer` points to a version of the struct, all of which begin with their size.
unsafe fn size_of_version<T: Params>(pointer: *const T, name: &str) -> Result<usize> {
    // SAFETY: as the caller says.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    match (T::FIRST_SIZE..=MAX_SIZE).contains(&size) {
        true => Ok(size),
        false => {
            let known = size_of::<T>();
            Err(Error::invalid(format!("{name}: struct_size {size} is no size of it, {known} is")))
        }
    }
}

/// A caller's struct for results.
pub(super) struct Results<'a, T: Params> {
    pointer: *mut T,
    /// Bytes of the caller's version.
    size: usize,
    lives: PhantomData<&'a mut T>,
}

impl<T: Params> Results<'_, T> {
    /// # Errors
    /// `Invalid` for NULL, a pointer that is not aligned, or a `struct_size` that is none.
    ///
    /// # Safety
    /// If neither NULL nor misaligned, `pointer` points to as many bytes as the `struct_size` at its beginning says, which
    /// nobody else uses as long as the result lives.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self> {
        check(pointer, name)?;
        // SAFETY: neither NULL nor misaligned; the rest is the caller's word.
        let size = unsafe { size_of_version(pointer, name) }?;
        Ok(Self { pointer, size, lives: PhantomData })
    }

    /// Writes the fields that the caller's version has, but not its `struct_size`; what a newer version has behind them
    /// is left alone.
    pub(super) fn write(self, results: T) {
        let (begin, end) = (size_of::<usize>(), self.size.min(size_of::<T>()));
        let from = (&raw const results).cast::<u8>();
        // SAFETY: `new` was promised `size` bytes, which are at least those of the first version's `struct_size`, and
        // `T` has no padding.
        unsafe {
            self.pointer.cast::<u8>().add(begin).copy_from_nonoverlapping(from.add(begin), end - begin)
        };
    }
}

/// `value` of the enumeration called `name` is none of its numbers.
pub(super) fn unknown(name: &str, value: u32) -> Error {
    Error::invalid(format!("{name}: {value} is none of its values"))
}

/// A field that is zero or one.
pub(super) fn flag(name: &str, value: u32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(unknown(name, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// A struct in its second version: the first ended with `a`.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Second {
        struct_size: usize,
        a: u64,
        b: u64,
    }

    // SAFETY: repr(C), no padding, integers only.
    unsafe impl Params for Second {
        const FIRST_SIZE: usize = 16;
    }

    fn read_words(words: &[u64]) -> Result<Second> {
        // SAFETY: `struct_size` is at most the size of `words` wherever it is a size of the struct.
        unsafe { read(words.as_ptr().cast::<Second>(), "params") }
    }

    #[test]
    fn null_is_all_zero() {
        // SAFETY: NULL is allowed.
        let params = unsafe { read(std::ptr::null::<Second>(), "params") }.unwrap();
        assert_eq!(params, Second { struct_size: 0, a: 0, b: 0 });
    }

    #[test]
    fn an_older_caller_has_zero_in_the_new_field() {
        let params = read_words(&[16, 5, 99]).unwrap();
        assert_eq!((params.a, params.b), (5, 0));
    }

    #[test]
    fn a_newer_caller_may_not_use_what_this_version_does_not_know() {
        assert_eq!(read_words(&[32, 5, 6, 0]).map(|params| (params.a, params.b)).unwrap(), (5, 6));
        let error = read_words(&[32, 5, 6, 1 << 56]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("byte 31"), "{error}");
    }

    #[test]
    fn a_size_that_was_never_set_is_refused() {
        for size in [0, 1, 15, 4097, u64::MAX] {
            assert_eq!(read_words(&[size, 0, 0]).unwrap_err().kind(), ErrorKind::Invalid, "{size}");
            assert_eq!(written(size).unwrap_err().kind(), ErrorKind::Invalid, "{size}");
        }
    }

    /// What is in a caller's struct and behind it after results were written to it.
    fn written(struct_size: u64) -> Result<[u64; 4]> {
        let mut words = [struct_size, 97, 98, 99];
        // SAFETY: `struct_size` is at most the size of `words` wherever it is a size of the struct.
        let results = unsafe { Results::new(words.as_mut_ptr().cast::<Second>(), "results") }?;
        results.write(Second { struct_size: 0, a: 5, b: 6 });
        Ok(words)
    }

    #[test]
    fn results_are_written_as_far_as_the_caller_has_room() {
        assert_eq!(written(16).unwrap(), [16, 5, 98, 99]);
        assert_eq!(written(24).unwrap(), [24, 5, 6, 99]);
        assert_eq!(written(32).unwrap(), [32, 5, 6, 99]);
        // SAFETY: NULL is refused.
        assert!(unsafe { Results::new(std::ptr::null_mut::<Second>(), "results") }.is_err());
    }
}
