// Prints what kernels/common/slots.cuh and mask.cuh say, for tests/kernels.rs to compare. Standard input holds numbers:
// for "slots", the words of a map after their count, then KV heads, blocks; for "mask", the mask's seven numbers, a
// phase, and two positions; for "step", a row, tokens, a position, a block size and a number of blocks.
#include <cstdio>
#include <cstring>
#include <vector>

#include "mask.cuh"

static std::vector<uint32_t> numbers;
static size_t at = 0;
static uint32_t next() { return numbers[at++]; }

static void slots() {
    uint32_t n_words = next();
    std::vector<uint32_t> words(numbers.begin() + at, numbers.begin() + at + n_words);
    at += n_words;
    const SlotMap* map = reinterpret_cast<const SlotMap*>(words.data());
    uint32_t n_heads = next(), n_blocks = next();
    for (uint32_t head = 0; head < n_heads; head++) {
        for (uint32_t block = 0; block < n_blocks; block++) {
            printf("%u %u ", map->slot(head, block), unsigned(map->is_pinned(head, block)));
        }
    }
    printf("\n");
}

static void mask() {
    Mask m;
    uint32_t* fields[] = {&m.kind, &m.window_tokens, &m.sink_tokens, &m.block_size, &m.local_blocks, &m.sink_blocks, &m.stride};
    for (uint32_t* field : fields) *field = next();
    uint32_t phase = next(), first = next(), last = next();
    for (uint32_t j = 0; j <= last; j++) printf("%u ", unsigned(m.sees(last, j, phase)));
    printf("| ");
    uint32_t residue = m.stride ? (m.stride - phase % m.stride) % m.stride : 0;
    VisibleBlocks visible(m, first, last, &residue, m.stride ? 1 : 0);
    for (uint32_t i = 0; i < visible.count; i++) printf("%u ", visible[i]);
    printf("\n");
}

static void step() {
    StepRows rows;
    rows.row = next(), rows.n_tokens = next(), rows.pos = next();
    uint32_t block_size = next(), n_blocks = next();
    printf("%u %u\n", rows.last_block(block_size), rows.first_block(block_size, n_blocks));
}

int main(int, char** args) {
    uint32_t number;
    while (scanf("%u", &number) == 1) numbers.push_back(number);
    while (at < numbers.size()) {
        if (!strcmp(args[1], "slots")) slots();
        if (!strcmp(args[1], "mask")) mask();
        if (!strcmp(args[1], "step")) step();
    }
}
