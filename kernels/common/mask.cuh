// Who may look at whom: the formulas of src/attention/mask.rs, integers only. Compiles as plain C++, so that a test
// without a GPU compares the two.
#pragma once
#include "slots.cuh"

enum MaskKind : uint32_t { MASK_FULL = 0, MASK_WINDOW = 1, MASK_BLOCKS = 2 };

struct Mask {
    uint32_t kind;
    uint32_t window_tokens;
    uint32_t sink_tokens;
    uint32_t block_size;
    uint32_t local_blocks;
    uint32_t sink_blocks;   // of any kind: blocks at the start that are never given up
    uint32_t stride;

    // Whether a head with this `phase` sees `block` from everywhere behind it: a sink or a strided block.
    LG_FN bool keeps(uint32_t block, uint32_t phase) const {
        return block < sink_blocks || (stride > 0 && (block % stride + phase % stride) % stride == 0);
    }

    // First block of which a query at position `i` sees a token because it is near.
    LG_FN uint32_t first_near_block(uint32_t i) const {
        if (kind == MASK_FULL) return 0;
        if (kind == MASK_WINDOW) return i + 1 > window_tokens ? (i + 1 - window_tokens) / block_size : 0;
        uint32_t query_block = i / block_size;
        return query_block + 1 > local_blocks ? query_block + 1 - local_blocks : 0;
    }

    LG_FN bool sees(uint32_t i, uint32_t j, uint32_t phase) const {
        if (j > i) return false;
        if (kind == MASK_FULL) return true;
        if (kind == MASK_WINDOW) return i - j < window_tokens || j < sink_tokens;
        return i / block_size - j / block_size < local_blocks || keeps(j / block_size, phase);
    }
};

// The blocks of which queries `first..=last` that share a KV head may see a token, ascending and without repeats:
// sinks, then strided blocks of any of the query heads, then near ones. Found one by one from their number.
struct VisibleBlocks {
    uint32_t n_sinks;
    uint32_t n_strided;
    uint32_t near;          // first near block
    uint32_t count;
    uint32_t stride;
    uint32_t n_residues;
    uint32_t before;        // strided blocks of the head before the sinks' end
    const uint32_t* residues;

    // `residues`: sorted residues modulo the stride of the blocks that the query heads keep.
    LG_FN VisibleBlocks(const Mask& mask, uint32_t first, uint32_t last, const uint32_t* residues, uint32_t n_residues)
        : stride(mask.stride), n_residues(n_residues), residues(residues) {
        near = mask.first_near_block(first);
        n_sinks = mask.sink_blocks < near ? mask.sink_blocks : near;
        n_strided = 0;
        before = 0;
        if (stride > 0 && n_residues > 0) {
            before = strided_below(n_sinks);
            n_strided = strided_below(near) - before;
        }
        count = n_sinks + n_strided + (last / mask.block_size + 1 - near);
    }

    // Strided blocks below `block`.
    LG_FN uint32_t strided_below(uint32_t block) const {
        uint32_t in_rest = 0, rest = block % stride;
        for (uint32_t r = 0; r < n_residues; r++) in_rest += residues[r] < rest;
        return block / stride * n_residues + in_rest;
    }

    LG_FN uint32_t operator[](uint32_t i) const {
        if (i < n_sinks) return i;
        i -= n_sinks;
        if (i < n_strided) {
            i += before;
            return i / n_residues * stride + residues[i % n_residues];
        }
        return near + i - n_strided;
    }
};
