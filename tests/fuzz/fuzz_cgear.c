/* Every kernel of cgear.c against its plain loop, on whatever libFuzzer makes up. tests/fuzz/fuzzing.py builds it.
 *
 * An input is a program that writes the data, so that a few bytes of it make chunks of any length: first the gear table,
 * the parameters and how the data comes in buffers, then steps, each a kind and its bytes. KERNELS names the functions.
 */
#include "cgear.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t kernel(const uint64_t *, size_t, unsigned, size_t, uint64_t *, size_t *, const uint8_t *, size_t,
                         size_t *, size_t);

static kernel *const kernels[] = {KERNELS};

enum { MOST_BYTES = 160000, MOST_CUTS = 1000, PATCH_BYTES = 14, BORDERS = 8 };

struct params {
    size_t min_bytes;
    unsigned mask_bits;
    size_t max_bytes;
};

/* --- the input, read from its front; 0 where it has ended */

struct input {
    const uint8_t *at, *end;
};

static size_t octet(struct input *in) { return in->at < in->end ? *in->at++ : 0; }

static size_t word(struct input *in)
{
    const size_t low = octet(in);
    return low | octet(in) << 8;
}

static uint64_t mixed(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void *room(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p) abort();
    return p;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

/* --- what it makes */

static void make_gear(uint64_t *gear, size_t kind)
{
    uint64_t state = 0x9E3779B97F4A7C15u + (kind == 2);
    for (int i = 0; i < 256; i++) gear[i] = mixed(&state);
    /* Few bits: the hash is 0 as soon as the last of them is pushed out, also with a mask of 32 bits. */
    if (kind == 1)
        for (int i = 0; i < 256; i++) gear[i] = i % 8 ? 0 : (uint64_t)1 << i % 34;
    /* No low bits for some bytes: whoever looks at the low byte of a hash first finds it 0 all along them. */
    if (kind == 3)
        for (int i = 0; i < 64; i++) gear[i] <<= 8;
}

/* The chunker's own parameters three times in four, else any that the contract allows. */
static struct params make_params(struct input *in)
{
    const size_t kind = octet(in), bits = octet(in), over_min = word(in), over_max = word(in);
    struct params p = {2048, 14, 65536};
    if (kind % 4 == 1) {
        p.mask_bits = 1 + (unsigned)(bits % 32);
        p.min_bytes = p.mask_bits + over_min % (kind < 128 ? 100 : 5000);
        p.max_bytes = p.min_bytes + over_max;
    }
    return p;
}

/* Bytes whose last `mask_bits` leave 0 in the hash: after a long enough chunk they cut it. Most tries find some, where
 * the mask is no wider than they are. */
static void make_patch(const uint64_t *gear, struct params p, uint64_t state, uint8_t *patch)
{
    const uint64_t mask = ((uint64_t)1 << p.mask_bits) - 1;
    uint64_t h = 0;
    for (int i = 0; i < PATCH_BYTES; i++) patch[i] = (uint8_t)mixed(&state);
    for (int i = 0; i < PATCH_BYTES - 2; i++) h = (h << 1) + gear[patch[i]];
    for (int pair = 0; pair < 1 << 16; pair++)
        if ((((((h << 1) + gear[pair >> 8]) << 1) + gear[pair & 255]) & mask) == 0) {
            patch[PATCH_BYTES - 2] = (uint8_t)(pair >> 8);
            patch[PATCH_BYTES - 1] = (uint8_t)pair;
            return;
        }
}

static size_t make_data(struct input *in, const uint64_t *gear, struct params p, uint8_t *data)
{
    /* A kernel may look ahead from each cut: where cuts are many, less data takes as long. */
    const size_t most = MOST_CUTS * p.min_bytes < MOST_BYTES ? MOST_CUTS * p.min_bytes : MOST_BYTES;
    size_t n = 0;
    while (in->at < in->end && n < most) {
        const size_t kind = octet(in), left = most - n;
        size_t size = kind % 5 == 4 ? PATCH_BYTES : kind % 5 == 0 ? octet(in) : word(in) >> kind / 5 % 8;
        if (kind >= 128 && kind % 5 != 0 && kind % 5 != 4) size = p.max_bytes - PATCH_BYTES + size % (2 * PATCH_BYTES);
        if (size > left) size = left;
        uint8_t patch[PATCH_BYTES];
        uint64_t state;
        switch (kind % 5) {
        case 0: /* bytes as they stand */
            for (size_t i = 0; i < size; i++) data[n + i] = (uint8_t)octet(in);
            break;
        case 1: /* one byte, many times */
            memset(data + n, (int)octet(in), size);
            break;
        case 2: /* noise, of all bytes or of some */
            state = octet(in);
            for (size_t i = 0, few = state % 2; i < size; i++) data[n + i] = (uint8_t)(mixed(&state) & (few ? 63 : 255));
            break;
        case 3: /* what was there before */
            if (n == 0) break;
            for (size_t back = 1 + word(in) % n, i = 0; i < size; i++) data[n + i] = data[n + i - back];
            break;
        default: /* a cut */
            state = octet(in);
            make_patch(gear, p, state, patch);
            memcpy(data + n, patch, size);
        }
        n += size;
    }
    return n;
}

/* --- what is held */

/* Appends the chunks' lengths of data fed in pieces that end at the borders; returns their number. */
static size_t chunks(kernel *cut, const uint64_t *gear, struct params p, const uint8_t *data, size_t n,
                     const size_t *borders, size_t borders_count, size_t *lengths)
{
    uint64_t hash = 0;
    size_t length = 0, found = 0, at = 0;
    for (size_t piece = 0; piece <= borders_count; piece++) {
        size_t end = piece < borders_count ? borders[piece] : n;
        if (end < at) end = at;
        const size_t step = end - at, most = step / p.min_bytes + (step % p.min_bytes != 0);
        uint8_t *buffer = room(step);
        size_t *cuts = room(most * sizeof *cuts), before = length, begin = 0;
        memcpy(buffer, data + at, step);
        if (most > 0) {
            const uint64_t hash_before = hash;
            if (cut(gear, p.min_bytes, p.mask_bits, p.max_bytes, &hash, &length, buffer, step, cuts, most - 1) != -1)
                fail("a capacity too small was taken");
            if (hash != hash_before || length != before) fail("a refused call changed something");
        }
        const ptrdiff_t count = cut(gear, p.min_bytes, p.mask_bits, p.max_bytes, &hash, &length, buffer, step, cuts, most);
        if (count < 0 || (size_t)count > most) fail("the number of cuts is none");
        for (ptrdiff_t c = 0; c < count; c++) {
            if (cuts[c] <= begin || cuts[c] > step) fail("a cut out of order");
            lengths[found++] = before + cuts[c] - begin;
            before = 0;
            begin = cuts[c];
        }
        if (length != before + step - begin || length >= p.max_bytes) fail("the length left behind is wrong");
        free(buffer);
        free(cuts);
        at = end;
    }
    if (length) lengths[found++] = length;
    return found;
}

/* Whether it says, by -2, that this processor lacks what it needs. */
static int absent(kernel *cut)
{
    const uint64_t gear[256] = {0};
    uint64_t hash = 0;
    size_t length = 0;
    return cut(gear, 1, 1, 1, &hash, &length, NULL, 0, NULL, 0) == -2;
}

static int ascending(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input in = {bytes, bytes + size};
    uint64_t gear[256];
    make_gear(gear, octet(&in) % 4);
    const struct params p = make_params(&in);
    size_t borders[BORDERS];
    const size_t borders_count = octet(&in) % (BORDERS + 1);
    for (size_t i = 0; i < borders_count; i++) borders[i] = word(&in) * 4 + octet(&in) % 4;

    uint8_t *data = room(MOST_BYTES);
    const size_t n = make_data(&in, gear, p, data), most = n / p.min_bytes + 1;
    for (size_t i = 0; i < borders_count; i++) borders[i] %= n + 1;
    qsort(borders, borders_count, sizeof *borders, ascending);

    size_t *plain = room(most * sizeof *plain), *found = room(most * sizeof *found);
    const size_t expected = chunks(cgear_cut_plain, gear, p, data, n, borders, 0, plain);
    size_t total = 0;
    for (size_t i = 0; i < expected; i++) total += plain[i];
    if (total != n) fail("the chunks' lengths are not those of the data");
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
        if (absent(kernels[k])) continue;
        for (size_t pieces = 0; pieces < 2; pieces++)
            if (chunks(kernels[k], gear, p, data, n, borders, pieces ? borders_count : 0, found) != expected ||
                memcmp(plain, found, expected * sizeof *plain) != 0) {
                fprintf(stderr, "kernel %zu, min %zu, mask %u, max %zu, %zu bytes\n", k, p.min_bytes, p.mask_bits,
                        p.max_bytes, n);
                fail("a kernel differs from the plain loop");
            }
    }
    free(data);
    free(plain);
    free(found);
    return 0;
}
