// What ptx.cuh says of its wrappers, each in a kernel that does little else, for src/backend/cuda/ptx_test.rs: it knows what
// comes out. Rows of matrices lie one after the other. These kernels are in the runtime's own tests alone.
#include "ptx.cuh"

// As ptx_test.rs has it. Each kernel takes what it needs of it.
struct PtxTestParams {
    TensorMap maps[2];
    void* out;
    const void* a;
    const void* b;
    uint32_t column, row;
    uint32_t n;
    uint32_t add;
};
static_assert(sizeof(PtxTestParams) == 384);

#define LG_TEST(NAME, THREADS) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) ptx_test_##NAME(const __grid_constant__ PtxTestParams p)

// The same for the blocks of a cluster.
#define LG_CLUSTER_TEST(NAME, BLOCKS, THREADS)                                               \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 1) \
        ptx_test_##NAME(const __grid_constant__ PtxTestParams p)

// Where swizzled rows may begin.
__device__ __forceinline__ uint32_t aligned_memory() {
    extern __shared__ uint4 memory[];
    return (shared_address(memory) + SWIZZLE_ATOM - 1) / SWIZZLE_ATOM * SWIZZLE_ATOM;
}

// A barrier of one arrival that all threads know of, and the other blocks of the cluster, if they wait for it.
__device__ __forceinline__ uint32_t one_barrier(uint64_t& memory) {
    uint32_t barrier = shared_address(&memory);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        fence_barrier_init();
    }
    __syncthreads();
    return barrier;
}

// Shared memory as it lies, words from `from` on.
__device__ __forceinline__ void leave_words(void* out, uint32_t from, uint32_t n) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) static_cast<uint32_t*>(out)[i] = load4(from + i * 4);
}

// --- Copies.

// Brings a box of p.n rows of the first map at (p.column, p.row); leaves it as it lies, then row by row.
LG_TEST(box, WARPGROUP) {
    __shared__ uint64_t barriers[1];
    uint32_t box = aligned_memory(), barrier = one_barrier(barriers[0]), n_bytes = p.n * SWIZZLE_BYTES;
    if (threadIdx.x == 0) {
        prefetch_map(p.maps);
        barrier_arrive_expecting(barrier, n_bytes);
        copy_box(box, p.maps, p.column, p.row, barrier);
    }
    barrier_wait(barrier, 0);
    leave_words(p.out, box, n_bytes / 4);
    uint4* in_order = static_cast<uint4*>(p.out) + n_bytes / 16;
    for (uint32_t i = threadIdx.x; i < n_bytes / 16; i += blockDim.x) in_order[i] = load16(box + swizzled(i / 8, i % 8));
}

// Each of two blocks brings 64 rows of the first map for both, at (p.column, p.row + 64 * rank), then 64 of the second one
// for the other alone. Leaves what each block has: the three boxes row by row.
LG_CLUSTER_TEST(multicast, 2, WARPGROUP) {
    constexpr uint32_t ROWS = 64, BOX_BYTES = ROWS * SWIZZLE_BYTES, N_BYTES = 3 * BOX_BYTES;
    __shared__ uint64_t barriers[1];
    uint32_t boxes = aligned_memory(), barrier = one_barrier(barriers[0]), rank = cluster_rank();
    cluster_sync();
    if (threadIdx.x == 0) {
        uint32_t row = p.row + rank * ROWS;
        barrier_arrive_expecting(barrier, N_BYTES);
        copy_box_to(3, boxes + rank * BOX_BYTES, p.maps, p.column, row, barrier);
        copy_box_to(2 >> rank, boxes + 2 * BOX_BYTES, p.maps + 1, p.column, row, barrier);
    }
    barrier_wait(barrier, 0);
    uint4* out = static_cast<uint4*>(p.out) + rank * (N_BYTES / 16);
    for (uint32_t i = threadIdx.x; i < N_BYTES / 16; i += blockDim.x) out[i] = load16(boxes + swizzled(i / 8, i % 8));
    cluster_sync();
}

// Lane i of a warp brings the first 16 * (i + 1) of 528 bytes; all others stay ones.
LG_TEST(bytes, 32) {
    constexpr uint32_t LANE_BYTES = 33 * 16;
    __shared__ alignas(16) uint32_t words[32 * LANE_BYTES / 4];
    __shared__ uint64_t barriers[1];
    uint32_t to = shared_address(words), barrier = one_barrier(barriers[0]), at = threadIdx.x * LANE_BYTES;
    for (uint32_t i = threadIdx.x; i < 32 * LANE_BYTES / 4; i += 32) store4(to + i * 4, ~0u);
    fence_async();
    if (threadIdx.x == 0) barrier_arrive_expecting(barrier, 16 * 32 * 33 / 2);
    __syncwarp();
    copy_bytes(to + at, static_cast<const uint8_t*>(p.a) + at, 16 * (threadIdx.x + 1), barrier);
    barrier_wait(barrier, 0);
    leave_words(p.out, to, 32 * LANE_BYTES / 4);
}

// --- Clusters.

// Each of four blocks sends a word of its own to the next one, p.n times, two of which may be under way. Leaves what each
// block has received, in order.
LG_CLUSTER_TEST(cluster, 4, 32) {
    constexpr uint32_t BLOCKS = 4;
    using Ring = StageRing<2>;
    __shared__ uint64_t barriers[Ring::BYTES / 8];
    __shared__ uint32_t words[Ring::STAGES];
    Ring ring{shared_address(barriers)};
    uint32_t rank = cluster_rank(), next = (rank + 1) % BLOCKS, last = (rank + BLOCKS - 1) % BLOCKS;
    if (threadIdx.x == 0) {
        ring.init(1, 1);
        fence_barrier_init();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        for (uint32_t pass = 0; pass < p.n; pass++) {
            uint32_t word = shared_address(words) + pass % Ring::STAGES * 4;
            ring.wait_empty(pass);
            send4(word, static_cast<const uint32_t*>(p.a)[rank * p.n + pass], ring.full(pass), next);
            barrier_arrive_expecting(ring.full(pass), 4);
            ring.wait_full(pass);
            static_cast<uint32_t*>(p.out)[rank * p.n + pass] = load4(word);
            barrier_arrive_at(ring.empty(pass), last);
        }
    }
    cluster_sync();
}

// Every block of four arrives at each one's barrier, the own one too, p.n times; nobody goes on before all have. Leaves how
// many there were, then how many each block found when it went on.
LG_CLUSTER_TEST(arrivals, 4, 32) {
    constexpr uint32_t BLOCKS = 4;
    __shared__ uint64_t barriers[1];
    uint32_t rank = cluster_rank(), barrier = shared_address(barriers);
    uint32_t* counter = static_cast<uint32_t*>(p.out);
    uint32_t* seen = counter + 1;
    if (threadIdx.x == 0) {
        barrier_init(barrier, BLOCKS);
        fence_barrier_init();
    }
    cluster_sync();
    for (uint32_t round = 0; round < p.n; round++) {
        if (threadIdx.x == 0) atomicAdd(counter, 1), __threadfence();
        __syncwarp();
        if (threadIdx.x < BLOCKS) barrier_arrive_at(barrier, threadIdx.x);
        barrier_wait(barrier, round & 1);
        if (threadIdx.x == 0) seen[round * BLOCKS + rank] = atomicAdd(counter, 0);
        // Nobody counts on before all have looked.
        cluster_sync();
    }
}

// --- Shared and global memory.

// Leaves the first 2048 bytes of p.a, that were stored and loaded in all sizes, and 128 floats that have been halves.
LG_TEST(shared, WARPGROUP) {
    __shared__ alignas(16) uint32_t words[512];
    uint32_t at = shared_address(words), t = threadIdx.x;
    const uint32_t* in = static_cast<const uint32_t*>(p.a);
    uint32_t* out = static_cast<uint32_t*>(p.out);
    store8(at + t * 8, in[t * 2], in[t * 2 + 1]);
    store4(at + 1024 + t * 4, in[256 + t]);
    if (t < 32) store16(at + 1536 + t * 16, {in[384 + t * 4], in[385 + t * 4], in[386 + t * 4], in[387 + t * 4]});
    __syncthreads();
    // Each was stored by others.
    if (t < 64) reinterpret_cast<uint4*>(out)[t] = load16(at + t * 16);
    if (t < 64) reinterpret_cast<uint2*>(out)[128 + t] = load8(at + 1024 + t * 8);
    out[384 + t] = load4(at + 1536 + t * 4);
    __syncthreads();
    store_half(at + t * 2, __float2half(static_cast<const float*>(p.b)[t]));
    __syncthreads();
    static_cast<float*>(p.out)[512 + t] = load_half(at + (WARPGROUP - 1 - t) * 2);
}

// Every thread of every block adds its four words to the same ones.
LG_TEST(add, WARPGROUP) {
    const uint4* in = static_cast<const uint4*>(p.a);
    add4(static_cast<float*>(p.out) + threadIdx.x % p.n * 4, in[blockIdx.x * blockDim.x + threadIdx.x]);
}

// --- Warpgroups that pass things on: one brings p.n stages of 1024 bytes, two add up the words of all that each of their
// threads has. The second one says so after the first one has. Leaves the sums of 2 x 128 threads, and what the second
// group found of the first one's.
LG_TEST(stages, 3 * WARPGROUP) {
    constexpr uint32_t STAGE_BYTES = 1024;
    using Ring = StageRing<4>;
    __shared__ alignas(16) uint32_t stages[Ring::STAGES * STAGE_BYTES / 4];
    __shared__ uint32_t sums[WARPGROUP];
    __shared__ uint64_t barriers[Ring::BYTES / 8];
    Ring ring{shared_address(barriers)};
    if (threadIdx.x == 0) {
        ring.init(1, 2);
        fence_barrier_init();
    }
    __syncthreads();
    uint32_t group = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0), t = threadIdx.x % WARPGROUP;
    if (group == 0) {
        registers_shrink<40>();
        if (t > 0) return;
        for (uint32_t pass = 0; pass < p.n; pass++) {
            ring.wait_empty(pass);
            barrier_arrive_expecting(ring.full(pass), STAGE_BYTES);
            uint32_t to = shared_address(stages) + pass % Ring::STAGES * STAGE_BYTES;
            copy_bytes(to, static_cast<const uint8_t*>(p.a) + pass * STAGE_BYTES, STAGE_BYTES, ring.full(pass));
        }
    } else {
        registers_grow<232>();
        uint32_t sum = 0;
        for (uint32_t pass = 0; pass < p.n; pass++) {
            ring.wait_full(pass);
            uint32_t from = shared_address(stages) + pass % Ring::STAGES * STAGE_BYTES;
            sum += load4(from + ((group - 1) * WARPGROUP + t) * 4);
            named_sync(group, WARPGROUP);
            if (t == 0) barrier_arrive(ring.empty(pass));
        }
        uint32_t* out = static_cast<uint32_t*>(p.out) + (group - 1) * WARPGROUP;
        out[t] = sum;
        if (group == 1) {
            store4(shared_address(sums) + t * 4, sum);
            named_arrive(3, 2 * WARPGROUP);
        } else {
            named_sync(3, 2 * WARPGROUP);
            out[WARPGROUP + t] = load4(shared_address(sums) + (WARPGROUP - 1 - t) * 4);
        }
    }
}

// --- Products. p.out has (64, N) floats: what is added to, then the sums.

constexpr uint32_t ROWS = 64, DEPTH = 128;

// Where what a thread has of (64, N) begins, and how much further its element i lies.
__device__ __forceinline__ uint32_t first_place(uint32_t n_columns) {
    return (threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) * n_columns + threadIdx.x % 4 * 2;
}
__device__ __forceinline__ constexpr uint32_t place(uint32_t i, uint32_t n_columns) {
    return i / 2 % 2 * 8 * n_columns + i / 4 * 8 + i % 2;
}

template <int N_REGS>
__device__ __forceinline__ void load_sums(float (&d)[N_REGS], const void* sums) {
    const float* from = static_cast<const float*>(sums) + first_place(2 * N_REGS);
#pragma unroll
    for (uint32_t i = 0; i < N_REGS; i++) d[i] = from[place(i, 2 * N_REGS)];
}
template <int N_REGS>
__device__ __forceinline__ void leave_sums(const float (&d)[N_REGS], void* sums) {
    float* to = static_cast<float*>(sums) + first_place(2 * N_REGS);
#pragma unroll
    for (uint32_t i = 0; i < N_REGS; i++) to[place(i, 2 * N_REGS)] = d[i];
}

// Puts a matrix (n_rows, n_columns) where products read it: 64 columns after the other.
__device__ __forceinline__ void put(uint32_t to, const void* from, uint32_t n_rows, uint32_t n_columns) {
    for (uint32_t i = threadIdx.x; i < n_rows * n_columns / 8; i += blockDim.x) {
        uint32_t row = i / (n_columns / 8), chunk = i % (n_columns / 8);
        uint4 x = static_cast<const uint4*>(from)[i];
        store16(to + chunk / 8 * n_rows * SWIZZLE_BYTES + swizzled(row, chunk % 8), {x.x, x.y, x.z, x.w});
    }
}

// a (64, 128) * b (N, 128) transposed, plus what is there if p.add; T::scores or T::outputs.
template <int N, typename Multiply>
__device__ __forceinline__ void multiply_shared(const PtxTestParams& p, Multiply multiply) {
    uint32_t a = aligned_memory(), b = a + DEPTH / 64 * ROWS * SWIZZLE_BYTES;
    put(a, p.a, ROWS, DEPTH);
    put(b, p.b, N, DEPTH);
    fence_async();
    __syncthreads();
    float d[N / 2];
    load_sums(d, p.out);
    pin(d);
    products_fence();
#pragma unroll
    for (uint32_t k = 0; k < DEPTH / 16; k++) {
        uint32_t half = k / 4, column = k % 4 * 32;
        uint64_t rows = operand(a + half * ROWS * SWIZZLE_BYTES + column, 0, SWIZZLE_ATOM);
        uint64_t columns = operand(b + half * N * SWIZZLE_BYTES + column, 0, SWIZZLE_ATOM);
        multiply(d, rows, columns, p.add != 0 || k > 0);
        if (k == 3) products_end();
    }
    products_end();
    products_wait<1>();
    products_wait<0>();
    pin(d);
    leave_sums(d, p.out);
}

// What is there, plus a (64, 128) * b (128, N); T::weigh.
template <int N, typename T>
__device__ __forceinline__ void multiply_registers(const PtxTestParams& p) {
    uint32_t b = aligned_memory();
    put(b, p.b, DEPTH, N);
    fence_async();
    __syncthreads();
    float d[N / 2];
    load_sums(d, p.out);
    // The fragments of a are those of sums, two elements in a word.
    const uint32_t* from = static_cast<const uint32_t*>(p.a) + first_place(DEPTH) / 2;
    uint32_t a[DEPTH / 16][4];
#pragma unroll
    for (uint32_t i = 0; i < DEPTH / 4; i++) a[i / 4][i % 4] = from[place(i * 2, DEPTH) / 2];
    pin(d);
    products_fence();
#pragma unroll
    for (uint32_t k = 0; k < DEPTH / 16; k++) {
        T::weigh(d, a[k], operand(b + k * 16 * SWIZZLE_BYTES, DEPTH * SWIZZLE_BYTES, SWIZZLE_ATOM));
    }
    products_end();
    products_wait<0>();
    pin(d);
    leave_sums(d, p.out);
}

#define LG_TEST_PRODUCTS(NAME, T)                                                                          \
    LG_TEST(outputs_256_##NAME, WARPGROUP) {                                                               \
        multiply_shared<256>(p, [](auto& d, uint64_t a, uint64_t b, bool add) { T::outputs(d, a, b, add); }); \
    }                                                                                                      \
    LG_TEST(scores_128_##NAME, WARPGROUP) {                                                                \
        multiply_shared<128>(p, [](auto& d, uint64_t a, uint64_t b, bool add) { T::scores(d, a, b, add); });  \
    }                                                                                                      \
    LG_TEST(weigh_128_##NAME, WARPGROUP) { multiply_registers<128, T>(p); }                                \
    LG_TEST(weigh_64_##NAME, WARPGROUP) { multiply_registers<64, T>(p); }
LG_TEST_PRODUCTS(f16, HalfProducts)
LG_TEST_PRODUCTS(bf16, Bf16Products)
