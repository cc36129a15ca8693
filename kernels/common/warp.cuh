// What all lanes of a warp come to together; every lane gets it.
#pragma once

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(~0u, x, other);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int other = 16; other > 0; other /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, other));
    return x;
}
