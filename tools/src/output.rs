//! Where results go: standard output, and files that replace others.

use std::fs::Permissions;
use std::io::{ErrorKind, Write, stdout};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

/// Prints to standard output at once. Where that fails, nobody is left to work for and the process ends: with success if
/// a reader has seen enough, with a message if the text could not be stored.
pub fn print(text: &str) {
    let mut out = stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("standard output: {error}");
        std::process::exit(1);
    }
}

/// The folder of a file.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A temporary file beside `path`, to be put in its place when it is complete; it is removed otherwise.
///
/// # Errors
/// `path` is a folder or names no file, or its folder cannot be written to.
pub fn temporary(path: &Path) -> Result<NamedTempFile> {
    ensure!(!path.is_dir(), "{} is a folder", path.display());
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        // As for any new file; the umask takes its share.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder(path))
        .with_context(|| format!("cannot write to {}", folder(path).display()))
}
