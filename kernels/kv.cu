// Keys and values on their way into the cache.
#include "common/kv.cuh"
#include "common/launch.cuh"
#include "common/rope.cuh"

// Grid (n_tokens, all heads / warps, sessions): every warp turns one head of queries in place, or turns a head of keys and
// appends it and its values. `head_dim` floats of shared memory a warp.
extern "C" __global__ void rope_append(const __grid_constant__ RopeAppendParams p) {
    begin();
    extern __shared__ float heads[];
    const AppendSeq& seq = p.seqs[blockIdx.z];
    StepRows rows = *seq.rows;
    uint32_t warp = threadIdx.x / 32, head_i = blockIdx.y * (blockDim.x / 32) + warp;
    if (blockIdx.x >= rows.n_tokens || head_i >= p.n_heads + p.shape.n_kv_heads) return;
    uint32_t dim = p.shape.head_dim, row = rows.row + blockIdx.x, position = rows.pos + blockIdx.x;
    if (head_i < p.n_heads) {
        float* q = p.q + (uint64_t(row) * p.n_heads + head_i) * dim;
        return turn(q, q, p.rope, row, dim);
    }
    uint32_t kv_head = head_i - p.n_heads;
    float* head = heads + warp * dim;
    turn(head, p.k + (uint64_t(row) * p.shape.n_kv_heads + kv_head) * dim, p.rope, row, dim);
    __syncwarp();
    KvBlock block(p.shape, seq.blocks, seq.places.place(rows, p.shape.block_size, kv_head, position / p.shape.block_size));
    uint32_t in_block = position % p.shape.block_size;
    store_row(block, false, in_block, head);
    store_row(block, true, in_block, p.v + (uint64_t(row) * p.shape.n_kv_heads + kv_head) * dim);
}

// Copies bytes of two places that lie alike, 16 at a time where that works.
__device__ __forceinline__ void copy_together(uint8_t* to, const uint8_t* from, uint32_t n_bytes) {
    if ((n_bytes | reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0) {
        for (uint32_t i = threadIdx.x; i < n_bytes / 16; i += blockDim.x) {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n_bytes; i += blockDim.x) to[i] = from[i];
    }
}

// Grid (blocks of the cache that the tokens touch, n_kv_heads, copies): what the tokens left in a block lies together.
extern "C" __global__ void copy_blocks(const __grid_constant__ CopyBlocksParams params) {
    begin();
    const CopyPart& p = params.parts[blockIdx.z];
    StepRows rows = *p.rows;
    uint32_t block_size = p.shape.block_size, block = rows.pos / block_size + blockIdx.x, kv_head = blockIdx.y;
    uint32_t from_position = max(rows.pos, block * block_size), to_position = min(rows.end(), (block + 1) * block_size);
    if (from_position >= to_position || kv_head >= p.shape.n_kv_heads) return;
    bool is_pinned = p.slots->is_pinned(kv_head, block);
    if (p.pinned ? !is_pinned : is_pinned || block < rows.first_block(block_size, p.slots->ring_blocks)) return;
    KvBlock to(p.shape, p.to, p.to_places.place(rows, block_size, kv_head, block));
    KvBlock from(p.shape, const_cast<uint8_t*>(p.from), p.from_places.place(rows, block_size, kv_head, block));
    uint32_t first = from_position % block_size, n = to_position - from_position, row_bytes = p.shape.head_dim * p.shape.elem_bytes();
    for (int is_value = 0; is_value < 2; is_value++) {
        copy_together(to.row(is_value, first), from.row(is_value, first), n * row_bytes);
        if (p.shape.type == KV_Q8) {
            const __half* scales = from.scale(is_value, first);
            for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) to.scale(is_value, first)[i] = scales[i];
        }
    }
}

// Grid (parts of 8192 bytes of a block, blocks): between a buffer of the device and the host's memory.
extern "C" __global__ void move_blocks(const __grid_constant__ MoveBlocksParams p) {
    begin();
    constexpr uint32_t PART_BYTES = 8192;
    uint32_t first = blockIdx.x * PART_BYTES, n = min(PART_BYTES, p.n_bytes - first);
    uint8_t* block = p.blocks + uint64_t(p.places[blockIdx.y]) * p.n_bytes + first;
    uint8_t* held = p.held + uint64_t(blockIdx.y) * p.n_bytes + first;
    if (p.to_host) copy_together(held, block, n);
    else copy_together(block, held, n);
}
