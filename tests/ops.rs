//! Every op against the oracle, at every level of instructions and for several threads, on random numbers, odd shapes
//! and poisoned memory; and the promise that a result's bits do not depend on what else was computed with it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[cfg(feature = "cuda")]
#[path = "ops/cuda.rs"]
mod cuda;
mod support;

use longgen::attention::mask::Mask;
use longgen::backend::Backend;
use longgen::backend::args::*;
use longgen::backend::cpu::{CpuBackend, SimdLevel};
use longgen::backend::reference::ReferenceBackend;
use longgen::kv::slots::SlotMap;
use longgen::{Cancel, ErrorKind};
use support::compare::{ROUNDING, Tolerance, assert_close, assert_same_bits};
use support::random::Random;
use support::rig::{Context, Lie, Mlp, Part, Product, Rig, SHAPE, Taken, random_weight};

/// Every instance of the CPU backend, with its name.
fn backends() -> Vec<(String, CpuBackend)> {
    let levels = SimdLevel::available();
    assert!(levels.contains(&SimdLevel::Portable));
    let instance = |level, n_threads| {
        (format!("{level:?} x {n_threads}"), CpuBackend::with_level(n_threads, level).unwrap())
    };
    levels.iter().flat_map(|&level| [1, 2, 3].map(|n_threads| instance(level, n_threads))).collect()
}

/// The same check of every instance of every backend that this build and this machine have.
macro_rules! on_every_backend {
    (|$name:ident, $backend:ident| $check:block) => {
        for ($name, $backend) in backends() $check
        #[cfg(feature = "cuda")]
        for ($name, $backend) in cuda::backends() $check
    };
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

fn random_products(random: &mut Random, cols: usize, n_rows: usize) -> Vec<Product> {
    let types = if cols.is_multiple_of(32) { &TensorType::ALL[..] } else { &TensorType::ALL[..3] };
    let product = |random: &mut Random| {
        let rows = pick(random, &[1, 2, 3, 15, 16, 17, 33, 64, 70, 130, 264]);
        let (ty, bias) = (pick(random, types), random.below(2) == 1);
        Product {
            w: random_weight(random, ty, rows, cols),
            bias: bias.then(|| random.vector(rows, 1.0)),
            before: random.vector(n_rows * rows, 1.0),
        }
    };
    (0..1 + random.below(6)).map(|_| product(random)).collect()
}

/// Rows as they are, or their norm.
fn random_input(random: &mut Random, n_rows: usize, cols: usize) -> Taken {
    let first_row = random.below(3);
    match random.below(2) {
        0 => Taken { x: random.vector(n_rows * cols, 1.0), norm: None },
        _ => Taken {
            x: random.vector((first_row + n_rows) * cols, 4.0),
            norm: Some((first_row, random.vector(cols, 2.0))),
        },
    }
}

/// Numbers that 8 bits with one scale per block of 32 can hold: whole multiples of a power of two up to 127 of it.
fn exact_in_8_bits(random: &mut Random, n: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(n);
    while x.len() < n {
        let scale = 0.5f32.powi(random.below(9) as i32 + 3);
        let most = random.below(32);
        x.extend((0..32).map(|i| if i == most { 127.0 } else { random.below(255) as f32 - 127.0 } * scale));
    }
    x.truncate(n);
    x
}

#[test]
fn matmul_in_f32_is_the_oracles() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(1);
        for case in 0..25 {
            let cols = pick(&mut random, &[1, 7, 16, 31, 32, 33, 64, 96, 100, 320, 2080]);
            let n_rows = pick(&mut random, &[1, 2, 3, 4, 5, 8, 9, 31]);
            let products = random_products(&mut random, cols, n_rows);
            let x = random_input(&mut random, n_rows, cols);
            let add = random.below(2) == 1;
            let expected = Rig::new(&oracle, Precision::Exact).matmul_with(&products, &x, n_rows, add);
            let has = Rig::new(&backend, Precision::Exact).matmul_with(&products, &x, n_rows, add);
            let what = format!("{name}, case {case}: {n_rows} rows of {cols}, norm: {}", x.norm.is_some());
            assert_close(&what, &has, &expected, Tolerance { absolute: 2e-4, ..ROUNDING });
        }
    });
}

#[test]
fn matmul_in_8_bits_is_the_oracles_where_8_bits_are_enough() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(2);
        for case in 0..25 {
            let cols = 32 * pick(&mut random, &[1, 2, 3, 7, 20]);
            let n_rows = pick(&mut random, &[1, 2, 3, 8, 9, 17, 41]);
            let products = random_products(&mut random, cols, n_rows);
            let x = exact_in_8_bits(&mut random, n_rows * cols);
            let add = random.below(2) == 1;
            let expected = Rig::new(&oracle, Precision::Exact).matmul(&products, &x, n_rows, add);
            let has = Rig::new(&backend, Precision::Fast).matmul(&products, &x, n_rows, add);
            let what = format!("{name}, case {case}: {n_rows} rows of {cols}");
            assert_close(&what, &has, &expected, Tolerance { absolute: 1e-3, ..ROUNDING });
        }
    }
}

#[test]
fn matmul_in_8_bits_is_near_the_oracles_for_any_numbers() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(3);
        for ty in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1] {
            let products =
                [Product { w: random_weight(&mut random, ty, 200, 640), bias: None, before: vec![] }];
            let x = random.vector(5 * 640, 3.0);
            let expected = Rig::new(&oracle, Precision::Exact).matmul(&products, &x, 5, false);
            let has = Rig::new(&backend, Precision::Fast).matmul(&products, &x, 5, false);
            let tolerance = Tolerance { absolute: 2.0, relative: 0.02, angle: 1e-4 };
            assert_close(&format!("{name} {ty}"), &has, &expected, tolerance);
        }
    }
}

#[test]
fn matmul_gives_a_row_the_same_bits_alone_and_among_others() {
    for precision in [Precision::Fast, Precision::Exact] {
        let mut random = Random::new(4);
        for case in 0..6 {
            let cols = if case % 2 == 0 { 32 * (1 + random.below(12)) } else { 1 + random.below(200) };
            let n_rows = pick(&mut random, &[11, 40, 290]);
            let mut products = random_products(&mut random, cols, n_rows);
            products.iter_mut().for_each(|product| product.before.clear());
            let x = random.vector(n_rows * cols, 1.0);
            for level in SimdLevel::available() {
                let backends = [1, 2, 3].map(|n| CpuBackend::with_level(n, level).unwrap());
                let all =
                    backends.each_ref().map(|b| Rig::new(b, precision).matmul(&products, &x, n_rows, false));
                assert_same_bits("2 threads", &all[1], &all[0]);
                assert_same_bits("3 threads", &all[2], &all[0]);
                for n in [1, 2, 7] {
                    let mut rig = Rig::new(&backends[1], precision);
                    let first = random.below(n_rows - n + 1);
                    let has = rig.matmul(&products, &x[first * cols..(first + n) * cols], n, false);
                    let mut expected = Vec::new();
                    let mut at = 0;
                    for Product { w, .. } in &products {
                        expected.extend_from_slice(&all[0][at + first * w.rows..at + (first + n) * w.rows]);
                        at += n_rows * w.rows;
                    }
                    let what = format!("{level:?} {precision:?}, {n} of {n_rows} rows of {cols}");
                    assert_same_bits(&what, &has, &expected);
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_spoils_its_own_outputs_only() {
    let mut random = Random::new(5);
    let (cols, rows) = (96, 24);
    on_every_backend!(|name, backend| {
        for (ty, n_rows) in TensorType::ALL.into_iter().flat_map(|ty| [5, 10, 40].map(|n| (ty, n))) {
            for (bad, is_normed) in [(f32::NAN, false), (f32::INFINITY, false), (f32::NAN, true)] {
                let w = random_weight(&mut random, ty, rows, cols);
                let products = [Product { w, bias: None, before: vec![] }];
                let mut x = random.vector(n_rows * cols, 1.0);
                x[3 * cols + 40] = bad;
                let x = Taken { x, norm: is_normed.then(|| (0, random.vector(cols, 2.0))) };
                let has = Rig::new(&backend, Precision::Fast).matmul_with(&products, &x, n_rows, false);
                for (i, out) in has.chunks(rows).enumerate() {
                    assert!(
                        out.iter().all(|x| x.is_finite() == (i != 3)),
                        "{name} {ty} {bad}: row {i}: {out:?}"
                    );
                }
            }
        }
    });
}

fn embed<B: Backend>(
    backend: &B,
    table: &WeightData,
    tokens: &[u32],
    scale: f32,
) -> longgen::Result<Vec<f32>> {
    let mut rig = Rig::new(backend, Precision::Fast);
    let table_on_device = backend.weight(table.clone())?;
    let mut out = rig.poisoned(tokens.len() * table.cols * 4);
    let (n_tokens, tokens) = (tokens.len(), &rig.buf(tokens));
    rig.run(|backend, ws| {
        backend.embed(ws, EmbedArgs { out: &mut out, table: &table_on_device, tokens, n_tokens, scale })
    })?;
    Ok(rig.read(&out, n_tokens * table.cols))
}

#[test]
fn embed_is_the_oracles_to_the_bit() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(6);
        for ty in TensorType::ALL {
            let cols = 32 * (1 + random.below(20)) - if ty.block_elems() == 1 { random.below(20) } else { 0 };
            let table = random_weight(&mut random, ty, 50, cols);
            let tokens: Vec<u32> = (0..1 + random.below(200)).map(|_| random.below(50) as u32).collect();
            let expected = embed(&oracle, &table, &tokens, 1.5).unwrap();
            assert_same_bits(
                &format!("{name} {ty} {cols}"),
                &embed(&backend, &table, &tokens, 1.5).unwrap(),
                &expected,
            );
        }
    });
}

fn glu<B: Backend>(backend: &B, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut rig = Rig::new(backend, Precision::Fast);
    let (mut gate_buf, up) = (rig.buf(gate), rig.buf(up));
    let n_elems = gate.len();
    let args = GluArgs { gate: &mut gate_buf, up: &up, activation: Activation::Silu, n_elems };
    rig.run(|backend, ws| backend.glu(ws, args)).unwrap();
    rig.read(&gate_buf, n_elems)
}

#[test]
fn glu_is_the_oracles() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(7);
        for n in [1, 15, 16, 577, 40_000] {
            let (gate, up) = (random.vector(n, 4.0), random.vector(n, 2.0));
            let what = format!("{name}: {n}");
            assert_close(&what, &glu(&backend, &gate, &up), &glu(&oracle, &gate, &up), ROUNDING);
        }
        let extremes =
            [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 80.0, -80.0, 200.0, -200.0, 3e30, -3e30, f32::NAN];
        let ones = [1.0; 13];
        assert_close(&name, &glu(&backend, &extremes, &ones), &glu(&oracle, &extremes, &ones), ROUNDING);
    });
}

/// The matrix that leaves what is multiplied with it as it is.
fn identity(width: usize) -> WeightData {
    let mut values = vec![0.0f32; width * width];
    values.iter_mut().step_by(width + 1).for_each(|x| *x = 1.0);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    WeightData {
        range: 0..bytes.len(),
        file: std::sync::Arc::new(bytes),
        ty: TensorType::F32,
        rows: width,
        cols: width,
    }
}

#[test]
fn norm_is_the_oracles() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(31);
        for (n_rows, width) in [(1, 1), (3, 15), (2, 16), (70, 576), (5, 577), (1, 5000)] {
            let x = random.vector((n_rows + 2) * width, 4.0);
            let x = Taken { x, norm: Some((2, random.vector(width, 2.0))) };
            let products = [Product { w: identity(width), bias: None, before: vec![] }];
            let expected = Rig::new(&oracle, Precision::Exact).matmul_with(&products, &x, n_rows, false);
            let has = Rig::new(&backend, Precision::Exact).matmul_with(&products, &x, n_rows, false);
            assert_close(&format!("{name}: {n_rows} x {width}"), &has, &expected, ROUNDING);
        }
    });
}

fn random_mlp(random: &mut Random, types: &[TensorType]) -> Mlp {
    let is_any_width = types.iter().all(|ty| ty.block_elems() == 1);
    let d_model = pick(random, &[32, 96, 320, 2080]);
    let d_ff = if is_any_width { 1 + random.below(640) } else { 32 * (1 + random.below(20)) };
    let mut linear = |rows, cols| {
        let ty = pick(random, types);
        let w = random_weight(random, ty, rows, cols);
        Product { bias: (random.below(2) == 1).then(|| random.vector(rows, 1.0)), w, before: vec![] }
    };
    let [gate, up, down] = [linear(d_ff, d_model), linear(d_ff, d_model), linear(d_model, d_ff)];
    Mlp { gate, up, down, norm: random.vector(d_model, 2.0) }
}

/// Tolerance of numbers that need not be about 1.
fn of_their_size(fraction: f32, expected: &[f32]) -> Tolerance {
    let mean_square = expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32;
    Tolerance {
        absolute: fraction * mean_square.sqrt(),
        relative: fraction,
        angle: f64::from(fraction * fraction),
    }
}

#[test]
fn mlp_in_f32_is_the_oracles() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(8);
        for case in 0..20 {
            let ty = [pick(&mut random, &TensorType::ALL)];
            // Of one type, which may be computed at once, or of any.
            let mlp = random_mlp(&mut random, if case % 2 == 0 { &ty } else { &TensorType::ALL });
            let n_rows = pick(&mut random, &[1, 2, 4, 5, 9, 31]);
            let x = random.vector(n_rows * mlp.norm.len(), 3.0);
            let expected = Rig::new(&oracle, Precision::Exact).mlp(&mlp, &x);
            let has = Rig::new(&backend, Precision::Exact).mlp(&mlp, &x);
            let what = format!("{name}, case {case}: {n_rows} rows, {mlp:?}");
            assert_close(&what, &has, &expected, of_their_size(1e-4, &expected));
        }
    });
}

fn rope_table<B: Backend>(backend: &B, inv_freq: &[f32], seqs: &[StepRows]) -> Vec<f32> {
    let mut rig = Rig::new(backend, Precision::Fast);
    let n_rows = seqs.iter().map(|seq| seq.n_tokens as usize).sum::<usize>();
    let mut out = rig.poisoned(n_rows * inv_freq.len() * 8);
    let descs: Vec<_> = seqs.iter().map(|seq| rig.rows(seq.row, seq.n_tokens, seq.pos)).collect();
    let descs: Vec<_> = descs.iter().collect();
    let (n_pairs, inv_freq) = (inv_freq.len(), &rig.buf(inv_freq));
    let args = RopeTableArgs { out: &mut out, inv_freq, n_pairs, attention_factor: 1.3, seqs: &descs };
    rig.run(|backend, ws| backend.rope_table(ws, args)).unwrap();
    rig.read(&out, n_rows * n_pairs * 2)
}

#[test]
fn rope_table_is_the_oracles_at_any_position() {
    let oracle = ReferenceBackend::default();
    let inv_freq: Vec<f32> = (0..33).map(|i| 1e5f32.powf(-(i as f32) / 33.0)).collect();
    let rows = |row, n_tokens, pos| StepRows { row, n_tokens, pos };
    let seqs = [rows(40, 3, 0), rows(0, 40, 131_000), rows(43, 1, 4_000_000)];
    let expected = rope_table(&oracle, &inv_freq, &seqs);
    on_every_backend!(|name, backend| {
        assert_close(&name, &rope_table(&backend, &inv_freq, &seqs), &expected, ROUNDING);
    });
}

const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8];

fn random_mask(random: &mut Random) -> Mask {
    match random.below(4) {
        0 => Mask::Full,
        1 => Mask::Window {
            window_tokens: pick(random, &[1, 5, 64, 100, 300, 700]),
            sink_tokens: pick(random, &[0, 0, 3, 64, 90]),
        },
        _ => Mask::Blocks {
            block_size: pick(random, &[16, 32, 64, 128, 256]),
            local_blocks: pick(random, &[1, 2, 5]),
            sink_blocks: pick(random, &[0, 1, 2]),
            stride: pick(random, &[0, 2, 3, 7]),
        },
    }
}

fn random_context(random: &mut Random, n_ctx: usize) -> Context {
    let mask = random_mask(random);
    let (n_kv_heads, group) = pick(random, &[(1, 1), (1, 5), (2, 2), (3, 3), (4, 1)]);
    let head_dim = pick(random, &[2, 6, 16, 24, 64, 64, 80, 96, 128, 256]);
    let ty = pick(random, &KV_TYPES);
    let shape = KvShape { n_kv_heads, head_dim, block_size: mask.block_size() as usize, ty };
    let softcap = pick(random, &[0.0, 0.0, 3.0]);
    Context { softcap, ..context_of(random, n_ctx, mask, shape, n_kv_heads * group) }
}

/// A context without a cap on scores, of random numbers.
fn context_of(random: &mut Random, n_ctx: usize, mask: Mask, shape: KvShape, n_heads: usize) -> Context {
    let KvShape { n_kv_heads, head_dim, .. } = shape;
    let phase = random.below(7) as u32;
    let differ = random.below(2) == 1;
    let has_sinks = random.below(3) == 0;
    Context {
        shape,
        n_heads,
        mask,
        phases: (0..n_heads).map(|_| if differ { random.below(7) as u32 } else { phase }).collect(),
        scale: 2.0 / (head_dim as f32).sqrt(),
        softcap: 0.0,
        sink_logits: has_sinks.then(|| random.vector(n_heads, 4.0)),
        n_pairs: pick(random, &[0, head_dim / 2, head_dim / 4]),
        pairing: pick(random, &[RopePairing::Halves, RopePairing::Adjacent]),
        q: random.vector(n_ctx * n_heads * head_dim, 1.5),
        k: random.vector(n_ctx * n_kv_heads * head_dim, 1.5),
        v: random.vector(n_ctx * n_kv_heads * head_dim, 1.0),
    }
}

/// The context in a shared prefix, the slots and the step's scratch; each may be missing.
fn random_parts(random: &mut Random, pos: u32, n_tokens: u32) -> Vec<Part> {
    let prefix = random.below(pos as usize + 1) as u32;
    let mut parts = Vec::new();
    if random.below(3) > 0 {
        parts.push(Part { end: prefix, lie: Lie::Order, copied: random.below(2) == 1 });
    }
    if random.below(3) > 0 {
        parts.push(Part { end: pos, lie: Lie::Slots, copied: false });
        parts.push(Part { end: pos + n_tokens, lie: Lie::Scratch, copied: false });
    } else {
        parts.push(Part { end: pos + n_tokens, lie: Lie::Order, copied: random.below(2) == 1 });
    }
    parts
}

/// Tokens around the edges of what is computed side by side: of vectors, of runs and tiles of keys and of queries.
const EDGES: [u32; 15] = [1, 4, 5, 32, 33, 35, 36, 63, 64, 65, 66, 127, 128, 129, 130];

fn whole(end: u32) -> [Part; 1] {
    [Part { end, lie: Lie::Order, copied: false }]
}

#[test]
fn attention_over_any_context_is_the_oracles() {
    let oracle = ReferenceBackend::default();
    let tolerance = Tolerance { absolute: 1e-4, relative: 1e-4, angle: 1e-7 };
    on_every_backend!(|name, backend| {
        let mut random = Random::new(8);
        // Contexts that end at the edges of blocks and of parts that are computed side by side.
        let ends = [1, 63, 64, 65, 2047, 2048, 2049, 2112];
        let mut steps: Vec<(u32, u32)> =
            ends.iter().flat_map(|end| [1, 5.min(*end)].map(|n| (end - n, n))).collect();
        for end in EDGES {
            let n_tokens = pick(&mut random, &EDGES).min(end);
            steps.extend([(0, end), (end - n_tokens, n_tokens)]);
        }
        for _ in 0..40 {
            let n_tokens = pick(&mut random, &[1, 1, 2, 4, 5, 17, 40, 70]);
            steps.push((pick(&mut random, &[0, 0, 1, 63, 64, 100, 500, 513, 1100]), n_tokens));
        }
        for (case, (pos, n_tokens)) in steps.into_iter().enumerate() {
            let context = random_context(&mut random, (pos + n_tokens) as usize);
            let parts = random_parts(&mut random, pos, n_tokens);
            let mut expected_rig = Rig::new(&oracle, Precision::Exact);
            let expected = expected_rig.attend(&context, &whole(pos + n_tokens), pos, n_tokens);
            let has = Rig::new(&backend, Precision::Exact).attend(&context, &parts, pos, n_tokens);
            let Context { shape, mask, n_heads, .. } = &context;
            let what = format!(
                "{name}, case {case}: {n_tokens} at {pos}, {n_heads} heads, {shape:?}, {mask:?}, {parts:?}"
            );
            // Keys are turned as queries are. One more bit, or one less, could round a key to another number of a
            // coarse type; the same bits leave the attention nothing but its own rounding.
            assert_same_bits(&format!("queries, {what}"), &has[0], &expected[0]);
            assert_close(&what, &has[1], &expected[1], tolerance);
        }
    });
}

/// A layer that turns nothing, with two KV heads of 40 elements and two query heads for each.
fn plain_context(random: &mut Random, ty: KvType, n_ctx: usize) -> Context {
    let (n_kv_heads, n_heads, head_dim) = (2, 4, 40);
    Context {
        shape: KvShape { n_kv_heads, head_dim, block_size: 64, ty },
        n_heads,
        mask: Mask::Full,
        phases: vec![0; n_heads],
        scale: 0.2,
        softcap: 0.0,
        sink_logits: None,
        n_pairs: 0,
        pairing: RopePairing::Halves,
        q: random.vector(n_ctx * n_heads * head_dim, 1.0),
        k: random.vector(n_ctx * n_kv_heads * head_dim, 1.0),
        v: random.vector(n_ctx * n_kv_heads * head_dim, 1.0),
    }
}

/// What a query that sees a single key gets: that key's value.
fn only_values<B: Backend>(backend: &B, context: &Context) -> Vec<f32> {
    let [_, out] = Rig::new(backend, Precision::Exact).attend(context, &whole(1), 0, 1);
    let heads: Vec<_> = out.chunks(context.shape.head_dim).collect();
    [heads[0], heads[2]].concat()
}

#[test]
fn a_value_comes_back_as_near_as_its_type_can_hold_it() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(14);
        for case in 0..60 {
            for ty in KV_TYPES {
                let mut context = plain_context(&mut random, ty, 1);
                let magnitude = 10f32.powi(random.below(9) as i32 - 4);
                for (i, x) in context.v.iter_mut().enumerate() {
                    *x *= magnitude;
                    // Half-way between two numbers of 8 bits or of 11; now and then zero.
                    match i % 8 {
                        0 => *x = f32::from_bits(x.to_bits() & !0xffff | 0x8000),
                        1 => *x = f32::from_bits(x.to_bits() & !0x1fff | 0x1000),
                        2 => *x = 0.0,
                        _ => {}
                    }
                }
                if case % 10 == 0 {
                    context.v[..40].fill(0.0);
                }
                let (has, expected) = (only_values(&backend, &context), only_values(&oracle, &context));
                for (i, (&has, &expected)) in has.iter().zip(&expected).enumerate() {
                    let (x, row) = (context.v[i], &context.v[i / 40 * 40..][..40]);
                    let what = format!("{name}, {ty:?}: {x} of {row:?}");
                    assert!(has == expected, "{what} is {has}, the oracle's is {expected}");
                    let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    let half_a_step = match ty {
                        KvType::F32 => 0.0,
                        KvType::F16 => (x.abs() / 2048.0).max(2f32.powi(-25)),
                        KvType::Bf16 => x.abs() / 256.0,
                        // The scale has 11 bits, or is subnormal.
                        KvType::Q8 => largest / 254.0 + (largest / 2048.0).max(127.0 * 2f32.powi(-25)),
                    };
                    assert!((has - x).abs() <= half_a_step, "{what} is {has}");
                }
            }
        }
    });
}

#[test]
fn bf16_keeps_numbers_of_any_kind() {
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-40, 3e38];
    let nans = [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fbf_8000].map(f32::from_bits);
    on_every_backend!(|name, backend| {
        let mut random = Random::new(15);
        let mut context = plain_context(&mut random, KvType::Bf16, 1);
        for _ in 0..50 {
            let any = |_: &f32| f32::from_bits(u32::try_from(random.bits() >> 32).unwrap());
            context.v = context.v.iter().map(any).collect();
            for x in special.iter().chain(&nans) {
                let i = random.below(context.v.len());
                context.v[i] = *x;
            }
            for (&has, &x) in only_values(&backend, &context).iter().zip(&context.v) {
                let expected = half::bf16::from_f32(x).to_f32();
                assert!(
                    has == expected || has.is_nan() && expected.is_nan(),
                    "{name}: {x:e} is {has:e}, expected {expected:e}"
                );
            }
        }
    });
}

fn assert_only_some_are_finite<B: Backend>(name: &str, backend: &B) {
    let mut random = Random::new(16);
    let (n_tokens, bad_token, bad_head) = (70, 37, 1);
    // The last one is finite, but its scale would not be one of 16 bits.
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e7] {
        for (is_value, softcap) in [(false, 0.0), (false, 3.0), (true, 0.0)] {
            let mut context = plain_context(&mut random, KvType::Q8, n_tokens);
            let KvShape { n_kv_heads, head_dim, .. } = context.shape;
            let group = context.n_heads / n_kv_heads;
            context.softcap = softcap;
            let row = (bad_token * n_kv_heads + bad_head) * head_dim;
            let values = if is_value { &mut context.v } else { &mut context.k };
            values[row + random.below(head_dim)] = bad;
            let mut rig = Rig::new(backend, Precision::Exact);
            let [_, out] = rig.attend(&context, &whole(n_tokens as u32), 0, n_tokens as u32);
            for (i, x) in out.iter().enumerate() {
                let (token, head) = (i / head_dim / context.n_heads, i / head_dim % context.n_heads);
                let sees = token >= bad_token && head / group == bad_head;
                let what = format!("{name}: {bad}, value {is_value}: {x} of token {token}, head {head}");
                assert_eq!(x.is_finite(), !sees, "{what}");
            }
        }
    }
}

#[test]
fn a_row_that_8_bits_cannot_hold_spoils_those_who_see_it_only() {
    assert_only_some_are_finite("oracle", &ReferenceBackend::default());
    on_every_backend!(|name, backend| {
        assert_only_some_are_finite(&name, &backend);
    });
}

#[test]
fn attention_gives_a_query_the_same_bits_alone_and_among_others() {
    for level in SimdLevel::available() {
        let backends = [1, 2, 3].map(|n| CpuBackend::with_level(n, level).unwrap());
        let mut random = Random::new(9);
        for case in 0..25 {
            let n_tokens = pick(&mut random, &[3, 20, 66, 130]);
            let pos = pick(&mut random, &[0, 10, 500, 1030]);
            let context = random_context(&mut random, (pos + n_tokens) as usize);
            let width = context.n_heads * context.shape.head_dim;
            let expected = Rig::new(&backends[0], Precision::Fast).attend(
                &context,
                &whole(pos + n_tokens),
                pos,
                n_tokens,
            );
            assert!(expected[1].iter().all(|x| x.is_finite()));
            for _ in 0..4 {
                let first = random.below(n_tokens as usize) as u32;
                let n = 1 + random.below((n_tokens - first).min(6) as usize) as u32;
                let parts = random_parts(&mut random, pos + first, n);
                let backend = pick(&mut random, &[0, 1, 2]);
                let has =
                    Rig::new(&backends[backend], Precision::Fast).attend(&context, &parts, pos + first, n);
                let rows = first as usize * width..(first + n) as usize * width;
                let what = format!(
                    "{level:?}, case {case}, {n} of {n_tokens} at {pos}, {:?}, {parts:?}",
                    context.mask
                );
                assert_same_bits(&what, &has[1], &expected[1][rows]);
            }
        }
    }
}

/// Queries that no float of 16 bits holds, which all look at the first key.
#[test]
fn huge_queries_attend_to_the_key_they_look_at() {
    let oracle = ReferenceBackend::default();
    on_every_backend!(|name, backend| {
        let mut random = Random::new(43);
        for (pos, n_tokens) in [(99, 1), (30, 40), (0, 130)] {
            for (ty, head_dim) in KV_TYPES.into_iter().flat_map(|ty| [64, 128].map(|dim| (ty, dim))) {
                let shape = KvShape { n_kv_heads: 1, head_dim, block_size: 64, ty };
                let n_ctx = (pos + n_tokens) as usize;
                let mut context = context_of(&mut random, n_ctx, Mask::Full, shape, 2);
                (context.n_pairs, context.sink_logits) = (0, None);
                context.k.iter_mut().for_each(|x| *x *= 0.3);
                context.k[..head_dim].iter_mut().for_each(|x| *x = x.signum());
                let signs = context.k[..head_dim].repeat(2 * n_ctx);
                context.q.iter_mut().zip(&signs).for_each(|(q, sign)| *q = sign * (1e5 + 1e6 * q.abs()));
                let parts = whole(pos + n_tokens);
                let expected = Rig::new(&oracle, Precision::Exact).attend(&context, &parts, pos, n_tokens);
                let has = Rig::new(&backend, Precision::Fast).attend(&context, &parts, pos, n_tokens);
                let what = format!("{name}: {n_tokens} at {pos}, {shape:?}");
                // Where weights have 16 bits their sum has more.
                let tolerance = Tolerance { absolute: 1e-2, relative: 1e-2, angle: 1e-4 };
                assert_close(&what, &has[1], &expected[1], tolerance);
            }
        }
    });
}

#[test]
fn attention_of_several_sessions_is_that_of_each() {
    on_every_backend!(|name, backend| {
        let mut random = Random::new(10);
        for case in 0..6 {
            let mut contexts = std::iter::repeat_with(|| random_context(&mut random, 700));
            // Every other one of a kind that devices have kernels for.
            let is_wanted = |context: &Context| {
                case % 2 == 0 || context.shape.head_dim == 64 && context.shape.block_size == 64
            };
            let context = contexts.find(is_wanted).unwrap();
            let mut rig = Rig::new(&backend, Precision::Fast);
            // A device computes single tokens of several sessions together: it may divide their keys otherwise, and then
            // rounds weights of at most 1 in all, like the cache, relative to other scores. Values are at most 1, too.
            let rounding: f32 = match context.shape.ty {
                KvType::F32 => 0.0,
                KvType::F16 | KvType::Q8 => 2f32.powi(-11),
                KvType::Bf16 => 2f32.powi(-8),
            };
            let tolerance = Tolerance {
                absolute: 1e-4 + 2.0 * rounding,
                relative: 1e-4,
                angle: 1e-7 + 2.0 * f64::from(rounding * rounding),
            };
            let shapes =
                [(600, 1), (5, 20), (37, 1), (0, 3), (640, 2), (411, 1), (300, 130), (100, 70), (0, 1)];
            let parts = shapes.map(|(pos, n_tokens)| random_parts(&mut random, pos, n_tokens));
            let seqs: Vec<_> =
                shapes.iter().zip(&parts).map(|(&(pos, n), parts)| (pos, n, &parts[..])).collect();
            for (together, &(pos, n_tokens, _)) in rig.attend_all(&context, &seqs).iter().zip(&seqs) {
                let alone = rig.attend(&context, &whole(pos + n_tokens), pos, n_tokens);
                let what = format!("{name}, {:?}: {n_tokens} at {pos}", context.mask);
                match n_tokens {
                    1 => assert_close(&what, &together[1], &alone[1], tolerance),
                    _ => assert_same_bits(&what, &together[1], &alone[1]),
                }
            }

            // Of more sessions than a device computes at once.
            let positions: Vec<_> =
                (0..20).map(|i| if i == 3 { 0 } else { random.below(699) as u32 }).collect();
            let parts: Vec<_> = positions.iter().map(|&pos| random_parts(&mut random, pos, 1)).collect();
            let seqs: Vec<_> =
                positions.iter().zip(&parts).map(|(&pos, parts)| (pos, 1, &parts[..])).collect();
            for (together, &(pos, ..)) in rig.attend_all(&context, &seqs).iter().zip(&seqs) {
                let alone = rig.attend(&context, &whole(pos + 1), pos, 1);
                assert_close(&format!("{name}, {:?}", context.mask), &together[1], &alone[1], tolerance);
            }
        }
    });
}

#[test]
fn a_workspace_takes_the_bytes_that_were_announced() {
    let mut random = Random::new(11);
    on_every_backend!(|name, backend| {
        for precision in [Precision::Exact, Precision::Fast] {
            let mut shape = SHAPE;
            shape.max_rows = 1 + random.below(3000);
            shape.max_cols = 1 + random.below(5000);
            shape.n_ctx = 1 + random.below(9000);
            let before = backend.allocated_bytes();
            let workspace = backend.workspace(&shape, precision).unwrap();
            assert_eq!(
                backend.allocated_bytes() - before,
                backend.workspace_bytes(&shape, precision),
                "{name}"
            );
            drop(workspace);
            assert_eq!(backend.allocated_bytes(), before);
        }
    });
}

#[test]
fn blocks_that_are_held_come_back_as_they_were() {
    on_every_backend!(|name, backend| {
        let mut random = Random::new(14);
        for n_bytes in [2, 16, 1008, 8192, 20_000] {
            let n_blocks = 200;
            let mut bytes = |n: usize| (0..n).map(|_| random.below(256) as u8).collect::<Vec<_>>();
            let mut expected = bytes(n_blocks * n_bytes);
            let mut buf = backend.alloc(expected.len()).unwrap();
            backend.upload(&mut buf, 0, &expected).unwrap();
            let mut held = Vec::new();
            for round in 0..20 {
                let first = random.below(n_blocks);
                let n = 1 + random.below(100);
                let places: Vec<_> = (0..n).map(|i| ((first + 3 * i) % n_blocks) as u32).collect();
                let range = |place: u32| place as usize * n_bytes..(place as usize + 1) * n_bytes;
                let blocks: Vec<_> = places.iter().map(|&place| expected[range(place)].to_vec()).collect();
                held.push((backend.hold(&buf, &places, n_bytes).unwrap(), blocks));
                if round % 3 > 0 {
                    let (held, blocks) = held.swap_remove(random.below(held.len()));
                    let first = random.below(n_blocks);
                    let places: Vec<_> =
                        (0..blocks.len()).map(|i| ((first + 7 * i) % n_blocks) as u32).collect();
                    backend.put_back(&mut buf, &places, n_bytes, &held).unwrap();
                    places.iter().zip(&blocks).for_each(|(&to, b)| expected[range(to)].copy_from_slice(b));
                }
                let mut found = vec![0u8; expected.len()];
                backend.download(&mut found, &buf, 0).unwrap();
                assert!(found == expected, "{name}, {n_bytes} bytes, round {round}");
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    assert_eq!(CpuBackend::new(0).err().unwrap().kind(), ErrorKind::Invalid);
    on_every_backend!(|name, backend| {
        let mut random = Random::new(12);
        let w = random_weight(&mut random, TensorType::Q8_0, 4, 64);
        let short = WeightData { rows: 5, ..w.clone() };
        assert_eq!(backend.weight(short).err().unwrap().kind(), ErrorKind::Invalid);
        let beyond = WeightData { range: 5..usize::MAX, ..w.clone() };
        assert_eq!(backend.weight(beyond).err().unwrap().kind(), ErrorKind::Invalid);
        let ragged = WeightData { cols: 63, ..w };
        assert_eq!(backend.weight(ragged).err().unwrap().kind(), ErrorKind::Invalid, "{name}");
    });
}

/// Attention of that many heads of that size to nothing, in a workspace of this shape.
fn attend_to_nothing<B: Backend>(
    backend: &B,
    shape: &WorkspaceShape,
    n_heads: usize,
    head_dim: usize,
) -> longgen::Result<()> {
    let mut rig = Rig::with_shape(backend, Precision::Fast, shape);
    let (q, phases) = (rig.buf(&vec![1.0f32; n_heads * head_dim]), rig.buf(&vec![0u32; n_heads]));
    let mut out = rig.poisoned(n_heads * head_dim * 4);
    rig.run(|backend, ws| {
        let args = AttnArgs {
            out: &mut out,
            q: &q,
            n_heads,
            shape: KvShape { n_kv_heads: 1, head_dim, block_size: 64, ty: KvType::F16 },
            scale: 1.0,
            softcap: 0.0,
            sink_logits: None,
            mask: Mask::Full,
            phases: &phases,
            seqs: &[],
        };
        backend.attn(ws, args)
    })
}

/// A product of rows, in a workspace of this shape.
fn multiply<B: Backend>(
    backend: &B,
    shape: &WorkspaceShape,
    w: &WeightData,
    n_rows: usize,
) -> longgen::Result<()> {
    let mut rig = Rig::with_shape(backend, Precision::Fast, shape);
    let x = rig.buf(&vec![1.0f32; n_rows * w.cols]);
    let (w, mut out) = (backend.weight(w.clone())?, rig.poisoned(n_rows * w.rows * 4));
    rig.run(|backend, ws| {
        let parts = &mut [MatmulPart { out: &mut out, w: &w, bias: None }];
        backend.matmul(ws, MatmulArgs { parts, input: Input::Rows(&x), n_rows, add: false })
    })
}

#[test]
fn a_workspace_that_is_too_small_is_refused() {
    let mut random = Random::new(44);
    let w = random_weight(&mut random, TensorType::F16, 24, 64);
    let shape = WorkspaceShape { max_rows: 40, max_cols: 64, n_heads: 4, head_dim: 64, ..SHAPE };
    on_every_backend!(|name, backend| {
        multiply(&backend, &shape, &w, 40).unwrap();
        attend_to_nothing(&backend, &shape, 4, 64).unwrap();
        for (what, result) in [
            ("a row more", multiply(&backend, &shape, &w, 41)),
            ("fewer columns", multiply(&backend, &WorkspaceShape { max_cols: 56, ..shape }, &w, 40)),
            ("a head more", attend_to_nothing(&backend, &shape, 5, 64)),
            ("larger heads", attend_to_nothing(&backend, &shape, 4, 72)),
        ] {
            let kind = result.err().map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::Invalid), "{name}: {what}");
        }
    });
}

#[test]
fn a_token_beyond_the_table_is_refused() {
    let mut random = Random::new(14);
    let table = random_weight(&mut random, TensorType::F16, 50, 8);
    for (name, backend) in backends() {
        let error = embed(&backend, &table, &[3, 50], 1.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}");
    }
}

#[test]
fn top_is_the_oracles_to_the_bit() {
    let oracle = ReferenceBackend::default();
    fn top<B: Backend>(backend: &B, x: &[f32], n: usize) -> (Vec<u32>, Vec<u32>) {
        let mut rig = Rig::new(backend, Precision::Fast);
        let row = rig.buf(x);
        let (mut values, mut columns) = (rig.poisoned(MAX_TOP * 4), rig.poisoned(MAX_TOP * 4));
        rig.run(|backend, ws| {
            let args = TopArgs { values: &mut values, columns: &mut columns, x: &row, width: x.len(), n };
            backend.top(ws, args)
        })
        .unwrap();
        let (mut has_values, mut has_columns) = (vec![0u32; n], vec![0u32; n]);
        backend.download(&mut has_values, &values, 0).unwrap();
        backend.download(&mut has_columns, &columns, 0).unwrap();
        (has_values, has_columns)
    }
    on_every_backend!(|name, backend| {
        let mut random = Random::new(30);
        for case in 0..60 {
            let width = pick(&mut random, &[1, 2, 31, 256, 257, 1000, 1024, 5000, 128_256]);
            let n = pick(&mut random, &[1, 2, 40, 255, 256]).min(width);
            let mut x = random.vector(width, 9.0);
            // Many that are equal, none that differ, and numbers that are none.
            match case % 4 {
                1 => x.iter_mut().for_each(|x| *x = x.round()),
                2 => x.fill(if case % 8 == 2 { -0.5 } else { f32::NAN }),
                3 => {
                    for i in 0..width.div_ceil(3) {
                        let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
                        x[(i * 7) % width] = pick(&mut random, &odd);
                    }
                }
                _ => {}
            }
            let (has, expected) = (top(&backend, &x, n), top(&oracle, &x, n));
            assert_eq!(has, expected, "{name}, case {case}: {n} of {width}");
        }
    });
}

#[test]
fn a_cancelled_step_ends_in_the_op_that_runs() {
    on_every_backend!(|name, backend| {
        let mut rig = Rig::new(&backend, Precision::Fast);
        let mut random = Random::new(13);
        let w = backend.weight(random_weight(&mut random, TensorType::Q8_0, 64, 64)).unwrap();
        let (x, mut out) = (rig.buf(&random.vector(3 * 64, 1.0)), rig.poisoned(3 * 64 * 4));
        rig.cancel = Cancel::default();
        let cancel = rig.cancel.clone();
        let result = rig.run(|backend, ws| {
            let parts = &mut [MatmulPart { out: &mut out, w: &w, bias: None }];
            backend.matmul(ws, MatmulArgs { parts, input: Input::Rows(&x), n_rows: 3, add: false })?;
            cancel.cancel();
            backend.matmul(ws, MatmulArgs { parts, input: Input::Rows(&x), n_rows: 3, add: false })
        });
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled, "{name}");
        assert!(rig.read(&out, 3 * 64).iter().all(|x| x.is_finite()), "{name}: the first product was done");

        // Once it is committed, it does all it has to do.
        let shape = KvShape { n_kv_heads: 1, head_dim: 4, block_size: 16, ty: KvType::F32 };
        let from = rig.buf(&random.vector(128, 1.0));
        let mut to = rig.poisoned(128 * 4);
        let desc = rig.rows(0, 16, 0);
        let slots = backend.slots(&SlotMap::new(&Mask::Full, &[0], 1, 16).unwrap()).unwrap();
        rig.run(|backend, ws| {
            let places = BlockPlaces::Step { n_blocks: 1 };
            let part = CopyPart {
                to: &mut to,
                to_places: places,
                from: &from,
                from_places: places,
                shape,
                desc: &desc,
                blocks: StepBlocks::Pinned,
                slots: &slots,
            };
            backend.commit(ws);
            backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut [part] })
        })
        .unwrap();
        assert_same_bits(&name, &rig.read(&to, 128), &rig.read(&from, 128));
    });
}
