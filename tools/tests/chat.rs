//! A conversation with `lgrun` at a terminal: editing, commands, interrupts, and a context that is full.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;
use std::sync::Arc;

use indicatif::DecimalBytes;
use longgen::{
    Cancel, Device, ErrorKind, KvType, Model, ModelParams, Precision, Sampler, SamplerParams, Session,
    SessionParams, StopReason,
};
use longgen_tools::chat::conversation::{Conversation, Turn};
use longgen_tools::generate::{self, Stats};
use support::conversations::{LGRUN, number};
use support::program::*;
use support::terminal::{INTERRUPT, Terminal, UP};
use tempfile::TempDir;

const EXACT: [&str; 6] = ["--temp", "0", "--kv", "f32", "--precision", "exact"];
const TELL: &str = "The secret code for walnut is 482913.";
const ASK: &str = "The secret code for walnut is what?";

/// A chat that has just begun.
fn chat(args: &[&str]) -> Terminal {
    let mut terminal = Terminal::start(LGRUN, &[&["-m", chatty()], &EXACT[..], args].concat());
    assert!(terminal.wait_for("\n> ").contains("/help lists commands"));
    terminal
}

/// What the model answers to these messages when it is asked once, in `n` tokens.
fn answer(messages: &[(&str, &str)], n: &str) -> String {
    let prompt = chat_text(messages);
    let args = [&["-m", chatty()], &EXACT[..], &["-n", n, "--raw", "-p", &prompt]].concat();
    printed(&run(LGRUN, &args)).strip_suffix('\n').unwrap().to_owned()
}

/// Tokens of these messages up to where the answer begins.
fn n_tokens(messages: &[(&str, &str)]) -> usize {
    open(Device::Reference, 1).tokenizer().encode(&chat_text(messages), true, true).unwrap().len()
}

#[test]
fn lines_are_edited_and_come_back() {
    let mut terminal = chat(&["-n", "8"]);
    // To the beginning of the line, and away with its first character.
    let told = terminal.enter(&format!("x{TELL}\x01\x1b[3~"));
    assert_eq!(told, answer(&[("user", TELL)], "8"));
    terminal.press(UP);
    terminal.wait_for(TELL);
    let again = terminal.enter("");
    assert_eq!(again, answer(&[("user", TELL), ("assistant", &told), ("user", TELL)], "8"));
    // A line that was given up is no message.
    terminal.press("nothing");
    terminal.press(INTERRUPT);
    terminal.wait_for("Ctrl-D leaves)\n> ");
    let asked = terminal.enter(ASK);
    let messages =
        [("user", TELL), ("assistant", &told), ("user", TELL), ("assistant", &again), ("user", ASK)];
    assert_eq!(asked, answer(&messages, "8"));
    terminal.press("\x04");
    assert!(terminal.succeeds());
}

#[test]
fn commands_show_and_clear_the_context() {
    let mut terminal = chat(&["-n", "8", "-c", "300", "--system", "Be brief."]);
    let help = terminal.enter("/help");
    for command in ["/clear", "/stats", "/help", "/bye", "Ctrl-C"] {
        assert!(help.contains(command), "{help}");
    }
    let model = Arc::new(open(Device::Cpu, 1));
    let params = SessionParams { n_ctx: 300, kv_type: KvType::F32, ..Default::default() };
    let kv = DecimalBytes(model.plan(&params).unwrap().kv_bytes() as u64);
    let empty = format!("context 0 of 300 tokens, {kv} of keys and values");
    assert_eq!(terminal.enter("/stats"), empty);

    let first = [("system", "Be brief."), ("user", TELL)];
    let told = terminal.enter(TELL);
    assert_eq!(told, answer(&first, "8"));
    let (stats, n_prompt) = (terminal.enter("/stats"), n_tokens(&first));
    // The last token of an answer has not been through the model.
    assert_eq!(number(&stats, "context "), n_prompt + 7, "{stats}");
    assert_eq!([number(&stats, "prompt "), number(&stats, "answer ")], [n_prompt, 8], "{stats}");
    // Tokens per second of both.
    assert_eq!(stats.matches("/s").count(), 3, "{stats}");

    // What the system says stays, and nothing else.
    terminal.press("/clear\r");
    terminal.wait_for("\n> ");
    assert_eq!(terminal.enter("/stats"), empty);
    let asked = terminal.enter(ASK);
    assert_eq!(asked, answer(&[("system", "Be brief."), ("user", ASK)], "8"));
    terminal.press("/bye\r");
    assert!(terminal.succeeds());
}

#[test]
fn an_answer_that_is_interrupted_stays_as_far_as_it_came() {
    let mut terminal = chat(&["--stats"]);
    terminal.press(&format!("{TELL}\r"));
    terminal.wait_for("\n");
    // Not from the first character on: the rest belongs to the answer, too.
    let begin = answer(&[("user", TELL)], "3");
    terminal.wait_for(&begin);
    terminal.press(INTERRUPT);
    let rest = terminal.wait_for("\n(stopped: the conversation keeps the answer");
    let first = terminal.wait_for("\n> ");
    let (n_prompt, n_answer) = (number(&first, "prompt "), number(&first, "answer "));
    assert_eq!(n_prompt, n_tokens(&[("user", TELL)]));

    // The terminal shows where the key was pressed.
    let told = format!("{begin}{}", rest.replacen("^C", "", 1));
    assert!(answer(&[("user", TELL)], &n_answer.to_string()) == told, "{told:?}");
    let messages = [("user", TELL), ("assistant", told.as_str()), ("user", ASK)];
    terminal.press(&format!("{ASK}\r"));
    terminal.wait_for("\n");
    terminal.wait_for(&answer(&messages, "8"));
    terminal.press(INTERRUPT);
    terminal.wait_for("\n(stopped: ");
    let second = terminal.wait_for("\n> ");
    assert_eq!(number(&second, "prompt "), n_tokens(&messages));
}

#[test]
fn a_message_that_is_interrupted_can_be_sent_again() {
    let model = open(Device::Reference, 1);
    let long = format!("Read: {}", text(model.tokenizer(), &golden_ids()).repeat(3));
    // Token by token, so that it takes long enough on any machine for its progress to show.
    let mut terminal = chat(&["--system", &long, "--chunk", "1", "-n", "8", "--stats"]);
    terminal.press(&format!("{ASK}\r"));
    terminal.wait_for("reading ");
    terminal.press(INTERRUPT);
    terminal.wait_for("(stopped before the answer");
    assert!(terminal.wait_for("\n> ").contains("arrow up"));
    // Its progress is gone, and the key that ended it.
    let screen = terminal.screen();
    let asked = screen.iter().position(|line| *line == format!("> {ASK}")).unwrap();
    let [empty, stopped] = &screen[asked + 1..][..2] else { panic!("{screen:#?}") };
    assert!(empty.is_empty() && stopped.starts_with("(stopped before"), "{screen:#?}");
    assert_eq!(number(&terminal.enter("/stats"), "context "), 0);
    terminal.press(&format!("{UP}{UP}"));
    terminal.wait_for(ASK);
    terminal.press("\r");
    let expected = answer(&[("system", &long), ("user", ASK)], "8");
    terminal.wait_for(&format!("{expected}\n"));
    let stats = terminal.wait_for("\n> ");
    assert_eq!(number(&stats, "prompt "), n_tokens(&[("system", &long), ("user", ASK)]));
    // What had been read is not read again.
    assert!(number(&stats, "tokens (") > 0, "{stats}");
}

#[test]
fn a_request_to_terminate_ends_a_chat_and_leaves_the_terminal_as_it_was() {
    // While a line is edited.
    let mut terminal = chat(&[]);
    terminal.press("walnut");
    terminal.wait_for("walnut");
    terminal.terminate();
    // While the prompt is read, token by token so that it takes long enough.
    let long = text(open(Device::Reference, 1).tokenizer(), &golden_ids()).repeat(3);
    let mut terminal = chat(&["--system", &long, "--chunk", "1"]);
    terminal.press(&format!("{ASK}\r"));
    terminal.wait_for("reading ");
    terminal.terminate();
    // While it answers.
    let mut terminal = chat(&[]);
    terminal.press(&format!("{TELL}\r"));
    terminal.wait_for(&format!("\n{}", answer(&[("user", TELL)], "3")));
    terminal.terminate();
    // While it opens a file that never comes.
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    Terminal::start(LGRUN, &["-m", str(&pipe)]).terminate();
}

#[test]
fn a_message_that_does_not_fit_loses_nothing() {
    let mut terminal = chat(&["-c", "200", "-n", "8", "--stats"]);
    let said = terminal.enter(TELL);
    let (told, _) = said.split_once('\n').unwrap();
    let n_used = n_tokens(&[("user", TELL)]) + 7;
    let long = "walnut ".repeat(150);
    let refusal = terminal.enter(&long);
    let n_needed = n_tokens(&[("user", TELL), ("assistant", told), ("user", long.trim())]);
    for part in [
        format!("prompt of {n_needed} tokens"),
        "context of 200".to_owned(),
        format!("has {n_used}"),
        "/clear".to_owned(),
        "-c ".to_owned(),
    ] {
        assert!(refusal.contains(&part), "no {part:?} in {refusal:?}");
    }
    // A shorter one goes on from where the conversation stood.
    let asked = terminal.enter(ASK);
    let expected = answer(&[("user", TELL), ("assistant", told), ("user", ASK)], "8");
    assert!(asked.starts_with(&format!("{expected}\n")), "{asked:?} {expected:?}");
    assert_eq!(number(&asked, "tokens ("), n_used);
    // The long one is still there to be shortened.
    terminal.press(&format!("{UP}{UP}"));
    terminal.wait_for("walnut walnut");
}

#[test]
fn an_answer_that_fills_the_context_says_so() {
    let n_ctx = (n_tokens(&[("user", TELL)]) + 9).to_string();
    let mut terminal = chat(&["-c", &n_ctx]);
    let full = format!("\n(the context of {n_ctx} tokens is full: /clear empties it, -c takes a larger one)");
    let expected = answer(&[("user", TELL)], "10") + &full;
    assert_eq!(terminal.enter(TELL), expected);
    assert_eq!(number(&terminal.enter("/stats"), "context ").to_string(), n_ctx);
    assert!(terminal.enter("And?").contains(&format!("so far has {n_ctx}")));
    terminal.press("/clear\r");
    terminal.wait_for("\n> ");
    assert_eq!(terminal.enter(TELL), expected);
}

/// A session in this process, with a context of 256 tokens.
fn session(chunk_tokens: u32) -> Session {
    let params = ModelParams { n_threads: 1, ..Default::default() };
    let model = Arc::new(Model::open(chatty(), &params).unwrap());
    let params = SessionParams {
        n_ctx: 256,
        chunk_tokens,
        kv_type: KvType::F32,
        precision: Precision::Exact,
        ..Default::default()
    };
    Session::new(&model, &params).unwrap()
}

/// A conversation in such a session.
fn conversation(chunk_tokens: u32) -> Conversation {
    let sampler = Sampler::new(&SamplerParams::default()).unwrap();
    Conversation::new(session(chunk_tokens), sampler, None).unwrap()
}

#[test]
fn a_conversation_goes_on_after_an_interrupt_at_any_moment() {
    let say = |conversation: &mut Conversation, text: &str, cancel: &Cancel| {
        let mut answer = String::new();
        let mut print = |text: &str| {
            answer.push_str(text);
            true
        };
        let stats = conversation.say(Turn::New, text, 8, cancel, &mut |_, _| true, &mut print).unwrap();
        (answer, stats)
    };
    let never = Cancel::default();
    let whole = say(&mut conversation(8), TELL, &never).0;
    let (mut n_before, mut n_within) = (0, 0);
    for n_looks in (0..).map(|i| i * i / 2) {
        let mut conversation = conversation(8);
        let (begin, stats) = say(&mut conversation, TELL, &Cancel::after(n_looks));
        assert!(whole.starts_with(&begin), "{n_looks}: {begin:?} {whole:?}");
        if stats.stop.is_some_and(|reason| reason != StopReason::Cancelled) {
            break;
        }
        let (next, expected) = match stats.n_generated {
            0 => (say(&mut conversation, TELL, &never).0, whole.clone()),
            _ => {
                let messages = [("user", TELL), ("assistant", &*begin), ("user", ASK)];
                (say(&mut conversation, ASK, &never).0, answer(&messages, "8"))
            }
        };
        assert_eq!(next, expected, "{n_looks}");
        if stats.n_generated == 0 { n_before += 1 } else { n_within += 1 }
    }
    assert!(n_before > 3 && n_within > 3, "{n_before} {n_within}");
}

/// At most `limit` tokens behind a prompt.
fn generate(session: &mut Session, prompt: &[u32], limit: usize) -> anyhow::Result<Stats> {
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    generate::answer(session, prompt, &mut sampler, limit, &Cancel::default(), &mut |_, _| true, &mut |_| {
        true
    })
}

#[test]
fn nothing_is_computed_behind_the_last_token_of_an_answer() {
    for limit in [0, 1, 5] {
        let mut session = session(0);
        let prompt = session.model().tokenizer().encode(TELL, true, true).unwrap();
        assert_eq!(generate(&mut session, &prompt, limit).unwrap().n_generated, limit);
        assert_eq!(session.tokens().len(), prompt.len() + limit.saturating_sub(1));
    }
}

#[test]
fn a_prompt_that_does_not_fit_leaves_a_session_as_it_was() {
    let mut session = session(0);
    let ids = golden_ids();
    generate(&mut session, &ids[..100], 1).unwrap();
    let logits = session.logits().unwrap().to_vec();
    // It shares nothing with what the session holds.
    let error = generate(&mut session, &ids[1..258], 1).unwrap_err();
    assert_eq!(error.downcast_ref::<longgen::Error>().unwrap().kind(), ErrorKind::ContextFull);
    assert!(
        error.to_string().contains("257 tokens") && error.to_string().contains("context of 256"),
        "{error}"
    );
    assert_eq!(session.tokens(), &ids[..100]);
    assert_eq!(session.logits().unwrap(), logits);
    // Another one that fills it to the last token has room for one more, which is shown.
    assert_eq!(generate(&mut session, &ids[1..257], 9).unwrap().n_generated, 1);
}
