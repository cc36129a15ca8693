// Products of a matrix with a few rows: every warp computes one output of up to eight rows of x, reading its row of the
// matrix once. Sums have one order - eight elements a lane, lanes across the row, then a butterfly - whatever the number
// of rows, so a row has the same bits alone and among others.
#include "common/weights.cuh"

constexpr uint32_t WARPS = 4;

template <typename W, int N>
__device__ void matvec(const MatvecParams& p) {
    uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t first = blockIdx.y * N;
    if (row >= p.w.rows) return;
    float sum[N] = {};
    uint32_t cols = p.w.cols, groups = cols / 8;
    const float* x = p.x + uint64_t(first) * cols;
    auto fold = [&](const float* w, uint32_t group) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (first + n >= p.n_rows) break;
            const float4* xs = reinterpret_cast<const float4*>(x + uint64_t(n) * cols) + 2 * group;
            float4 a = xs[0], b = xs[1];
            sum[n] += w[0] * a.x + w[1] * a.y + w[2] * a.z + w[3] * a.w;
            sum[n] += w[4] * b.x + w[5] * b.y + w[6] * b.z + w[7] * b.w;
        }
    };
    if (cols % 8 == 0) {
        uint32_t group = lane;
        // Four loads in flight.
        for (; group + 96 < groups; group += 128) {
            float w[4][8];
#pragma unroll
            for (int i = 0; i < 4; i++) W::load8(w[i], p.w, row, group + 32 * i);
#pragma unroll
            for (int i = 0; i < 4; i++) fold(w[i], group + 32 * i);
        }
        for (; group < groups; group += 32) {
            float w[8];
            W::load8(w, p.w, row, group);
            fold(w, group);
        }
    } else {
        for (uint32_t col = lane; col < cols; col += 32) {
            float w = W::load1(p.w, row, col);
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (first + n < p.n_rows) sum[n] += w * x[uint64_t(n) * cols + col];
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        for (int other = 16; other > 0; other /= 2) sum[n] += __shfl_xor_sync(~0u, sum[n], other);
        if (lane == 0 && first + n < p.n_rows) {
            float* out = p.out + uint64_t(first + n) * p.w.rows + row;
            float y = sum[n] + (p.bias ? p.bias[row] : 0.0f);
            *out = p.add ? *out + y : y;
        }
    }
}

// Grid (rows / 4, n_rows / N).
#define LG_MATVEC(W)                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec1_##W(MatvecParams p) { matvec<W, 1>(p); } \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec4_##W(MatvecParams p) { matvec<W, 4>(p); } \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec8_##W(MatvecParams p) { matvec<W, 8>(p); }
LG_FOR_EACH_WEIGHT_TYPE(LG_MATVEC)
