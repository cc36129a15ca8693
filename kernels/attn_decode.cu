// Attention of single rows on tensor cores, for heads of 64 and 128 and caches of 8 or 16 bits; everything else is
// attn_rows.cu's.
//
// Bound: the bandwidth of memory. A block of four warps takes one token, one KV head, up to eight of its query heads and one
// of n_splits equal parts of the visible keys. A warp takes runs of 16 keys; keys and values go from memory to the
// registers from which mma.sync takes them: keys are the rows of one product, (16, DIM) * (DIM, heads), and values, turned
// by exchanging halves of words, of the other, (DIM, 16) * (16, heads). Which of a lane's elements is which of the
// product's is free as long as both operands agree, so that a lane reads 16 bytes that lie together. While one run is
// computed the next one's keys are read, then its values. Lanes look up where 32 runs lie, one each.
//
// On an H100 it reads 2.2, 2.9 and 3.0 TB/s of 4096, 32,768 and 131,072 tokens with 32 KV heads of 128 in f16, of 3.17 that
// can be had; with eight, shared by 64 query heads, 0.9, 2.2 and 2.8: there the parts and their merging wait for each other.
// 8-bit ones are read at 2.6.
#include "common/attn_splits.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"

#include <type_traits>

constexpr uint32_t RUN = 16;
constexpr uint32_t HEADS = 8;
constexpr uint32_t LEAST_RUNS = 16;   // of a split
constexpr uint32_t NO_KEY = ~0u;
// Of a run: its rows are looked up one by one, and scores masked one by one; or only the latter.
constexpr uint32_t ROW_BY_ROW = 1, MASKED = 2, FLAGS = 3;

__device__ __forceinline__ uint4 load_once(const uint8_t* from) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];\n" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}

// Transposes an 8 x 8 matrix of 16-bit elements that the lanes hold as mma.sync's results.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
    return y;
}

// Two bytes, as numbers from 0 on, as f16 less 128: in the mantissa of 1024.
__device__ __forceinline__ uint32_t bytes_to_half2(uint32_t bytes, uint32_t selector) {
    uint32_t pair = __byte_perm(bytes, 0x64646464, selector);
    __half2 x = __hsub2(*reinterpret_cast<__half2*>(&pair), __float2half2_rn(1024.0f + 128.0f));
    return *reinterpret_cast<uint32_t*>(&x);
}

// Where a run of keys lies.
struct Run {
    const uint8_t* keys;     // the first one; of a run that is looked up row by row, the lane's, or null
    const __half* scales;    // the same, of 8-bit keys
    uint32_t first_key;      // or NO_KEY
    uint32_t flags;
};

template <int TYPE, int DIM>
struct Decode {
    using T = std::conditional_t<TYPE == KV_BF16, Bf16Type, HalfType>;
    static constexpr uint32_t ROW_BYTES = DIM * (TYPE == KV_Q8 ? 1 : 2);
    static constexpr int RUNS = ROW_BYTES < 256 ? 2 : 1;     // at once
    static constexpr int KEY_WORDS = ROW_BYTES / 16;      // of each of a lane's two keys
    static constexpr int VALUE_WORDS = ROW_BYTES / 32;    // of each of its four values

    const AttnParams& p;
    const AttnSeq& seq;
    StepRows rows;
    uint32_t kv_head, position;

    // --- Where keys lie.

    // The row of a key in the segment that holds it, or null; and whether that holds the rest of a run too.
    __device__ __forceinline__ Run row_of(uint32_t key, bool& is_whole) const {
        uint32_t begin = 0, block_size = p.shape.block_size;
        for (uint32_t s = 0; s < seq.n_segments; s++) {
            const Segment& segment = seq.segments[s];
            uint32_t end = segment.end_position(rows);
            if (begin <= key && key < end) {
                uint32_t place = segment.places.place(rows, block_size, kv_head, key / block_size);
                KvBlock block(p.shape, const_cast<uint8_t*>(segment.blocks), place);
                is_whole = key + RUN <= end;
                return {block.row(false, key % block_size), block.scale(false, key % block_size), key, 0};
            }
            begin = max(begin, end);
        }
        is_whole = false;
        return {nullptr, nullptr, NO_KEY, 0};
    }

    __device__ __forceinline__ Run find(const VisibleBlocks& visible, uint32_t i, uint32_t last) const {
        if (i >= last) return {nullptr, nullptr, NO_KEY, 0};
        const Mask& m = p.mask;
        uint32_t runs_a_block = p.shape.block_size / RUN;
        uint32_t block = visible[i / runs_a_block], key = block * p.shape.block_size + i % runs_a_block * RUN;
        bool is_whole;
        Run run = row_of(key, is_whole);
        is_whole &= key + RUN - 1 <= position;
        if (m.kind == MASK_WINDOW) is_whole &= position - key < m.window_tokens || key + RUN <= m.sink_tokens;
        run.first_key = key;
        run.flags = is_whole ? 0 : ROW_BY_ROW;
        // What is neither near nor a sink is there because some of the heads see it.
        if (m.kind == MASK_BLOCKS && block < visible.near && block >= visible.n_sinks) run.flags |= MASKED;
        return run;
    }

    // What another lane has found; row by row if need be, nothing for keys that no head sees.
    __device__ __forceinline__ Run from_lane(const Run& found, uint32_t lane) const {
        auto pointer = [&](const void* x) { return __shfl_sync(~0u, reinterpret_cast<uint64_t>(x), lane); };
        Run run;
        run.keys = reinterpret_cast<const uint8_t*>(pointer(found.keys));
        run.scales = TYPE == KV_Q8 ? reinterpret_cast<const __half*>(pointer(found.scales)) : nullptr;
        uint32_t word = __shfl_sync(~0u, found.first_key == NO_KEY ? NO_KEY : found.first_key | found.flags, lane);
        run.flags = word == NO_KEY ? 0 : word & FLAGS;
        run.first_key = word == NO_KEY ? NO_KEY : word & ~FLAGS;
        if (run.flags & ROW_BY_ROW) {
            uint32_t key = run.first_key + threadIdx.x % RUN;
            const Mask& m = p.mask;
            bool is_seen = key <= position;
            if (m.kind == MASK_WINDOW) is_seen &= position - key < m.window_tokens || key < m.sink_tokens;
            bool is_whole;
            Run row = row_of(key, is_whole);
            run.keys = is_seen ? row.keys : nullptr;
            run.scales = row.scales;
        }
        return run;
    }

    // The rows `i` of a run: its keys, or null.
    __device__ __forceinline__ const uint8_t* row(const Run& run, uint32_t i) const {
        if (!(run.flags & ROW_BY_ROW)) return run.first_key == NO_KEY ? nullptr : run.keys + i * ROW_BYTES;
        return reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(run.keys), i));
    }

    // Scales of keys `i` of a run and of their values.
    __device__ __forceinline__ float2 scales(const Run& run, uint32_t i) const {
        const uint8_t* key = row(run, i);
        const __half* at = run.scales + i;
        if (run.flags & ROW_BY_ROW) {
            at = reinterpret_cast<const __half*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(run.scales), i));
        }
        if (!key) return make_float2(0, 0);
        return make_float2(__half2float(at[0]), __half2float(at[p.shape.block_size]));
    }

    // --- Loads: a lane is the (lane / 4)-th of eight and the (lane % 4)-th of four.

    // Keys lane / 4 and 8 more: of every 64 bytes, 16 of this lane.
    __device__ __forceinline__ void load_keys(uint32_t (&words)[2][KEY_WORDS], const Run& run) const {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint8_t* from = row(run, lane / 4 + 8 * r);
#pragma unroll
            for (int i = 0; i < KEY_WORDS / 4; i++) {
                uint4 x = from ? load_once(from + i * 64 + lane % 4 * 16) : make_uint4(0, 0, 0, 0);
                words[r][4 * i] = x.x, words[r][4 * i + 1] = x.y, words[r][4 * i + 2] = x.z, words[r][4 * i + 3] = x.w;
            }
        }
    }

    // Values lane % 4 * 2, the next, and 8 more of both: of every 128 bytes 16 of this lane, or 8 of 64.
    __device__ __forceinline__ void load_values(uint32_t (&words)[4][VALUE_WORDS], const Run& run) const {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint8_t* from = row(run, lane % 4 * 2 + r % 2 + r / 2 * 8);
            if (from) from += uint64_t(p.shape.block_size) * ROW_BYTES;
            if constexpr (VALUE_WORDS >= 4) {
#pragma unroll
                for (int i = 0; i < VALUE_WORDS / 4; i++) {
                    uint4 x = from ? load_once(from + i * 128 + lane / 4 * 16) : make_uint4(0, 0, 0, 0);
                    words[r][4 * i] = x.x, words[r][4 * i + 1] = x.y, words[r][4 * i + 2] = x.z, words[r][4 * i + 3] = x.w;
                }
            } else {
                uint2 x = from ? *reinterpret_cast<const uint2*>(from + lane / 4 * 8) : make_uint2(0, 0);
                words[r][0] = x.x, words[r][1] = x.y;
            }
        }
    }

    // The element of a key's row that is the first of the lane's, of four that go together in the `step`-th product.
    static __device__ __forceinline__ uint32_t key_element(int step, uint32_t lane) {
        if (TYPE == KV_Q8) return step / 4 * 64 + lane % 4 * 16 + step % 4 * 4;
        return step / 2 * 32 + lane % 4 * 8 + step % 2 * 4;
    }

    // The element of a value's row that is the lane's first of two in the `tile`-th product.
    static __device__ __forceinline__ uint32_t value_element(int tile, uint32_t lane) {
        constexpr int WIDTH = TYPE == KV_Q8 ? DIM / 8 : 8;   // elements of a lane that lie together
        return tile * 2 / WIDTH * 64 + lane / 4 * WIDTH + tile * 2 % WIDTH;
    }

    // --- Products.

    // Of a run's keys with all heads: in a lane, keys lane / 4 and 8 more with heads lane % 4 * 2 and the next.
    static __device__ __forceinline__ void
    scores_of(float (&scores)[4], const uint32_t (&keys)[2][KEY_WORDS], const uint32_t (&q)[DIM / 16][2]) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[i] = 0.0f;
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            uint32_t a[4];
            if constexpr (TYPE == KV_Q8) {
                uint32_t x = keys[0][step] ^ 0x80808080, y = keys[1][step] ^ 0x80808080;
                a[0] = bytes_to_half2(x, 0x4140), a[1] = bytes_to_half2(y, 0x4140);
                a[2] = bytes_to_half2(x, 0x4342), a[3] = bytes_to_half2(y, 0x4342);
            } else {
                a[0] = keys[0][2 * step], a[1] = keys[1][2 * step];
                a[2] = keys[0][2 * step + 1], a[3] = keys[1][2 * step + 1];
            }
            T::mma(scores, a, q[step][0], q[step][1]);
        }
    }

    // Adds a run's values, weighed: in a lane, elements value_element and the next, of heads lane % 4 * 2 and the next.
    static __device__ __forceinline__ void
    weigh(float (&out)[DIM / 16][4], const uint32_t (&values)[4][VALUE_WORDS], uint32_t w0, uint32_t w1) {
#pragma unroll
        for (int i = 0; i < VALUE_WORDS; i++) {
            const uint32_t &x = values[0][i], &y = values[1][i], &z = values[2][i], &w = values[3][i];
            if constexpr (TYPE == KV_Q8) {
                uint32_t bytes[2][2] = {{__byte_perm(x, y, 0x5140) ^ 0x80808080, __byte_perm(x, y, 0x7362) ^ 0x80808080},
                                        {__byte_perm(z, w, 0x5140) ^ 0x80808080, __byte_perm(z, w, 0x7362) ^ 0x80808080}};
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t a[4] = {bytes_to_half2(bytes[0][half], 0x4140), bytes_to_half2(bytes[0][half], 0x4342),
                                     bytes_to_half2(bytes[1][half], 0x4140), bytes_to_half2(bytes[1][half], 0x4342)};
                    T::mma(out[2 * i + half], a, w0, w1);
                }
            } else {
                uint32_t a[4] = {__byte_perm(x, y, 0x5410), __byte_perm(x, y, 0x7632), __byte_perm(z, w, 0x5410),
                                 __byte_perm(z, w, 0x7632)};
                T::mma(out[i], a, w0, w1);
            }
        }
    }
};

// Grid (n_splits, n_kv_heads * ceil(group / HEADS), n_tokens of every session).
template <int TYPE, int DIM>
__device__ __forceinline__ void attn_decode(const AttnParams& p) {
    begin();
    using D = Decode<TYPE, DIM>;
    __shared__ uint32_t residues[HEADS];
    __shared__ uint32_t n_residues;
    __shared__ States<DIM, HEADS> states;

    const auto [seq, rows, kv_head, first_head, n_heads, position, row] = RowPart(p, HEADS);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    D decode{p, seq, rows, kv_head, position};
    if (p.mask.stride > 0) {
        if (threadIdx.x == 0) n_residues = find_residues(p, first_head, n_heads, residues);
        __syncthreads();
    }

    VisibleBlocks visible(p.mask, position, position, residues, p.mask.stride > 0 ? n_residues : 0);
    uint32_t runs_a_block = p.shape.block_size / RUN;
    uint32_t n_runs = (visible.count - 1) * runs_a_block + position % p.shape.block_size / RUN + 1;
    // Too small parts would cost more to merge than to compute.
    uint32_t per_split = max((n_runs + p.n_splits - 1) / p.n_splits, LEAST_RUNS);
    per_split = (per_split + D::RUNS - 1) / D::RUNS * D::RUNS;
    uint32_t n_splits = (n_runs + per_split - 1) / per_split;
    if (blockIdx.x >= n_splits) return;
    uint32_t first_run = blockIdx.x * per_split, last_run = min(n_runs, first_run + per_split);
    // The warp's `i`-th run.
    Run found;
    auto fetch = [&](uint32_t i) {
        if (i % 32 == 0) {
            uint32_t own = i + lane;
            found = decode.find(visible, first_run + (own / D::RUNS * ROWS_WARPS + warp) * D::RUNS + own % D::RUNS, last_run);
        }
        return decode.from_lane(found, i % 32);
    };
    Run run[D::RUNS];
    uint32_t keys[D::RUNS][2][D::KEY_WORDS], values[D::RUNS][4][D::VALUE_WORDS];
    float2 scales[D::RUNS][2];
    auto load_next_keys = [&](uint32_t i) {
#pragma unroll
        for (int r = 0; r < D::RUNS; r++) {
            run[r] = fetch(i + r);
            decode.load_keys(keys[r], run[r]);
            if constexpr (TYPE == KV_Q8) {
                scales[r][0] = decode.scales(run[r], lane / 4), scales[r][1] = decode.scales(run[r], lane / 4 + 8);
            }
        }
    };
    auto load_their_values = [&] {
#pragma unroll
        for (int r = 0; r < D::RUNS; r++) decode.load_values(values[r], run[r]);
    };
    load_next_keys(0);
    load_their_values();

    // Queries of head lane / 4, in the order of the keys' elements; zeros for heads that are not there.
    uint32_t q[DIM / 16][2], phases[2];
    const float* query = p.q + (uint64_t(row) * p.n_heads + first_head + lane / 4) * DIM;
#pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        float4 x = make_float4(0, 0, 0, 0);
        if (lane / 4 < n_heads) x = *reinterpret_cast<const float4*>(query + D::key_element(step, lane));
        q[step][0] = D::T::pack(x.x, x.y), q[step][1] = D::T::pack(x.z, x.w);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) phases[h] = p.phases[first_head + min(lane % 4 * 2 + h, n_heads - 1)];

    float out[DIM / 16][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    uint32_t n_own = (last_run - first_run + ROWS_WARPS * D::RUNS - 1) / (ROWS_WARPS * D::RUNS) * D::RUNS;
    for (uint32_t i = 0; i < n_own; i += D::RUNS) {
        float scores[D::RUNS][4], top[2] = {most[0], most[1]};
        float of_values[D::RUNS][2];
#pragma unroll
        for (int r = 0; r < D::RUNS; r++) {
            D::scores_of(scores[r], keys[r], q);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = scores[r][e] * p.scale;
                if constexpr (TYPE == KV_Q8) x *= scales[r][e / 2].x;
                if (p.softcap > 0.0f) x = p.softcap * tanhf(x / p.softcap);
                scores[r][e] = x * LOG2_E;
            }
            if (run[r].flags || run[r].first_key == NO_KEY) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t key = run[r].first_key + lane / 4 + e / 2 * 8;
                    bool is_seen = run[r].first_key != NO_KEY && p.mask.sees(position, key, phases[e % 2]);
                    if (!is_seen) scores[r][e] = -INFINITY;
                }
            }
            of_values[r][0] = scales[r][0].y, of_values[r][1] = scales[r][1].y;
#pragma unroll
            for (int e = 0; e < 4; e++) top[e % 2] = fmaxf(top[e % 2], scores[r][e]);
        }
        // The values of this step are still to be used: what belongs to them stays until then.
        bool is_more = i + D::RUNS < n_own;
        if (is_more) load_next_keys(i + D::RUNS);
        float factor[2], base[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int other = 4; other < 32; other *= 2) top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], other));
            // Nothing is seen yet: there is nothing to be relative to.
            factor[h] = rescale(most[h], top[h]);
            base[h] = top[h] == -INFINITY ? 0.0f : top[h] - WEIGHT_SHIFT;
            most[h] = top[h];
            sum[h] *= factor[h];
        }
        if (__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < DIM / 16; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) out[j][e] *= factor[e % 2];
            }
        }
#pragma unroll
        for (int r = 0; r < D::RUNS; r++) {
            float weights[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                weights[e] = exp2f(scores[r][e] - base[e % 2]);
                sum[e % 2] += weights[e];
                if constexpr (TYPE == KV_Q8) weights[e] *= of_values[r][e / 2];
            }
            D::weigh(out, values[r], transposed(D::T::pack(weights[0], weights[1])), transposed(D::T::pack(weights[2], weights[3])));
        }
        if (is_more) load_their_values();
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int other = 4; other < 32; other *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], other);
        uint32_t head = lane % 4 * 2 + h;
#pragma unroll
        for (int j = 0; j < DIM / 16; j++) {
            uint32_t element = D::value_element(j, lane);
            states[warp][head][element] = out[j][h], states[warp][head][element + 1] = out[j][2 + h];
        }
        if (lane < 4) states[warp][head][DIM] = most[h] - WEIGHT_SHIFT, states[warp][head][DIM + 1] = sum[h];
    }
    finish<DIM, HEADS>(p, row, first_head, n_heads, n_splits, states);
}

#define LG_DECODE(NAME, TYPE, DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * ROWS_WARPS, 3)                                          \
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
