//! Bytes on their way to a file and back, with checksums of all that lies before them.

use std::fmt::Display;
use std::io::{Read, Write};

use xxhash_rust::xxh3::Xxh3Default;

use crate::error::{Error, Result};

/// Bytes of a checksum.
pub(super) const HASH_BYTES: usize = 16;

/// Told how many bytes of how many are done; an error ends the call.
pub type Told<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

/// A file that is being written.
pub struct Writer<'a> {
    to: &'a mut dyn Write,
    told: Told<'a>,
    hash: Xxh3Default,
    n_done: usize,
    /// Of the whole file.
    n_bytes: usize,
}

impl<'a> Writer<'a> {
    /// One that nothing has been written to.
    pub fn new(to: &'a mut dyn Write, told: Told<'a>) -> Self {
        Self { to, told, hash: Xxh3Default::new(), n_done: 0, n_bytes: 0 }
    }

    /// Says how long the file will be.
    pub(super) fn expect(&mut self, n_bytes: usize) {
        self.n_bytes = n_bytes;
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes)?;
        self.hash.update(bytes);
        self.n_done += bytes.len();
        (self.told)(self.n_done, self.n_bytes)
    }

    /// Writes the checksum of everything so far.
    pub(super) fn write_hash(&mut self) -> Result<()> {
        self.write(&self.hash.digest128().to_le_bytes())
    }
}

/// A file that is being read.
pub struct Reader<'a> {
    from: &'a mut dyn Read,
    told: Told<'a>,
    hash: Xxh3Default,
    n_done: usize,
    n_bytes: usize,
}

impl<'a> Reader<'a> {
    /// One of a file of `n_bytes`.
    pub fn new(from: &'a mut dyn Read, n_bytes: usize, told: Told<'a>) -> Self {
        Self { from, told, hash: Xxh3Default::new(), n_done: 0, n_bytes }
    }

    /// Length of the file.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Refuses a file that is shorter than `needed`, which `what` takes.
    pub(super) fn check_has(&self, needed: u64, what: &str) -> Result<()> {
        let has = self.n_bytes;
        match needed <= has as u64 {
            true => Ok(()),
            false => Err(Error::format(format!("truncated: {has} bytes, {what} {needed}"))),
        }
    }

    pub(super) fn read(&mut self, to: &mut [u8]) -> Result<()> {
        self.from.read_exact(to)?;
        self.hash.update(to);
        self.n_done += to.len();
        (self.told)(self.n_done, self.n_bytes)
    }

    /// Compares everything so far with the checksum that follows.
    pub(super) fn check_hash(&mut self, what: impl Display) -> Result<()> {
        let expected = self.hash.digest128();
        let mut found = [0; HASH_BYTES];
        self.read(&mut found)?;
        match u128::from_le_bytes(found) == expected {
            true => Ok(()),
            false => Err(Error::format(format!("{what}: damaged, the checksum does not match"))),
        }
    }
}
