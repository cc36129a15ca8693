//! `lgeval` as its user sees it: tokens, logits and perplexity of the trained model, against PyTorch's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use longgen::Device;
use serde_json::{Value, json};
use support::program::*;
use tempfile::TempDir;

const LGEVAL: &str = env!("CARGO_BIN_EXE_lgeval");
const EXACT: [&str; 4] = ["--precision", "exact", "--kv", "f32"];
/// What f32 angles of RoPE and another order of sums may change.
const TOLERANCE: f32 = 0.002;

/// A folder with inputs and results.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> String {
        str(&self.0.path().join(name)).to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn tokenize(&self, text: &str, args: &[&str]) -> Vec<u32> {
        let file = self.write("text.txt", text);
        let printed = printed(&run(LGEVAL, &[&["tokenize", "-m", tiny(), "-f", &file], args].concat()));
        assert_eq!(printed.lines().count(), 1);
        printed.split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    /// The shape of the file with the logits, and the logits.
    fn logits(&self, ids: &[u32], args: &[&str]) -> (Vec<usize>, Vec<f32>) {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let (ids, out) = (self.write("ids.txt", &ids.join("\n")), self.path("logits.npy"));
        let command = ["logits", "-m", tiny(), "--tokens", &ids, "-o", &out];
        assert_eq!(printed(&run(LGEVAL, &[&command, args].concat())), "");
        npy_f32(Path::new(&out))
    }
}

/// The golden document as text.
fn golden_text() -> String {
    text(open(Device::Reference, 1).tokenizer(), &golden_ids())
}

#[test]
fn texts_become_the_tokens_of_python() {
    let place = Place::new();
    assert_eq!(place.tokenize(&golden_text(), &[]), golden_ids());
    let cases: Value = serde_json::from_str(include_str!("../../tests/data/text/tokens.json")).unwrap();
    let ids = |case: &Value| -> Vec<u32> { serde_json::from_value(case.clone()).unwrap() };
    for case in cases["tiny"].as_array().unwrap().iter().step_by(9) {
        let text = case["text"].as_str().unwrap();
        assert_eq!(place.tokenize(text, &[]), [vec![0], ids(&case["plain"])].concat(), "{text:?}");
        // Every text begins with the token 0, also one that spells it.
        let special = ids(&case["special"]);
        let begin = if special.first() == Some(&0) { vec![] } else { vec![0] };
        assert_eq!(place.tokenize(text, &["--special"]), [begin, special].concat(), "{text:?}");
    }
}

#[test]
fn each_text_has_a_line() {
    let place = Place::new();
    let texts = ["A short text.", "", "Another\none."];
    let alone = texts.map(|text| place.tokenize(text, &[]));
    let files = [0, 1, 2].map(|i| place.write(&i.to_string(), texts[i]));
    let together = printed(&run(LGEVAL, &["tokenize", "-m", tiny(), "-f", &files[0], &files[1], &files[2]]));
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(together.lines().map(ids).collect::<Vec<Vec<u32>>>(), alone);
}

#[test]
fn templates_render_conversations() {
    let place = Place::new();
    let first =
        place.write("first.jinja", "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}\n");
    let second = place.write(
        "second.jinja",
        "{{ add_generation_prompt }}{{ tools | tojson }}\n{{ strftime_now('%F') if not messages else raise_exception('no') }}",
    );
    let chats = place.write(
        "chats.json",
        r#"[{"messages": [{"role": "user", "content": "Hi\n\u2028"}]},
            {"messages": [], "add_generation_prompt": true, "tools": [{"b": 1, "a": null}]}]"#,
    );
    let flags = ["chat-template", "-f", &chats, "--token", "bos_token=<a=b>", "--time", "951782399"];
    let lines = printed(&run(LGEVAL, &[&flags[..], &["-t", &first, &second]].concat()));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({"text": "<a=b>[Hi\n\u{2028}]"}),
            json!({"text": "<a=b>"}),
            json!({"error": "chat template, line 2: no"}),
            json!({"text": "True[{\"b\": 1, \"a\": null}]\n2000-02-28"}),
        ]
    );
    let none = place.write("none.json", r#"[{"messages": []}, {"messages": "Hi"}]"#);
    let parts = [&none, "element 1 is no conversation"];
    assert_refused(LGEVAL, &["chat-template", "-f", &none, "-t", &first], &parts);
}

#[test]
fn logits_are_those_of_pytorch() {
    let place = Place::new();
    let ids = golden_ids();
    let (positions_shape, positions) = npy(&Path::new(TINY).join("golden_positions.npy"), "<i4");
    let (golden_shape, golden) = npy_f32(&Path::new(TINY).join("golden_logits.npy"));
    let n_vocab = golden_shape[1];
    assert_eq!(golden_shape[..1], positions_shape);

    let (shape, logits) = place.logits(&ids, &EXACT);
    assert_eq!(shape, [ids.len(), n_vocab]);
    for (position, golden) in positions.iter().zip(golden.chunks_exact(n_vocab)) {
        let row = &logits[*position as usize * n_vocab..][..n_vocab];
        let worst = row.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "position {position}: differs by {worst}");
    }
    // The last rows alone, and computed in other steps, are the same bits.
    for (last, chunk) in [(1, "512"), (100, "64"), (ids.len() + 5, "2048")] {
        let n_rows = last.min(ids.len());
        let flags = ["--last", &last.to_string(), "--chunk", chunk];
        let (shape, rows) = place.logits(&ids, &[&EXACT[..], &flags].concat());
        assert_eq!(shape, [n_rows, n_vocab]);
        assert!(rows == logits[logits.len() - n_rows * n_vocab..], "the last {last} rows, chunk {chunk}");
    }
    // Nothing else is left, and whoever may read new files may read the result.
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().mode();
    assert_eq!(mode("logits.npy"), mode("ids.txt"));
    assert_eq!(fs::read_dir(&place.0).unwrap().count(), 2);
}

/// The negative logarithm of the softmax.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f64::MIN, |max, &x| max.max(x.into()));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    max + sum.ln() - f64::from(logits[token as usize])
}

#[test]
fn perplexity_is_what_the_logits_say() {
    let (place, text, n_ctx) = (Place::new(), golden_text(), 301);
    let file = place.write("golden.txt", &text);
    let command = ["perplexity", "-m", tiny(), "-f", &file, "-c", "301"];
    let output = run(LGEVAL, &[&command[..], &EXACT, &["--json"]].concat());
    let found: Value = serde_json::from_str(&printed(&output)).unwrap();

    let (mut sum, mut n_tokens) = (0.0, 0usize);
    for window in golden_ids()[1..].chunks_exact(n_ctx - 1) {
        let window = [&[0], window].concat();
        let (shape, logits) = place.logits(&window, &EXACT);
        for (i, token) in window.iter().enumerate().skip(n_ctx / 2) {
            sum += surprise(&logits[(i - 1) * shape[1]..][..shape[1]], *token);
            n_tokens += 1;
        }
    }
    assert_eq!(n_tokens, 4 * 151);
    assert_eq!(found["n_tokens"], n_tokens);
    let expected = (sum / n_tokens as f64).exp();
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((perplexity / expected - 1.0).abs() < 1e-9, "{perplexity}, not {expected}");
    assert!(found["seconds"].as_f64().unwrap() > 0.0);
    // For people, the same number.
    let line = printed(&run(LGEVAL, &[&command[..], &EXACT].concat()));
    assert!(line.starts_with(&format!("perplexity {perplexity:.4} over {n_tokens} tokens")), "{line}");
}

#[test]
fn calls_that_are_stopped_say_how_long_they_went_on() {
    let args = ["bench-stop", "-m", tiny(), "-p", "300", "-r", "6", "--json", "--device", "cpu"];
    let printed = printed(&run(LGEVAL, &args));
    let tests: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tests.iter().map(|test| &test["test"]).collect::<Vec<_>>(), ["open", "prefill", "decode"]);
    for test in &tests {
        // Those that had ended before do not count.
        let ms = test["ms"].as_array().unwrap();
        assert!(ms.len() <= 6 && test["calls"] == ms.len(), "{test}");
        let whole = test["whole_ms"].as_f64().unwrap();
        assert!(whole > 0.0 && ms.iter().all(|ms| ms.as_f64().unwrap() < 10.0 * whole + 1000.0), "{test}");
    }
    let said = failure(&run(LGEVAL, &["bench-stop", "-m", tiny(), "-p", "300", "-c", "100"]));
    assert!(said.contains("300 tokens do not fit in a context of 100"), "{said}");
}

#[test]
fn sessions_that_compute_together_are_measured_one_number_after_the_other() {
    let lines = |args: &[&str]| -> Vec<Value> {
        let args = [args, &["-m", tiny(), "--json", "--device", "cpu", "-r", "1"]].concat();
        printed(&run(LGEVAL, &args)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let speeds = lines(&["bench", "-p", "8", "-n", "2", "-s", "1,3"]);
    let named: Vec<_> = speeds.iter().map(|speed| (&speed["test"], &speed["sessions"])).collect();
    assert_eq!(json!(named), json!([["pp8", 1], ["tg2", 1], ["tg2 x3", 3]]));
    let [median, ms] = ["median", "ms_per_token"].map(|key| speeds[2][key].as_f64().unwrap());
    assert!((median * ms / 3000.0 - 1.0).abs() < 1e-9, "{}", speeds[2]);

    let mixed = lines(&["bench-mixed", "-p", "50", "-s", "2", "-d", "9", "--parts", "7,50"]);
    assert_eq!(
        mixed.iter().map(|line| &line["part"]).collect::<Vec<_>>(),
        [&json!(null), &json!(7), &json!(50)]
    );
    for (line, n_steps) in mixed.iter().zip([1.0, 8.0, 1.0]) {
        let rate = |of: &str| line[format!("{of}_tokens_per_second")].as_f64().unwrap();
        // As many seconds for 50 tokens of the prompt as for one of each of the others in every step.
        assert!((50.0 / rate("prompt") * rate("decode") / (2.0 * n_steps) - 1.0).abs() < 1e-9, "{line}");
        assert!(line["longest_ms"].as_f64().unwrap() <= 50e3 / rate("prompt") * (1.0 + 1e-9), "{line}");
    }
    let refused = failure(&run(LGEVAL, &["bench-mixed", "-m", tiny(), "--parts", "0"]));
    assert!(refused.contains("--parts 0: a part has tokens"), "{refused}");
    let refused = failure(&run(LGEVAL, &["bench-mixed", "-m", tiny(), "--parts", "70", "--chunk", "64"]));
    assert!(refused.contains("session 0 of the batch: 70 tokens: its chunks hold 64"), "{refused}");
}

#[test]
fn turns_of_a_conversation_say_what_was_computed_again() {
    let turns = |more: &[&str]| -> Vec<Value> {
        let args = ["bench-turns", "-m", tiny(), "--json", "--turns", "6", "--edit", "2", "--device", "cpu"];
        let printed = printed(&run(LGEVAL, &[&args[..], &["-p", "300", "-n", "50"], more].concat()));
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let numbers =
        |turn: &Value| ["turn", "n_prompt", "n_new", "n_computed"].map(|key| turn[key].as_u64().unwrap());
    let with: Vec<_> = turns(&["--restore", "100000000"]).iter().map(numbers).collect();
    let ordinary: Vec<_> = (1..=6).map(|turn| [turn, turn * 350 - 50, 300, 300]).collect();
    assert_eq!(with[..6], ordinary);
    // Where the second message begins, the first answer ended: that has been kept.
    assert_eq!(with[6..], [[2, 650, 300, 300]]);
    let without: Vec<_> = turns(&["--restore", "1"]).iter().map(numbers).collect();
    assert_eq!(without[..6], ordinary);
    assert_eq!(without[6..], [[2, 650, 300, 650]]);
    let said = failure(&run(LGEVAL, &["bench-turns", "-m", tiny(), "--edit", "21"]));
    assert!(said.contains("there are turns 1 to 20"), "{said}");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let place = Place::new();
    let (missing, folder) = (place.path("missing"), place.path(""));
    let (short, ids) = (place.write("short.txt", "A short text."), place.write("good.ids", "0 84 5"));
    let word = place.write("word.ids", "0 x7");
    let (foreign, none) = (place.write("foreign.ids", "4 4096"), place.write("none.ids", " \n"));
    let (out, nowhere) = (place.path("out.npy"), place.path("no/out.npy"));
    let before = fs::read_dir(&place.0).unwrap().count();
    for (args, parts) in [
        (&["tokenize", "-f", &missing][..], &[missing.as_str(), "No such file"][..]),
        (&["logits", "--tokens", &missing, "-o", &out], &[&missing, "No such file"]),
        (&["logits", "--tokens", &word, "-o", &out], &[&word, "\"x7\""]),
        (&["logits", "--tokens", &foreign, "-o", &out], &["token 4096", "vocabulary of 4096"]),
        (&["logits", "--tokens", &none, "-o", &out], &["no tokens"]),
        (&["logits", "--tokens", &ids, "-o", &out, "-c", "2"], &["context of 2"]),
        (&["logits", "--tokens", &ids, "-o", &nowhere], &[&nowhere[..nowhere.len() - 8]]),
        (&["logits", "--tokens", &ids, "-o", &folder], &[&folder, "is a folder"]),
        (&["perplexity", "-f", &short], &["fewer than one window of 512"]),
        (&["perplexity", "-f", &short, "-c", "3"], &["window of 3 tokens", "too short"]),
    ] {
        assert_refused(LGEVAL, &[&args[..1], &["-m", tiny()], &args[1..]].concat(), parts);
    }
    assert_refused(LGEVAL, &["tokenize", "-m", &missing, "-f", &short], &[&missing, "No such file"]);
    assert_eq!(fs::read_dir(&place.0).unwrap().count(), before, "a result of a failure is left");
}

#[test]
fn a_logits_file_stays_when_its_replacement_fails() {
    let place = Place::new();
    let (ids, out) = (place.write("good.ids", "0 84 5"), place.write("logits.npy", "the old file"));
    // No file may grow beyond some KiB.
    let script = "ulimit -c 0; ulimit -f 8; trap '' XFSZ; exec \"$0\" \"$@\"";
    let args = ["-c", script, LGEVAL, "logits", "-m", tiny(), "--tokens", &ids, "-o", &out];
    let message = failure(&Command::new("sh").args(args).output().unwrap());
    assert!(message.contains("logits.npy"), "{message}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "the old file");
    assert_eq!(fs::read_dir(&place.0).unwrap().count(), 2);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let place = Place::new();
    let file = place.write("golden.txt", &golden_text());
    for args in [
        &["tokenize", "-m", tiny(), "-f", &file][..],
        &["perplexity", "-m", tiny(), "-f", &file],
        &["bench", "-m", tiny(), "-p", "8", "-n", "2", "-r", "1"],
    ] {
        assert_quiet_without_reader(LGEVAL, args, 0);
    }
}
