// Attention of many rows on the tensor cores: tiles of 64 or 128 queries of one head over tiles of 64 or 32 keys.
//
// Both kinds of tiles begin at absolute multiples of their size, so that with blocks of 64 tokens only the diagonal needs
// a mask. Four warps have 16 * ATOMS queries each. Keys and values come as 16-bit floats, 8-bit ones widened, through two
// stages of shared memory, whose rows are 16 bytes longer than a head so that ldmatrix meets no bank twice. Sums are f32;
// probabilities are rounded to 16 bits for the second product, in which unseen values weigh nothing: one that is not
// finite still spoils all queries of a tile.
#include "common/kv.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"

constexpr uint32_t THREADS = 128;

template <typename T, int DIM, int ATOMS, int KEYS, bool IS_Q8>
struct Prefill {
    static constexpr uint32_t TILE_QUERIES = 64 * ATOMS;
    static constexpr uint32_t TILE_KEYS = KEYS;
    static constexpr uint32_t PITCH = (DIM + 8) * 2;                    // bytes of a row in shared memory
    static constexpr uint32_t TILE_BYTES = TILE_KEYS * PITCH;

    const AttnParams& p;
    const AttnSeq& seq;
    StepRows rows;
    uint32_t head, kv_head, phase, first_query, shared;

    __device__ __forceinline__ uint32_t keys_at(uint32_t stage) const {
        return shared + TILE_QUERIES * PITCH + stage * 2 * TILE_BYTES;
    }

    // Whether any query of the tile sees a key of the key tile, and whether all see all.
    __device__ __forceinline__ bool is_visible(uint32_t tile, bool& is_whole) const {
        uint32_t j0 = tile * TILE_KEYS, j1 = j0 + TILE_KEYS - 1;
        uint32_t i0 = max(first_query, rows.pos), i1 = min(first_query + TILE_QUERIES, rows.end()) - 1;
        is_whole = j1 <= i0;
        if (j0 > i1) return false;
        const Mask& m = p.mask;
        if (m.kind == MASK_FULL) return true;
        if (m.kind == MASK_WINDOW) {
            bool near = i0 <= j1 || i0 - j1 < m.window_tokens, sink = j0 < m.sink_tokens;
            is_whole &= i1 - j0 < m.window_tokens || j1 < m.sink_tokens;
            return near || sink;
        }
        bool any = false, all = true;
        for (uint32_t block = j0 / m.block_size; block <= j1 / m.block_size; block++) {
            bool kept = m.keeps(block, phase);
            uint32_t near = m.first_near_block(i0), far = m.first_near_block(i1);
            any |= kept || block >= near;
            all &= kept || block >= far;
        }
        is_whole &= all;
        return any;
    }

    // The first visible tile from `tile` on, or `end`.
    __device__ __forceinline__ uint32_t next(uint32_t tile, uint32_t end, bool& is_whole) const {
        const Mask& m = p.mask;
        uint32_t i0 = max(first_query, rows.pos);
        uint32_t near = m.first_near_block(i0) * m.block_size / TILE_KEYS;
        uint32_t sinks = (m.sink_blocks * m.block_size + TILE_KEYS - 1) / TILE_KEYS;
        while (tile < end && !is_visible(tile, is_whole)) {
            // Nothing but strided blocks lies between the sinks and the near ones.
            bool is_gap = m.stride == 0 && tile >= sinks && tile < near;
            tile = is_gap ? near : tile + 1;
        }
        return tile;
    }

    // Whether any query of the tile may see tokens of the block. Slots of other blocks may hold anything.
    __device__ __forceinline__ bool wants(uint32_t block) const {
        const Mask& m = p.mask;
        if (m.kind == MASK_FULL) return true;
        return block >= m.first_near_block(max(first_query, rows.pos)) || m.keeps(block, phase);
    }

    // Copies eight elements of a row of a block into shared memory, in the background unless they are widened on the way.
    __device__ __forceinline__ void copy8(uint32_t to, const uint8_t* block, uint32_t row, uint32_t chunk, bool is_there) const {
        if constexpr (!IS_Q8) {
            copy16(to, block + (uint64_t(row) * DIM + chunk * 8) * 2, is_there);
        } else {
            uint32_t packed[4] = {};
            if (is_there) {
                uint2 quants = __ldg(reinterpret_cast<const uint2*>(block + uint64_t(row) * DIM) + chunk);
                const uint8_t* scales = block + uint64_t(2) * p.shape.block_size * DIM;
                float scale = __half2float(__ldg(reinterpret_cast<const __half*>(scales) + row));
                const char4 low = *reinterpret_cast<char4*>(&quants.x), high = *reinterpret_cast<char4*>(&quants.y);
                packed[0] = T::pack(low.x * scale, low.y * scale), packed[1] = T::pack(low.z * scale, low.w * scale);
                packed[2] = T::pack(high.x * scale, high.y * scale), packed[3] = T::pack(high.z * scale, high.w * scale);
            }
            store16(to, packed);
        }
    }

    // Starts copying the keys and values of a tile: a run of tokens that lie in one block at a time.
    __device__ __forceinline__ void fetch(uint32_t tile, uint32_t stage) const {
        constexpr uint32_t CHUNKS = DIM / 8;
        uint32_t block_size = p.shape.block_size, run = min(block_size, TILE_KEYS);
        for (uint32_t first = tile * TILE_KEYS; first < (tile + 1) * TILE_KEYS; first += run) {
            uint32_t block = first / block_size, in_block = first % block_size, begin = 0;
            bool is_wanted = wants(block);
            for (uint32_t s = 0; s < seq.n_segments; s++) {
                const Segment& segment = seq.segments[s];
                uint32_t end = segment.end_position(rows);
                bool is_last = s + 1 == seq.n_segments;
                if (end > begin && (is_last || end > first) && begin < first + run) {
                    bool is_held = is_wanted && end > first;
                    uint64_t place = is_held ? segment.places.place(rows, block_size, kv_head, block) : 0;
                    const uint8_t* from = segment.blocks + place * p.shape.block_bytes();
                    uint32_t to = keys_at(stage) + (first - tile * TILE_KEYS) * PITCH;
                    for (uint32_t i = threadIdx.x; i < run * CHUNKS; i += THREADS) {
                        uint32_t token = i / CHUNKS, chunk = i % CHUNKS, key = first + token, row = in_block + token;
                        // Keys that nobody wants or holds are zeros: a value that is no number would count.
                        if (key < begin || (key >= end && !is_last)) continue;
                        bool is_there = is_held && key < end;
                        uint32_t at = to + token * PITCH + chunk * 16;
                        copy8(at, from, row, chunk, is_there);
                        copy8(at + TILE_BYTES, from, block_size + row, chunk, is_there);
                    }
                }
                begin = max(begin, end);
            }
        }
    }

    // Queries, rounded to 16 bits: finite ones stay finite.
    __device__ __forceinline__ void fetch_queries() const {
        for (uint32_t i = threadIdx.x; i < TILE_QUERIES * DIM / 2; i += THREADS) {
            uint32_t token = i / (DIM / 2), pair = i % (DIM / 2), position = first_query + token;
            float2 q = make_float2(0.0f, 0.0f);
            if (position >= rows.pos && position < rows.end()) {
                uint64_t row = rows.row + position - rows.pos;
                q = reinterpret_cast<const float2*>(p.q + (row * p.n_heads + head) * DIM)[pair];
            }
            uint32_t packed = T::pack_finite(q.x, q.y);
            asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(shared + token * PITCH + pair * 4), "r"(packed));
        }
    }

    __device__ void run() const {
        uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        uint32_t first_row = warp * 16 * ATOMS;
        fetch_queries();

        float out[ATOMS][DIM / 8][4] = {};
        float most[ATOMS][2], sum[ATOMS][2] = {};
#pragma unroll
        for (int a = 0; a < ATOMS; a++) most[a][0] = most[a][1] = -INFINITY;
        // Base-2 exponents.
        float scale = p.softcap > 0.0f ? p.scale : p.scale * LOG2_E;

        uint32_t end = (min(first_query + TILE_QUERIES, rows.end()) - 1) / TILE_KEYS + 1;
        bool is_whole = false;
        uint32_t tile = next(0, end, is_whole);
        if (tile < end) fetch(tile, 0);
        copies_end();
        for (uint32_t stage = 0; tile < end; stage ^= 1) {
            bool next_is_whole = false;
            uint32_t following = next(tile + 1, end, next_is_whole);
            if (following < end) fetch(following, stage ^ 1);
            copies_end();
            copies_wait<1>();
            __syncthreads();

            float scores[ATOMS][TILE_KEYS / 8][4] = {};
#pragma unroll
            for (int k = 0; k < DIM / 16; k++) {
                uint32_t q[ATOMS][4];
#pragma unroll
                for (int a = 0; a < ATOMS; a++) {
                    load_matrices(q[a], shared + (first_row + a * 16 + lane % 16) * PITCH + (k * 16 + lane / 16 * 8) * 2);
                }
#pragma unroll
                for (int n = 0; n < TILE_KEYS / 16; n++) {
                    uint32_t keys[4];
                    uint32_t row = n * 16 + lane / 16 * 8 + lane % 8, col = k * 16 + lane / 8 % 2 * 8;
                    load_matrices(keys, keys_at(stage) + row * PITCH + col * 2);
#pragma unroll
                    for (int a = 0; a < ATOMS; a++) {
                        T::mma(scores[a][2 * n], q[a], keys[0], keys[1]);
                        T::mma(scores[a][2 * n + 1], q[a], keys[2], keys[3]);
                    }
                }
            }

#pragma unroll
            for (int a = 0; a < ATOMS; a++) {
                soften(scores[a], scale, is_whole, first_query + first_row + a * 16 + lane / 4, tile * TILE_KEYS + lane % 4 * 2);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float top = most[a][half];
#pragma unroll
                    for (int n = 0; n < TILE_KEYS / 8; n++) {
                        top = fmaxf(top, fmaxf(scores[a][n][2 * half], scores[a][n][2 * half + 1]));
                    }
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                    float base = top == -INFINITY ? 0.0f : top - WEIGHT_SHIFT;
                    float factor = exp2f(most[a][half] - WEIGHT_SHIFT - base);
                    most[a][half] = top;
                    sum[a][half] *= factor;
#pragma unroll
                    for (int n = 0; n < TILE_KEYS / 8; n++) {
                        float x = exp2f(scores[a][n][2 * half] - base), y = exp2f(scores[a][n][2 * half + 1] - base);
                        scores[a][n][2 * half] = x, scores[a][n][2 * half + 1] = y;
                        sum[a][half] += x + y;
                    }
#pragma unroll
                    for (int d = 0; d < DIM / 8; d++) out[a][d][2 * half] *= factor, out[a][d][2 * half + 1] *= factor;
                }
            }

#pragma unroll
            for (int k = 0; k < TILE_KEYS / 16; k++) {
                uint32_t weights[ATOMS][4];
#pragma unroll
                for (int a = 0; a < ATOMS; a++) {
                    weights[a][0] = T::pack(scores[a][2 * k][0], scores[a][2 * k][1]);
                    weights[a][1] = T::pack(scores[a][2 * k][2], scores[a][2 * k][3]);
                    weights[a][2] = T::pack(scores[a][2 * k + 1][0], scores[a][2 * k + 1][1]);
                    weights[a][3] = T::pack(scores[a][2 * k + 1][2], scores[a][2 * k + 1][3]);
                }
#pragma unroll
                for (int d = 0; d < DIM / 16; d++) {
                    uint32_t values[4];
                    uint32_t row = k * 16 + lane % 16, col = d * 16 + lane / 16 * 8;
                    load_matrices_transposed(values, keys_at(stage) + TILE_BYTES + row * PITCH + col * 2);
#pragma unroll
                    for (int a = 0; a < ATOMS; a++) {
                        T::mma(out[a][2 * d], weights[a], values[0], values[1]);
                        T::mma(out[a][2 * d + 1], weights[a], values[2], values[3]);
                    }
                }
            }
            __syncthreads();
            tile = following;
            is_whole = next_is_whole;
        }

#pragma unroll
        for (int a = 0; a < ATOMS; a++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float total = sum[a][half];
                total += __shfl_xor_sync(~0u, total, 1);
                total += __shfl_xor_sync(~0u, total, 2);
                // A learned sink joins the sum; the values are relative to the largest score.
                if (p.sink_logits) total += exp2f(p.sink_logits[head] * LOG2_E - (most[a][half] - WEIGHT_SHIFT));
                uint32_t position = first_query + first_row + a * 16 + half * 8 + lane / 4;
                if (position < rows.pos || position >= rows.end()) continue;
                uint64_t row = rows.row + position - rows.pos;
                float* to = p.out + (row * p.n_heads + head) * DIM + lane % 4 * 2;
#pragma unroll
                for (int d = 0; d < DIM / 8; d++) {
                    float2 pair = make_float2(out[a][d][2 * half] / total, out[a][d][2 * half + 1] / total);
                    *reinterpret_cast<float2*>(to + d * 8) = pair;
                }
            }
        }
    }

    // Scores to base-2 exponents, capped and masked. `position` is of the fragment's first row, `key` of its first column.
    __device__ __forceinline__ void
    soften(float (&scores)[TILE_KEYS / 8][4], float scale, bool is_whole, uint32_t position, uint32_t key) const {
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] *= scale;
        }
        // Loops of their own: the code that most tiles skip is skipped at once.
        if (p.softcap > 0.0f) {
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) scores[n][i] = p.softcap * tanhf(scores[n][i] / p.softcap) * LOG2_E;
            }
        }
        if (!is_whole) {
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (!p.mask.sees(position + i / 2 * 8, key + n * 8 + i % 2, phase)) scores[n][i] = -INFINITY;
                }
            }
        }
    }
};

// Grid (tiles of queries, n_heads), for one session. The last tiles come first: they have the most to do.
template <typename T, int DIM, int ATOMS, int KEYS, bool IS_Q8>
__device__ __forceinline__ void attn_prefill(const AttnParams& p) {
    begin();
    extern __shared__ uint4 memory[];
    using Kernel = Prefill<T, DIM, ATOMS, KEYS, IS_Q8>;
    const AttnSeq& seq = p.seqs[0];
    StepRows rows = *seq.rows;
    uint32_t first_tile = rows.pos / Kernel::TILE_QUERIES, n_tiles = (rows.end() - 1) / Kernel::TILE_QUERIES + 1 - first_tile;
    if (blockIdx.x >= n_tiles) return;
    uint32_t head = blockIdx.y, tile = first_tile + n_tiles - 1 - blockIdx.x;
    uint32_t kv_head = head / (p.n_heads / p.shape.n_kv_heads);
    Kernel{p, seq, rows, head, kv_head, p.phases[head], tile * Kernel::TILE_QUERIES, shared_address(memory)}.run();
}

#define LG_PREFILL(NAME, T, DIM, QUERIES, KEYS, IS_Q8)                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                    \
        attn_prefill_##NAME##_##DIM##_##QUERIES(const __grid_constant__ AttnParams p) {      \
        attn_prefill<T, DIM, QUERIES / 64, KEYS, IS_Q8>(p);                                  \
    }
// Heads of 128 twice: cards with 100 KB of shared memory a block have no room for 128 queries.
#define LG_PREFILL_OF(NAME, T, IS_Q8)                                                         \
    LG_PREFILL(NAME, T, 64, 128, 64, IS_Q8) LG_PREFILL(NAME, T, 96, 128, 64, IS_Q8)          \
    LG_PREFILL(NAME, T, 128, 128, 64, IS_Q8) LG_PREFILL(NAME, T, 128, 64, 64, IS_Q8)         \
    LG_PREFILL(NAME, T, 256, 64, 32, IS_Q8)
// One cache type a compilation, as in attn_rows.cu.
#if defined(LG_KV_F16)
LG_PREFILL_OF(f16, HalfType, false)
#elif defined(LG_KV_BF16)
LG_PREFILL_OF(bf16, Bf16Type, false)
#else
LG_PREFILL_OF(q8, HalfType, true)
#endif
