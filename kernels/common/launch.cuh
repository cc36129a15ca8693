// Kernels of a recorded step start before those before them have ended, on cards that can (sm_90): a kernel lets the next
// one start at once, and touches nothing that another one writes before it has waited. Whoever waits has waited for all
// kernels before: none of them ends before at least one of its threads has waited itself.
#pragma once

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// For kernels that read nothing but such inputs.
__device__ __forceinline__ void begin() {
    let_next_start();
    wait_for_inputs();
}
