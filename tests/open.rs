//! Opening a model: it can be stopped wherever it looks, tells every byte that it goes through, and a text alone is the
//! text of the whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use longgen::weights::Load;
use longgen::{Cancel, Device, ErrorKind, KvType, LogLevel, Model, ModelParams, Result};
use longgen_format::{Directory, OwnedValue, TensorType, Value};
use support::tiny_model;

/// Every way to open a file.
fn ways() -> Vec<ModelParams> {
    let mut ways = Vec::new();
    for load in [Load::Map, Load::Read] {
        for verify in [false, true] {
            for vocab_only in [false, true] {
                for device in [Device::Auto, Device::Reference] {
                    let params = ModelParams { load, device, verify, vocab_only, ..Default::default() };
                    ways.push(params);
                }
            }
        }
    }
    ways
}

/// Stopped by `cancel`, or by the report number `stop_at`.
fn open(
    path: &Path,
    params: &ModelParams,
    cancel: &Cancel,
    stop_at: usize,
) -> (Result<Model>, Vec<(usize, usize)>, usize) {
    let (mut told, mut n_messages) = (Vec::new(), 0);
    let on_progress = &mut |n_done, n_total| {
        told.push((n_done, n_total));
        told.len() != stop_at
    };
    let on_log = &mut |level, message: &str| {
        assert!(level == LogLevel::Info || message.contains("CUDA"), "{message}");
        n_messages += 1;
    };
    let model = Model::open_with(path, params, cancel, on_progress, on_log);
    (model, told, n_messages)
}

#[test]
fn an_open_can_be_stopped_wherever_it_looks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = tiny_model::bytes(TensorType::Q4_0);
    std::fs::write(file.path(), &bytes).unwrap();
    let n_tensors = Directory::read(&bytes).unwrap().tensors().len();
    for params in ways() {
        let mut n_stopped = 0;
        let (model, told) = loop {
            match open(file.path(), &params, &Cancel::after(n_stopped), 0) {
                (Ok(model), told, n_messages) => {
                    assert!(n_messages >= 2);
                    break (model, told);
                }
                (Err(error), _, _) => {
                    assert_eq!(error.kind(), ErrorKind::Cancelled);
                    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
                }
            }
            n_stopped += 1;
        };
        // From tensor to tensor in each of the passes over them, and before and after each other part.
        let n_passes = u64::from(params.verify) + u64::from(!params.vocab_only);
        assert!(n_stopped >= n_passes * n_tensors as u64 + 2, "{params:?}: {n_stopped}");

        // Of a text alone only the header is copied, unless the rest is verified.
        let n_copies = usize::from(params.load == Load::Read && (params.verify || !params.vocab_only));
        let n_total = (n_copies + usize::try_from(n_passes).unwrap()) * bytes.len();
        assert!(told.is_sorted_by(|a, b| a.0 < b.0), "{params:?}: {told:?}");
        assert!(told.iter().all(|&(_, of)| of == n_total), "{params:?}: {told:?}");
        assert_eq!(told.last().map_or(0, |&(n_done, _)| n_done), n_total, "{params:?}");
        // Whoever is told stops it as well, even at the last report.
        for stop_at in 1..=told.len() {
            let (stopped, until_then, _) = open(file.path(), &params, &Cancel::default(), stop_at);
            assert_eq!(stopped.err().unwrap().kind(), ErrorKind::Cancelled);
            assert_eq!(until_then, told[..stop_at]);
        }
        assert_eq!(model.config().n_layers, if params.vocab_only { 0 } else { 4 });
        assert_eq!(model.metadata().text("general.name", 0).unwrap(), "tiny");
    }
}

#[test]
fn what_verification_finds_stops_an_open() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = tiny_model::bytes(TensorType::F16);
    let last = Directory::read(&bytes).unwrap().tensors().last().map(|tensor| tensor.offset()).unwrap();
    bytes[usize::try_from(last).unwrap()] ^= 1;
    std::fs::write(file.path(), &bytes).unwrap();
    for params in ways() {
        let (model, told, _) = open(file.path(), &params, &Cancel::default(), 0);
        match model {
            Ok(_) => assert!(!params.verify),
            Err(error) => {
                assert!(params.verify && error.kind() == ErrorKind::Format, "{error}");
                assert!(error.to_string().contains("output_norm.weight"), "{error}");
                assert!(told.iter().all(|(n_done, n_total)| n_done < n_total));
            }
        }
    }
}

#[test]
fn a_text_alone_is_of_any_architecture_but_must_be_a_text() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny_model::text_bytes()).unwrap();
    let params = ModelParams { vocab_only: true, ..Default::default() };
    let model = Model::open(file.path(), &params).unwrap();
    assert_eq!(model.config().architecture, "unheard-of");
    assert_eq!(model.tokenizer().encode("<|eos|>", true, true).unwrap(), [tiny_model::BOS, tiny_model::EOS]);
    assert_eq!([model.session_bytes(), model.kv_read_bytes(7, KvType::F16)], [0, 0]);

    let whole = Model::open(file.path(), &ModelParams::default()).err().unwrap();
    assert_eq!(whole.kind(), ErrorKind::Unsupported);
    let without_tokens = support::metadata::file(&[(
        "general.architecture",
        longgen_format::OwnedValue::Str("longgen".into()),
    )]);
    std::fs::write(file.path(), without_tokens).unwrap();
    let error = Model::open(file.path(), &params).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().contains("tokenizer.ggml.model"), "{error}");
}

/// The file is emptied while it is opened, as soon as it has been read: what is found in it is told after that.
#[test]
fn a_text_that_is_copied_needs_its_file_no_more() {
    let text = support::metadata::file(&with_long_key(9 << 20));
    for (bytes, grows) in [(tiny_model::bytes(TensorType::F16), false), (text, true)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let params = ModelParams { load: Load::Read, vocab_only: true, ..Default::default() };
        let log = &mut |_, _: &str| file.as_file().set_len(0).unwrap();
        let cancel = Cancel::default();
        let model = Model::open_with(file.path(), &params, &cancel, &mut |_, _| true, log).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), 0);
        let directory = Directory::read(&bytes).unwrap();
        assert_eq!(model.metadata().len(), directory.metadata.len());
        for (i, (key, value)) in directory.metadata.iter().enumerate() {
            assert_eq!(model.metadata().key(i).unwrap(), key);
            if let Value::Str(text) = value {
                assert_eq!(model.metadata().text(key, 0).unwrap(), *text);
            }
        }
        assert_eq!(grows, model.n_params() == 0);
    }
}

/// The metadata of a text alone, behind a key that makes the header longer than what is read of a file at first.
fn with_long_key(n_bytes: usize) -> Vec<(&'static str, OwnedValue)> {
    let mut metadata = vec![("long", OwnedValue::Str("x".repeat(n_bytes)))];
    let bytes: &'static [u8] = tiny_model::text_bytes().leak();
    let of_text = Directory::read(bytes).unwrap();
    metadata.extend(of_text.metadata.iter().map(|(key, value)| (key, OwnedValue::from(value))));
    metadata
}

#[test]
fn a_file_without_checksums_cannot_be_verified() {
    let plain = include_bytes!("../format/tests/data/quants.bin");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), plain).unwrap();
    for load in [Load::Map, Load::Read] {
        let params = ModelParams { load, verify: true, ..Default::default() };
        let error = Model::open(file.path(), &params).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for part in ["no checksums", "lgconvert writes files that have them"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
