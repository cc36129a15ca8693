//! Tokenizers against the Python `tokenizers` package, chat templates against Jinja2, streams against the whole text.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use longgen::ErrorKind;
use longgen::text::{ChatTemplate, Message, TextStream, Tokenizer, split_hf_tokenizer};
use longgen_format::{Directory, OwnedValue};
use proptest::prelude::*;
use serde_json::Value;
use support::metadata::with_metadata;

const TINY: &str = include_str!("data/longgen-tiny-8k/tokenizer.json");
const TINY_CONFIG: &str = include_str!("data/longgen-tiny-8k/tokenizer_config.json");
const SPACES: &str = include_str!("data/text/spaces.tokenizer.json");

fn expected(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("data/text/tokens.json")).unwrap();
    all[name].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Every text of `tokens.json` gives the ids and the text that the Python package gives.
fn check_tokens(tokenizer: &Tokenizer, name: &str) {
    let cases = expected(name);
    assert!(cases.len() > 100);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let special = ids(&case["special"]);
        assert_eq!(tokenizer.encode(text, true, false).unwrap(), special, "special tokens of {text:?}");
        let plain = tokenizer.encode(text, false, false).unwrap();
        assert_eq!(plain, ids(&case["plain"]), "plain tokens of {text:?}");
        assert_eq!(tokenizer.decode(&special, false), case["decoded"], "text of {special:?}");
        assert_eq!(tokenizer.decode(&special, true), case["decoded_without_special"], "text of {special:?}");
    }
}

fn tiny() -> Tokenizer {
    split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap().tokenizer().unwrap()
}

#[test]
fn tiny_tokens_are_those_of_python() {
    check_tokens(&tiny(), "tiny");
}

#[test]
fn spaces_tokens_are_those_of_python() {
    let tokenizer = split_hf_tokenizer(SPACES, None).unwrap().tokenizer().unwrap();
    check_tokens(&tokenizer, "spaces");
}

/// The keys of a plain GGUF with the tiny model's vocabulary.
fn tiny_metadata() -> Vec<(&'static str, OwnedValue)> {
    let parts = split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap();
    vec![
        ("general.architecture", OwnedValue::Str("llama".into())),
        ("tokenizer.ggml.model", OwnedValue::Str(parts.model.into())),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(parts.tokens)),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(parts.token_types)),
        ("tokenizer.ggml.merges", OwnedValue::Strs(parts.merges)),
        ("tokenizer.ggml.bos_token_id", OwnedValue::U32(0)),
        ("tokenizer.ggml.eos_token_id", OwnedValue::U32(1)),
    ]
}

#[test]
fn a_converted_file_has_the_tokenizer_of_its_folder() {
    let mut metadata = tiny_metadata();
    let pipeline = split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap().pipeline;
    metadata.push(("longgen.tokenizer.pipeline", OwnedValue::Str(pipeline)));
    metadata.push(("tokenizer.chat_template", OwnedValue::Str("{{ bos_token }}{{ eos_token }}!".into())));
    with_metadata(&metadata, |metadata| {
        check_tokens(&Tokenizer::from_metadata(metadata).unwrap(), "tiny");
        let template = ChatTemplate::from_metadata(metadata).unwrap().unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "<|bos|><|eos|>!");
    });
}

#[test]
fn chat_templates_see_the_special_tokens_that_a_file_has() {
    let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
    let template: String = names.iter().map(|name| format!("{{{{ {name}_token }}}} ")).collect();
    let mut metadata = tiny_metadata();
    let tokens = metadata.iter().find_map(|(key, value)| match value {
        OwnedValue::Strs(tokens) if *key == "tokenizer.ggml.tokens" => Some(tokens.clone()),
        _ => None,
    });
    let tokens = tokens.unwrap();
    metadata.push(("tokenizer.chat_template", OwnedValue::Str(template)));
    metadata.push(("tokenizer.ggml.unknown_token_id", OwnedValue::U32(40)));
    metadata.push(("tokenizer.ggml.seperator_token_id", OwnedValue::U32(41)));
    metadata.push(("tokenizer.ggml.padding_token_id", OwnedValue::U32(42)));
    metadata.push(("tokenizer.ggml.mask_token_id", OwnedValue::U32(43)));
    with_metadata(&metadata, |metadata| {
        let template = ChatTemplate::from_metadata(metadata).unwrap().unwrap();
        let [unk, sep, pad, mask] = [40, 41, 42, 43].map(|id| &tokens[id]);
        assert_eq!(
            template.render(&[], false).unwrap(),
            format!("<|bos|> <|eos|> {unk} {sep} {pad}  {mask} ")
        );
    });
    metadata.push(("tokenizer.ggml.cls_token_id", OwnedValue::U32(4096)));
    with_metadata(&metadata, |metadata| {
        let error = ChatTemplate::from_metadata(metadata).unwrap_err().to_string();
        assert!(error.contains("tokenizer.ggml.cls_token_id: 4096"), "{error}");
    });
}

#[test]
fn a_plain_gguf_splits_text_as_its_pre_tokenizer_says() {
    let with_pre = |pre: &str| {
        let mut metadata = tiny_metadata();
        metadata.push(("tokenizer.ggml.pre", OwnedValue::Str(pre.into())));
        with_metadata(&metadata, Tokenizer::from_metadata)
    };
    check_tokens(&with_pre("smollm").unwrap(), "tiny");
    let texts: Vec<_> =
        expected("tiny").into_iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    for pre in ["gpt-2", "llama-bpe", "qwen2"] {
        let tokenizer = with_pre(pre).unwrap();
        let all = expected(pre);
        assert_eq!(all.len(), texts.len());
        for (text, expected) in texts.iter().zip(&all) {
            assert_eq!(tokenizer.encode(text, false, false).unwrap(), ids(expected), "{pre}: {text:?}");
        }
    }
    let error = with_pre("tekken").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("tekken") && error.to_string().contains("lgconvert"), "{error}");
}

#[test]
fn a_plain_gguf_that_does_not_say_it_begins_texts_as_its_kind_of_model_does() {
    let adds_bos = |pre: &str, said: Option<bool>| {
        let mut metadata = tiny_metadata();
        metadata.push(("tokenizer.ggml.pre", OwnedValue::Str(pre.into())));
        metadata.extend(said.map(|said| ("tokenizer.ggml.add_bos_token", OwnedValue::Bool(said))));
        let tokenizer = with_metadata(&metadata, Tokenizer::from_metadata).unwrap();
        assert_eq!(tokenizer.encode("", false, true).unwrap().len(), usize::from(tokenizer.adds_bos()));
        tokenizer.adds_bos()
    };
    for pre in ["llama-bpe", "llama3", "llama-v3"] {
        assert!(adds_bos(pre, None) && !adds_bos(pre, Some(false)), "{pre}");
    }
    for pre in ["gpt-2", "smollm", "starcoder", "refact", "command-r", "qwen2", "deepseek-r1-qwen"] {
        assert!(!adds_bos(pre, None) && adds_bos(pre, Some(true)), "{pre}");
    }
}

#[test]
fn contradicting_metadata_is_refused_with_the_key() {
    let refuse = |key: &str, value: Option<OwnedValue>, reason: &str| {
        let mut metadata = tiny_metadata();
        metadata.push(("tokenizer.ggml.pre", OwnedValue::Str("smollm".into())));
        metadata.retain(|(name, _)| *name != key);
        metadata.extend(value.map(|value| (key, value)));
        let error = with_metadata(&metadata, Tokenizer::from_metadata).err().unwrap().to_string();
        assert!(error.contains(reason), "{key}: {error}");
    };
    let strings =
        |strings: &[&str]| Some(OwnedValue::Strs(strings.iter().map(|&text| text.to_owned()).collect()));
    refuse("tokenizer.ggml.pre", None, "tokenizer.ggml.pre");
    refuse("tokenizer.ggml.model", Some(OwnedValue::Str("bert".into())), "bert");
    refuse("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens");
    refuse("tokenizer.ggml.tokens", strings(&[]), "0 tokens");
    refuse("tokenizer.ggml.tokens", strings(&["a"]), "4096 entries for 1 tokens");
    refuse("tokenizer.ggml.token_type", Some(OwnedValue::I32s(vec![9; 4096])), "9");
    refuse("tokenizer.ggml.merges", strings(&["a b", "ab"]), "merges 1");
    refuse("tokenizer.ggml.merges", strings(&["a \u{4F60}"]), "\u{4F60}");
    refuse(
        "tokenizer.ggml.eos_token_id",
        Some(OwnedValue::U32(4096)),
        "tokenizer.ggml.eos_token_id: token 4096",
    );
    refuse("tokenizer.ggml.eot_token_id", Some(OwnedValue::U32(u32::MAX)), "4294967295");
    let foreign = r#"{"decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": 7, "content": "<z>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}]}"#;
    refuse("longgen.tokenizer.pipeline", Some(OwnedValue::Str(foreign.into())), "<z>");
    refuse("longgen.tokenizer.pipeline", Some(OwnedValue::Str("{".into())), "longgen.tokenizer.pipeline");
    let twice: Vec<&str> = std::iter::repeat_n("a", 4096).collect();
    refuse("tokenizer.ggml.tokens", strings(&twice), "both \"a\"");
}

/// A real file, which is not part of the repository: demanded by CI, optional elsewhere.
fn smollm2() -> Option<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let bytes = std::fs::read(path).ok();
    assert!(bytes.is_some() || std::env::var_os("CI").is_none(), "{path} is missing");
    if bytes.is_none() {
        println!("SKIPPED: {path} is missing");
    }
    bytes
}

#[test]
fn smollm2_tokens_are_those_of_python() {
    let Some(bytes) = smollm2() else { return };
    let directory = Directory::read(&bytes).unwrap();
    let tokenizer = Tokenizer::from_metadata(&directory.metadata).unwrap();
    check_tokens(&tokenizer, "smollm2");
    assert_eq!((tokenizer.n_vocab(), tokenizer.adds_bos()), (49152, false));
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let template = ChatTemplate::from_metadata(&directory.metadata).unwrap().unwrap();
    let text = template.render(&[message("user", "Hi")], true).unwrap();
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    assert_eq!(
        text,
        format!(
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )
    );
    let ids = tokenizer.encode(&text, true, true).unwrap();
    assert_eq!(ids.iter().filter(|&&id| tokenizer.is_end_of_generation(id)).count(), 2);
    assert_eq!((ids[0], tokenizer.decode(&ids, false)), (1, text));
}

#[test]
fn chat_templates_render_as_jinja2_does() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/text/chat.json")).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let message =
            |message: &Value| Message { role: text(&message["role"]), content: text(&message["content"]) };
        let messages: Vec<_> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let template = ChatTemplate::new(case["template"].as_str().unwrap(), &tokens).unwrap();
        let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = match &case["variables"] {
            Value::Null => template.render(&messages, add_generation_prompt),
            variables => template.render_with(&messages, &variables.to_string(), add_generation_prompt),
        };
        match (case["text"].as_str(), rendered) {
            (Some(expected), Ok(rendered)) => assert_eq!(rendered, expected, "{}", case["name"]),
            (None, Err(error)) => {
                let cause = case["error"].as_str().unwrap();
                assert!(error.to_string().contains(cause), "{}: {error} does not say {cause}", case["name"]);
                assert!(error.to_string().contains("line "), "{}: {error} names no line", case["name"]);
            }
            (expected, rendered) => panic!("{}: {rendered:?} instead of {expected:?}", case["name"]),
        }
    }
}

/// A byte-level vocabulary spells any text: nothing is lost, and nothing in a user's text is a control token.
fn check_any_text(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text, false, false).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{text:?} became {ids:?}");
    assert_eq!(tokenizer.decode(&ids, false), text);
    let mut stream = TextStream::new::<&str>([]);
    let mut streamed: String =
        ids.iter().map(|&id| stream.push_token(tokenizer, id).unwrap().to_owned()).collect();
    streamed += stream.finish().unwrap();
    assert_eq!(streamed, text);
}

proptest! {
    #[test]
    fn any_text_survives(text in "(\\PC|<\\|bos\\|>|<\\|eos\\|>|[\\x00-\\x20]){0,40}") {
        thread_local!(static TINY_TOKENIZER: Tokenizer = tiny());
        TINY_TOKENIZER.with(|tokenizer| check_any_text(tokenizer, &text));
    }
}

#[test]
fn beginning_of_text_comes_once_and_only_if_wanted() {
    let tokenizer = tiny();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(0), Some(1), true));
    assert_eq!(tokenizer.encode("", true, true).unwrap(), [0]);
    let plain = tokenizer.encode("some text", true, false).unwrap();
    let framed = [&[0], plain.as_slice()].concat();
    assert_eq!(tokenizer.encode("some text", true, true).unwrap(), framed);
    assert_eq!(tokenizer.encode("<|bos|>some text", true, true).unwrap(), framed);
    let quoted = tokenizer.encode("<|bos|>some text", false, true).unwrap();
    assert_eq!((quoted[0], tokenizer.decode(&quoted, true).as_str()), (0, "<|bos|>some text"));
}

#[test]
fn tokens_can_be_looked_up() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.n_vocab(), 4096);
    let space = tokenizer.encode(" ", false, false).unwrap()[0];
    assert_eq!((tokenizer.piece(space), tokenizer.token_bytes(space)), (Some("\u{120}"), Some(&b" "[..])));
    assert_eq!((tokenizer.piece(4096), tokenizer.token_bytes(4096)), (None, None));
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(space) && !tokenizer.is_special(4096));
    assert!(tokenizer.is_end_of_generation(1) && !tokenizer.is_end_of_generation(0));
    assert_eq!(tokenizer.decode(&[1, space, 4096, u32::MAX], false), "<|eos|> ");
    // A lone byte of a character: unfinished alone, whole with the others.
    let face = tokenizer.encode("\u{1F600}", false, false).unwrap();
    assert!(face.len() > 1);
    assert_eq!(tokenizer.decode(&face[..1], false), "\u{FFFD}");
}

#[test]
fn whitespace_beyond_the_limit_is_refused_rather_than_cut_wrongly() {
    let tokenizer = tiny();
    let text = " ".repeat(400_000) + "x hello";
    let ids = tokenizer.encode(&text, false, false).unwrap();
    assert_eq!(tokenizer.piece(ids[ids.len() - 3]), Some("\u{120}x"), "split before the last space");
    let error = tokenizer.encode(&" \n".repeat(300_000), false, false).unwrap_err();
    assert!(error.to_string().contains("600000"), "{error}");
}

#[test]
fn taking_a_tokenizer_apart_keeps_what_the_file_needs() {
    let parts = split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap();
    assert_eq!(parts, split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap());
    assert_eq!((parts.model, parts.tokens.len(), parts.merges.len()), ("gpt2", 4096, 3838));
    assert_eq!((parts.bos, parts.eos, parts.unk, parts.pad), (Some(0), Some(1), None, None));
    assert_eq!((parts.add_bos, parts.add_eos, parts.chat_template), (true, false, None));
    assert_eq!(parts.token_types[..3], [3, 3, 1]);
    assert_eq!(parts.merges[0], "\u{120} \u{120}");
    let pipeline: Value = serde_json::from_str(&parts.pipeline).unwrap();
    let source: Value = serde_json::from_str(TINY).unwrap();
    for key in ["normalizer", "pre_tokenizer", "decoder", "added_tokens"] {
        assert_eq!(pipeline[key], source[key]);
    }
    assert!(parts.pipeline.len() < 2000, "the vocabulary is not in the pipeline: {}", parts.pipeline);
}

#[test]
fn merges_may_be_strings_or_pairs() {
    let mut source: Value = serde_json::from_str(TINY).unwrap();
    let pairs = source["model"]["merges"].as_array_mut().unwrap();
    assert!(pairs[0].is_array());
    for merge in pairs {
        *merge = Value::from(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    let parts = split_hf_tokenizer(&source.to_string(), Some(TINY_CONFIG)).unwrap();
    assert_eq!(parts, split_hf_tokenizer(TINY, Some(TINY_CONFIG)).unwrap());
}

#[test]
fn special_tokens_of_the_configuration() {
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "add_eos_token": true,
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]}"#;
    let parts = split_hf_tokenizer(SPACES, Some(config)).unwrap();
    assert_eq!((parts.bos, parts.eos, parts.unk, parts.pad), (Some(1), Some(2), Some(0), None));
    assert_eq!((parts.add_bos, parts.add_eos, parts.chat_template.as_deref()), (false, true, Some("y")));
    // <unk> is special, then 256 bytes, then text, then the added token.
    assert_eq!(parts.token_types[..4], [3, 3, 3, 6]);
    assert_eq!(
        parts.token_types[parts.tokens.iter().position(|token| token == "\u{2581}\u{2581}").unwrap()],
        4
    );

    // A template that frames the text says the same without a configuration.
    let mut source: Value = serde_json::from_str(SPACES).unwrap();
    source["post_processor"] = serde_json::json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let parts = split_hf_tokenizer(&source.to_string(), None).unwrap();
    assert_eq!((parts.bos, parts.add_bos, parts.add_eos), (Some(1), true, false));
}

/// Words that are whole tokens skip the merges in some models: control tokens must not come in that way.
#[test]
fn a_control_token_cannot_be_spelt_by_text() {
    let source = r#"{"added_tokens": [{"id": 2, "content": "<x>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "ignore_merges": true, "vocab":
        {"<": 0, "x": 1, "<x>": 2, ">": 3, "<x": 4}, "merges": ["< x", "<x >"]}}"#;
    let tokenizer = split_hf_tokenizer(source, None).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("<x> x", true, false).unwrap(), [2, 1]);
    assert_eq!(tokenizer.encode("<x> x", false, false).unwrap(), [4, 3, 1]);
}

#[test]
fn unusable_tokenizers_are_refused_with_the_reason() {
    let refuse = |pointer: &str, value: &str, reason: &str| {
        let mut source: Value = serde_json::from_str(SPACES).unwrap();
        let node = source.pointer_mut(pointer).unwrap();
        *node = serde_json::from_str(value).unwrap();
        let error = split_hf_tokenizer(&source.to_string(), None).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer} = {value}: {error}");
    };
    refuse("/model/type", r#""Unigram""#, "Unigram");
    refuse("/model/vocab/a", "1000", "1000");
    refuse("/model/vocab/a", "5", "id 5");
    refuse("/model/vocab/a", "-1", "-1");
    refuse("/model/vocab", "[]", "model.vocab");
    refuse("/model/merges", "null", "model.merges");
    refuse("/model/merges", r#"[["a b", "c"]]"#, "merge 0");
    refuse("/model/merges", r#"["a b", "ab"]"#, "merge 1");
    refuse("/model/end_of_word_suffix", r#""</w>""#, "end_of_word_suffix");
    refuse("/normalizer", r#"{"type": "Precompiled", "precompiled_charsmap": "!"}"#, "Precompiled");
    refuse("/normalizer", r#"{"type": "Sequence", "normalizers": [{"type": "Nmt"}]}"#, "Nmt");
    refuse(
        "/pre_tokenizer",
        r#"{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}"#,
        "pre-tokenizer",
    );
    refuse("/pre_tokenizer", r#"{"type": "FixedLength", "length": 0}"#, "FixedLength");
    refuse("/decoder", "null", "decoder");
    refuse("/decoder", r#"{"type": "WordPiece", "prefix": "", "cleanup": true}"#, "WordPiece");
    refuse("/added_tokens", r#"[{"id": 1}]"#, "added token");
    refuse("/post_processor", r#"{"type": "BertProcessing"}"#, "BertProcessing");
    assert!(split_hf_tokenizer("{", None).unwrap_err().to_string().contains("tokenizer.json"));
    let config = r#"{"eos_token": "<nowhere>"}"#;
    assert!(split_hf_tokenizer(SPACES, Some(config)).unwrap_err().to_string().contains("<nowhere>"));
}

/// Every node of a pipeline, replaced by every kind of nonsense, is an error or a tokenizer, never a panic.
#[test]
fn damaged_pipelines_do_not_panic() {
    let parts = split_hf_tokenizer(SPACES, None).unwrap();
    let pipeline: Value = serde_json::from_str(&parts.pipeline).unwrap();
    let mut pointers = Vec::new();
    collect_pointers(&pipeline, String::new(), &mut pointers);
    assert!(pointers.len() > 40);
    let nonsense =
        ["null", "true", "-1", "1e99", "4294967296", "\"\"", r#""\u0000""#, "\"<0x41>\"", "[]", "{}"];
    let mut accepted = 0;
    for pointer in &pointers {
        for value in nonsense {
            let mut damaged = pipeline.clone();
            *damaged.pointer_mut(pointer).unwrap() = serde_json::from_str(value).unwrap();
            let mut parts = parts.clone();
            parts.pipeline = damaged.to_string();
            if let Ok(tokenizer) = parts.tokenizer() {
                accepted += 1;
                let ids =
                    tokenizer.encode(" the <s> \u{e9}\u{1F600}  Hell\n12", true, true).unwrap_or_default();
                tokenizer.decode(&ids, true);
            }
        }
    }
    assert!(accepted > 0, "flags may be missing");
}

fn collect_pointers(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect_pointers(item, format!("{pointer}/{index}"), pointers);
            }
        }
        Value::Object(entries) => {
            for (key, entry) in entries {
                collect_pointers(entry, format!("{pointer}/{key}"), pointers);
            }
        }
        _ => {}
    }
    pointers.push(pointer);
}

/// What a stream must give in all: the lossy text up to the stop string that is complete first, and the number of that.
fn streamed_text(bytes: &[u8], stops: &[String]) -> (String, Option<usize>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    for end in 0..=text.len() {
        let ends_here =
            |stop: &&String| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
        if let Some(stop) = stops.iter().filter(ends_here).max_by_key(|stop| stop.len()) {
            let first = stops.iter().position(|other| other == stop);
            return (text[..end - stop.len()].to_owned(), first);
        }
    }
    (text, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_stream_gives_the_whole_text(
        pieces in prop::collection::vec(prop_oneof![
            "[ab#\u{e9}\u{1F600}]{0,4}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec![&b"\xF0\x9F"[..], b"\x98\x80", b"\xE2", b"\xED\xA0\x80", b"\xC0\x80"]).prop_map(<[u8]>::to_vec),
        ], 0..12),
        stops in prop::collection::vec("[ab#\u{e9}\u{FFFD}]{0,3}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let bytes = pieces.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut stream = TextStream::new(stops.clone());
        let (mut text, mut start) = (String::new(), 0);
        for cut in cuts.into_iter().chain([bytes.len()]) {
            text += stream.push(&bytes[start..cut]).unwrap();
            start = cut;
        }
        text += stream.finish().unwrap();
        let (expected, stopped) = streamed_text(&bytes, &stops);
        prop_assert_eq!(text, expected);
        prop_assert_eq!(stream.stop_index(), stopped);
        if stream.stop_index().is_some() {
            prop_assert_eq!(stream.push(b"x").unwrap(), "");
        }
    }
}

#[test]
fn a_stream_holds_back_only_what_may_become_a_stop() {
    let mut stream = TextStream::new(["<|user|>", "\n\n"]);
    assert_eq!(stream.push(b"one").unwrap(), "one");
    assert_eq!(stream.push(b" <").unwrap(), " ");
    assert_eq!(stream.push(b"|us").unwrap(), "");
    assert_eq!(stream.push(b"ing|>").unwrap(), "<|using|>");
    assert_eq!(stream.push(b"\n").unwrap(), "");
    assert_eq!(stream.push(b"two\n").unwrap(), "\ntwo");
    assert_eq!(stream.finish().unwrap(), "\n");
    assert_eq!(stream.push(b"x<|user|>y").unwrap(), "x");
    assert_eq!(stream.finish().unwrap(), "");
    assert_eq!(stream.stop_index(), Some(0));
}

fn render(template: &str) -> longgen::Result<String> {
    let messages = [Message { role: "user".into(), content: "hello".into() }];
    ChatTemplate::new(template, &[])?.render(&messages, true)
}

#[test]
fn variables_that_make_no_sense_are_refused() {
    let template = ChatTemplate::new("{{ messages | length }}{{ x }}", &[]).unwrap();
    let message = [Message { role: "user".into(), content: "hello".into() }];
    assert_eq!(template.render_with(&message, "", false).unwrap(), "1");
    assert_eq!(template.render_with(&message, r#"{"x": "!"}"#, false).unwrap(), "1!");
    assert_eq!(template.render_with(&[], r#"{"messages": [1, 2], "x": 7}"#, false).unwrap(), "27");
    let deep = format!("{{\"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (messages, variables, part) in [
        (&message[..], r#"{"messages": []}"#, "messages are given twice"),
        (&message, " ", "EOF"),
        (&message, "[]", "expected a map"),
        (&message, "null", "expected a map"),
        (&message, r#"{"x": 1"#, "line 1 column 7"),
        (&message, r#"{"x": NaN}"#, "no JSON object"),
        (&message, &deep, "recursion limit"),
    ] {
        let error = template.render_with(messages, variables, false).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn chat_templates_tell_the_date() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year >= 2025, "{year}");
    assert!(render("{{ strftime_now('%Q') }}").unwrap_err().to_string().contains("%Q"));
    let template =
        ChatTemplate::new("{{ strftime_now('%F %T') }}", &[]).unwrap().with_clock(|| 1_721_296_984);
    assert_eq!(template.render(&[], false).unwrap(), "2024-07-18 10:03:04");
}

#[test]
fn broken_chat_templates_name_line_and_cause() {
    let error = ChatTemplate::new("fine\n{% if %}", &[]).unwrap_err();
    assert!(error.kind() == ErrorKind::Format && error.to_string().contains("line 2"), "{error}");
    let error = render("\n\n{{ raise_exception('no roles') }}").unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("line 3") && error.to_string().contains("no roles"), "{error}");
    let error = render("{{ messages | nonsense }}").unwrap_err().to_string();
    assert!(error.contains("nonsense"), "{error}");
    let error = render("{% for m in messages %}{% with %}{% break %}{% endwith %}{% endfor %}").unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid, "what makes the engine panic is an error: {error}");
    assert_eq!(render("[{{ bos_token }}]").unwrap(), "[]", "a token that the model lacks is nothing");
}

#[test]
fn chat_templates_cannot_run_for_ever() {
    for endless in [
        "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ range(9999) | list | tojson(separators=('x' * 999999, '')) }}",
        "{{ range(9999) | list | tojson(indent='x' * 999999) }}",
    ] {
        assert!(render(endless).is_err());
    }
    let long = "a fine day. ".repeat(1_000_000);
    let messages = [Message { role: "user".into(), content: long.clone() }];
    let template = ChatTemplate::new("{{ messages[0].content.strip() ~ '.' }}", &[]).unwrap();
    assert_eq!(template.render(&messages, true).unwrap().len(), long.len());
}
