// What the warps of a block of attn_prefill.cu share: the tiles in its memory, the rings that pass them on, and the order
// of its work.
#pragma once
#include "../common/kv.cuh"
#include "ptx.cuh"

constexpr uint32_t RUN = 64;         // keys that are looked up together
constexpr uint32_t TILE_KEYS = 2 * RUN;
constexpr uint32_t WARPGROUP_QUERIES = 64;
constexpr uint32_t BATCH = 32;       // tiles that are looked up together
constexpr uint32_t NO_RUN = ~0u;
constexpr uint32_t QUERY_WARPS = 2;  // that load queries

// What a computing warpgroup sees of a run: SIGHT_BITS for each of a tile's two runs, for every warpgroup.
constexpr uint32_t SEES_ALL = 0, SEES_SOME = 1, SEES_NOTHING = 2, SIGHT_BITS = 2;
// Besides, whether the tile is the last one of its item, and of all items.
constexpr uint32_t ENDS_ITEM = 1 << 16, ENDS_ALL = 1 << 17;

using Ring = StageRing<2>;

template <int DIM, int CONSUMERS>
struct Layout {
    static_assert(2 * CONSUMERS * SIGHT_BITS <= 16);
    static constexpr uint32_t TILE_QUERIES = CONSUMERS * WARPGROUP_QUERIES;
    static constexpr uint32_t HALVES = DIM / 64;                                // columns of 128 bytes
    static constexpr uint32_t QUERY_BYTES = WARPGROUP_QUERIES * DIM * 2;        // of a warpgroup
    static constexpr uint32_t HALF_BYTES = TILE_KEYS * SWIZZLE_BYTES;
    static constexpr uint32_t TILE_BYTES = HALVES * HALF_BYTES;                 // of keys, or of values
    static constexpr uint32_t KEYS = Ring::STAGES * CONSUMERS * QUERY_BYTES;
    static constexpr uint32_t VALUES = KEYS + Ring::STAGES * TILE_BYTES;
    static constexpr uint32_t SOURCES = VALUES + Ring::STAGES * TILE_BYTES;     // 32 bytes of every tile of two batches
    static constexpr uint32_t RUNS = SOURCES + Ring::STAGES * BATCH * 32;       // 16 bytes of a tile of keys
    static constexpr uint32_t NEXT_ITEMS = RUNS + Ring::STAGES * 16;            // 16 bytes of an item
    static constexpr uint32_t ITEMS = NEXT_ITEMS + Ring::STAGES * 16;           // the same, whose queries have come
    static constexpr uint32_t RINGS = ITEMS + Ring::STAGES * 16;
    static constexpr uint32_t BYTES = RINGS + 5 * Ring::BYTES + SWIZZLE_ATOM;   // the last for alignment
};

// A tile of queries of one head. Tiles begin at absolute multiples of their size.
struct Item {
    uint32_t head, first_query;

    __device__ __forceinline__ void store(uint32_t to) const { store16(to, {head, first_query, 0, 0}); }
    static __device__ __forceinline__ Item load(uint32_t from) {
        uint4 x = load16(from);
        return {x.x, x.y};
    }
};
constexpr uint32_t NO_HEAD = ~0u;

template <int DIM, int CONSUMERS>
struct Block {
    using L = Layout<DIM, CONSUMERS>;

    const AttnHopperParams& params;
    StepRows rows;
    uint32_t shared;

    __device__ __forceinline__ Ring keys() const { return {shared + L::RINGS}; }
    __device__ __forceinline__ Ring values() const { return {shared + L::RINGS + Ring::BYTES}; }
    __device__ __forceinline__ Ring queries() const { return {shared + L::RINGS + 2 * Ring::BYTES}; }
    __device__ __forceinline__ Ring sources() const { return {shared + L::RINGS + 3 * Ring::BYTES}; }
    __device__ __forceinline__ Ring items() const { return {shared + L::RINGS + 4 * Ring::BYTES}; }

    __device__ __forceinline__ uint32_t first_tile() const { return rows.pos / L::TILE_QUERIES; }
    __device__ __forceinline__ uint32_t n_tiles() const { return (rows.end() - 1) / L::TILE_QUERIES + 1 - first_tile(); }
    __device__ __forceinline__ uint32_t n_items() const { return params.attn.n_heads * n_tiles(); }

    // Some heads at a time, whose keys and values the second-level cache holds together; their tiles from the last ones
    // on, which have the most to do.
    __device__ __forceinline__ Item item(uint32_t i) const {
        uint32_t n = n_tiles(), a_turn = n * params.heads_at_once, first_head = i / a_turn * params.heads_at_once;
        uint32_t n_heads = min(params.heads_at_once, params.attn.n_heads - first_head), at = i % a_turn;
        return {first_head + at % n_heads, (first_tile() + n - 1 - at / n_heads) * L::TILE_QUERIES};
    }

    // Queries of the warpgroup `group`, as 16-bit base-2 exponents: times scale and log2(e).
    template <typename T>
    __device__ __forceinline__ void
    load_queries(const Item& item, uint32_t stage, uint32_t group, uint32_t thread, uint32_t n_threads) const {
        constexpr uint32_t CHUNKS = DIM / 8;
        const AttnParams& p = params.attn;
        float scale = p.scale * LOG2_E;
        uint32_t to = shared + (stage * CONSUMERS + group) * L::QUERY_BYTES;
#pragma unroll 2
        for (uint32_t i = thread; i < WARPGROUP_QUERIES * CHUNKS; i += n_threads) {
            uint32_t row = i / CHUNKS, chunk = i % CHUNKS, position = item.first_query + group * WARPGROUP_QUERIES + row;
            uint4 words = make_uint4(0, 0, 0, 0);
            if (position >= rows.pos && position < rows.end()) {
                uint64_t at = (uint64_t(rows.row + position - rows.pos) * p.n_heads + item.head) * DIM;
                if (params.turned) {
                    words = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(params.turned) + at + 8 * chunk);
                } else {
                    const float4* q = reinterpret_cast<const float4*>(p.q + at) + 2 * chunk;
                    float4 a = q[0], b = q[1];
                    words = make_uint4(T::pack(a.x * scale, a.y * scale), T::pack(a.z * scale, a.w * scale),
                                       T::pack(b.x * scale, b.y * scale), T::pack(b.z * scale, b.w * scale));
                }
            }
            store16(to + chunk / 8 * WARPGROUP_QUERIES * SWIZZLE_BYTES + swizzled(row, chunk % 8), {words.x, words.y, words.z, words.w});
        }
        fence_async();
    }
};
