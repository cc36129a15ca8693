// Attention that is split over the cache: warps and blocks each see some keys of a query, and what they leave is merged.
#pragma once
#include "kv.cuh"

constexpr uint32_t ROWS_WARPS = 4, ROWS_THREADS = 32 * ROWS_WARPS;

// Splits of the keys of a query, at most; see attn.rs.
constexpr uint32_t MAX_SPLITS = 64;

// The states of some heads, one of every warp: the weighted values of its keys, relative to exp2 of their largest score;
// that score; and the sum of the weights.
template <int DIM, int HEADS>
using States = float[ROWS_WARPS][HEADS][DIM + 2];

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

// Adds up `n` elements over all splits, N at a time in every thread and AT_ONCE splits, which are read together.
template <int N, int AT_ONCE, int HEADS>
__device__ __forceinline__ void merge_elements(const AttnParams& p, float* out, const float* left, uint32_t n, uint32_t n_splits,
                                               const float (&factors)[HEADS][MAX_SPLITS]) {
    uint32_t dim = p.shape.head_dim, stride = dim + 2;
    for (uint32_t first = threadIdx.x; first < n; first += N * ROWS_THREADS) {
        float x[N] = {};
        uint32_t at[N], head[N];
#pragma unroll
        for (int e = 0; e < N; e++) {
            uint32_t i = min(first + e * ROWS_THREADS, n - 1);
            head[e] = i / dim, at[e] = head[e] * p.n_splits * stride + i % dim;
        }
        for (uint32_t s = 0; s < n_splits; s += AT_ONCE) {
            float read[AT_ONCE][N];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
#pragma unroll
                for (int e = 0; e < N; e++) read[k][e] = __ldcg(left + at[e] + min(s + k, n_splits - 1) * stride);
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
#pragma unroll
                for (int e = 0; e < N; e++) x[e] += s + k < n_splits ? read[k][e] * factors[head[e]][s + k] : 0.0f;
            }
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (first + e * ROWS_THREADS < n) out[first + e * ROWS_THREADS] = x[e];
        }
    }
}

// Merges what the splits of some heads have left; all threads take part.
template <int DIM, int HEADS>
__device__ __forceinline__ void
merge_splits(const AttnParams& p, uint32_t row, uint32_t first_head, uint32_t n_heads, uint32_t n_splits) {
    __shared__ float factors[HEADS][MAX_SPLITS], sums[HEADS][MAX_SPLITS];
    uint32_t dim = p.shape.head_dim, stride = dim + 2;
    const float* left = p.partials + (uint64_t(blockIdx.z) * p.n_heads + first_head) * p.n_splits * stride;
    for (uint32_t i = threadIdx.x; i < n_heads * n_splits; i += ROWS_THREADS) {
        const float* state = left + (i / n_splits * p.n_splits + i % n_splits) * stride;
        factors[i / n_splits][i % n_splits] = __ldcg(state + dim), sums[i / n_splits][i % n_splits] = __ldcg(state + dim + 1);
    }
    __syncthreads();
    // Of every head, its factors by one warp.
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t g = warp; g < n_heads; g += ROWS_WARPS) {
        float sink = sink_of(p, first_head + g), all = sink, total = 0.0f;
        for (uint32_t s = lane; s < n_splits; s += 32) all = fmaxf(all, factors[g][s]);
#pragma unroll
        for (int other = 16; other > 0; other /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, other));
        for (uint32_t s = lane; s < n_splits; s += 32) {
            factors[g][s] = rescale(factors[g][s], all);
            total += sums[g][s] * factors[g][s];
        }
#pragma unroll
        for (int other = 16; other > 0; other /= 2) total += __shfl_xor_sync(~0u, total, other);
        total += rescale(sink, all);
        for (uint32_t s = lane; s < n_splits; s += 32) factors[g][s] /= total;
    }
    __syncthreads();
    float* out = p.out + (uint64_t(row) * p.n_heads + first_head) * dim;
    if (n_heads == 1) return merge_elements<1, 16>(p, out, left, dim, n_splits, factors);
    merge_elements<8, 4>(p, out, left, n_heads * dim, n_splits, factors);
}

// Merges what the warps of a block have left, and with it what the blocks of the other splits have, if this is the last.
// Blocks of the first `n_splits` splits call it.
template <int DIM, int HEADS>
__device__ __forceinline__ void
finish(const AttnParams& p, uint32_t row, uint32_t first_head, uint32_t n_heads, uint32_t n_splits, States<DIM, HEADS>& states) {
    __shared__ bool is_last;
    __shared__ float largest[HEADS], sums[HEADS];
    uint32_t dim = p.shape.head_dim;
    __syncthreads();
    if (threadIdx.x < n_heads) {
        uint32_t g = threadIdx.x;
        float sink = n_splits == 1 ? sink_of(p, first_head + g) : -INFINITY, all = sink, total = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < ROWS_WARPS; w++) all = fmaxf(all, states[w][g][DIM]);
#pragma unroll
        for (uint32_t w = 0; w < ROWS_WARPS; w++) {
            states[w][g][DIM] = rescale(states[w][g][DIM], all);
            total += states[w][g][DIM + 1] * states[w][g][DIM];
        }
        largest[g] = all, sums[g] = total + rescale(sink, all);
    }
    __syncthreads();
    float* out = p.out + (uint64_t(row) * p.n_heads + first_head) * dim;
    float* left = p.partials + ((uint64_t(blockIdx.z) * p.n_heads + first_head) * p.n_splits + blockIdx.x) * (dim + 2);
    for (uint32_t i = threadIdx.x; i < n_heads * dim; i += ROWS_THREADS) {
        uint32_t g = i / dim;
        float x = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < ROWS_WARPS; w++) x += states[w][g][i % dim] * states[w][g][DIM];
        if (n_splits == 1) out[i] = x / sums[g];
        else left[uint64_t(g) * p.n_splits * (dim + 2) + i % dim] = x;
    }
    if (n_splits == 1) return;
    if (threadIdx.x < n_heads) {
        float* to = left + uint64_t(threadIdx.x) * p.n_splits * (dim + 2);
        to[dim] = largest[threadIdx.x], to[dim + 1] = sums[threadIdx.x];
    }

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrivals = p.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
        is_last = atomicAdd(arrivals, 1) == n_splits - 1;
        if (is_last) *arrivals = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    merge_splits<DIM, HEADS>(p, row, first_head, n_heads, n_splits);
}
