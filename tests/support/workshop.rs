//! Compiles programs in C and C++ on the shared library and runs them: by themselves, under valgrind, and with sanitizers.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use longgen_format::TensorType;

use super::{library, tiny_model};

pub const C99: [&str; 6] = ["cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"];
pub const CPP: [&str; 6] = ["c++", "-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror"];

const VALGRIND: [&str; 7] = [
    "valgrind",
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    concat!("--suppressions=", env!("CARGO_MANIFEST_DIR"), "/tests/capi/valgrind.supp"),
];
const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// A folder with the library, a model, and what is compiled.
pub struct Workshop {
    pub folder: tempfile::TempDir,
    pub model: PathBuf,
}

impl Workshop {
    pub fn new() -> Self {
        let folder = library::folder();
        let model = folder.path().join("tiny.gguf");
        std::fs::write(&model, tiny_model::bytes(TensorType::Q8_0)).unwrap();
        Self { folder, model }
    }

    /// Compiles a file of this repository; returns where the result lies.
    pub fn compile(&self, compiler: &[&str], source: &str, options: &[&str]) -> PathBuf {
        let out = self.folder.path().join(source.replace(['/', '.'], "-"));
        compile(compiler, source, options, &out);
        out
    }

    /// Compiles and links a program, and once more with sanitizers.
    pub fn build(&self, compiler: &[&str], source: &str, more: &[&str]) -> PathBuf {
        let folder = self.folder.path().to_str().unwrap();
        let rpath = format!("-Wl,-rpath,{folder}");
        let options = [more, &["-L", folder, "-llonggen", "-pthread", &rpath]].concat();
        let program = self.compile(compiler, source, &options);
        if has_sanitizers() {
            compile(compiler, source, &[&options[..], &SANITIZERS].concat(), &sanitized(&program));
        }
        program
    }

    /// What a program writes in every way to run it.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> Vec<u8> {
        self.run_after(|| (), program, arguments).stdout
    }

    /// The same for a program that needs something prepared before each run.
    pub fn run_after(&self, prepare: impl Fn(), program: &Path, arguments: &[&str]) -> Output {
        let run = |how: &str, command: &mut Command| {
            prepare();
            let output = command.args(arguments).output();
            if let Ok(output) = &output {
                succeeded(output, &format!("{}{how}", program.display()));
            }
            output
        };
        let alone = run("", &mut Command::new(program)).unwrap();
        match run(" under valgrind", Command::new(VALGRIND[0]).args(&VALGRIND[1..]).arg(program)) {
            Ok(checked) => {
                assert_eq!(checked.stdout, alone.stdout, "{program:?} does the same under valgrind")
            }
            Err(error) => missing("valgrind", &error.to_string()),
        }
        if has_sanitizers() {
            let mut command = Command::new(sanitized(program));
            let checked = run(" with sanitizers", command.env("ASAN_OPTIONS", "detect_leaks=1")).unwrap();
            assert_eq!(checked.stdout, alone.stdout, "{program:?} does the same with sanitizers");
        }
        alone
    }

    pub fn check(&self, source: &str, arguments: &[&str]) {
        self.run(&self.build(&C99, source, &[]), arguments);
    }

    pub fn model(&self) -> &str {
        self.model.to_str().unwrap()
    }
}

/// Says past the test harness, which would swallow it, that something is not checked. Where everything must be there, that
/// is a failure.
pub fn missing(what: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}: {why}");
    std::io::stderr().write_all(format!("SKIPPED what needs {what}: {why}\n").as_bytes()).unwrap();
}

pub fn succeeded(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{said}", output.status);
}

/// Whether a program is installed, which is said if it is not.
pub fn has(program: &str, argument: &str) -> bool {
    let answer = Command::new(program).arg(argument).output();
    if let Err(error) = &answer {
        missing(program, &error.to_string());
    }
    answer.is_ok()
}

/// The compiler, which CC chooses for `cc` and CXX for `c++`: a program, and options behind it.
pub fn chosen(compiler: &str) -> Command {
    let choice = match compiler {
        "cc" => std::env::var("CC").ok(),
        "c++" => std::env::var("CXX").ok(),
        _ => None,
    };
    let choice = choice.unwrap_or_else(|| compiler.to_owned());
    let mut words = choice.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(compiler));
    command.args(words);
    command
}

fn compile(compiler: &[&str], source: &str, options: &[&str], out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = chosen(compiler[0]);
    // Of later versions of DWARF valgrind does not understand what every compiler writes.
    command.args(&compiler[1..]).arg("-gdwarf-4").arg("-I").arg(root.join("include"));
    command.arg("-o").arg(out).arg(root.join(source)).args(options);
    succeeded(&command.output().unwrap(), source);
}

fn sanitized(program: &Path) -> PathBuf {
    program.with_extension("sanitized")
}

/// Whether the compiler's sanitizers are installed.
fn has_sanitizers() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("empty.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let mut command = chosen(C99[0]);
        command.args(SANITIZERS).arg("-o").arg(folder.path().join("empty")).arg(source);
        let output = command.output().unwrap();
        if !output.status.success() {
            missing("the compiler's sanitizers", &String::from_utf8_lossy(&output.stderr));
        }
        output.status.success()
    })
}
