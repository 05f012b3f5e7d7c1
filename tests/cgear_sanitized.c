/* Runs cgear.c under the sanitizers, on buffers from the heap with no byte to spare. test_cgear.py builds and runs it.
 *
 *     cgear_sanitized ROUNDS      compares all functions over made data, parameters, gear tables and splits
 *     cgear_sanitized GEAR FILE   feeds FILE by 1, 37, 255 and 65536 bytes and whole, and prints the chunks' lengths
 */
#include "cgear.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t cut_function(const uint64_t *, size_t, unsigned, size_t, uint64_t *, size_t *, const uint8_t *,
                               size_t, size_t *, size_t);

struct params {
    size_t min_bytes;
    unsigned mask_bits;
    size_t max_bytes;
};

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *room(size_t size)
{
    void *p = malloc(size);
    if (!p && size) fail("no memory");
    return p;
}

/* Feeds data in pieces of steps[i % steps_count] bytes; appends the chunks' lengths, returns their number. */
static size_t chunks(cut_function *cut, const uint64_t *gear, struct params p, const uint8_t *data, size_t n,
                     const size_t *steps, size_t steps_count, size_t *lengths)
{
    uint64_t hash = 0;
    size_t length = 0, found = 0, held = 0, most = 0;
    uint8_t *buffer = NULL;
    size_t *cuts = NULL;
    for (size_t at = 0, i = 0; at < n; i++) {
        size_t step = steps[i % steps_count];
        if (step > n - at) step = n - at;
        if (step != held || !buffer) {
            free(buffer);
            free(cuts);
            held = step;
            most = step / p.min_bytes + (step % p.min_bytes != 0);
            buffer = room(step);
            cuts = room(most * sizeof *cuts);
        }
        if (step) memcpy(buffer, data + at, step);
        size_t before = length, begin = 0;
        if (most > 0 &&
            cut(gear, p.min_bytes, p.mask_bits, p.max_bytes, &hash, &length, buffer, step, cuts, most - 1) != -1)
            fail("a capacity too small was taken");
        ptrdiff_t count = cut(gear, p.min_bytes, p.mask_bits, p.max_bytes, &hash, &length, buffer, step, cuts, most);
        if (count < 0) fail("a capacity that does was refused");
        for (ptrdiff_t c = 0; c < count; c++) {
            if (cuts[c] <= begin || cuts[c] > step) fail("a cut out of order");
            lengths[found++] = before + cuts[c] - begin;
            before = 0;
            begin = cuts[c];
        }
        if (length != before + step - begin) fail("the length left behind is wrong");
        at += step;
    }
    if (length) lengths[found++] = length;
    free(buffer);
    free(cuts);
    return found;
}

static void compare(const uint64_t *gear, struct params p, const uint8_t *data, size_t n, const size_t *steps,
                    size_t steps_count, size_t *plain, size_t *fast, size_t expected)
{
    if (chunks(cgear_cut_plain, gear, p, data, n, steps, steps_count, fast) != expected ||
        memcmp(plain, fast, expected * sizeof *plain) != 0)
        fail("the plain loop depends on the buffers");
    cut_function *const faster[] = {cgear_cut, cgear_cut_avx2};
    for (int i = 0; i < (cgear_has_avx2() ? 2 : 1); i++) {
        if (chunks(faster[i], gear, p, data, n, steps, steps_count, fast) != expected ||
            memcmp(plain, fast, expected * sizeof *plain) != 0) {
            fprintf(stderr, "min %zu, mask %u, max %zu, %zu bytes: ", p.min_bytes, p.mask_bits, p.max_bytes, n);
            fail(i ? "AVX2 differs" : "the two differ");
        }
    }
}

static uint64_t random_state = 1;

static uint64_t random64(void)
{
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static size_t below(size_t bound) { return (size_t)(random64() % bound); }

static void compare_made(int rounds)
{
    enum { MOST = 5000, STEPS = 4 };
    size_t *plain = room(MOST * sizeof *plain), *fast = room(MOST * sizeof *fast);
    for (int round = 0; round < rounds; round++) {
        /* A table of few bits makes the hash 0 as soon as the last of them is pushed out: also for masks of 32 bits.
           One without the low 8 bits has every byte pass AVX2's sieve. */
        uint64_t gear[256];
        enum { SPARSE, FULL, HIGH, KINDS };
        const int kind = round % KINDS;
        for (int i = 0; i < 256; i++)
            gear[i] = kind == SPARSE ? (i % 8 ? 0 : (uint64_t)1 << below(34)) : random64() << (kind == HIGH ? 8 : 0);

        struct params p = {.mask_bits = 1 + (unsigned)below(kind == SPARSE ? 32 : kind == HIGH ? 17 : 9)};
        p.min_bytes = p.mask_bits + below(below(2) ? 3 : 200);
        p.max_bytes = p.min_bytes + below(below(2) ? 3 : below(2) ? 900 : 4000);

        const size_t n = below(MOST + 1);
        uint8_t *data = room(n);
        for (size_t i = 0; i < n; i++) data[i] = (uint8_t)random64();

        const size_t whole = n ? n : 1;
        const size_t expected = chunks(cgear_cut_plain, gear, p, data, n, &whole, 1, plain);
        compare(gear, p, data, n, &whole, 1, plain, fast, expected);
        size_t steps[STEPS] = {1 + below(3), below(40), below(p.min_bytes + 2), below(MOST)};
        compare(gear, p, data, n, steps, STEPS, plain, fast, expected);
        free(data);
    }
    free(plain);
    free(fast);
}

static uint8_t *contents(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) fail("the file can't be read");
    const long size = ftell(file);
    rewind(file);
    *n = (size_t)size;
    uint8_t *data = room(*n);
    if (fread(data, 1, *n, file) != *n) fail("the file can't be read");
    fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    if (argc == 2) {
        compare_made(atoi(argv[1]));
        return 0;
    }
    size_t gear_bytes, n;
    uint64_t gear[256];
    uint8_t *table = contents(argv[1], &gear_bytes), *data = contents(argv[2], &n);
    if (gear_bytes != sizeof gear) fail("the gear table is not of 256 values");
    memcpy(gear, table, sizeof gear);

    const struct params p = {2048, 14, 65536};
    size_t *plain = room((n / p.min_bytes + 1) * sizeof *plain), *fast = room((n / p.min_bytes + 1) * sizeof *fast);
    const size_t steps[] = {n ? n : 1, 65536, 255, 37, 1};
    const size_t expected = chunks(cgear_cut_plain, gear, p, data, n, steps, 1, plain);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        compare(gear, p, data, n, steps + i, 1, plain, fast, expected);
    for (size_t i = 0; i < expected; i++) printf("%zu\n", plain[i]);
    free(table);
    free(data);
    free(plain);
    free(fast);
    return 0;
}
