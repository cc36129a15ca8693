// A computing warpgroup of attn_prefill.cu: 64 queries of each item.
#pragma once
#include "attn_tiles.cuh"

// The first name of the barriers of turns; 0 is __syncthreads().
constexpr uint32_t BARRIER_TURN = 1;

template <typename T, int DIM, int CONSUMERS>
struct Compute : Block<DIM, CONSUMERS> {
    using L = Layout<DIM, CONSUMERS>;
    using Block<DIM, CONSUMERS>::params;
    using Block<DIM, CONSUMERS>::rows;
    using Block<DIM, CONSUMERS>::shared;

    // Begins the warpgroup's turn and starts the scores of a tile, once its keys are there; returns its runs.
    __device__ __forceinline__ uint4
    start_scores(float (&scores)[64], uint32_t queries, uint32_t tile, uint32_t group) const {
        this->keys().wait_full(tile);
        uint4 runs = runs_of(tile);
        turn_begins(group);
        products_fence();
        uint32_t keys = shared + L::KEYS + tile % Ring::STAGES * L::TILE_BYTES;
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            uint32_t half = k / 4, column = k % 4 * 32;
            uint64_t a = operand(queries + half * WARPGROUP_QUERIES * SWIZZLE_BYTES + column, 0, SWIZZLE_ATOM);
            uint64_t b = operand(keys + half * L::HALF_BYTES + column, 0, SWIZZLE_ATOM);
            T::scores(scores, a, b, k > 0);
        }
        products_end();
        return runs;
    }

    // Starts weighing the values of a tile, once they are there.
    __device__ __forceinline__ void
    start_weighing(float (&out)[DIM / 2], const uint32_t (&weights)[TILE_KEYS / 16][4], uint32_t tile) const {
        this->values().wait_full(tile);
        pin(out);
        products_fence();
        uint32_t values = shared + L::VALUES + tile % Ring::STAGES * L::TILE_BYTES;
#pragma unroll
        for (int k = 0; k < int(TILE_KEYS) / 16; k++) {
            T::weigh(out, weights[k], operand(values + k * 16 * SWIZZLE_BYTES, L::HALF_BYTES, SWIZZLE_ATOM));
        }
        products_end();
    }

    // The runs of a tile that has come: their first keys, and what is seen of them. All threads have read them when the turn
    // begins, so that one may release the stage for all.
    __device__ __forceinline__ uint4 runs_of(uint32_t tile) const { return load16(shared + L::RUNS + tile % Ring::STAGES * 16); }

    // Masks the scores of two runs. `row` is this thread's first position.
    __device__ __forceinline__ void mask_scores(float (&scores)[64], uint4 runs, uint32_t group, uint32_t row) const {
        const Mask& m = params.attn.mask;
        uint32_t sights = runs.z >> 2 * group * SIGHT_BITS & (1 << 2 * SIGHT_BITS) - 1;
        if (sights == 0) return;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t seen = sights >> r * SIGHT_BITS & (1 << SIGHT_BITS) - 1;
            if (seen == SEES_ALL) continue;
            // Columns that a row sees: from `near` or below `sinks`, up to `diagonal`.
            int column = int((r == 0 ? runs.x : runs.y) + threadIdx.x % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int position = int(row) + h * 8;
                int diagonal = seen == SEES_SOME ? position - column : -1, near = 0, sinks = 0;
                if (m.kind == MASK_WINDOW) near = position + 1 - int(m.window_tokens) - column, sinks = int(m.sink_tokens) - column;
#pragma unroll
                for (int n = 0; n < 8; n++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int at = n * 8 + e;
                        bool sees = at <= diagonal & (at >= near | at < sinks);
                        float& score = scores[r * 32 + n * 4 + h * 2 + e];
                        score = sees ? score : -INFINITY;
                    }
                }
            }
        }
    }

    // Turns scores into weights relative to the largest score so far; returns whether there is a larger one in any row of
    // the warp, and the factors for what was relative to the last one then.
    __device__ __forceinline__ bool
    soften(float (&scores)[64], float (&most)[2], float (&sum)[2], float (&factor)[2]) const {
        float last[2] = {most[0], most[1]}, total[2] = {}, base[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = most[h];
#pragma unroll
            for (int n = 0; n < 16; n++) top = fmaxf(top, fmaxf(scores[n * 4 + h * 2], scores[n * 4 + h * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            base[h] = top == -INFINITY ? 0.0f : top - WEIGHT_SHIFT;
            most[h] = top;
#pragma unroll
            for (int n = 0; n < 16; n++) {
                float x = exp2_of(scores[n * 4 + h * 2] - base[h]), y = exp2_of(scores[n * 4 + h * 2 + 1] - base[h]);
                scores[n * 4 + h * 2] = x, scores[n * 4 + h * 2 + 1] = y;
                total[h] += x + y;
            }
        }
        // The largest scores come early: most tiles have no larger ones. That there is a branch here keeps the compiler from
        // waiting for products, which comes next, before it softens.
        bool rescales = __any_sync(~0u, most[0] > last[0] || most[1] > last[1]);
        if (rescales) {
#pragma unroll
            for (int h = 0; h < 2; h++) factor[h] = exp2_of(last[h] - WEIGHT_SHIFT - base[h]), sum[h] *= factor[h];
        }
        sum[0] += total[0], sum[1] += total[1];
        return rescales;
    }

    static __device__ __forceinline__ float exp2_of(float x) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
        return y;
    }

    static __device__ __forceinline__ void round_weights(uint32_t (&weights)[TILE_KEYS / 16][4], const float (&scores)[64]) {
#pragma unroll
        for (int k = 0; k < int(TILE_KEYS) / 16; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) weights[k][i] = T::pack(scores[k * 8 + i * 2], scores[k * 8 + i * 2 + 1]);
        }
    }

    // Values of a row, times a factor, in 16 bits to element `at` of the output on.
    template <typename Out>
    __device__ __forceinline__ void store_rounded(uint64_t at, const float* out, float factor) const {
        uint32_t* to = reinterpret_cast<uint32_t*>(reinterpret_cast<uint16_t*>(params.attn.out) + at) + threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) to[n * 4] = Out::pack_finite(out[n * 4] * factor, out[n * 4 + 1] * factor);
    }

    // Weighted values over the sums of weights, to the rows of the output. `row` is this thread's first position.
    __device__ __forceinline__ void
    store(const float (&out)[DIM / 2], const float (&most)[2], const float (&sum)[2], uint32_t head, uint32_t row) const {
        const AttnParams& p = params.attn;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            // A learned sink joins the sum; the values are relative to the largest score.
            if (p.sink_logits) total += exp2f(p.sink_logits[head] * LOG2_E - (most[h] - WEIGHT_SHIFT));
            float factor = 1.0f / total;
            uint32_t position = row + h * 8;
            if (position < rows().pos || position >= rows().end()) continue;
            uint64_t at = (uint64_t(rows().row + position - rows().pos) * p.n_heads + head) * DIM;
            if (params.out_type == OUT_F32) {
                float* to = p.out + at + threadIdx.x % 4 * 2;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    float2 pair = make_float2(out[n * 4 + h * 2] * factor, out[n * 4 + h * 2 + 1] * factor);
                    *reinterpret_cast<float2*>(to + n * 8) = pair;
                }
            } else if (params.out_type == OUT_F16) {
                store_rounded<HalfProducts>(at, out + h * 2, factor);
            } else {
                store_rounded<Bf16Products>(at, out + h * 2, factor);
            }
        }
    }

    // Warpgroups take turns at starting products.
    __device__ __forceinline__ void turn_begins(uint32_t group) const { named_sync(BARRIER_TURN + group, 2 * WARPGROUP); }
    __device__ __forceinline__ void turn_ends(uint32_t group) const {
        named_arrive(BARRIER_TURN + (group + 1) % CONSUMERS, 2 * WARPGROUP);
    }

    // Tells all blocks of the cluster that this warpgroup has read a stage that it shares with them.
    __device__ __forceinline__ void release(uint32_t empty) const {
        if (threadIdx.x % WARPGROUP < BLOCKS) barrier_arrive_at(empty, threadIdx.x % WARPGROUP);
    }

    __device__ __forceinline__ void compute(uint32_t group) const {
        Ring keys = this->keys(), values = this->values(), queries = this->queries();
        if (group == CONSUMERS - 1) turn_ends(group);
        for (uint32_t tile = 0, round = 0;; tile++, round++) {
            float out[DIM / 2] = {}, scores[64], most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor[2];
            uint32_t weights[TILE_KEYS / 16][4];

            queries.wait_full(round);
            Item item = Item::load(shared + L::ITEMS + round % Ring::STAGES * 8);
            if (item.head == NO_HEAD) break;
            uint32_t row = item.first_query + group * WARPGROUP_QUERIES + threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4;
            uint32_t at = shared + (round % Ring::STAGES * CONSUMERS + group) * L::QUERY_BYTES;
            uint4 runs = start_scores(scores, at, tile, group);
            turn_ends(group);
            products_wait<0>();
            pin(scores);
            release(keys.empty(tile));
            mask_scores(scores, runs, group, row);
            soften(scores, most, sum, factor);
            round_weights(weights, scores);

            while (!(runs.z & ENDS_ITEM)) {
                tile++;
                runs = start_scores(scores, at, tile, group);
                start_weighing(out, weights, tile - 1);
                turn_ends(group);
                products_wait<1>();
                pin(scores);
                release(keys.empty(tile));
                mask_scores(scores, runs, group, row);
                bool rescales = soften(scores, most, sum, factor);
                products_wait<0>();
                pin(out);
                if (rescales) {
#pragma unroll
                    for (int i = 0; i < DIM / 2; i++) out[i] *= factor[i / 2 % 2];
                }
                release(values.empty(tile - 1));
                round_weights(weights, scores);
            }
            if (threadIdx.x % WARPGROUP == 0) barrier_arrive(queries.empty(round));
            start_weighing(out, weights, tile);
            products_wait<0>();
            pin(out);
            release(values.empty(tile));
            store(out, most, sum, item.head, row);
        }
        // The turn after the last one.
        if (group == 0) turn_begins(group);
    }
};
