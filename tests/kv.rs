//! Sessions of the cache against brute force: random plans, chunks, cancelled steps and rewinds, on poisoned memory.
//!
//! Every token gets random values when it is appended. All queries are zero, so that attention is the mean of the
//! values that a query sees, rounded to the cache's type: a token too many, too few, stale or never written shows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

#[cfg(feature = "cuda")]
mod support;

use half::{bf16, f16};
use longgen::Cancel;
use longgen::attention::mask::Mask;
use longgen::attention::plan::LayerAttention;
use longgen::backend::Backend;
use longgen::backend::args::*;

use longgen::backend::cpu::CpuBackend;
use longgen::backend::reference::ReferenceBackend;
use longgen::kv::cache::{KvCache, LayerLayout, scratch_bytes};
use longgen::kv::file::{Identity, Reader, Writer};
use longgen::kv::fork::LayerFork;
use longgen::kv::restore::Occasion;
use proptest::prelude::*;

const HEAD_DIM: usize = 8;

#[derive(Clone, Debug)]
enum Action {
    /// Append this many tokens; if `cancelled`, in some layers only.
    Step { n_tokens: u32, cancelled: bool },
    /// Go back by this many tokens, or as many more as it takes.
    Rewind(u32),
    /// Go back to this part of them in a hundred, or as many fewer as it takes.
    RewindTo(u32),
    /// Make a restore point.
    Keep,
    /// Go on with another cache, of this context or one that is just long enough, that has read what this one wrote.
    Reload(u32),
    /// Go on with a fork of this context, or one that is just long enough; the cache that is forked stays.
    Fork(u32),
    /// Go on with another of the caches that stayed.
    Switch(usize),
    /// Drop a cache that stayed.
    Drop(usize),
}

fn any_attention(n_heads: usize) -> impl Strategy<Value = LayerAttention> {
    let mask = prop_oneof![
        Just(Mask::Full),
        (1u32..150, 0u32..100)
            .prop_map(|(window_tokens, sink_tokens)| Mask::Window { window_tokens, sink_tokens }),
        (prop::sample::select(vec![16u32, 32]), 1u32..4, 0u32..3, 0u32..5).prop_map(
            |(block_size, local_blocks, sink_blocks, stride)| {
                Mask::Blocks { block_size, local_blocks, sink_blocks, stride }
            }
        ),
    ];
    (mask, prop::collection::vec(0u32..7, n_heads)).prop_map(|(mask, phases)| LayerAttention { mask, phases })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1u32..70, prop::bool::weighted(0.2))
            .prop_map(|(n_tokens, cancelled)| Action::Step { n_tokens, cancelled }),
        2 => Just(Action::Step { n_tokens: 1, cancelled: false }),
        1 => (1u32..80).prop_map(Action::Rewind),
        2 => (30u32..100).prop_map(Action::RewindTo),
        2 => Just(Action::Keep),
        1 => (1u32..1000).prop_map(Action::Reload),
        2 => (1u32..1000).prop_map(Action::Fork),
        2 => any::<usize>().prop_map(Action::Switch),
        1 => any::<usize>().prop_map(Action::Drop),
    ]
}

fn any_type() -> impl Strategy<Value = KvType> {
    prop::sample::select(vec![KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8])
}

/// The values of a token that was appended as the `stamp`-th, in [-1, 1).
fn value(stamp: u64, layer: usize, head: usize, d: usize) -> f32 {
    let mut z = stamp ^ (layer as u64) << 48 ^ (head as u64) << 40 ^ (d as u64) << 32;
    for _ in 0..3 {
        z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(1);
    }
    (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// The same as the cache gives them back.
fn rounded(ty: KvType, stamp: u64, layer: usize, head: usize) -> [f64; HEAD_DIM] {
    let values: [f32; HEAD_DIM] = std::array::from_fn(|d| value(stamp, layer, head, d));
    let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = f32::from(f16::from_f32(largest / 127.0));
    values.map(|x| match ty {
        KvType::F32 => f64::from(x),
        KvType::F16 => f64::from(f16::from_f32(x)),
        KvType::Bf16 => f64::from(bf16::from_f32(x)),
        KvType::Q8 => f64::from((x / scale).round_ties_even()).clamp(-127.0, 127.0) * f64::from(scale),
    })
}

/// A cache, and what it must hold.
struct Cache<B: Backend> {
    kv: KvCache<B>,
    n_ctx: u32,
    /// What tells its tokens from others.
    held: Vec<u64>,
    /// Tokens that were ever in it.
    furthest: u32,
    /// Restore points.
    kept: Vec<u32>,
}

/// A cache, and what is done to it.
#[derive(Clone, Debug)]
struct Case {
    plan: Vec<LayerAttention>,
    n_kv_heads: usize,
    ty: KvType,
    n_ctx: u32,
    restore_bytes: usize,
    actions: Vec<Action>,
}

/// `empty` with what `kv` has, by way of a file.
fn reloaded<B: Backend>(
    backend: &B,
    identity: &Identity<'_>,
    kv: &KvCache<B>,
    mut empty: KvCache<B>,
    n_ctx: u32,
) -> KvCache<B> {
    let (mut file, tokens) = (Vec::new(), vec![3; kv.n_tokens() as usize]);
    let (held, told) = (kv.held().unwrap(), &mut |_, _| Ok(()));
    let mut writer = Writer::new(&mut file, told);
    identity.write(&mut writer, &held, &tokens).unwrap();
    kv.save(backend, identity, &held, &mut writer).unwrap();
    let (n_bytes, mut from, told) = (file.len(), &file[..], &mut |_, _| Ok(()));
    let mut reader = Reader::new(&mut from, n_bytes, told);
    let (held, found) = identity.read(&mut reader, n_ctx, 4).unwrap();
    assert_eq!(found, tokens);
    empty.load(backend, identity, &held, &mut reader).unwrap();
    empty
}

fn check<B: Backend>(backend: &B, case: &Case) {
    let Case { plan, n_kv_heads, ty, n_ctx, restore_bytes, actions } = case;
    let (n_kv_heads, ty, n_ctx, restore_bytes) = (*n_kv_heads, *ty, *n_ctx, *restore_bytes);
    let n_heads = plan[0].phases.len();
    let group = n_heads / n_kv_heads;
    let chunk_tokens = 70;
    let layouts = |n_ctx| -> Vec<_> {
        let layout = |attention: &LayerAttention| {
            let block_size = attention.mask.block_size() as usize;
            let shape = KvShape { n_kv_heads, head_dim: HEAD_DIM, block_size, ty };
            LayerLayout::new(attention, shape, n_ctx, chunk_tokens).unwrap()
        };
        plan.iter().map(layout).collect()
    };
    let empty = |n_ctx| KvCache::new(backend, layouts(n_ctx), plan, restore_bytes).unwrap();
    let identity =
        Identity { fingerprint: 7, kv_type: ty, n_heads, n_kv_heads, head_dim: HEAD_DIM, attention: plan };
    let mut cache = Cache { kv: empty(n_ctx), n_ctx, held: Vec::new(), furthest: 0, kept: Vec::new() };
    let mut others: Vec<Cache<B>> = Vec::new();
    let shape = WorkspaceShape {
        max_rows: chunk_tokens as usize,
        max_cols: 64,
        max_weight_elems: 64,
        n_heads,
        head_dim: HEAD_DIM,
        n_ctx: 1000,
    };
    let mut workspace = backend.workspace(&shape, Precision::Exact).unwrap();
    let mut desc = backend.descriptor().unwrap();
    let alloc = |heads: usize| backend.alloc(chunk_tokens as usize * heads * HEAD_DIM * 4).unwrap();
    let (mut q, mut k, mut v, mut out) =
        (alloc(n_heads), alloc(n_kv_heads), alloc(n_kv_heads), alloc(n_heads));
    let mut stamp = 0;

    for action in actions {
        if let (Action::Switch(i), false) = (action, others.is_empty()) {
            let i = i % others.len();
            std::mem::swap(&mut cache, &mut others[i]);
        }
        let Cache { kv, n_ctx, held, furthest, kept } = &mut cache;
        let (n_tokens, cancelled) = match *action {
            Action::Switch(_) => continue,
            Action::Drop(i) => {
                if !others.is_empty() {
                    others.swap_remove(i % others.len());
                }
                continue;
            }
            Action::Fork(context) => {
                let before = backend.allocated_bytes();
                let (n_fork, is_same) = (context.max(kv.n_tokens()), context == *n_ctx);
                let forks = kv.plan_fork(layouts(n_fork)).unwrap();
                let bytes = |fork: &LayerFork| {
                    let LayerFork { layout, .. } = fork;
                    fork.kv_bytes(backend)
                        + layout.staging_bytes(backend)
                        + layout.table_bytes(backend)
                        + fork.parent_bytes(backend)
                };
                let planned = forks.iter().map(bytes).sum::<usize>()
                    + scratch_bytes(backend, forks.iter().map(|fork| &fork.layout));
                let fork = kv.fork(backend, &mut workspace, forks, restore_bytes).unwrap();
                assert_eq!(backend.allocated_bytes() - before, planned);
                assert_eq!(fork.n_tokens(), kv.n_tokens());
                assert!(fork.oldest_in_rings() >= kv.oldest_in_rings());
                let points: Vec<_> = fork.restore_points().collect();
                assert!(points.is_empty() || kv.restore_points().eq(points.iter().copied()));
                if is_same {
                    assert_eq!(fork.oldest_in_rings(), kv.oldest_in_rings());
                    assert_eq!(fork.restore_bytes(), kv.restore_bytes());
                }
                let (held, furthest) = (held.clone(), *furthest);
                let fork = Cache { kv: fork, n_ctx: n_fork, held, furthest, kept: points };
                others.push(std::mem::replace(&mut cache, fork));
                continue;
            }
            Action::Rewind(_) | Action::RewindTo(_) => {
                let wanted = match *action {
                    Action::RewindTo(percent) => kv.n_tokens() * percent / 100,
                    Action::Rewind(by) => kv.n_tokens().saturating_sub(by),
                    _ => unreachable!(),
                };
                let to = kv.nearest_restorable(wanted);
                assert!(
                    to <= wanted
                        && (to == wanted || kept.iter().all(|kept| !(to + 1..=wanted).contains(kept)))
                );
                kv.rewind(backend, to).unwrap();
                assert_eq!(kv.n_tokens(), to);
                *furthest = if to == 0 { 0 } else { *furthest };
                kept.retain(|&kept| kept <= to);
                held.truncate(to as usize);
                continue;
            }
            Action::Keep => {
                kv.keep(backend, Occasion::Turn).unwrap();
                assert!(kv.restore_bytes() <= restore_bytes);
                *kept = kv.restore_points().collect();
                assert!(kept.is_sorted() && kept.last().is_none_or(|&last| last <= kv.n_tokens()));
                continue;
            }
            Action::Reload(context) => {
                let restorable = kv.oldest_in_rings();
                let is_same = context == *n_ctx;
                *n_ctx = context.max(kv.n_tokens());
                *kv = reloaded(backend, &identity, kv, empty(*n_ctx), *n_ctx);
                assert_eq!(kv.n_tokens() as usize, held.len());
                assert!(kv.oldest_in_rings() >= restorable);
                assert!(!is_same || kv.oldest_in_rings() == restorable);
                kept.clear();
                continue;
            }
            Action::Step { n_tokens, cancelled } => (n_tokens.min(*n_ctx - kv.n_tokens()), cancelled),
        };
        if n_tokens == 0 {
            continue;
        }
        kv.make_room(backend, &mut workspace).unwrap();
        let begin = kv.n_tokens();
        let restorable = kv.oldest_in_rings();
        let stamps: Vec<u64> = (0..u64::from(n_tokens)).map(|i| stamp + i).collect();
        stamp += u64::from(n_tokens);
        let mut tokens = held.clone();
        tokens.extend(&stamps);
        backend.describe(&mut desc, StepRows { row: 0, n_tokens, pos: begin }).unwrap();
        let n_layers = if cancelled { plan.len().div_ceil(2) } else { plan.len() };
        for (layer, attention) in plan.iter().enumerate().take(n_layers) {
            let mut phases = backend.alloc(size_of_val(&attention.phases[..])).unwrap();
            backend.upload(&mut phases, 0, &attention.phases).unwrap();
            let rows = |heads: usize, f: &dyn Fn(u64, usize, usize) -> f32| {
                let mut rows = Vec::new();
                for &stamp in &stamps {
                    rows.extend((0..heads * HEAD_DIM).map(|i| f(stamp, i / HEAD_DIM, i % HEAD_DIM)));
                }
                rows
            };
            backend.upload(&mut q, 0, &rows(n_heads, &|_, _, _| 0.0)).unwrap();
            backend.upload(&mut k, 0, &rows(n_kv_heads, &|s, h, d| value(!s, layer, h, d))).unwrap();
            backend.upload(&mut v, 0, &rows(n_kv_heads, &|s, h, d| value(s, layer, h, d))).unwrap();
            backend
                .run(&mut workspace, &Cancel::default(), |ws| {
                    let args = AppendAttnArgs {
                        out: &mut out,
                        q: &mut q,
                        k: &mut k,
                        v: &mut v,
                        rope: Rope { table: None, n_pairs: 0, pairing: RopePairing::Halves },
                        n_heads,
                        scale: 1.0,
                        softcap: 0.0,
                        sink_logits: None,
                        mask: attention.mask,
                        phases: &phases,
                        seqs: &mut [kv.layer(layer, &desc)],
                    };
                    backend.append_attn(ws, args)
                })
                .unwrap();
            let mut result = vec![0.0f32; stamps.len() * n_heads * HEAD_DIM];
            backend.download(&mut result, &out, 0).unwrap();
            for (row, i) in (begin..begin + n_tokens)
                .enumerate()
                .filter(|(row, _)| row % 7 == 0 || row + 1 == stamps.len())
            {
                for head in 0..n_heads {
                    let seen = (0..=i).filter(|&j| attention.mask.sees(i, j, attention.phases[head]));
                    let seen: Vec<_> =
                        seen.map(|j| rounded(ty, tokens[j as usize], layer, head / group)).collect();
                    for d in 0..HEAD_DIM {
                        let sum: f64 = seen.iter().map(|values| values[d]).sum();
                        let (expected, has) =
                            (sum / seen.len() as f64, result[(row * n_heads + head) * HEAD_DIM + d]);
                        assert!(
                            (f64::from(has) - expected).abs() < 1e-5,
                            "layer {layer} {:?} {ty:?}: position {i} head {head}: {has} instead of {expected}",
                            attention.mask
                        );
                    }
                }
            }
        }
        if cancelled {
            assert_eq!((kv.n_tokens(), kv.oldest_in_rings()), (begin, restorable));
        } else {
            backend
                .run(&mut workspace, &Cancel::default(), |ws| {
                    backend.copy_blocks(
                        ws,
                        CopyBlocksArgs { parts: &mut kv.fill_rings(&desc).collect::<Vec<_>>() },
                    )
                })
                .unwrap();
            kv.advance(n_tokens);
            *held = tokens;
            *furthest = kv.n_tokens().max(*furthest);
            let promised = furthest.saturating_sub(16).min(kv.n_tokens());
            assert!(kv.oldest_in_rings() <= promised, "the spare block is gone");
        }
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    prop_oneof![Just((1usize, 1usize)), Just((1, 3)), Just((2, 1)), Just((2, 2))].prop_flat_map(
        |(n_kv_heads, group)| {
            let plan = prop::collection::vec(any_attention(n_kv_heads * group), 1..4);
            let actions = prop::collection::vec(any_action(), 1..60);
            let restore_bytes = prop_oneof![0usize..100_000, Just(1 << 24)];
            (plan, any_type(), 1u32..1000, restore_bytes, actions).prop_map(
                move |(plan, ty, n_ctx, restore_bytes, actions)| Case {
                    plan,
                    n_kv_heads,
                    ty,
                    n_ctx,
                    restore_bytes,
                    actions,
                },
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_query_sees_what_its_mask_says_by_definition(case in any_case()) {
        check(&ReferenceBackend::default(), &case);
    }

    #[test]
    fn every_query_sees_what_its_mask_says_on_the_cpu(case in any_case()) {
        check(&CpuBackend::new(2).unwrap(), &case);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn every_query_sees_what_its_mask_says_on_a_cuda_device(case in any_case()) {
        use longgen::backend::cuda::CudaBackend;
        static BACKEND: std::sync::LazyLock<Option<CudaBackend>> = std::sync::LazyLock::new(|| {
            CudaBackend::new(0).map_err(|error| support::say_skipped_on_cuda(&error)).ok()
        });
        if let Some(backend) = &*BACKEND {
            check(backend, &case);
        }
    }
}
