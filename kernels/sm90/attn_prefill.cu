// Attention of many rows on Hopper: tiles of 128 or 192 queries of one head over tiles of 128 keys, for 16-bit caches with
// heads of 64 or 128, blocks of whole multiples of 64 tokens and no cap on scores. Everything else is ../attn_prefill.cu's.
//
// Bound: the tensor cores, with heads of 64 as much the exponentials. Schedule: as many blocks as run at once take one item -
// a tile of queries of one head - after the other, so that the next one is brought in while one ends. One
// warpgroup copies, two or three compute, 64 queries each. A tile of keys is two runs of 64 that need not be neighbours -
// whatever blocks the mask leaves, in order - each copied by the tensor memory accelerator, keys and values through two
// stages each. The computing warpgroups take turns at the tensor cores, so that one's softmax runs beside another's
// products; and in each the scores of the next tile are under way while the values of the last one are weighed. Queries and
// weights are rounded to 16 bits, sums are f32.
//
// On an H100 32 heads of 128 reach 611 TFLOP/s over 32,768 tokens and 621 over 131,072, heads of 64 527; without masks and
// softmax it would be 807. What it took: finding tiles ahead (490 before, 680 after, over the last 2048 of 131,072 tokens),
// and blocks that stay, with queries that come early (a window of 33 blocks: from 466 to 554).
#include "../common/launch.cuh"
#include "attn_compute.cuh"
#include "attn_copy.cuh"

// Grid (as many blocks as run at once), for one session.
template <typename T, int DIM, int CONSUMERS, int COPY_REGISTERS, int COMPUTE_REGISTERS>
__device__ __forceinline__ void attn_prefill(const AttnHopperParams& params) {
    begin();
    using L = Layout<DIM, CONSUMERS>;
    // What the host sets aside; see hopper_tile in attn.rs.
    static_assert(L::BYTES <= (2 * L::TILE_QUERIES + 4 * TILE_KEYS) * DIM * 2 + 4096);
    extern __shared__ uint4 memory[];
    __shared__ uint32_t residue;

    const AttnSeq& seq = params.attn.seqs[0];
    uint32_t shared = (shared_address(memory) + SWIZZLE_ATOM - 1) / SWIZZLE_ATOM * SWIZZLE_ATOM;
    Block<DIM, CONSUMERS> block{params, *seq.rows, shared};
    if (blockIdx.x >= block.n_items()) return;
    if (threadIdx.x == 0) {
        block.keys().init(1, CONSUMERS);
        block.values().init(1, CONSUMERS);
        block.queries().init(QUERY_WARPS, CONSUMERS);
        block.sources().init(1, 1);
        block.items().init(1, QUERY_WARPS);
        fence_barrier_init();
        for (uint32_t s = 0; s < seq.n_segments; s++) prefetch_map(params.maps + s);
    }
    __syncthreads();
    // The same in all lanes, and known to be: products must not diverge.
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
    if (group == 0) {
        registers_shrink<COPY_REGISTERS>();
        Supply<T, DIM, CONSUMERS> supply{block};
        if (warp == 0) supply.copy();
        if (warp == 1) supply.find(&residue);
        if (warp >= 2) supply.load_queries(threadIdx.x - 64);
    } else {
        registers_grow<COMPUTE_REGISTERS>();
        Compute<T, DIM, CONSUMERS>{block}.compute(group - 1);
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
