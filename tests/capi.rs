//! C and C++ programs on the shared library: compiled without a warning, run, and run again under valgrind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use longgen::{Cancel, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams};
use longgen_format::TensorType;
use support::{library, tiny_model};

const C99: [&str; 6] = ["cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"];
const CPP: [&str; 6] = ["c++", "-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror"];

/// A folder with the library, a model, and what is compiled.
struct Workshop {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Workshop {
    fn new() -> Self {
        let folder = library::folder();
        let model = folder.path().join("tiny.gguf");
        std::fs::write(&model, tiny_model::bytes(TensorType::Q8_0)).unwrap();
        Self { folder, model }
    }

    /// Compiles a file of this repository; returns where the result lies.
    fn compile(&self, compiler: &[&str], source: &str, options: &[&str]) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = self.folder.path().join(Path::new(source).file_stem().unwrap());
        let mut command = Command::new(compiler[0]);
        command.args(&compiler[1..]).arg("-g").arg("-I").arg(root.join("include"));
        command.arg("-o").arg(&out).arg(root.join(source)).args(options);
        succeeded(&command.output().unwrap(), source);
        out
    }

    /// Compiles and links a program.
    fn build(&self, compiler: &[&str], source: &str, more: &[&str]) -> PathBuf {
        let folder = self.folder.path().to_str().unwrap();
        let rpath = format!("-Wl,-rpath,{folder}");
        self.compile(compiler, source, &[more, &["-L", folder, "-llonggen", "-pthread", &rpath]].concat())
    }

    /// What a program writes, by itself and again under valgrind.
    fn run(&self, program: &Path, arguments: &[&str]) -> Vec<u8> {
        let name = program.display().to_string();
        let alone = Command::new(program).args(arguments).output().unwrap();
        succeeded(&alone, &name);
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
        valgrind.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
        valgrind.arg(concat!("--suppressions=", env!("CARGO_MANIFEST_DIR"), "/tests/capi/valgrind.supp"));
        match valgrind.arg(program).args(arguments).output() {
            Ok(checked) => {
                succeeded(&checked, &format!("valgrind {name}"));
                assert_eq!(checked.stdout, alone.stdout, "{name} does the same under valgrind");
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "valgrind: {error}");
                eprintln!("SKIPPED: {name} under valgrind: {error}");
            }
        }
        alone.stdout
    }

    fn check(&self, source: &str, arguments: &[&str]) {
        self.run(&self.build(&C99, source, &[]), arguments);
    }

    fn model(&self) -> &str {
        self.model.to_str().unwrap()
    }
}

fn succeeded(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{said}", output.status);
}

#[test]
fn structs_and_versions_are_the_same_on_both_sides() {
    Workshop::new().check("tests/capi/layout.c", &[]);
}

#[test]
fn hostile_arguments_are_refused_and_change_nothing() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/hostile.c", &[workshop.model(), workshop.folder.path().to_str().unwrap()]);
}

#[test]
fn sessions_keep_their_promises() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/session.c", &[workshop.model()]);
}

#[test]
fn sessions_say_what_they_hold_and_what_comes_next() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/state.c", &["-lm"]);
    workshop.run(&program, &[workshop.model()]);
}

#[test]
fn rows_of_a_prompt_get_what_they_get_one_by_one() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/rows.c", &[workshop.model()]);
}

#[test]
fn a_file_that_cannot_be_read_is_told_and_not_kept_open() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "tests/capi/io.c", &["-rdynamic"]);
    workshop.run(&program, &[workshop.model()]);
}

#[test]
fn threads_share_a_model_and_stop_each_other() {
    let workshop = Workshop::new();
    workshop.check("tests/capi/threads.c", &[workshop.model()]);
}

#[test]
fn the_header_serves_cpp_and_c_in_one_program() {
    let workshop = Workshop::new();
    let part = workshop.compile(&C99, "tests/capi/from_c.c", &["-c"]);
    let program = workshop.build(&CPP, "tests/capi/from_cpp.cpp", &[part.to_str().unwrap()]);
    workshop.run(&program, &[workshop.model()]);
}

/// What the example must write, from the Rust API.
fn continuation(model: &str, prompt: &str, n_new: usize) -> Vec<u8> {
    let model = Arc::new(Model::open(model, &ModelParams::default()).unwrap());
    let mut session = Session::new(&model, &SessionParams::default()).unwrap();
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    let (tokenizer, cancel) = (model.tokenizer(), Cancel::default());
    let mut text = Vec::new();
    session.prefill(&tokenizer.encode(prompt, false, true).unwrap(), &cancel, &mut |_, _| {}).unwrap();
    for _ in 0..n_new {
        let token = sampler.sample(session.logits().unwrap(), &[]).unwrap();
        if tokenizer.is_end_of_generation(token) {
            break;
        }
        text.extend_from_slice(tokenizer.token_bytes(token).unwrap());
        session.decode(token, &cancel).unwrap();
    }
    text
}

#[test]
fn the_example_continues_a_prompt() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "examples/c/generate.c", &[]);
    let prompt = "The quick brown fox jumps over the lazy dög";
    let text = workshop.run(&program, &[workshop.model(), prompt, "40"]);
    assert!(!text.is_empty());
    assert_eq!(text, continuation(workshop.model(), prompt, 40));
}

#[test]
fn the_example_says_what_is_wrong_and_writes_nothing() {
    let workshop = Workshop::new();
    let program = workshop.build(&C99, "examples/c/generate.c", &[]);
    let output = Command::new(program).args(["/no/such/model.gguf", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("not found: /no/such/model.gguf"), "{said}");
    assert!(said.ends_with("(lg_model_open)\n"), "{said}");
}
