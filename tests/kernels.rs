//! The integers of the CUDA kernels against those of the runtime, without a GPU: `kernels/common/slots.cuh` and
//! `mask.cuh` compile as plain C++.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use longgen::attention::mask::Mask;
use longgen::backend::args::StepRows;
use longgen::kv::slots::SlotMap;
use support::random::Random;
use support::workshop::chosen;

/// The compiled program.
fn program(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join("integers");
    let mut command = chosen("c++");
    command.args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-x", "c++"]);
    command.arg("-I").arg(root.join("kernels/common")).arg(root.join("tests/kernels/integers.cpp"));
    assert!(command.arg("-o").arg(&program).status().unwrap().success());
    program
}

/// A line per case.
fn ask(program: &Path, what: &str, cases: &[Vec<u32>]) -> Vec<String> {
    let mut child =
        Command::new(program).arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let words: Vec<String> = cases.iter().flatten().map(u32::to_string).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(words.join(" ").as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), cases.len());
    lines
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}

fn random_mask(random: &mut Random) -> Mask {
    match random.below(5) {
        0 => Mask::Full,
        1 => Mask::Window {
            window_tokens: number(1 + random.below(400)),
            sink_tokens: number(random.below(150)),
        },
        _ => Mask::Blocks {
            block_size: 16 << random.below(5),
            local_blocks: number(1 + random.below(6)),
            sink_blocks: number(random.below(3)),
            stride: number(random.below(9)),
        },
    }
}

/// As `Mask` in mask.cuh.
fn mask_numbers(mask: &Mask) -> Vec<u32> {
    let (block_size, sinks) = (mask.block_size(), mask.sink_blocks());
    match *mask {
        Mask::Full => vec![0, 0, 0, block_size, 0, sinks, 0],
        Mask::Window { window_tokens, sink_tokens } => {
            vec![1, window_tokens, sink_tokens, block_size, 0, sinks, 0]
        }
        Mask::Blocks { local_blocks, stride, .. } => vec![2, 0, 0, block_size, local_blocks, sinks, stride],
    }
}

fn joined<T: ToString>(words: impl Iterator<Item = T>) -> String {
    words.map(|word| word.to_string() + " ").collect()
}

#[test]
fn kernels_find_the_slots_that_the_runtime_gives() {
    let folder = tempfile::tempdir().unwrap();
    let (program, mut random) = (program(folder.path()), Random::new(31));
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..3000 {
        let mask = random_mask(&mut random);
        let (n_kv_heads, group) = (number(1 + random.below(4)), 1 + random.below(4));
        let phases: Vec<u32> = (0..n_kv_heads as usize * group).map(|_| number(random.below(9))).collect();
        let n_ctx = number(1 + random.below(4000));
        let map = SlotMap::new(&mask, &phases, n_kv_heads, n_ctx).unwrap();
        let n_blocks = n_ctx.div_ceil(mask.block_size());
        let words = map.words();
        cases.push([&[number(words.len())], &words[..], &[n_kv_heads, n_blocks]].concat());
        let all = (0..n_kv_heads).flat_map(|head| (0..n_blocks).map(move |block| (head, block)));
        expected.push(joined(
            all.flat_map(|(head, block)| [map.slot(head, block), u32::from(map.is_pinned(head, block))]),
        ));
    }
    for ((has, expected), case) in ask(&program, "slots", &cases).iter().zip(&expected).zip(&cases) {
        assert_eq!(has, expected, "{case:?}");
    }
}

#[test]
fn kernels_see_what_the_runtime_sees() {
    let folder = tempfile::tempdir().unwrap();
    let (program, mut random) = (program(folder.path()), Random::new(32));
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..3000 {
        let (mask, phase) = (random_mask(&mut random), number(random.below(9)));
        let last = number(random.below(2000));
        let first = last - number(random.below(last as usize + 1).min(200));
        cases.push([&mask_numbers(&mask)[..], &[phase, first, last]].concat());
        let seen = joined((0..=last).map(|j| u32::from(mask.sees(last, j, phase))));
        expected.push(format!("{seen}| {}", joined(mask.visible_blocks(first, last, phase))));
    }
    for ((has, expected), case) in ask(&program, "mask", &cases).iter().zip(&expected).zip(&cases) {
        assert_eq!(has, expected, "{case:?}");
    }
}

#[test]
fn kernels_find_the_blocks_of_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let (program, mut random) = (program(folder.path()), Random::new(33));
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..3000 {
        let rows =
            StepRows { row: 0, n_tokens: number(1 + random.below(500)), pos: number(random.below(3000)) };
        let (block_size, n_blocks) = (16 << random.below(5), number(1 + random.below(20)));
        cases.push(vec![rows.row, rows.n_tokens, rows.pos, block_size, n_blocks]);
        expected.push(format!("{} {}", rows.last_block(block_size), rows.first_block(block_size, n_blocks)));
    }
    assert_eq!(ask(&program, "step", &cases), expected);
}
