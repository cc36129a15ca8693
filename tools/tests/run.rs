//! `lgrun` as its user sees it: answers, conversations, costs, and what it says when it cannot answer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use longgen::{Cancel, Device, KvType, Precision, Session, SessionParams};
use support::program::*;
use support::terminal;
use tempfile::TempDir;

const LGRUN: &str = env!("CARGO_BIN_EXE_lgrun");
/// Digits of the hidden number that the golden document ends with.
const N_DIGITS: usize = 6;
const QUESTION: &str = "The secret code for walnut is 482913.\nThe secret code for walnut is";

fn lgrun(model: &str, args: &[&str]) -> Output {
    run(LGRUN, &[&["-m", model], args].concat())
}

/// What the model adds to a text, without the line end behind it.
fn continuation(args: &[&str]) -> String {
    let printed = printed(&lgrun(tiny(), &[&["--raw"], args].concat()));
    printed.strip_suffix('\n').unwrap().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The numbers of each line that `--stats` prints after an answer: tokens of the prompt, reused, generated.
fn stats(text: &str) -> Vec<[usize; 3]> {
    let lines = text.lines().filter(|line| line.starts_with("prompt "));
    let number = |line: &str, before: &str| -> usize {
        let rest = line.split_once(before).unwrap().1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    lines.map(|line| [number(line, "prompt "), number(line, "tokens ("), number(line, "answer ")]).collect()
}

/// The golden document up to its number, in a file, and the number.
fn document(folder: &TempDir) -> (String, String) {
    let ids = golden_ids();
    let model = open(Device::Reference, 1);
    let (document, number) = ids.split_at(ids.len() - N_DIGITS);
    let path = folder.path().join("document.txt");
    fs::write(&path, text(model.tokenizer(), document)).unwrap();
    (str(&path).to_owned(), text(model.tokenizer(), number))
}

#[test]
fn a_number_hidden_in_a_long_document_is_found() {
    let folder = TempDir::new().unwrap();
    let (document, number) = document(&folder);
    assert!(number.len() == N_DIGITS && number.parse::<u32>().is_ok(), "{number:?}");
    assert_eq!(continuation(&["-f", &document, "--temp", "0", "-n", "6"]), number);
}

#[test]
fn greedy_answers_do_not_depend_on_chunks_or_threads() {
    let folder = TempDir::new().unwrap();
    let (document, _) = document(&folder);
    let answer = |chunk, threads| {
        let args = ["-f", &document, "--temp", "0", "-n", "40", "--chunk", chunk, "-t", threads];
        continuation(&args)
    };
    let expected = answer("512", "1");
    assert!(expected.len() > 40);
    for (chunk, threads) in [("1", "1"), ("1", "2"), ("64", "1"), ("64", "2"), ("512", "2")] {
        assert_eq!(answer(chunk, threads), expected, "chunk {chunk}, {threads} threads");
    }
}

/// What the oracle generates behind the question: the likeliest token again and again, with a penalty on as many of the
/// last tokens as `n_last` says.
fn oracle(repeat_penalty: f32, n_last: usize) -> String {
    let model = Arc::new(open(Device::Reference, 1));
    let params =
        SessionParams { n_ctx: 100, kv_type: KvType::F32, precision: Precision::Exact, ..Default::default() };
    let mut session = Session::new(&model, &params).unwrap();
    let prompt = model.tokenizer().encode(QUESTION, false, true).unwrap();
    session.prefill(&prompt, &Cancel::default(), &mut |_, _| true).unwrap();
    for _ in 0..20 {
        let recent = session.tokens()[session.tokens().len().saturating_sub(n_last)..].to_vec();
        let logits = session.logits().unwrap().iter().enumerate();
        let penalized = logits.map(|(token, &logit)| match recent.contains(&u32::try_from(token).unwrap()) {
            true if logit > 0.0 => (token, logit / repeat_penalty),
            true => (token, logit * repeat_penalty),
            false => (token, logit),
        });
        let likeliest = penalized.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
        session.decode(u32::try_from(likeliest).unwrap(), &Cancel::default()).unwrap();
    }
    text(model.tokenizer(), &session.tokens()[prompt.len()..])
}

#[test]
fn raw_prints_exactly_what_the_oracle_generates() {
    let exact = ["-p", QUESTION, "-n", "20", "--precision", "exact", "--kv", "f32"];
    let continuation = |args: &[&str]| continuation(&[&exact, args].concat());
    let likeliest = oracle(1.0, 0);
    assert_eq!(continuation(&["--temp", "0"]), likeliest);
    // Nothing is as likely as the likeliest.
    assert_eq!(continuation(&["--temp", "1.5", "--min-p", "1"]), likeliest);
    let penalized = oracle(1.5, 64);
    assert_ne!(penalized, likeliest);
    assert_eq!(continuation(&["--temp", "0", "--repeat-penalty", "1.5"]), penalized);
    let of_few = ["--temp", "0", "--repeat-penalty", "1.5", "--repeat-last-n", "5"];
    assert_eq!(continuation(&of_few), oracle(1.5, 5));
}

#[test]
fn stats_show_how_tokens_are_chosen() {
    let flags =
        ["--min-p", "0.05", "--repeat-penalty", "1.1", "--repeat-last-n", "30", "--seed", "9", "--stats"];
    let output = lgrun(tiny(), &[&["--raw", "-p", "The", "-n", "1"], &flags[..]].concat());
    printed(&output);
    for part in ["min-p 0.05", "repeat penalty 1.1 over 30 tokens", "seed 9"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn a_question_comes_from_a_flag_a_file_or_standard_input() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("question.txt");
    fs::write(&file, QUESTION).unwrap();
    let expected = continuation(&["-p", QUESTION, "--temp", "0", "-n", "12"]);
    assert!(expected.starts_with(" 482913."), "{expected:?}");
    assert_eq!(continuation(&["-f", str(&file), "--temp", "0", "-n", "12"]), expected);
    let piped = Command::new(LGRUN)
        .args(["-m", tiny(), "--raw", "--temp", "0", "-n", "12"])
        .stdin(File::open(&file).unwrap())
        .output()
        .unwrap();
    assert_eq!(printed(&piped), expected.clone() + "\n");
    // What -p says comes after the file.
    let (begin, end) = QUESTION.split_at(20);
    fs::write(&file, begin).unwrap();
    assert_eq!(continuation(&["-f", str(&file), "-p", end, "--temp", "0", "-n", "12"]), expected);
}

#[test]
fn an_answer_has_as_many_tokens_as_asked_for() {
    let long = continuation(&["-p", "The", "--temp", "0", "-n", "30"]);
    for n in ["0", "1", "7"] {
        let output = lgrun(tiny(), &["--raw", "-p", "The", "--temp", "0", "-n", n, "--stats"]);
        let answer = printed(&output);
        assert!(long.starts_with(answer.trim_end_matches('\n')), "{answer:?} {long:?}");
        let [[_, reused, generated]] = stats(&stderr(&output))[..] else { panic!("{}", stderr(&output)) };
        assert_eq!((reused, generated.to_string()), (0, n.to_owned()));
    }
    // Without a bound the context is one.
    let output = lgrun(tiny(), &["--raw", "-p", "The", "--temp", "0", "-c", "40", "--stats"]);
    printed(&output);
    let [[prompt, _, generated]] = stats(&stderr(&output))[..] else { panic!("{}", stderr(&output)) };
    assert!(stderr(&output).contains("the context is full"));
    // The token that has found no room has been shown, too.
    assert_eq!(prompt + generated, 41);
}

#[test]
fn a_seed_repeats_an_answer() {
    let answer = |args: &[&str]| {
        let output =
            lgrun(tiny(), &[&["--raw", "-p", "The", "--temp", "1.2", "-n", "40", "--stats"], args].concat());
        (printed(&output), stderr(&output))
    };
    let (first, _) = answer(&["--seed", "7"]);
    assert_eq!(answer(&["--seed", "7"]).0, first);
    assert_ne!(answer(&["--seed", "8"]).0, first);
    // A seed that nobody chose is printed, and works as well.
    let (random, said) = answer(&[]);
    let seed = said.split_once("seed ").unwrap().1.split('\n').next().unwrap();
    assert_eq!(answer(&["--seed", seed]).0, random);
    assert_ne!(random, first);
}

#[test]
fn a_chat_template_frames_questions() {
    let ask = |args: &[&str]| printed(&lgrun(chatty(), &[args, &["--temp", "0", "-n", "12"]].concat()));
    let framed = |messages: &[(&str, &str)]| ask(&["--raw", "-p", &chat_text(messages)]);
    assert_eq!(ask(&["-p", "Which one?"]), framed(&[("user", "Which one?")]));
    let with_system = framed(&[("system", "Be brief."), ("user", "Which one?")]);
    assert_eq!(ask(&["--system", "Be brief.", "-p", "Which one?"]), with_system);
    // A file, an empty line, and what is asked about it.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("about.txt");
    fs::write(&file, "The code is 123456.").unwrap();
    let about = framed(&[("user", "The code is 123456.\n\nWhich one?")]);
    assert_eq!(ask(&["-f", str(&file), "-p", "Which one?"]), about);
    assert_refused(LGRUN, &["-m", tiny(), "-p", "Which one?"], &["no chat template", "--raw"]);
}

#[test]
fn texts_may_begin_like_flags() {
    let args = ["-m", chatty(), "--temp", "0", "-n", "8"];
    let flags = ["--system", "- be brief", "-p", "--seed"];
    let prompt = chat_text(&[("system", "- be brief"), ("user", "--seed")]);
    let expected = run(LGRUN, &[&args[..], &["--raw", "-p", &prompt]].concat());
    assert_eq!(printed(&run(LGRUN, &[&args[..], &flags].concat())), printed(&expected));
}

/// Types lines at a terminal that can do nothing but lines.
fn typed(args: &[&str], lines: &str) -> Output {
    let (mut terminal, keyboard) = terminal::ends();
    terminal.write_all(lines.as_bytes()).unwrap();
    Command::new(LGRUN).args(args).env("TERM", "dumb").stdin(keyboard).output().unwrap()
}

#[test]
fn a_conversation_keeps_what_was_said_and_reuses_its_tokens() {
    let args = ["-m", chatty(), "--temp", "0", "-n", "20", "--stats", "--kv", "f32", "--precision", "exact"];
    let (tell, ask) = ("The secret code for walnut is 482913.", "The secret code for \nwalnut is what?");
    let typed_ask = ask.replace('\n', "\\\n");
    let output = typed(&args, &format!("{tell}\n{typed_ask}\n\n/what\n/clear\n{tell}\n/bye\nunheard\n"));

    let answer = |messages: &[(&str, &str)]| {
        let prompt = chat_text(messages);
        let args = [&args[2..], &["--raw", "-p", &prompt]].concat();
        printed(&lgrun(chatty(), &args)).strip_suffix('\n').unwrap().to_owned()
    };
    let told = answer(&[("user", tell)]);
    let asked = answer(&[("user", tell), ("assistant", &told), ("user", ask)]);
    assert_ne!(told, asked);
    // With what invites to type the next line.
    assert_eq!(printed(&output), format!("> {told}\n> . {asked}\n> > > > {told}\n> "));

    let said = stderr(&output);
    assert!(said.contains("/what: no such command"), "{said}");
    let stats = stats(&said);
    let [first, second, third] = stats[..] else { panic!("{said}") };
    let [prompt, reused, generated] = first;
    assert_eq!((reused, generated), (0, 20));
    assert!(second[0] > prompt + generated, "{stats:?}");
    // The last token of the answer may become another one before what follows it.
    assert!(second[1] >= prompt + generated - 1, "{stats:?}");
    // What has been cleared is no part of the prompt any more; only the last token, whose logits are wanted, is computed.
    assert_eq!(third, [prompt, prompt - 1, 20]);
    // The end of the input is a way to leave, too.
    assert!(typed(&args, "\u{4}").status.success());
}

#[test]
fn an_interrupt_ends_an_answer() {
    let mut child = Command::new(LGRUN)
        .args(["-m", tiny(), "--raw", "-p", QUESTION, "--temp", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(failure(&output).contains("stopped"));
    // What came before stands there, and a line end.
    assert!(String::from_utf8(output.stdout).unwrap().ends_with('\n'));
}

/// The numbers of `--plan` behind a label at the beginning of a line.
fn planned(table: &str, label: &str) -> Vec<usize> {
    let lines = table.lines().filter(|line| line.trim_start().starts_with(label));
    let bytes = |line: &str| {
        let number = line.trim_end_matches(" bytes").rsplit(' ').next().unwrap().replace(',', "");
        number.parse().unwrap()
    };
    lines.map(bytes).collect()
}

#[test]
fn a_plan_is_what_a_session_takes_and_nothing_is_generated() {
    let model = Arc::new(open(Device::Cpu, 2));
    for (ctx, kv) in [("1000", KvType::F16), ("8192", KvType::F32)] {
        let kv_flag = if kv == KvType::F16 { "f16" } else { "f32" };
        let flags = ["--plan", "-c", ctx, "--kv", kv_flag, "--chunk", "300", "-t", "2"];
        let output = lgrun(tiny(), &[&flags[..], &["--raw", "-p", "The"]].concat());
        let table = printed(&output);
        assert!(table.starts_with(&format!("{ctx} tokens of context, steps of at most 300 tokens\n")));
        assert_eq!(stderr(&output), "");

        let total = planned(&table, "total");
        let labels = ["KV cache", "staging", "scratch", "activations", "workspace", "logits"];
        let parts: Vec<usize> = labels.iter().flat_map(|label| planned(&table, label)).collect();
        assert_eq!((parts.len(), vec![parts.iter().sum()]), (labels.len(), total.clone()), "{table}");
        assert_eq!(planned(&table, "layers").iter().sum::<usize>(), parts[0], "{table}");
        let params = SessionParams {
            n_ctx: ctx.parse().unwrap(),
            chunk_tokens: 300,
            kv_type: kv,
            ..Default::default()
        };
        let session = Session::new(&model, &params).unwrap();
        assert_eq!(total, [model.session_bytes()]);
        drop(session);
    }
}

#[test]
fn a_context_that_memory_cannot_hold_is_refused_with_its_bytes() {
    let flags = ["-c", "8000000", "-t", "1", "--raw", "-p", "The"];
    let table = printed(&lgrun(tiny(), &[&flags[..], &["--plan"]].concat()));
    let [bytes] = planned(&table, "total")[..] else { panic!("{table}") };
    // One layer's cache alone is larger than what the process may have.
    let limited = ["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", LGRUN, "-m", tiny()];
    let output = run("sh", &[&limited[..], &flags].concat());
    let message = failure(&output);
    assert!(message.contains(&format!("needs {bytes} bytes")) && message.lines().count() == 1, "{message}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_answered_is_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| str(&folder.path().join(name)).to_owned();
    let (missing, cut, empty, binary) = (path("no.gguf"), path("cut.gguf"), path("empty"), path("binary"));
    let whole = fs::read(tiny()).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    fs::write(&empty, "\n").unwrap();
    fs::write(&binary, b"\xff\xfe\x00").unwrap();
    for (model, parts) in [
        (&missing, &[missing.as_str(), "No such file"][..]),
        (&path(""), &[&path(""), "is a folder"]),
        (&cut, &[&cut, "blk.", &(whole.len() / 2).to_string()]),
        (&empty, &[&empty, "not a GGUF file"]),
        (&binary, &[&binary, "not a GGUF file"]),
    ] {
        assert_refused(LGRUN, &["-m", model, "--raw", "-p", "The", "-n", "1"], parts);
    }
    for (args, parts) in [
        (&["-p", QUESTION, "-c", "5"][..], &["context of 5"][..]),
        (&["-p", ""], &["the text is empty"]),
        (&["-p", " \n"], &["the text is empty"]),
        // Standard input, which has nothing.
        (&[], &["the text is empty"]),
        (&["-f", &empty], &["the text is empty"]),
        (&["-f", &missing], &[&missing, "No such file"]),
        (&["-f", &path("")], &[&path(""), "directory"]),
        (&["-f", &binary], &[&binary, "UTF-8"]),
        (&["-p", "The", "--temp=-1"], &["temperature -1"]),
        (&["-p", "The", "--temp", "nan"], &["temperature NaN"]),
        (&["-p", "The", "--top-p", "2"], &["top-p 2"]),
        (&["-p", "The", "--min-p", "1.5"], &["min-p 1.5"]),
        (&["-p", "The", "--min-p", "nan"], &["min-p NaN"]),
        (&["-p", "The", "--repeat-penalty", "0"], &["repeat penalty 0"]),
        (&["-p", "The", "-c", "4294967295"], &["4294967295", "at most"]),
        (&["-p", "The", "-t", "100000"], &["100000 threads", "4096"]),
    ] {
        assert_refused(LGRUN, &[&["-m", tiny(), "--raw", "-n", "1"], args].concat(), parts);
    }
}

#[test]
fn flags_that_cannot_be_read_are_named_before_anything_is_done() {
    for (args, flag) in [
        (&["-m", "no.gguf", "--kv", "q9"][..], "--kv"),
        (&["-m", "no.gguf", "--precision", "some"], "--precision"),
        (&["-m", "no.gguf", "-c", "many"], "--ctx-size"),
        (&["-m", "no.gguf", "-n", "-3"], "-3"),
        (&["-m", "no.gguf", "--seed", "1.5"], "--seed"),
        (&["-m", "no.gguf", "--repeat-last-n", "some"], "--repeat-last-n"),
        (&["-m", "no.gguf", "--sead", "1"], "--sead"),
        (&["-m", "no.gguf", "--raw", "--system", "Be brief."], "--system"),
        (&["-p", "The"], "--model"),
    ] {
        let output = run(LGRUN, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        assert!(stderr(&output).lines().take(2).any(|line| line.contains(flag)), "{}", stderr(&output));
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let raw = ["-m", tiny(), "--raw", "-p", QUESTION, "--temp", "0"];
    assert_quiet_without_reader(LGRUN, &raw, 5);
    assert_quiet_without_reader(LGRUN, &[&raw[..], &["-n", "1"]].concat(), 0);
    assert_quiet_without_reader(LGRUN, &[&raw[..], &["-n", "0"]].concat(), 0);
    assert_quiet_without_reader(LGRUN, &["-m", tiny(), "--plan"], 0);
    // A disk without room is a failure.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(LGRUN).args(raw).stdin(Stdio::null()).stdout(full).output().unwrap();
    assert!(failure(&output).contains("standard output"));
}
