// Attention of single rows in f32: every query over the keys that it sees, split over the cache. Serves what no kernel for
// tensor cores does: any head size, cache type and precision.
//
// A block of four warps takes one token, one KV head, up to GROUP of its query heads and one of n_splits equal parts of
// the visible blocks. Its warps take runs of 8 or 16 keys in turn; in a warp, head_dim / 8 lanes share a key, so that
// 16 bytes a lane are read at once and all loads of a run are in flight together. Each warp keeps (max, sum, weighted
// values) of its keys in base 2; they are merged in shared memory, and over the splits by the block that ends last.
#include "common/attn_splits.cuh"
#include "common/launch.cuh"

constexpr uint32_t WARPS = 4;

// Eight elements of a row of the cache, as they were read.
struct Raw {
    uint4 a, b;
};

template <int TYPE>
__device__ __forceinline__ void load_raw(Raw& raw, const uint8_t* row, uint32_t i, uint32_t dim) {
    constexpr uint32_t BYTES = TYPE == KV_F32 ? 4 : TYPE == KV_Q8 ? 1 : 2;
    const uint8_t* from = row + i * 8 * BYTES;
    if (dim % 8 == 0) {
        if (TYPE == KV_Q8) {
            uint2 x = *reinterpret_cast<const uint2*>(from);
            raw.a.x = x.x, raw.a.y = x.y;
        } else {
            raw.a = *reinterpret_cast<const uint4*>(from);
            if (TYPE == KV_F32) raw.b = *reinterpret_cast<const uint4*>(from + 16);
        }
    } else {
        uint8_t* to = reinterpret_cast<uint8_t*>(&raw);
        raw.a = raw.b = make_uint4(0, 0, 0, 0);
        for (uint32_t j = 0; j < 8 * BYTES; j++) {
            if (i * 8 * BYTES + j < dim * BYTES) to[j] = from[j];
        }
    }
}

template <int TYPE>
__device__ __forceinline__ void unpack(float* out, const Raw& raw) {
    const uint32_t words[8] = {raw.a.x, raw.a.y, raw.a.z, raw.a.w, raw.b.x, raw.b.y, raw.b.z, raw.b.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (TYPE == KV_F32) {
            out[2 * i] = __uint_as_float(words[2 * i]), out[2 * i + 1] = __uint_as_float(words[2 * i + 1]);
        } else if (TYPE == KV_F16) {
            from_half2(out + 2 * i, words[i]);
        } else if (TYPE == KV_BF16) {
            from_bf16x2(out + 2 * i, words[i]);
        } else {
            // Bytes, as numbers from 0 on, in the mantissa of 2^23: conversions would take the time of four instructions.
            uint32_t bytes = words[i / 2] ^ 0x80808080;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float x = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7650 + i % 2 * 2 + j));
                out[2 * i + j] = x - (8388608.0f + 128.0f);
            }
        }
    }
}

// Grid (n_splits, n_kv_heads * ceil(group / GROUP), n_tokens of every session).
template <int TYPE, int DIM, int GROUP>
__device__ void attn_rows(const AttnParams& p) {
    begin();
    constexpr uint32_t LANES = DIM / 8;            // of a key
    constexpr uint32_t KEYS = 32 / LANES;          // of a warp at a time
    constexpr uint32_t RUN = DIM > 128 || TYPE == KV_F32 ? 8 : 16;
    constexpr uint32_t STEPS = RUN / KEYS;
    __shared__ uint32_t residues[GROUP];
    __shared__ uint32_t n_residues;
    __shared__ alignas(8) States<DIM, GROUP, WARPS> states;

    const auto [seq, rows, kv_head, first_head, n_heads, position, row] = RowPart(p, GROUP);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % LANES, dim = p.shape.head_dim;

    if (threadIdx.x == 0) n_residues = find_residues(p, first_head, n_heads, residues);
    __syncthreads();

    float q[GROUP][8], out[GROUP][8] = {}, most[GROUP], sum[GROUP] = {};
    uint32_t phases[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        most[g] = -INFINITY;
        uint32_t head = first_head + min(uint32_t(g), n_heads - 1);
        phases[g] = p.phases[head];
        const float* from = p.q + (uint64_t(row) * p.n_heads + head) * dim + part * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) q[g][i] = part * 8 + i < dim ? from[i] : 0.0f;
    }

    VisibleBlocks visible(p.mask, position, position, residues, n_residues);
    uint32_t runs_a_block = p.shape.block_size / RUN;
    uint32_t n_runs = visible.count * runs_a_block;
    uint32_t per_split = (visible.count + p.n_splits - 1) / p.n_splits * runs_a_block;
    uint32_t last_run = min(n_runs, (blockIdx.x + 1) * per_split);
    for (uint32_t run = blockIdx.x * per_split + warp; run < last_run; run += WARPS) {
        uint32_t block = visible[run / runs_a_block];
        uint32_t in_block = run % runs_a_block * RUN, first_key = block * p.shape.block_size + in_block;
        if (first_key > position) continue;
        bool seen[GROUP];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            seen[g] = p.mask.kind != MASK_BLOCKS || block >= visible.near || p.mask.keeps(block, phases[g]);
        }
        // The run's rows: in one segment, unless a segment ends among its keys.
        Raw keys[STEPS], values[STEPS];
        float key_scale[STEPS], value_scale[STEPS];
        uint32_t begin = 0;
        for (uint32_t s = 0; s < seq.n_segments; s++) {
            const Segment& segment = seq.segments[s];
            uint32_t end = segment.end_position(rows);
            if (begin < first_key + RUN && end > first_key && end > begin) {
                uint32_t place = segment.places.place(rows, p.shape.block_size, kv_head, block);
                KvBlock held(p.shape, const_cast<uint8_t*>(segment.blocks), place);
#pragma unroll
                for (uint32_t step = 0; step < STEPS; step++) {
                    uint32_t at = step * KEYS + lane / LANES, key = first_key + at;
                    if (key >= begin && key < end && key <= position) {
                        if (part * 8 < dim) {
                            load_raw<TYPE>(keys[step], held.row(false, in_block + at), part, dim);
                            load_raw<TYPE>(values[step], held.row(true, in_block + at), part, dim);
                        }
                        if (TYPE == KV_Q8) {
                            key_scale[step] = __half2float(*held.scale(false, in_block + at));
                            value_scale[step] = __half2float(*held.scale(true, in_block + at));
                        }
                    }
                }
            }
            begin = max(begin, end);
        }

        float score[GROUP][STEPS];
#pragma unroll
        for (uint32_t step = 0; step < STEPS; step++) {
            uint32_t key = first_key + step * KEYS + lane / LANES;
            float k[8];
            unpack<TYPE>(k, keys[step]);
            bool near = p.mask.kind != MASK_WINDOW || position - key < p.mask.window_tokens || key < p.mask.sink_tokens;
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float dot = 0.0f;
                if (part * 8 < dim) {
#pragma unroll
                    for (int i = 0; i < 8; i++) dot += q[g][i] * k[i];
                }
#pragma unroll
                for (uint32_t other = LANES / 2; other > 0; other /= 2) dot += __shfl_xor_sync(~0u, dot, other);
                float x = dot * p.scale * (TYPE == KV_Q8 ? key_scale[step] : 1.0f);
                if (p.softcap > 0.0f) x = p.softcap * tanhf(x / p.softcap);
                score[g][step] = seen[g] && near && key <= position ? x * LOG2_E : -INFINITY;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float next = most[g];
#pragma unroll
            for (uint32_t step = 0; step < STEPS; step++) next = fmaxf(next, score[g][step]);
#pragma unroll
            for (uint32_t other = LANES; other < 32; other *= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, other));
            float factor = rescale(most[g], next);
            most[g] = next;
            sum[g] *= factor;
#pragma unroll
            for (int i = 0; i < 8; i++) out[g][i] *= factor;
#pragma unroll
            for (uint32_t step = 0; step < STEPS; step++) {
                // Nothing is seen yet: there is nothing to be relative to. Scores that are not numbers stay.
                float weight = score[g][step] == -INFINITY ? 0.0f : exp2f(score[g][step] - next);
                score[g][step] = weight;
                sum[g] += weight;
            }
        }
#pragma unroll
        for (uint32_t step = 0; step < STEPS; step++) {
            float v[8];
            unpack<TYPE>(v, values[step]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float weight = score[g][step];
                if (weight == 0.0f || part * 8 >= dim) continue;   // an unseen value may be anything
                if (TYPE == KV_Q8) weight *= value_scale[step];
#pragma unroll
                for (int i = 0; i < 8; i++) out[g][i] += weight * v[i];
            }
        }
    }

    // The lanes that share a key have the same sums; those of other keys, and other warps, are added.
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
#pragma unroll
        for (uint32_t other = LANES; other < 32; other *= 2) {
            sum[g] += __shfl_xor_sync(~0u, sum[g], other);
#pragma unroll
            for (int i = 0; i < 8; i++) out[g][i] += __shfl_xor_sync(~0u, out[g][i], other);
        }
        if (lane < LANES) {
#pragma unroll
            for (int i = 0; i < 8; i++) states[warp][g][lane * 8 + i] = out[g][i];
        }
        if (lane == 0) states[warp][g][DIM] = most[g], states[warp][g][DIM + 1] = sum[g];
    }
    finish<DIM, GROUP, WARPS, WARPS>(p, row, first_head, n_heads, p.n_splits, states);
}

#define LG_ROWS(NAME, TYPE, DIM, GROUP)                                                                       \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                             \
        attn_rows_##NAME##_##DIM##_##GROUP(const __grid_constant__ AttnParams p) {                            \
        attn_rows<TYPE, DIM, GROUP>(p);                                                                       \
    }
#define LG_ROWS_OF(NAME, TYPE)                                                            \
    LG_ROWS(NAME, TYPE, 64, 1) LG_ROWS(NAME, TYPE, 64, 4) LG_ROWS(NAME, TYPE, 128, 1)     \
    LG_ROWS(NAME, TYPE, 128, 4) LG_ROWS(NAME, TYPE, 256, 1) LG_ROWS(NAME, TYPE, 256, 4)
// One cache type a compilation: together they would take a minute.
#if defined(LG_KV_F32)
LG_ROWS_OF(f32, KV_F32)
#elif defined(LG_KV_F16)
LG_ROWS_OF(f16, KV_F16)
#elif defined(LG_KV_BF16)
LG_ROWS_OF(bf16, KV_BF16)
#else
LG_ROWS_OF(q8, KV_Q8)
#endif
