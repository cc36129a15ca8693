//! Checksums: whether a file is still what was written.
//!
//! The header's checksum covers the tensors' ones, so a changed bit is found wherever it is: in the header, in a tensor,
//! or in the padding, which must be zero.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use crate::read::Directory;
use crate::{Error, keys};

/// The checksum: xxh3 of 128 bits, as lower-case hexadecimal digits, most significant first.
pub(crate) const HASH_NAME: &str = "xxh3-128";
/// Digits of a checksum.
pub(crate) const HASH_DIGITS: usize = 32;

impl<'a> Directory<'a> {
    /// Compares the checksum of everything before the tensor data.
    ///
    /// # Errors
    /// [`Error::NoHashes`], [`Error::BadHashes`], [`Error::HashMismatch`].
    pub fn verify_header(&self) -> Result<(), Error> {
        self.hash_algorithm()?;
        let expected = self.metadata.opt_str(keys::HASH_HEADER)?;
        let expected = expected.ok_or(Error::NoHashes { key: keys::HASH_HEADER })?;
        if expected.len() != HASH_DIGITS {
            let reason = format!("{} digits, expected {HASH_DIGITS}", expected.len());
            return Err(Error::BadHashes { key: keys::HASH_HEADER, reason });
        }
        // The digits lie in the file's own bytes: hash around them.
        let digits = expected.as_ptr().addr() - self.bytes.as_ptr().addr();
        let data_offset = usize::try_from(self.data_offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let mut hash = Xxh3Default::new();
        hash.update(&self.bytes[..digits]);
        hash.update(&[b'0'; HASH_DIGITS]);
        hash.update(&self.bytes[digits + HASH_DIGITS..data_offset]);
        compare("header", expected, hash.digest128())
    }

    /// Compares the checksum of the `i`-th tensor.
    ///
    /// # Errors
    /// As for [`verify_header`](Self::verify_header).
    ///
    /// # Panics
    /// If there are not that many tensors.
    pub fn verify_tensor(&self, i: usize) -> Result<(), Error> {
        let expected = self.tensor_hashes()?;
        self.compare_tensor(i, &expected)
    }

    /// Compares all checksums, and that nothing but zeros lies between tensors and behind them; `progress` is told the
    /// number of each tensor that has been found intact.
    ///
    /// # Errors
    /// As for [`verify_header`](Self::verify_header), and [`Error::Padding`].
    pub fn verify(&self, mut progress: impl FnMut(usize)) -> Result<(), Error> {
        self.verify_until(|i| {
            progress(i);
            Ok(())
        })
    }

    /// The same with a `progress` that may stop it by an error.
    ///
    /// # Errors
    /// Also those of `progress`.
    pub fn verify_until<E: From<Error>>(
        &self,
        mut progress: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.verify_header()?;
        let expected = self.tensor_hashes()?;
        for i in 0..self.tensors.len() {
            self.compare_tensor(i, &expected)?;
            progress(i)?;
        }
        Ok(self.verify_padding()?)
    }

    /// Bytes behind the header that belong to no tensor are zero.
    fn verify_padding(&self) -> Result<(), Error> {
        let by_offset = self.by_offset()?;
        let file_bytes = self.bytes.len() as u64;
        let begins = by_offset.iter().map(|tensor| tensor.offset).chain([file_bytes]);
        let mut end = self.data_offset.min(file_bytes);
        for (i, begin) in begins.enumerate() {
            let gap = self.slice(end, begin - end);
            if let Some((_, offset)) = gap.iter().zip(end..).find(|(byte, _)| **byte != 0) {
                return Err(Error::Padding { offset });
            }
            end = begin + by_offset.get(i).map_or(0, |tensor| tensor.n_bytes);
        }
        Ok(())
    }

    fn compare_tensor(&self, i: usize, expected: &[&str]) -> Result<(), Error> {
        let tensor = &self.tensors[i];
        compare(tensor.name, expected[i], xxh3_128(self.tensor_bytes(tensor)))
    }

    fn hash_algorithm(&self) -> Result<(), Error> {
        match self.metadata.opt_str(keys::HASH_ALGORITHM)? {
            None => Err(Error::NoHashes { key: keys::HASH_ALGORITHM }),
            Some(HASH_NAME) => Ok(()),
            Some(other) => {
                let reason = format!("{other:?}, expected {HASH_NAME:?}");
                Err(Error::BadHashes { key: keys::HASH_ALGORITHM, reason })
            }
        }
    }

    fn tensor_hashes(&self) -> Result<Vec<&'a str>, Error> {
        self.hash_algorithm()?;
        let hashes = self.metadata.opt_strs(keys::HASH_TENSORS)?;
        let hashes = hashes.ok_or(Error::NoHashes { key: keys::HASH_TENSORS })?;
        match hashes.len() == self.tensors.len() {
            true => Ok(hashes),
            false => {
                let reason = format!("{} checksums for {} tensors", hashes.len(), self.tensors.len());
                Err(Error::BadHashes { key: keys::HASH_TENSORS, reason })
            }
        }
    }
}

fn compare(what: &str, expected: &str, found: u128) -> Result<(), Error> {
    let found = format!("{found:0HASH_DIGITS$x}");
    match found == expected {
        true => Ok(()),
        false => Err(Error::HashMismatch { what: what.to_owned(), expected: expected.to_owned(), found }),
    }
}
