// The root-mean-square norm of rows that a kernel reads.
#pragma once
#include "warp.cuh"

#include <cstdint>

// 1 / sqrt(mean(x^2) + eps) of the first n of N rows of x (N, width). All threads of the block take part, at least N and
// at most 1024. The sum of a row has one order, which depends on the number of threads alone.
template <int N>
__device__ __forceinline__ void norm_factors(float (&factors)[N], const float* x, uint32_t n, uint32_t width, float eps) {
    __shared__ float of_warps[N][32];
    float sums[N] = {};
    auto for_each_row = [&](auto fold) {
#pragma unroll
        for (uint32_t row = 0; row < N; row++) {
            if (row < n) fold(sums[row], x + uint64_t(row) * width);
        }
    };
    if (width % 4 == 0) {
        for (uint32_t i = threadIdx.x; i < width / 4; i += blockDim.x) {
            for_each_row([&](float& sum, const float* from) {
                float4 v = reinterpret_cast<const float4*>(from)[i];
                sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            });
        }
    } else {
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            for_each_row([&](float& sum, const float* from) { sum += from[i] * from[i]; });
        }
    }
#pragma unroll
    for (uint32_t row = 0; row < N; row++) {
        if (row >= n) break;
        float of_warp = warp_sum(sums[row]);
        if (threadIdx.x % 32 == 0) of_warps[row][threadIdx.x / 32] = of_warp;
    }
    __syncthreads();
    if (threadIdx.x < n) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < blockDim.x / 32; i++) sum += of_warps[threadIdx.x][i];
        factors[threadIdx.x] = 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
    }
    __syncthreads();
}
