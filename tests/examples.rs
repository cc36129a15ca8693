//! The examples, one program per language, compiled and run: each gives the answer that the Rust API gives, says what is
//! wrong, and stops when it is asked to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use longgen::text::Message;
use longgen::{Cancel, GenerateParams, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams};
use longgen_format::{OwnedValue, TensorType};
use support::tiny_model;
use support::workshop::{C99, Workshop, has, missing, succeeded};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CPP17: [&str; 6] = ["c++", "-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror"];
const TEXT: &str =
    "The lighthouse on Skerry Rock was built in 1843. Its keeper was Zoë Doyle, who kept bees.\n";

/// The programs that this machine can build and run, as the words that start each.
fn examples(workshop: &Workshop) -> Vec<Vec<PathBuf>> {
    let mut programs = native(workshop).map(|program| vec![program]).to_vec();
    if has("go", "version") {
        programs.push(vec![go(workshop)]);
    }
    if has("python3", "--version") {
        programs.push(
            ["python3", "-B", "-Werror", &format!("{ROOT}/examples/python/ask.py")]
                .map(PathBuf::from)
                .to_vec(),
        );
    }
    programs
}

fn native(workshop: &Workshop) -> [PathBuf; 2] {
    [workshop.build(&C99, "examples/c/ask.c", &[]), workshop.build(&CPP17, "examples/cpp/ask.cpp", &[])]
}

fn run_go(workshop: &Workshop, arguments: &[&str]) {
    let mut command = Command::new("go");
    command.args(arguments).current_dir(Path::new(ROOT).join("examples/go"));
    let folder = workshop.folder.path().display();
    command.env("CGO_LDFLAGS", format!("-L{folder} -Wl,-rpath,{folder}"));
    command.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go")).env("GOPROXY", "off");
    command.env("LONGGEN_MODEL", workshop.model());
    succeeded(&command.output().unwrap(), &format!("go {}", arguments[0]));
}

fn go(workshop: &Workshop) -> PathBuf {
    let out = workshop.folder.path().join("ask");
    run_go(workshop, &["vet", "./..."]);
    run_go(workshop, &["build", "-buildvcs=false", "-o", out.to_str().unwrap(), "./ask"]);
    out
}

fn command(workshop: &Workshop, program: &[PathBuf], arguments: &[&str]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(arguments);
    command.env("LONGGEN_LIBRARY", workshop.folder.path().join("liblonggen.so"));
    command
}

fn run(workshop: &Workshop, program: &[PathBuf], arguments: &[&str]) -> Output {
    command(workshop, program, arguments).output().unwrap()
}

/// A file with the text.
fn write_text(workshop: &Workshop) -> String {
    let path = workshop.folder.path().join("text.txt");
    std::fs::write(&path, TEXT).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A tiny model whose template is this.
fn write_tiny_model(workshop: &Workshop) {
    let template =
        "{{ messages[0].role }}: {{ messages[0].content }}{% if add_generation_prompt %} >{% endif %}";
    let template = ("tokenizer.chat_template".to_owned(), OwnedValue::Str(template.to_owned()));
    std::fs::write(&workshop.model, tiny_model::bytes_with_metadata(TensorType::Q8_0, &[template])).unwrap();
}

/// A real model, which is not part of the repository.
fn real_model() -> Option<String> {
    let path = format!("{ROOT}/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !Path::new(&path).exists() {
        missing(&path, "it is not there, tools/models.sh gets it");
        return None;
    }
    Some(path)
}

/// The prompt of a question about the text.
fn prompt(model: &Model, question: &str) -> Vec<u32> {
    let message = Message { role: "user".to_owned(), content: format!("{TEXT}\n\n{question}") };
    let prompt = model.chat_template().unwrap().render(&[message], true).unwrap();
    model.tokenizer().encode(&prompt, true, true).unwrap()
}

/// What an example must write, and how many tokens prompt and answer have, from the Rust API.
fn answer(model: &str, question: &str, max_tokens: usize) -> (String, usize, usize) {
    let model = Arc::new(Model::open(model, &ModelParams::default()).unwrap());
    let tokens = prompt(&model, question);
    let mut session = Session::new(&model, &SessionParams::default()).unwrap();
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    let params = GenerateParams { max_tokens, ..Default::default() };
    let mut text = String::new();
    let on_text = &mut |_, part: &str| {
        text.push_str(part);
        true
    };
    let generated =
        session.generate(&mut sampler, &tokens, &params, &Cancel::default(), &mut |_, _| true, on_text);
    let n_tokens = generated.unwrap().n_tokens;
    (text + "\n", tokens.len(), n_tokens)
}

fn answers_like_rust(workshop: &Workshop, model: &str, question: &str, max_tokens: usize) {
    let text = write_text(workshop);
    let (expected, n_prompt, n_answer) = answer(model, question, max_tokens);
    assert!(expected.len() > 1);
    for program in examples(workshop) {
        let output = run(workshop, &program, &[model, &text, question, &max_tokens.to_string()]);
        succeeded(&output, &format!("{program:?}"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{program:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with(&format!("{n_prompt} tokens of prompt in ")), "{program:?}: {said}");
        assert!(said.contains(&format!(", {n_answer} of answer in ")), "{program:?}: {said}");
    }
}

#[test]
fn every_example_gives_the_answer_of_the_rust_api() {
    if let Some(model) = real_model() {
        answers_like_rust(&Workshop::new(), &model, "Who was the keeper of the lighthouse?", 64);
    }
}

/// Of random weights: bytes that are no characters among them.
#[test]
fn every_example_writes_what_a_tiny_model_says_and_leaks_nothing() {
    let workshop = Workshop::new();
    write_tiny_model(&workshop);
    answers_like_rust(&workshop, workshop.model(), "Wherefore?", 77);
    let text = write_text(&workshop);
    for program in native(&workshop) {
        workshop.run(&program, &[workshop.model(), &text, "Wherefore?", "20"]);
    }
}

/// What the prompts have in common is computed once, and the answers are those that one question alone has.
#[test]
fn a_second_question_computes_only_what_is_new() {
    let Some(model) = real_model() else { return };
    let workshop = Workshop::new();
    let text = write_text(&workshop);
    let questions = ["Who was the keeper of the lighthouse?", "When was it built?"];
    let expected = questions.map(|question| answer(&model, question, 32));
    let open = Model::open(&model, &ModelParams::default()).unwrap();
    let [first, second] = questions.map(|question| prompt(&open, question));
    let n_common = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
    for program in examples(&workshop) {
        let output = run(&workshop, &program, &[&model, &text, questions[0], "32", questions[1]]);
        succeeded(&output, &format!("{program:?}"));
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed, expected.each_ref().map(|(text, ..)| text.as_str()).concat(), "{program:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{program:?}: {said}");
        for (line, (_, n_prompt, n_answer)) in lines.iter().zip(&expected) {
            assert!(line.starts_with(&format!("{n_prompt} tokens of prompt in ")), "{program:?}: {said}");
            assert!(line.contains(&format!(", {n_answer} of answer in ")), "{program:?}: {said}");
        }
        let n_new = second.len() - n_common;
        let reused = format!("{n_common} tokens of the prompt were there already, {n_new} were computed");
        assert_eq!(lines[2], reused, "{program:?}");
    }
}

#[test]
fn the_go_package_tells_how_far_an_answer_is_and_how_it_ends() {
    if has("go", "version") {
        let workshop = Workshop::new();
        write_tiny_model(&workshop);
        run_go(&workshop, &["test", "-count=1", "./longgen"]);
    }
}

#[test]
fn the_python_module_tells_how_far_an_answer_is_and_how_it_ends() {
    run_python(
        "
import ask, sys
with ask.Model(sys.argv[1]) as model, model.session(512) as session:
    prompt, told = model.prompt('Wherefore?'), []
    list(session.answer(prompt, 5, lambda *numbers: told.append(numbers) or True))
    assert told[-1] == (len(prompt), len(prompt)), told
    assert session.prompted == (0, 0, len(prompt), 0, None), session.prompted
    assert session.reason == 'end' or session.reason == 'length' and session.result.n_tokens == 5, session.reason
    assert (session.reason == 'end') == (session.result.end_token != 2**32 - 1)
    try:
        list(session.answer(model.prompt('Whence?'), 5, lambda n_done, n_total: False))
        raise AssertionError('a prompt that is stopped is no error')
    except ask.Error as error:
        assert 'lg_session_prompt' in str(error), error
",
    );
}

#[test]
fn the_python_module_goes_on_with_what_a_session_holds() {
    run_python(
        "
import ask, sys, tempfile
with ask.Model(sys.argv[1]) as model, model.session(512) as session, tempfile.TemporaryDirectory() as folder:
    first, second = (model.prompt(f'Wherefore art thou {where}?') for where in ('here', 'there'))
    n_common = next(i for i in range(len(first)) if first[i] != second[i])
    def check(session, tokens, n_common, n_reused):
        told = []
        did = session.prompt(tokens, lambda *numbers: told.append(numbers) or True)
        n_computed = len(tokens) - n_reused
        assert did == (n_common, n_reused, n_computed, 0, None) and len(session) == len(tokens), did
        assert not told if n_computed == 0 else told[-1] == (n_computed, n_computed), told
    check(session, first, 0, 0)
    check(session, first, len(first), len(first))
    check(session, second, n_common, n_common)
    points = session.restore_points()
    assert points == sorted(points) and (session.restore_bytes() > 0) <= (len(points) > 0), points
    # The same after a restart, and in a session that has computed everything.
    session.save(f'{folder}/session')
    with model.load(f'{folder}/session', 300) as loaded, model.session(512) as fresh:
        check(loaded, second, len(second), len(second) - 1)
        check(fresh, second, 0, 0)
        answers = {''.join(one.answer(second, 9)) for one in (session, loaded, fresh)}
        assert len(answers) == 1, answers
        assert session.prompted.n_reused == len(second), session.prompted
        assert loaded.rewind(len(second) - 3) == len(loaded) == len(second) - 3
        for wrong in (lambda: loaded.rewind(1000), lambda: loaded.prompt([]), lambda: model.load(f'{folder}/none', 300)):
            try:
                wrong()
                raise AssertionError('no error')
            except ask.Error:
                pass
        try:
            loaded.save(f'{folder}/session', lambda n_done, n_total: False)
            raise AssertionError('saving that is stopped is no error')
        except ask.Error as error:
            assert 'lg_session_save' in str(error), error
",
    );
}

/// A program on the Python module and a tiny model.
fn run_python(program: &str) {
    if has("python3", "--version") {
        let workshop = Workshop::new();
        write_tiny_model(&workshop);
        let program = ["python3", "-B", "-Werror", "-c", program].map(PathBuf::from);
        let mut command = command(&workshop, &program, &[workshop.model()]);
        command.env("PYTHONPATH", format!("{ROOT}/examples/python"));
        succeeded(&command.output().unwrap(), "a program on the Python module");
    }
}

#[test]
fn every_example_says_what_is_wrong_and_writes_nothing() {
    let workshop = Workshop::new();
    write_tiny_model(&workshop);
    let text = write_text(&workshop);
    // A token is a byte in these models; "user: ", an empty line, "?", " >" and the beginning of text come to it.
    let n_prompt = TEXT.len() + 6 + 2 + 1 + 2 + 1;
    let too_long =
        format!("{n_prompt} tokens and up to 1000 of the answer do not fit into a context of 1024");
    let cases = [
        (["/no/such/model.gguf", &text, "?", "9"], "not found: /no/such/model.gguf: "),
        ([workshop.model(), "/no/such/text.txt", "?", "9"], "/no/such/text.txt"),
        ([workshop.model(), &text, "?", "1000"], &too_long),
    ];
    for program in examples(&workshop) {
        for (arguments, part) in cases {
            let output = run(&workshop, &program, &arguments);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{program:?}: {said}");
            assert!(output.stdout.is_empty(), "{program:?} writes nothing");
            assert!(said.contains(part), "{program:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{program:?}: {said}");
        }
        let output = run(&workshop, &program, &["/no/such/model.gguf", &text, "?"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.ends_with(" (lg_model_open)\n"), "{program:?}: {said}");
        assert_eq!(run(&workshop, &program, &[]).status.code(), Some(2), "{program:?} says how it is used");
    }
}

#[test]
fn ctrl_c_stops_every_example() {
    let Some(model) = real_model() else { return };
    let workshop = Workshop::new();
    let text = write_text(&workshop);
    // It takes minutes to answer that.
    let question = "Write a long story about this lighthouse, with many chapters.";
    for program in examples(&workshop) {
        let mut command = command(&workshop, &program, &[&model, &text, question, "7000"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{program:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{program:?}: {said}");
    }
}
