//! Where results go: standard output, and files that replace others.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write, stderr, stdout};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::NamedTempFile;

/// Longest chain of symbolic links, as Linux has it.
const MAX_LINKS: usize = 40;

/// Prints to standard output at once. Where that fails, nobody is left to work for and the process ends: with success if
/// a reader has seen enough, with a message if the text could not be stored.
pub fn print(text: &str) {
    if let Err(error) = try_print(text) {
        if !error.is_end() {
            tell(&error);
        }
        std::process::exit(i32::from(!error.is_end()));
    }
}

/// Prints to standard output at once, for those who have something to keep before they end.
///
/// # Errors
/// Nobody reads any more, or the text could not be stored.
pub fn try_print(text: &str) -> std::result::Result<(), Unread> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Unread)
}

/// Standard output takes no more.
#[derive(Debug)]
pub struct Unread(io::Error);

impl Unread {
    /// Whether a reader has seen enough.
    pub fn is_end(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

impl Display for Unread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "standard output: {}", self.0)
    }
}

impl std::error::Error for Unread {}

/// Says something on standard error, a line or several. That there may be no terminal any more ends nothing.
pub fn tell(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}

/// What is written to instead of `path` if that is a symbolic link: the last file or name that it leads to.
///
/// # Errors
/// Links that lead in a circle.
pub fn target(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = folder(&target).join(link),
            Err(_) => return Ok(target),
        }
    }
    bail!("{}: symbolic links that lead nowhere", path.display())
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
