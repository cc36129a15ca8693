// Matrices as they lie in device memory, eight elements at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "floats.cuh"
#include "params.cuh"

// Elements of a quantised block.
constexpr uint32_t QUANT_BLOCK = 32;

__device__ __forceinline__ void from_half2(float* out, uint32_t pair) {
    float2 f = __half22float2(*reinterpret_cast<__half2*>(&pair));
    out[0] = f.x;
    out[1] = f.y;
}

// A bf16 is the upper half of an f32.
__device__ __forceinline__ void from_bf16x2(float* out, uint32_t pair) {
    out[0] = __uint_as_float(pair << 16);
    out[1] = __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ __half to_f16(float x) { return __float2half_rn(within_f16(x)); }

// Element types. load8 reads elements 8 * i .. 8 * i + 7 of a row of `cols`, a multiple of 8.
struct F32 {
    static __device__ __forceinline__ void load8(float* out, const Weight& w, uint32_t row, uint32_t i) {
        const float4* p = static_cast<const float4*>(w.data) + uint64_t(row) * (w.cols / 4) + 2 * i;
        float4 a = __ldg(p), b = __ldg(p + 1);
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    }
    static __device__ __forceinline__ float load1(const Weight& w, uint32_t row, uint32_t col) {
        return static_cast<const float*>(w.data)[uint64_t(row) * w.cols + col];
    }
};

struct F16 {
    static __device__ __forceinline__ void load8(float* out, const Weight& w, uint32_t row, uint32_t i) {
        uint4 a = __ldg(static_cast<const uint4*>(w.data) + uint64_t(row) * (w.cols / 8) + i);
        from_half2(out, a.x), from_half2(out + 2, a.y), from_half2(out + 4, a.z), from_half2(out + 6, a.w);
    }
    static __device__ __forceinline__ float load1(const Weight& w, uint32_t row, uint32_t col) {
        return __half2float(static_cast<const __half*>(w.data)[uint64_t(row) * w.cols + col]);
    }
};

struct Bf16 {
    static __device__ __forceinline__ void load8(float* out, const Weight& w, uint32_t row, uint32_t i) {
        uint4 a = __ldg(static_cast<const uint4*>(w.data) + uint64_t(row) * (w.cols / 8) + i);
        from_bf16x2(out, a.x), from_bf16x2(out + 2, a.y), from_bf16x2(out + 4, a.z), from_bf16x2(out + 6, a.w);
    }
    static __device__ __forceinline__ float load1(const Weight& w, uint32_t row, uint32_t col) {
        return __bfloat162float(static_cast<const __nv_bfloat16*>(w.data)[uint64_t(row) * w.cols + col]);
    }
};

struct Q8_0 {
    static __device__ __forceinline__ void load8(float* out, const Weight& w, uint32_t row, uint32_t i) {
        uint64_t at = uint64_t(row) * (w.cols / 8) + i;
        uint2 quants = __ldg(static_cast<const uint2*>(w.data) + at);
        float d = __half2float(__ldg(static_cast<const __half*>(w.scales) + at / 4));
        const char4 a = *reinterpret_cast<char4*>(&quants.x), b = *reinterpret_cast<char4*>(&quants.y);
        out[0] = d * a.x, out[1] = d * a.y, out[2] = d * a.z, out[3] = d * a.w;
        out[4] = d * b.x, out[5] = d * b.y, out[6] = d * b.z, out[7] = d * b.w;
    }
    static __device__ __forceinline__ float load1(const Weight& w, uint32_t row, uint32_t col) {
        float out[8];
        load8(out, w, row, col / 8);
        return out[col % 8];
    }
};

// 4-bit types: byte b of a block's 16 holds elements b (low half) and b + 16 (high half).
template <bool HAS_MINIMUM>
struct Q4 {
    static __device__ __forceinline__ void load8(float* out, const Weight& w, uint32_t row, uint32_t i) {
        uint64_t block = uint64_t(row) * (w.cols / QUANT_BLOCK) + i / 4;
        uint2 bytes = __ldg(static_cast<const uint2*>(w.data) + block * 2 + i % 2);
        float d, m = 0.0f;
        if (HAS_MINIMUM) {
            float2 scale = __half22float2(__ldg(static_cast<const __half2*>(w.scales) + block));
            d = scale.x, m = scale.y;
        } else {
            d = __half2float(__ldg(static_cast<const __half*>(w.scales) + block));
        }
        uint32_t shift = i % 4 / 2 * 4;
        uint32_t low = bytes.x >> shift, high = bytes.y >> shift;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float a = static_cast<float>(low >> 8 * j & 15), b = static_cast<float>(high >> 8 * j & 15);
            out[j] = HAS_MINIMUM ? __fadd_rn(__fmul_rn(d, a), m) : d * (a - 8.0f);
            out[4 + j] = HAS_MINIMUM ? __fadd_rn(__fmul_rn(d, b), m) : d * (b - 8.0f);
        }
    }
    static __device__ __forceinline__ float load1(const Weight& w, uint32_t row, uint32_t col) {
        float out[8];
        load8(out, w, row, col / 8);
        return out[col % 8];
    }
};
using Q4_0 = Q4<false>;
using Q4_1 = Q4<true>;

// Stamps out a kernel for every element type of a matrix.
#define LG_FOR_EACH_WEIGHT_TYPE(KERNEL) KERNEL(F32) KERNEL(F16) KERNEL(Bf16) KERNEL(Q8_0) KERNEL(Q4_0) KERNEL(Q4_1)
