//! Conversations that go on: `lgrun --session`, from one process to the next.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use serde_json::json;
use support::conversations::*;
use support::program::*;
use support::terminal::{INTERRUPT, Terminal};
use tempfile::TempDir;

#[test]
fn three_processes_answer_like_one_and_compute_nothing_twice() {
    let (place, expected) = (Place::new(), conversation(&TEXTS));
    let mut n_computed = 0;
    for (i, (text, answer)) in expected.iter().enumerate() {
        let (mut terminal, greeting) = place.chat();
        let before = pairs(&expected[..i]);
        if i > 0 {
            let all = chat_text(&before);
            let n_all = n_tokens(all.strip_suffix("<|im_start|>assistant\n").unwrap());
            let goes_on =
                format!("goes on: {} messages, {n_all} tokens, {n_computed} of them computed", 2 * i);
            assert!(greeting.contains(&goes_on), "{goes_on:?} is not in {greeting:?}");
            assert!(greeting.contains(&format!("  user: {}", TEXTS[i - 1])), "{greeting:?}");
        }
        let said = terminal.enter(text);
        assert!(said.starts_with(&format!("{answer}\n")), "{said:?} {answer:?}");
        let n_prompt = n_tokens(&chat_text(&[&before[..], &[("user", *text)]].concat()));
        assert_eq!([number(&said, "prompt "), number(&said, "tokens (")], [n_prompt, n_computed]);
        // The last token of an answer has not been through the model.
        n_computed = n_prompt + 7;
        assert_eq!(number(&terminal.enter("/stats"), "context "), n_computed);
        // Every way to leave.
        if i == 2 {
            terminal.press(INTERRUPT);
            terminal.wait_for("\n> ");
        }
        terminal.press(["/bye\r", "\x04", INTERRUPT][i]);
        assert!(terminal.succeeds());
        place.assert_holds(&pairs(&expected[..=i]));
    }
}

#[test]
fn questions_of_a_script_are_one_conversation() {
    let place = Place::new();
    let mut n_computed = 0;
    for (i, (text, answer)) in conversation(&TEXTS[..2]).iter().enumerate() {
        let output = place.ask(text, &[]);
        assert_eq!(printed(&output), format!("{answer}\n"));
        assert_eq!(number(&stderr(&output), "tokens ("), n_computed, "{i}");
        n_computed = number(&stderr(&output), "prompt ") + 7;
    }
    place.assert_holds(&pairs(&conversation(&TEXTS[..2])));
    let with_raw = place.ask("And?", &["--raw"]);
    assert_eq!(with_raw.status.code(), Some(2));
    assert!(stderr(&with_raw).contains("--session"));
}

#[test]
fn a_killed_process_loses_the_turn_that_was_running_and_no_other() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..2]));
    let (mut terminal, _) = place.chat();
    terminal.enter(TEXTS[0]);
    terminal.press(&format!("{}\r", TEXTS[1]));
    terminal.wait_for("\n");
    terminal.wait_for(&expected[1].1[..1]);
    drop(terminal);
    let first = place.messages();
    assert!(first.len() <= 4, "{first:?}");
    let (mut terminal, greeting) = place.chat();
    assert!(greeting.contains("walnut.jsonl.kv: No such file"), "{greeting:?}");
    // Where the answer was complete before the signal came, it is kept.
    if first.len() == 2 {
        assert!(terminal.enter(TEXTS[1]).starts_with(&expected[1].1));
    }
    place.assert_holds(&pairs(&expected));
}

#[test]
fn a_request_to_terminate_keeps_what_was_computed() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..2]));
    // At the prompt.
    let (mut terminal, _) = place.chat();
    let n_computed = number(&terminal.enter(TEXTS[0]), "prompt ") + 7;
    terminal.press("walnut");
    terminal.wait_for("walnut");
    terminal.terminate();
    place.assert_holds(&pairs(&expected[..1]));
    // While it answers without end.
    let args = [&place.args(&[])[..place.args(&[]).len() - 2], &["-c", "4000"]].concat();
    let mut terminal = Terminal::start(LGRUN, &args);
    assert_eq!(goes_on(&terminal.wait_for("\n> "))[1], n_computed);
    terminal.press(&format!("{}\r", TEXTS[1]));
    terminal.wait_for("\n");
    terminal.wait_for(&expected[1].1);
    terminal.terminate();
    let said = place.messages();
    assert!(said.len() == 4 && said[3].1.starts_with(&expected[1].1), "{said:?}");
    let (_, greeting) = place.chat();
    let [n_all, n_computed] = goes_on(&greeting);
    // An answer's last token, and what ends it, have not been through the model.
    assert!(n_all - n_computed <= n_tokens("<|im_end|>\n") + 2, "{greeting}");
}

#[test]
fn a_session_of_no_use_is_reported_and_changes_no_answer() {
    let expected = conversation(&TEXTS[..2]);
    let check = |args: &[&str], part: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        let place = Place::with(&TEXTS[..1]);
        let mut bytes = fs::read(&place.session).unwrap();
        spoil(&mut bytes);
        fs::write(&place.session, bytes).unwrap();
        let output = place.ask(TEXTS[1], args);
        assert_eq!(printed(&output), format!("{}\n", expected[1].1), "{part}");
        let said = stderr(&output);
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("walnut.jsonl.kv: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(part), "{part:?} is not in {said:?}");
        assert_eq!(number(&said, "tokens ("), 0, "{part}");
        place.assert_holds(&pairs(&expected));
        // The next one can use what this one has left.
        let next = stderr(&place.ask(TEXTS[2], args));
        assert!(!next.contains(".kv") && number(&next, "tokens (") > 0, "{next}");
    };
    check(&[], "checksum", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    check(&[], "checksum", &|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    });
    check(&[], "bytes", &|bytes| bytes.truncate(1000));
    check(&[], "", &Vec::clear);
    // Of a model with other weights at its end.
    let other = Place::new();
    let model = other.folder.path().join("other.gguf");
    let mut weights = fs::read(chatty()).unwrap();
    let end = weights.len() - 8192;
    weights[end..].iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
    fs::write(&model, weights).unwrap();
    let args = ["-m", str(&model), "--session", str(&other.file), "-p", TEXTS[0]];
    printed(&run(LGRUN, &[&args[..], &EXACT].concat()));
    check(&[], "model", &|bytes| *bytes = fs::read(&other.session).unwrap());
}

#[test]
fn a_session_with_other_parameters_is_reported() {
    let place = Place::with(&TEXTS[..1]);
    let whole = fs::read(&place.session).unwrap();
    // Behind those of EXACT they would be given twice.
    let args = ["-m", chatty(), "--session", str(&place.file), "-n", "8", "--temp", "0", "-p", TEXTS[1]];
    let said = stderr(&run(LGRUN, &[&args[..], &["--kv", "q8"]].concat()));
    assert!(said.contains(".kv: ") && said.contains("q8") && said.contains("f32"), "{said}");
    assert_eq!(place.messages().len(), 4);
    assert_ne!(fs::read(&place.session).unwrap(), whole);
    // A context that is too short for what is there is too short for the conversation: nothing is lost.
    let whole = fs::read(&place.session).unwrap();
    let kept = fs::read(&place.file).unwrap();
    let said = failure(&run(LGRUN, &[&args[..], &["--kv", "q8", "-c", "20"]].concat()));
    assert!(said.contains(".kv: ") && said.contains("context of 20") && said.contains("-c"), "{said}");
    assert_eq!(fs::read(&place.file).unwrap(), kept);
    assert_eq!(fs::read(&place.session).unwrap(), whole);
}

#[test]
fn a_file_that_is_no_conversation_is_refused_and_left_as_it_is() {
    let good = json!({"role": "user", "content": "Hello"}).to_string();
    let list = ["no JSON", "{\"role\": \"user\"", "[1]", "{\"role\": \"user\"}"];
    let more = [
        json!({"role": "user", "content": 5}).to_string(),
        json!({"role": "user", "content": "", "name": "x"}).to_string(),
    ];
    let parts = ["no JSON", "no JSON", "object", "content", "5", "name"];
    let lines = list.into_iter().chain(more.iter().map(String::as_str));
    let cases = lines.zip(parts).map(|(line, part)| (line.as_bytes().to_vec(), part));
    for (line, part) in cases.chain([(b"\"\xff\"".to_vec(), "unicode")]) {
        let place = Place::new();
        let text = [good.as_bytes(), b"\n\n", &line, b"\n"].concat();
        fs::write(&place.file, &text).unwrap();
        assert_refused(
            LGRUN,
            &[&place.args(&[])[..], &["-p", "Hi"]].concat(),
            &["walnut.jsonl, line 3", part],
        );
        assert!(fs::read(&place.file).unwrap() == text);
        assert!(!place.session.exists());
    }
    let place = Place::new();
    let none = place.folder.path().join("none").join("walnut.jsonl");
    for (file, part) in
        [(place.folder.path(), "not a file"), (&none, "cannot write"), ("/dev/null".as_ref(), "not a file")]
    {
        let args = ["-m", chatty(), "--session", str(file), "-p", "Hi"];
        assert_refused(LGRUN, &args, &[part, str(if file == none { none.parent().unwrap() } else { file })]);
    }
}

#[test]
fn people_may_edit_the_file() {
    let place = Place::with(&TEXTS[..1]);
    // Other spaces, empty lines, no line end, and another answer.
    let edited = format!(
        "\n{{\"content\": {:?},   \"role\": \"user\"}}\n\n{{\"role\":\"assistant\",\"content\":\"Yes.\"}}",
        TEXTS[0]
    );
    fs::write(&place.file, edited).unwrap();
    let output = place.ask(TEXTS[1], &[]);
    let mut messages = vec![("user", TEXTS[0]), ("assistant", "Yes."), ("user", TEXTS[1])];
    let expected = answer(&messages);
    assert_eq!(printed(&output), format!("{expected}\n"));
    // What came before is not computed again.
    assert!(number(&stderr(&output), "tokens (") > n_tokens(TEXTS[0]), "{}", stderr(&output));
    messages.push(("assistant", &expected));
    place.assert_holds(&messages);
}

#[test]
fn a_file_that_cannot_be_written_loses_nothing_of_a_chat() {
    let (place, expected) = (Place::with(&TEXTS[..1]), conversation(&TEXTS));
    let (mut terminal, _) = place.chat();
    let away = TempDir::new().unwrap();
    let elsewhere = away.path().join("kept");
    fs::rename(place.folder.path(), &elsewhere).unwrap();
    let said = terminal.enter(TEXTS[1]);
    assert!(said.starts_with(&format!("{}\n", expected[1].1)), "{said:?}");
    assert!(said.contains("(cannot write ") && said.contains("walnut.jsonl"), "{said:?}");
    fs::rename(&elsewhere, place.folder.path()).unwrap();
    assert!(terminal.enter("/save").starts_with("(saved, "));
    place.assert_holds(&pairs(&expected[..2]));
    // Somebody else writes there.
    let other = json!({"role": "user", "content": "Hello"}).to_string() + "\n";
    fs::write(&place.file, &other).unwrap();
    assert!(terminal.enter(TEXTS[2]).contains("was changed meanwhile"));
    assert_eq!(fs::read_to_string(&place.file).unwrap(), other);
    fs::remove_file(&place.file).unwrap();
    terminal.enter("/save");
    place.assert_holds(&pairs(&expected));
}

#[test]
fn what_is_cleared_is_gone_and_what_the_system_says_stays() {
    let place = Place::new();
    let system = ("system", "Be brief.");
    printed(&place.ask(TEXTS[0], &["--system", system.1]));
    let long = fs::metadata(&place.session).unwrap().len();
    let (mut terminal, greeting) = place.chat();
    assert!(greeting.contains("3 messages"), "{greeting}");
    terminal.press("/clear\r");
    terminal.wait_for("\n> ");
    place.assert_holds(&[system]);
    terminal.press("/bye\r");
    assert!(terminal.succeeds());
    assert!(fs::metadata(&place.session).unwrap().len() < long);
    // The same words go on with it, others do not.
    let before = fs::read(&place.file).unwrap();
    let args = [&place.args(&["-p", TEXTS[1]])[..], &["--system", "Be long."]].concat();
    assert_refused(LGRUN, &args, &["walnut.jsonl", "\"Be brief.\"", "\"Be long.\""]);
    assert_eq!(fs::read(&place.file).unwrap(), before);
    let expected = answer(&[system, ("user", TEXTS[1])]);
    assert_eq!(printed(&place.ask(TEXTS[1], &["--system", system.1])), format!("{expected}\n"));
    place.assert_holds(&[system, ("user", TEXTS[1]), ("assistant", &expected)]);
    let without = Place::with(&TEXTS[..1]);
    let args = [&without.args(&["-p", TEXTS[1]])[..], &["--system", "Be long."]].concat();
    assert_refused(LGRUN, &args, &["no system message", "\"Be long.\""]);
}
