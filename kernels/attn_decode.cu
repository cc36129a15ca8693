// Attention of single rows on tensor cores, for heads of 64 and 128 and caches of 8 or 16 bits; Hopper has a kernel of its
// own, sm90/attn_decode.cu, and everything else is attn_rows.cu's.
//
// Bound: the bandwidth of memory. A block of four warps takes one token, one KV head, up to eight of its query heads and one
// of n_splits equal parts of the visible keys. A warp takes runs of 16 keys; keys and values go from memory to the registers
// from which mma.sync takes them (see attn_runs.cuh). While one run is computed the next one's keys are read, then its
// values. Lanes look up where 32 runs lie, one each.
//
// On an H100 it reads 2.2, 3.0 and 3.1 TB/s of 4096, 32,768 and 131,072 tokens with 32 KV heads of 128 in f16, of 3.17 that
// can be had; with eight, shared by 64 query heads, 0.8, 2.0 and 2.8: there the parts and their merging wait for each other.
#include "common/attn_runs.cuh"
#include "common/launch.cuh"

constexpr uint32_t WARPS = 4;
constexpr uint32_t LEAST_RUNS = 16;   // of a split: too small ones would cost more to merge than to compute

// The rows of a run in memory; those that are null are zeros.
template <uint32_t ROW_BYTES>
struct RowsInMemory {
    const Found& run;
    uint64_t offset;   // from a key to what is read

    __device__ __forceinline__ const uint8_t* row(uint32_t i) const {
        const uint8_t* row = run.first_key == NO_KEY ? nullptr : run.keys + i * ROW_BYTES;
        if (run.flags & IS_SPLIT) row = reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(run.keys), i));
        return row ? row + offset : nullptr;
    }
    __device__ __forceinline__ uint4 load16(const uint8_t* row, uint32_t at) const {
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row) {
            asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                         : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                         : "l"(row + at));
        }
        return x;
    }
    __device__ __forceinline__ uint2 load8(const uint8_t* row, uint32_t at) const {
        return row ? *reinterpret_cast<const uint2*>(row + at) : make_uint2(0, 0);
    }
};

// Scales of key lane / 4 of a run and of 8 more, and of their values.
__device__ __forceinline__ void load_scales(float (&of_keys)[2], float (&of_values)[2], const Found& run, uint32_t block_size) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t i = threadIdx.x % 32 / 4 + 8 * r;
        const __half* at = run.first_key == NO_KEY ? nullptr : run.scales() + i;
        if (run.flags & IS_SPLIT) {
            uint64_t own = run.keys ? reinterpret_cast<uint64_t>(run.scales()) : 0;
            at = reinterpret_cast<const __half*>(__shfl_sync(~0u, own, i));
        }
        of_keys[r] = at ? __half2float(at[0]) : 0.0f, of_values[r] = at ? __half2float(at[block_size]) : 0.0f;
    }
}

// Grid (n_splits, n_kv_heads * ceil(group / HEADS), n_tokens of every session).
template <int TYPE, int DIM>
__device__ __forceinline__ void attn_decode(const AttnParams& p) {
    begin();
    using Products = RunProducts<TYPE, DIM>;
    constexpr uint32_t RUNS = Products::ROW_BYTES < 256 ? 2 : 1;   // at once
    __shared__ uint32_t residues[HEADS];
    __shared__ uint32_t n_residues;
    __shared__ alignas(8) States<DIM, HEADS, WARPS> states;

    const RowPart part(p, HEADS);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, position = part.position;
    Finder<RUN> finder{p, part.seq, part.rows, part.kv_head, position};
    if (p.mask.stride > 0) {
        if (threadIdx.x == 0) n_residues = find_residues(p, part.first_head, part.n_heads, residues);
        __syncthreads();
    }

    VisibleBlocks visible(p.mask, position, position, residues, p.mask.stride > 0 ? n_residues : 0);
    Split<RUN> split(p, visible, position, LEAST_RUNS);
    if (blockIdx.x >= split.n_splits) return;
    // The warp's `i`-th run. Blocks of a head take runs in turn, so that they read the same pages of memory. Of what is
    // split, every lane below 16 finds a row, or none behind the token.
    Found found;
    auto fetch = [&](uint32_t i) {
        if (i % 32 == 0) {
            uint32_t own = i + lane, step = own / RUNS * split.n_splits + blockIdx.x;
            found = finder.find(visible, (step * WARPS + warp) * RUNS + own % RUNS, split.n);
        }
        Found run = found.from_lane(i % 32);
        if (run.flags & IS_SPLIT) {
            uint32_t first_key = run.first_key, key = first_key + lane % RUN, flags = run.flags;
            bool is_whole;
            if (key <= position) run = finder.at(part.seq.segments[finder.segment_of(key, is_whole)], key);
            else run = {nullptr, 0, 0, 0};
            run.first_key = first_key, run.flags = flags;
        }
        return run;
    };
    Found run[RUNS];
    typename Products::Keys keys[RUNS];
    typename Products::Values values[RUNS];
    float of_keys[RUNS][2], of_values[RUNS][2];
    auto load_next_keys = [&](uint32_t i) {
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            run[r] = fetch(i + r);
            Products::load_keys(keys[r], RowsInMemory<Products::ROW_BYTES>{run[r], 0});
            if constexpr (TYPE == KV_Q8) load_scales(of_keys[r], of_values[r], run[r], p.shape.block_size);
        }
    };
    auto load_their_values = [&] {
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            uint64_t to_values = uint64_t(p.shape.block_size) * Products::ROW_BYTES;
            Products::load_values(values[r], RowsInMemory<Products::ROW_BYTES>{run[r], to_values});
        }
    };
    load_next_keys(0);
    load_their_values();

    RunHeads<TYPE, DIM> heads;
    heads.load_queries(p, part.queries(p), part.first_head, part.n_heads);
    uint32_t a_turn = split.n_splits * WARPS * RUNS, n_own = (split.n + a_turn - 1) / a_turn * RUNS;
    for (uint32_t i = 0; i < n_own; i += RUNS) {
        float scores[RUNS][4], scales[RUNS][2];
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            heads.score(scores[r], keys[r], of_keys[r], p, position, run[r].first_key,
                        run[r].flags || run[r].first_key == NO_KEY);
            scales[r][0] = of_values[r][0], scales[r][1] = of_values[r][1];
        }
        // The values of these runs are still to be used: what belongs to them stays until then.
        bool is_more = i + RUNS < n_own;
        if (is_more) load_next_keys(i + RUNS);
        heads.raise(scores);
#pragma unroll
        for (int r = 0; r < RUNS; r++) heads.add(scores[r], values[r], scales[r]);
        if (is_more) load_their_values();
    }
    heads.leave(states[warp], part.n_heads);
    finish<DIM, HEADS, WARPS, WARPS>(p, part.row, part.first_head, part.n_heads, split.n_splits, states);
}

#define LG_DECODE(NAME, TYPE, DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 3)                                               \
        attn_decode_##NAME##_##DIM(const __grid_constant__ AttnParams p) {                                    \
        attn_decode<TYPE, DIM>(p);                                                                            \
    }
#if defined(LG_KV_F16)
LG_DECODE(f16, KV_F16, 64)
LG_DECODE(f16, KV_F16, 128)
#elif defined(LG_KV_BF16)
LG_DECODE(bf16, KV_BF16, 64)
LG_DECODE(bf16, KV_BF16, 128)
#else
LG_DECODE(q8, KV_Q8, 64)
LG_DECODE(q8, KV_Q8, 128)
#endif
