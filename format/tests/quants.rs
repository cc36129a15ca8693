//! Quantised numbers are, bit for bit, what the Python package `gguf` makes of the same numbers (see quants.py).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use longgen_format::{Directory, Error, SourceType, TensorType, quant};

static VECTORS: &[u8] = include_bytes!("data/quants.bin");

fn bytes<'a>(directory: &Directory<'a>, name: &str) -> &'a [u8] {
    directory.tensor_bytes(directory.tensor(name).unwrap())
}

fn numbers(directory: &Directory<'_>, name: &str) -> Vec<f32> {
    let bytes = bytes(directory, name);
    // NaN where nothing is written.
    let mut numbers = vec![f32::NAN; bytes.len() / 4];
    quant::dequantize(TensorType::F32, bytes, &mut numbers).unwrap();
    numbers
}

fn quantized(ty: TensorType, numbers: &[f32]) -> Vec<u8> {
    let mut out = vec![0xa5; ty.row_bytes(numbers.len()).unwrap()];
    quant::quantize(ty, numbers, &mut out).unwrap();
    out
}

#[test]
fn quantising_gives_the_bytes_of_the_gguf_package() {
    let directory = Directory::read(VECTORS).unwrap();
    let source = numbers(&directory, "source");
    for ty in TensorType::ALL.into_iter().filter(|&ty| ty != TensorType::F32) {
        let tensor = directory.tensor(ty.name()).unwrap();
        assert_eq!(tensor.ty().unwrap(), ty);
        assert_eq!(tensor.shape(), [source.len() as u64]);
        let (ours, theirs) = (quantized(ty, &source), bytes(&directory, ty.name()));
        let blocks = ours.chunks(ty.block_bytes()).zip(theirs.chunks(ty.block_bytes()));
        for (i, (ours, theirs)) in blocks.enumerate() {
            assert_eq!(ours, theirs, "{ty} block {i}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}

#[test]
fn dequantising_gives_the_numbers_of_the_gguf_package() {
    let directory = Directory::read(VECTORS).unwrap();
    let stored = TensorType::ALL.into_iter().filter(|&ty| ty != TensorType::F32).map(SourceType::from);
    for ty in stored.chain(SourceType::FOREIGN) {
        let theirs = numbers(&directory, &format!("{ty}.back"));
        assert_eq!(directory.tensor(ty.name()).unwrap().source_type().unwrap(), ty);
        let mut ours = vec![f32::NAN; theirs.len()];
        ty.dequantize(bytes(&directory, ty.name()), &mut ours).unwrap();
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{ty} element {i}: {ours} and {theirs}");
        }
    }
}

#[test]
fn halves_hold_infinities_undefined_numbers_and_subnormals() {
    let directory = Directory::read(VECTORS).unwrap();
    let special = numbers(&directory, "special");
    for ty in [TensorType::F16, TensorType::BF16] {
        let (ours, theirs) = (quantized(ty, &special), bytes(&directory, &format!("special.{ty}")));
        for (i, (ours, theirs)) in ours.chunks(2).zip(theirs.chunks(2)).enumerate() {
            assert_eq!(ours, theirs, "{ty} of {}", special[i]);
        }
    }
}

#[test]
fn blocks_refuse_what_they_cannot_hold() {
    for ty in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1] {
        let mut out = vec![0; ty.row_bytes(64).unwrap()];
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut numbers = [1.0; 64];
            numbers[37] = bad;
            let error = quant::quantize(ty, &numbers, &mut out).unwrap_err();
            assert!(matches!(error, Error::NotFinite { index: 37, .. }), "{ty}: {error}");
        }
        // Finite numbers whose scale is not.
        for bad in [f32::MAX, -1e10] {
            let mut numbers = [1.0; 64];
            numbers[40] = bad;
            let error = quant::quantize(ty, &numbers, &mut out).unwrap_err();
            assert!(matches!(error, Error::ScaleOverflow { index: 32, .. }), "{ty}: {error}");
        }
    }
}

#[test]
fn types_that_model_files_do_not_have_are_read_only_to_be_converted() {
    let directory = Directory::read(VECTORS).unwrap();
    for ty in SourceType::FOREIGN {
        let tensor = directory.tensor(ty.name()).unwrap();
        assert_eq!((tensor.type_id(), tensor.type_name()), (ty.id(), ty.name()));
        let said = tensor.ty().unwrap_err().to_string();
        assert!(said.contains(ty.name()) && said.contains("lgconvert --type"), "{said}");

        let (elems, bytes) = (ty.block_elems(), ty.block_bytes());
        assert_eq!((ty.row_bytes(3 * elems), ty.row_bytes(elems + 1)), (Some(3 * bytes), None));
        for (n_elems, n_bytes) in
            [(elems, bytes - 1), (elems, bytes + 1), (2 * elems, bytes), (elems - 1, bytes)]
        {
            let error = ty.dequantize(&vec![0; n_bytes], &mut vec![0.0; n_elems]).unwrap_err();
            assert!(matches!(error, Error::Length { .. }), "{ty}: {error}");
        }
    }
}

#[test]
fn lengths_must_fit() {
    for ty in TensorType::ALL {
        let n_bytes = ty.row_bytes(64).unwrap();
        for n_bytes in [0, n_bytes - 1, n_bytes + 1] {
            let quantised = quant::quantize(ty, &[0.0; 64], &mut vec![0; n_bytes]);
            assert!(matches!(quantised, Err(Error::Length { .. })), "{ty}");
            let numbers = quant::dequantize(ty, &vec![0; n_bytes], &mut [0.0; 64]);
            assert!(matches!(numbers, Err(Error::Length { .. })), "{ty}");
        }
        if ty.block_elems() > 1 {
            assert_eq!(ty.row_bytes(33), None);
            assert!(quant::dequantize(ty, &[0; 2], &mut [0.0; 33]).is_err());
        }
    }
    for ty in [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
        assert_eq!(ty.row_bytes(usize::MAX - 31), None, "{ty}");
    }
}
