// Instructions that only Hopper has (sm_90a): barriers in shared memory, tiles copied by the tensor memory accelerator,
// and matrix products of a warpgroup, 128 threads, with operands in shared memory.
#pragma once
#include "../common/barrier.cuh"
#include "../common/mma.cuh"
#include "../common/params.cuh"

constexpr uint32_t WARPGROUP = 128;

// Rows of 128 bytes lie in shared memory with their 16-byte chunks swapped, so that eight rows of one column meet no
// bank twice: chunk c of row r is at c ^ r % 8, counted from an address that is a multiple of 1024.
constexpr uint32_t SWIZZLE_BYTES = 128;
constexpr uint32_t SWIZZLE_ATOM = 8 * SWIZZLE_BYTES;

__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    return row * SWIZZLE_BYTES + ((chunk ^ row % 8) * 16);
}

// --- Barriers in shared memory: a phase ends when the expected bytes are there too.

// Arrives, and makes the phase wait for `n_bytes` of copies too.
__device__ __forceinline__ void barrier_arrive_expecting(uint32_t barrier, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(n_bytes) : "memory");
}

// --- Shared memory.

__device__ __forceinline__ uint4 load16(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ uint2 load8(uint32_t from) {
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n" : "=r"(x.x), "=r"(x.y) : "r"(from) : "memory");
    return x;
}
__device__ __forceinline__ void store8(uint32_t to, uint32_t x, uint32_t y) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};\n" ::"r"(to), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ uint32_t load4(uint32_t from) {
    uint32_t x;
    asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(x) : "r"(from) : "memory");
    return x;
}
__device__ __forceinline__ void store4(uint32_t to, uint32_t x) {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(x) : "memory");
}
__device__ __forceinline__ float load_half(uint32_t from) {
    uint16_t x;
    asm volatile("ld.shared.u16 %0, [%1];\n" : "=h"(x) : "r"(from) : "memory");
    return __half2float(__ushort_as_half(x));
}
__device__ __forceinline__ void store_half(uint32_t to, __half x) {
    asm volatile("st.shared.u16 [%0], %1;\n" ::"r"(to), "h"(__half_as_ushort(x)) : "memory");
}

// Adds four floats to those in global memory, which are not waited for.
__device__ __forceinline__ void add4(float* to, uint4 x) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "f"(__uint_as_float(x.x)),
                 "f"(__uint_as_float(x.y)), "f"(__uint_as_float(x.z)), "f"(__uint_as_float(x.w))
                 : "memory");
}

// Makes what this thread stored to shared memory visible to wgmma and bulk copies.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// --- Clusters: blocks that run at the same time and reach each other's shared memory, where everything lies at the same
// addresses.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}
// All threads of all blocks of the cluster.
__device__ __forceinline__ void cluster_sync() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
// Arrives at the barrier of the block `rank`, which may be the own one: to say that something has been read. To say that it
// has been written, it would have to be a release to the cluster, for which the whole device's memory is waited for.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier), "r"(rank)
                 : "memory");
}

// Stores a word at `to`, in shared memory of the block `rank`, and counts its bytes on the barrier there.
__device__ __forceinline__ void send4(uint32_t to, uint32_t x, uint32_t barrier, uint32_t rank) {
    asm volatile("{\n.reg .b32 there, done;\nmapa.shared::cluster.u32 there, %0, %3;\nmapa.shared::cluster.u32 done, %2, %3;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [there], %1, [done];\n}\n" ::"r"(to),
                 "r"(x), "r"(barrier), "r"(rank)
                 : "memory");
}

// Registers move from the warpgroup that copies to those that compute.
template <int N>
__device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

// --- Copies.

// Copies bytes that lie together, a multiple of 16 at multiples of 16, and counts them on the barrier.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t n_bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to),
                 "l"(from), "r"(n_bytes), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// Copies the box of a two-dimensional map whose first element is (column, row), and counts its bytes on the barrier.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap* map, uint32_t column, uint32_t row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// The same to all blocks of the cluster that `blocks` has a bit for, each of which counts the bytes.
__device__ __forceinline__ void
copy_box_to(uint16_t blocks, uint32_t to, const TensorMap* map, uint32_t column, uint32_t row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
        "%3}], [%4], %5;\n" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

// --- Products. A warpgroup starts them one after the other; they read shared memory and add to registers until they
// have been waited for.

// Says to wgmma where an operand lies: 14-bit addresses in units of 16 bytes, and the swizzle of 128 bytes.
// `stride` is the distance between groups of eight rows. `leading` is that between chunks of 64 elements of rows that do
// not run along k, as values; rows that do, as queries and keys, have it nowhere.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t leading, uint32_t stride) {
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32 |
           uint64_t(1) << 62;
}

__device__ __forceinline__ void products_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most N groups are under way.
template <int N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
// Keeps the compiler from moving or copying registers that products under way add to.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The operand lists of 128, 64 and 32 accumulators: (64, 256), (64, 128) and (64, 64) outputs, in a thread the fragments of
// mma.sync.
#define LG_D64 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LG_D32 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LG_D128 \
        LG_D64 ", " \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define LG_D64_IN_OUT \
          "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define LG_D128_IN_OUT \
          LG_D64_IN_OUT, \
          "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
          "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), \
          "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), \
          "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), \
          "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), \
          "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
          "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define LG_D32_IN_OUT \
          "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

// d (64, N) = a (64, 16) * b (N, 16) transposed, plus d if `add`; both operands in shared memory, with rows along k.
#define LG_PRODUCT_SHARED(NAME, TYPE, N, D, N_REGS, A, B, ADD)                                                        \
    static __device__ __forceinline__ void NAME(float (&d)[N_REGS], uint64_t a, uint64_t b, bool add) {               \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADD ", 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LG_##D "}, %" #A ", %" #B   \
                     ", p, 1, 1, 0, 0;\n}\n"                                                                          \
                     : LG_##D##_IN_OUT                                                                                \
                     : "l"(a), "l"(b), "r"(int(add)));                                                                \
    }

// d (64, N) += a (64, 16) * b (16, N); a in registers, b in shared memory with rows along N.
#define LG_PRODUCT_REGISTERS(NAME, TYPE, N, D, N_REGS, A0, A1, A2, A3, B, ADD)                                        \
    static __device__ __forceinline__ void NAME(float (&d)[N_REGS], const uint32_t (&a)[4], uint64_t b) {             \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADD ", 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LG_##D "}, {%" #A0 ", %" #A1 \
                     ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 1;\n}\n"                                               \
                     : LG_##D##_IN_OUT                                                                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                   \
    }

#define LG_PRODUCTS(TYPE)                                                     \
    LG_PRODUCT_SHARED(outputs, TYPE, 256, D128, 128, 128, 129, 130)           \
    LG_PRODUCT_SHARED(scores, TYPE, 128, D64, 64, 64, 65, 66)                 \
    LG_PRODUCT_REGISTERS(weigh, TYPE, 128, D64, 64, 64, 65, 66, 67, 68, 69)   \
    LG_PRODUCT_REGISTERS(weigh, TYPE, 64, D32, 32, 32, 33, 34, 35, 36, 37)

// 16-bit float types, with what they have on every card.
struct HalfProducts : HalfType {
    LG_PRODUCTS("f16")
};
struct Bf16Products : Bf16Type {
    LG_PRODUCTS("bf16")
};
