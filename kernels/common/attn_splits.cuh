// Attention that is split over the cache: warps and blocks each see some keys of a query, and what they leave is merged.
#pragma once
#include "kv.cuh"

// Splits of the keys of a query, at most; see attn.rs.
constexpr uint32_t MAX_SPLITS = 64;

// The states of some heads, one of every warp: the weighted values of its keys, relative to exp2 of their largest score;
// that score; and the sum of the weights.
template <int DIM, int HEADS, int WARPS>
using States = float[WARPS][HEADS][DIM + 2];

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

template <int N>
struct alignas(4 * N) Floats {
    float x[N];
};

__device__ __forceinline__ Floats<1> load_left(const Floats<1>* from) { return {{__ldcg(from->x)}}; }
__device__ __forceinline__ Floats<4> load_left(const Floats<4>* from) {
    float4 x = __ldcg(reinterpret_cast<const float4*>(from));
    return {{x.x, x.y, x.z, x.w}};
}

// Merges what `n_splits` splits of some heads have left, N elements at a time; all threads take part. Where there are more
// threads than elements, several share the splits of one.
template <int N, int HEADS, int WARPS>
__device__ __forceinline__ void
merge_splits(const AttnParams& p, const Partials& left, uint32_t row, uint32_t first_head, uint32_t n_heads, uint32_t n_splits) {
    constexpr uint32_t THREADS = 32 * WARPS, AT_ONCE = 16;
    __shared__ float factors[HEADS][MAX_SPLITS];
    __shared__ Floats<N> shares[THREADS];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = left.dim;
    uint32_t n = n_heads * dim / N, width = min(n, THREADS), n_shares = THREADS / width, share = threadIdx.x / width;
    Floats<N> read[AT_ONCE];
    auto load = [&](uint32_t i, uint32_t first_split) {
        uint32_t head = i * N / dim;
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t split = min(first_split + k * n_shares, n_splits - 1);
            read[k] = load_left(reinterpret_cast<const Floats<N>*>(left.value(head, split) + i * N % dim));
        }
    };
    // On their way while the factors are found: of every head by one warp.
    load(threadIdx.x % width, share);
    for (uint32_t g = warp; g < n_heads; g += WARPS) {
        constexpr uint32_t TURNS = MAX_SPLITS / 32;
        float most[TURNS], sum[TURNS], sink = sink_of(p, first_head + g), all = sink, total = 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < TURNS; k++) {
            uint32_t split = lane + 32 * k;
            const float* state = left.state(g, min(split, n_splits - 1));
            most[k] = split < n_splits ? __ldcg(state) : -INFINITY, sum[k] = __ldcg(state + 1);
            all = fmaxf(all, most[k]);
        }
#pragma unroll
        for (int other = 16; other > 0; other /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, other));
#pragma unroll
        for (uint32_t k = 0; k < TURNS; k++) most[k] = rescale(most[k], all), total += sum[k] * most[k];
#pragma unroll
        for (int other = 16; other > 0; other /= 2) total += __shfl_xor_sync(~0u, total, other);
        total += rescale(sink, all);
#pragma unroll
        for (uint32_t k = 0; k < TURNS; k++) factors[g][lane + 32 * k] = most[k] / total;
    }
    __syncthreads();
    Floats<N>* out = reinterpret_cast<Floats<N>*>(p.out + (uint64_t(row) * p.n_heads + first_head) * dim);
    // Threads beyond the last share have nothing to do.
    for (uint32_t i = share < n_shares ? threadIdx.x % width : n; i < n; i += width) {
        if (i >= width) load(i, share);
        Floats<N> merged = {};
        for (uint32_t first = share; first < n_splits; first += AT_ONCE * n_shares) {
            if (first > share) load(i, first);
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++) {
                uint32_t split = first + k * n_shares;
                float factor = split < n_splits ? factors[i * N / dim][split] : 0.0f;
#pragma unroll
                for (int e = 0; e < N; e++) merged.x[e] += split < n_splits ? read[k].x[e] * factor : 0.0f;
            }
        }
        if (n_shares == 1) out[i] = merged;
        else shares[threadIdx.x] = merged;
    }
    if (n_shares == 1) return;
    __syncthreads();
    if (threadIdx.x >= n) return;
    Floats<N> merged = shares[threadIdx.x];
    for (uint32_t s = 1; s < n_shares; s++) {
#pragma unroll
        for (int e = 0; e < N; e++) merged.x[e] += shares[threadIdx.x + s * n].x[e];
    }
    out[threadIdx.x] = merged;
}

// Merges what the warps of a block have left, and with it what the blocks of the other splits have, if this is the last.
// Blocks of the first `n_splits` splits call it, with all their BLOCK_WARPS.
template <int DIM, int HEADS, int WARPS, int BLOCK_WARPS>
__device__ __forceinline__ void finish(const AttnParams& p, uint32_t row, uint32_t first_head, uint32_t n_heads, uint32_t n_splits,
                                       States<DIM, HEADS, WARPS>& states) {
    __shared__ bool is_last;
    __shared__ float largest[HEADS], sums[HEADS];
    uint32_t dim = p.shape.head_dim;
    __syncthreads();
    if (threadIdx.x < n_heads) {
        uint32_t g = threadIdx.x;
        float sink = n_splits == 1 ? sink_of(p, first_head + g) : -INFINITY, all = sink, total = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) all = fmaxf(all, states[w][g][DIM]);
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) {
            states[w][g][DIM] = rescale(states[w][g][DIM], all);
            total += states[w][g][DIM + 1] * states[w][g][DIM];
        }
        largest[g] = all, sums[g] = total + rescale(sink, all);
    }
    __syncthreads();
    float* out = p.out + (uint64_t(row) * p.n_heads + first_head) * dim;
    Partials left(p, first_head);
    for (uint32_t i = threadIdx.x; i < n_heads * dim; i += 32 * BLOCK_WARPS) {
        uint32_t g = i / dim;
        float x = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++) x += states[w][g][i % dim] * states[w][g][DIM];
        if (n_splits == 1) out[i] = x / sums[g];
        else left.value(g, blockIdx.x)[i % dim] = x;
    }
    if (n_splits == 1) return;
    if (threadIdx.x < n_heads) {
        float* to = left.state(threadIdx.x, blockIdx.x);
        to[0] = largest[threadIdx.x], to[1] = sums[threadIdx.x];
    }

    // The fences of one thread are those of all that have met it.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        uint32_t* arrivals = p.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
        is_last = atomicAdd(arrivals, 1) == n_splits - 1;
        if (is_last) *arrivals = 0;
        __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    if (dim % 4 == 0) merge_splits<4, HEADS, BLOCK_WARPS>(p, left, row, first_head, n_heads, n_splits);
    else merge_splits<1, HEADS, BLOCK_WARPS>(p, left, row, first_head, n_heads, n_splits);
}
