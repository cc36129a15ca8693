// The warps of attn_prefill.cu that bring queries, keys and values into shared memory.
#pragma once
#include "attn_tiles.cuh"

// The runs of keys that positions `first` to `last` see.
struct Runs {
    VisibleBlocks blocks;
    uint32_t runs_a_block;
    uint32_t count;

    __device__ __forceinline__ Runs(const AttnParams& p, uint32_t first, uint32_t last, const uint32_t* residue)
        : blocks(p.mask, first, last, residue, p.mask.stride > 0), runs_a_block(p.mask.block_size / RUN) {
        uint32_t in_last_block = last % p.mask.block_size / RUN + 1;
        count = (blocks.count - 1) * runs_a_block + in_last_block;
    }

    // First key of a run.
    __device__ __forceinline__ uint32_t operator[](uint32_t i) const {
        if (i >= count) return NO_RUN;
        return (blocks[i / runs_a_block] * runs_a_block + i % runs_a_block) * RUN;
    }
};

// A tile's two runs.
struct Source {
    uint32_t key[2];       // the first ones
    uint32_t row[2];       // of the segment's map, where the keys begin; the values lie block_size further
    uint32_t segment[2];   // that holds all keys of the run, or NO_RUN
    uint32_t kv_head;
    uint32_t seen;         // sights and ends

    __device__ __forceinline__ void store(uint32_t to) const {
        store16(to, {key[0], key[1], row[0], row[1]});
        store16(to + 16, {segment[0], segment[1], kv_head, seen});
    }
    static __device__ __forceinline__ Source load(uint32_t from) {
        uint4 a = load16(from), b = load16(from + 16);
        return {{a.x, a.y}, {a.z, a.w}, {b.x, b.y}, b.z, b.w};
    }
};

template <typename T, int DIM, int CONSUMERS>
struct Supply : Block<DIM, CONSUMERS> {
    using L = Layout<DIM, CONSUMERS>;
    using Block<DIM, CONSUMERS>::params;
    using Block<DIM, CONSUMERS>::rows;
    using Block<DIM, CONSUMERS>::shared;

    __device__ __forceinline__ const AttnSeq& seq() const { return params.attn.seqs[0]; }

    // --- The warp that finds out where keys and values lie, a tile a lane: for one alone it would take longer than the
    // products.

    __device__ __forceinline__ uint32_t whole_segment(uint32_t key) const {
        uint32_t begin = 0;
        for (uint32_t s = 0; s < seq().n_segments; s++) {
            uint32_t end = seq().segments[s].end_position(rows);
            if (begin <= key && key + RUN <= end) return s;
            begin = max(begin, end);
        }
        return NO_RUN;
    }

    __device__ __forceinline__ uint32_t map_row(uint32_t s, uint32_t kv_head, uint32_t key) const {
        uint32_t block_size = params.attn.shape.block_size;
        uint32_t place = seq().segments[s].places.place(rows, block_size, kv_head, key / block_size);
        return place * 2 * block_size + key % block_size;
    }

    // What a warpgroup's queries, from position `first` on, see of a run.
    __device__ __forceinline__ uint32_t sight(uint32_t key, uint32_t first, uint32_t phase) const {
        const Mask& m = params.attn.mask;
        uint32_t last = first + WARPGROUP_QUERIES - 1;
        // Blocks are whole multiples of a run: all queries of the warpgroup see the run's block, or none does.
        if (key == NO_RUN || key > last || (m.kind == MASK_BLOCKS && !m.sees(last, key, phase))) return SEES_NOTHING;
        bool is_whole = key + RUN - 1 <= first;
        if (m.kind == MASK_WINDOW) is_whole &= last - key < m.window_tokens || key + RUN <= m.sink_tokens;
        return is_whole ? SEES_ALL : SEES_SOME;
    }

    __device__ __forceinline__ Source find_tile(const Runs& runs, const Item& item, uint32_t tile, uint32_t phase) const {
        Source source;
        source.kv_head = item.head / (params.attn.n_heads / params.attn.shape.n_kv_heads);
        source.seen = 0;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t key = runs[2 * tile + r];
            source.key[r] = key;
            source.segment[r] = key == NO_RUN ? NO_RUN : whole_segment(key);
            source.row[r] = source.segment[r] == NO_RUN ? 0 : map_row(source.segment[r], source.kv_head, key);
#pragma unroll
            for (int group = 0; group < CONSUMERS; group++) {
                uint32_t seen = sight(key, item.first_query + group * WARPGROUP_QUERIES, phase);
                source.seen |= seen << (2 * group + r) * SIGHT_BITS;
            }
        }
        // A run that is not there may be anything that is a number.
        if (source.key[1] == NO_RUN) source.segment[1] = source.segment[0], source.row[1] = source.row[0];
        return source;
    }

    // The number of the block's next item. The counter begins and ends at zero: of as many calls as there are items, one
    // per block finds that none is left.
    __device__ __forceinline__ uint32_t next_item() const {
        uint32_t i = threadIdx.x % 32 == 0 ? atomicInc(params.attn.arrivals, this->n_items() - 1) : 0;
        return min(gridDim.x, this->n_items()) + __shfl_sync(~0u, i, 0);
    }

    // Sends an item to those who load queries; the first one needs no sending.
    __device__ __forceinline__ void send(const Item& item, uint32_t round) const {
        this->items().wait_empty(round);
        __syncwarp();
        if (threadIdx.x % 32 != 0) return;
        item.store(shared + L::NEXT_ITEMS + round % Ring::STAGES * 16);
        barrier_arrive(this->items().full(round));
    }

    // `residue` is a word of shared memory for this warp.
    __device__ __forceinline__ void find(uint32_t* residue) const {
        const AttnParams& p = params.attn;
        uint32_t lane = threadIdx.x % 32, batch = 0, n_items = this->n_items(), round = 0;
        for (uint32_t i = blockIdx.x, next; i < n_items; i = next, round++) {
            Item item = this->item(i);
            if (round > 0) send(item, round - 1);
            next = next_item();
            uint32_t phase = p.phases[item.head], stride = p.mask.stride;
            __syncwarp();
            if (lane == 0) *residue = stride > 0 ? (stride - phase % stride) % stride : 0;
            __syncwarp();
            uint32_t first = max(item.first_query, rows.pos);
            uint32_t last = min(item.first_query + L::TILE_QUERIES, rows.end()) - 1;
            Runs runs(p, first, last, residue);
            uint32_t n_tiles = (runs.count + 1) / 2;
            for (uint32_t tile = 0; tile < n_tiles; tile += BATCH, batch++) {
                Source source = find_tile(runs, item, tile + lane, phase);
                if (tile + lane + 1 >= n_tiles) source.seen |= next < n_items ? ENDS_ITEM : ENDS_ITEM | ENDS_ALL;
                this->sources().wait_empty(batch);
                source.store(shared + L::SOURCES + (batch % Ring::STAGES * BATCH + lane) * 32);
                __syncwarp();
                if (lane == 0) barrier_arrive(this->sources().full(batch));
            }
        }
        send({NO_HEAD, 0}, round - 1);
    }

    // --- The warp that copies keys and values. Runs that end before 64 tokens, or change from one segment of the cache to
    // another, are put together from what the segments hold, with zeros for what nobody does: an unseen value weighs
    // nothing, and must be a number for that.

    // Rows `first` to `last` of a run, from global memory or zeros.
    __device__ __forceinline__ void copy_rows(uint32_t to, const uint8_t* from, uint32_t first, uint32_t last) const {
        constexpr uint32_t CHUNKS = DIM / 8;
        for (uint32_t i = first * CHUNKS + threadIdx.x % 32; i < last * CHUNKS; i += 32) {
            uint32_t row = i / CHUNKS, chunk = i % CHUNKS;
            const void* bytes = from ? from + i * 16 : seq().segments[0].blocks;
            copy16(to + chunk / 8 * L::HALF_BYTES + swizzled(row, chunk % 8), bytes, from);
        }
    }

    __device__ __forceinline__ void copy_run(uint32_t to, uint32_t kv_head, uint32_t key, bool is_value) const {
        if (key == NO_RUN) return copy_rows(to, nullptr, 0, RUN);
        uint32_t begin = key;
        for (uint32_t s = 0; s < seq().n_segments; s++) {
            uint32_t end = min(seq().segments[s].end_position(rows), key + RUN);
            if (begin >= end) continue;
            uint64_t row = map_row(s, kv_head, key) + (is_value ? params.attn.shape.block_size : 0);
            copy_rows(to, seq().segments[s].blocks + row * DIM * 2, begin - key, end - key);
            begin = end;
        }
        copy_rows(to, nullptr, begin - key, RUN);
    }

    // The keys or values of a tile, once there is room.
    __device__ __forceinline__ void copy_tile(const Source& source, uint32_t tile, bool is_value) const {
        bool is_leader = threadIdx.x % 32 == 0;
        Ring ring = is_value ? this->values() : this->keys();
        uint32_t stage = tile % Ring::STAGES, full = ring.full(tile);
        uint32_t to = shared + (is_value ? L::VALUES : L::KEYS) + stage * L::TILE_BYTES;
        ring.wait_empty(tile);
        // Once there is no room any more, others might have missed that there was.
        __syncwarp();
        if (!is_value && is_leader) store16(shared + L::RUNS + stage * 16, {source.key[0], source.key[1], source.seen, 0});
        if (source.segment[0] != NO_RUN && source.segment[1] != NO_RUN) {
            if (!is_leader) return;
            barrier_arrive_expecting(full, L::TILE_BYTES);
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                uint32_t row = source.row[r] + (is_value ? params.attn.shape.block_size : 0);
#pragma unroll
                for (uint32_t half = 0; half < L::HALVES; half++) {
                    uint32_t at = to + half * L::HALF_BYTES + r * RUN * SWIZZLE_BYTES;
                    copy_box(at, params.maps + source.segment[r], half * 64, row, full);
                }
            }
        } else {
            copy_run(to, source.kv_head, source.key[0], is_value);
            copy_run(to + RUN * SWIZZLE_BYTES, source.kv_head, source.key[1], is_value);
            copies_end();
            copies_wait<0>();
            fence_async();
            __syncwarp();
            if (is_leader) barrier_arrive(full);
        }
    }

    // In the order in which tiles are wanted: the keys of the next one before the values of this one.
    __device__ __forceinline__ void copy() const {
        Source source, last = {};
        uint32_t tile = 0;
        for (uint32_t batch = 0; !(last.seen & ENDS_ALL); batch++) {
            this->sources().wait_full(batch);
            for (uint32_t i = 0; i < BATCH; i++) {
                source = Source::load(shared + L::SOURCES + (batch % Ring::STAGES * BATCH + i) * 32);
                copy_tile(source, tile, false);
                __syncwarp();
                if (tile > 0) copy_tile(last, tile - 1, true);
                __syncwarp();
                last = source;
                tile++;
                if (last.seen & ENDS_ITEM) break;
            }
            if (threadIdx.x % 32 == 0) barrier_arrive(this->sources().empty(batch));
        }
        copy_tile(last, tile - 1, true);
    }

    // --- The warps that load queries, and say whose they are; the computing warps load the first ones themselves.

    __device__ __forceinline__ void load_queries(uint32_t thread) const {
        Ring items = this->items(), queries = this->queries();
        bool is_leader = thread % 32 == 0;
        if (is_leader) barrier_arrive(queries.full(0));
        for (uint32_t round = 1;; round++) {
            items.wait_full(round - 1);
            Item item = Item::load(shared + L::NEXT_ITEMS + (round - 1) % Ring::STAGES * 16);
            __syncwarp();
            if (is_leader) barrier_arrive(items.empty(round - 1));
            if (item.head == NO_HEAD) break;
            queries.wait_empty(round);
            if (thread == 0) item.store(shared + L::ITEMS + round % Ring::STAGES * 16);
            for (uint32_t group = 0; group < CONSUMERS; group++) {
                Block<DIM, CONSUMERS>::template load_queries<T>(item, round % Ring::STAGES, group, thread, 32 * QUERY_WARPS);
            }
            __syncwarp();
            if (is_leader) barrier_arrive(queries.full(round));
        }
    }
};
