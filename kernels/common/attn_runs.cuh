// Runs of 16 keys: where they lie, and attention to them on tensor cores by up to eight query heads of a token.
//
// A warp takes a run at a time. Keys are the rows of one product of mma.sync, (16, DIM) * (DIM, heads), and values, turned
// by exchanging halves of words, of the other, (DIM, 16) * (16, heads). Which of a lane's elements is which of the
// product's is free as long as both operands agree, so that a lane reads 16 bytes that lie together. Below, a lane is the
// (lane / 4)-th of eight and the (lane % 4)-th of four.
#pragma once
#include "attn_splits.cuh"
#include "mma.cuh"

#include <type_traits>

constexpr uint32_t RUN = 16;
constexpr uint32_t HEADS = 8;
constexpr uint32_t NO_KEY = ~0u;
// Of keys that are looked up together: they do not lie together, in one segment of the cache and up to the token; or some
// head does not see some of them.
constexpr uint32_t IS_SPLIT = 1, IS_MASKED = 2, FLAGS = 3;

// Where some keys lie that follow each other.
struct Found {
    const uint8_t* keys;     // the first one
    uint32_t to_scales;      // bytes from there to its scale, if it has one
    uint32_t first_key;      // or NO_KEY
    uint32_t flags;

    // What another lane has found.
    __device__ __forceinline__ Found from_lane(uint32_t lane) const {
        uint64_t address = __shfl_sync(~0u, reinterpret_cast<uint64_t>(keys), lane);
        uint32_t word = __shfl_sync(~0u, first_key == NO_KEY ? NO_KEY : first_key | flags, lane);
        return {reinterpret_cast<const uint8_t*>(address), __shfl_sync(~0u, to_scales, lane),
                word == NO_KEY ? NO_KEY : word & ~FLAGS, word == NO_KEY ? 0 : word & FLAGS};
    }
    __device__ __forceinline__ const __half* scales() const { return reinterpret_cast<const __half*>(keys + to_scales); }
};

// Finds what a token sees of a KV head, KEYS at a time: a multiple of RUN that divides a cache block.
template <uint32_t KEYS>
struct Finder {
    const AttnParams& p;
    const AttnSeq& seq;
    StepRows rows;
    uint32_t kv_head, position;

    // A key in the segment that holds it.
    __device__ __forceinline__ Found at(const Segment& segment, uint32_t key) const {
        uint32_t block_size = p.shape.block_size;
        uint32_t place = segment.places.place(rows, block_size, kv_head, key / block_size);
        KvBlock block(p.shape, const_cast<uint8_t*>(segment.blocks), place);
        const uint8_t* row = block.row(false, key % block_size);
        uint64_t to_scales = reinterpret_cast<const uint8_t*>(block.scale(false, key % block_size)) - row;
        return {row, uint32_t(to_scales), key, 0};
    }

    // The segment of a key up to the token, and whether it holds the rest of KEYS too.
    __device__ __forceinline__ uint32_t segment_of(uint32_t key, bool& is_whole) const {
        uint32_t s = 0, end;
        while ((end = seq.segments[s].end_position(rows)) <= key && s + 1 < seq.n_segments) s++;
        is_whole = key + KEYS <= end;
        return s;
    }

    // The `i`-th KEYS of all `n`.
    __device__ __forceinline__ Found find(const VisibleBlocks& visible, uint32_t i, uint32_t n) const {
        if (i >= n) return {nullptr, 0, NO_KEY, 0};
        const Mask& m = p.mask;
        uint32_t a_block = p.shape.block_size / KEYS;
        uint32_t block = visible[i / a_block], key = block * p.shape.block_size + i % a_block * KEYS, last = key + KEYS - 1;
        bool is_whole;
        Found found = at(seq.segments[segment_of(key, is_whole)], key);
        if (!is_whole || last > position) found.flags = IS_SPLIT | IS_MASKED;
        if (m.kind == MASK_WINDOW && position - key >= m.window_tokens && last >= m.sink_tokens) found.flags |= IS_MASKED;
        // What is neither near nor a sink is there because some of the heads see it.
        if (m.kind == MASK_BLOCKS && block < visible.near && block >= visible.n_sinks) found.flags |= IS_MASKED;
        return found;
    }
};

// KEYS at a time, all that a token sees, and how many splits they are for, of at least `least` each.
template <uint32_t KEYS>
struct Split {
    uint32_t n, n_splits;

    __device__ __forceinline__ Split(const AttnParams& p, const VisibleBlocks& visible, uint32_t position, uint32_t least) {
        uint32_t block_size = p.shape.block_size;
        n = (visible.count - 1) * (block_size / KEYS) + position % block_size / KEYS + 1;
        n_splits = min(p.n_splits, (n + least - 1) / least);
    }
};

// Two bytes, as numbers from 0 on, as f16 less 128: in the mantissa of 1024.
__device__ __forceinline__ uint32_t bytes_to_half2(uint32_t bytes, uint32_t selector) {
    uint32_t pair = __byte_perm(bytes, 0x64646464, selector);
    __half2 x = __hsub2(*reinterpret_cast<__half2*>(&pair), __float2half2_rn(1024.0f + 128.0f));
    return *reinterpret_cast<uint32_t*>(&x);
}

// Transposes an 8 x 8 matrix of 16-bit elements that the lanes hold as mma.sync's results.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
    return y;
}

// The products of a run and all query heads.
template <int TYPE, int DIM>
struct RunProducts {
    using T = std::conditional_t<TYPE == KV_BF16, Bf16Type, HalfType>;
    static constexpr uint32_t ROW_BYTES = DIM * (TYPE == KV_Q8 ? 1 : 2);
    static constexpr int KEY_WORDS = ROW_BYTES / 16;      // of each of a lane's two keys
    static constexpr int VALUE_WORDS = ROW_BYTES / 32;    // of each of its four values
    using Keys = uint32_t[2][KEY_WORDS];
    using Values = uint32_t[4][VALUE_WORDS];

    // Keys lane / 4 and 8 more: of every 64 bytes, 16 of this lane. `rows` says where a row is, and loads from there.
    template <typename Rows>
    static __device__ __forceinline__ void load_keys(Keys& words, const Rows& rows) {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            auto from = rows.row(lane / 4 + 8 * r);
#pragma unroll
            for (int i = 0; i < KEY_WORDS / 4; i++) {
                uint4 x = rows.load16(from, i * 64 + lane % 4 * 16);
                words[r][4 * i] = x.x, words[r][4 * i + 1] = x.y, words[r][4 * i + 2] = x.z, words[r][4 * i + 3] = x.w;
            }
        }
    }

    static __device__ __forceinline__ uint32_t value_row(int r, uint32_t lane) { return lane % 4 * 2 + r % 2 + r / 2 * 8; }

    // Values lane % 4 * 2, the next, and 8 more of both: of every 128 bytes 16 of this lane, or 8 of 64.
    template <typename Rows>
    static __device__ __forceinline__ void load_values(Values& words, const Rows& rows) {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            auto from = rows.row(value_row(r, lane));
            if constexpr (VALUE_WORDS >= 4) {
#pragma unroll
                for (int i = 0; i < VALUE_WORDS / 4; i++) {
                    uint4 x = rows.load16(from, i * 128 + lane / 4 * 16);
                    words[r][4 * i] = x.x, words[r][4 * i + 1] = x.y, words[r][4 * i + 2] = x.z, words[r][4 * i + 3] = x.w;
                }
            } else {
                uint2 x = rows.load8(from, lane / 4 * 8);
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

    // Of a run's keys with all heads: in a lane, keys lane / 4 and 8 more with heads lane % 4 * 2 and the next.
    static __device__ __forceinline__ void
    score(float (&scores)[4], const Keys& keys, const uint32_t (&q)[DIM / 16][2]) {
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
    static __device__ __forceinline__ void weigh(float (&out)[DIM / 16][4], const Values& values, uint32_t w0, uint32_t w1) {
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

// What a warp's keys come to for the query heads of a token: lane % 4 * 2 and the next.
template <int TYPE, int DIM>
struct RunHeads {
    using Products = RunProducts<TYPE, DIM>;
    using T = typename Products::T;

    uint32_t q[DIM / 16][2];   // of head lane / 4, in the order of the keys' elements; zeros if it is not there
    uint32_t phases[2];
    float out[DIM / 16][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    // Those of the heads from `first_head` on; `queries` is the first of them.
    __device__ __forceinline__ void load_queries(const AttnParams& p, const float* queries, uint32_t first_head, uint32_t n_heads) {
        uint32_t lane = threadIdx.x % 32;
        const float* query = queries + lane / 4 * DIM;
#pragma unroll
        for (int step = 0; step < DIM / 16; step++) {
            float4 x = make_float4(0, 0, 0, 0);
            if (lane / 4 < n_heads) x = *reinterpret_cast<const float4*>(query + Products::key_element(step, lane));
            q[step][0] = T::pack_finite(x.x, x.y), q[step][1] = T::pack_finite(x.z, x.w);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) phases[h] = p.phases[first_head + min(lane % 4 * 2 + h, n_heads - 1)];
    }

    // Scores of a run in base 2, those of keys lane / 4 and 8 more, for which `scales` are; -inf for what is not seen.
    __device__ __forceinline__ void score(float (&scores)[4], const typename Products::Keys& keys, const float (&scales)[2],
                                          const AttnParams& p, uint32_t position, uint32_t first_key, bool is_masked) const {
        Products::score(scores, keys, q);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float x = scores[e] * p.scale;
            if constexpr (TYPE == KV_Q8) x *= scales[e / 2];
            if (p.softcap > 0.0f) x = p.softcap * tanhf(x / p.softcap);
            scores[e] = x * LOG2_E;
        }
        if (is_masked) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t key = first_key + threadIdx.x % 32 / 4 + e / 2 * 8;
                bool is_seen = first_key != NO_KEY && p.mask.sees(position, key, phases[e % 2]);
                if (!is_seen) scores[e] = -INFINITY;
            }
        }
    }

    // Makes what was gathered relative to the largest score, now that those of N more runs are known.
    template <int N>
    __device__ __forceinline__ void raise(const float (&scores)[N][4]) {
        float top[2] = {most[0], most[1]}, factor[2];
#pragma unroll
        for (int r = 0; r < N; r++) {
#pragma unroll
            for (int e = 0; e < 4; e++) top[e % 2] = fmaxf(top[e % 2], scores[r][e]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int other = 4; other < 32; other *= 2) top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], other));
            factor[h] = rescale(most[h], top[h]);
            most[h] = top[h];
            sum[h] *= factor[h];
        }
        if (!__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
        for (int j = 0; j < DIM / 16; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) out[j][e] *= factor[e % 2];
        }
    }

    // Adds a run whose scores are known to raise(); `scales` are those of its values.
    __device__ __forceinline__ void add(const float (&scores)[4], const typename Products::Values& values, const float (&scales)[2]) {
        float weights[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            // Nothing is seen yet: there is nothing to be relative to.
            float base = most[e % 2] == -INFINITY ? 0.0f : most[e % 2] - WEIGHT_SHIFT;
            weights[e] = exp2f(scores[e] - base);
            sum[e % 2] += weights[e];
            if constexpr (TYPE == KV_Q8) weights[e] *= scales[e / 2];
        }
        Products::weigh(out, values, transposed(T::pack(weights[0], weights[1])), transposed(T::pack(weights[2], weights[3])));
    }

    // Leaves it where the block merges its warps.
    __device__ __forceinline__ void leave(float (&state)[HEADS][DIM + 2], uint32_t n_heads) {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int other = 4; other < 32; other *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], other);
            uint32_t head = lane % 4 * 2 + h;
            if (head >= n_heads) continue;
#pragma unroll
            for (int j = 0; j < DIM / 16; j++) {
                float2* to = reinterpret_cast<float2*>(&state[state_row<HEADS>(head)][Products::value_element(j, lane)]);
                *to = make_float2(out[j][h], out[j][2 + h]);
            }
            if (lane < 4) {
                float(&own)[DIM + 2] = state[state_row<HEADS>(head)];
                own[DIM] = most[h] - WEIGHT_SHIFT, own[DIM + 1] = sum[h];
            }
        }
    }
};
