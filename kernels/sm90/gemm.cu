// Products of many rows on Hopper: tiles of 256 rows and 256 outputs, each by two blocks that run on neighbours.
//
// Bound: the tensor cores. Schedule: as many pairs of blocks as run at once take one tile after the other. A block has 128
// rows of it; both need the same 256 rows of the matrix, so each brings half of them in for both, which spares the
// second-level cache a third of its reads: without, it could not keep up. One warp copies, through four stages of 64
// columns; two warpgroups multiply, 64 rows each. Outputs go from the sums in registers where they belong: as they are, or
// added to what is there; as gated units of 16 bits, for which a tile has gates and what they gate; or as heads of queries,
// keys and values, turned, in the type of the cache, and keys and values in it.
//
// On an H100 products as large as those of a 7B model's layer run at 620 to 690 TFLOP/s with random numbers, where it takes
// all the power it may; without storing anything it would be 690 to 720. What it took: arrivals in the other block that are
// no releases to the cluster (500 before, 640 after), and lines that are stored whole.
#include "../common/activation.cuh"
#include "../common/kv.cuh"
#include "../common/launch.cuh"
#include "ptx.cuh"

constexpr uint32_t WARPGROUP_ROWS = 64, CONSUMERS = 2, ROWS = CONSUMERS * WARPGROUP_ROWS;   // of a block
constexpr uint32_t BLOCKS = 2;                                                              // of a cluster
constexpr uint32_t OUTPUTS = 256, HALF = OUTPUTS / 2, DEPTH = 64;
constexpr uint32_t X_BYTES = ROWS * SWIZZLE_BYTES, HALF_BYTES = HALF * SWIZZLE_BYTES, STAGE_BYTES = X_BYTES + 2 * HALF_BYTES;

// Rows of tiles that are computed side by side, so that their rows stay in the second-level cache.
constexpr uint32_t ROWS_AT_ONCE = 8;

using Ring = StageRing<4>;

// The first row of a tile, and in which column of tiles it is.
struct Tile {
    uint32_t row, column;

    static __device__ __forceinline__ uint32_t rows_of(uint32_t n_rows) { return (n_rows + BLOCKS * ROWS - 1) / (BLOCKS * ROWS); }

    __device__ __forceinline__ Tile(uint32_t n_rows, uint32_t n_columns, uint32_t i) {
        uint32_t a_turn = ROWS_AT_ONCE * n_columns, first = i / a_turn * ROWS_AT_ONCE, n = min(ROWS_AT_ONCE, rows_of(n_rows) - first);
        row = (first + i % a_turn % n) * BLOCKS * ROWS;
        column = i % a_turn / n;
    }
};

// A warp's 16 rows of 256 bytes on their way from registers to memory, so that whole lines go there.
struct Outbox {
    static constexpr uint32_t ROW_BYTES = 256, BYTES = 16 * ROW_BYTES;
    uint32_t shared;

    // Where 16 bytes of a row lie: neither those who put pairs of floats nor those who put pairs of halves, nor those who
    // take 16 bytes, meet a bank twice.
    __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t chunk) const {
        return shared + row * ROW_BYTES + ((chunk ^ (row % 4 * 2 + row / 4 % 2)) * 16);
    }
    // Where this thread puts what it has in columns of the output: of the rows t / 4 and that + 8, in groups of eight.
    template <uint32_t PAIR_BYTES>
    __device__ __forceinline__ uint32_t of_pair(uint32_t h, uint32_t n) const {
        uint32_t byte = (n * 4 + threadIdx.x % 4) * PAIR_BYTES;
        return at(h * 8 + threadIdx.x % 32 / 4, byte / 16) + byte % 16;
    }
    // Sends everything: send(row, chunk, 16 bytes).
    template <typename Send>
    __device__ __forceinline__ void send(Send send) const {
        __syncwarp();
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t row = lane / 16; row < 16; row += 2) send(row, lane % 16, load16(at(row, lane % 16)));
        __syncwarp();
    }
};

// Outputs as they are.
struct Plain {
    using Params = GemmHopperParams;

    static __device__ __forceinline__ uint32_t n_columns(const Params& p) { return (p.n_outputs + OUTPUTS - 1) / OUTPUTS; }
    // The map, and its row, that half a tile of the matrix begins with.
    static __device__ __forceinline__ const TensorMap* source(const Params& p, uint32_t tile, uint32_t half, uint32_t& row) {
        row = tile * OUTPUTS + half * HALF;
        return p.w;
    }
    static __device__ __forceinline__ void
    store(const Params& p, float (&d)[OUTPUTS / 2], uint32_t tile, uint32_t first_row, const Outbox& outbox) {
        constexpr uint32_t COLUMNS = Outbox::ROW_BYTES / sizeof(float);
#pragma unroll
        for (uint32_t from = 0; from < OUTPUTS; from += COLUMNS) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
                for (uint32_t n = 0; n < COLUMNS / 8; n++) {
                    const float* pair = d + (from / 8 + n) * 4 + h * 2;
                    store8(outbox.of_pair<8>(h, n), __float_as_uint(pair[0]), __float_as_uint(pair[1]));
                }
            }
            outbox.send([&](uint32_t row, uint32_t chunk, uint4 x) {
                uint32_t column = tile * OUTPUTS + from + chunk * 4;
                if (first_row + row >= p.n_rows || column >= p.n_outputs) return;
                float* to = static_cast<float*>(p.out) + uint64_t(first_row + row) * p.out_width + column;
                if (p.add) {
                    add4(to, x);
                } else {
                    *reinterpret_cast<uint4*>(to) = x;
                }
            });
        }
    }
};

// silu(first) * second in 16 bits: a tile has 128 outputs of either matrix.
template <typename T>
struct Gated {
    using Params = GemmHopperParams;

    static __device__ __forceinline__ uint32_t n_columns(const Params& p) { return (p.n_outputs + HALF - 1) / HALF; }
    static __device__ __forceinline__ const TensorMap* source(const Params& p, uint32_t tile, uint32_t half, uint32_t& row) {
        row = tile * HALF;
        return p.w + half;
    }
    static __device__ __forceinline__ void
    store(const Params& p, float (&d)[OUTPUTS / 2], uint32_t tile, uint32_t first_row, const Outbox& outbox) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t n = 0; n < HALF / 8; n++) {
                const float* gate = d + n * 4 + h * 2;
                const float* up = gate + HALF / 8 * 4;
                store4(outbox.of_pair<4>(h, n), T::pack_finite(silu_fast(gate[0]) * up[0], silu_fast(gate[1]) * up[1]));
            }
        }
        outbox.send([&](uint32_t row, uint32_t chunk, uint4 x) {
            uint32_t column = tile * HALF + chunk * 8;
            if (first_row + row >= p.n_rows || column >= p.n_outputs) return;
            uint16_t* to = static_cast<uint16_t*>(p.out) + uint64_t(first_row + row) * p.out_width + column;
            *reinterpret_cast<uint4*>(to) = x;
        });
    }
};

// Heads of queries, keys or values, in the type KV.
template <typename KV, int DIM>
struct Heads {
    using Params = HeadsParams;
    static constexpr uint32_t HEADS = OUTPUTS / DIM, CHUNKS = DIM / 8;   // of a tile; of 16 bytes of a head

    static __device__ __forceinline__ uint32_t n_columns(const Params& p) { return (p.n_heads + HEADS - 1) / HEADS; }
    static __device__ __forceinline__ const TensorMap* source(const Params& p, uint32_t tile, uint32_t half, uint32_t& row) {
        row = tile * OUTPUTS + half * HALF;
        return &p.w;
    }

    static __device__ __forceinline__ void turn(float& x, float& y, float cos, float sin) {
        // Each product rounded, as everywhere else; see rope.cuh.
        float turned = __fsub_rn(__fmul_rn(x, cos), __fmul_rn(y, sin));
        y = __fadd_rn(__fmul_rn(x, sin), __fmul_rn(y, cos));
        x = turned;
    }
    // Turns the heads of the rows t / 4 and that + 8 from `first_row` on.
    static __device__ __forceinline__ void turn(const Params& p, float (&d)[OUTPUTS / 2], uint32_t first_row) {
        uint32_t t = threadIdx.x % 32;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const float* angles = p.rope + uint64_t(min(first_row + h * 8 + t / 4, p.n_rows - 1)) * DIM;
            if (p.pairing == PAIRING_HALVES) {
#pragma unroll
                for (uint32_t n = 0; n < DIM / 16; n++) {
                    float4 angle = *reinterpret_cast<const float4*>(angles + (n * 8 + t % 4 * 2) * 2);
#pragma unroll
                    for (uint32_t head = 0; head < HEADS; head++) {
                        float* x = d + (head * CHUNKS + n) * 4 + h * 2;
                        float* y = x + DIM / 16 * 4;
                        turn(x[0], y[0], angle.x, angle.y), turn(x[1], y[1], angle.z, angle.w);
                    }
                }
            } else {
#pragma unroll
                for (uint32_t n = 0; n < DIM / 8; n++) {
                    float2 angle = *reinterpret_cast<const float2*>(angles + (n * 4 + t % 4) * 2);
#pragma unroll
                    for (uint32_t head = 0; head < HEADS; head++) {
                        float* x = d + (head * CHUNKS + n) * 4 + h * 2;
                        turn(x[0], x[1], angle.x, angle.y);
                    }
                }
            }
        }
    }

    // Where a head of a row goes; null: nowhere.
    static __device__ __forceinline__ uint8_t* target(const Params& p, const StepRows& rows, uint32_t row, uint32_t head) {
        if (row >= p.n_rows || head >= p.n_heads) return nullptr;
        head += p.first_head;
        if (p.kind == HEAD_QUERY) return static_cast<uint8_t*>(p.q) + (uint64_t(row) * p.heads_of_all + head) * DIM * 2;
        uint32_t position = rows.pos + row, block_size = p.shape.block_size;
        KvBlock block(p.shape, p.seq.blocks, p.seq.places.place(rows, block_size, head, position / block_size));
        return block.row(p.kind == HEAD_VALUE, position % block_size);
    }

    static __device__ __forceinline__ void
    store(const Params& p, float (&d)[OUTPUTS / 2], uint32_t tile, uint32_t first_row, const Outbox& outbox) {
        constexpr uint32_t COLUMNS = Outbox::ROW_BYTES / 2;
        StepRows rows = *p.seq.rows;
        if (p.kind != HEAD_VALUE) turn(p, d, first_row);
        float factor = p.kind == HEAD_QUERY ? p.scale * LOG2_E : 1.0f;
#pragma unroll
        for (uint32_t from = 0; from < OUTPUTS; from += COLUMNS) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
                for (uint32_t n = 0; n < COLUMNS / 8; n++) {
                    const float* pair = d + (from / 8 + n) * 4 + h * 2;
                    float x = pair[0] * factor, y = pair[1] * factor;
                    store4(outbox.of_pair<4>(h, n), p.kind == HEAD_QUERY ? KV::pack_finite(x, y) : KV::pack(x, y));
                }
            }
            // Every lane finds out where a head of one of the 16 rows goes.
            uint32_t lane = threadIdx.x % 32;
            uint8_t* of_lane = target(p, rows, first_row + lane % 16, tile * HEADS + from / DIM + lane / 16);
            outbox.send([&](uint32_t row, uint32_t chunk, uint4 x) {
                auto address = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(of_lane), row + chunk / CHUNKS * 16);
                if (address) *reinterpret_cast<uint4*>(address + chunk % CHUNKS * 16) = x;
            });
        }
    }
};

// What the host sets aside, with what aligning takes; see gemm_sm90.rs.
static_assert(Ring::STAGES * STAGE_BYTES + Ring::BYTES + 8 * Outbox::BYTES + SWIZZLE_ATOM == 230464);

template <typename Output, typename T>
__device__ __forceinline__ void gemm(const typename Output::Params& p) {
    begin();
    extern __shared__ uint4 memory[];
    uint32_t shared = (shared_address(memory) + SWIZZLE_ATOM - 1) / SWIZZLE_ATOM * SWIZZLE_ATOM;
    Ring ring{shared + Ring::STAGES * STAGE_BYTES};
    uint32_t n_columns = Output::n_columns(p), n_tiles = n_columns * Tile::rows_of(p.n_rows);
    uint32_t rank = cluster_rank(), n_steps = (p.cols + DEPTH - 1) / DEPTH;
    uint32_t first_tile = blockIdx.x / BLOCKS, n_clusters = gridDim.x / BLOCKS;
    if (threadIdx.x == 0) {
        ring.init(1, BLOCKS * CONSUMERS);
        fence_barrier_init();
    }
    cluster_sync();
    // The same in all lanes, and known to be: products must not diverge.
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
    if (group == 0) {
        registers_shrink<56>();
        if (threadIdx.x == 0) {
            for (uint32_t i = first_tile, pass = 0; i < n_tiles; i += n_clusters) {
                Tile tile(p.n_rows, n_columns, i);
                uint32_t w_row;
                const TensorMap* w = Output::source(p, tile.column, rank, w_row);
                for (uint32_t step = 0; step < n_steps; step++, pass++) {
                    ring.wait_empty(pass);
                    uint32_t to = shared + pass % Ring::STAGES * STAGE_BYTES, full = ring.full(pass);
                    barrier_arrive_expecting(full, STAGE_BYTES);
                    copy_box(to, &p.x, step * DEPTH, tile.row + rank * ROWS, full);
                    copy_box_to((1 << BLOCKS) - 1, to + X_BYTES + rank * HALF_BYTES, w, step * DEPTH, w_row, full);
                }
            }
        }
    } else {
        registers_grow<224>();
        group--;
        bool is_signal = threadIdx.x % WARPGROUP < BLOCKS;
        for (uint32_t i = first_tile, pass = 0; i < n_tiles; i += n_clusters) {
            Tile tile(p.n_rows, n_columns, i);
            float d[OUTPUTS / 2];
            // Unrolled, it would want more registers than there are.
#pragma unroll 1
            for (uint32_t step = 0; step < n_steps; step++, pass++) {
                ring.wait_full(pass);
                products_fence();
                uint32_t x = shared + pass % Ring::STAGES * STAGE_BYTES;
#pragma unroll
                for (int k = 0; k < int(DEPTH) / 16; k++) {
                    uint64_t a = operand(x + group * WARPGROUP_ROWS * SWIZZLE_BYTES + k * 32, 0, SWIZZLE_ATOM);
                    T::outputs(d, a, operand(x + X_BYTES + k * 32, 0, SWIZZLE_ATOM), step > 0 || k > 0);
                }
                products_end();
                // The operands of the step before have been read.
                products_wait<1>();
                if (step > 0 && is_signal) barrier_arrive_at(ring.empty(pass - 1), threadIdx.x % WARPGROUP);
            }
            products_wait<0>();
            pin(d);
            if (is_signal) barrier_arrive_at(ring.empty(pass - 1), threadIdx.x % WARPGROUP);
            Outbox outbox{ring.barriers + Ring::BYTES + (warp - 4) * Outbox::BYTES};
            // What is computed from it is computed here, and takes no registers from the products.
            asm volatile("" : "+r"(outbox.shared));
            Output::store(p, d, tile.column, tile.row + rank * ROWS + (warp - 4) * 16, outbox);
        }
    }
    // The other one may still write and arrive here.
    cluster_sync();
}

// Grid (as many blocks as run at once).
#define LG_GEMM(NAME, T, ...)                                                                                  \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1) \
        NAME(const __grid_constant__ typename __VA_ARGS__::Params p) {                                         \
        gemm<__VA_ARGS__, T>(p);                                                                               \
    }
#define LG_GEMMS(NAME, T)                                                   \
    LG_GEMM(gemm_sm90_##NAME, T, Plain)                                     \
    LG_GEMM(gemm_glu_sm90_##NAME, T, Gated<T>)                              \
    LG_GEMM(gemm_heads_sm90_##NAME##_f16_64, T, Heads<HalfProducts, 64>)    \
    LG_GEMM(gemm_heads_sm90_##NAME##_f16_128, T, Heads<HalfProducts, 128>)  \
    LG_GEMM(gemm_heads_sm90_##NAME##_bf16_64, T, Heads<Bf16Products, 64>)   \
    LG_GEMM(gemm_heads_sm90_##NAME##_bf16_128, T, Heads<Bf16Products, 128>)
LG_GEMMS(f16, HalfProducts)
LG_GEMMS(bf16, Bf16Products)
