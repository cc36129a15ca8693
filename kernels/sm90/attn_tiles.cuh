// What the warps of a cluster of attn_prefill.cu share: the tiles in the memory of its blocks, the rings that pass them on,
// and the order of its work.
#pragma once
#include "../common/kv.cuh"
#include "ptx.cuh"

constexpr uint32_t BLOCKS = 2;       // of a cluster
constexpr uint32_t RUN = 64;         // keys that are looked up together
constexpr uint32_t RUNS_A_TILE = 2;
constexpr uint32_t TILE_KEYS = RUNS_A_TILE * RUN;
constexpr uint32_t WARPGROUP_QUERIES = 64;
constexpr uint32_t BATCH = 32;       // tiles that are looked up together
constexpr uint32_t NO_RUN = ~0u;

// What a computing warpgroup sees of a run: SIGHT_BITS for each of a tile's two runs, for every warpgroup.
constexpr uint32_t SEES_ALL = 0, SEES_SOME = 1, SEES_NOTHING = 2, SIGHT_BITS = 2;
// Besides, whether the tile is the last one of its item, and whether it is one of the last.
constexpr uint32_t ENDS_ITEM = 1 << 16, NEARS_END = 1 << 17;
constexpr uint32_t TILES_AHEAD = 4;  // of an item's end: then the next one is asked for

// Instead of a head: there is nothing left to do.
constexpr uint32_t NO_HEAD = ~0u;

using Ring = StageRing<2>;
using PatchRing = StageRing<1>;

template <int DIM, int CONSUMERS>
struct Layout {
    static_assert(2 * CONSUMERS * SIGHT_BITS <= 16);
    static constexpr uint32_t BLOCK_QUERIES = CONSUMERS * WARPGROUP_QUERIES;
    static constexpr uint32_t ITEM_QUERIES = BLOCKS * BLOCK_QUERIES;
    static constexpr uint32_t HALVES = DIM / 64;                                // columns of 128 bytes
    static constexpr uint32_t QUERY_BYTES = WARPGROUP_QUERIES * DIM * 2;        // of a warpgroup
    static constexpr uint32_t HALF_BYTES = TILE_KEYS * SWIZZLE_BYTES;
    static constexpr uint32_t TILE_BYTES = HALVES * HALF_BYTES;                 // of keys, or of values
    static constexpr uint32_t KEYS = Ring::STAGES * CONSUMERS * QUERY_BYTES;
    static constexpr uint32_t VALUES = KEYS + Ring::STAGES * TILE_BYTES;
    static constexpr uint32_t SOURCES = VALUES + Ring::STAGES * TILE_BYTES;     // 24 bytes of every tile of two batches
    static constexpr uint32_t BATCH_ITEMS = SOURCES + Ring::STAGES * BATCH * 24;  // 8 bytes of an item, of a batch
    static constexpr uint32_t ITEMS = BATCH_ITEMS + Ring::STAGES * 8;           // the same, whose queries have come
    static constexpr uint32_t RUNS = ITEMS + Ring::STAGES * 8;                  // 16 bytes of a tile of keys
    static constexpr uint32_t ROWS = RUNS + Ring::STAGES * 16;                  // of the step
    static constexpr uint32_t PATCH = ROWS + 16;                                // what is to be put together
    static constexpr uint32_t NEXT = PATCH + 32;                                // the number of the next item
    static constexpr uint32_t RINGS = NEXT + 16;
    static constexpr uint32_t PATCH_RING = RINGS + 4 * Ring::BYTES;
    static constexpr uint32_t BARRIERS = PATCH_RING + PatchRing::BYTES;         // two
    static constexpr uint32_t BYTES = BARRIERS + 2 * 8 + SWIZZLE_ATOM;          // the last for alignment
};

// The queries of one head that a block computes, of those of its cluster, which begin at absolute multiples of their number.
struct Item {
    uint32_t head, first_query;

    __device__ __forceinline__ void store(uint32_t to) const { store8(to, head, first_query); }
    static __device__ __forceinline__ Item load(uint32_t from) {
        uint2 x = load8(from);
        return {x.x, x.y};
    }
};

template <int DIM, int CONSUMERS>
struct Block {
    using L = Layout<DIM, CONSUMERS>;

    const AttnHopperParams& params;
    uint32_t shared;
    uint32_t rank;   // in the cluster

    // In shared memory, because those who bring tiles have few registers.
    __device__ __forceinline__ StepRows rows() const {
        uint4 x = load16(shared + L::ROWS);
        return {x.x, x.y, x.z};
    }

    __device__ __forceinline__ Ring keys() const { return {shared + L::RINGS}; }
    __device__ __forceinline__ Ring values() const { return {shared + L::RINGS + Ring::BYTES}; }
    __device__ __forceinline__ Ring queries() const { return {shared + L::RINGS + 2 * Ring::BYTES}; }
    __device__ __forceinline__ Ring sources() const { return {shared + L::RINGS + 3 * Ring::BYTES}; }
    __device__ __forceinline__ PatchRing patches() const { return {shared + L::PATCH_RING}; }
    // Of the first block: that all blocks near the end of an item.
    __device__ __forceinline__ uint32_t next_wanted() const { return shared + L::BARRIERS; }
    // That the number of the next item is there.
    __device__ __forceinline__ uint32_t next_there() const { return shared + L::BARRIERS + 8; }

    __device__ __forceinline__ uint32_t first_query_tile() const { return rows().pos / L::ITEM_QUERIES; }
    __device__ __forceinline__ uint32_t n_query_tiles() const { return (rows().end() - 1) / L::ITEM_QUERIES + 1 - first_query_tile(); }
    __device__ __forceinline__ uint32_t n_items() const { return params.attn.n_heads * n_query_tiles(); }

    // Some heads at a time, whose keys and values the second-level cache holds together; their tiles from the last ones
    // on, which have the most to do.
    __device__ __forceinline__ Item item(uint32_t i) const {
        uint32_t n = n_query_tiles(), a_turn = n * params.heads_at_once, first_head = i / a_turn * params.heads_at_once;
        uint32_t n_heads = min(params.heads_at_once, params.attn.n_heads - first_head), at = i % a_turn;
        uint32_t tile = first_query_tile() + n - 1 - at / n_heads;
        return {first_head + at % n_heads, tile * L::ITEM_QUERIES + rank * L::BLOCK_QUERIES};
    }
};
