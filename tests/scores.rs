//! Tokenizers of GGUF files with scores, as SentencePiece makes them, against brute force.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use longgen::ErrorKind;
use longgen::text::{Tokenizer, pipeline_of};
use longgen_format::OwnedValue;
use proptest::prelude::*;
use support::metadata::with_metadata;

const UNKNOWN: u32 = 0;

/// `<unk>`, `<s>`, `</s>`, the bytes if wanted, then these pieces with their scores.
fn keys(pieces: &[(String, f32)], bytes: bool) -> Vec<(&'static str, OwnedValue)> {
    let n_bytes = if bytes { 256 } else { 0 };
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..n_bytes).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.iter().map(|(piece, _)| piece.clone()));
    let mut types = [vec![2, 3, 3], vec![6; n_bytes]].concat();
    let mut scores = vec![0.0; types.len()];
    types.resize(tokens.len(), 1);
    scores.extend(pieces.iter().map(|(_, score)| *score));
    vec![
        ("general.architecture", OwnedValue::Str("llama".into())),
        ("tokenizer.ggml.model", OwnedValue::Str("llama".into())),
        ("tokenizer.ggml.tokens", OwnedValue::Strs(tokens)),
        ("tokenizer.ggml.scores", OwnedValue::F32s(scores)),
        ("tokenizer.ggml.token_type", OwnedValue::I32s(types)),
        ("tokenizer.ggml.bos_token_id", OwnedValue::U32(1)),
        ("tokenizer.ggml.eos_token_id", OwnedValue::U32(2)),
        ("tokenizer.ggml.unknown_token_id", OwnedValue::U32(UNKNOWN)),
    ]
}

fn tokenizer(keys: &[(&str, OwnedValue)]) -> Tokenizer {
    with_metadata(keys, Tokenizer::from_metadata).unwrap()
}

/// A few words with the scores of a training: earlier ones are higher.
fn words() -> Vec<(String, f32)> {
    let pieces =
        ["▁", "t", "h", "e", "l", "o", "▁t", "he", "▁the", "lo", "hel", "▁hel", "▁hello", "hello", "▁▁"];
    (0i16..).zip(pieces).map(|(i, piece)| (piece.to_owned(), -f32::from(i))).collect()
}

/// Joins the leftmost of the best neighbours, looking at all of them each time.
fn by_hand(text: &str, pieces: &[(String, f32)]) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..parts.len() {
            let joined = parts[i - 1].clone() + &parts[i];
            if let Some((_, score)) = pieces.iter().find(|(piece, _)| *piece == joined)
                && best.is_none_or(|(highest, _)| *score > highest)
            {
                best = Some((*score, i));
            }
        }
        let Some((_, i)) = best else { return parts };
        let right = parts.remove(i);
        parts[i - 1] += &right;
    }
}

/// Pieces of few letters, many of which overlap, and some of which are equals; spaces anywhere in them, or in front only.
fn any_pieces() -> impl Strategy<Value = Vec<(String, f32)>> {
    let score = || prop::sample::select(vec![0.0, -0.0, -1.0, -2.5, -3.0, f32::NEG_INFINITY, 1e9, -1e9]);
    let pieces = prop_oneof![
        prop::collection::btree_map("[ab▁]{1,5}", score(), 1..30),
        prop::collection::btree_map("▁{0,2}[ab]{1,3}|▁{1,5}", score(), 1..30),
    ];
    pieces.prop_map(|pieces| pieces.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn the_best_neighbours_are_joined_first(pieces in any_pieces(), text in "[ab▁c]{1,40}") {
        let mut keys = keys(&pieces, false);
        keys.push(("tokenizer.ggml.add_space_prefix", OwnedValue::Bool(false)));
        let tokenizer = tokenizer(&keys);
        let id = |part: &String| {
            let index = pieces.iter().position(|(piece, _)| piece == part);
            index.map_or(UNKNOWN, |index| u32::try_from(index + 3).unwrap())
        };
        let mut expected: Vec<u32> = by_hand(&text, &pieces).iter().map(id).collect();
        // Unknown characters in a row are one token.
        expected.dedup_by(|a, b| (*a, *b) == (UNKNOWN, UNKNOWN));
        prop_assert_eq!(tokenizer.encode(&text, false, false).unwrap(), expected);
    }

    #[test]
    fn any_text_survives_in_a_vocabulary_with_bytes(text in "(\\PC|[\\x00-\\x20]|hello|  |</s>|<0x41>){0,40}") {
        thread_local!(static TOKENIZER: Tokenizer = tokenizer(&keys(&words(), true)));
        TOKENIZER.with(|tokenizer| {
            let ids = tokenizer.encode(&text, false, false).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{:?} became {:?}", text, ids);
            // SentencePiece has no other way to write the character that stands for a space.
            prop_assert_eq!(tokenizer.decode(&ids, false), text.replace('▁', " "));
            Ok(())
        })?;
    }
}

#[test]
fn texts_begin_with_a_space_unless_the_file_forbids_it() {
    let pieces = |tokenizer: &Tokenizer, text: &str, special: bool| -> Vec<String> {
        let ids = tokenizer.encode(text, special, true).unwrap();
        ids.iter().map(|&id| tokenizer.piece(id).unwrap().to_owned()).collect()
    };
    let mut keys = keys(&words(), true);
    let prefixed = tokenizer(&keys);
    assert!(prefixed.adds_bos());
    assert_eq!(pieces(&prefixed, "hello the", false), ["<s>", "▁hello", "▁the"]);
    assert_eq!(pieces(&prefixed, " hello", false), ["<s>", "▁", "▁hello"]);
    assert_eq!(pieces(&prefixed, "", false), ["<s>"]);
    assert_eq!(pieces(&prefixed, "hello</s>hello", true), ["<s>", "▁hello", "</s>", "▁hello"]);
    assert_eq!(pieces(&prefixed, "é", false), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(prefixed.decode(&prefixed.encode("  hello", false, false).unwrap(), false), "  hello");

    keys.push(("tokenizer.ggml.add_space_prefix", OwnedValue::Bool(false)));
    keys.push(("tokenizer.ggml.add_bos_token", OwnedValue::Bool(false)));
    let bare = tokenizer(&keys);
    assert!(!bare.adds_bos());
    assert_eq!(pieces(&bare, "hello the", false), ["hello", "▁the"]);
    assert_eq!(bare.decode(&bare.encode(" hello", false, false).unwrap(), false), " hello");
}

#[test]
fn a_stored_pipeline_says_what_the_keys_say() {
    let texts = ["hello the", "  the\u{e9} </s>", ""];
    for prefix in [true, false] {
        let mut keys = keys(&words(), true);
        keys.push(("tokenizer.ggml.add_space_prefix", OwnedValue::Bool(prefix)));
        let plain = tokenizer(&keys);
        let pipeline = with_metadata(&keys, pipeline_of).unwrap();
        keys.retain(|(key, _)| *key != "tokenizer.ggml.add_space_prefix");
        keys.push(("longgen.tokenizer.pipeline", OwnedValue::Str(pipeline)));
        let stored = tokenizer(&keys);
        for text in texts {
            let ids = plain.encode(text, true, true).unwrap();
            assert_eq!(stored.encode(text, true, true).unwrap(), ids);
            assert_eq!(stored.decode(&ids, true), plain.decode(&ids, true));
        }
    }
}

#[test]
fn a_text_of_one_long_run_is_no_matter() {
    let tokenizer = tokenizer(&keys(&words(), true));
    let text = "lo".repeat(500_000);
    assert_eq!(tokenizer.encode(&text, false, false).unwrap().len(), 500_001);
}

#[test]
fn unusable_scores_are_refused_with_the_key() {
    let refuse = |key: &'static str, value: Option<OwnedValue>, bytes: bool, reason: &str| {
        let mut keys = keys(&words(), bytes);
        keys.retain(|(name, _)| *name != key);
        keys.extend(value.map(|value| (key, value)));
        let error = with_metadata(&keys, Tokenizer::from_metadata).err().unwrap();
        assert!(error.to_string().contains(reason), "{key}: {error}");
        error.kind()
    };
    let scores = |nan: usize, n: usize| {
        let score = |i| if i == nan { f32::NAN } else { 0.0 };
        Some(OwnedValue::F32s((0..n).map(score).collect()))
    };
    let key = "tokenizer.ggml.scores";
    assert_eq!(refuse(key, None, true, key), ErrorKind::Format);
    refuse(key, scores(99, 17), false, "17 entries for 18 tokens");
    refuse(key, scores(4, 18), false, "tokenizer.ggml.scores 4, of \"t\"");
    let key = "tokenizer.ggml.remove_extra_whitespaces";
    assert_eq!(refuse(key, Some(OwnedValue::Bool(true)), true, key), ErrorKind::Unsupported);
    let key = "tokenizer.ggml.unknown_token_id";
    refuse(key, Some(OwnedValue::U32(18)), false, "18 is no token");
    refuse(key, None, false, key);
    let twice = (0..274).map(|_| "a".to_owned()).collect();
    refuse("tokenizer.ggml.tokens", Some(OwnedValue::Strs(twice)), true, "both \"a\"");
}
