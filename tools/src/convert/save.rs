//! A conversion on disk: the old file stays until the new one is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use longgen::{Cancel, Device, Model, ModelParams};

use super::{Conversion, check};
use crate::output;

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
    let folder = output::folder(path);
    let in_folder = || format!("cannot write to {}", folder.display());
    let mut temporary = output::temporary(path)?;

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
