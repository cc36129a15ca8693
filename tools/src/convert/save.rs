//! A conversion on disk: the old file stays until the new one is complete.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use longgen::{Cancel, Device, Model, ModelParams};

use super::{Conversion, check};

/// Writes a conversion to a temporary file beside `path`, opens it as the runtime would, and puts it in the place of
/// `path`. Returns the file's length in bytes. Whatever fails leaves an old file at `path` as it was, and no temporary
/// file behind; only a process that is killed cannot remove its own.
///
/// # Errors
/// Those of [`Conversion::write`], of the file system, and of the runtime when it opens the result.
pub fn save(
    conversion: &Conversion,
    path: &Path,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    ensure!(!path.is_dir(), "{} is a folder", path.display());
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let in_folder = || format!("cannot write to {}", folder.display());
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut temporary = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        // As for any new file; the umask takes its share.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(in_folder)?;

    let sink = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    let mut sink = conversion.write(sink, cancel, progress)?;
    sink.flush().with_context(in_folder)?;
    drop(sink);
    temporary.as_file().sync_all().with_context(in_folder)?;
    let n_bytes = temporary.as_file().metadata().with_context(in_folder)?.len();
    let params = ModelParams { device: Device::Reference, ..ModelParams::default() };
    Model::open(temporary.path(), &params).map_err(|error| anyhow!("the result is no model: {error}"))?;

    check(cancel)?;
    temporary.persist(path).with_context(|| format!("cannot replace {}", path.display()))?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(in_folder)?;
    Ok(n_bytes)
}
