// Products of many rows on the tensor cores, for machines without cuBLASLt: out (n, m) = x (n, k) * transpose(w (m, k)).
//
// A block of eight warps computes a tile of 128 x 128 outputs, a warp 64 x 32 of it. 32 columns of x and w at a time
// come through three stages of shared memory, whose rows are 16 bytes longer than that so that ldmatrix meets no bank
// twice. k is a multiple of 8.
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/params.cuh"

constexpr uint32_t TILE = 128;
constexpr uint32_t DEPTH = 32;
constexpr uint32_t STAGES = 3;
constexpr uint32_t PITCH = (DEPTH + 8) * 2;
constexpr uint32_t TILE_BYTES = TILE * PITCH;
constexpr uint32_t THREADS = 256;

// Starts copying rows first.. of a (n_rows, k) matrix, columns from `col` on; what is not there is zero.
__device__ __forceinline__ void
fetch(uint32_t to, const void* from, uint32_t first, uint32_t n_rows, uint32_t k, uint32_t col) {
    for (uint32_t i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS) {
        uint32_t row = i / (DEPTH / 8), at = col + i % (DEPTH / 8) * 8;
        bool is_there = first + row < n_rows && at < k;
        uint64_t offset = is_there ? uint64_t(first + row) * k + at : 0;
        copy16(to + row * PITCH + i % (DEPTH / 8) * 16, static_cast<const uint16_t*>(from) + offset, is_there);
    }
}

template <typename T>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    begin();
    extern __shared__ uint4 memory[];
    uint32_t shared = shared_address(memory);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    uint32_t warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    float sums[4][4][4] = {};

    uint32_t n_steps = (p.k + DEPTH - 1) / DEPTH;
    auto stage = [&](uint32_t step) { return shared + step % STAGES * 2 * TILE_BYTES; };
    auto start = [&](uint32_t step) {
        if (step < n_steps) {
            fetch(stage(step), p.x, row0, p.n, p.k, step * DEPTH);
            fetch(stage(step) + TILE_BYTES, p.w, col0, p.m, p.k, step * DEPTH);
        }
        copies_end();
    };
    for (uint32_t step = 0; step < STAGES - 1; step++) start(step);
    for (uint32_t step = 0; step < n_steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        start(step + STAGES - 1);
        uint32_t xs = stage(step), ws = xs + TILE_BYTES;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t x[4][4], w[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                load_matrices(x[i], xs + (warp_row + i * 16 + lane % 16) * PITCH + (k * 16 + lane / 16 * 8) * 2);
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint32_t row = warp_col + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(w[j], ws + row * PITCH + (k * 16 + lane / 8 % 2 * 8) * 2);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) T::mma(sums[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t row = row0 + warp_row + i * 16 + e / 2 * 8 + lane / 4;
                uint32_t col = col0 + warp_col + j * 8 + lane % 4 * 2 + e % 2;
                if (row >= p.n || col >= p.m) continue;
                float* out = p.out + uint64_t(row) * p.out_width + col;
                *out = p.add ? *out + sums[i][j][e] : sums[i][j][e];
            }
        }
    }
}

// Grid (m / 128, n / 128).
extern "C" __global__ void __launch_bounds__(THREADS) gemm_f16(GemmParams p) { gemm<HalfType>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) gemm_bf16(GemmParams p) { gemm<Bf16Type>(p); }
