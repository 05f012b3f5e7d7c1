/* The gear scanner: bytes in, cut positions out. C11; no I/O, no memory of its own, no state but the caller's. */

#include <stddef.h>
#include <stdint.h>

/* Cuts data[0..n) at content-defined boundaries. With `length` bytes since the last cut, for each byte b:
 *
 *     hash = 2 * hash + gear[b]  (modulo 2^64),  length = length + 1
 *     cut after b  if  length >= min_bytes and the low mask_bits bits of hash are 0,  or  length == max_bytes
 *     after a cut  hash = 0,  length = 0
 *
 * Holds for 1 <= mask_bits <= 32 and mask_bits <= min_bytes <= max_bytes < 2^24; gear has 256 values.
 * Returns the number of cuts; cuts[] then holds for each the bytes of data before it, ascending, from 1 to n. Returns
 * -1, with nothing touched, when capacity is below n / min_bytes rounded up: the most cuts there can be.
 * *hash and *length are 0 before a stream's first buffer, and hold the open chunk from one buffer to the next. *length
 * is exact, and below max_bytes. *hash is for the same function's next call alone: cgear_cut leaves out of it what can
 * decide no cut. The end of the stream is a cut that the caller makes, if *length is not 0.
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

/* The place after the first byte in data[at..limit) that leaves the low bits of the hash 0, or 0 if none does.
 *
 * Four bytes a turn: byte by byte the same loop ran at 1.3 to 2.9 GB/s, as the compiler's options and the code around
 * it changed; so it runs at 2.7 to 2.9 with all of them. Eight bytes a turn gained little more.
 */
static size_t fires_after(const uint64_t *gear, uint64_t mask, uint64_t *hash, const uint8_t *data, size_t at,
                          size_t limit)
{
    uint64_t h = *hash;
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

/* The same cuts, faster. Bit k of the hash is decided by the last k + 1 bytes, so the first test of a chunk, at
 * min_bytes, is decided by the mask_bits bytes up to there. What lies before these is skipped; these are hashed, and
 * push out whatever the hash was; from the last of these on, each byte is tested, up to max_bytes or the end of data.
 */
ptrdiff_t cgear_cut(const uint64_t *gear, size_t min_bytes, unsigned mask_bits, size_t max_bytes, uint64_t *hash,
                    size_t *length, const uint8_t *data, size_t n, size_t *cuts, size_t capacity)
{
    const uint64_t mask = ((uint64_t)1 << mask_bits) - 1;
    const size_t skipped = min_bytes - mask_bits;
    uint64_t h = *hash;
    size_t at = 0, count = 0;
    size_t begin = 0 - *length; /* of the open chunk; wraps where an earlier buffer has it, and at - begin wraps back */
    if (capacity < n / min_bytes + (n % min_bytes != 0)) return -1;
    for (;;) {
        const size_t open = at - begin, left = n - at, room = max_bytes - open;
        const size_t limit = at + (room < left ? room : left);
        if (open < skipped) at += skipped - open < left ? skipped - open : left;
        while (at < n && at - begin < min_bytes - 1) h = (h << 1) + gear[data[at++]];

        const size_t cut = fires_after(gear, mask, &h, data, at, limit);
        at = cut ? cut : limit;
        if (!cut && at - begin < max_bytes) break;
        cuts[count++] = at;
        begin = at;
    }
    *hash = h;
    *length = n - begin;
    return (ptrdiff_t)count;
}
