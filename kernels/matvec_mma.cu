// Products of matrices with a few rows on the tensor cores: a block computes 16 outputs of up to eight rows of x at a time.
//
// Bound by memory: quants cost less to unpack than to load. Eight warps take stretches of 128 to 512 columns in turn; in a
// warp, four lanes share a row of the matrix, and each multiplies 64 bytes of two rows. A warp has its own stages of shared
// memory, into which copies bring what it is to multiply next, on to the tiles that follow and without regard for the other
// warps; the first of them are on their way while the kernel waits for x. One more warp adds up what the others leave of a
// tile. x is converted once, if there is room. x may be normed as it is converted, and a gated unit is computed as a whole:
// short kernels are not worth a launch.
//
// With one row of x, the four products of a layer of Llama 2 7B take 139 us of an H100 in bf16, 79 in q8_0 and 47 in q4_0:
// 2.9, 2.7 and 2.4 TB/s of 3.17. All of them in one product would take 136, 75 and 42; copies alone 130 in bf16. What costs
// most between two kernels is to read x: copies that are under way already, 6 us of them if all stages are being filled, are
// ahead of it. So x is asked for before the last stage is filled, all at once and, up to 6144 columns, only once: that took
// 7, 4 and 6 us off. None of this was faster: letting the next kernel start later, or copy later; bringing what comes after
// the stages to L2; other warps for x (four are slow, and registers spilled to memory queue like everything else); gates in
// 16 bits; blocks that take tiles as they get to them; products that follow each other in one kernel, with a barrier of all
// blocks.
//
// Quants become 16-bit floats by putting them into the mantissa of 1024, an exact number, and taking 1024 off again; times
// their scale they are rounded. The order of columns is free, as long as x has it too: every lane feeds the tensor cores what
// it has read, and x lies in shared memory in the order of the lanes. x is rounded to 16 bits, sums are f32, in one order -
// the even and the odd quads of a warp's stretches, then both, then warps - whatever the number of rows.
#include <type_traits>

#include "common/activation.cuh"
#include "common/barrier.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/warp.cuh"
#include "common/weights.cuh"

constexpr uint32_t WARPS = 8, THREADS = 32 * WARPS;   // that multiply
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t LANES = 4;                // of a row
constexpr uint32_t LANE_WORDS = 16;          // that a lane multiplies of a row of a stretch
constexpr uint32_t MAX_STAGES = 4;           // of a warp
// Tiles whose sums there is room for, so that warps need not wait for each other after each.
using Sums = StageRing<2>;

__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }
__device__ __forceinline__ uint32_t as_bits(__half2 pair) { return *reinterpret_cast<uint32_t*>(&pair); }
__device__ __forceinline__ __half2 pair_of(float x) { return __float2half2_rn(x); }

// Element types, in blocks of QUADS quads of four elements. `unpack` turns a block into 16-bit floats in the order in which a
// lane gives them to the tensor cores: two pairs from each quad, which is number position() then; `pack` does so with a quad of x.
template <typename T>
struct Plain {
    static constexpr uint32_t QUADS = 2, BLOCK_WORDS = 4, SCALE_BYTES = 0;
    using Product = T;

    static __device__ __forceinline__ uint32_t position(uint32_t quad) { return quad; }
    static __device__ __forceinline__ uint2 pack(float4 x) {
        if (std::is_same<T, Bf16Type>::value) return make_uint2(T::pack(x.x, x.y), T::pack(x.z, x.w));
        return make_uint2(as_bits(__halves2half2(to_f16(x.x), to_f16(x.y))), as_bits(__halves2half2(to_f16(x.z), to_f16(x.w))));
    }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, uint32_t) {
#pragma unroll
        for (int w = 0; w < 4; w++) to[w] = words[w];
    }
};
using F16Unpack = Plain<HalfType>;
using Bf16Unpack = Plain<Bf16Type>;

// Quants: elements 0 and 2, and 1 and 3, of a quad, which lie 16 bits apart.
struct Quants {
    static constexpr uint32_t QUADS = 8;
    using Product = HalfType;

    static __device__ __forceinline__ uint2 pack(float4 x) {
        return make_uint2(as_bits(__halves2half2(to_f16(x.x), to_f16(x.z))), as_bits(__halves2half2(to_f16(x.y), to_f16(x.w))));
    }
};

template <bool HAS_MINIMUM>
struct FourBits : Quants {
    static constexpr uint32_t BLOCK_WORDS = 4, SCALE_BYTES = HAS_MINIMUM ? 4 : 2;

    static __device__ __forceinline__ uint32_t position(uint32_t quad) { return quad % 4 * 2 + quad / 4; }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, uint32_t scale) {
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
    static constexpr uint32_t BLOCK_WORDS = 8, SCALE_BYTES = 2;

    static __device__ __forceinline__ uint32_t position(uint32_t quad) { return quad; }
    static __device__ __forceinline__ void unpack(uint32_t (&to)[2 * QUADS], const uint32_t* words, uint32_t scale) {
        __half2 d = __half2half2(__ushort_as_half(static_cast<uint16_t>(scale)));
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
    static constexpr uint32_t BLOCKS = LANES * LANE_BLOCKS, QUADS = BLOCKS * Q::QUADS;
    // Of a row of the matrix, of its scales, and of a row of x.
    static constexpr uint32_t ROW_BYTES = LANES * LANE_WORDS * 4;
    static constexpr uint32_t SCALE_WORDS = BLOCKS * Q::SCALE_BYTES / 4;
    static constexpr uint32_t X_BYTES = QUADS * 8;
    static constexpr uint32_t STAGE_BYTES = TILE_ROWS * (ROW_BYTES + SCALE_WORDS * 4);

    // Where in a stage a row has its 16 bytes `piece`: the eight lanes that read two rows together meet every bank once.
    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t piece) {
        return row * ROW_BYTES + (piece ^ row % 2 * 5) * 16;
    }
    static __device__ __forceinline__ uint32_t scales_at(uint32_t row) { return TILE_ROWS * ROW_BYTES + row * SCALE_WORDS * 4; }
    // Where row n of x has the pair of quads `pair` of a lane: as above.
    static __device__ __forceinline__ uint32_t x_at(uint32_t n, uint32_t pair, uint32_t part_lane) {
        return n * X_BYTES + ((pair ^ n % 2) * LANES + part_lane) * 16;
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

    // The matrix that a row of the tile is of, and which of its rows it is.
    struct Row {
        const Weight& w;
        uint32_t of_matrix;
    };
    __device__ __forceinline__ Row row(uint32_t row, bool is_high) const {
        if (is_high) return {part_high.w, first_high + row - TILE_ROWS / 2};
        return {part.w, first_row + row};
    }
};

// Stretches that a warp multiplies: every WARPS-th of each tile of the block.
struct Walk {
    uint32_t n_tiles, n_stretches, tile, stretch;

    __device__ __forceinline__ Walk(const MatvecParams& p, uint32_t n_stretches, uint32_t warp)
        : n_tiles(warp < n_stretches ? p.n_tiles : 0), n_stretches(n_stretches), tile(blockIdx.x), stretch(warp) {}

    __device__ __forceinline__ bool is_over() const { return tile >= n_tiles; }
    __device__ __forceinline__ void advance() {
        stretch += WARPS;
        if (stretch < n_stretches) return;
        stretch %= WARPS, tile += gridDim.x;
    }
};

template <typename Q, uint32_t N, bool KEEPS_X>
struct MatvecMma {
    using S = Stretch<Q>;

    const MatvecParams& p;
    uint8_t* stages;   // of this warp
    uint32_t first_x, n_x, cols, n_blocks, n_stretches, warp, lane, row_lane, part_lane;

    __device__ __forceinline__ MatvecMma(const MatvecParams& p, uint8_t* all_stages)
        : p(p), first_x(blockIdx.y * p.x_rows), n_x(N == 1 ? 1 : min(p.x_rows, p.n_rows - first_x)), cols(p.parts[0].w.cols),
          n_blocks(cols / (4 * Q::QUADS)), n_stretches((n_blocks + S::BLOCKS - 1) / S::BLOCKS), warp(threadIdx.x / 32),
          lane(threadIdx.x % 32), row_lane(lane / LANES), part_lane(lane % LANES) {
        stages = all_stages + warp * p.n_stages * S::STAGE_BYTES;
    }

    // Begins to copy a stretch of a tile to a stage; elements and rows that are not there become zeros.
    __device__ __forceinline__ void copy(const Walk& to_come, uint32_t stage) const {
        if (!to_come.is_over()) {
            OutputTile tile(p, to_come.tile);
            uint32_t to = shared_address(stages) + stage * S::STAGE_BYTES, stretch = to_come.stretch;
            constexpr uint32_t PIECES = S::ROW_BYTES / 16, COPY_ROWS = 32 / PIECES;
            uint32_t n_pieces = n_blocks * Q::BLOCK_WORDS / 4, piece = lane % PIECES, first_row = lane / PIECES;
            bool has_piece = stretch * PIECES + piece < n_pieces;
#pragma unroll
            for (uint32_t i = 0; i < TILE_ROWS / COPY_ROWS; i++) {
                uint32_t row = i * COPY_ROWS + first_row;
                auto [w, of_matrix] = tile.row(row, i * COPY_ROWS >= TILE_ROWS / 2);
                const uint4* from = static_cast<const uint4*>(w.data) + uint64_t(of_matrix) * n_pieces + stretch * PIECES + piece;
                copy16(to + S::at(row, piece), from, has_piece && of_matrix < w.rows);
            }
            if constexpr (S::SCALE_WORDS > 0) {
                constexpr uint32_t SCALE_ROWS = 32 / S::SCALE_WORDS;
                uint32_t n_words = n_blocks * Q::SCALE_BYTES / 4, word = lane % S::SCALE_WORDS;
                bool has_word = stretch * S::SCALE_WORDS + word < n_words;
#pragma unroll
                for (uint32_t i = 0; i < TILE_ROWS / SCALE_ROWS; i++) {
                    uint32_t row = i * SCALE_ROWS + lane / S::SCALE_WORDS;
                    auto [w, of_matrix] = tile.row(row, i * SCALE_ROWS >= TILE_ROWS / 2);
                    const uint32_t* from = static_cast<const uint32_t*>(w.scales) + uint64_t(of_matrix) * n_words;
                    copy4(to + S::scales_at(row) + word * 4, from + stretch * S::SCALE_WORDS + word, has_word && of_matrix < w.rows);
                }
            }
        }
        copies_end();
    }

    // x is read in batches: of each of some rows, K quads, `step` apart. Batches are large, so that x is one turn to memory:
    // a single row of up to 12,288 elements is one batch, or of up to 6144 with the weights of its norm.
    static constexpr uint32_t BATCH_ROWS = N == 1 ? 1 : KEEPS_X ? 4 : 2;
    template <bool IS_NORMED>
    struct Batch {
        static constexpr uint32_t K = N > 1 ? 4 : IS_NORMED ? 6 : 12;
        float4 x[BATCH_ROWS][K], weights[IS_NORMED ? K : 1];

        // Elements that are not there are zeros.
        static __device__ __forceinline__ void load(float4 (&to)[K], const float* row, uint32_t cols, uint32_t first, uint32_t step) {
#pragma unroll
            for (uint32_t k = 0; k < K; k++) {
                uint32_t quad = first + k * step;
                to[k] = quad < cols / 4 ? reinterpret_cast<const float4*>(row)[quad] : make_float4(0, 0, 0, 0);
            }
        }
        __device__ __forceinline__ void load_x(const MatvecMma& q, uint32_t first_n, uint32_t first, uint32_t step) {
#pragma unroll
            for (uint32_t i = 0; i < BATCH_ROWS; i++) {
                if (first_n + i < q.n_x) load(x[i], q.p.x + uint64_t(q.first_x + first_n + i) * q.cols, q.cols, first, step);
            }
        }
        __device__ __forceinline__ void load_weights(const MatvecMma& q, uint32_t first, uint32_t step) {
            if constexpr (IS_NORMED) load(weights, q.p.norm, q.cols, first, step);
        }
    };

    // Leaves the sums of the squares of x's rows, of the part that each warp takes; and x's first batch, which is read last:
    // once it has been asked for, `once_asked` is called. Quads are added from the last to the first, however large a batch is.
    template <typename F>
    __device__ __forceinline__ void sum_squares(float (&of_warps)[N][WARPS], Batch<true>& batch, F once_asked) const {
        constexpr uint32_t SIZE = Batch<true>::K * THREADS;
        for (uint32_t first_n = (n_x - 1) / BATCH_ROWS * BATCH_ROWS;; first_n -= BATCH_ROWS) {
            float sums[BATCH_ROWS] = {};
            for (uint32_t i_batch = (cols / 4 + SIZE - 1) / SIZE; i_batch-- > 0;) {
                batch.load_x(*this, first_n, threadIdx.x + i_batch * SIZE, THREADS);
                if (first_n == 0 && i_batch == 0) once_asked();
#pragma unroll
                for (uint32_t i = 0; i < BATCH_ROWS; i++) {
                    if (first_n + i >= n_x) break;
#pragma unroll
                    for (uint32_t k = Batch<true>::K; k-- > 0;) {
                        float4 v = batch.x[i][k];
                        sums[i] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
                    }
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH_ROWS; i++) {
                if (first_n + i >= n_x) break;
                float of_warp = warp_sum(sums[i]);
                if (lane == 0) of_warps[first_n + i][warp] = of_warp;
            }
            if (first_n == 0) break;
        }
    }
    // The factor of the norm of a row, from that.
    __device__ __forceinline__ float factor(const float (&of_warps)[WARPS]) const {
        float sum = 0.0f;
#pragma unroll
        for (float of_warp : of_warps) sum += of_warp;
        return 1.0f / sqrtf(sum / static_cast<float>(cols) + p.eps);
    }

    // Leaves rows of x in 16 bits, in the order in which lanes want them: of `stretch` alone, for its warp, or all, for all
    // threads, for whom the first batch is there.
    template <bool IS_WHOLE, bool IS_NORMED>
    __device__ __forceinline__ void
    stage_x(uint8_t* to, uint32_t stretch, Batch<IS_NORMED>& batch, const float (&of_warps)[N][WARPS]) const {
        uint32_t begin = IS_WHOLE ? threadIdx.x : stretch * S::QUADS + lane, step = IS_WHOLE ? THREADS : 32;
        uint32_t end = IS_WHOLE ? n_stretches * S::QUADS : (stretch + 1) * S::QUADS, n_held = (n_stretches + WARPS - 1) / WARPS;
        for (uint32_t first_n = 0; first_n < n_x; first_n += BATCH_ROWS) {
            float factors[BATCH_ROWS];
            if (IS_NORMED) {
#pragma unroll
                for (uint32_t i = 0; i < BATCH_ROWS; i++) factors[i] = factor(of_warps[min(first_n + i, n_x - 1)]);
            }
            for (uint32_t first = begin; first < end; first += batch.K * step) {
                bool is_there = IS_WHOLE && first_n == 0 && first == begin;
                if (!is_there) batch.load_x(*this, first_n, first, step), batch.load_weights(*this, first, step);
#pragma unroll
                for (uint32_t k = 0; k < batch.K; k++) {
                    uint32_t quad = first + k * step, block = quad % S::QUADS / Q::QUADS;
                    if (quad >= end) break;
                    uint32_t of_lane = block / LANES * Q::QUADS + Q::position(quad % Q::QUADS), held = 0;
                    if (IS_WHOLE) held = (quad / S::QUADS % WARPS * n_held + quad / S::QUADS / WARPS) * n_x * S::X_BYTES;
#pragma unroll
                    for (uint32_t i = 0; i < BATCH_ROWS; i++) {
                        uint32_t n = first_n + i;
                        if (n >= n_x) break;
                        float4 v = batch.x[i][k];
                        if constexpr (IS_NORMED) {
                            float4 w = batch.weights[k];
                            v.x *= factors[i] * w.x, v.y *= factors[i] * w.y, v.z *= factors[i] * w.z, v.w *= factors[i] * w.w;
                        }
                        uint8_t* at = to + held + S::x_at(n, of_lane / 2, block % LANES) + of_lane % 2 * 8;
                        *reinterpret_cast<uint2*>(at) = Q::pack(v);
                    }
                }
            }
        }
    }

    // A block of a row in a stage.
    __device__ __forceinline__ void unpack(uint32_t (&to)[2 * Q::QUADS], const uint8_t* stage, uint32_t row, uint32_t block) const {
        uint32_t words[Q::BLOCK_WORDS], scale = 0;
#pragma unroll
        for (uint32_t i = 0; i < Q::BLOCK_WORDS / 4; i++) {
            uint4 x = *reinterpret_cast<const uint4*>(stage + S::at(row, block * (Q::BLOCK_WORDS / 4) + i));
            words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
        }
        const uint8_t* at = stage + S::scales_at(row) + block * Q::SCALE_BYTES;
        if constexpr (Q::SCALE_BYTES == 2) scale = *reinterpret_cast<const uint16_t*>(at);
        if constexpr (Q::SCALE_BYTES == 4) scale = *reinterpret_cast<const uint32_t*>(at);
        Q::unpack(to, words, scale);
    }

    // Adds the products of a stretch of the matrix and one of x.
    __device__ __forceinline__ void fold(float (&sums)[2][4], uint32_t i_stage, const uint8_t* x) const {
        const uint8_t* stage = stages + i_stage * S::STAGE_BYTES;
        // Columns of the product without a row of x take any: nobody reads them.
        uint32_t n = min(row_lane, n_x - 1);
#pragma unroll
        for (uint32_t b = 0; b < S::LANE_BLOCKS; b++) {
            uint32_t low[2 * Q::QUADS], high[2 * Q::QUADS];
            unpack(low, stage, row_lane, b * LANES + part_lane);
            unpack(high, stage, row_lane + TILE_ROWS / 2, b * LANES + part_lane);
#pragma unroll
            for (uint32_t i = 0; i < Q::QUADS; i += 2) {
                uint4 two = *reinterpret_cast<const uint4*>(x + S::x_at(n, (b * Q::QUADS + i) / 2, part_lane));
                Q::Product::mma(sums[0], {low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]}, two.x, two.y);
                Q::Product::mma(sums[1], {low[2 * i + 2], high[2 * i + 2], low[2 * i + 3], high[2 * i + 3]}, two.z, two.w);
            }
        }
    }

    // Leaves what this warp has of a tile: `all` is (warps, rows of x, 16).
    __device__ __forceinline__ void leave(const float (&sums)[2][4], float* all) const {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t row = row_lane + i / 2 * 8, n = part_lane * 2 + i % 2;
            if (n < n_x) all[(warp * n_x + n) * TILE_ROWS + row] = sums[0][i] + sums[1][i];
        }
    }

    // Adds up what n_warps have left of a tile, once `wait` says so.
    template <typename F>
    __device__ __forceinline__ void add_up(const OutputTile& tile, uint32_t n_warps, const float* all, F wait) const {
        constexpr uint32_t TURNS = (N * TILE_ROWS + 31) / 32;
        uint32_t tile_row = lane % TILE_ROWS, first_n = lane / TILE_ROWS;
        bool is_high = tile_row >= TILE_ROWS / 2;
        auto [w, row] = tile.row(tile_row, is_high);
        bool is_output = row < w.rows && !(p.is_glu && is_high);
        float* out = tile.part.out + uint64_t(first_x + first_n) * w.rows + row;
        const float* biases = is_high ? tile.part_high.bias : tile.part.bias;
        float bias = biases && row < w.rows ? biases[row] : 0.0f, before[TURNS];
#pragma unroll
        for (uint32_t i = 0; i < TURNS; i++) {
            before[i] = p.add && is_output && first_n + 2 * i < n_x ? out[uint64_t(2 * i) * w.rows] : 0.0f;
        }
        wait();
#pragma unroll
        for (uint32_t i = 0; i < TURNS; i++) {
            uint32_t n = first_n + 2 * i;
            float y = 0.0f;
#pragma unroll
            for (uint32_t k = 0; k < WARPS; k++) y += k < n_warps ? all[(k * n_x + min(n, n_x - 1)) * TILE_ROWS + tile_row] : 0.0f;
            y += bias + before[i];
            float up = __shfl_down_sync(~0u, y, TILE_ROWS / 2);
            if (is_output && n < n_x) out[uint64_t(2 * i) * w.rows] = p.is_glu ? silu(y) * up : y;
        }
    }
};

// Waits until at most n groups of copies are under way.
__device__ __forceinline__ void copies_wait_for(uint32_t n) {
    static_assert(MAX_STAGES == 4);
    if (n == 1) copies_wait<1>();
    else if (n == 2) copies_wait<2>();
    else copies_wait<3>();
}

template <typename Q, uint32_t N, bool KEEPS_X>
__device__ __forceinline__ void matvec_mma(const MatvecParams& p) {
    using S = Stretch<Q>;
    using Mma = MatvecMma<Q, N, KEEPS_X>;
    // Sums (2, warps, rows of x, 16), stages (warps, n_stages), then x (warps, stretches, rows of x, lanes, elements). Copies
    // to the middle of lines of shared memory take 2 to 4 % longer.
    extern __shared__ __align__(128) uint4 memory[];
    __shared__ float squares[N][WARPS];
    __shared__ uint64_t barriers[Sums::BYTES / 8];
    let_next_start();
    uint32_t n_sums = WARPS * TILE_ROWS * min(p.n_rows, p.x_rows);
    float* all_sums = reinterpret_cast<float*>(memory);
    uint8_t* all_stages = reinterpret_cast<uint8_t*>(all_sums + Sums::STAGES * n_sums);
    Mma q(p, all_stages);
    uint32_t n_warps = min(WARPS, q.n_stretches), n_held = KEEPS_X ? (q.n_stretches + WARPS - 1) / WARPS : 1;
    uint32_t x_bytes = q.n_x * S::X_BYTES;
    uint8_t *all_x = all_stages + WARPS * p.n_stages * S::STAGE_BYTES, *held_x = all_x + q.warp * n_held * x_bytes;
    bool multiplies = q.warp < WARPS;
    Sums sums_left{shared_address(barriers)};
    if (threadIdx.x == THREADS) sums_left.init(n_warps, 1);

    // The last stage is filled once x has been asked for, which would have to queue behind its copies.
    Walk to_come(p, q.n_stretches, q.warp);
    typename Mma::template Batch<true> normed;
    typename Mma::template Batch<false> plain;
    if (multiplies) {
        for (uint32_t i = 0; i + 1 < p.n_stages; i++, to_come.advance()) q.copy(to_come, i);
        if (p.norm) normed.load_weights(q, threadIdx.x, THREADS);
    }
    auto fill_last = [&] { q.copy(to_come, p.n_stages - 1), to_come.advance(); };
    wait_for_inputs();
    if (multiplies && p.norm) {
        q.sum_squares(squares, normed, fill_last);
        named_sync(1, THREADS);
        if (KEEPS_X) q.template stage_x<true>(all_x, 0, normed, squares);
    } else if (multiplies) {
        if (KEEPS_X) plain.load_x(q, 0, threadIdx.x, THREADS);
        fill_last();
        if (KEEPS_X) q.template stage_x<true>(all_x, 0, plain, squares);
    }
    __syncthreads();

    uint32_t stage = 0;
    for (uint32_t t = blockIdx.x, round = 0; t < p.n_tiles; t += gridDim.x, round++) {
        float* room = all_sums + round % Sums::STAGES * n_sums;
        if (!multiplies) {
            q.add_up(OutputTile(p, t), n_warps, room, [&] { sums_left.wait_full(round); });
            __syncwarp();
            if (q.lane == 0) barrier_arrive(sums_left.empty(round));
            continue;
        }
        if (q.warp >= n_warps) break;
        float sums[2][4] = {};
        for (uint32_t stretch = q.warp, i = 0; stretch < q.n_stretches; stretch += WARPS, i++) {
            if (!KEEPS_X) {
                __syncwarp();
                if (p.norm) q.template stage_x<false>(held_x, stretch, normed, squares);
                else q.template stage_x<false>(held_x, stretch, plain, squares);
            }
            copies_wait_for(p.n_stages - 1);
            __syncwarp();
            q.fold(sums, stage, held_x + (KEEPS_X ? i * x_bytes : 0));
            __syncwarp();
            q.copy(to_come, stage);
            to_come.advance();
            stage = stage + 1 < p.n_stages ? stage + 1 : 0;
        }
        sums_left.wait_empty(round);
        q.leave(sums, room);
        __syncwarp();
        if (q.lane == 0) barrier_arrive(sums_left.full(round));
    }
}

// Grid (at most the tiles: rows of all parts / 16, or rows of a gated unit / 8; n_rows / x_rows): as many blocks as run at once.
#define LG_MATVEC_MMA_N(NAME, Q, N, KEEPS_X)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS + 32, N == 1 ? 2 : 1) NAME(const __grid_constant__ MatvecParams p) { \
        matvec_mma<Q##Unpack, N, KEEPS_X>(p);                                                                                  \
    }
#define LG_MATVEC_MMA(Q)                         \
    LG_MATVEC_MMA_N(matvec_mma1_##Q, Q, 1, true) \
    LG_MATVEC_MMA_N(matvec_mma8_##Q, Q, 8, true) \
    LG_MATVEC_MMA_N(matvec_mma8_restaging_##Q, Q, 8, false)
LG_MATVEC_MMA(F16)
LG_MATVEC_MMA(Bf16)
LG_MATVEC_MMA(Q8_0)
LG_MATVEC_MMA(Q4_0)
LG_MATVEC_MMA(Q4_1)
