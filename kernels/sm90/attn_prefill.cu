// Attention of many rows on Hopper: 128 or 192 queries of one head a block over tiles of 128 keys, for 16-bit caches with
// heads of 64 or 128, blocks of whole multiples of 64 tokens and no cap on scores. Everything else is ../attn_prefill.cu's.
//
// Bound: the tensor cores and the power that the card may draw, with heads of 64 as much the exponentials. Schedule: as many
// clusters of two blocks as run at once take one item - neighbouring queries of one head for both - after the other, so
// that the next one is brought in while one ends. A tile of keys is two runs of 64 that need not be neighbours - whatever
// blocks the mask leaves, in order. Each block has the tensor memory accelerator copy one of them to both, so that the
// second-level cache is asked for half as much; keys and values go through two stages each. In a block one warpgroup brings
// tiles, and two or three compute, 64 queries each. They take turns at the tensor cores, so that one's softmax runs beside
// another's products; and in each the scores of the next tile are under way while the values of the last one are weighed.
// Weights are rounded to 16 bits, sums are f32.
//
// What it took on an H100, in TFLOP/s, with 32 heads of 128: finding tiles ahead (of the last 2048 of 131,072 tokens: from 490
// to 680 in short runs); blocks that stay (a window of 33 blocks: from 466 to 554). And in bf16, variants side by side in
// benches of their own: keys and values that two blocks share, with items that are given away late, to whom nears the end of
// one (32,768 tokens: from 618 to 681; 4096 tokens: from 463 to 540, where blocks had ended from 254 to 313 us and now all do
// at 255); of these 681, softmax that does not wait for the weighing of the last tile, as the compiler had it do, is worth
// 35. Three stages instead of two cost 3 %; a vote of the four warps on whether to rescale, 2 %. At 32,768 tokens the card
// draws its 700 W and runs at 1.4 to 1.5 GHz, and how warm it is shows: from 660 to 680.
#include "../common/launch.cuh"
#include "attn_compute.cuh"
#include "attn_copy.cuh"

// Grid (as many blocks as run at once), for one session.
template <typename T, int DIM, int CONSUMERS, int COPY_REGISTERS, int COMPUTE_REGISTERS>
__device__ __forceinline__ void attn_prefill(const AttnHopperParams& params) {
    begin();
    using L = Layout<DIM, CONSUMERS>;
    // What the host sets aside; see hopper_tile in attn.rs.
    static_assert(L::BYTES <= (2 * L::BLOCK_QUERIES + 4 * TILE_KEYS) * DIM * 2 + 4096);
    extern __shared__ uint4 memory[];
    __shared__ alignas(Search) uint8_t search[sizeof(Search)];

    const AttnSeq& seq = params.attn.seqs[0];
    uint32_t shared = (shared_address(memory) + SWIZZLE_ATOM - 1) / SWIZZLE_ATOM * SWIZZLE_ATOM;
    Block<DIM, CONSUMERS> block{params, shared, cluster_rank()};
    if (threadIdx.x == 0) {
        StepRows rows = *seq.rows;
        store16(shared + L::ROWS, {rows.row, rows.n_tokens, rows.pos, 0});
        block.keys().init(1, BLOCKS * CONSUMERS);
        block.values().init(1, BLOCKS * CONSUMERS);
        block.queries().init(1, CONSUMERS);
        block.sources().init(1, 1);
        block.patches().init(1, 1);
        barrier_init(block.next_wanted(), BLOCKS);
        barrier_init(block.next_there(), 1);
        fence_barrier_init();
        prefetch_map(&params.queries);
        for (uint32_t s = 0; s < seq.n_segments; s++) prefetch_map(params.maps + s);
    }
    cluster_sync();
    if (blockIdx.x / BLOCKS >= block.n_items()) return;
    // The same in all lanes, and known to be: products must not diverge.
    uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
    if (group == 0) {
        registers_shrink<COPY_REGISTERS>();
        Supply<DIM, CONSUMERS> supply{block};
        if (threadIdx.x == 0) supply.bring();
        if (warp == 1) supply.find(reinterpret_cast<Search*>(search));
        if (warp == 2) supply.assemble();
    } else {
        registers_grow<COMPUTE_REGISTERS>();
        Compute<T, DIM, CONSUMERS>{block}.compute(group - 1);
    }
    // Others of the cluster may still write and arrive here.
    cluster_sync();
}

#define LG_PREFILL(NAME, T, DIM, CONSUMERS, COPY_REGISTERS, COMPUTE_REGISTERS)                                     \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)    \
        attn_prefill_sm90_##NAME##_##DIM(const __grid_constant__ AttnHopperParams p) {                             \
        attn_prefill<T, DIM, CONSUMERS, COPY_REGISTERS, COMPUTE_REGISTERS>(p);                                     \
    }
LG_PREFILL(f16, HalfProducts, 64, 3, 32, 160)
LG_PREFILL(bf16, Bf16Products, 64, 3, 32, 160)
LG_PREFILL(f16, HalfProducts, 128, 2, 40, 232)
LG_PREFILL(bf16, Bf16Products, 128, 2, 40, 232)
