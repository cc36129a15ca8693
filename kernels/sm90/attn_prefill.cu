// Attention of many rows on Hopper: tiles of 128 or 192 queries of one head over tiles of 128 keys, for 16-bit caches with
// heads of 64 or 128, blocks of whole multiples of 64 tokens and no cap on scores. Everything else is ../attn_prefill.cu's.
//
// Bound: the tensor cores, with heads of 64 as much the exponentials. Schedule: one warpgroup copies, two or three compute,
// 64 queries each. A tile of keys is two runs of 64 that need not be neighbours - whatever blocks the mask leaves, in order
// - each copied by the tensor memory accelerator, keys and values through two stages each. The computing warpgroups take
// turns at the tensor cores, so that one's softmax runs beside another's products; and in each the scores of the next tile
// are under way while the values of the last one are weighed. Queries and weights are rounded to 16 bits, sums are f32.
//
// Runs that end before 64 tokens, or change from one segment of the cache to another, are copied by the threads of the
// copying warpgroup, with zeros for what nobody holds: an unseen value weighs nothing, and must be a number for that.
#include "../common/kv.cuh"
#include "../common/launch.cuh"
#include "ptx.cuh"

constexpr uint32_t RUN = 64;         // keys that are looked up together
constexpr uint32_t TILE_KEYS = 2 * RUN;
constexpr uint32_t WARPGROUP_QUERIES = 64;
constexpr uint32_t STAGES = 2;
constexpr uint32_t NO_RUN = ~0u;

// Names of barriers: 0 is __syncthreads().
constexpr uint32_t BARRIER_COPIERS = 1, BARRIER_QUERIES = 2, BARRIER_TURN = 5;

// Query tiles begin at absolute multiples of their size.
template <int DIM, int CONSUMERS>
struct Layout {
    static constexpr uint32_t TILE_QUERIES = CONSUMERS * WARPGROUP_QUERIES;
    static constexpr uint32_t HALVES = DIM / 64;                                // columns of 128 bytes
    static constexpr uint32_t QUERY_BYTES = WARPGROUP_QUERIES * DIM * 2;        // of a warpgroup
    static constexpr uint32_t HALF_BYTES = TILE_KEYS * SWIZZLE_BYTES;
    static constexpr uint32_t TILE_BYTES = HALVES * HALF_BYTES;
    static constexpr uint32_t KEYS = CONSUMERS * QUERY_BYTES;
    static constexpr uint32_t VALUES = KEYS + STAGES * TILE_BYTES;
    static constexpr uint32_t BARRIERS = VALUES + STAGES * TILE_BYTES;
    static constexpr uint32_t RUNS = BARRIERS + 4 * STAGES * 8;                 // first keys of the stages' runs
    static constexpr uint32_t BYTES = RUNS + STAGES * 8 + SWIZZLE_ATOM;         // the last for alignment
};

// Barriers of keys, then of values: full ones, then empty ones.
__device__ __forceinline__ uint32_t full(uint32_t barriers, bool is_value, uint32_t stage) {
    return barriers + (is_value * 2 * STAGES + stage) * 8;
}
__device__ __forceinline__ uint32_t empty(uint32_t barriers, bool is_value, uint32_t stage) {
    return barriers + (is_value * 2 * STAGES + STAGES + stage) * 8;
}

// The runs of keys that a tile of queries sees.
struct Runs {
    VisibleBlocks blocks;
    uint32_t runs_a_block;
    uint32_t count;

    __device__ __forceinline__ Runs(const AttnParams& p, uint32_t first, uint32_t last, const uint32_t* residue)
        : blocks(p.mask, first, last, residue, p.mask.stride > 0), runs_a_block(p.mask.block_size / RUN) {
        uint32_t in_last_block = last % p.mask.block_size / RUN + 1;
        count = (blocks.count - 1) * runs_a_block + in_last_block;
    }

    __device__ __forceinline__ uint32_t n_tiles() const { return (count + 1) / 2; }

    // First key of a run.
    __device__ __forceinline__ uint32_t operator[](uint32_t i) const {
        if (i >= count) return NO_RUN;
        return (blocks[i / runs_a_block] * runs_a_block + i % runs_a_block) * RUN;
    }
};

template <typename T, int DIM, int CONSUMERS>
struct Prefill {
    using L = Layout<DIM, CONSUMERS>;

    const AttnParams& p;
    const TensorMap* maps;   // of the segments
    const AttnSeq& seq;
    StepRows rows;
    uint32_t head, kv_head, phase, first_query, shared;

    // --- The copying warpgroup.

    // The segment that holds all keys of a run, or NO_RUN.
    __device__ __forceinline__ uint32_t whole_segment(uint32_t key) const {
        uint32_t begin = 0;
        for (uint32_t s = 0; s < seq.n_segments; s++) {
            uint32_t end = seq.segments[s].end_position(rows);
            if (begin <= key && key + RUN <= end) return s;
            begin = max(begin, end);
        }
        return NO_RUN;
    }

    // Row of a segment's map where the keys of the run begin; its values lie block_size further.
    __device__ __forceinline__ uint32_t map_row(uint32_t s, uint32_t key) const {
        uint32_t block_size = p.shape.block_size;
        uint32_t place = seq.segments[s].places.place(rows, block_size, kv_head, key / block_size);
        return place * 2 * block_size + key % block_size;
    }

    // Rows `first` to `last` of a run, from global memory or zeros, with all threads.
    __device__ __forceinline__ void copy_rows(uint32_t to, const uint8_t* from, uint32_t first, uint32_t last) const {
        constexpr uint32_t CHUNKS = DIM / 8;
        for (uint32_t i = threadIdx.x % WARPGROUP; i < RUN * CHUNKS; i += WARPGROUP) {
            uint32_t row = i / CHUNKS, chunk = i % CHUNKS;
            if (row < first || row >= last) continue;
            uint4 x = from ? reinterpret_cast<const uint4*>(from)[i] : make_uint4(0, 0, 0, 0);
            store16(to + chunk / 8 * L::HALF_BYTES + swizzled(row, chunk % 8), {x.x, x.y, x.z, x.w});
        }
    }

    // The keys or values of a run: from the segments that hold some of them, and zeros where none does.
    __device__ __forceinline__ void copy_run(uint32_t to, uint32_t key, bool is_value) const {
        if (key == NO_RUN) return copy_rows(to, nullptr, 0, RUN);
        uint32_t begin = key;
        for (uint32_t s = 0; s < seq.n_segments; s++) {
            uint32_t end = min(seq.segments[s].end_position(rows), key + RUN);
            if (begin >= end) continue;
            uint64_t row = map_row(s, key) + (is_value ? p.shape.block_size : 0);
            copy_rows(to, seq.segments[s].blocks + row * DIM * 2, begin - key, end - key);
            begin = end;
        }
        copy_rows(to, nullptr, begin - key, RUN);
    }

    // Where the two runs of a tile lie; a segment of NO_RUN: not all in one.
    struct Source {
        uint32_t key[2], segment[2], row[2];
    };

    __device__ __forceinline__ Source find(const Runs& runs, uint32_t tile) const {
        Source source;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t key = runs[2 * tile + r];
            source.key[r] = key;
            source.segment[r] = key == NO_RUN ? NO_RUN : whole_segment(key);
            source.row[r] = source.segment[r] == NO_RUN ? 0 : map_row(source.segment[r], key);
        }
        // A run that is not there may be anything that is a number.
        if (source.key[1] == NO_RUN) source.segment[1] = source.segment[0], source.row[1] = source.row[0];
        return source;
    }

    // Copies the keys or values of a tile once there is room. One thread waits for it, and all for that thread: others might
    // miss that a barrier has come and gone, or run ahead of the one that has work to do.
    __device__ __forceinline__ void copy_tile(const Source& source, uint32_t tile, bool is_value) const {
        bool is_leader = threadIdx.x % WARPGROUP == 0;
        uint32_t barriers = shared + L::BARRIERS, stage = tile % STAGES;
        uint32_t to = shared + (is_value ? L::VALUES : L::KEYS) + stage * L::TILE_BYTES;
        uint32_t ready = full(barriers, is_value, stage);
        if (is_leader) {
            barrier_wait(empty(barriers, is_value, stage), tile / STAGES + 1 & 1);
            if (!is_value) store8(shared + L::RUNS + stage * 8, source.key[0], source.key[1]);
        }
        __syncwarp();
        named_sync(BARRIER_COPIERS, WARPGROUP);
        if (source.segment[0] != NO_RUN && source.segment[1] != NO_RUN) {
            if (!is_leader) return;
            barrier_arrive_expecting(ready, L::TILE_BYTES);
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                uint32_t row = source.row[r] + (is_value ? p.shape.block_size : 0);
#pragma unroll
                for (uint32_t half = 0; half < L::HALVES; half++) {
                    uint32_t at = to + half * L::HALF_BYTES + r * RUN * SWIZZLE_BYTES;
                    copy_box(at, maps + source.segment[r], half * 64, row, ready);
                }
            }
        } else {
            copy_run(to, source.key[0], is_value);
            copy_run(to + RUN * SWIZZLE_BYTES, source.key[1], is_value);
            fence_async();
            named_sync(BARRIER_COPIERS, WARPGROUP);
            if (is_leader) barrier_arrive(ready);
        }
    }

    // In the order in which tiles are wanted: the keys of the next one before the values of this one.
    __device__ __forceinline__ void copy(const Runs& runs) const {
        Source source = find(runs, 0);
        copy_tile(source, 0, false);
        for (uint32_t tile = 1; tile < runs.n_tiles(); tile++) {
            __syncwarp();
            Source next = find(runs, tile);
            copy_tile(next, tile, false);
            copy_tile(source, tile - 1, true);
            source = next;
        }
        copy_tile(source, runs.n_tiles() - 1, true);
    }

    // --- A computing warpgroup.

    // Queries times `scale`, rounded to 16 bits.
    __device__ __forceinline__ void load_queries(uint32_t to, uint32_t first, float scale) const {
        constexpr uint32_t CHUNKS = DIM / 8;
        for (uint32_t i = threadIdx.x % WARPGROUP; i < WARPGROUP_QUERIES * CHUNKS; i += WARPGROUP) {
            uint32_t row = i / CHUNKS, chunk = i % CHUNKS, position = first + row;
            float4 a = make_float4(0, 0, 0, 0), b = a;
            if (position >= rows.pos && position < rows.end()) {
                uint64_t at = (uint64_t(rows.row + position - rows.pos) * p.n_heads + head) * DIM;
                const float4* q = reinterpret_cast<const float4*>(p.q + at) + 2 * chunk;
                a = q[0], b = q[1];
            }
            uint32_t words[4] = {T::pack(a.x * scale, a.y * scale), T::pack(a.z * scale, a.w * scale),
                                 T::pack(b.x * scale, b.y * scale), T::pack(b.z * scale, b.w * scale)};
            store16(to + chunk / 8 * WARPGROUP_QUERIES * SWIZZLE_BYTES + swizzled(row, chunk % 8), words);
        }
        fence_async();
    }

    // Starts the scores of a tile.
    __device__ __forceinline__ void start_scores(float (&scores)[64], uint32_t queries, uint32_t stage) const {
        uint32_t keys = shared + L::KEYS + stage * L::TILE_BYTES;
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            uint32_t half = k / 4, column = k % 4 * 32;
            uint64_t a = operand(queries + half * WARPGROUP_QUERIES * SWIZZLE_BYTES + column, 0, SWIZZLE_ATOM);
            uint64_t b = operand(keys + half * L::HALF_BYTES + column, 0, SWIZZLE_ATOM);
            T::scores(scores, a, b, k > 0);
        }
        products_end();
    }

    // Starts weighing the values of a tile.
    __device__ __forceinline__ void
    start_weighing(float (&out)[DIM / 2], const uint32_t (&weights)[TILE_KEYS / 16][4], uint32_t stage) const {
        uint32_t values = shared + L::VALUES + stage * L::TILE_BYTES;
#pragma unroll
        for (int k = 0; k < int(TILE_KEYS) / 16; k++) {
            T::weigh(out, weights[k], operand(values + k * 16 * SWIZZLE_BYTES, L::HALF_BYTES, SWIZZLE_ATOM));
        }
        products_end();
    }

    // Waits until the keys or values of a tile are there.
    __device__ __forceinline__ void wait_for(bool is_value, uint32_t tile) const {
        barrier_wait(full(shared + L::BARRIERS, is_value, tile % STAGES), tile / STAGES & 1);
    }

    // First keys of the runs of a tile that has come.
    __device__ __forceinline__ uint2 runs_of(uint32_t stage) const { return load8(shared + L::RUNS + stage * 8); }

    // Masks the scores of two runs. `first` is the warpgroup's first position, `row` this thread's first one.
    __device__ __forceinline__ void mask_scores(float (&scores)[64], uint2 keys, uint32_t first, uint32_t row) const {
        const Mask& m = p.mask;
        uint32_t last = first + WARPGROUP_QUERIES - 1;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t key = r == 0 ? keys.x : keys.y;
            // Blocks are whole multiples of a run: all queries of the warpgroup see the run's block, or none does.
            bool is_seen = key != NO_RUN && key <= last && (m.kind != MASK_BLOCKS || m.sees(last, key, phase));
            bool is_whole = key + RUN - 1 <= first;
            if (m.kind == MASK_WINDOW) is_whole &= last - key < m.window_tokens || key + RUN <= m.sink_tokens;
            if (is_seen && is_whole) continue;
            // Columns that a row sees: from `near` or below `sinks`, up to `diagonal`.
            int column = int(key + threadIdx.x % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int position = int(row) + h * 8;
                int diagonal = is_seen ? position - column : -1, near = 0, sinks = 0;
                if (m.kind == MASK_WINDOW) near = position + 1 - int(m.window_tokens) - column, sinks = int(m.sink_tokens) - column;
#pragma unroll
                for (int n = 0; n < 8; n++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int at = n * 8 + e;
                        bool sees = at <= diagonal & (at >= near | at < sinks);
                        float& score = scores[r * 32 + n * 4 + h * 2 + e];
                        score = sees ? score : -INFINITY;
                    }
                }
            }
        }
    }

    // Turns scores into weights relative to the largest score so far; returns the factors for what was relative to the
    // last one.
    __device__ __forceinline__ void
    soften(float (&scores)[64], float (&most)[2], float (&sum)[2], float (&factor)[2]) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = most[h];
#pragma unroll
            for (int n = 0; n < 16; n++) top = fmaxf(top, fmaxf(scores[n * 4 + h * 2], scores[n * 4 + h * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            float base = top == -INFINITY ? 0.0f : top;
            factor[h] = exp2_of(most[h] - base);
            most[h] = top;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < 16; n++) {
                float x = exp2_of(scores[n * 4 + h * 2] - base), y = exp2_of(scores[n * 4 + h * 2 + 1] - base);
                scores[n * 4 + h * 2] = x, scores[n * 4 + h * 2 + 1] = y;
                total += x + y;
            }
            sum[h] = sum[h] * factor[h] + total;
        }
    }

    static __device__ __forceinline__ float exp2_of(float x) {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
        return y;
    }

    static __device__ __forceinline__ void round_weights(uint32_t (&weights)[TILE_KEYS / 16][4], const float (&scores)[64]) {
#pragma unroll
        for (int k = 0; k < int(TILE_KEYS) / 16; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) weights[k][i] = T::pack(scores[k * 8 + i * 2], scores[k * 8 + i * 2 + 1]);
        }
    }

    // Warpgroups take turns at starting products.
    __device__ __forceinline__ void turn_begins(uint32_t group) const { named_sync(BARRIER_TURN + group, 2 * WARPGROUP); }
    __device__ __forceinline__ void turn_ends(uint32_t group) const {
        named_arrive(BARRIER_TURN + (group + 1) % CONSUMERS, 2 * WARPGROUP);
    }

    __device__ __forceinline__ void compute(uint32_t group, uint32_t n_tiles) const {
        uint32_t barriers = shared + L::BARRIERS, queries = shared + group * L::QUERY_BYTES;
        uint32_t first = first_query + group * WARPGROUP_QUERIES;
        uint32_t row = first + threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4;
        bool is_signal = threadIdx.x % WARPGROUP == 0;
        // Scores are base-2 exponents.
        load_queries(queries, first, p.scale * LOG2_E);
        named_sync(BARRIER_QUERIES + group, WARPGROUP);
        if (group == CONSUMERS - 1) turn_ends(group);

        float out[DIM / 2] = {}, scores[64], most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor[2];
        uint32_t weights[TILE_KEYS / 16][4];

        wait_for(false, 0);
        uint2 keys = runs_of(0);
        turn_begins(group);
        products_fence();
        start_scores(scores, queries, 0);
        if (group < CONSUMERS - 1 || n_tiles > 1) turn_ends(group);
        products_wait<0>();
        pin(scores);
        if (is_signal) barrier_arrive(empty(barriers, false, 0));
        mask_scores(scores, keys, first, row);
        soften(scores, most, sum, factor);
        round_weights(weights, scores);

        for (uint32_t tile = 1; tile < n_tiles; tile++) {
            uint32_t stage = tile % STAGES, last_stage = (tile - 1) % STAGES;
            wait_for(false, tile);
            keys = runs_of(stage);
            turn_begins(group);
            products_fence();
            start_scores(scores, queries, stage);
            wait_for(true, tile - 1);
            pin(out);
            products_fence();
            start_weighing(out, weights, last_stage);
            // Nobody waits for the last turn of the last group.
            if (group < CONSUMERS - 1 || tile + 1 < n_tiles) turn_ends(group);
            products_wait<1>();
            pin(scores);
            if (is_signal) barrier_arrive(empty(barriers, false, stage));
            mask_scores(scores, keys, first, row);
            soften(scores, most, sum, factor);
            products_wait<0>();
            pin(out);
            if (is_signal) barrier_arrive(empty(barriers, true, last_stage));
            round_weights(weights, scores);
            // The largest scores come early: most tiles have no larger ones.
            if (__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < DIM / 2; i++) out[i] *= factor[i / 2 % 2];
            }
        }
        uint32_t last_tile = n_tiles - 1;
        wait_for(true, last_tile);
        pin(out);
        products_fence();
        start_weighing(out, weights, last_tile % STAGES);
        products_wait<0>();
        pin(out);

#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            // A learned sink joins the sum; the values are relative to the largest score.
            if (p.sink_logits) total += exp2f(p.sink_logits[head] * LOG2_E - most[h]);
            uint32_t position = row + h * 8;
            if (position < rows.pos || position >= rows.end()) continue;
            uint64_t at = (uint64_t(rows.row + position - rows.pos) * p.n_heads + head) * DIM;
            float* to = p.out + at + threadIdx.x % 4 * 2;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                *reinterpret_cast<float2*>(to + n * 8) =
                    make_float2(out[n * 4 + h * 2] / total, out[n * 4 + h * 2 + 1] / total);
            }
        }
    }
};

// Grid (n_heads * tiles of queries), for one session. Some heads at a time, whose keys and values the second-level cache
// holds together: their tiles, from the last ones, which have the most to do, each for all of these heads.
template <typename T, int DIM, int CONSUMERS, int COPY_REGISTERS, int COMPUTE_REGISTERS>
__device__ __forceinline__ void attn_prefill(const AttnHopperParams& params) {
    begin();
    using L = Layout<DIM, CONSUMERS>;
    // What the host sets aside; see hopper_tile in attn.rs.
    static_assert(L::BYTES <= (L::TILE_QUERIES + 4 * 128) * DIM * 2 + 2048);
    extern __shared__ uint4 memory[];
    __shared__ uint32_t residue;

    const AttnParams& p = params.attn;
    const AttnSeq& seq = p.seqs[0];
    StepRows rows = *seq.rows;
    uint32_t first_tile = rows.pos / L::TILE_QUERIES, n_tiles = (rows.end() - 1) / L::TILE_QUERIES + 1 - first_tile;
    uint32_t a_turn = gridDim.x / p.n_heads * params.heads_at_once, first_head = blockIdx.x / a_turn * params.heads_at_once;
    uint32_t n_heads = min(params.heads_at_once, p.n_heads - first_head), at = blockIdx.x % a_turn;
    uint32_t head = first_head + at % n_heads, from_last = at / n_heads;
    if (from_last >= n_tiles) return;
    uint32_t first_query = (first_tile + n_tiles - 1 - from_last) * L::TILE_QUERIES;
    uint32_t kv_head = head / (p.n_heads / p.shape.n_kv_heads);
    uint32_t shared = (shared_address(memory) + SWIZZLE_ATOM - 1) / SWIZZLE_ATOM * SWIZZLE_ATOM, barriers = shared + L::BARRIERS;
    if (threadIdx.x == 0) {
        uint32_t stride = p.mask.stride;
        residue = stride > 0 ? (stride - p.phases[head] % stride) % stride : 0;
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            for (int is_value = 0; is_value < 2; is_value++) {
                barrier_init(full(barriers, is_value, stage), 1);
                barrier_init(empty(barriers, is_value, stage), CONSUMERS);
            }
        }
        fence_barrier_init();
        for (uint32_t s = 0; s < seq.n_segments; s++) prefetch_map(params.maps + s);
    }
    __syncthreads();
    uint32_t first = max(first_query, rows.pos), last = min(first_query + L::TILE_QUERIES, rows.end()) - 1;
    Runs runs(p, first, last, &residue);
    Prefill<T, DIM, CONSUMERS> prefill{p, params.maps, seq, rows, head, kv_head, p.phases[head], first_query, shared};
    // The same in all lanes, and known to be: products must not diverge.
    uint32_t group = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);
    if (group == 0) {
        registers_shrink<COPY_REGISTERS>();
        prefill.copy(runs);
    } else {
        registers_grow<COMPUTE_REGISTERS>();
        prefill.compute(group - 1, runs.n_tiles());
    }
}

#define LG_PREFILL(NAME, T, DIM, CONSUMERS, COPY_REGISTERS, COMPUTE_REGISTERS)                                     \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                   \
        attn_prefill_sm90_##NAME##_##DIM(const __grid_constant__ AttnHopperParams p) {                              \
        attn_prefill<T, DIM, CONSUMERS, COPY_REGISTERS, COMPUTE_REGISTERS>(p);                                     \
    }
LG_PREFILL(f16, HalfProducts, 64, 3, 32, 160)
LG_PREFILL(bf16, Bf16Products, 64, 3, 32, 160)
LG_PREFILL(f16, HalfProducts, 128, 2, 40, 232)
LG_PREFILL(bf16, Bf16Products, 128, 2, 40, 232)
