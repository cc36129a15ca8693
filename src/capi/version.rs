//! Versions.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use super::guard::guard_or;
use super::pointer::c_string;
use crate::version::build_info;

/// Version of the binary interface: the first number of the library's version, and the one in the shared library's
/// soname. A program works with every later library that has the same number.
pub const LG_ABI_VERSION: u32 = 0;

// A number of its own because cbindgen copies it to the header.
const _: () = assert!(LG_ABI_VERSION == MAJOR);

const MAJOR: u32 = number(env!("CARGO_PKG_VERSION_MAJOR"));
const NUMBER: u32 = MAJOR * 1_000_000
    + number(env!("CARGO_PKG_VERSION_MINOR")) * 1_000
    + number(env!("CARGO_PKG_VERSION_PATCH"));

const fn number(digits: &str) -> u32 {
    match u32::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => panic!("a part of the package's version is no number"),
    }
}

/// Version of the library that the program runs with, as one number: 1002003 for 1.2.3. `LG_VERSION` is the one that
/// the program was compiled with.
#[unsafe(no_mangle)]
pub extern "C" fn lg_version() -> u32 {
    NUMBER
}

/// The same as text, for example "1.2.3": a string that lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn lg_version_str() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What the library is that the program runs with, in a line: version, target, backends, and the processor's instructions
/// that it uses on this machine. For logs and reports of bugs; a string that lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn lg_build_info() -> *const c_char {
    static LINE: OnceLock<CString> = OnceLock::new();
    guard_or(c"".as_ptr(), || Ok(LINE.get_or_init(|| c_string(&build_info())).as_ptr()))
}

/// `LG_ABI_VERSION` of the library that the program runs with.
#[unsafe(no_mangle)]
pub extern "C" fn lg_abi_version() -> u32 {
    LG_ABI_VERSION
}
