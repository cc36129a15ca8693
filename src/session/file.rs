//! Sessions in files.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::{Session, SessionParams};
use crate::cancel::{Cancel, OnProgress, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::kv::file::{Reader, Writer};
use crate::model::Model;

impl Session {
    /// Writes the session to a file, from which [`load`](Self::load) makes one that goes on as this one would. The file has
    /// the tokens, and the keys and values that layers have not given up; restore points and logits are not in it.
    /// `on_progress` is told bytes. The file is readable by its owner alone: all that was said in the session is in it.
    ///
    /// A file that is there is replaced when the new one is complete and on the disk, by a rename. Whatever fails leaves it
    /// as it was; only a process that is killed leaves a temporary file beside it, `.longgen-*.tmp`.
    ///
    /// # Errors
    /// `NotFound` or `Io`, naming the file; `OutOfMemory`, `Device`, `Cancelled`.
    pub fn save(&self, path: impl AsRef<Path>, cancel: &Cancel, on_progress: OnProgress<'_>) -> Result<()> {
        let path = path.as_ref();
        self.replace(path, cancel, on_progress).map_err(in_file(path))
    }

    fn replace(&self, path: &Path, cancel: &Cancel, on_progress: OnProgress<'_>) -> Result<()> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(Error::new(ErrorKind::Io, "not a file: nothing else is replaced"));
        }
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".longgen-").suffix(".tmp").tempfile_in(folder)?;
        let told = &mut told(cancel, on_progress);
        self.sequence.save(&self.tokens, &mut Writer::new(file.as_file_mut(), told))?;
        file.as_file().sync_all()?;
        cancel.check()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(File::open(folder)?.sync_all()?)
    }

    /// Opens a session with what [`save`](Self::save) has written, on any device. The model must be of the same file and
    /// attend to the same, and the cache must be of the same type; everything else may differ, such as the length of the
    /// context, as long as the tokens fit. `on_progress` is told bytes.
    ///
    /// There are no logits before something was appended: [`prompt`](Self::prompt) computes no more than what is new. The
    /// session goes back as far as the one that was saved could without its restore points.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); `NotFound` or `Io`; `Format` for a file that is damaged, `Unsupported` for one of another
    /// version, `Invalid` for one that does not go with the model or the parameters, `ContextFull` for one with more tokens
    /// than the context; all name the file. `Cancelled`.
    pub fn load(
        model: &Arc<Model>,
        path: impl AsRef<Path>,
        params: &SessionParams,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let open = || {
            let file = File::open(path)?;
            let n_bytes = file.metadata()?.len();
            Ok((file, usize::try_from(n_bytes).unwrap_or(usize::MAX)))
        };
        let (mut file, n_bytes) = open().map_err(in_file(path))?;
        let mut session = Self::new(model, params)?;
        session.tokens = session.read(&mut file, n_bytes, cancel, on_progress).map_err(in_file(path))?;
        Ok(session)
    }

    fn read(
        &mut self,
        file: &mut dyn Read,
        n_bytes: usize,
        cancel: &Cancel,
        on_progress: OnProgress<'_>,
    ) -> Result<Vec<u32>> {
        let told = &mut told(cancel, on_progress);
        self.sequence.load(&mut Reader::new(file, n_bytes, told))
    }
}

fn in_file(path: &Path) -> impl Fn(Error) -> Error {
    move |error| Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Tells `on_progress`, unless somebody asked to stop.
fn told(cancel: &Cancel, on_progress: OnProgress<'_>) -> impl FnMut(usize, usize) -> Result<()> {
    move |done, n_bytes| {
        cancel.check()?;
        go_on(on_progress(done, n_bytes))
    }
}
