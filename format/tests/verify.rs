//! What checksums say about a file that changed, and about one that has none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;

use longgen_format::{Directory, Error, OwnedValue, TensorDecl, TensorType, Writer, keys};

fn file() -> Vec<u8> {
    let metadata = vec![("k".to_owned(), OwnedValue::U32(0x0102_0304))];
    let decl = |name: &str| TensorDecl { name: name.to_owned(), shape: vec![5], ty: TensorType::F16 };
    let mut writer = Writer::new(Cursor::new(Vec::new()), metadata, vec![decl("a"), decl("b")]).unwrap();
    writer.write_tensor(&[1; 10]).unwrap();
    writer.write_tensor(&[2; 10]).unwrap();
    writer.finish().unwrap().into_inner()
}

fn position(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).unwrap()
}

/// The file with one byte changed.
fn with(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = file();
    assert_ne!(bytes[at], byte);
    bytes[at] = byte;
    bytes
}

/// The file with a part of its header replaced by something of the same length.
fn replaced(old: &str, new: &str) -> Vec<u8> {
    let mut bytes = file();
    let at = position(&bytes, old.as_bytes());
    assert_eq!(old.len(), new.len());
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    bytes
}

fn verify(bytes: &[u8]) -> (Vec<usize>, Result<(), Error>) {
    let mut seen = Vec::new();
    let result = Directory::read(bytes).unwrap().verify(|i| seen.push(i));
    (seen, result)
}

#[test]
fn an_intact_file_is_told_tensor_by_tensor() {
    let bytes = file();
    let (seen, result) = verify(&bytes);
    result.unwrap();
    assert_eq!(seen, [0, 1]);
    let directory = Directory::read(&bytes).unwrap();
    directory.verify_header().unwrap();
    directory.verify_tensor(0).unwrap();
    directory.verify_tensor(1).unwrap();
}

#[test]
fn a_changed_tensor_is_named_and_the_others_are_not() {
    let bytes = with(2 * 4096 + 3, 0);
    let (seen, result) = verify(&bytes);
    assert_eq!(seen, [0]);
    let Err(Error::HashMismatch { what, expected, found }) = result else { panic!("{result:?}") };
    assert_eq!(what, "b");
    assert_ne!(expected, found);
    let directory = Directory::read(&bytes).unwrap();
    directory.verify_header().unwrap();
    directory.verify_tensor(0).unwrap();
    assert!(directory.verify_tensor(1).is_err());
}

#[test]
fn a_changed_key_or_padding_is_found() {
    let key = position(&file(), &[4, 3, 2, 1]);
    for at in [key, 4095] {
        let (seen, result) = verify(&with(at, 0x55));
        assert!(matches!(&result, Err(Error::HashMismatch { what, .. }) if what == "header"), "{result:?}");
        assert_eq!(seen, [] as [usize; 0]);
    }
    for at in [4096 + 10, 2 * 4096 - 1, 2 * 4096 + 10, 3 * 4096 - 1] {
        let (_, result) = verify(&with(at, 1));
        assert!(matches!(result, Err(Error::Padding { offset }) if offset == at as u64), "{result:?}");
    }
    let longer = [file(), vec![0, 0, 1]].concat();
    assert!(matches!(verify(&longer).1, Err(Error::Padding { offset }) if offset == 3 * 4096 + 2));
}

#[test]
fn files_without_usable_checksums_say_so() {
    for key in [keys::HASH_ALGORITHM, keys::HASH_TENSORS, keys::HASH_HEADER] {
        let other = key.replace("hash", "hush");
        let bytes = replaced(key, &other);
        let (_, result) = verify(&bytes);
        match result {
            Err(Error::NoHashes { key: missing }) => assert_eq!(missing, key),
            // The change was found before the key was missed.
            Err(Error::HashMismatch { what, .. }) => {
                assert_eq!((what.as_str(), key), ("header", keys::HASH_TENSORS));
                let error = Directory::read(&bytes).unwrap().verify_tensor(0).unwrap_err();
                assert!(matches!(error, Error::NoHashes { key: keys::HASH_TENSORS }), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    let (_, result) = verify(&replaced("xxh3-128", "sha3-128"));
    assert!(
        matches!(&result, Err(Error::BadHashes { key: keys::HASH_ALGORITHM, reason }) if reason.contains("sha3-128"))
    );
    let bytes = file();
    let directory = Directory::read(&bytes).unwrap();
    // Digits are lower-case: the same number spelt otherwise is another file.
    let digits = directory.metadata.require_strs(keys::HASH_TENSORS).unwrap()[0];
    let upper = digits.to_uppercase();
    assert_ne!(digits, upper);
    assert!(verify(&replaced(digits, &upper)).1.is_err());
}

#[test]
fn plain_gguf_files_open_but_cannot_be_verified() {
    let plain = include_bytes!("data/quants.bin");
    let directory = Directory::read(plain).unwrap();
    assert_eq!(directory.alignment(), 32);
    assert!(matches!(directory.verify(|_| {}), Err(Error::NoHashes { .. })));
    assert!(matches!(directory.verify_header(), Err(Error::NoHashes { .. })));
    assert!(matches!(directory.verify_tensor(0), Err(Error::NoHashes { .. })));
}

#[test]
fn one_checksum_per_tensor() {
    // A hand-made key: an array that is too short, with the right name.
    let mut raw = b"GGUF".to_vec();
    raw.extend(3u32.to_le_bytes());
    raw.extend(1u64.to_le_bytes());
    raw.extend(2u64.to_le_bytes());
    let string = |raw: &mut Vec<u8>, text: &str| {
        raw.extend((text.len() as u64).to_le_bytes());
        raw.extend(text.as_bytes());
    };
    string(&mut raw, keys::HASH_ALGORITHM);
    raw.extend(8u32.to_le_bytes());
    string(&mut raw, "xxh3-128");
    string(&mut raw, keys::HASH_TENSORS);
    raw.extend(9u32.to_le_bytes());
    raw.extend(8u32.to_le_bytes());
    raw.extend(0u64.to_le_bytes());
    string(&mut raw, "t");
    raw.extend(1u32.to_le_bytes());
    raw.extend(1u64.to_le_bytes());
    raw.extend(0u32.to_le_bytes());
    raw.extend(0u64.to_le_bytes());
    raw.resize(raw.len().next_multiple_of(32) + 4, 0);
    let error = Directory::read(&raw).unwrap().verify_tensor(0).unwrap_err();
    assert!(matches!(&error, Error::BadHashes { key: keys::HASH_TENSORS, .. }), "{error}");
}
