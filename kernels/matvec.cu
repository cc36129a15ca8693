// Products of matrices with a few rows in f32: every warp computes one output of up to eight rows of x, reading its row of
// the matrix once. Sums have one order - eight elements a lane, lanes across the row, then a butterfly - whatever the number
// of rows, so a row has the same bits alone and among others. Where 16-bit inputs are precise enough, matvec_mma.cu is
// faster.
//
// Bound by memory for one row of x and 16-bit matrices. The first elements of a matrix are on their way before the kernel
// waits for x.
#include "common/launch.cuh"
#include "common/warp.cuh"
#include "common/weights.cuh"

constexpr uint32_t WARPS = 4;

template <typename W, int N>
__device__ void matvec(const MatvecParams& p) {
    constexpr uint32_t IN_FLIGHT = N < 8 ? 4 : 2;   // loads of a lane: registers are what there is least of
    let_next_start();
    const MatvecPart& part = p.part(blockIdx.x);
    const Weight& matrix = part.w;
    uint32_t row = (blockIdx.x - part.first_tile) * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t first = blockIdx.y * N, n_x = min(uint32_t(N), p.n_rows - first);
    if (row >= matrix.rows) return;
    uint32_t cols = matrix.cols, groups = cols / 8;
    const float* x = p.x + uint64_t(first) * cols;
    // The norm of x is its weight, here, and a factor of the sum, which takes x's squares.
    float sum[N] = {}, squares[N] = {};
    auto fold = [&](float* w, uint32_t group) {
        if (p.norm) {
            const float4* weights = reinterpret_cast<const float4*>(p.norm) + 2 * group;
            float4 a = __ldg(weights), b = __ldg(weights + 1);
            w[0] *= a.x, w[1] *= a.y, w[2] *= a.z, w[3] *= a.w;
            w[4] *= b.x, w[5] *= b.y, w[6] *= b.z, w[7] *= b.w;
        }
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            if (n >= n_x) break;
            const float4* xs = reinterpret_cast<const float4*>(x + uint64_t(n) * cols) + 2 * group;
            float4 a = xs[0], b = xs[1];
            sum[n] += w[0] * a.x + w[1] * a.y + w[2] * a.z + w[3] * a.w;
            sum[n] += w[4] * b.x + w[5] * b.y + w[6] * b.z + w[7] * b.w;
            if (p.norm) {
                squares[n] += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
                squares[n] += b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
            }
        }
    };
    if (cols % 8 == 0) {
        float w[IN_FLIGHT][8];
        uint32_t group = lane, n_whole = groups / (32 * IN_FLIGHT);
        auto load = [&]() {
#pragma unroll
            for (uint32_t i = 0; i < IN_FLIGHT; i++) W::load8(w[i], matrix, row, group + 32 * i);
        };
        if (n_whole > 0) load();
        wait_for_inputs();
        for (uint32_t i = 0; i < n_whole; i++) {
#pragma unroll
            for (uint32_t j = 0; j < IN_FLIGHT; j++) fold(w[j], group + 32 * j);
            group += 32 * IN_FLIGHT;
            if (i + 1 < n_whole) load();
        }
        for (; group < groups; group += 32) {
            W::load8(w[0], matrix, row, group);
            fold(w[0], group);
        }
    } else {
        wait_for_inputs();
        for (uint32_t col = lane; col < cols; col += 32) {
            float w = W::load1(matrix, row, col) * (p.norm ? p.norm[col] : 1.0f);
#pragma unroll
            for (uint32_t n = 0; n < N; n++) {
                float value = n < n_x ? x[uint64_t(n) * cols + col] : 0.0f;
                sum[n] += w * value;
                squares[n] += value * value;
            }
        }
    }
#pragma unroll
    for (uint32_t n = 0; n < N; n++) {
        float y = warp_sum(sum[n]);
        if (p.norm) y /= sqrtf(warp_sum(squares[n]) / static_cast<float>(cols) + p.eps);
        if (lane > 0 || n >= n_x) continue;
        if (part.bias) y += part.bias[row];
        float* out = part.out + uint64_t(first + n) * matrix.rows + row;
        *out = p.add ? *out + y : y;
    }
}

// Grid (rows of all parts / 4, n_rows / N).
#define LG_MATVEC_N(W, N)                                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 5) matvec##N##_##W(const __grid_constant__ MatvecParams p) { \
        matvec<W, N>(p);                                                                                              \
    }
#define LG_MATVEC(W) LG_MATVEC_N(W, 1) LG_MATVEC_N(W, 4) LG_MATVEC_N(W, 8)
LG_FOR_EACH_WEIGHT_TYPE(LG_MATVEC)
