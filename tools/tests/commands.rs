//! Commands of a chat that change the conversation or go to another one: `/undo`, `/regen`, `/edit`, `/save`, `/load`,
//! `/fork`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use longgen::{Device, SessionParams};
use longgen_tools::chat::file::ChatFile;
use rustix::process::Signal;
use serde_json::json;
use support::conversations::*;
use support::program::*;
use support::terminal::{INTERRUPT, Terminal};
use tempfile::TempDir;

const OTHER: &str = "The secret code for walnut is 77.";

/// Another file in a folder.
fn beside(place: &Place, name: &str) -> PathBuf {
    place.folder.path().join(name)
}

/// A chat in which an editor puts the first `n` tokens of a document in the place of a question, and its folder.
fn chat_with_document(n: usize, args: &[&str]) -> (Terminal, TempDir) {
    let folder = TempDir::new().unwrap();
    let document = folder.path().join("document");
    let text = text(open(Device::Reference, 1).tokenizer(), &golden_ids()[..n]);
    fs::write(&document, text).unwrap();
    let args = [&["-m", chatty(), "--stats"], &EXACT[..], args].concat();
    let mut terminal = Terminal::start_with(LGRUN, &args, &[("EDITOR", &format!("cp {}", str(&document)))]);
    terminal.wait_for("\n> ");
    (terminal, folder)
}

/// A chat where these were said, with `args` behind those of [`EXACT`].
fn chat(args: &[&str], texts: &[&str]) -> Terminal {
    let mut terminal = Terminal::start(LGRUN, &[&["-m", chatty(), "--stats"], &EXACT[..], args].concat());
    terminal.wait_for("\n> ");
    for text in texts {
        terminal.enter(text);
    }
    terminal
}

/// The answer in what `lgrun` prints: it stands behind the progress of a slow machine, and before what it cost.
fn said(printed: &str) -> &str {
    printed.split("\nprompt ").next().unwrap().rsplit("s left").next().unwrap()
}

#[test]
fn a_question_that_is_taken_back_leaves_nothing() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..2]));
    let (mut terminal, _) = place.chat();
    assert!(terminal.enter("/undo").contains("no question yet"));
    terminal.enter(TEXTS[0]);
    terminal.enter(OTHER);
    let undone = terminal.enter("/undo");
    assert_eq!(undone, format!("(taken back: {OTHER}; 1 turn left)"));
    place.assert_holds(&pairs(&expected[..1]));
    assert_eq!(number(&terminal.enter("/stats"), "context "), {
        let text = chat_text(&pairs(&expected[..1]));
        n_tokens(text.strip_suffix("<|im_start|>assistant\n").unwrap())
    });
    // The same question, taken back and asked again, has the same answer, and hardly a token is computed for it.
    let mut first = None;
    for _ in 0..2 {
        let asked = terminal.enter(TEXTS[1]);
        assert_eq!(said(&asked), expected[1].1);
        let (n_prompt, n_reused) = (number(&asked, "prompt "), number(&asked, "tokens ("));
        assert_eq!(number(&asked, "reused, "), n_prompt - n_reused);
        match first {
            None => first = Some(n_reused),
            Some(n) => assert!(n_reused >= n_prompt - 1 && n_reused > n, "{asked}"),
        }
        place.assert_holds(&pairs(&expected));
        terminal.enter("/undo");
    }
    terminal.enter("/undo");
    place.assert_holds(&[]);
    assert!(terminal.enter("/undo").contains("no question yet"));
}

#[test]
fn a_turn_that_is_taken_back_stays_so_when_the_process_is_killed() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..1]));
    let (mut terminal, _) = place.chat();
    terminal.enter(TEXTS[0]);
    terminal.enter(TEXTS[1]);
    terminal.enter("/undo");
    // It is killed.
    drop(terminal);
    place.assert_holds(&pairs(&expected));
}

#[test]
fn an_answer_can_be_had_again() {
    let expected = conversation(&TEXTS[..2]);
    let mut terminal = chat(&[], &[]);
    assert!(terminal.enter("/regen").contains("no question yet"));
    for (text, answer) in &expected {
        assert_eq!(said(&terminal.enter(text)), answer);
        let again = terminal.enter("/regen");
        assert_eq!(said(&again), answer);
        assert!(number(&again, "reused, ") <= 1, "{again}");
        let stats = terminal.enter("/stats");
        assert!(stats.ends_with(&again[again.find("\nprompt ").unwrap() + 1..]), "{stats:?} {again:?}");
    }
    // Random numbers go on: of a few answers some differ, and the same seed has the same ones.
    let few = || {
        let args =
            ["-m", chatty(), "--temp", "3", "--seed", "5", "-n", "8", "--kv", "f32", "--precision", "exact"];
        let mut terminal = Terminal::start(LGRUN, &args);
        terminal.wait_for("\n> ");
        let first = terminal.enter(TEXTS[0]);
        let mut all = vec![first];
        all.extend((0..3).map(|_| terminal.enter("/regen")));
        all
    };
    let answers = few();
    assert!(answers.iter().any(|answer| *answer != answers[0]), "{answers:?}");
    assert_eq!(few(), answers);
}

#[test]
fn an_edited_question_is_answered_like_a_new_one() {
    let expected = conversation(&[TEXTS[0], OTHER]);
    let check = |terminal: &mut Terminal, asked: &str| {
        assert_eq!(said(asked), expected[1].1, "{asked}");
        // What stands before the question, and the first words of it, stay.
        assert!(number(asked, "tokens (") > n_tokens(&chat_text(&pairs(&expected[..1]))) - 4, "{asked}");
        let next = terminal.enter(TEXTS[2]);
        let messages = [&pairs(&expected)[..], &[("user", TEXTS[2])]].concat();
        assert_eq!(said(&next), answer(&messages));
    };
    // As it stands there.
    let mut terminal = chat(&[], &[]);
    assert!(terminal.enter(&format!("/edit {OTHER}")).contains("no question yet"));
    terminal.enter(TEXTS[0]);
    terminal.enter(TEXTS[1]);
    let asked = terminal.enter(&format!("/edit {OTHER}"));
    check(&mut terminal, &asked);
    // On the line.
    let mut terminal = chat(&[], &TEXTS[..2]);
    for keys in ["\r", INTERRUPT] {
        terminal.press("/edit\r");
        terminal.wait_for("\n");
        terminal.wait_for(TEXTS[1]);
        terminal.press(keys);
        terminal.wait_for("(the question is as it was)\n> ");
    }
    terminal.press("/edit\r");
    terminal.wait_for("\n");
    terminal.wait_for(TEXTS[1]);
    let asked = terminal.enter(&format!("{}77.", "\x7f".repeat("what?".len())));
    check(&mut terminal, &asked);
    // In an editor, which is a command of the shell, like `code --wait`.
    let start = |editor: &str| {
        let args = [&["-m", chatty(), "--stats"], &EXACT[..]].concat();
        let mut terminal = Terminal::start_with(LGRUN, &args, &[("EDITOR", "false"), ("VISUAL", editor)]);
        terminal.wait_for("\n> ");
        terminal.enter(TEXTS[0]);
        terminal.enter(TEXTS[1]);
        terminal
    };
    let mut terminal = start("sed -i s/what?/77./");
    let asked = terminal.enter("/edit");
    check(&mut terminal, &asked);
    for (editor, part) in [
        ("true", "as it was"),
        ("truncate -s 0", "as it was"),
        ("false", "exit status"),
        ("no-such-editor", "127"),
    ] {
        let mut terminal = start(editor);
        let refused = terminal.enter("/edit");
        assert!(refused.contains(part), "{editor}: {refused}");
        assert_eq!(said(&terminal.enter("/regen")), conversation(&TEXTS[..2])[1].1);
    }
}

#[test]
fn layers_that_had_given_up_what_is_needed_again_are_told() {
    let plan = open(Device::Reference, 1).plan(&SessionParams::default()).unwrap();
    let is_partial = |&i: &usize| plan.layers[i].attention.kind() != "full";
    assert_eq!((0..9).filter(is_partial).collect::<Vec<_>>(), [0, 1, 2, 6, 7, 8]);
    let expected = &conversation(&TEXTS[..2])[1].1;
    for (restore, is_lost) in [("1", true), ("100000000", false)] {
        let (mut terminal, _folder) = chat_with_document(700, &["-c", "2000", "--restore", restore]);
        terminal.enter(TEXTS[0]);
        terminal.enter(OTHER);
        let long = terminal.enter("/edit");
        assert!(number(&long, "prompt ") > 700, "{long}");
        let edited = terminal.enter(&format!("/edit {}", TEXTS[1]));
        assert_eq!(said(&edited), expected);
        assert_eq!(number(&edited, "tokens (") == 0, is_lost, "{edited}");
        let told = edited.contains(" of them again since layers 0-2, 6-8 had given them up, ");
        assert_eq!(told, is_lost, "{edited}");
        assert_eq!(number(&edited, "reused, ") + number(&edited, "tokens ("), number(&edited, "prompt "));
    }
}

#[test]
fn an_answer_that_does_not_begin_replaces_none() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..1]));
    // Token by token, so that it takes long enough on any machine for its progress to show.
    let (mut terminal, _folder) =
        chat_with_document(golden_ids().len(), &["--session", str(&place.file), "--chunk", "1"]);
    terminal.enter(TEXTS[0]);
    terminal.press("/edit\r");
    terminal.wait_for("reading ");
    terminal.press(INTERRUPT);
    terminal.wait_for("(stopped before the answer: the conversation is as it was)");
    terminal.wait_for("\n> ");
    place.assert_holds(&pairs(&expected));
    assert_eq!(said(&terminal.enter("/regen")), expected[0].1);
}

#[test]
fn a_fork_leaves_the_old_file_and_loading_goes_back() {
    let (place, expected) = (Place::with(&TEXTS[..1]), conversation(&TEXTS[..2]));
    let old = [&place.file, &place.session].map(|path| fs::read(path).unwrap());
    let (mut terminal, _) = place.chat();
    let forked = terminal.enter("/fork");
    assert!(forked.contains("goes on in ") && forked.contains("walnut-2.jsonl; "), "{forked}");
    let second = beside(&place, "walnut-2.jsonl");
    assert_messages(&second, &pairs(&expected[..1]));
    terminal.enter(OTHER);
    let other = conversation(&[TEXTS[0], OTHER]);
    assert_messages(&second, &pairs(&other));
    assert!(terminal.enter("/fork").contains("walnut-3.jsonl; "));
    let third = beside(&place, "with space.jsonl");
    assert!(
        terminal.enter(&format!("/fork {}", str(&third).replace(' ', "\\ "))).contains("with space.jsonl; ")
    );
    terminal.enter("/undo");
    assert_messages(&third, &pairs(&expected[..1]));
    assert_messages(&beside(&place, "walnut-3.jsonl"), &pairs(&other));
    // One that is there is taken by nothing.
    let taken = terminal.enter(&format!("/fork {}", str(&second)));
    assert!(taken.contains("walnut-2.jsonl is there already"), "{taken}");
    assert_eq!([&place.file, &place.session].map(|path| fs::read(path).unwrap()), old);

    // Back to where it began: nothing is computed again.
    let back = terminal.enter(&format!("/load {}", str(&place.file)));
    assert!(back.contains("(left 1 turn, kept in ") && back.contains("with space.jsonl)"), "{back}");
    assert!(back.contains("walnut.jsonl goes on: 2 messages"), "{back}");
    let asked = terminal.enter(TEXTS[1]);
    assert_eq!(said(&asked), expected[1].1);
    assert_eq!(number(&asked, "tokens ("), goes_on(&back)[1]);
    assert_messages(&place.file, &pairs(&expected));
    assert_messages(&second, &pairs(&other));
    terminal.press("/bye\r");
    assert!(terminal.succeeds());
    // The fork goes on after a restart, too.
    let args = ["-m", chatty(), "--session", str(&second), "--stats", "-p", TEXTS[1]];
    let output = run(LGRUN, &[&args[..], &EXACT].concat());
    assert_eq!(printed(&output), answer(&[&pairs(&other)[..], &[("user", TEXTS[1])]].concat()) + "\n");
    assert!(number(&stderr(&output), "tokens (") > n_tokens(TEXTS[0]), "{}", stderr(&output));
}

#[test]
fn copies_are_numbered_from_the_first_one_on() {
    let folder = TempDir::new().unwrap();
    for (name, taken, copy) in [
        ("walnut.jsonl", "", "walnut-2.jsonl"),
        ("walnut.jsonl", "walnut-2.jsonl walnut-3.jsonl.kv", "walnut-4.jsonl"),
        ("walnut-4.jsonl", "walnut.jsonl", "walnut-5.jsonl"),
        // No number of a copy.
        ("2026-11-27", "", "2026-11-27-2"),
        ("a.b.c", "", "a.b-2.c"),
    ] {
        let place = folder.path().join(format!("{name} {taken}"));
        fs::create_dir(&place).unwrap();
        for taken in taken.split_whitespace() {
            fs::write(place.join(taken), "").unwrap();
        }
        assert_eq!(ChatFile::open(&place.join(name)).unwrap().beside(), place.join(copy));
    }
}

#[test]
fn what_cannot_be_loaded_keeps_the_conversation() {
    let (place, expected) = (Place::with(&TEXTS[..1]), conversation(&TEXTS[..2]));
    let (mut terminal, _) = place.chat();
    let damaged = beside(&place, "damaged.jsonl");
    fs::write(&damaged, json!({"role": "user", "content": "Hi"}).to_string() + "\n{\"role\": \"us").unwrap();
    let empty = beside(&place, "empty.jsonl");
    fs::write(&empty, "\n").unwrap();
    let none = beside(&place, "none.jsonl");
    for (path, part) in [
        (str(&damaged), "damaged.jsonl, line 2: no JSON at column"),
        (str(&empty), "without messages"),
        (str(&none), "none.jsonl: no such file"),
        (str(place.folder.path()), "not a file"),
        (chatty(), "line 1: no JSON"),
        (str(&place.session), "line 1: no JSON"),
        ("", "which file?"),
    ] {
        let refused = terminal.enter(&format!("/load {path}"));
        assert!(refused.contains(part) && refused.lines().count() == 1, "{path}: {refused}");
    }
    for name in [&damaged, &empty] {
        fs::remove_file(name).unwrap();
    }
    assert!(!none.exists());
    let asked = terminal.enter(TEXTS[1]);
    assert_eq!(said(&asked), expected[1].1);
    place.assert_holds(&pairs(&expected));
    // A session of another conversation, or a damaged one, is told, and changes no answer.
    let other = Place::with(&[OTHER]);
    fs::write(&other.session, b"LGKV").unwrap();
    let loaded = terminal.enter(&format!("/load {}", str(&other.file)));
    assert!(loaded.contains("walnut.jsonl.kv: ") && loaded.contains("(left 2 turns, kept in "), "{loaded}");
    let asked = terminal.enter(TEXTS[1]);
    assert_eq!(said(&asked), conversation(&[OTHER, TEXTS[1]])[1].1);
    // One that cannot be kept is not left.
    fs::write(&other.file, json!({"role": "user", "content": "Hello"}).to_string()).unwrap();
    terminal.enter(TEXTS[2]);
    let refused = terminal.enter(&format!("/load {}", str(&place.file)));
    assert!(refused.contains("was changed meanwhile"), "{refused}");
    assert!(terminal.enter("/stats").contains("context "));
    let rescued = beside(&other, "rescued.jsonl");
    assert!(terminal.enter(&format!("/save {}", str(&rescued))).contains("(saved, "));
    assert_messages(&rescued, &pairs(&conversation(&[OTHER, TEXTS[1], TEXTS[2]])));
}

#[test]
fn copies_are_saved_where_nothing_is_lost() {
    let folder = TempDir::new().unwrap();
    let copy = folder.path().join("copy.jsonl");
    let expected = conversation(&TEXTS[..2]);
    let mut terminal = chat(&[], &[]);
    for (command, part) in [("/save", "/save FILE"), ("/fork", "which file?")] {
        assert!(terminal.enter(command).contains(part));
    }
    for i in 1..=2 {
        terminal.enter(TEXTS[i - 1]);
        assert!(terminal.enter(&format!("/save {}", str(&copy))).contains("(saved, "));
        assert_messages(&copy, &pairs(&expected[..i]));
        assert!(folder.path().join("copy.jsonl.kv").exists());
    }
    // What the file has and the conversation has not would be lost.
    terminal.enter("/undo");
    let refused = terminal.enter(&format!("/save {}", str(&copy)));
    assert!(refused.contains("copy.jsonl has another conversation"), "{refused}");
    assert_messages(&copy, &pairs(&expected));
    let loaded = terminal.enter(&format!("/load {}", str(&copy)));
    assert!(loaded.contains("(dropped 1 turn, which no file has)\n"), "{loaded}");
    assert!(loaded.contains("copy.jsonl goes on: 4 messages"), "{loaded}");
    // From now on it is kept there.
    terminal.enter(TEXTS[2]);
    assert_messages(&copy, &pairs(&conversation(&TEXTS)));
}

#[test]
fn symbolic_links_are_followed() {
    let (place, expected) = (Place::new(), conversation(&TEXTS[..2]));
    let away = TempDir::new().unwrap();
    let target = away.path().join("target.jsonl");
    // To a file that is not there yet, by way of another link.
    let between = away.path().join("between");
    symlink("target.jsonl", &between).unwrap();
    symlink(&between, &place.file).unwrap();
    for (i, text) in TEXTS[..2].iter().enumerate() {
        let output = place.ask(text, &[]);
        assert_eq!(printed(&output), format!("{}\n", expected[i].1));
        assert_eq!(number(&stderr(&output), "tokens (") > 0, i > 0);
        assert_eq!(fs::read_link(&place.file).unwrap(), between);
        assert_messages(&target, &pairs(&expected[..=i]));
        assert!(away.path().join("target.jsonl.kv").exists());
    }
    // A session on another disk.
    let session = away.path().join("target.jsonl.kv");
    let disk = TempDir::new().unwrap();
    let stored = disk.path().join("stored");
    fs::rename(&session, &stored).unwrap();
    symlink(&stored, &session).unwrap();
    let output = place.ask(TEXTS[2], &[]);
    assert!(number(&stderr(&output), "tokens (") > 0);
    assert_eq!(fs::read_link(&session).unwrap(), stored);
    // In a circle.
    let circle = away.path().join("circle");
    symlink("circle", &circle).unwrap();
    assert_refused(
        LGRUN,
        &["-m", chatty(), "--session", str(&circle), "-p", "Hi"],
        &["circle", "symbolic links"],
    );
}

#[test]
fn what_was_computed_is_kept_when_the_terminal_vanishes() {
    let expected = conversation(&TEXTS[..2]);
    let endless = |place: &Place| {
        let args = place.args(&[]);
        Terminal::start(LGRUN, &[&args[..args.len() - 2], &["-c", "4000"]].concat())
    };
    let check = |place: &Place| {
        let said = place.messages();
        assert!(said.len() == 4 && said[3].1.starts_with(&expected[1].1), "{said:?}");
        let (_, greeting) = place.chat();
        let [n_all, n_computed] = goes_on(&greeting);
        // An answer's last token, and what ends it, have not been through the model.
        assert!(n_all - n_computed <= n_tokens("<|im_end|>\n") + 2, "{greeting}");
    };
    for vanishes in [false, true] {
        let place = Place::with(&TEXTS[..1]);
        let mut terminal = endless(&place);
        terminal.wait_for("\n> ");
        terminal.press(&format!("{}\r", TEXTS[1]));
        terminal.wait_for("\n");
        terminal.wait_for(&expected[1].1);
        if vanishes {
            terminal.vanish()
        } else {
            terminal.end_by(Signal::HUP)
        }
        check(&place);
    }
    // At the prompt.
    let place = Place::new();
    let (mut terminal, _) = place.chat();
    terminal.enter(TEXTS[0]);
    terminal.enter(TEXTS[1]);
    terminal.vanish();
    check(&place);
}

#[test]
fn an_answer_that_nobody_reads_any_more_is_kept_as_far_as_it_came() {
    let place = Place::new();
    let args = place.args(&[]);
    let args = [&args[..args.len() - 2], &["-c", "4000", "-p", TEXTS[0]]].concat();
    let mut command = Command::new(LGRUN);
    let command = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let expected = &conversation(&TEXTS[..1])[0].1;
    let mut read = vec![0; expected.len()];
    child.stdout.take().unwrap().read_exact(&mut read).unwrap();
    assert!(child.wait().unwrap().success());
    let said = place.messages();
    assert!(said.len() == 2 && said[1].1.starts_with(expected.as_str()), "{said:?}");
    let (_, greeting) = place.chat();
    let [n_all, n_computed] = goes_on(&greeting);
    assert!(n_all - n_computed <= n_tokens("<|im_end|>\n") + 2, "{greeting}");
}

#[test]
fn tab_completes_commands_and_files() {
    let (place, other) = (Place::with(&TEXTS[..1]), Place::with(&TEXTS[..1]));
    let (mut terminal, _) = place.chat();
    let undone = terminal.enter("/und\t");
    assert!(undone.contains("(taken back: "), "{undone}");
    let spaced = beside(&other, "wide space.jsonl");
    fs::rename(&other.file, &spaced).unwrap();
    let begin = str(&spaced).strip_suffix(" space.jsonl").unwrap();
    let loaded = terminal.enter(&format!("/loa\t{begin}\t"));
    assert!(loaded.contains("wide space.jsonl goes on: 2 messages"), "{loaded}");
    // No file's name is wanted in a message.
    terminal.enter("What\t");
    assert_eq!(messages(&spaced)[2].1, "What");
}

#[test]
fn help_has_a_line_for_each_command() {
    let mut terminal = chat(&[], &[]);
    let help = terminal.enter("/help");
    for name in ["/undo", "/regen", "/edit", "/clear", "/stats", "/save", "/load", "/fork", "/help", "/bye"] {
        let lines = help.lines().filter(|line| line.split(' ').next() == Some(name));
        assert_eq!(lines.count(), 1, "{name} in {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() < 80), "{help}");
    for line in ["/undo 2", "/nothing", "/"] {
        assert!(terminal.enter(line).starts_with(line.split(' ').next().unwrap()), "{line}");
    }
}
