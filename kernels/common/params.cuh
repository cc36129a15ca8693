// The parameters of the kernels, one struct a kernel, as src/backend/cuda/params.rs has them. Pointers are to device
// memory; activations are rows of f32.
#pragma once
#include "mask.cuh"

enum KvType : uint32_t { KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2, KV_Q8 = 3 };
enum Pairing : uint32_t { PAIRING_ADJACENT = 0, PAIRING_HALVES = 1 };

// Shape of the cache blocks of a layer. A block holds block_size keys as rows of head_dim elements, then as many
// values; 8-bit ones are followed by the f16 scales of all keys, then of all values.
struct KvShape {
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t block_size;
    uint32_t type;

    LG_FN uint32_t elem_bytes() const { return type == KV_F32 ? 4 : type == KV_Q8 ? 1 : 2; }
    LG_FN uint64_t block_bytes() const {
        return uint64_t(2) * block_size * head_dim * elem_bytes() + (type == KV_Q8 ? 4 * block_size : 0);
    }
};

// A matrix of (rows, cols). Quantised blocks of 32 elements are taken apart when they are uploaded: the quants of a
// row side by side, 16 or 32 bytes a block, and the f16 scales (and minima) of all blocks elsewhere.
struct Weight {
    const void* data;
    const void* scales;
    uint32_t rows;
    uint32_t cols;
};

struct EmbedParams {
    float* out;
    Weight table;
    const uint32_t* tokens;
    float scale;
    uint32_t unused;
};
static_assert(sizeof(EmbedParams) == 48);

// Sessions, or copies, of one launch.
constexpr uint32_t MAX_PARTS = 16;

struct RopeTableParams {
    float* out;
    const float* inv_freq;
    uint32_t n_pairs;
    float attention_factor;
    const StepRows* rows[MAX_PARTS];  // of every session
};
static_assert(sizeof(RopeTableParams) == 152);

// How the heads of rows are turned to their positions.
struct Rope {
    const float* table;  // (rows, n_pairs, 2); null: not at all
    uint32_t n_pairs;
    uint32_t pairing;
};

struct AppendSeq {
    const StepRows* rows;
    uint8_t* blocks;
    BlockPlaces places;
};

struct RopeAppendParams {
    float* q;
    const float* k;
    const float* v;
    Rope rope;
    KvShape shape;
    uint32_t n_heads;
    uint32_t unused;
    AppendSeq seqs[MAX_PARTS];
};
static_assert(sizeof(RopeAppendParams) == 576);

struct CopyPart {
    uint8_t* to;
    const uint8_t* from;
    BlockPlaces to_places;
    BlockPlaces from_places;
    const StepRows* rows;
    const SlotMap* slots;
    KvShape shape;
    uint32_t pinned;     // whether pinned blocks are copied, or those of the rings
    uint32_t unused;
};

struct CopyBlocksParams {
    CopyPart parts[MAX_PARTS];
};
static_assert(sizeof(CopyBlocksParams) == 1408);

struct MoveBlocksParams {
    uint8_t* blocks;         // of n_bytes each
    uint8_t* held;           // in the host's memory, one block behind the other
    uint32_t n_bytes;
    uint32_t to_host;        // else from there
    uint32_t places[64];     // of the blocks that are held, counted in blocks
};
static_assert(sizeof(MoveBlocksParams) == 280);

enum SegmentEnd : uint32_t { END_FIXED = 0, END_BEFORE_STEP = 1, END_STEP = 2 };

struct Segment {
    const uint8_t* blocks;
    BlockPlaces places;
    uint32_t end_kind;
    uint32_t end;

    LG_FN uint32_t end_position(const StepRows& rows) const {
        return end_kind == END_FIXED ? end : end_kind == END_BEFORE_STEP ? rows.pos : rows.end();
    }
};

struct AttnSeq {
    const StepRows* rows;
    Segment segments[3];
    uint8_t* staged;         // blocks of the step, for a token that is appended and has no slot of its own; null: it has
    uint32_t n_segments;
    uint32_t stage_blocks;   // staged of each head
};

// What attention of single tokens appends before it looks at them: queries are not turned yet then.
struct Append {
    const float* k;          // null: all is in the cache
    const float* v;
    Rope rope;
};

struct AttnParams {
    float* out;
    const float* q;
    const float* sink_logits;   // null: none
    const uint32_t* phases;     // (n_heads)
    float* partials;            // (rows of the launch, n_heads, n_splits, head_dim + 2)
    uint32_t* arrivals;         // counters, zeros between launches: (rows of the launch, n_heads), or of items
    Append append;
    KvShape shape;
    Mask mask;
    uint32_t n_heads;
    uint32_t n_splits;          // at most 64
    float scale;
    float softcap;
    uint32_t first_token;       // of each session's tokens that this launch computes
    uint32_t n_tokens;          // tokens of each session that it computes
    uint32_t unused;
    AttnSeq seqs[MAX_PARTS];
};
static_assert(sizeof(AttnParams) == 2072);

// How the copy engine reads a segment's rows of head_dim elements; the driver makes it.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

// What outputs are rounded to.
enum OutType : uint32_t { OUT_F32 = 0, OUT_F16 = 1, OUT_BF16 = 2 };

struct AttnHopperParams {
    TensorMap maps[3];          // of the segments
    TensorMap queries;          // as HeadsParams has them: (n_tokens, n_heads * head_dim)
    AttnParams attn;            // of which q, scale and softcap are not read
    uint32_t heads_at_once;     // of n_heads
    uint32_t out_type;
};
static_assert(sizeof(AttnHopperParams) == 2688);

// The n largest elements of x (width) and their columns.
struct TopParams {
    float* values;       // (n)
    uint32_t* columns;   // (n)
    const float* x;
    uint32_t width;
    uint32_t n;          // at most 256
};
static_assert(sizeof(TopParams) == 32);

// Matrices that are multiplied with the same rows by one launch.
constexpr uint32_t MAX_PRODUCTS = 3;

struct MatvecPart {
    float* out;
    Weight w;
    const float* bias;     // null: none
    uint32_t first_tile;   // of all tiles of outputs; for matvec.cu a tile is a block of the grid, along x
    uint32_t unused;
};

struct MatvecParams {
    MatvecPart parts[MAX_PRODUCTS];
    const float* x;
    const float* norm;     // weight of x's norm; null: x is taken as it is
    float eps;
    uint32_t n_parts;
    uint32_t n_rows;
    uint32_t add;
    uint32_t is_glu;       // whether there are two parts, and silu(first) * second goes to the output of the first
    uint32_t n_tiles;      // of all parts, or of a gated unit
    uint32_t n_stages;     // of a warp of matvec_mma.cu
    uint32_t x_rows;       // rows of x that a block of it takes

    // The part that a tile belongs to.
    LG_FN const MatvecPart& part(uint32_t tile) const {
        uint32_t i = n_parts - 1;
        while (tile < parts[i].first_tile) i--;
        return parts[i];
    }
};
static_assert(sizeof(MatvecParams) == 192);

// Turns elements of 32 bits, a multiple of 8, into 16-bit floats: `scale` times each.
struct ConvertParams {
    void* out;
    const float* x;
    uint64_t n_elems;
    float scale;
    uint32_t unused;
};
static_assert(sizeof(ConvertParams) == 32);

// Turns the norm of rows into 16-bit floats.
struct NormParams {
    void* out;
    const float* x;
    const float* weight;
    uint32_t width;
    float eps;
};
static_assert(sizeof(NormParams) == 32);

// The same for silu(gate) * up; glu_silu leaves floats of 32 bits, where `out` may be `gate`.
struct GluParams {
    void* out;
    const float* gate;
    const float* up;
    uint64_t n_elems;
};
static_assert(sizeof(GluParams) == 32);

// A matrix as 16-bit floats.
struct DequantParams {
    void* out;
    Weight w;
};
static_assert(sizeof(DequantParams) == 32);

// out (n, m) = x (n, k) * transpose(w (m, k)), plus what it holds if `add`.
struct GemmParams {
    float* out;
    const void* x;
    const void* w;
    uint32_t n;
    uint32_t m;
    uint32_t k;
    uint32_t out_width;  // elements from a row of `out` to the next
    uint32_t add;
    uint32_t unused;
};
static_assert(sizeof(GemmParams) == 48);

// The same by Hopper's kernel, of 16-bit floats, in tiles of 256 rows and 256 outputs.
struct GemmHopperParams {
    TensorMap x;          // (n_rows, cols)
    TensorMap w[2];       // (n_outputs, cols); for gated units the gates', then what they gate
    void* out;            // (n_rows, n_outputs): floats of 32 bits, or gated units of 16
    uint32_t n_rows;
    uint32_t cols;
    uint32_t n_outputs;
    uint32_t out_width;   // elements from a row of `out` to the next
    uint32_t add;
    uint32_t unused;
};
static_assert(sizeof(GemmHopperParams) == 512);

// Queries, keys or values of one session's rows by Hopper's kernel, turned and rounded to the type of its cache.
enum HeadKind : uint32_t { HEAD_QUERY = 0, HEAD_KEY = 1, HEAD_VALUE = 2 };

struct HeadsParams {
    TensorMap x;            // (n_rows, cols)
    TensorMap w;            // (n_heads * head_dim, cols)
    void* q;                // where queries go, times the factor of the scores and log2(e): (n_rows, heads of all, head_dim)
    AppendSeq seq;          // where keys and values go
    KvShape shape;
    const float* rope;      // (n_rows, head_dim / 2, 2)
    uint32_t pairing;
    uint32_t kind;
    uint32_t n_rows;
    uint32_t cols;
    uint32_t n_heads;       // of this launch
    uint32_t first_head;    // which the first of them is of all
    uint32_t heads_of_all;
    float scale;
};
static_assert(sizeof(HeadsParams) == 384);

// out (n, width) += bias (width)
struct BiasParams {
    float* out;
    const float* bias;
    uint32_t n_rows;
    uint32_t width;
};
static_assert(sizeof(BiasParams) == 24);
