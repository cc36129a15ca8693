//! Structs that may grow, of parameters and of results: `struct_size` says which version the caller was compiled with.

use super::pointer::check;
use crate::error::{Error, Result};

/// No version of a struct will be larger; whoever says more never set `struct_size`.
const MAX_SIZE: usize = 4096;

/// A struct of the C interface that may grow. In one of parameters, zero means the default for each of its fields.
///
/// # Safety
/// `repr(C)`, begins with `struct_size: usize`, has no padding, and whatever bytes a C program may put there make a valid
/// value: fields are numbers, raw pointers and `Option<extern "C" fn>`.
pub(super) unsafe trait Params: Copy {
    /// Bytes of the struct in the first version that had it.
    const FIRST_SIZE: usize;
}

/// The parameters behind `pointer`, all zero for NULL. Fields that the caller's version did not have are zero.
///
/// # Errors
/// `Invalid` if `struct_size` is none, `Unsupported` if a field behind those that this version knows is not zero.
///
/// # Safety
/// If not NULL, `pointer` points to as many readable bytes as the `struct_size` at its beginning says.
pub(super) unsafe fn read<T: Params>(pointer: *const T, name: &str) -> Result<T> {
    const { assert!(size_of::<T>() >= T::FIRST_SIZE) };
    let mut params = std::mem::MaybeUninit::<T>::zeroed();
    if !pointer.is_null() {
        let known = size_of::<T>();
        // SAFETY: every version of the struct begins with its size.
        let size = unsafe { pointer.cast::<usize>().read_unaligned() };
        check_size::<T>(size, T::FIRST_SIZE, name)?;
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
    // SAFETY: the caller's bytes make a valid `T`, as zeros do, and all of them are initialised.
    Ok(unsafe { params.assume_init() })
}

fn check_size<T>(size: usize, first: usize, name: &str) -> Result<()> {
    match (first..=MAX_SIZE).contains(&size) {
        true => Ok(()),
        false => {
            let known = size_of::<T>();
            Err(Error::invalid(format!("{name}: struct_size {size} is no size of it, {known} is")))
        }
    }
}

/// A struct of results of the C interface.
///
/// # Safety
/// `repr(C)`, begins with `struct_size: usize`, and has no padding.
pub(super) unsafe trait Results: Copy {
    /// Bytes of the struct in the first version that had it.
    const FIRST_SIZE: usize;
}

/// A caller's struct that waits for results.
#[derive(Debug)]
pub(super) struct ResultsOut<T> {
    pointer: *mut T,
    /// Bytes of the struct in the caller's version.
    size: usize,
}

impl<T: Results> ResultsOut<T> {
    /// Looks at nothing but `struct_size`.
    ///
    /// # Errors
    /// `Invalid` if the pointer is NULL or not aligned, or if `struct_size` is none.
    ///
    /// # Safety
    /// If neither NULL nor misaligned, `pointer` points to as many bytes as the `struct_size` at its beginning says, which
    /// nobody else uses while the result lives.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self> {
        const { assert!(size_of::<T>() >= T::FIRST_SIZE) };
        check(pointer, name)?;
        // SAFETY: not NULL, aligned, and every version of the struct begins with its size.
        let size = unsafe { pointer.cast::<usize>().read() };
        check_size::<T>(size, T::FIRST_SIZE, name)?;
        Ok(Self { pointer, size })
    }

    /// Writes what the caller's version has of `results`, and zeros to what a newer caller's version has besides. The
    /// caller's `struct_size` stays.
    pub(super) fn write(self, results: &T) {
        let (known, behind_size) = (size_of::<T>().min(self.size), size_of::<usize>());
        let from = std::ptr::from_ref(results).cast::<u8>();
        let to = self.pointer.cast::<u8>();
        // SAFETY: `new`'s caller vouches for `size` bytes of `to`, which `known` is at most; `from` has as many, all of them
        // initialised.
        unsafe {
            to.add(behind_size).copy_from_nonoverlapping(from.add(behind_size), known - behind_size);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// `value` of the enumeration called `name` is none that this version knows.
pub(super) fn unknown(name: &str, value: u32) -> Error {
    Error::unsupported(format!("{name}: this version knows no {value}"))
}

/// A field that has no meaning yet.
pub(super) fn reserved(value: u32) -> Result<()> {
    match value {
        0 => Ok(()),
        other => Err(Error::unsupported(format!("reserved: {other}, this version knows only 0"))),
    }
}

/// Flags: any of `known` together.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        unknown => {
            Err(Error::unsupported(format!("flags: bits {unknown:#x}, this version knows {known:#x}")))
        }
    }
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

    // SAFETY: as above.
    unsafe impl Results for Second {
        const FIRST_SIZE: usize = 16;
    }

    const RESULTS: Second = Second { struct_size: 0, a: 5, b: 6 };

    fn write_words(mut words: [u64; 5]) -> Result<[u64; 5]> {
        // SAFETY: `struct_size` is at most the size of `words` wherever it is a size of the struct.
        unsafe { ResultsOut::new(words.as_mut_ptr().cast::<Second>(), "results") }?.write(&RESULTS);
        Ok(words)
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
            assert_eq!(write_words([size, 0, 0, 0, 0]).unwrap_err().kind(), ErrorKind::Invalid, "{size}");
        }
    }

    #[test]
    fn results_fill_what_the_caller_has_and_nothing_else() {
        assert_eq!(write_words([16, 9, 9, 9, 9]).unwrap(), [16, 5, 9, 9, 9]);
        assert_eq!(write_words([24, 9, 9, 9, 9]).unwrap(), [24, 5, 6, 9, 9]);
        assert_eq!(write_words([32, 9, 9, 9, 9]).unwrap(), [32, 5, 6, 0, 9]);
        // Half a field is no field of the caller's version, but it is the caller's memory.
        assert_eq!(write_words([20, 9, u64::MAX, 9, 9]).unwrap()[3..], [9, 9]);
        // SAFETY: NULL is refused, and so is what is not aligned, before anything is read.
        let refused =
            |pointer| unsafe { ResultsOut::<Second>::new(pointer, "results") }.unwrap_err().to_string();
        assert_eq!(refused(std::ptr::null_mut()), "results is NULL");
        assert!(refused(std::ptr::without_provenance_mut(12)).contains("not aligned"));
    }
}
