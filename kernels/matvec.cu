// Products of matrices with a few rows: every warp computes one output of up to eight rows of x, reading its row of the
// matrix once. Sums have one order - eight elements a lane, lanes across the row, then a butterfly - whatever the number
// of rows, so a row has the same bits alone and among others.
//
// Bound by memory for one row of x and 16-bit matrices. The first elements of a matrix are on their way before the
// kernel waits for x. Quantised matrices go through matvec_quant.cu where 16-bit inputs are precise enough.
#include "common/launch.cuh"
#include "common/weights.cuh"

constexpr uint32_t WARPS = 4;
constexpr uint32_t IN_FLIGHT = 4;   // loads of a lane

template <typename W, int N>
__device__ void matvec(const MatvecParams& p) {
    let_next_start();
    const MatvecPart& part = p.part(blockIdx.x);
    const Weight& matrix = part.w;
    uint32_t row = (blockIdx.x - part.first_block) * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t first = blockIdx.y * N;
    if (row >= matrix.rows) return;
    float sum[N] = {};
    uint32_t cols = matrix.cols, groups = cols / 8;
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
            float w = W::load1(matrix, row, col);
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
            float* out = part.out + uint64_t(first + n) * matrix.rows + row;
            float y = sum[n] + (part.bias ? part.bias[row] : 0.0f);
            *out = p.add ? *out + y : y;
        }
    }
}

// Grid (rows of all parts / 4, n_rows / N).
#define LG_MATVEC_N(W, N)                                                                                        \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec##N##_##W(const __grid_constant__ MatvecParams p) { \
        matvec<W, N>(p);                                                                                         \
    }
#define LG_MATVEC(W) LG_MATVEC_N(W, 1) LG_MATVEC_N(W, 4) LG_MATVEC_N(W, 8)
LG_FOR_EACH_WEIGHT_TYPE(LG_MATVEC)
