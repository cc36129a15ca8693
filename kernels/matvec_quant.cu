// Products of quantised matrices with a few rows on the tensor cores: a block computes 16 outputs of up to eight rows of x.
//
// Bound by memory, if unpacking costs less than loading. Eight warps take stretches of 256 or 512 columns in turn; in a
// warp, four lanes share a row of the matrix and read 64 consecutive bytes of it each, of two rows. Quants become 16-bit
// floats by putting them into the mantissa of 1024, an exact number, and taking 1024 off again; times their scale they are
// rounded to what products of many rows use. The order of columns is free, as long as x has it too: every lane feeds the
// tensor cores what it has read, and x lies in shared memory in the order of the lanes. x is rounded to 16 bits, sums
// are f32. The first quants are on their way before the kernel waits for x.
//
// Sums have one order - the columns of a stretch, stretches of a warp, warps - whatever the number of rows of x.
#include "common/launch.cuh"
#include "common/mma.cuh"
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

// Quantised types. `unpack` turns the quants of one block, in order of the four elements that a lane gives to one
// product - 0 and 2, 1 and 3 of quads in the order of quad() - into numbers.
template <bool HAS_MINIMUM>
struct FourBits {
    static constexpr uint32_t BLOCK_WORDS = 4;
    using Scale = typename std::conditional<HAS_MINIMUM, uint32_t, uint16_t>::type;

    static __device__ __forceinline__ constexpr uint32_t quad(uint32_t i) { return i % 2 * 4 + i / 2; }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, Scale scale) {
        __half2 d = __half2half2(__ushort_as_half(static_cast<uint16_t>(scale & 0xffff)));
        __half2 m = HAS_MINIMUM ? __half2half2(__ushort_as_half(static_cast<uint16_t>(scale >> 16 % (8 * sizeof(Scale))))) : d;
#pragma unroll
        for (int w = 0; w < 4; w++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Bytes 0 and 2, 1 and 3; low halves, then high ones.
                uint32_t quants = (words[w] >> (i % 2 * 8 + i / 2 * 4) & 0x000f000f) | 0x64006400;
                __half2 q = __hsub2(as_half2(quants), pair_of(HAS_MINIMUM ? 1024.0f : 1032.0f));
                to[4 * w + i] = as_bits(HAS_MINIMUM ? __hfma2(q, d, m) : __hmul2(q, d));
            }
        }
    }
};
using Q4_0Unpack = FourBits<false>;
using Q4_1Unpack = FourBits<true>;

struct Q8_0Unpack {
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
    // Bytes of x of a lane and of a row in shared memory: eight lanes of four rows of x meet every bank once.
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
            scales[b] = is_there ? __ldg(from_scales + b) : 0;
        }
    }
};

template <typename Q>
__device__ __forceinline__ void matvec_quant(const MatvecParams& p) {
    using S = Stretch<Q>;
    extern __shared__ uint8_t memory[];   // (warps, rows of x, lanes, elements), later (warps, 16, 8)
    let_next_start();
    const MatvecPart& part = p.part(blockIdx.x);
    const Weight& w = part.w;
    uint32_t first_row = (blockIdx.x - part.first_block) * TILE_ROWS, first_x = blockIdx.y * TILE_X;
    uint32_t n_x = min(TILE_X, p.n_rows - first_x), cols = w.cols, n_blocks = cols / QUANT_BLOCK;
    uint32_t n_stretches = (n_blocks + S::BLOCKS - 1) / S::BLOCKS;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row_lane = lane / LANES, part_lane = lane % LANES;
    uint8_t* held_x = memory + warp * n_x * S::X_BYTES;
    // Columns of the product without a row of x take any: nobody reads them.
    const uint8_t* my_x = held_x + min(row_lane, n_x - 1) * S::X_BYTES + part_lane * S::X_LANE_BYTES;

    float sums[2][4] = {};
    Held<Q> low, high;
    auto load = [&](uint32_t stretch) {
        uint32_t block = stretch * S::BLOCKS + part_lane * S::LANE_BLOCKS;
        low.load(w, min(first_row + row_lane, w.rows - 1), block);
        high.load(w, min(first_row + row_lane + 8, w.rows - 1), block);
    };
    if (warp < n_stretches) load(warp);
    wait_for_inputs();
    for (uint32_t stretch = warp; stretch < n_stretches; stretch += WARPS) {
        // x in 16 bits, in the order in which lanes want it.
        __syncwarp();
        for (uint32_t n = 0; n < n_x; n++) {
            const float* from = p.x + uint64_t(first_x + n) * cols;
#pragma unroll
            for (uint32_t i = 0; i < S::BLOCKS * QUADS / 32; i++) {
                uint32_t quad = i * 32 + lane, block = quad / QUADS, col = (stretch * S::BLOCKS * QUADS + quad) * 4;
                float4 x = col < cols ? *reinterpret_cast<const float4*>(from + col) : make_float4(0, 0, 0, 0);
                uint32_t at = block / S::LANE_BLOCKS * S::X_LANE_BYTES + (block % S::LANE_BLOCKS * QUADS + quad % QUADS) * 8;
                uint2 halves = make_uint2(as_bits(__halves2half2(to_f16(x.x), to_f16(x.z))),
                                          as_bits(__halves2half2(to_f16(x.y), to_f16(x.w))));
                *reinterpret_cast<uint2*>(held_x + n * S::X_BYTES + at) = halves;
            }
        }
        __syncwarp();
#pragma unroll
        for (uint32_t b = 0; b < S::LANE_BLOCKS; b++) {
            uint32_t of_low[2 * QUADS], of_high[2 * QUADS];
            Q::unpack(of_low, low.words + b * Q::BLOCK_WORDS, low.scales[b]);
            Q::unpack(of_high, high.words + b * Q::BLOCK_WORDS, high.scales[b]);
#pragma unroll
            for (uint32_t i = 0; i < QUADS; i++) {
                uint2 x = *reinterpret_cast<const uint2*>(my_x + (b * QUADS + Q::quad(i)) * 8);
                HalfType::mma(sums[i % 2], {of_low[2 * i], of_high[2 * i], of_low[2 * i + 1], of_high[2 * i + 1]}, x.x, x.y);
            }
        }
        if (stretch + WARPS < n_stretches) load(stretch + WARPS);
    }

    __syncthreads();
    float* all = reinterpret_cast<float*>(memory);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = row_lane + i / 2 * 8, column = part_lane * 2 + i % 2;
        all[(warp * TILE_ROWS + row) * TILE_X + column] = sums[0][i] + sums[1][i];
    }
    __syncthreads();
    uint32_t row = threadIdx.x % TILE_ROWS, n = threadIdx.x / TILE_ROWS;
    if (n >= n_x || first_row + row >= w.rows) return;
    float y = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < WARPS; i++) y += all[(i * TILE_ROWS + row) * TILE_X + n];
    if (part.bias) y += part.bias[first_row + row];
    float* out = part.out + uint64_t(first_x + n) * w.rows + first_row + row;
    *out = p.add ? *out + y : y;
}

// Grid (rows of all parts / 16, n_rows / 8).
#define LG_MATVEC_QUANT(Q)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) matvec_quant_##Q(const __grid_constant__ MatvecParams p) {    \
        matvec_quant<Q##Unpack>(p);                                                                                        \
    }
LG_MATVEC_QUANT(Q8_0)
LG_MATVEC_QUANT(Q4_0)
LG_MATVEC_QUANT(Q4_1)
