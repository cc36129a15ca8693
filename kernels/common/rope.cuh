// The rotary embedding.
#pragma once
#include "params.cuh"

constexpr uint32_t MAX_HEAD_DIM = 256;   // see attn.rs

// Leaves a head of row `row`, turned, in `to`, which may be where it is; all lanes of a warp take part.
__device__ __forceinline__ void turn(float* to, const float* from, const Rope& rope, uint32_t row, uint32_t dim) {
    constexpr uint32_t PAIRS = MAX_HEAD_DIM / 2 / 32;   // of a lane
    uint32_t lane = threadIdx.x % 32, n_pairs = rope.table ? rope.n_pairs : 0;
    const float2* angles = reinterpret_cast<const float2*>(rope.table) + uint64_t(row) * n_pairs;
    bool is_halves = rope.pairing == PAIRING_HALVES;
    float x[PAIRS], y[PAIRS];
    float2 angle[PAIRS];
    // All on their way before the first is needed.
#pragma unroll
    for (uint32_t k = 0; k < PAIRS; k++) {
        uint32_t i = lane + 32 * k;
        if (i < n_pairs) x[k] = from[is_halves ? i : 2 * i], y[k] = from[is_halves ? i + n_pairs : 2 * i + 1], angle[k] = angles[i];
    }
#pragma unroll
    for (uint32_t k = 0; k < PAIRS; k++) {
        uint32_t i = lane + 32 * k;
        if (i >= n_pairs) break;
        // Each product rounded, as everywhere else: keys of 8 bits must not fall on the other side of a step.
        to[is_halves ? i : 2 * i] = __fsub_rn(__fmul_rn(x[k], angle[k].x), __fmul_rn(y[k], angle[k].y));
        to[is_halves ? i + n_pairs : 2 * i + 1] = __fadd_rn(__fmul_rn(x[k], angle[k].y), __fmul_rn(y[k], angle[k].x));
    }
    for (uint32_t i = 2 * n_pairs + lane; i < dim; i += 32) to[i] = from[i];
}
