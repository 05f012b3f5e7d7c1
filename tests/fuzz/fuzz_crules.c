/* Every kernel of crules.c against its definition, on whatever libFuzzer makes up. tests/fuzz/fuzzing.py builds it; with
 * ALONE it is a program that makes up so many inputs by itself, for compilers without libFuzzer.
 *
 * An input is the rule, its numbers and the borders of the pieces, then steps that write the file: each a kind, a length
 * and a byte. Each piece is put on the heap with what the kernel needs before it, and not a byte more.
 */
#include "crules.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 4096, BORDERS = 6, BUZHASH = 0, GEAR, RABIN, AHEAD, FASTCDC, SUM, RULES };

typedef struct {
    unsigned kind;
    size_t window, min_bytes, mean_bytes, max_bytes;
    uint64_t divisor, remainder, mask, mask_large, polynomial;
    unsigned bits, capacity;
    uint32_t words32[256];
    uint64_t words[256], out[256], mod[256];
} rule;

/* --- the input, read from its front; 0 where it has ended */

typedef struct {
    const uint8_t *at, *end;
} input;

static size_t octet(input *in) { return in->at < in->end ? *in->at++ : 0; }

static uint64_t mixed(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void fail(const char *what)
{
    fprintf(stderr, "a kernel differs from its definition: %s\n", what);
    abort();
}

static unsigned degree(uint64_t polynomial)
{
    unsigned found = 0;
    while (polynomial >>= 1) found++;
    return found;
}

/* The remainder of the polynomial of n bytes, bit by bit. */
static uint64_t remainder_of(const uint8_t *data, size_t n, uint64_t polynomial)
{
    const unsigned top = degree(polynomial);
    uint64_t rest = 0;
    for (size_t bit = 0; bit < 8 * n; bit++) {
        rest = rest << 1 | ((uint64_t)data[bit / 8] >> (7 - bit % 8) & 1);
        if (rest >> top & 1) rest ^= polynomial;
    }
    return rest;
}

static void read_rule(input *in, rule *r)
{
    uint64_t state = octet(in);
    memset(r, 0, sizeof *r);
    for (int i = 0; i < 256; i++) {
        r->words[i] = mixed(&state);
        r->words32[i] = (uint32_t)r->words[i];
    }
    r->kind = (unsigned)(octet(in) % RULES);
    r->bits = 1 + (unsigned)(octet(in) % 6);
    r->capacity = 1 + (unsigned)(octet(in) % 5);
    r->window = r->kind == GEAR || r->kind == RABIN ? 64 : 1 + octet(in) % 70;
    r->min_bytes = r->window + octet(in) % 60;
    r->max_bytes = r->min_bytes + octet(in);
    r->divisor = 2 + octet(in) % 60;
    r->remainder = octet(in) % r->divisor;
    r->mask = mixed(&state) & mixed(&state) & mixed(&state) & mixed(&state);
    r->mask_large = r->mask & mixed(&state);
    if (r->kind == AHEAD) {
        r->min_bytes = 1 + octet(in) % 50;
        r->max_bytes = r->window + r->min_bytes + 1 + octet(in);
    }
    if (r->kind == FASTCDC) {
        r->min_bytes = 2 + 2 * (octet(in) % 20);
        r->mean_bytes = r->min_bytes + 2 * (octet(in) % 20);
        r->max_bytes = r->mean_bytes + 2 * (octet(in) % 40);
    }
    if (r->kind == RABIN) {
        const unsigned top = 8 + (unsigned)(octet(in) % 46);
        r->polynomial = (uint64_t)1 << top | (mixed(&state) & (((uint64_t)1 << top) - 1)) | 1;
        r->mask = ((uint64_t)1 << r->bits) - 1;
        for (unsigned byte = 0; byte < 256; byte++) {
            uint8_t last[64] = {(uint8_t)byte}, high[8];
            r->out[byte] = remainder_of(last, 64, r->polynomial);
            r->mod[byte] = (uint64_t)byte << top;
            for (int i = 0; i < 8; i++) high[i] = (uint8_t)(r->mod[byte] >> (56 - 8 * i));
            r->mod[byte] |= remainder_of(high, 8, r->polynomial);
        }
    }
}

/* --- the definitions: the length of the chunk that begins with data[0..n); for the sum, the cut within a file */

static uint32_t buz(const rule *r, const uint8_t *last)
{
    uint32_t hash = 0;
    for (size_t i = 0; i < r->window; i++) hash = (hash << 1 | hash >> 31) ^ r->words32[last[i]];
    return hash;
}

static int fires(const rule *r, const uint8_t *last)
{
    if (r->kind == BUZHASH || r->kind == AHEAD) return buz(r, last) % r->divisor == r->remainder;
    if (r->kind == RABIN) return (remainder_of(last, 64, r->polynomial) & r->mask) == 0;
    uint64_t hash = 0;
    for (size_t i = 0; i < 64; i++) hash = 2 * hash + r->words[last[i]];
    return (hash & r->mask) == 0;
}

static size_t chunk(const rule *r, const uint8_t *data, size_t n)
{
    const size_t most = n < r->max_bytes ? n : r->max_bytes;
    if (r->kind == FASTCDC) {
        uint64_t hash = 0;
        for (size_t i = r->min_bytes; i < most / 2 * 2; i++) {
            hash = 2 * hash + r->words[data[i]];
            if ((hash & (i < r->mean_bytes ? r->mask : r->mask_large)) == 0) return i;
        }
        return most;
    }
    for (size_t i = r->min_bytes; i <= most; i++) {
        if (r->kind == AHEAD ? i + r->window < most && fires(r, data + i) : fires(r, data + i - r->window)) return i;
    }
    return most;
}

/* The cuts of data[64..n), before which there are 64 zeros; holes are negative. */
static size_t cuts_by_sum(const rule *r, const uint8_t *data, size_t n, ptrdiff_t *cuts)
{
    size_t count = 0;
    for (size_t at = 64, run; at < n; at += run) {
        for (run = 0; at + run < n && data[at + run] == 0;) run++;
        if (run >= r->window) {
            if (at > 64 && (count == 0 || cuts[count - 1] != (ptrdiff_t)at)) cuts[count++] = (ptrdiff_t)at;
            cuts[count++] = -(ptrdiff_t)(at + run);
            continue;
        }
        run += run == 0;
        for (size_t end = at + 1; end <= at + run; end++) {
            uint32_t sums = 64 * 63 * 31;
            for (size_t i = 1; i <= 64; i++) sums += (uint32_t)i * data[end - i];
            if ((~sums & ((1u << r->bits) - 1)) == 0) cuts[count++] = (ptrdiff_t)end;
        }
    }
    if (count && (cuts[count - 1] == (ptrdiff_t)n || cuts[count - 1] == -(ptrdiff_t)n)) count--;
    return count;
}

/* --- the kernels */

static ptrdiff_t call(const rule *r, crules_piece *piece)
{
    const uint32_t window = (uint32_t)r->window, divisor = (uint32_t)r->divisor, left = (uint32_t)r->remainder;
    switch (r->kind) {
    case BUZHASH: return crules_buzhash(r->words32, window, r->min_bytes, r->max_bytes, divisor, left, piece);
    case AHEAD: return crules_buzhash_ahead(r->words32, window, r->min_bytes, r->max_bytes, divisor, left, piece);
    case GEAR: return crules_gear(r->words, r->mask, r->min_bytes, r->max_bytes, piece);
    case RABIN:
        return crules_rabin(r->out, r->mod, degree(r->polynomial) - 8, r->mask, r->min_bytes, r->max_bytes, piece);
    case FASTCDC:
        return crules_fastcdc(r->words, r->mask, r->mask_large, r->min_bytes, r->mean_bytes, r->max_bytes, piece);
    default: return crules_rolling_sum(r->bits, r->window, piece);
    }
}

static void *room(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p) abort();
    return p;
}

/* All cuts of the file but the one at its end, in pieces that end at borders[] and, the last, at n. */
static size_t cuts_by_kernel(const rule *r, const uint8_t *file, size_t begin, size_t n, const size_t *borders,
                             ptrdiff_t *cuts)
{
    const size_t window = r->kind == SUM ? 64 : r->kind == FASTCDC || r->kind == AHEAD ? 0 : r->window;
    crules_piece piece = {.capacity = r->capacity};
    size_t settled = begin, count = 0;
    for (int i = 0; i <= BORDERS; i++) {
        const size_t kept = settled < window ? 0 : settled - window, end = i < BORDERS ? borders[i] : n;
        uint8_t *const data = room(end - kept);
        ptrdiff_t *const found = room(r->capacity * sizeof *found);
        memcpy(data, file + kept, end - kept);
        piece.data = data;
        piece.n = end - kept;
        piece.settled = settled - kept;
        piece.last = i == BORDERS;
        piece.cuts = found;
        ptrdiff_t got;
        do {
            got = call(r, &piece);
            if (got < 0 || (size_t)got > r->capacity) fail("the number of cuts");
            for (ptrdiff_t k = 0; k < got; k++) {
                const ptrdiff_t cut = found[k] < 0 ? found[k] - (ptrdiff_t)kept : found[k] + (ptrdiff_t)kept;
                if (cut == (ptrdiff_t)begin || cut == (ptrdiff_t)n || -cut == (ptrdiff_t)n) continue;
                if (count && (cuts[count - 1] == cut || cuts[count - 1] == -cut)) continue; /* ends nothing */
                cuts[count++] = cut;
            }
        } while ((size_t)got == r->capacity);
        settled = kept + piece.settled;
        if (settled > end || (i == BORDERS && settled != n)) fail("what is settled");
        free(data);
        free(found);
    }
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static uint8_t file[64 + MOST_BYTES];
    static ptrdiff_t expected[2 * MOST_BYTES + 2], found[2 * MOST_BYTES + 2];
    size_t borders[BORDERS], count = 0;
    input in = {bytes, bytes + size};
    rule r;
    read_rule(&in, &r);
    const size_t begin = r.kind == SUM ? 64 : 0;
    size_t n = begin;
    memset(file, 0, 64);
    for (int i = 0; i < BORDERS; i++) borders[i] = octet(&in) * (1 + octet(&in) % 8);
    while (in.at < in.end && n < sizeof file) {
        const size_t kind = octet(&in) % 3, asked = octet(&in), left = sizeof file - n;
        uint64_t state = octet(&in);
        for (size_t end = n + (asked < left ? asked : left); n < end; n++)
            file[n] = (uint8_t)(kind == 0 ? mixed(&state) : kind == 1 ? 0 : state);
    }
    for (int i = 0; i < BORDERS; i++) {
        borders[i] += begin;
        if (borders[i] > n) borders[i] = n;
        if (i && borders[i] < borders[i - 1]) borders[i] = borders[i - 1];
    }
    if (r.kind == SUM)
        count = cuts_by_sum(&r, file, n, expected);
    else
        for (size_t at = 0; at < n && (at += chunk(&r, file + at, n - at)) < n;) expected[count++] = (ptrdiff_t)at;
    if (cuts_by_kernel(&r, file, begin, n, borders, found) != count) fail("how many cuts");
    if (memcmp(found, expected, count * sizeof *found) != 0) fail("a cut");
    return 0;
}

#ifdef ALONE
int main(int argc, char **argv)
{
    uint64_t state = 1;
    for (long left = argc > 1 ? strtol(argv[1], NULL, 10) : 1000; left > 0; left--) {
        uint8_t bytes[160];
        const size_t size = 30 + mixed(&state) % 130;
        for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)mixed(&state);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    return 0;
}
#endif
