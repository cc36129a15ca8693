// Products of matrices with a few rows on the tensor cores: a block computes 16 outputs of up to eight rows of x at a time.
//
// Bound by memory: quants cost less to unpack than to load. Eight warps take stretches of 128 to 512 columns in turn; in a
// warp, four lanes share a row of the matrix and read 64 consecutive bytes of it each, of two rows. A block goes from tile
// to tile: x is converted once, if there is room, and the next part of the matrix is on its way while sums are added up, the
// first part while the kernel waits for x. x may be normed as it is converted, and a gated unit is computed as a whole: short
// kernels are not worth a launch.
//
// Quants become 16-bit floats by putting them into the mantissa of 1024, an exact number, and taking 1024 off again; times
// their scale they are rounded. The order of columns is free, as long as x has it too: every lane feeds the tensor cores what
// it has read, and x lies in shared memory in the order of the lanes. x is rounded to 16 bits, sums are f32, in one order -
// the even and the odd quads of a warp's stretches, then both, then warps - whatever the number of rows.
#include <type_traits>

#include "common/activation.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/norm.cuh"
#include "common/weights.cuh"

constexpr uint32_t WARPS = 8;
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t TILE_X = 8;          // rows of x
constexpr uint32_t LANES = 4;           // of a row
constexpr uint32_t LANE_WORDS = 16;     // that a lane reads of a row at a time
constexpr uint32_t QUADS = 8;           // four elements each, of a block

__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }
__device__ __forceinline__ uint32_t as_bits(__half2 pair) { return *reinterpret_cast<uint32_t*>(&pair); }
__device__ __forceinline__ __half2 pair_of(float x) { return __float2half2_rn(x); }

// Element types, in blocks of 32. `unpack` turns a block into 16-bit floats in the order in which a lane gives them to the
// tensor cores: two pairs from each quad of four elements, quads in the order of quad(); `pack` does so with a quad of x.
template <typename T>
struct Plain {
    static constexpr uint32_t BLOCK_WORDS = 16;
    static constexpr bool HAS_SCALES = false;
    using Product = T;
    using Scale = uint16_t;

    static __device__ __forceinline__ constexpr uint32_t quad(uint32_t i) { return i; }
    static __device__ __forceinline__ uint2 pack(float4 x) {
        if (std::is_same<T, Bf16Type>::value) return make_uint2(T::pack(x.x, x.y), T::pack(x.z, x.w));
        return make_uint2(as_bits(__halves2half2(to_f16(x.x), to_f16(x.y))), as_bits(__halves2half2(to_f16(x.z), to_f16(x.w))));
    }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, Scale) {
#pragma unroll
        for (int w = 0; w < 16; w++) to[w] = words[w];
    }
};
using F16Unpack = Plain<HalfType>;
using Bf16Unpack = Plain<Bf16Type>;

// Quants: elements 0 and 2, and 1 and 3, of a quad, which lie 16 bits apart.
struct Quants {
    static constexpr bool HAS_SCALES = true;
    using Product = HalfType;

    static __device__ __forceinline__ uint2 pack(float4 x) {
        return make_uint2(as_bits(__halves2half2(to_f16(x.x), to_f16(x.z))), as_bits(__halves2half2(to_f16(x.y), to_f16(x.w))));
    }
};

template <bool HAS_MINIMUM>
struct FourBits : Quants {
    static constexpr uint32_t BLOCK_WORDS = 4;
    using Scale = typename std::conditional<HAS_MINIMUM, uint32_t, uint16_t>::type;

    static __device__ __forceinline__ constexpr uint32_t quad(uint32_t i) { return i % 2 * 4 + i / 2; }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, Scale scale) {
        __half2 d = __half2half2(__ushort_as_half(static_cast<uint16_t>(scale & 0xffff))), m = d;
        if constexpr (HAS_MINIMUM) m = __half2half2(__ushort_as_half(static_cast<uint16_t>(scale >> 16)));
#pragma unroll
        for (int w = 0; w < 4; w++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                // Bytes 0 and 2, 1 and 3: their low halves are added to 1024, the high ones times 16.
                uint32_t bytes = words[w] >> 8 * i;
                __half2 low = as_half2(join<0x000f000f>(bytes)), high = as_half2(join<0x00f000f0>(bytes));
                low = __hsub2(low, pair_of(HAS_MINIMUM ? 1024.0f : 1032.0f));
                high = __hfma2(high, pair_of(1.0f / 16.0f), pair_of(HAS_MINIMUM ? -64.0f : -72.0f));
                to[4 * w + i] = as_bits(HAS_MINIMUM ? __hfma2(low, d, m) : __hmul2(low, d));
                to[4 * w + i + 2] = as_bits(HAS_MINIMUM ? __hfma2(high, d, m) : __hmul2(high, d));
            }
        }
    }

    // Some bits in the mantissas of two numbers of 1024, in one instruction.
    template <uint32_t BITS>
    static __device__ __forceinline__ uint32_t join(uint32_t bits) {
        uint32_t out;
        asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(out) : "r"(bits), "n"(BITS), "r"(0x64006400));
        return out;
    }
};
using Q4_0Unpack = FourBits<false>;
using Q4_1Unpack = FourBits<true>;

struct Q8_0Unpack : Quants {
    static constexpr uint32_t BLOCK_WORDS = 8;
    using Scale = uint16_t;

    static __device__ __forceinline__ constexpr uint32_t quad(uint32_t i) { return i; }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, Scale scale) {
        __half2 d = __half2half2(__ushort_as_half(scale));
#pragma unroll
        for (int w = 0; w < 8; w++) {
            uint32_t unsigned_quants = words[w] ^ 0x80808080;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t quants = __byte_perm(unsigned_quants, 0x64646464, i == 0 ? 0x4240 : 0x4341);
                to[2 * w + i] = as_bits(__hmul2(__hsub2(as_half2(quants), pair_of(1024.0f + 128.0f)), d));
            }
        }
    }
};

template <typename Q>
struct Stretch {
    static constexpr uint32_t LANE_BLOCKS = LANE_WORDS / Q::BLOCK_WORDS;
    static constexpr uint32_t BLOCKS = LANES * LANE_BLOCKS;
    // Bytes of x of a lane and of a row in shared memory: the sixteen lanes that read four rows of x together meet every bank once.
    static constexpr uint32_t X_LANE_BYTES = LANE_BLOCKS * QUADS * 8 + 8;
    static constexpr uint32_t X_BYTES = LANES * X_LANE_BYTES;
};

// What a lane has read of a row.
template <typename Q>
struct Held {
    uint32_t words[LANE_WORDS];
    typename Q::Scale scales[Stretch<Q>::LANE_BLOCKS];

    __device__ __forceinline__ void load(const Weight& w, uint32_t row, uint32_t block) {
        constexpr uint32_t LANE_BLOCKS = Stretch<Q>::LANE_BLOCKS;
        uint32_t n_blocks = w.cols / QUANT_BLOCK;
        uint64_t at = uint64_t(row) * n_blocks + block;
        const uint4* from = static_cast<const uint4*>(w.data) + at * (Q::BLOCK_WORDS / 4);
        const auto* from_scales = static_cast<const typename Q::Scale*>(w.scales) + at;
#pragma unroll
        for (uint32_t b = 0; b < LANE_BLOCKS; b++) {
            bool is_there = block + b < n_blocks;
#pragma unroll
            for (uint32_t i = 0; i < Q::BLOCK_WORDS / 4; i++) {
                uint4 x = is_there ? __ldg(from + b * (Q::BLOCK_WORDS / 4) + i) : make_uint4(0, 0, 0, 0);
                uint32_t* to = words + b * Q::BLOCK_WORDS + 4 * i;
                to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
            }
            // Blocks that are not there weigh nothing.
            if (Q::HAS_SCALES) scales[b] = is_there ? __ldg(from_scales + b) : 0;
        }
    }
};

// A tile of the outputs: of a gated unit, its low half are gates, and the high one what they let through.
struct OutputTile {
    const MatvecPart &part, &part_high;
    uint32_t first_row, first_high;

    __device__ __forceinline__ OutputTile(const MatvecParams& p, uint32_t tile)
        : part(p.is_glu ? p.parts[0] : p.part(tile)), part_high(p.is_glu ? p.parts[1] : part),
          first_row((tile - part.first_tile) * (p.is_glu ? TILE_ROWS / 2 : TILE_ROWS)),
          first_high(p.is_glu ? first_row : first_row + TILE_ROWS / 2) {}
};

template <typename Q>
struct MatvecMma {
    using S = Stretch<Q>;

    const MatvecParams& p;
    uint32_t first_x, n_x, cols, n_blocks, n_stretches, warp, lane, row_lane, part_lane;
    Held<Q> low, high;   // what comes next

    __device__ __forceinline__ explicit MatvecMma(const MatvecParams& p)
        : p(p), first_x(blockIdx.y * TILE_X), n_x(min(TILE_X, p.n_rows - first_x)), cols(p.parts[0].w.cols),
          n_blocks(cols / QUANT_BLOCK), n_stretches((n_blocks + S::BLOCKS - 1) / S::BLOCKS), warp(threadIdx.x / 32),
          lane(threadIdx.x % 32), row_lane(lane / LANES), part_lane(lane % LANES) {}

    __device__ __forceinline__ void load(const OutputTile& tile, uint32_t stretch) {
        uint32_t block = stretch * S::BLOCKS + part_lane * S::LANE_BLOCKS, last = tile.part.w.rows - 1;
        low.load(tile.part.w, min(tile.first_row + row_lane, last), block);
        high.load(tile.part_high.w, min(tile.first_high + row_lane, last), block);
    }

    // A stretch of x in 16 bits, in the order in which lanes want it.
    __device__ __forceinline__ void stage(uint8_t* to, uint32_t stretch, const float* factors) const {
        for (uint32_t n = 0; n < n_x; n++) {
            const float* from = p.x + uint64_t(first_x + n) * cols;
#pragma unroll
            for (uint32_t i = 0; i < S::BLOCKS * QUADS / 32; i++) {
                uint32_t quad = i * 32 + lane, block = quad / QUADS, col = (stretch * S::BLOCKS * QUADS + quad) * 4;
                float4 x = col < cols ? *reinterpret_cast<const float4*>(from + col) : make_float4(0, 0, 0, 0);
                if (p.norm && col < cols) {
                    float4 weight = __ldg(reinterpret_cast<const float4*>(p.norm + col));
                    float factor = factors[n];
                    x.x *= factor * weight.x, x.y *= factor * weight.y, x.z *= factor * weight.z, x.w *= factor * weight.w;
                }
                uint32_t at = block / S::LANE_BLOCKS * S::X_LANE_BYTES + (block % S::LANE_BLOCKS * QUADS + quad % QUADS) * 8;
                *reinterpret_cast<uint2*>(to + n * S::X_BYTES + at) = Q::pack(x);
            }
        }
    }

    // Adds the products of what was loaded and a stretch of x.
    __device__ __forceinline__ void fold(float (&sums)[2][4], const uint8_t* x) const {
        // Columns of the product without a row of x take any: nobody reads them.
        const uint8_t* my_x = x + min(row_lane, n_x - 1) * S::X_BYTES + part_lane * S::X_LANE_BYTES;
#pragma unroll
        for (uint32_t b = 0; b < S::LANE_BLOCKS; b++) {
            uint32_t of_low[2 * QUADS], of_high[2 * QUADS];
            Q::unpack(of_low, low.words + b * Q::BLOCK_WORDS, low.scales[b]);
            Q::unpack(of_high, high.words + b * Q::BLOCK_WORDS, high.scales[b]);
#pragma unroll
            for (uint32_t i = 0; i < QUADS; i++) {
                uint2 x = *reinterpret_cast<const uint2*>(my_x + (b * QUADS + Q::quad(i)) * 8);
                Q::Product::mma(sums[i % 2], {of_low[2 * i], of_high[2 * i], of_low[2 * i + 1], of_high[2 * i + 1]}, x.x, x.y);
            }
        }
    }

    // Adds up what the warps have of a tile: `all` is (warps, 16, 8).
    __device__ __forceinline__ void finish(const OutputTile& tile, const float (&sums)[2][4], float* all) const {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t row = row_lane + i / 2 * 8, column = part_lane * 2 + i % 2;
            all[(warp * TILE_ROWS + row) * TILE_X + column] = sums[0][i] + sums[1][i];
        }
        __syncthreads();
        if (threadIdx.x >= TILE_ROWS * TILE_X) return;
        uint32_t tile_row = threadIdx.x % TILE_ROWS, n = threadIdx.x / TILE_ROWS;
        bool is_high = tile_row >= TILE_ROWS / 2;
        uint32_t row = is_high ? tile.first_high + tile_row - TILE_ROWS / 2 : tile.first_row + tile_row;
        bool is_there = row < tile.part.w.rows && n < n_x;
        float y = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < WARPS; i++) y += all[(i * TILE_ROWS + tile_row) * TILE_X + n];
        const float* bias = is_high ? tile.part_high.bias : tile.part.bias;
        if (bias && is_there) y += bias[row];
        if (p.is_glu) {
            float up = __shfl_down_sync(~0u, y, TILE_ROWS / 2);
            is_there = is_there && !is_high;
            y = silu(y) * up;
        }
        if (!is_there) return;
        float* out = tile.part.out + uint64_t(first_x + n) * tile.part.w.rows + row;
        *out = p.add ? *out + y : y;
    }
};

template <typename Q>
__device__ __forceinline__ void matvec_mma(const MatvecParams& p) {
    using S = Stretch<Q>;
    // (2, warps, 16, 8) sums, then x: (warps, stretches, rows of x, lanes, elements).
    extern __shared__ uint4 memory[];
    __shared__ float factors[TILE_X];   // of the norm of x
    let_next_start();
    MatvecMma<Q> q(p);
    float* all = reinterpret_cast<float*>(memory);
    constexpr uint32_t SUMS = WARPS * TILE_ROWS * TILE_X;
    uint32_t x_bytes = q.n_x * S::X_BYTES, n_held = p.stages_once ? (q.n_stretches + WARPS - 1) / WARPS : 1;
    uint8_t* held_x = reinterpret_cast<uint8_t*>(all + 2 * SUMS) + q.warp * n_held * x_bytes;

    if (q.warp < q.n_stretches) q.load(OutputTile(p, blockIdx.x), q.warp);
    wait_for_inputs();
    if (p.norm) norm_factors(factors, p.x + uint64_t(q.first_x) * q.cols, q.n_x, q.cols, p.eps);
    if (p.stages_once) {
        for (uint32_t i = 0; q.warp + i * WARPS < q.n_stretches; i++) q.stage(held_x + i * x_bytes, q.warp + i * WARPS, factors);
        __syncwarp();
    }
    for (uint32_t t = blockIdx.x, round = 0; t < p.n_tiles; t += gridDim.x, round++) {
        OutputTile tile(p, t);
        float sums[2][4] = {};
        for (uint32_t stretch = q.warp, i = 0; stretch < q.n_stretches; stretch += WARPS, i++) {
            const uint8_t* x = held_x + (p.stages_once ? i * x_bytes : 0);
            if (!p.stages_once) {
                __syncwarp();
                q.stage(held_x, stretch, factors);
                __syncwarp();
            }
            q.fold(sums, x);
            if (stretch + WARPS < q.n_stretches) {
                q.load(tile, stretch + WARPS);
            } else if (t + gridDim.x < p.n_tiles) {
                q.load(OutputTile(p, t + gridDim.x), q.warp);
            }
        }
        q.finish(tile, sums, all + round % 2 * SUMS);
    }
}

// Grid (at most the tiles: rows of all parts / 16, or rows of a gated unit / 8; n_rows / 8): as many blocks as run at once.
#define LG_MATVEC_MMA(Q)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec_mma_##Q(const __grid_constant__ MatvecParams p) {    \
        matvec_mma<Q##Unpack>(p);                                                                                        \
    }
LG_MATVEC_MMA(F16)
LG_MATVEC_MMA(Bf16)
LG_MATVEC_MMA(Q8_0)
LG_MATVEC_MMA(Q4_0)
LG_MATVEC_MMA(Q4_1)
