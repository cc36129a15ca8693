// Floats on their way to 16 bits.
#pragma once

// Finite numbers stay finite in f16: what is too large becomes its largest number.
__device__ __forceinline__ float within_f16(float x) {
    return fabsf(x) <= 3.4e38f ? fminf(fmaxf(x, -65504.0f), 65504.0f) : x;
}
