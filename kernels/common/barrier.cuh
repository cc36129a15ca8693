// Barriers in shared memory: a phase ends when the expected arrivals are there. And stages that go round between those who
// fill and those who empty them.
#pragma once
#include <cstdint>

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(n_arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Waits for the end of a phase, whose numbers are taken modulo 2. The phase before the first one counts as ended.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
#define LG_BARRIER_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
#else
#define LG_BARRIER_WAIT "mbarrier.test_wait.parity.shared::cta.b64"
#endif
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n" LG_BARRIER_WAIT " done, [%0], %1;\n"
        "@done bra ready;\n"
        "bra again;\n"
        "ready:\n"
        "}\n" ::"r"(barrier), "r"(parity) : "memory");
}

// Barriers among some warps of a block.
__device__ __forceinline__ void named_sync(uint32_t name, uint32_t n_threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(n_threads) : "memory");
}
__device__ __forceinline__ void named_arrive(uint32_t name, uint32_t n_threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "r"(n_threads) : "memory");
}

// Each pass through a stage has a number.
template <uint32_t N>
struct StageRing {
    static constexpr uint32_t STAGES = N, BYTES = 2 * STAGES * 8;
    uint32_t barriers;   // full ones, then empty ones

    __device__ __forceinline__ void init(uint32_t n_fillers, uint32_t n_emptiers) const {
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            barrier_init(full(stage), n_fillers);
            barrier_init(empty(stage), n_emptiers);
        }
    }
    __device__ __forceinline__ uint32_t full(uint32_t pass) const { return barriers + pass % STAGES * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t pass) const { return barriers + (STAGES + pass % STAGES) * 8; }
    __device__ __forceinline__ void wait_full(uint32_t pass) const { barrier_wait(full(pass), pass / STAGES & 1); }
    __device__ __forceinline__ void wait_empty(uint32_t pass) const { barrier_wait(empty(pass), pass / STAGES + 1 & 1); }
};
