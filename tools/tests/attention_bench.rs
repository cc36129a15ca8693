//! `lgeval bench-attention` as its user sees it: what it counts, against the README's definitions, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::Value;
use support::program::*;

const LGEVAL: &str = env!("CARGO_BIN_EXE_lgeval");

fn bench(flags: &str) -> Value {
    let mut args = vec!["bench-attention", "--json", "--device", "cpu", "-r", "1"];
    args.extend(flags.split_whitespace());
    let printed = printed(&run(LGEVAL, &args));
    assert_eq!(printed.lines().count(), 1);
    serde_json::from_str(&printed).unwrap()
}

/// What a case is.
struct Case {
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    tokens: u64,
    queries: u64,
}

/// Checks the counts of a case, given who sees whom: (query head, query, key).
fn assert_counts(flags: &str, case: &Case, row_bytes: u64, sees: impl Fn(u64, u64, u64) -> bool) {
    let Case { heads, kv_heads, head_dim, tokens, queries } = *case;
    let shape = format!("--heads {heads} --kv-heads {kv_heads} --head-dim {head_dim} --tokens {tokens}");
    let found = bench(&format!("{shape} {flags}"));
    for (key, expected) in [
        ("heads", heads),
        ("kv_heads", kv_heads),
        ("head_dim", head_dim),
        ("tokens", tokens),
        ("queries", queries),
    ] {
        assert_eq!(found[key], expected, "{key} of {flags}");
    }
    let ms = &found["ms"];
    let [min, median, max] = ["min", "median", "max"].map(|key| ms[key].as_f64().unwrap());
    assert!(0.0 < min && min <= median && median <= max, "{ms}");

    let mut pairs = 0;
    for head in 0..heads {
        for query in tokens - queries..tokens {
            pairs += (0..=query).filter(|&key| sees(head, query, key)).count() as u64;
        }
    }
    assert_eq!(found["pairs"], pairs, "{flags}");
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{flags}: {a}, not {b}");
    close(found["tflops"].as_f64().unwrap() * median * 1e9, (4 * head_dim * pairs) as f64);

    if queries > 1 {
        assert_eq!(found["gbs"], Value::Null);
        return;
    }
    let group = heads / kv_heads;
    let is_read =
        |kv_head, key| (kv_head * group..(kv_head + 1) * group).any(|head| sees(head, tokens - 1, key));
    let n_read = (0..kv_heads)
        .map(|kv_head| (0..tokens).filter(|&key| is_read(kv_head, key)).count() as u64)
        .sum::<u64>();
    close(found["gbs"].as_f64().unwrap() * median * 1e6, (n_read * 2 * row_bytes) as f64);
    // So many caches that the first one's keys and values are forgotten when it comes again.
    assert!(found["caches"].as_u64().unwrap() * n_read * 2 * row_bytes >= 256 << 20);
}

#[test]
fn what_is_counted_is_what_the_mask_shows() {
    let all = |_, _, _| true;
    let case = Case { heads: 3, kv_heads: 3, head_dim: 32, tokens: 333, queries: 333 };
    assert_counts("", &case, 0, all);
    assert_counts("--attention full --kv q8", &case, 0, all);
    let chunk = Case { heads: 4, kv_heads: 2, tokens: 2500, queries: 30, ..case };
    assert_counts("--chunk 30 --kv f32 --precision exact", &chunk, 0, all);

    let sink = |_, i: u64, j: u64| i / 16 - j / 16 < 3 || j / 16 < 2;
    let flags = "--attention longgen-sink --block 16 --local 3 --sink 2";
    assert_counts(flags, &case, 0, sink);
    assert_counts(&format!("{flags} --chunk 30"), &chunk, 0, sink);

    // Phases that differ within the group of a KV head: it reads what any of them sees.
    let strided = |head: u64, i: u64, j: u64| {
        i / 16 - j / 16 < 3 || (j / 16 + [0, 1, 2, 2][usize::try_from(head).unwrap()]).is_multiple_of(4)
    };
    let flags = "--attention longgen-blocks --block 16 --local 3 --stride 4 --phases 0,1,2,2";
    assert_counts(&format!("{flags} --chunk 30"), &chunk, 0, strided);
    let decode = Case { head_dim: 64, tokens: 5001, queries: 1, ..chunk };
    assert_counts(&format!("{flags} --decode --kv bf16"), &decode, 2 * 64, strided);
    assert_counts("--decode --kv q8", &decode, 64 + 2, all);
}

#[test]
fn of_a_preset_the_sparse_layer_is_timed() {
    let found = bench("--heads 2 --kv-heads 2 --head-dim 16 --tokens 70 --attention longgen-blocks");
    assert_eq!(found["attention"]["kind"], "blocks");
    assert_eq!(found["attention"]["phases"], Value::from(vec![0, 32]));
    assert_eq!(found["kv"], "f16");
    let found = bench("--heads 2 --kv-heads 2 --head-dim 16 --tokens 70");
    assert_eq!(found["attention"]["kind"], "full");
}

#[test]
fn people_get_the_same_in_a_line() {
    let flags =
        "bench-attention --heads 2 --kv-heads 1 --head-dim 16 --tokens 3000 --decode -r 2 --device cpu";
    let printed = printed(&run(LGEVAL, &flags.split_whitespace().collect::<Vec<_>>()));
    let (device, line) = printed.split_once('\n').unwrap();
    assert!(device.starts_with("CPU"), "{device}");
    assert!(line.contains(" ms ") && line.contains(" TFLOP/s ") && line.ends_with(" GB/s\n"), "{line}");
}

#[test]
fn what_cannot_be_timed_is_refused() {
    for (flags, parts) in [
        ("--heads 3 --kv-heads 2", &["3 query heads", "2 kv heads"][..]),
        ("--tokens 100 --chunk 101", &["--chunk 101", "--tokens 100"]),
        ("--full-layers 0 --attention longgen-sink", &["--full-layers", "only one"]),
        ("--local 3", &["--local", "longgen-sink"]),
        ("--attention longgen-sink --local 0", &["local_blocks 0"]),
        ("--attention longgen-blocks --phases 1,2,3", &["--phases", "3 numbers", "32"]),
        ("--attention missing.json", &["missing.json"]),
        ("--device cpu --tokens 1000000000 --heads 4096 --kv-heads 4096 --head-dim 4096", &["bytes"]),
    ] {
        let args: Vec<_> = ["bench-attention"].into_iter().chain(flags.split_whitespace()).collect();
        assert_refused(LGEVAL, &args, parts);
    }
    #[cfg(feature = "cuda")]
    assert_refused(
        LGEVAL,
        &["bench-attention", "--portable", "--device", "cpu"],
        &["--portable", "--device cuda"],
    );
    // Numbers that no attention has are refused as any flag's.
    for flag in ["--heads", "--kv-heads", "--head-dim", "--tokens", "--chunk", "--repeat"] {
        let output = run(LGEVAL, &["bench-attention", flag, "0"]);
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(flag) && message.contains("'0'"), "{message}");
    }
}
