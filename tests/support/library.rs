//! The shared library as C programs see it.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A folder with the shared library under the names that linker and loader look for.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["liblonggen.so".to_owned(), soname()] {
        symlink(path(), folder.path().join(name)).unwrap();
    }
    folder
}

/// The name that programs are linked with.
pub fn soname() -> String {
    format!("liblonggen.so.{}", longgen::capi::version::LG_ABI_VERSION)
}

/// The shared library itself: cargo leaves it beside the test's own program.
pub fn path() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("liblonggen.so");
    assert!(path.exists(), "{}: not there, cargo build makes it", path.display());
    path
}
