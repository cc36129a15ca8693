// Where the cache blocks of a layer lie: the formulas of src/kv/slots.rs, integers only. Compiles as plain C++, so that
// a test without a GPU compares the two.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LG_FN __device__ __forceinline__
#else
#define LG_FN inline
#endif

// Slots of one KV head.
struct HeadSlots {
    uint32_t first;        // slot 0 of this head, counted over all heads of the layer
    uint32_t sink_blocks;
    uint32_t ring_blocks;
    uint32_t residues;     // where its residues begin, counted in words from the start of the map
    uint32_t n_residues;   // strided blocks of a period
    uint32_t is_ring;      // whether blocks take the slots of older ones
};

// Slots of a layer: this header, one HeadSlots a KV head, then all residues.
struct SlotMap {
    uint32_t stride;
    uint32_t ring_blocks;  // of the longest ring; 0 if nothing is ever overwritten

    LG_FN const HeadSlots& head(uint32_t kv_head) const {
        return reinterpret_cast<const HeadSlots*>(this + 1)[kv_head];
    }

    // Which of the head's strided blocks of one period this is, or -1.
    LG_FN int rank(const HeadSlots& head, uint32_t block) const {
        if (head.n_residues == 0) return -1;
        const uint32_t* residues = reinterpret_cast<const uint32_t*>(this) + head.residues;
        uint32_t residue = block % stride;
        for (uint32_t i = 0; i < head.n_residues; i++) {
            if (residues[i] == residue) return static_cast<int>(i);
        }
        return -1;
    }

    // The slot of `block` in `kv_head`, counted over all heads of the layer.
    LG_FN uint32_t slot(uint32_t kv_head, uint32_t block) const {
        const HeadSlots& h = head(kv_head);
        if (block < h.sink_blocks) return h.first + block;
        int r = rank(h, block);
        if (r >= 0) {
            return h.first + h.sink_blocks + h.ring_blocks + block / stride * h.n_residues
                + static_cast<uint32_t>(r);
        }
        return h.first + h.sink_blocks + (block - h.sink_blocks) % h.ring_blocks;
    }

    // Whether no later block of `kv_head` ever takes the slot of `block`.
    LG_FN bool is_pinned(uint32_t kv_head, uint32_t block) const {
        const HeadSlots& h = head(kv_head);
        return !h.is_ring || block < h.sink_blocks || rank(h, block) >= 0;
    }
};

// Which rows of a step are a session's, and where they stand.
struct StepRows {
    uint32_t row;
    uint32_t n_tokens;
    uint32_t pos;

    LG_FN uint32_t end() const { return pos + n_tokens; }

    LG_FN uint32_t last_block(uint32_t block_size) const { return (end() - 1) / block_size; }

    // The first of the last `n_blocks` blocks that the tokens touch.
    LG_FN uint32_t first_block(uint32_t block_size, uint32_t n_blocks) const {
        uint32_t first = pos / block_size, last = last_block(block_size) + 1;
        uint32_t held = last > n_blocks ? last - n_blocks : 0;
        return first > held ? first : held;
    }
};

// Where blocks lie in a buffer: in the slots of `map`, or, if it is null, the last `n_blocks` blocks of the step in
// order of position, head after head.
struct BlockPlaces {
    const SlotMap* map;
    uint32_t n_blocks;
    uint32_t unused;

    LG_FN uint32_t place(const StepRows& rows, uint32_t block_size, uint32_t kv_head, uint32_t block) const {
        if (map) return map->slot(kv_head, block);
        return kv_head * n_blocks + block - rows.first_block(block_size, n_blocks);
    }
};
