//! What holds on CUDA devices only: many rows are multiplied and attended to in 16 bits, and a token is decoded in one launch.

use super::*;
use longgen::attention::plan::LayerAttention;
use longgen::backend::cuda::CudaBackend;
use longgen::kv::cache::{KvCache, LayerLayout};

/// The first device with all it has, with few blocks and with the least, or nothing, said loudly, where there is none.
pub fn backends() -> Vec<(String, CudaBackend)> {
    match CudaBackend::new(0) {
        Ok(backend) => {
            let few_blocks = CudaBackend::with_few_blocks(0).unwrap();
            let least = CudaBackend::with_the_least(0).unwrap();
            [("all it has", backend), ("few blocks", few_blocks), ("the least", least)]
                .map(|(what, backend)| (format!("{}, {what}", backend.info().name), backend))
                .into()
        }
        Err(error) => {
            support::say_skipped_on_cuda(&error);
            Vec::new()
        }
    }
}

/// The largest number of every output's sum of |w| |x|, which bounds what rounding its terms can change.
fn magnitudes(products: &[Product], x: &[f32], n_rows: usize) -> Vec<f32> {
    let cols = x.len() / n_rows;
    let mut sums = Vec::new();
    for Product { w, .. } in products {
        let mut values = vec![0.0; w.rows * cols];
        longgen_format::quant::dequantize(w.ty, w.bytes(), &mut values).unwrap();
        for x in x.chunks(cols) {
            let sum = |w: &[f32]| w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum::<f32>();
            sums.extend(values.chunks(cols).map(sum));
        }
    }
    sums
}

/// Refuses outputs further from the expected ones than rounding rows `x` and matrices to 16 bits explains.
fn assert_products_near(
    what: &str,
    products: &[Product],
    x: &[f32],
    n_rows: usize,
    has: &[f32],
    expected: &[f32],
) {
    let sums = magnitudes(products, x, n_rows);
    let mut at = 0;
    for Product { w, .. } in products {
        let range = at..at + n_rows * w.rows;
        at = range.end;
        // Half a unit in the last place of each factor.
        let rounding = if w.ty == TensorType::BF16 { 2f32.powi(-8) } else { 2f32.powi(-10) };
        for i in range {
            let bound = sums[i] * rounding + 1e-4;
            assert!(
                (has[i] - expected[i]).abs() <= bound,
                "{what}, {} {n_rows} x {} -> {}: {} instead of {}, bound {bound}",
                w.ty,
                w.cols,
                w.rows,
                has[i],
                expected[i]
            );
        }
    }
}

#[test]
fn products_are_as_near_as_16_bits_allow() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(20);
        for case in 0..120 {
            let cols = pick(&mut random, &[8, 32, 40, 96, 320, 640, 2080, 4096, 5120]);
            let n_rows = pick(&mut random, &[1, 2, 4, 8, 9, 16, 17, 100, 129, 300]);
            let products = random_products(&mut random, cols, n_rows);
            let x = random_input(&mut random, n_rows, cols);
            let add = random.below(2) == 1;
            let expected = Rig::new(&oracle, Precision::Exact).matmul_with(&products, &x, n_rows, add);
            let has = Rig::new(&backend, Precision::Fast).matmul_with(&products, &x, n_rows, add);
            let what = format!("{name}, case {case}");
            assert_products_near(&what, &products, &x.values(n_rows), n_rows, &has, &expected);
        }
    }
}

#[test]
fn products_of_thousands_of_rows_are_as_near() {
    let oracle = ReferenceBackend::default();
    let mut random = Random::new(42);
    let (n_rows, rows, cols) = (2500, 520, 96);
    let shape = WorkspaceShape { max_rows: n_rows, ..SHAPE };
    for (name, backend) in backends() {
        for ty in [TensorType::F16, TensorType::BF16, TensorType::Q4_1] {
            let w = random_weight(&mut random, ty, rows, cols);
            let products = [Product { w, bias: None, before: random.vector(n_rows * rows, 1.0) }];
            let x = random.vector(n_rows * cols, 1.0);
            let mut exact = Rig::with_shape(&oracle, Precision::Exact, &shape);
            let expected = exact.matmul(&products, &x, n_rows, true);
            let has = Rig::with_shape(&backend, Precision::Fast, &shape).matmul(&products, &x, n_rows, true);
            assert_products_near(&name, &products, &x, n_rows, &has, &expected);
        }
    }
}

#[test]
fn a_few_rows_have_the_same_bits_alone_and_together() {
    for (name, backend) in backends() {
        let mut random = Random::new(26);
        for ty in TensorType::ALL {
            let cols = pick(&mut random, &[96, 2080, 5120]);
            let n_rows = if [TensorType::F16, TensorType::BF16].contains(&ty) { 8 } else { 16 };
            let w = random_weight(&mut random, ty, 70, cols);
            let products = [Product { w, bias: None, before: vec![] }];
            for precision in [Precision::Exact, Precision::Fast] {
                for is_normed in [false, true] {
                    let norm = is_normed.then(|| (0, random.vector(cols, 2.0)));
                    let x = Taken { x: random.vector(n_rows * cols, 1.0), norm };
                    let mut rig = Rig::new(&backend, precision);
                    let all = rig.matmul_with(&products, &x, n_rows, false);
                    for (first, n) in [(0, 1), (n_rows - 1, 1), (1, 3), (2, 5), (0, 8)] {
                        let some = x.x[first * cols..(first + n) * cols].to_vec();
                        let some = Taken { x: some, norm: x.norm.clone() };
                        let has = rig.matmul_with(&products, &some, n, false);
                        let what = format!("{name}, {ty}, {precision:?}, {n} of {n_rows} rows of {cols}");
                        assert_same_bits(&what, &has, &all[first * 70..(first + n) * 70]);
                    }
                }
            }
        }
    }
}

#[test]
fn quantised_elements_beyond_16_bits_stay_numbers() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(23);
        for (ty, scale) in [(TensorType::Q8_0, 600.0), (TensorType::Q4_0, 9000.0), (TensorType::Q4_1, 5000.0)]
        {
            let mut w = random_weight(&mut random, ty, 40, 640);
            let mut bytes = w.bytes().to_vec();
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
            (w.range, w.file) = (0..bytes.len(), std::sync::Arc::new(bytes));
            let others = Product { w: random_weight(&mut random, ty, 40, 640), bias: None, before: vec![] };
            let products = [Product { w, bias: None, before: vec![] }, others];
            for n_rows in [1, 5, 16, 40] {
                let x = random.vector(n_rows * 640, 1e-4);
                let expected = Rig::new(&oracle, Precision::Exact).matmul(&products, &x, n_rows, false);
                let has = Rig::new(&backend, Precision::Fast).matmul(&products, &x, n_rows, false);
                assert!(has.iter().all(|x| x.is_finite()), "{name}, {ty}, {n_rows} rows");
                if n_rows <= 16 {
                    let tolerance = of_their_size(1e-3, &expected);
                    assert_close(&format!("{name}, {ty}, {n_rows} rows"), &has, &expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn mlp_is_as_near_as_16_bits_allow() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(22);
        for case in 0..60 {
            let ty = [pick(&mut random, &TensorType::ALL)];
            let mlp = random_mlp(&mut random, if case % 2 == 0 { &ty } else { &TensorType::ALL });
            let n_rows = pick(&mut random, &[1, 2, 4, 8, 9, 16, 17, 100, 300]);
            let x = random.vector(n_rows * mlp.norm.len(), 3.0);
            let expected = Rig::new(&oracle, Precision::Exact).mlp(&mlp, &x);
            let has = Rig::new(&backend, Precision::Fast).mlp(&mlp, &x);
            let is_bf16 = [&mlp.gate, &mlp.up, &mlp.down].iter().any(|part| part.w.ty == TensorType::BF16);
            let what = format!("{name}, case {case}: {n_rows} rows, {mlp:?}");
            let fraction = if is_bf16 { 0.03 } else { 0.005 };
            assert_close(&what, &has, &expected, of_their_size(fraction, &expected));
        }
    }
}

/// A mask whose blocks are as large as the kernels for Hopper want them.
fn mask_for_hopper(random: &mut Random) -> Mask {
    match random_mask(random) {
        Mask::Blocks { local_blocks, sink_blocks, stride, .. } => {
            let block_size = pick(random, &[64, 64, 128]);
            Mask::Blocks { block_size, local_blocks, sink_blocks, stride }
        }
        mask => mask,
    }
}

/// Whether the kernels for Hopper serve it.
fn is_for_hopper(context: &Context) -> bool {
    [64, 128].contains(&context.shape.head_dim)
        && context.shape.block_size.is_multiple_of(64)
        && context.softcap == 0.0
}

fn assert_near(
    what: &str,
    backend: &CudaBackend,
    context: &Context,
    parts: &[Part],
    pos: u32,
    n_tokens: u32,
) {
    let oracle = ReferenceBackend::default();
    let mut expected_rig = Rig::new(&oracle, Precision::Exact);
    let expected = expected_rig.attend(context, &whole(pos + n_tokens), pos, n_tokens);
    let has = Rig::new(backend, Precision::Fast).attend(context, parts, pos, n_tokens);
    let Context { shape, mask, n_heads, .. } = context;
    let what = format!("{what}: {n_tokens} at {pos}, {n_heads} heads, {shape:?}, {mask:?}, {parts:?}");
    // Queries and weights are rounded like the cache.
    let rounding = if context.shape.ty == KvType::Bf16 { 8.0 } else { 1.0 };
    let tolerance =
        Tolerance { absolute: 1e-2 * rounding, relative: 1e-2, angle: 1e-5 * f64::from(rounding * rounding) };
    assert_close(&what, &has[1], &expected[1], tolerance);
}

#[test]
fn attention_of_many_rows_is_as_near_as_16_bits_allow() {
    for (name, backend) in backends() {
        let mut random = Random::new(21);
        for case in 0..80 {
            let n_tokens = pick(&mut random, &[16, 63, 64, 65, 130, 300]);
            let pos = pick(&mut random, &[0, 0, 1, 63, 64, 100, 500, 513, 1100, 2047]);
            let mut contexts =
                std::iter::repeat_with(|| random_context(&mut random, (pos + n_tokens) as usize));
            let mut context = contexts.find(|context| case % 2 == 0 || is_for_hopper(context)).unwrap();
            let types = [KvType::F16, KvType::Bf16, KvType::Q8];
            context.shape.ty = pick(&mut random, &types[..if case % 2 == 0 { 3 } else { 2 }]);
            let parts = random_parts(&mut random, pos, n_tokens);
            assert_near(&format!("{name}, case {case}"), &backend, &context, &parts, pos, n_tokens);
        }
    }
}

#[test]
fn attention_of_many_rows_to_blocks_far_away_is_as_near() {
    let block_size = 64;
    for (name, backend) in backends() {
        let mut random = Random::new(24);
        for head_dim in [64, 128] {
            for stride in [0, 2, 3, 7] {
                let (local_blocks, sink_blocks) = (1 + random.below(2) as u32, random.below(2) as u32);
                let mask = Mask::Blocks { block_size, local_blocks, sink_blocks, stride };
                let (pos, n_tokens) = (pick(&mut random, &[1000, 1536, 2047]), 300);
                let ty = pick(&mut random, &[KvType::F16, KvType::Bf16]);
                let shape = KvShape { n_kv_heads: 2, head_dim, block_size: 64, ty };
                let context = context_of(&mut random, (pos + n_tokens) as usize, mask, shape, 4);
                let parts = random_parts(&mut random, pos, n_tokens);
                assert_near(&name, &backend, &context, &parts, pos, n_tokens);
            }
        }
    }
}

/// So much to read that heads take turns, the last turn with fewer of them.
#[test]
fn attention_of_more_heads_than_a_cache_holds_is_as_near() {
    for (name, backend) in backends() {
        let mut random = Random::new(25);
        let shape = KvShape { n_kv_heads: 12, head_dim: 128, block_size: 64, ty: KvType::F16 };
        let (pos, n_tokens) = (3100, 70);
        let context = context_of(&mut random, (pos + n_tokens) as usize, Mask::Full, shape, 12);
        assert_near(&name, &backend, &context, &whole(pos + n_tokens), pos, n_tokens);
    }
}

/// The query heads of a KV head side by side, as many as there are, and keys far beyond what is looked up at once.
#[test]
fn attention_of_single_rows_is_as_near_as_16_bits_allow() {
    for (name, backend) in backends() {
        let mut random = Random::new(26);
        for case in 0..120 {
            let n_tokens = pick(&mut random, &[1, 1, 2, 5, 15]);
            let pos = pick(&mut random, &[0, 1, 15, 16, 63, 64, 100, 513, 1100, 2047, 3000]);
            let (n_kv_heads, group) =
                pick(&mut random, &[(1, 1), (2, 1), (2, 2), (2, 5), (1, 8), (1, 9), (1, 12)]);
            let mask = match random.below(3) {
                0 => Mask::Full,
                1 => Mask::Window {
                    window_tokens: pick(&mut random, &[1, 17, 300]),
                    sink_tokens: pick(&mut random, &[0, 4, 100]),
                },
                _ => Mask::Blocks {
                    block_size: pick(&mut random, &[16, 64, 128]),
                    local_blocks: 1 + random.below(4) as u32,
                    sink_blocks: random.below(3) as u32,
                    stride: pick(&mut random, &[0, 2, 7]),
                },
            };
            let shape = KvShape {
                n_kv_heads,
                head_dim: pick(&mut random, &[64, 128]),
                block_size: mask.block_size() as usize,
                ty: pick(&mut random, &[KvType::F16, KvType::Bf16, KvType::Q8]),
            };
            let n_ctx = (pos + n_tokens) as usize;
            let mut context = context_of(&mut random, n_ctx, mask, shape, n_kv_heads * group);
            context.softcap = pick(&mut random, &[0.0, 0.0, 5.0]);
            let parts = random_parts(&mut random, pos, n_tokens);
            assert_near(&format!("{name}, case {case}"), &backend, &context, &parts, pos, n_tokens);
        }
    }
}

/// More keys than are looked up at once.
#[test]
fn attention_of_many_rows_to_a_long_context_is_as_near() {
    for (name, backend) in backends() {
        let mut random = Random::new(27);
        for head_dim in [64, 128] {
            let shape = KvShape { n_kv_heads: 1, head_dim, block_size: 64, ty: KvType::F16 };
            let (pos, n_tokens) = (8200, 130);
            let context = context_of(&mut random, (pos + n_tokens) as usize, Mask::Full, shape, 2);
            assert_near(&name, &backend, &context, &whole(pos + n_tokens), pos, n_tokens);
        }
    }
}

/// As many keys and queries as end just around what is computed side by side.
#[test]
fn attention_around_the_edges_of_tiles_is_as_near() {
    for (name, backend) in backends() {
        let mut random = Random::new(45);
        for end in EDGES {
            for n_tokens in EDGES.into_iter().filter(|&n| n <= end) {
                let ty = pick(&mut random, &[KvType::F16, KvType::Bf16, KvType::Q8]);
                for head_dim in [64, 128] {
                    let shape = KvShape { n_kv_heads: 1, head_dim, block_size: 64, ty };
                    let context = context_of(&mut random, end as usize, Mask::Full, shape, 2);
                    assert_near(&name, &backend, &context, &whole(end), end - n_tokens, n_tokens);
                }
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_however_often_it_is_launched() {
    for (name, backend) in backends() {
        let mut random = Random::new(46);
        for (pos, n_tokens) in [(3000, 1), (500, 5), (700, 300)] {
            for ty in [KvType::F16, KvType::Bf16, KvType::Q8] {
                let head_dim = pick(&mut random, &[64, 128]);
                let shape = KvShape { n_kv_heads: 2, head_dim, block_size: 64, ty };
                let end = pos + n_tokens;
                let context = context_of(&mut random, end as usize, Mask::Full, shape, 4);
                let mut rig = Rig::new(&backend, Precision::Fast);
                let outs = rig.attend_again(&context, &whole(end), (pos, n_tokens), 100);
                for (i, out) in outs.iter().enumerate() {
                    let what = format!("{name}: launch {i} of {n_tokens} at {pos}, {shape:?}");
                    assert_same_bits(&what, out, &outs[0]);
                }
            }
        }
    }
}

#[test]
fn products_have_the_same_bits_however_often_they_are_launched() {
    for (name, backend) in backends() {
        let mut random = Random::new(47);
        for ty in [TensorType::F16, TensorType::BF16, TensorType::Q4_0] {
            let w = random_weight(&mut random, ty, 520, 640);
            let products = [Product { w, bias: None, before: vec![] }];
            for n_rows in [1, 8, 16, 300] {
                let x = random.vector(n_rows * 640, 1.0);
                let mut rig = Rig::new(&backend, Precision::Fast);
                let first = rig.matmul(&products, &x, n_rows, false);
                for i in 1..100 {
                    let what = format!("{name}: launch {i} of {n_rows} rows, {ty}");
                    assert_same_bits(&what, &rig.matmul(&products, &x, n_rows, false), &first);
                }
            }
        }
    }
}

#[test]
fn attention_of_rounded_queries_is_that_of_others_rounded() {
    for (name, backend) in backends() {
        let mut random = Random::new(48);
        for case in 0..60 {
            let n_tokens = pick(&mut random, &[1, 15, 16, 63, 64, 65, 130, 300]);
            let pos = pick(&mut random, &[0, 1, 63, 64, 500, 1100]);
            let mut contexts =
                std::iter::repeat_with(|| random_context(&mut random, (pos + n_tokens) as usize));
            let mut context = contexts.find(|context| case % 4 == 0 || is_for_hopper(context)).unwrap();
            if case % 4 > 0 {
                context.shape.ty = pick(&mut random, &[KvType::F16, KvType::Bf16]);
            }
            let parts = random_parts(&mut random, pos, n_tokens);
            let mut rig = Rig::new(&backend, Precision::Fast);
            let [_, exact] = rig.attend(&context, &parts, pos, n_tokens);
            let words = rig.attend_rounded(&context, &parts, pos, n_tokens);
            let what = format!("{name}, case {case}: {n_tokens} at {pos}, {:?}", context.shape);
            // Results of 16 bits fill the first half.
            let (results, rest) = words.split_at(exact.len() / 2);
            if rest.iter().all(|&word| word == u32::MAX) {
                let round = |x: &f32| match context.shape.ty {
                    KvType::Bf16 => half::bf16::from_f32(*x).to_bits(),
                    _ => half::f16::from_f32(*x).to_bits(),
                };
                let rounded: Vec<_> = exact.iter().map(round).collect();
                assert!(bytemuck::cast_slice::<_, u16>(results) == rounded, "{what}, in 16 bits");
            } else {
                let has: Vec<_> = words.iter().map(|&word| f32::from_bits(word)).collect();
                assert_same_bits(&what, &has, &exact);
            }
        }
    }
}

/// What the other backends need no memory for.
#[test]
fn a_workspace_without_room_for_what_is_converted_is_refused() {
    let mut random = Random::new(49);
    let w = random_weight(&mut random, TensorType::Q8_0, 24, 640);
    for (name, backend) in backends() {
        let shape = WorkspaceShape { max_weight_elems: 64 * 640, ..SHAPE };
        multiply(&backend, &shape, &w, 40).unwrap();
        let error =
            multiply(&backend, &WorkspaceShape { max_weight_elems: 639, ..SHAPE }, &w, 40).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}");
    }
}

/// One key that draws most of the attention, as the first token does: what all others weigh together still counts.
#[test]
fn what_is_left_beside_a_key_that_draws_all_attention_counts() {
    let (n_ctx, n_heads, head_dim, lead) = (2000, 2, 64, 11.0);
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(28);
        for (ty, n_tokens) in
            [KvType::F16, KvType::Bf16, KvType::Q8].into_iter().flat_map(|ty| [(ty, 1), (ty, 64)])
        {
            let shape = KvShape { n_kv_heads: n_heads, head_dim, block_size: 64, ty };
            let mut context = context_of(&mut random, n_ctx, Mask::Full, shape, n_heads);
            let q = random.vector(n_heads * head_dim, 1.0);
            let scale = 1.0 / (head_dim as f32).sqrt();
            (context.scale, context.n_pairs, context.sink_logits) = (scale, 0, None);
            context.q = q.repeat(n_ctx);
            context.k.iter_mut().for_each(|x| *x *= 0.05);
            context.v.iter_mut().for_each(|x| *x = 0.5 + 0.01 * *x);
            for (head, q) in q.chunks(head_dim).enumerate() {
                let first = head * head_dim..(head + 1) * head_dim;
                let of_itself = scale * q.iter().map(|x| x * x).sum::<f32>();
                context.v[first.clone()].fill(0.0);
                context.k[first].iter_mut().zip(q).for_each(|(k, q)| *k = q * lead / of_itself);
            }
            let pos = (n_ctx - n_tokens) as u32;
            let parts = whole(n_ctx as u32);
            let expected = Rig::new(&oracle, Precision::Exact).attend(&context, &parts, pos, n_tokens as u32);
            let has = Rig::new(&backend, Precision::Fast).attend(&context, &parts, pos, n_tokens as u32);
            let tolerance = Tolerance { absolute: 0.0, relative: 0.05, angle: 1e-3 };
            assert_close(&format!("{name}, {ty:?}, {n_tokens} queries"), &has[1], &expected[1], tolerance);
        }
    }
}

/// Sessions of one layer that are decoded together.
struct Decoding {
    context: Context,
    n_ctx: usize,
    /// Tokens of each session before.
    held: Vec<u32>,
    /// Whether forks of the sessions go on.
    forks: bool,
    n_steps: u32,
}

/// A cache that shares what `cache` holds.
fn forked<B: Backend>(backend: &B, cache: &mut KvCache<B>, layout: LayerLayout) -> KvCache<B> {
    let mut ws = backend.workspace(&SHAPE, Precision::Fast).unwrap();
    let plan = cache.plan_fork(vec![layout]).unwrap();
    cache.fork(backend, &mut ws, plan, 0).unwrap()
}

/// The ops of a layer between its products.
type Ops<B> = fn(&B, &mut <B as Backend>::Workspace, AppendAttnArgs<'_, '_, B>) -> longgen::Result<()>;

/// What attention says in every step; steps of a token each are recorded and replayed.
fn decoded<B: Backend>(backend: &B, decoding: &Decoding, ops: Ops<B>) -> Vec<f32> {
    const CHUNK: u32 = 70;
    let Decoding { context, n_ctx, held, forks, n_steps } = decoding;
    let Context { shape, mask, n_heads, n_pairs, pairing, scale, softcap, .. } = *context;
    let mut rig = Rig::new(backend, Precision::Fast);
    let attention = LayerAttention { mask, phases: context.phases.clone() };
    let layout = || LayerLayout::new(&attention, shape, *n_ctx as u32, CHUNK).unwrap();
    let mut caches: Vec<_> = held
        .iter()
        .map(|_| KvCache::new(backend, vec![layout()], std::slice::from_ref(&attention), 0).unwrap())
        .collect();
    let mut descs: Vec<_> = held.iter().map(|_| backend.descriptor().unwrap()).collect();
    let (phases, sinks) =
        (rig.buf(&context.phases), context.sink_logits.as_ref().map(|sinks| rig.buf(sinks)));
    let inv_freq: Vec<f32> = (0..n_pairs).map(|pair| 0.7f32.powi(pair as i32)).collect();
    let inv_freq = rig.buf(&inv_freq);
    let (width, kv_width) = (n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    let (q_buf, kv_buf) = (CHUNK as usize * width * 4, CHUNK as usize * kv_width * 4);
    let (mut q, mut out) = (rig.poisoned(q_buf), rig.poisoned(q_buf));
    let (mut k, mut v) = (rig.poisoned(kv_buf), rig.poisoned(kv_buf));
    let mut table = rig.poisoned(CHUNK as usize * n_pairs * 8);

    // All take the tokens of the same context.
    let mut step = |caches: &mut [KvCache<B>], descs: &mut [B::Descriptor], n_tokens: u32| {
        let rows = |width: usize, of: &[f32], caches: &[KvCache<B>]| {
            let row = |cache: &KvCache<B>| {
                let pos = cache.n_tokens() as usize;
                of[pos * width..(pos + n_tokens as usize) * width].to_vec()
            };
            caches.iter().flat_map(row).collect::<Vec<_>>()
        };
        backend.upload(&mut q, 0, &rows(width, &context.q, caches)).unwrap();
        backend.upload(&mut k, 0, &rows(kv_width, &context.k, caches)).unwrap();
        backend.upload(&mut v, 0, &rows(kv_width, &context.v, caches)).unwrap();
        for (row, (desc, cache)) in (0..).step_by(n_tokens as usize).zip(descs.iter_mut().zip(&*caches)) {
            backend.describe(desc, StepRows { row, n_tokens, pos: cache.n_tokens() }).unwrap();
        }
        let descs = &*descs;
        let mut all = |backend: &B, ws: &mut B::Workspace| {
            let seqs = &descs.iter().collect::<Vec<_>>();
            let inv_freq = &inv_freq;
            let angles = RopeTableArgs { out: &mut table, inv_freq, n_pairs, attention_factor: 1.1, seqs };
            backend.rope_table(ws, angles)?;
            let mut seqs: Vec<_> =
                caches.iter_mut().zip(descs).map(|(cache, desc)| cache.layer(0, desc)).collect();
            let args = AppendAttnArgs {
                out: &mut out,
                q: &mut q,
                k: &mut k,
                v: &mut v,
                rope: Rope { table: (n_pairs > 0).then_some(&table), n_pairs, pairing },
                n_heads,
                scale,
                softcap,
                sink_logits: sinks.as_ref(),
                mask,
                phases: &phases,
                seqs: &mut seqs,
            };
            ops(backend, ws, args)?;
            let mut parts: Vec<_> =
                caches.iter_mut().zip(descs).flat_map(|(cache, desc)| cache.fill_rings(desc)).collect();
            backend.copy_blocks(ws, CopyBlocksArgs { parts: &mut parts })
        };
        // What is replayed has the same buffers each time.
        let is_repeated = n_tokens == 1 && descs.len() == held.len();
        rig.run(|backend, ws| match is_repeated {
            true => backend.repeat(ws, &[], |ws| all(backend, ws)),
            false => all(backend, ws),
        })
        .unwrap();
        for cache in caches.iter_mut() {
            cache.advance(n_tokens);
        }
        rig.read(&out, caches.len() * n_tokens as usize * width)
    };
    for (i, &held) in held.iter().enumerate() {
        while caches[i].n_tokens() < held {
            let n_tokens = CHUNK.min(held - caches[i].n_tokens());
            step(&mut caches[i..=i], &mut descs[i..=i], n_tokens);
        }
    }
    if *forks {
        caches = caches.iter_mut().map(|cache| forked(backend, cache, layout())).collect();
    }
    (0..*n_steps).flat_map(|_| step(&mut caches, &mut descs, 1)).collect()
}

#[test]
fn decoding_in_one_launch_has_the_bits_of_one_op_after_the_other() {
    for (name, backend) in backends() {
        let mut random = Random::new(33);
        for case in 0..60 {
            let mask = mask_for_hopper(&mut random);
            let (n_kv_heads, group) = pick(&mut random, &[(1, 1), (2, 2), (3, 1), (1, 8), (1, 9)]);
            let head_dim = pick(&mut random, &[64, 128]);
            let ty = pick(&mut random, &[KvType::F16, KvType::Bf16, KvType::Q8]);
            let shape = KvShape { n_kv_heads, head_dim, block_size: mask.block_size() as usize, ty };
            let n_sessions = pick(&mut random, &[1, 1, 3, 17]);
            let held: Vec<u32> =
                (0..n_sessions).map(|_| pick(&mut random, &[0, 1, 60, 63, 64, 127, 191, 300, 510])).collect();
            let n_steps = pick(&mut random, &[1, 4, 70]);
            let n_ctx = 600;
            let context = context_of(&mut random, n_ctx, mask, shape, n_kv_heads * group);
            let forks = random.below(2) == 1;
            let what = format!(
                "{name}, case {case}: {n_steps} after {held:?}, forks {forks}, {group} heads of {shape:?}, {mask:?}"
            );
            let decoding = Decoding { context, n_ctx, held, forks, n_steps };
            let has = decoded(&backend, &decoding, CudaBackend::append_attn);
            let expected = decoded(&backend, &decoding, |backend, ws, args| args.one_by_one(backend, ws));
            assert_same_bits(&what, &has, &expected);
        }
    }
}

/// The attention of a layer, and rows that go through it.
struct Layer {
    context: Context,
    products: [Product; 4],
    norm: Vec<f32>,
    /// Tokens of each step.
    steps: Vec<u32>,
    /// Whether a fork goes on after each.
    forks: bool,
    /// (tokens of all steps, d_model)
    x: Vec<f32>,
}

/// What each step adds to its rows, with the keys and values of those before it.
fn attended<B: Backend>(backend: &B, precision: Precision, layer: &Layer) -> Vec<f32> {
    let Layer { context, products, norm, steps, forks, x } = layer;
    let Context { shape, mask, n_heads, n_pairs, pairing, scale, softcap, .. } = *context;
    let mut rig = Rig::new(backend, precision);
    let attention = LayerAttention { mask, phases: context.phases.clone() };
    let n_ctx = steps.iter().sum::<u32>();
    let most = *steps.iter().max().unwrap();
    let layout = || LayerLayout::new(&attention, shape, n_ctx, most).unwrap();
    let mut cache = KvCache::new(backend, vec![layout()], std::slice::from_ref(&attention), 0).unwrap();
    let mut desc = backend.descriptor().unwrap();
    let [q, k, v, o] = products.each_ref().map(|product| rig.linear(product));
    let phases = rig.buf(&context.phases);
    let sinks = context.sink_logits.as_ref().map(|sinks| rig.buf(sinks));
    let inv_freq: Vec<f32> = (0..n_pairs).map(|pair| 0.7f32.powi(pair as i32)).collect();
    let (inv_freq, norm_buf, d_model) = (rig.buf(&inv_freq), rig.buf(norm), norm.len());
    let (width, kv_width) = (n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    let rows_of = |width: usize| rig.poisoned(most as usize * width * 4);
    let [mut h, mut q_rows, mut k_rows, mut v_rows, mut out] =
        [d_model, width, kv_width, kv_width, width].map(rows_of);
    let mut table = rows_of(2 * n_pairs);
    let mut added = Vec::new();
    for &n_tokens in steps {
        let pos = cache.n_tokens();
        let n_rows = n_tokens as usize;
        let before = &x[pos as usize * d_model..][..n_rows * d_model];
        let mut x = rig.buf(before);
        backend.describe(&mut desc, StepRows { row: 0, n_tokens, pos }).unwrap();
        rig.run(|backend, ws| {
            let seqs = &[&desc];
            let angles =
                RopeTableArgs { out: &mut table, inv_freq: &inv_freq, n_pairs, attention_factor: 1.1, seqs };
            backend.rope_table(ws, angles)?;
            let args = AttentionArgs {
                x: &mut x,
                n_rows,
                norm: &norm_buf,
                eps: 1e-5,
                q: &q,
                k: &k,
                v: &v,
                o: &o,
                scratch: &mut h,
                attend: AppendAttnArgs {
                    out: &mut out,
                    q: &mut q_rows,
                    k: &mut k_rows,
                    v: &mut v_rows,
                    rope: Rope { table: (n_pairs > 0).then_some(&table), n_pairs, pairing },
                    n_heads,
                    scale,
                    softcap,
                    sink_logits: sinks.as_ref(),
                    mask,
                    phases: &phases,
                    seqs: &mut [cache.layer(0, &desc)],
                },
            };
            backend.attention(ws, args)?;
            backend
                .copy_blocks(ws, CopyBlocksArgs { parts: &mut cache.fill_rings(&desc).collect::<Vec<_>>() })
        })
        .unwrap();
        cache.advance(n_tokens);
        if *forks {
            cache = forked(backend, &mut cache, layout());
        }
        let after = rig.read(&x, n_rows * d_model);
        added.extend(after.iter().zip(before).map(|(after, before)| after - before));
    }
    added
}

#[test]
fn attention_of_a_layer_is_as_near_as_16_bits_allow() {
    let oracle = ReferenceBackend::default();
    for (name, backend) in backends() {
        let mut random = Random::new(41);
        for case in 0..60 {
            let mask = mask_for_hopper(&mut random);
            let (n_kv_heads, group) = pick(&mut random, &[(1, 1), (2, 2), (3, 1), (1, 3)]);
            let head_dim = pick(&mut random, &[64, 128]);
            let ty = pick(&mut random, &[KvType::F16, KvType::F16, KvType::Bf16, KvType::Q8]);
            let shape = KvShape { n_kv_heads, head_dim, block_size: mask.block_size() as usize, ty };
            let mut context = context_of(&mut random, 1, mask, shape, n_kv_heads * group);
            if random.below(4) > 0 {
                context.n_pairs = head_dim / 2;
            }
            let d_model = pick(&mut random, &[96, 320, 640]);
            let ty_of_all = pick(&mut random, &TensorType::ALL);
            let is_mixed = random.below(3) == 0;
            let widths = [n_kv_heads * group, n_kv_heads, n_kv_heads].map(|heads| heads * head_dim);
            let shapes =
                [(widths[0], d_model), (widths[1], d_model), (widths[2], d_model), (d_model, widths[0])];
            let products: [Product; 4] = std::array::from_fn(|i| {
                let (rows, cols) = shapes[i];
                let ty = if is_mixed { pick(&mut random, &TensorType::ALL) } else { ty_of_all };
                let bias = (random.below(8) == 0).then(|| random.vector(rows, 0.3));
                Product { w: random_weight(&mut random, ty, rows, cols), bias, before: vec![] }
            });
            let steps: Vec<u32> = (0..1 + random.below(4))
                .map(|_| pick(&mut random, &[1, 15, 16, 63, 64, 70, 128, 129, 257, 300]))
                .collect();
            let n_tokens = steps.iter().sum::<u32>() as usize;
            let x = random.vector(n_tokens * d_model, 3.0);
            let norm = random.vector(d_model, 0.1);
            let what =
                format!("{name}, case {case}: {steps:?} of {d_model}, {products:?} in {shape:?}, {mask:?}");
            let forks = random.below(2) == 1;
            let is_bf16 = ty != KvType::F16 || products.iter().any(|part| part.w.ty == TensorType::BF16);
            let layer = Layer { context, products, norm, steps, forks, x };
            let expected = attended(&oracle, Precision::Exact, &layer);
            let has = attended(&backend, Precision::Fast, &layer);
            let fraction = if is_bf16 { 0.08 } else { 0.02 };
            // The more tokens a row sees, the smaller are its numbers.
            for (has, expected) in has.chunks(d_model).zip(expected.chunks(d_model)) {
                assert_close(&what, has, expected, of_their_size(fraction, expected));
            }
        }
    }
}
