// Ops on rows: embedding, norm, RoPE angles, gated units, bias, and conversions to 16 bits. All of them wait for
// memory, not for arithmetic.
#include "common/launch.cuh"
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

// Sum over a block of at most 1024 threads, the same in all of them.
__device__ float block_sum(float x) {
    __shared__ float of_warp[32];
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f;
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// Grid (n_rows). A row of four elements a thread is read once.
extern "C" __global__ void norm_rms(NormParams p) {
    begin();
    const float* x = p.x + uint64_t(blockIdx.x) * p.width;
    float* out = p.out + uint64_t(blockIdx.x) * p.width;
    if (p.width % 4 == 0) {
        const float4* xs = reinterpret_cast<const float4*>(x);
        const float4* weights = reinterpret_cast<const float4*>(p.weight);
        uint32_t n = p.width / 4;
        auto load = [&](uint32_t i) { return i < n ? xs[i] : make_float4(0, 0, 0, 0); };
        float4 first = load(threadIdx.x), first_weight = threadIdx.x < n ? weights[threadIdx.x] : first;
        float sum = 0.0f;
        auto fold = [&](float4 v) { sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
        fold(first);
        for (uint32_t i = threadIdx.x + blockDim.x; i < n; i += blockDim.x) fold(xs[i]);
        float factor = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(p.width) + p.eps);
        auto store = [&](uint32_t i, float4 v, float4 w) {
            reinterpret_cast<float4*>(out)[i] =
                make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
        };
        if (threadIdx.x < n) store(threadIdx.x, first, first_weight);
        for (uint32_t i = threadIdx.x + blockDim.x; i < n; i += blockDim.x) store(i, xs[i], weights[i]);
    } else {
        float sum = 0.0f;
        for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) sum += x[i] * x[i];
        float factor = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(p.width) + p.eps);
        for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) out[i] = x[i] * factor * p.weight[i];
    }
}

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
    if (i < p.n_elems) {
        float x = p.gate[i];
        p.gate[i] = x / (1.0f + expf(-x)) * p.up[i];
    }
}

extern "C" __global__ void add_bias(BiasParams p) {
    begin();
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < uint64_t(p.n_rows) * p.width) p.out[i] += p.bias[i % p.width];
}

extern "C" __global__ void to_f16(ConvertParams p) {
    begin();
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.n_elems) static_cast<__half*>(p.out)[i] = to_f16(p.x[i]);
}

extern "C" __global__ void to_bf16(ConvertParams p) {
    begin();
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.n_elems) static_cast<__nv_bfloat16*>(p.out)[i] = __float2bfloat16_rn(p.x[i]);
}

// A matrix as f16, for products of many rows. Grid over groups of 8 elements.
template <typename W>
__device__ void dequant(const DequantParams& p) {
    begin();
    uint64_t group = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint32_t groups_a_row = p.w.cols / 8;
    if (group >= uint64_t(p.w.rows) * groups_a_row) return;
    float x[8];
    W::load8(x, p.w, static_cast<uint32_t>(group / groups_a_row), static_cast<uint32_t>(group % groups_a_row));
    __half out[8];
    for (int i = 0; i < 8; i++) out[i] = to_f16(x[i]);
    static_cast<uint4*>(p.out)[group] = *reinterpret_cast<uint4*>(out);
}
#define LG_DEQUANT(W) extern "C" __global__ void dequant_##W(DequantParams p) { dequant<W>(p); }
LG_FOR_EACH_WEIGHT_TYPE(LG_DEQUANT)
