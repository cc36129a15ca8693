// Stages of shared memory that go round between those who fill and those who empty them.
#pragma once
#include "ptx.cuh"

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
