// The warps of attn_prefill.cu that bring queries, keys and values into shared memory: one finds out where they lie, one
// brings them, and one puts together what is not copied as a whole.
#pragma once
#include "attn_tiles.cuh"

constexpr uint32_t NO_SEGMENT = 0xff;

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

    __device__ __forceinline__ uint32_t n_tiles() const { return (count + 1) / 2; }

    // First key of a run.
    __device__ __forceinline__ uint32_t operator[](uint32_t i) const {
        if (i >= count) return NO_RUN;
        return (blocks[i / runs_a_block] * runs_a_block + i % runs_a_block) * RUN;
    }
};

// What the lanes that find runs share, in shared memory, as they have few registers.
struct Search {
    Item item;
    uint32_t phase;     // of the item's head
    uint32_t residue;   // of the strided blocks that it keeps
    Runs runs;
};

// A tile's two runs, in shared memory at `at`.
struct Source {
    uint32_t at;

    // The first key of a run; the row of the segment's map where its keys begin, the values being block_size further; and
    // the segment that holds all of them, or NO_SEGMENT.
    __device__ __forceinline__ uint32_t key(uint32_t run) const { return load4(at + 4 * run); }
    __device__ __forceinline__ uint32_t row(uint32_t run) const { return load4(at + 8 + 4 * run); }
    __device__ __forceinline__ uint32_t segment(uint32_t run) const { return load4(at + 16) >> 8 * run & 0xff; }
    // Sights and ends.
    __device__ __forceinline__ uint32_t seen() const { return load4(at + 20); }

    __device__ __forceinline__ void store_run(uint32_t run, uint32_t key, uint32_t row) const {
        store4(at + 4 * run, key);
        store4(at + 8 + 4 * run, row);
    }
    __device__ __forceinline__ void store(uint32_t segments, uint32_t seen) const { store8(at + 16, segments, seen); }
};

// Runs that are to be put together: from where to where, and the barrier of those who wait for them.
struct Patch {
    Source source;
    uint32_t to, full, is_value, head;

    __device__ __forceinline__ void store(uint32_t at) const {
        store16(at, {source.at, to, full, is_value});
        store4(at + 16, head);
    }
    static __device__ __forceinline__ Patch load(uint32_t at) {
        uint4 x = load16(at);
        return {{x.x}, x.y, x.z, x.w, load4(at + 16)};
    }
};

template <int DIM, int CONSUMERS>
struct Supply : Block<DIM, CONSUMERS> {
    using L = Layout<DIM, CONSUMERS>;
    using Block<DIM, CONSUMERS>::params;
    using Block<DIM, CONSUMERS>::rows;
    using Block<DIM, CONSUMERS>::shared;
    using Block<DIM, CONSUMERS>::rank;
    using Block<DIM, CONSUMERS>::next_wanted;
    using Block<DIM, CONSUMERS>::next_there;

    __device__ __forceinline__ const AttnSeq& seq() const { return params.attn.seqs[0]; }
    __device__ __forceinline__ uint32_t batch_item(uint32_t batch) const {
        return shared + L::BATCH_ITEMS + batch % Ring::STAGES * 8;
    }
    __device__ __forceinline__ Source source(uint32_t batch, uint32_t i) const {
        return {shared + L::SOURCES + (batch % Ring::STAGES * BATCH + i) * 24};
    }

    // --- The warp that finds out where keys and values lie, a tile a lane: for one alone it would take longer than the
    // products.

    __device__ __forceinline__ uint32_t whole_segment(uint32_t key) const {
        uint32_t begin = 0;
        for (uint32_t s = 0; s < seq().n_segments; s++) {
            uint32_t end = seq().segments[s].end_position(rows());
            if (begin <= key && key + RUN <= end) return s;
            begin = max(begin, end);
        }
        return NO_SEGMENT;
    }

    __device__ __forceinline__ uint32_t map_row(uint32_t s, uint32_t kv_head, uint32_t key) const {
        uint32_t block_size = params.attn.shape.block_size;
        uint32_t place = seq().segments[s].places.place(rows(), block_size, kv_head, key / block_size);
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

    __device__ __forceinline__ uint32_t kv_head(uint32_t head) const {
        return head / (params.attn.n_heads / params.attn.shape.n_kv_heads);
    }

    // Where the runs of a tile of a batch's item lie, and who sees them.
    __device__ __forceinline__ void find_tile(const Search& search, uint32_t batch, uint32_t tile) const {
        const Runs& runs = search.runs;
        Source to = source(batch, tile % BATCH);
        uint32_t segment = NO_SEGMENT, row = 0, segments = 0, seen = 0;
#pragma unroll 1
        for (uint32_t r = 0; r < 2; r++) {
            uint32_t key = runs[2 * tile + r];
            // One that is not there may be anything that is a number: the one before.
            if (key != NO_RUN) {
                segment = whole_segment(key);
                row = segment == NO_SEGMENT ? 0 : map_row(segment, kv_head(search.item.head), key);
            }
            to.store_run(r, key, row);
            segments |= segment << 8 * r;
#pragma unroll 1
            for (uint32_t group = 0; group < CONSUMERS; group++) {
                uint32_t first_query = search.item.first_query + group * WARPGROUP_QUERIES;
                seen |= sight(key, first_query, search.phase) << (2 * group + r) * SIGHT_BITS;
            }
        }
        uint32_t n_tiles = runs.n_tiles(), left = n_tiles - tile;
        if (left == 1) seen |= ENDS_ITEM;
        if (left == min(TILES_AHEAD, n_tiles)) seen |= NEARS_END;
        to.store(segments, seen);
        if (tile % BATCH == 0) search.item.store(batch_item(batch));
    }

    __device__ __forceinline__ uint32_t n_clusters() const { return gridDim.x / BLOCKS; }

    // The number of the cluster's next item, once all its blocks near the end of this one: who asked earlier would be given
    // what others could begin earlier. The counter begins and ends at zero: of as many calls as there are items, one per
    // cluster finds that none is left.
    __device__ __forceinline__ uint32_t next_item(uint32_t round) const {
        bool is_leader = threadIdx.x % 32 == 0;
        if (is_leader) barrier_arrive_expecting(next_there(), 4);
        if (rank == 0) {
            barrier_wait(next_wanted(), round & 1);
            __syncwarp();
            if (is_leader) {
                uint32_t i = n_clusters() + atomicInc(params.attn.arrivals, this->n_items() - 1);
                for (uint32_t to = 0; to < BLOCKS; to++) send4(shared + L::NEXT, i, next_there(), to);
            }
        }
        barrier_wait(next_there(), round & 1);
        uint32_t next = load4(shared + L::NEXT);
        __syncwarp();
        return next;
    }

    __device__ __forceinline__ void find(Search* search) const {
        const AttnParams& p = params.attn;
        uint32_t lane = threadIdx.x % 32, batch = 0, round = 0;
        for (uint32_t i = blockIdx.x / BLOCKS; i < this->n_items(); i = next_item(round++)) {
            Item item = this->item(i);
            uint32_t phase = p.phases[item.head], stride = p.mask.stride;
            // Of the whole cluster: its blocks go through the same keys.
            uint32_t first_query = item.first_query - rank * L::BLOCK_QUERIES;
            uint32_t first = max(first_query, rows().pos), last = min(first_query + L::ITEM_QUERIES, rows().end()) - 1;
            __syncwarp();
            if (lane == 0) {
                search->phase = phase;
                search->residue = stride > 0 ? (stride - phase % stride) % stride : 0;
                search->runs = Runs(p, first, last, &search->residue);
                search->item = item;
            }
            __syncwarp();
            for (uint32_t tile = 0; tile < search->runs.n_tiles(); tile += BATCH, batch++) {
                this->sources().wait_empty(batch);
                find_tile(*search, batch, tile + lane);
                __syncwarp();
                if (lane == 0) barrier_arrive(this->sources().full(batch));
            }
        }
        this->sources().wait_empty(batch);
        if (lane == 0) {
            Item{NO_HEAD, 0}.store(batch_item(batch));
            barrier_arrive(this->sources().full(batch));
        }
    }

    // --- The warp that puts runs together that end before 64 tokens, or change from one segment of the cache to another.
    // What nobody holds is zeros: an unseen value weighs nothing, and must be a number for that.

    // Where a key or value lies; null: nowhere.
    __device__ __forceinline__ const uint8_t* find_row(uint32_t kv_head, uint32_t position, bool is_value) const {
        for (uint32_t s = 0; s < seq().n_segments; s++) {
            // They follow each other.
            if (position >= seq().segments[s].end_position(rows())) continue;
            uint32_t row = map_row(s, kv_head, position) + (is_value ? params.attn.shape.block_size : 0);
            return seq().segments[s].blocks + uint64_t(row) * DIM * 2;
        }
        return nullptr;
    }

    __device__ __forceinline__ void assemble_run(uint32_t to, uint32_t kv_head, uint32_t key, bool is_value) const {
#pragma unroll 1
        for (uint32_t row = threadIdx.x % 32; row < RUN; row += 32) {
            const uint8_t* from = key == NO_RUN ? nullptr : find_row(kv_head, key + row, is_value);
#pragma unroll 1
            for (uint32_t chunk = 0; chunk < DIM / 8; chunk++) {
                const void* bytes = from ? from + chunk * 16 : seq().segments[0].blocks;
                copy16(to + chunk / 8 * L::HALF_BYTES + swizzled(row, chunk % 8), bytes, from);
            }
        }
    }

    __device__ __forceinline__ void assemble() const {
        PatchRing patches = this->patches();
        for (uint32_t n = 0;; n++) {
            patches.wait_full(n);
            Patch patch = Patch::load(shared + L::PATCH);
            if (patch.head == NO_HEAD) return;
            uint32_t kv_head = this->kv_head(patch.head);
#pragma unroll 1
            for (uint32_t r = 0; r < 2; r++) {
                assemble_run(patch.to + r * RUN * SWIZZLE_BYTES, kv_head, patch.source.key(r), patch.is_value);
            }
            copies_end();
            copies_wait<0>();
            fence_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0) {
                barrier_arrive(patch.full);
                barrier_arrive(patches.empty(n));
            }
        }
    }

    // --- The thread that brings queries, keys and values, for which the copy engine works.

    // The queries of an item, once there is room. Rows outside the step are zeros.
    __device__ __forceinline__ void bring_queries(const Item& item, uint32_t round) const {
        Ring queries = this->queries();
        uint32_t stage = round % Ring::STAGES, full = queries.full(round);
        queries.wait_empty(round);
        item.store(shared + L::ITEMS + stage * 8);
        if (item.head == NO_HEAD) return barrier_arrive(full);
        barrier_arrive_expecting(full, CONSUMERS * L::QUERY_BYTES);
#pragma unroll
        for (uint32_t group = 0; group < CONSUMERS; group++) {
            uint32_t row = item.first_query - rows().pos + group * WARPGROUP_QUERIES;
#pragma unroll
            for (uint32_t half = 0; half < L::HALVES; half++) {
                uint32_t to = shared + (stage * CONSUMERS + group) * L::QUERY_BYTES + half * WARPGROUP_QUERIES * SWIZZLE_BYTES;
                copy_box(to, &params.queries, item.head * DIM + half * 64, row, full);
            }
        }
    }

    // The keys or values of a tile, once there is room: each block copies a run for all of them.
    __device__ __forceinline__ void
    bring_runs(Source source, uint32_t tile, bool is_value, uint32_t head, uint32_t& n_patches) const {
        Ring ring = is_value ? this->values() : this->keys();
        uint32_t stage = tile % Ring::STAGES, full = ring.full(tile);
        uint32_t to = shared + (is_value ? L::VALUES : L::KEYS) + stage * L::TILE_BYTES;
        ring.wait_empty(tile);
        if (!is_value) store16(shared + L::RUNS + stage * 16, {source.key(0), source.key(1), source.seen(), 0});
        if (source.segment(0) == NO_SEGMENT || source.segment(1) == NO_SEGMENT) {
            return pass_on({source, to, full, is_value, head}, n_patches);
        }
        barrier_arrive_expecting(full, L::TILE_BYTES);
        static_assert(BLOCKS == RUNS_A_TILE);
        uint32_t row = source.row(rank) + (is_value ? params.attn.shape.block_size : 0);
        const TensorMap* map = params.maps + source.segment(rank);
#pragma unroll
        for (uint32_t half = 0; half < L::HALVES; half++) {
            uint32_t at = to + half * L::HALF_BYTES + rank * RUN * SWIZZLE_BYTES;
            copy_box_to((1 << BLOCKS) - 1, at, map, half * 64, row, full);
        }
    }

    __device__ __forceinline__ void pass_on(const Patch& patch, uint32_t& n_patches) const {
        this->patches().wait_empty(n_patches);
        patch.store(shared + L::PATCH);
        barrier_arrive(this->patches().full(n_patches++));
    }

    // In the order in which they are wanted: the keys of an item's next tile before the values of this one.
    __device__ __forceinline__ void bring() const {
        bool has_ended = true;
        for (uint32_t batch = 0, tile = 0, round = 0, n_patches = 0;; batch++) {
            this->sources().wait_full(batch);
            Item item = Item::load(batch_item(batch));
            if (has_ended) bring_queries(item, round++);
            if (item.head == NO_HEAD) return pass_on({{0}, 0, 0, 0, NO_HEAD}, n_patches);
            has_ended = false;
            for (uint32_t i = 0; i < BATCH && !has_ended; i++, tile++) {
                Source source = this->source(batch, i);
                if (source.seen() & NEARS_END) barrier_arrive_at(next_wanted(), 0);
                bring_runs(source, tile, false, item.head, n_patches);
                if (i > 0) bring_runs(this->source(batch, i - 1), tile - 1, true, item.head, n_patches);
                has_ended = source.seen() & ENDS_ITEM;
                if (has_ended || i + 1 == BATCH) bring_runs(source, tile, true, item.head, n_patches);
            }
            // The batch has been read once nothing of it is to be put together any more.
            this->patches().wait_empty(n_patches);
            barrier_arrive(this->sources().empty(batch));
        }
    }
};
