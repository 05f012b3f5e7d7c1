/* The gear scanner: bytes in, cut positions out. C11; no I/O, no allocation, no state but the caller's. */

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) /* clang says so, too */
#define WITH_AVX2
#include <immintrin.h>
#endif

/* Cuts data[0..n) at content-defined boundaries. With `length` bytes since the last cut, for each byte b:
 *
 *     hash = 2 * hash + gear[b]  (modulo 2^64),  length = length + 1
 *     cut after b  if  length >= min_bytes and the low mask_bits bits of hash are 0,  or  length == max_bytes
 *     after a cut  hash = 0,  length = 0
 *
 * Requires 1 <= mask_bits <= 32 and mask_bits <= min_bytes <= max_bytes < 2^24; gear has 256 values.
 * Returns the number of cuts. cuts[] then holds, for each cut, the bytes of data before it, ascending, from 1 to n.
 * Returns -1, with nothing changed, when capacity is below n / min_bytes rounded up: the most cuts that are possible.
 * *hash and *length are 0 before a stream's first buffer, and carry the open chunk from one buffer to the next. *length
 * is exact, and below max_bytes. *hash is only for the next call of the same function: the faster functions leave out
 * of it what can decide no cut. At the end of the stream the caller makes the last cut, if *length is not 0.
 */
ptrdiff_t cgear_cut_plain(const uint64_t *gear, size_t min_bytes, unsigned mask_bits, size_t max_bytes, uint64_t *hash,
                          size_t *length, const uint8_t *data, size_t n, size_t *cuts, size_t capacity)
{
    const uint64_t mask = ((uint64_t)1 << mask_bits) - 1;
    uint64_t h = *hash;
    size_t open = *length, count = 0;
    if (capacity < n / min_bytes + (n % min_bytes != 0)) return -1;
    for (size_t i = 0; i < n; i++) {
        h = (h << 1) + gear[data[i]];
        open++;
        if ((open >= min_bytes && (h & mask) == 0) || open == max_bytes) {
            cuts[count++] = i + 1;
            h = 0;
            open = 0;
        }
    }
    *hash = h;
    *length = open;
    return (ptrdiff_t)count;
}

/* --- the same cuts, faster --- */

/* A scan returns the position after the first byte in data[at..limit) that leaves the low mask_bits bits of the hash 0,
 * or 0 if there is no such byte. On entry *hash is the hash of the bytes before `at`; the chunk has at least the last
 * mask_bits - 1 of them. If there is no such byte, *hash is left as that of the bytes before `limit`. Only the AVX2
 * scan uses `low`.
 */
typedef size_t scan(const uint64_t *gear, const uint8_t *low, unsigned mask_bits, uint64_t *hash, const uint8_t *data,
                    size_t at, size_t limit);

/* Four bytes a turn. Byte by byte the same loop ran at 1.3 to 2.9 GB/s, depending on the compiler's options and on the
 * code around it; this one runs at 2.7 to 2.9 with all of them. Eight bytes a turn gained little more.
 */
static size_t fires_after(const uint64_t *gear, const uint8_t *low, unsigned mask_bits, uint64_t *hash,
                          const uint8_t *data, size_t at, size_t limit)
{
    const uint64_t mask = ((uint64_t)1 << mask_bits) - 1;
    uint64_t h = *hash;
    (void)low;
    for (; limit - at >= 4; at += 4) {
        h = (h << 1) + gear[data[at]];
        if ((h & mask) == 0) return at + 1;
        h = (h << 1) + gear[data[at + 1]];
        if ((h & mask) == 0) return at + 2;
        h = (h << 1) + gear[data[at + 2]];
        if ((h & mask) == 0) return at + 3;
        h = (h << 1) + gear[data[at + 3]];
        if ((h & mask) == 0) return at + 4;
    }
    for (; at < limit; at++) {
        h = (h << 1) + gear[data[at]];
        if ((h & mask) == 0) return at + 1;
    }
    *hash = h;
    return 0;
}

/* The last k + 1 bytes decide bit k of the hash, so the mask_bits bytes up to min_bytes decide the first test of a
 * chunk. The bytes before these are skipped. These are hashed, which pushes out whatever the hash was. From the last of
 * them on, each byte is tested, up to max_bytes or the end of data.
 */
static ptrdiff_t cut_by(scan *scan_for, const uint64_t *gear, const uint8_t *low, size_t min_bytes, unsigned mask_bits,
                        size_t max_bytes, uint64_t *hash, size_t *length, const uint8_t *data, size_t n, size_t *cuts,
                        size_t capacity)
{
    const size_t skipped = min_bytes - mask_bits;
    uint64_t h = *hash;
    size_t at = 0, count = 0;
    size_t begin = 0 - *length; /* of the open chunk; wraps if an earlier buffer has it, and at - begin wraps back */
    if (capacity < n / min_bytes + (n % min_bytes != 0)) return -1;
    for (;;) {
        const size_t open = at - begin, left = n - at, room = max_bytes - open;
        const size_t limit = at + (room < left ? room : left);
        if (open < skipped) at += skipped - open < left ? skipped - open : left;
        while (at < n && at - begin < min_bytes - 1) h = (h << 1) + gear[data[at++]];

        const size_t cut = scan_for(gear, low, mask_bits, &h, data, at, limit);
        at = cut ? cut : limit;
        if (!cut && at - begin < max_bytes) break;
        cuts[count++] = at;
        begin = at;
    }
    *hash = h;
    *length = n - begin;
    return (ptrdiff_t)count;
}

ptrdiff_t cgear_cut(const uint64_t *gear, size_t min_bytes, unsigned mask_bits, size_t max_bytes, uint64_t *hash,
                    size_t *length, const uint8_t *data, size_t n, size_t *cuts, size_t capacity)
{
    return cut_by(fires_after, gear, NULL, min_bytes, mask_bits, max_bytes, hash, length, data, n, cuts, capacity);
}

/* --- with AVX2: a sieve first ---
 *
 * The low 8 bits of the hash are the sum of 2^k low[data[at - k]] for k = 0 to 7, where low[] has the low bytes of the
 * gear values. The sum is computed for 32 positions at once, in bytes that wrap as the hash does. Only positions where
 * it is 0, 1 in 256, are tested for all mask_bits bits. A mask of fewer than 8 bits is moved to the top of the byte.
 *
 * A block goes through several short loops, by way of the level-1 cache, where a position's neighbours are one load
 * away. Shuffling them from register to register took longer, and so did a single loop: its chain of dependent steps
 * was longer than the processor looks ahead.
 */

#ifdef WITH_AVX2

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((target("avx2"), always_inline))

enum {
    BLOCK = 1024, /* positions a block; the first EARLIER ones are only there for the sums of the others */
    EARLIER = 8,  /* at least 7 */
    STEP = 64,    /* divides BLOCK */
    PADDING = 32, /* before a block's first position, for the loads that begin there; decides nothing */
    CROWD = 64,   /* a block with this many is scanned byte by byte: hostile bytes may all pass the sieve */
};

AVX2_INLINE __m256i load(const uint8_t *from) { return _mm256_loadu_si256((const void *)from); }
AVX2_INLINE void store(uint8_t *to, __m256i bytes) { _mm256_storeu_si256((void *)to, bytes); }
AVX2_INLINE __m256i twice(__m256i bytes) { return _mm256_add_epi8(bytes, bytes); }

/* row[] of the low 4 bits of each byte; 0 if the byte's bit 7 is set. */
AVX2_INLINE __m256i of_16(const uint8_t *row, __m256i bytes)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)row)), bytes);
}

/* low[] of each byte: its low 4 bits look up 16 rows, and its bits 6 to 4 select one of these. Each of these bits is
 * moved to bit 7, which a blend tests. Half of the rows are for bytes with bit 7, which text does not have.
 */
AVX2_INLINE __m256i low_of(const uint8_t *low, __m256i bytes, int bit_7)
{
    const __m256i flipped = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
    const __m256i bit_6 = twice(bytes), bit_5 = twice(bit_6), bit_4 = twice(bit_5);
    __m256i found[8];
    for (int i = 0; i < 8; i++) {
        found[i] = of_16(low + 16 * i, bytes);
        if (bit_7) found[i] = _mm256_or_si256(found[i], of_16(low + 128 + 16 * i, flipped));
    }
    for (int i = 0; i < 8; i += 2) found[i] = _mm256_blendv_epi8(found[i], found[i + 1], bit_4);
    for (int i = 0; i < 8; i += 4) found[i] = _mm256_blendv_epi8(found[i], found[i + 2], bit_5);
    return _mm256_blendv_epi8(found[0], found[4], bit_6);
}

AVX2_INLINE void look_up(const uint8_t *low, const uint8_t *data, size_t n, int bit_7, uint8_t *lows)
{
    for (size_t i = 0; i < n; i += 32) store(lows + i, low_of(low, load(data + i), bit_7));
}

/* One bit for each position where sums[0] + 16 * sums[-4] is 0. As sums[] cover 4 positions, that is the sum over 8. */
AVX2_INLINE uint32_t zeros(const uint8_t *sums)
{
    const __m256i minus_16_times = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -16, -32, -48, -64, -80, -96, -112, -128, 112, 96, 80, 64, 48, 32, 16));
    const __m256i wanted = _mm256_shuffle_epi8(minus_16_times, _mm256_and_si256(load(sums - 4), _mm256_set1_epi8(15)));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(load(sums), wanted));
}

/* Writes to places[] each position of data[EARLIER..n) where the low bits of the hash are 0. Returns how many. */
AVX2 static size_t sieve(const uint8_t *low, const uint8_t *data, size_t n, uint16_t *places)
{
    uint8_t padded_lows[PADDING + BLOCK], padded_sums[PADDING + BLOCK];
    uint8_t *const lows = padded_lows + PADDING, *const sums = padded_sums + PADDING;
    __m256i any = _mm256_setzero_si256();
    size_t count = 0;
    store(padded_lows, any);
    store(padded_sums, any);

    for (size_t i = 0; i < n; i += 32) any = _mm256_or_si256(any, load(data + i));
    if (_mm256_movemask_epi8(any))
        look_up(low, data, n, 1, lows);
    else
        look_up(low, data, n, 0, lows);

    for (size_t i = 0; i < n; i += 32) {
        const __m256i two = _mm256_add_epi8(load(lows + i), twice(load(lows + i - 1)));
        const __m256i earlier_two = _mm256_add_epi8(load(lows + i - 2), twice(load(lows + i - 3)));
        store(sums + i, _mm256_add_epi8(two, twice(twice(earlier_two))));
    }

    for (size_t i = 0; i < n; i += STEP) {
        uint64_t found = zeros(sums + i) | (uint64_t)zeros(sums + i + 32) << 32;
        if (i == 0) found = found >> EARLIER << EARLIER;
        /* The first is always written, whether it exists or not: a branch would be mispredicted too often. */
        places[count] = (uint16_t)(i + (size_t)__builtin_ctzll(found | (uint64_t)1 << 63));
        count += found != 0;
        for (found &= found - 1; found; found &= found - 1)
            places[count++] = (uint16_t)(i + (size_t)__builtin_ctzll(found));
    }
    return count;
}

/* The hash of n bytes, for small n. gcc unrolls no loop by itself. */
static inline uint64_t hash_of(const uint64_t *gear, const uint8_t *data, unsigned n)
{
    uint64_t h = 0;
#pragma GCC unroll 8
    for (unsigned i = 0; i < n; i++) h = (h << 1) + gear[data[i]];
    return h;
}

AVX2 static size_t fires_after_avx2(const uint64_t *gear, const uint8_t *low, unsigned mask_bits, uint64_t *hash,
                                    const uint8_t *data, size_t at, size_t limit)
{
    const uint64_t mask = ((uint64_t)1 << mask_bits) - 1;
    uint16_t places[BLOCK];
    size_t cut;
    /* The bytes that decide the first positions may lie in an earlier buffer, of which only *hash is left. */
    const size_t until = limit < PADDING ? limit : PADDING;
    if (at < until) {
        if ((cut = fires_after(gear, NULL, mask_bits, hash, data, at, until)) != 0) return cut;
        at = until;
    }
    if (limit - at < STEP) return fires_after(gear, NULL, mask_bits, hash, data, at, limit);
    do {
        const uint8_t *const block = data + at - EARLIER;
        const size_t left = limit - at + EARLIER, n = left < BLOCK ? left - left % STEP : BLOCK;
        const size_t count = sieve(low, block, n, places);
        if (count >= CROWD) {
            *hash = hash_of(gear, data + at - mask_bits, mask_bits);
            if ((cut = fires_after(gear, NULL, mask_bits, hash, data, at, at + n - EARLIER)) != 0) return cut;
        } else {
            for (size_t i = 0; i < count; i++) {
                const uint8_t *const after = block + places[i] + 1;
                if ((hash_of(gear, after - mask_bits, mask_bits) & mask) == 0) return (size_t)(after - data);
            }
        }
        at += n - EARLIER;
    } while (limit - at >= STEP);
    *hash = hash_of(gear, data + at - mask_bits, mask_bits);
    return fires_after(gear, NULL, mask_bits, hash, data, at, limit);
}

int cgear_has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }

#else

#define fires_after_avx2 fires_after /* so that what follows compiles everywhere; it is never called */

int cgear_has_avx2(void) { return 0; }

#endif

/* Returns -2, with nothing changed, if cgear_has_avx2() is 0: the processor or the build lacks AVX2. */
ptrdiff_t cgear_cut_avx2(const uint64_t *gear, size_t min_bytes, unsigned mask_bits, size_t max_bytes, uint64_t *hash,
                         size_t *length, const uint8_t *data, size_t n, size_t *cuts, size_t capacity)
{
    uint8_t low[256];
    if (!cgear_has_avx2()) return -2;
    if (n < 96) return cgear_cut(gear, min_bytes, mask_bits, max_bytes, hash, length, data, n, cuts, capacity);
    for (int i = 0; i < 256; i++) low[i] = (uint8_t)(gear[i] << (mask_bits < 8 ? 8 - mask_bits : 0));
    return cut_by(fires_after_avx2, gear, low, min_bytes, mask_bits, max_bytes, hash, length, data, n, cuts, capacity);
}
