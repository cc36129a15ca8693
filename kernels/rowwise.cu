// Ops on rows: embedding, RoPE angles, gated units, bias, and conversions to 16 bits. All of them wait for memory, not for
// arithmetic.
#include "common/activation.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/weights.cuh"

// Grid (n_tokens). A token beyond the table gives NaNs.
template <typename W>
__device__ void embed(const EmbedParams& p) {
    begin();
    uint32_t token = p.tokens[blockIdx.x];
    float* out = p.out + uint64_t(blockIdx.x) * p.table.cols;
    for (uint32_t col = threadIdx.x; col < p.table.cols; col += blockDim.x) {
        out[col] = token < p.table.rows ? W::load1(p.table, token, col) * p.scale : __int_as_float(0x7fffffff);
    }
}
#define LG_EMBED(W) extern "C" __global__ void embed_##W(EmbedParams p) { embed<W>(p); }
LG_FOR_EACH_WEIGHT_TYPE(LG_EMBED)

// Grid (n_tokens, sessions). The angle is rounded to f32 as the models were trained; its sine and cosine are exact to f32.
extern "C" __global__ void rope_table(const __grid_constant__ RopeTableParams p) {
    begin();
    StepRows rows = *p.rows[blockIdx.y];
    if (blockIdx.x >= rows.n_tokens) return;
    float* out = p.out + uint64_t(rows.row + blockIdx.x) * p.n_pairs * 2;
    float position = static_cast<float>(rows.pos + blockIdx.x);
    for (uint32_t i = threadIdx.x; i < p.n_pairs; i += blockDim.x) {
        double sin, cos;
        sincos(static_cast<double>(position * p.inv_freq[i]), &sin, &cos);
        out[2 * i] = static_cast<float>(cos) * p.attention_factor;
        out[2 * i + 1] = static_cast<float>(sin) * p.attention_factor;
    }
}

extern "C" __global__ void glu_silu(GluParams p) {
    begin();
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.n_elems) static_cast<float*>(p.out)[i] = silu(p.gate[i]) * p.up[i];
}

extern "C" __global__ void add_bias(BiasParams p) {
    begin();
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < uint64_t(p.n_rows) * p.width) p.out[i] += p.bias[i % p.width];
}

// Inputs of products of many rows, and queries, in 16 bits: eight elements a thread.
__device__ __forceinline__ void store8(__half* out, const float (&x)[8]) {
    __half halves[8];
#pragma unroll
    for (int i = 0; i < 8; i++) halves[i] = to_f16(x[i]);
    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<uint4*>(halves);
}
__device__ __forceinline__ void store8(__nv_bfloat16* out, const float (&x)[8]) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<uint4*>(pairs);
}
__device__ __forceinline__ void load8(float (&out)[8], const float* x) {
    *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(x);
    *reinterpret_cast<float4*>(out + 4) = *reinterpret_cast<const float4*>(x + 4);
}

template <typename T>
__device__ __forceinline__ void convert(const ConvertParams& p) {
    begin();
    uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (i >= p.n_elems) return;
    float x[8];
    load8(x, p.x + i);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= p.scale;
    store8(static_cast<T*>(p.out) + i, x);
}

template <typename T>
__device__ __forceinline__ void convert_glu(const GluParams& p) {
    begin();
    uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (i >= p.n_elems) return;
    float gate[8], up[8];
    load8(gate, p.gate + i), load8(up, p.up + i);
#pragma unroll
    for (int j = 0; j < 8; j++) gate[j] = silu(gate[j]) * up[j];
    store8(static_cast<T*>(p.out) + i, gate);
}

// Grid (n_rows).
template <typename T>
__device__ __forceinline__ void convert_norm(const NormParams& p) {
    begin();
    __shared__ float factors[1];
    uint64_t first = uint64_t(blockIdx.x) * p.width;
    norm_factors(factors, p.x + first, 1, p.width, p.eps);
    for (uint32_t i = threadIdx.x * 8; i < p.width; i += blockDim.x * 8) {
        float x[8], weight[8];
        load8(x, p.x + first + i), load8(weight, p.weight + i);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] *= factors[0] * weight[j];
        store8(static_cast<T*>(p.out) + first + i, x);
    }
}
#define LG_CONVERT(NAME, T)                                                              \
    extern "C" __global__ void rows_to_##NAME(ConvertParams p) { convert<T>(p); }        \
    extern "C" __global__ void __launch_bounds__(1024) norm_to_##NAME(NormParams p) { convert_norm<T>(p); } \
    extern "C" __global__ void glu_to_##NAME(GluParams p) { convert_glu<T>(p); }
LG_CONVERT(f16, __half)
LG_CONVERT(bf16, __nv_bfloat16)

// A matrix as f16, for products of many rows. Grid over groups of 8 elements.
template <typename W>
__device__ void dequant(const DequantParams& p) {
    begin();
    uint64_t group = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint32_t groups_a_row = p.w.cols / 8;
    if (group >= uint64_t(p.w.rows) * groups_a_row) return;
    float x[8];
    W::load8(x, p.w, static_cast<uint32_t>(group / groups_a_row), static_cast<uint32_t>(group % groups_a_row));
    store8(static_cast<__half*>(p.out) + group * 8, x);
}
#define LG_DEQUANT(W) extern "C" __global__ void dequant_##W(DequantParams p) { dequant<W>(p); }
LG_FOR_EACH_WEIGHT_TYPE(LG_DEQUANT)
