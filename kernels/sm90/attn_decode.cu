// Attention of single rows on Hopper, for heads of 64 and 128, caches of 8 or 16 bits and blocks of whole multiples of 64
// tokens.
//
// Bound: the bandwidth of memory. A block takes one token, one KV head, up to eight of its query heads and one of n_splits
// parts of the visible keys. One warp has bulk copies bring 64 keys and their values at a time - a cache block, in the
// usual size - into stages of shared memory. Groups of four warps empty the stages in turn, a run of 16 keys a warp (see
// attn_runs.cuh). What earlier steps wrote may be read before the kernels before this one in a recorded step have ended,
// so that the first stages are on their way when it is this one's turn. The token's own key and value may come right from
// the product before it: then queries are turned here, and the block that has the last keys turns the key, appends both to
// the cache and adds them to its stage.
//
// On an H100 it reads 2.6, 3.1 and 3.1 TB/s of 4096, 32,768 and 131,072 tokens with 32 KV heads of 128 in f16, of 3.17
// that can be had; with eight, shared by 64 query heads, 1.6, 2.8 and 3.0; 8-bit ones at 2.9. Of the 11 us of 4096 tokens
// and eight KV heads, 3 are computed in, once all keys are there and the queries are known, 2 go by until a block has
// left what it has, 1 more until the others know, and 1.5 to merge. What it took: that a warp merges a head, without
// waiting for others and with the fences that its arrival needs; when the last block merged all heads with all threads,
// that took 4 to 7 us, and a decoded token of Llama 2 7B 7 % longer with matrices of 4 bits. Six stages of whole cache
// blocks (2.7 with four, 2.6 with 4 KB a copy). Lanes copy side by side, each what it has worked out itself: where one
// lane copied all, nvcc 13.0 dropped the carry of an address. Splits that ran as a cluster and merged in each other's
// shared memory read 12 % less in long contexts and gained nothing in short ones. Twelve warps that compute instead of
// eight: 3 % slower. Stages that begin with a line of shared memory: 16 bytes behind one, they filled at 2.9 TB/s. Blocks
// of half the stages, so that one begins while another on the multiprocessor ends: with four warps that compute 0.9 TB/s
// of 4096 tokens and eight KV heads, with eight 1.0, and a decoded token takes as long as before or longer.
#include "../common/attn_runs.cuh"
#include "../common/launch.cuh"
#include "../common/rope.cuh"
#include "ptx.cuh"

constexpr uint32_t GROUPS = 2;      // of four computing warps
constexpr uint32_t WARPS = 4 * GROUPS;
constexpr uint32_t CHUNK = 64;              // keys of a stage
constexpr uint32_t LEAST_CHUNKS = GROUPS;   // of a split

template <int TYPE, int DIM>
struct Stages {
    using Products = RunProducts<TYPE, DIM>;
    static constexpr uint32_t ROW_BYTES = Products::ROW_BYTES;
    static constexpr uint32_t VALUES = CHUNK * ROW_BYTES;
    static constexpr uint32_t SCALES = 2 * VALUES;               // of keys, then of values
    static constexpr uint32_t SCALE_BYTES = TYPE == KV_Q8 ? CHUNK * 2 : 0;
    static constexpr uint32_t STAGE_BYTES = SCALES + 2 * SCALE_BYTES;
    using Ring = StageRing<6 * 256 / ROW_BYTES>;
    // What the host sets aside; see attn.rs.
    static constexpr uint32_t BYTES = Ring::STAGES * STAGE_BYTES;

    uint32_t memory;
    uint32_t chunks;   // the first key and the flags of every stage
    Ring ring;

    __device__ __forceinline__ uint32_t stage(uint32_t i) const { return memory + i % Ring::STAGES * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t chunk(uint32_t i) const { return chunks + i % Ring::STAGES * 8; }
    // A stage is a cache block of as many tokens.
    __device__ __forceinline__ KvBlock as_block(uint32_t i, KvShape shape) const {
        shape.block_size = CHUNK;
        return KvBlock(shape, static_cast<uint8_t*>(__cvta_shared_to_generic(stage(i))), 0);
    }

    // Copies rows, keys by lane 0 and values by lane 1, from `from` to the chunk's row `first`.
    __device__ __forceinline__ void copy_rows(uint32_t i, const Found& from, uint32_t first, uint32_t n_rows, uint32_t block_size) const {
        uint32_t lane = threadIdx.x % 32;
        if (lane >= 2) return;
        uint32_t to = stage(i) + lane * VALUES + first * ROW_BYTES;
        copy_bytes(to, from.keys + uint64_t(lane * block_size) * ROW_BYTES, n_rows * ROW_BYTES, ring.full(i));
    }
    // The same for the scales of a whole chunk.
    __device__ __forceinline__ void copy_scales(uint32_t i, const Found& from, uint32_t block_size) const {
        uint32_t lane = threadIdx.x % 32;
        if (lane >= 2) return;
        copy_bytes(stage(i) + SCALES + lane * SCALE_BYTES, from.scales() + lane * block_size, SCALE_BYTES, ring.full(i));
    }

    // Scales of keys `row` and 8 more, and of their values.
    __device__ __forceinline__ void load_scales(float (&of_keys)[2], float (&of_values)[2], uint32_t i, uint32_t row) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t at = stage(i) + SCALES + (row + 8 * r) * 2;
            of_keys[r] = load_half(at), of_values[r] = load_half(at + SCALE_BYTES);
        }
    }
};

template <uint32_t ROW_BYTES>
struct RowsInStage {
    uint32_t first;

    __device__ __forceinline__ uint32_t row(uint32_t i) const { return first + i * ROW_BYTES; }
    __device__ __forceinline__ uint4 load16(uint32_t row, uint32_t at) const { return ::load16(row + at); }
    __device__ __forceinline__ uint2 load8(uint32_t row, uint32_t at) const { return ::load8(row + at); }
};

// The warp that copies; all its lanes take part.
template <int TYPE, int DIM>
struct Supply {
    const AttnParams& p;
    const RowPart& part;
    const Finder<CHUNK>& finder;
    const Stages<TYPE, DIM>& stages;
    float (&heads)[2][DIM];

    // The token's key and value, from the product before: to the stage of the last chunk, and to the cache.
    __device__ __forceinline__ void append(uint32_t i, const Found& last) const {
        uint32_t kv_head = part.kv_head, block_size = p.shape.block_size, block = part.position / block_size;
        uint64_t from = (uint64_t(part.row) * p.shape.n_kv_heads + kv_head) * DIM;
        wait_for_inputs();
        // On its way together with the key.
        float value[DIM / 32];
#pragma unroll
        for (uint32_t k = 0; k < DIM / 32; k++) value[k] = p.append.v[from + threadIdx.x % 32 + 32 * k];
        turn(heads[0], p.append.k + from, p.append.rope, part.row, DIM);
#pragma unroll
        for (uint32_t k = 0; k < DIM / 32; k++) heads[1][threadIdx.x % 32 + 32 * k] = value[k];
        __syncwarp();
        // Behind what it may share with others.
        const Segment& own = part.seq.segments[part.seq.n_segments - 1];
        bool is_pinned = own.places.map->is_pinned(kv_head, block);
        uint32_t place = is_pinned ? own.places.map->slot(kv_head, block) : kv_head * part.seq.stage_blocks;
        KvBlock to(p.shape, is_pinned ? const_cast<uint8_t*>(own.blocks) : part.seq.staged, place), stage = stages.as_block(i, p.shape);
        // Blocks that share a KV head have the same key.
        bool is_first = part.first_head % (p.n_heads / p.shape.n_kv_heads) == 0;
#pragma unroll
        for (int is_value = 0; is_value < 2; is_value++) {
            store_row(stage, is_value, part.position - last.first_key, heads[is_value]);
            if (is_first) store_row(to, is_value, part.position % block_size, heads[is_value]);
        }
    }

    // Lies in several segments, or ends with the token; behind that a stage keeps what it has.
    __device__ __forceinline__ void copy_split(uint32_t i, const Found& found) const {
        using S = Stages<TYPE, DIM>;
        bool appends = p.append.k && found.first_key + CHUNK > part.position;
        uint32_t key = found.first_key, begin = key, lane = threadIdx.x % 32;
        uint32_t end = min(key + CHUNK, part.position + (appends ? 0 : 1));
        for (uint32_t s = 0; s < finder.seq.n_segments && begin < end; s++) {
            uint32_t until = min(end, finder.seq.segments[s].end_position(finder.rows));
            if (until <= begin) continue;
            Found from = finder.at(finder.seq.segments[s], begin);
            stages.copy_rows(i, from, begin - key, until - begin, p.shape.block_size);
            if constexpr (TYPE == KV_Q8) {
                for (uint32_t row = lane; row < until - begin; row += 32) {
                    uint32_t to = stages.stage(i) + S::SCALES + (begin - key + row) * 2;
                    store_half(to, from.scales()[row]), store_half(to + S::SCALE_BYTES, from.scales()[row + p.shape.block_size]);
                }
            }
            begin = until;
        }
        if (appends) append(i, found);
        // Later copies to this stage come after what was stored here; behind the token there are none.
        if constexpr (TYPE == KV_Q8) fence_async();
        __syncwarp();
        if (lane == 0) barrier_arrive_expecting(stages.ring.full(i), (end - key) * 2 * S::ROW_BYTES);
    }

    __device__ __forceinline__ void copy_whole(uint32_t i, const Found& found) const {
        using S = Stages<TYPE, DIM>;
        if (threadIdx.x % 32 == 0) barrier_arrive_expecting(stages.ring.full(i), S::STAGE_BYTES);
        stages.copy_rows(i, found, 0, CHUNK, p.shape.block_size);
        if constexpr (TYPE == KV_Q8) stages.copy_scales(i, found, p.shape.block_size);
    }

    // The block's chunks: those of a head's blocks in turn, so that they read the same pages of memory.
    __device__ __forceinline__ void copy(const VisibleBlocks& visible, const Split<CHUNK>& split, uint32_t n_own) const {
        uint32_t lane = threadIdx.x % 32;
        bool has_waited = false;
        Found found;
        for (uint32_t i = 0; i < n_own; i++) {
            if (i % 32 == 0) found = finder.find(visible, (i + lane) * split.n_splits + blockIdx.x, split.n);
            Found own = found.from_lane(i % 32);
            bool is_old = p.append.k || own.first_key + CHUNK <= finder.rows.pos;
            if (!has_waited && !is_old) has_waited = true, wait_for_inputs();
            stages.ring.wait_empty(i);
            if (lane == 0) store8(stages.chunk(i), own.first_key, own.flags);
            if (own.flags & IS_SPLIT) copy_split(i, own);
            else copy_whole(i, own);
            __syncwarp();
        }
        if (!has_waited) wait_for_inputs();
    }
};

// Grid (n_splits, n_kv_heads * ceil(group / HEADS), n_tokens of every session).
template <int TYPE, int DIM>
__device__ __forceinline__ void attn_decode(const AttnParams& p) {
    let_next_start();
    using Products = RunProducts<TYPE, DIM>;
    using S = Stages<TYPE, DIM>;
    using Rows = RowsInStage<S::ROW_BYTES>;
    extern __shared__ __align__(128) uint4 memory[];
    __shared__ uint64_t barriers[S::Ring::BYTES / 8];
    __shared__ uint2 chunks[S::Ring::STAGES];
    __shared__ uint32_t residues[HEADS];
    __shared__ uint32_t n_residues;
    __shared__ alignas(16) float turned[HEADS][DIM];
    __shared__ float appended[2][DIM];

    // Where the session stands, and where its blocks lie, is known before any step begins.
    const RowPart part(p, HEADS);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, position = part.position;
    S stages{shared_address(memory), shared_address(chunks), {shared_address(barriers)}};
    if (threadIdx.x == 0) {
        stages.ring.init(1, 4);
        fence_barrier_init();
    }
    if (threadIdx.x == 0 && p.mask.stride > 0) n_residues = find_residues(p, part.first_head, part.n_heads, residues);
    __syncthreads();
    VisibleBlocks visible(p.mask, position, position, residues, p.mask.stride > 0 ? n_residues : 0);
    Split<CHUNK> split(p, visible, position, LEAST_CHUNKS);
    if (blockIdx.x >= split.n_splits) return wait_for_inputs();
    uint32_t n_own = (split.n - blockIdx.x - 1) / split.n_splits + 1;

    auto& states = *reinterpret_cast<States<DIM, HEADS, WARPS>*>(memory);
    static_assert(sizeof(states) <= S::BYTES);
    if (warp == WARPS) {
        Finder<CHUNK> finder{p, part.seq, part.rows, part.kv_head, position};
        Supply<TYPE, DIM>{p, part, finder, stages, appended}.copy(visible, split, n_own);
        __syncthreads();
    } else {
        wait_for_inputs();
        RunHeads<TYPE, DIM> heads;
        const float* queries = part.queries(p);
        if (p.append.k) {
            if (warp < part.n_heads) turn(turned[warp], queries + warp * DIM, p.append.rope, part.row, DIM);
            named_sync(1, 32 * WARPS);
            queries = turned[0];
        }
        heads.load_queries(p, queries, part.first_head, part.n_heads);
        for (uint32_t i = warp / 4; i < n_own; i += GROUPS) {
            stages.ring.wait_full(i);
            uint2 chunk = ::load8(stages.chunk(i));
            uint32_t row = warp % 4 * RUN, first_key = chunk.x + row, at = stages.stage(i) + row * S::ROW_BYTES;
            float scores[1][4], of_keys[2], of_values[2];
            {
                typename Products::Keys keys;
                Products::load_keys(keys, Rows{at});
                if constexpr (TYPE == KV_Q8) stages.load_scales(of_keys, of_values, i, row + lane / 4);
                heads.score(scores[0], keys, of_keys, p, position, first_key, chunk.y & IS_MASKED);
            }
            typename Products::Values values;
            Products::load_values(values, Rows{at + S::VALUES});
            __syncwarp();
            if (lane == 0) barrier_arrive(stages.ring.empty(i));
            // Behind the token there may be anything, which would not become nothing by weighing nothing.
            if (chunk.y & IS_SPLIT) {
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    if (first_key + Products::value_row(r, lane) <= position) continue;
#pragma unroll
                    for (int w = 0; w < Products::VALUE_WORDS; w++) values[r][w] = 0;
                }
                if constexpr (TYPE == KV_Q8) {
#pragma unroll
                    for (int r = 0; r < 2; r++) of_values[r] = first_key + lane / 4 + 8 * r <= position ? of_values[r] : 0.0f;
                }
            }
            heads.raise(scores);
            heads.add(scores[0], values, of_values);
        }
        // Once all warps are here, the stages are free.
        __syncthreads();
        heads.leave(states[warp], part.n_heads);
    }
    finish<DIM, HEADS, WARPS, WARPS + 1>(p, part.row, part.first_head, part.n_heads, split.n_splits, states);
}

#define LG_DECODE(NAME, TYPE, DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * (WARPS + 1), 1)                                         \
        attn_decode_sm90_##NAME##_##DIM(const __grid_constant__ AttnParams p) {                               \
        attn_decode<TYPE, DIM>(p);                                                                            \
    }
LG_DECODE(f16, KV_F16, 64)
LG_DECODE(f16, KV_F16, 128)
LG_DECODE(bf16, KV_BF16, 64)
LG_DECODE(bf16, KV_BF16, 128)
LG_DECODE(q8, KV_Q8, 64)
LG_DECODE(q8, KV_Q8, 128)
