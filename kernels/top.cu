// The largest elements of a row, in order: what a sampler needs of the logits.
//
// An element's key holds its rank among floats above its column turned round, so that all keys differ and the larger key
// comes first. One block finds, digit by digit from the top, how the n-th largest key begins; whatever is not below it is
// gathered and sorted.
#include "common/launch.cuh"
#include "common/params.cuh"

constexpr uint32_t THREADS = 1024;
constexpr uint32_t MAX_TOP = 256;
constexpr uint32_t DIGIT_BITS = 8;
constexpr uint32_t DIGITS = 1 << DIGIT_BITS;

// Orders floats as integers: NaN below everything.
__device__ __forceinline__ uint32_t rank(float x) {
    uint32_t bits = __float_as_uint(x);
    if (isnan(x)) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t key(const TopParams& p, uint32_t column) {
    return uint64_t(rank(p.x[column])) << 32 | (0xffffffffu - column);
}

// Grid (1), 1024 threads.
extern "C" __global__ void __launch_bounds__(THREADS) top(TopParams p) {
    begin();
    __shared__ uint32_t counts[DIGITS];
    __shared__ uint32_t left, chosen, n_found;
    __shared__ uint64_t found[MAX_TOP];

    uint64_t prefix = 0, mask = 0;
    if (threadIdx.x == 0) left = p.n, n_found = 0;
    for (int shift = 64 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (uint32_t i = threadIdx.x; i < DIGITS; i += THREADS) counts[i] = 0;
        __syncthreads();
        for (uint32_t first = 0; first < p.width; first += THREADS) {
            uint32_t column = first + threadIdx.x;
            uint64_t k = column < p.width ? key(p, column) : 0;
            bool counts_here = column < p.width && (k & mask) == prefix;
            uint32_t digit = counts_here ? static_cast<uint32_t>(k >> shift) % DIGITS : DIGITS;
            // Logits are much alike: lanes with the same digit add it once.
            uint32_t same = __match_any_sync(~0u, digit);
            if (counts_here && threadIdx.x % 32 == __ffs(static_cast<int>(same)) - 1) {
                atomicAdd(&counts[digit], __popc(same));
            }
        }
        __syncthreads();
        // The digit that the n-th largest key has: lanes sum eight digits each, from the top.
        if (threadIdx.x < 32) {
            uint32_t of_lane = 0, top_digit = DIGITS - 1 - threadIdx.x * 8;
            for (uint32_t i = 0; i < 8; i++) of_lane += counts[top_digit - i];
            uint32_t above = of_lane;
            for (uint32_t other = 1; other < 32; other *= 2) {
                uint32_t before = __shfl_up_sync(~0u, above, other);
                if (threadIdx.x >= other) above += before;
            }
            above -= of_lane;
            uint32_t wanted = left;
            __syncwarp();
            if (above < wanted && above + of_lane >= wanted) {
                uint32_t digit = top_digit;
                while (above + counts[digit] < wanted) above += counts[digit--];
                chosen = digit;
                left = wanted - above;
            }
        }
        __syncthreads();
        prefix |= uint64_t(chosen) << shift;
        mask |= uint64_t(DIGITS - 1) << shift;
        // All keys that begin like this are wanted.
        if (counts[chosen] == left) break;
        __syncthreads();
    }

    for (uint32_t i = threadIdx.x; i < MAX_TOP; i += THREADS) found[i] = 0;
    __syncthreads();
    for (uint32_t column = threadIdx.x; column < p.width; column += THREADS) {
        uint64_t k = key(p, column);
        if ((k & mask) >= prefix) found[atomicAdd(&n_found, 1)] = k;
    }
    __syncthreads();
    // Batcher's bitonic sort, largest first.
    for (uint32_t size = 2; size <= MAX_TOP; size *= 2) {
        for (uint32_t step = size / 2; step > 0; step /= 2) {
            uint32_t i = threadIdx.x, other = i ^ step;
            if (i < MAX_TOP && other > i) {
                uint64_t a = found[i], b = found[other];
                if ((i & size) == 0 ? a < b : a > b) found[i] = b, found[other] = a;
            }
            __syncthreads();
        }
    }
    for (uint32_t i = threadIdx.x; i < p.n; i += THREADS) {
        uint32_t column = 0xffffffffu - static_cast<uint32_t>(found[i]);
        p.columns[i] = column;
        p.values[i] = p.x[column];
    }
}
