// Attention that is split over the cache: warps and blocks each see some keys of a query, and what they leave is merged.
#pragma once
#include "kv.cuh"
#include "warp.cuh"

// Splits of the keys of a query, at most; see attn.rs.
constexpr uint32_t MAX_SPLITS = 64;

// The states of some heads, one of every warp: the weighted values of its keys, relative to exp2 of their largest score;
// that score; and the sum of the weights. They are read two floats at a time.
template <int DIM, int HEADS, int WARPS>
using States = float[WARPS][HEADS][DIM + 2];

// Where in a state a head stands: the even ones first, so that lanes which have two each write to different banks.
template <int HEADS>
__device__ __forceinline__ uint32_t state_row(uint32_t head) {
    return HEADS == 8 ? head % 2 * 4 + head / 2 : head;
}

// What a block of the grid (n_splits, n_kv_heads * parts of their groups, n_tokens of every session) computes: one token,
// one KV head, and up to `heads_at_once` of its query heads.
struct RowPart {
    const AttnSeq& seq;
    StepRows rows;
    uint32_t kv_head, first_head, n_heads, position, row;

    __device__ __forceinline__ RowPart(const AttnParams& p, uint32_t heads_at_once)
        : seq(p.seqs[blockIdx.z / p.n_tokens]), rows(*seq.rows) {
        uint32_t group = p.n_heads / p.shape.n_kv_heads, parts = (group + heads_at_once - 1) / heads_at_once;
        kv_head = blockIdx.y / parts, first_head = kv_head * group + blockIdx.y % parts * heads_at_once;
        n_heads = min(heads_at_once, kv_head * group + group - first_head);
        uint32_t token = p.first_token + blockIdx.z % p.n_tokens;
        position = rows.pos + token, row = rows.row + token;
    }

    // Of the first head.
    __device__ __forceinline__ const float* queries(const AttnParams& p) const {
        return p.q + (uint64_t(row) * p.n_heads + first_head) * p.shape.head_dim;
    }
};

__device__ __forceinline__ float rescale(float from, float to) { return from == -INFINITY ? 0.0f : exp2f(from - to); }

// A learned sink: a score that has no value.
__device__ __forceinline__ float sink_of(const AttnParams& p, uint32_t head) {
    return p.sink_logits ? p.sink_logits[head] * LOG2_E : -INFINITY;
}

// Sorted residues of the strided blocks that some query heads keep; returns how many. For one thread.
__device__ __forceinline__ uint32_t find_residues(const AttnParams& p, uint32_t first_head, uint32_t n_heads, uint32_t* residues) {
    uint32_t n = 0, stride = p.mask.stride;
    for (uint32_t g = 0; g < n_heads && stride > 0; g++) {
        uint32_t residue = (stride - p.phases[first_head + g] % stride) % stride, at = 0;
        while (at < n && residues[at] < residue) at++;
        if (at < n && residues[at] == residue) continue;
        for (uint32_t i = n; i > at; i--) residues[i] = residues[i - 1];
        residues[at] = residue;
        n++;
    }
    return n;
}

// What the splits of the heads from `first_head` on leave for the one that ends last: the weighted values, as rows of the
// whole launch; and elsewhere the largest scores and the sums.
struct Partials {
    float* values;
    float* states;
    uint32_t n_splits, dim;

    __device__ __forceinline__ Partials(const AttnParams& p, uint32_t first_head) : n_splits(p.n_splits), dim(p.shape.head_dim) {
        uint64_t n_heads = uint64_t(gridDim.z) * p.n_heads, head = uint64_t(blockIdx.z) * p.n_heads + first_head;
        values = p.partials + head * n_splits * dim;
        states = p.partials + n_heads * n_splits * dim + head * n_splits * 2;
    }
    __device__ __forceinline__ float* value(uint32_t head, uint32_t split) const { return values + (head * n_splits + split) * dim; }
    __device__ __forceinline__ float* state(uint32_t head, uint32_t split) const { return states + (head * n_splits + split) * 2; }
};

// Adds one to a counter and returns what it was. Whoever reads the last arrival sees what was written before the others.
__device__ __forceinline__ uint32_t arrive(uint32_t* counter) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;\n" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// The elements of a head that a lane of a warp has: two of every 64.
template <int DIM>
struct Elements {
    static constexpr int PAIRS = DIM / 64;
    float2 pairs[PAIRS] = {};

    static __device__ __forceinline__ uint32_t first(int pair) { return pair * 64 + threadIdx.x % 32 * 2; }
    // Heads may be smaller than DIM.
    template <typename Body>
    static __device__ __forceinline__ void each(uint32_t dim, Body body) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (first(i) < dim) body(i, first(i));
        }
    }
    __device__ __forceinline__ void add(int pair, float2 x, float factor) {
        pairs[pair].x += x.x * factor, pairs[pair].y += x.y * factor;
    }
    __device__ __forceinline__ void store(float* to, uint32_t dim, float factor) const {
        each(dim, [&](int i, uint32_t at) {
            *reinterpret_cast<float2*>(to + at) = make_float2(pairs[i].x * factor, pairs[i].y * factor);
        });
    }
};

// Merges what the splits have left of a head, for one warp.
template <int DIM>
__device__ __forceinline__ void merge_splits(float* out, const Partials& left, uint32_t head, uint32_t n_splits, float sink) {
    constexpr uint32_t AT_ONCE = 16, TURNS = MAX_SPLITS / 32;
    using E = Elements<DIM>;
    uint32_t lane = threadIdx.x % 32, dim = left.dim;
    float2 read[AT_ONCE][E::PAIRS];
    auto load = [&](uint32_t first) {
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            const float* from = left.value(head, min(first + k, n_splits - 1));
            E::each(dim, [&](int i, uint32_t at) { read[k][i] = __ldcg(reinterpret_cast<const float2*>(from + at)); });
        }
    };
    // On their way while the factors are found.
    load(0);
    float factors[TURNS], sums[TURNS], all = sink;
#pragma unroll
    for (uint32_t k = 0; k < TURNS; k++) {
        uint32_t split = lane + 32 * k;
        float2 state = __ldcg(reinterpret_cast<const float2*>(left.state(head, min(split, n_splits - 1))));
        factors[k] = split < n_splits ? state.x : -INFINITY, sums[k] = state.y;
        all = fmaxf(all, factors[k]);
    }
    all = warp_max(all);
    float total = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < TURNS; k++) factors[k] = rescale(factors[k], all), total += sums[k] * factors[k];
    total = warp_sum(total) + rescale(sink, all);
    E merged;
    for (uint32_t first = 0; first < n_splits; first += AT_ONCE) {
        if (first > 0) load(first);
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t split = first + k;
            float factor = __shfl_sync(~0u, split < 32 ? factors[0] : factors[TURNS - 1], split % 32);
            if (split < n_splits) E::each(dim, [&](int i, uint32_t) { merged.add(i, read[k][i], factor); });
        }
    }
    merged.store(out, dim, 1.0f / total);
}

// Merges what the warps of a block have left, and with it what the blocks of the other splits have, if this is the last: a
// warp for each head, without waiting for other heads. Blocks of the first `n_splits` splits call it, with all their
// BLOCK_WARPS.
template <int DIM, int HEADS, int WARPS, int BLOCK_WARPS>
__device__ __forceinline__ void finish(const AttnParams& p, uint32_t row, uint32_t first_head, uint32_t n_heads, uint32_t n_splits,
                                       const States<DIM, HEADS, WARPS>& states) {
    using E = Elements<DIM>;
    static_assert(MAX_SPLITS == 64 && WARPS <= 32);
    uint32_t lane = threadIdx.x % 32, dim = p.shape.head_dim;
    Partials left(p, first_head);
    __syncthreads();
    for (uint32_t g = threadIdx.x / 32; g < n_heads; g += BLOCK_WARPS) {
        float sink = sink_of(p, first_head + g), own_sink = n_splits == 1 ? sink : -INFINITY;
        const float* state = &states[min(lane, WARPS - 1)][state_row<HEADS>(g)][DIM];
        float most = lane < WARPS ? state[0] : -INFINITY, all = warp_max(fmaxf(most, own_sink));
        float factor = rescale(most, all), total = warp_sum(state[1] * factor) + rescale(own_sink, all);
        E sum;
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) {
            float of_warp = __shfl_sync(~0u, factor, w);
            const float* from = states[w][state_row<HEADS>(g)];
            E::each(dim, [&](int i, uint32_t at) { sum.add(i, *reinterpret_cast<const float2*>(from + at), of_warp); });
        }
        float* out = p.out + (uint64_t(row) * p.n_heads + first_head + g) * dim;
        if (n_splits == 1) {
            sum.store(out, dim, 1.0f / total);
            continue;
        }
        sum.store(left.value(g, blockIdx.x), dim, 1.0f);
        if (lane == 0) *reinterpret_cast<float2*>(left.state(g, blockIdx.x)) = make_float2(all, total);
        __syncwarp();
        bool is_last = false;
        if (lane == 0) {
            uint32_t* arrivals = p.arrivals + blockIdx.z * p.n_heads + first_head + g;
            is_last = arrive(arrivals) == n_splits - 1;
            if (is_last) *arrivals = 0;
        }
        if (__any_sync(~0u, is_last)) merge_splits<DIM>(out, left, g, n_splits, sink);
    }
}
