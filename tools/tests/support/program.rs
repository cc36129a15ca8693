//! The programs as their users start them, on the trained model that is among the test data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use longgen::text::Tokenizer;
use longgen::{Device, Model, ModelParams};
use serde_json::{Value, json};

/// The trained model's folder.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/longgen-tiny-8k");

/// Every message between its role and a line end.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
     + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The text that the model gets for these messages, up to where it answers.
pub fn chat_text(messages: &[(&str, &str)]) -> String {
    let message = |(role, content): &(&str, &str)| format!("<|im_start|>{role}\n{content}<|im_end|>\n");
    messages.iter().map(message).chain(["<|im_start|>assistant\n".to_owned()]).collect()
}

/// The trained model as `lgconvert` makes it: it has no chat template.
pub fn tiny() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    str(PATH.get_or_init(|| converted(Path::new(TINY), "tiny.gguf")))
}

/// The same model with a chat template.
pub fn chatty() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    str(PATH.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(Path::new(TINY).join(file), folder.path().join(file)).unwrap();
        }
        let name = "tokenizer_config.json";
        let mut config: Value =
            serde_json::from_slice(&fs::read(Path::new(TINY).join(name)).unwrap()).unwrap();
        config["chat_template"] = json!(CHAT_TEMPLATE);
        fs::write(folder.path().join(name), config.to_string()).unwrap();
        converted(folder.path(), "chatty.gguf")
    }))
}

/// Each test program has its own files, which its next run replaces.
fn converted(input: &Path, name: &str) -> PathBuf {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", env!("CARGO_CRATE_NAME")));
    printed(&run(env!("CARGO_BIN_EXE_lgconvert"), &[str(input), "-o", str(&output)]));
    output
}

/// The converted model, to compute with in this process.
pub fn open(device: Device, n_threads: usize) -> Model {
    Model::open(tiny(), &ModelParams { device, n_threads, ..Default::default() }).unwrap()
}

/// The document that PyTorch computed logits for.
pub fn golden_ids() -> Vec<u32> {
    npy(&Path::new(TINY).join("golden_ids.npy"), "<i4").1
}

/// The text of tokens, without the one that every text begins with.
pub fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids, true)
}

/// Runs a program to its end, with nothing on standard input.
pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap()
}

/// What a program that should succeed prints to standard output.
pub fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a program that should fail with status 1 prints to standard error.
pub fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A program says in one line why it fails, and that line has these parts.
pub fn assert_refused(program: &str, args: &[&str], parts: &[&str]) {
    let output = run(program, args);
    let message = failure(&output);
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
    let name = Path::new(program).file_name().unwrap().to_str().unwrap();
    assert!(message.starts_with(&format!("{name}: ")) && message.lines().count() == 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}

/// A program whose reader goes away after some bytes ends without complaint.
pub fn assert_quiet_without_reader(program: &str, args: &[&str], n_bytes: usize) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut reader, &mut vec![0; n_bytes]).unwrap();
    drop(reader);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", output.status);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
}

/// A path as an argument.
pub fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A NumPy file of numbers of four bytes each: its shape and the bits of its numbers.
pub fn npy(path: &Path, descr: &str) -> (Vec<usize>, Vec<u32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(data % 64, 0);
    let header = std::str::from_utf8(&bytes[10..data]).unwrap();
    assert!(header.contains(&format!("'descr': '{descr}'")), "{header}");
    assert!(header.contains("'fortran_order': False"), "{header}");
    let shape = header.split(['(', ')']).nth(1).unwrap();
    let shape = shape.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().unwrap());
    let shape: Vec<usize> = shape.collect();
    let numbers = bytes[data..].chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    let numbers: Vec<u32> = numbers.collect();
    assert_eq!(numbers.len(), shape.iter().product::<usize>());
    (shape, numbers)
}

/// The same for floating-point numbers.
pub fn npy_f32(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let (shape, bits) = npy(path, "<f4");
    (shape, bits.into_iter().map(f32::from_bits).collect())
}
