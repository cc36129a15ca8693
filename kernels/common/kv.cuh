// Cache blocks in device memory.
#pragma once
#include "weights.cuh"

// Exponentials are taken in base 2.
constexpr float LOG2_E = 1.4426950408889634f;

// Where weights are rounded to 16 bits they are relative to the largest score less this, so at most 2^8: those of scores
// that lie far below it, as all do beside one that draws most of the attention, are numbers of f16 still. It leaves room
// for values of 8 bits up to 32,000, with whose scales weights are multiplied first.
constexpr float WEIGHT_SHIFT = 8.0f;

// One cache block: keys as rows, values as rows, and for 8 bits the scales of both.
struct KvBlock {
    KvShape shape;
    uint8_t* base;

    __device__ __forceinline__ KvBlock(const KvShape& shape, uint8_t* blocks, uint32_t place)
        : shape(shape), base(blocks + place * shape.block_bytes()) {}

    __device__ __forceinline__ uint8_t* row(bool is_value, uint32_t token) const {
        uint32_t rows = (is_value ? shape.block_size : 0) + token;
        return base + uint64_t(rows) * shape.head_dim * shape.elem_bytes();
    }

    __device__ __forceinline__ __half* scale(bool is_value, uint32_t token) const {
        uint8_t* scales = base + uint64_t(2) * shape.block_size * shape.head_dim;
        return reinterpret_cast<__half*>(scales) + (is_value ? shape.block_size : 0) + token;
    }
};

// Rounds a row to the cache's type; all lanes of a warp take part. An 8-bit row has one scale, max |x| / 127 as f16; if
// that is not finite, it is not a number, and spoils what sees it.
__device__ __forceinline__ void store_row(const KvBlock& block, bool is_value, uint32_t token, const float* x) {
    uint32_t dim = block.shape.head_dim, lane = threadIdx.x % 32;
    uint8_t* to = block.row(is_value, token);
    switch (block.shape.type) {
    case KV_F32:
        for (uint32_t i = lane; i < dim; i += 32) reinterpret_cast<float*>(to)[i] = x[i];
        break;
    case KV_F16:
        for (uint32_t i = lane; i < dim; i += 32) reinterpret_cast<__half*>(to)[i] = __float2half_rn(x[i]);
        break;
    case KV_BF16:
        for (uint32_t i = lane; i < dim; i += 32) reinterpret_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(x[i]);
        break;
    case KV_Q8: {
        // Not a number beats any number.
        auto larger = [](float a, float b) { return isnan(a) || a > b ? a : b; };
        float most = 0.0f;
        for (uint32_t i = lane; i < dim; i += 32) most = larger(fabsf(x[i]), most);
        for (int other = 16; other > 0; other /= 2) most = larger(__shfl_xor_sync(~0u, most, other), most);
        __half scale = __float2half_rn(most / 127.0f);
        if (__hisinf(scale)) scale = __float2half_rn(NAN);
        float s = __half2float(scale);
        for (uint32_t i = lane; i < dim; i += 32) {
            float quant = s > 0.0f ? rintf(x[i] / s) : 0.0f;
            reinterpret_cast<int8_t*>(to)[i] = static_cast<int8_t>(fminf(fmaxf(quant, -127.0f), 127.0f));
        }
        if (lane == 0) *block.scale(is_value, token) = scale;
        break;
    }
    }
}
