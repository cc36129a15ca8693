//! Files that consist of metadata only.

use std::io::Cursor;

use longgen_format::{Directory, Metadata, OwnedValue, Writer};

/// Reads a file that consists of these keys only.
pub fn with_metadata<T>(metadata: &[(&str, OwnedValue)], read: impl FnOnce(&Metadata<'_>) -> T) -> T {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let file = Writer::new(Cursor::new(Vec::new()), metadata, Vec::new()).unwrap().finish().unwrap();
    let bytes = file.into_inner();
    read(&Directory::read(&bytes).unwrap().metadata)
}
