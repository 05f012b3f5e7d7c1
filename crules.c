/* The rules of other products: bytes in, cut positions out. C11; no I/O, no allocation, no state but the caller's.
 *
 * Each function cuts one file (or one stream that knows no files), given in as many pieces as the caller likes, by
 * calls with the same struct. Before a file's first call all of it is 0. Each call gets
 *
 *     data, n     bytes of the file. data[0..settled) were settled by earlier calls, and are there because later cuts
 *                 depend on them: at least the last `window` of them, or all since the file's beginning if these are
 *                 fewer. Each function says what its window is.
 *     last        1 if the file ends at n, else 0
 *     cuts        room for `capacity` cuts, 1 or more
 *
 * and returns the number of cuts in cuts[], each as the bytes of data before it, ascending, from `settled` to n. (The
 * first can be `settled` itself: then the chunk ends with the bytes of earlier calls.) It sets `settled` to the bytes
 * of data that no later cut comes before. If it returned `capacity`, it is to be called again for the rest. Otherwise
 * all of data is settled but for the bytes that are to be there again before those that follow, as the function says;
 * with `last` all of it is. The end of a file is not among the cuts: the caller ends the last chunk there.
 */

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data;
    size_t n, settled;
    int last;
    ptrdiff_t *cuts;
    size_t capacity;
    size_t open;   /* bytes of the open chunk that are settled */
    uint64_t hash; /* carried from call to call */
    int hole;      /* 1 if the open chunk is a hole */
} crules_piece;

/* --- rules by a hash of the last bytes: a cut falls after the first byte at which the chunk is at least min_bytes long
 *     and the hash of the last `window` bytes fires, or at max_bytes ---
 */

/* Returns the least position in [first..limit] before which the hash of the last bytes fires, or 0. The bytes of the
 * window before `first` are in data.
 */
typedef size_t scan(const void *rule, const uint8_t *data, size_t first, size_t limit);

/* All bytes are settled by each call. Requires 1 <= min_bytes <= max_bytes, and min_bytes >= window. */
static ptrdiff_t cut_by(scan *scan_for, const void *rule, size_t min_bytes, size_t max_bytes, crules_piece *piece)
{
    size_t at = piece->settled, open = piece->open, count = 0;
    while (count < piece->capacity) {
        const size_t left = piece->n - at, room = max_bytes - open;
        const size_t limit = at + (room < left ? room : left);
        const size_t first = at + (open < min_bytes ? min_bytes - open : 1);
        size_t cut = first <= limit ? scan_for(rule, piece->data, first, limit) : 0;
        if (cut == 0 && room <= left) cut = limit;
        if (cut == 0) {
            open += left;
            at = piece->n;
            break;
        }
        piece->cuts[count++] = (ptrdiff_t)(at = cut);
        open = 0;
    }
    piece->settled = at;
    piece->open = open;
    return (ptrdiff_t)count;
}

/* Buzhash: the exclusive or of the values of the last `window` bytes, the one of the byte before the last k rotated left
 * by k bits. It fires if it leaves `remainder` when divided by `divisor`.
 */
typedef struct {
    const uint32_t *table;
    uint32_t window, divisor, remainder;
} buz_rule;

static inline uint32_t rotated(uint32_t value, uint32_t bits)
{
    bits &= 31;
    return value << bits | value >> ((32 - bits) & 31);
}

static size_t buz_fires(const void *given, const uint8_t *data, size_t first, size_t limit)
{
    const buz_rule *const rule = given;
    const uint32_t *const table = rule->table;
    const uint32_t window = rule->window;
    /* As Lemire, Kaser and Kurz, "Faster remainder by direct computation" (2019): `divisor` divides x if and only if
     * inverse * x, modulo 2^64, is below inverse; and this for any x below 2^33 if divisor is below 2^31.
     */
    const uint64_t inverse = UINT64_MAX / rule->divisor + 1, shift = rule->divisor - rule->remainder;
    uint32_t hash = 0;
    for (size_t i = first - window; i < first; i++) hash = rotated(hash, 1) ^ table[data[i]];
    for (size_t at = first;; at++) {
        if (inverse * (hash + shift) < inverse) return at;
        if (at == limit) return 0;
        hash = rotated(hash, 1) ^ rotated(table[data[at - window]], window) ^ table[data[at]];
    }
}

/* casync and desync. Requires 1 <= window <= min_bytes <= max_bytes and remainder < divisor, 2 <= divisor < 2^31. */
ptrdiff_t crules_buzhash(const uint32_t *table, uint32_t window, size_t min_bytes, size_t max_bytes, uint32_t divisor,
                         uint32_t remainder, crules_piece *piece)
{
    const buz_rule rule = {table, window, divisor, remainder};
    return cut_by(buz_fires, &rule, min_bytes, max_bytes, piece);
}

/* Gear with the bits of `mask`, which may be any. The last 64 bytes decide. */
typedef struct {
    const uint64_t *table;
    uint64_t mask;
} gear_rule;

static size_t gear_fires(const void *given, const uint8_t *data, size_t first, size_t limit)
{
    const gear_rule *const rule = given;
    uint64_t hash = 0;
    for (size_t i = first - 64; i < first; i++) hash = (hash << 1) + rule->table[data[i]];
    for (size_t at = first;; at++) {
        if ((hash & rule->mask) == 0) return at;
        if (at == limit) return 0;
        hash = (hash << 1) + rule->table[data[at]];
    }
}

/* xet. Requires 64 <= min_bytes <= max_bytes. */
ptrdiff_t crules_gear(const uint64_t *table, uint64_t mask, size_t min_bytes, size_t max_bytes, crules_piece *piece)
{
    const gear_rule rule = {table, mask};
    return cut_by(gear_fires, &rule, min_bytes, max_bytes, piece);
}

/* Rabin's fingerprint: the last 64 bytes as a polynomial over GF(2), modulo one of degree shift + 8. `out` has each
 * byte's part in it when the byte is the first of the 64, `mod` what reduces each value of the 8 bits from the degree
 * on, those bits included. It fires if its bits of `mask` are 0.
 */
typedef struct {
    const uint64_t *out, *mod;
    uint64_t mask;
    uint32_t shift;
} rabin_rule;

static inline uint64_t appended(const rabin_rule *rule, uint64_t hash, uint8_t byte)
{
    return (hash << 8 | byte) ^ rule->mod[hash >> rule->shift];
}

static size_t rabin_fires(const void *given, const uint8_t *data, size_t first, size_t limit)
{
    const rabin_rule *const rule = given;
    uint64_t hash = 0;
    for (size_t i = first - 64; i < first; i++) hash = appended(rule, hash, data[i]);
    for (size_t at = first;; at++) {
        if ((hash & rule->mask) == 0) return at;
        if (at == limit) return 0;
        hash = appended(rule, hash ^ rule->out[data[at - 64]], data[at]);
    }
}

/* restic. Requires 64 <= min_bytes <= max_bytes, shift <= 45. */
ptrdiff_t crules_rabin(const uint64_t *out, const uint64_t *mod, uint32_t shift, uint64_t mask, size_t min_bytes,
                       size_t max_bytes, crules_piece *piece)
{
    const rabin_rule rule = {out, mod, mask, shift};
    return cut_by(rabin_fires, &rule, min_bytes, max_bytes, piece);
}

/* --- borg 1: buzhash, of the bytes behind the cut ---
 *
 * A cut falls at the first length of at least min_bytes where the hash of the next `window` bytes fires and one more
 * byte follows these, all within max_bytes; else at max_bytes. The last `window` bytes of a call are looked at again.
 * The window is 0. Requires 1 <= min_bytes, 1 <= window, window + min_bytes < max_bytes, remainder < divisor and
 * 2 <= divisor < 2^31.
 */
ptrdiff_t crules_buzhash_ahead(const uint32_t *table, uint32_t window, size_t min_bytes, size_t max_bytes,
                               uint32_t divisor, uint32_t remainder, crules_piece *piece)
{
    const buz_rule rule = {table, window, divisor, remainder};
    size_t at = piece->settled, open = piece->open, count = 0;
    while (count < piece->capacity) {
        const size_t left = piece->n - at, room = max_bytes - open;
        const size_t seen = room < left ? room : left;
        const size_t first = at + (open < min_bytes ? min_bytes - open : 0) + window;
        size_t cut = first < at + seen ? buz_fires(&rule, piece->data, first, at + seen - 1) : 0;
        if (cut != 0)
            cut -= window;
        else if (room <= left)
            cut = at + room;
        else {
            const size_t settled = piece->last ? left : left > window ? left - window : 0;
            open += settled;
            at += settled;
            break;
        }
        piece->cuts[count++] = (ptrdiff_t)(at = cut);
        open = 0;
    }
    piece->settled = at;
    piece->open = open;
    return (ptrdiff_t)count;
}

/* --- FastCDC of 2020, as the crate fastcdc has it ---
 *
 * The hash is gear's, from the chunk's byte min_bytes on. With i bytes before it in the chunk, a byte ends the chunk,
 * and begins the next one, if it leaves the hash's bits of a mask 0: mask_small while i < mean_bytes, then mask_large;
 * and at i = max_bytes. It takes two bytes a turn, so the last byte of a file is not tested if its i is even. It is
 * looked at again, as is the last of a call. The window is 0. All three sizes are even, min_bytes 2 or more.
 */
ptrdiff_t crules_fastcdc(const uint64_t *table, uint64_t mask_small, uint64_t mask_large, size_t min_bytes,
                         size_t mean_bytes, size_t max_bytes, crules_piece *piece)
{
    size_t at = piece->settled, open = piece->open, count = 0;
    uint64_t hash = piece->hash;
    while (count < piece->capacity) {
        const size_t left = piece->n - at, room = max_bytes - open;
        const size_t limit = at + (room < left ? room : left);
        int fired = 0;
        if (open < min_bytes) {
            const size_t skipped = min_bytes - open < limit - at ? min_bytes - open : limit - at;
            at += skipped;
            open += skipped;
        }
        for (; at < limit; at++, open++) {
            if (at + 1 == piece->n && (!piece->last || open % 2 == 0)) break;
            hash = (hash << 1) + table[piece->data[at]];
            fired = (hash & (open < mean_bytes ? mask_small : mask_large)) == 0;
            if (fired) break;
        }
        if (!fired && open != max_bytes) break;
        piece->cuts[count++] = (ptrdiff_t)at;
        hash = 0;
        open = 0;
    }
    if (count < piece->capacity && piece->last) at = piece->n;
    piece->settled = at;
    piece->open = open;
    piece->hash = hash;
    return (ptrdiff_t)count;
}

/* --- zstd:chunked: bup's rolling sum, and holes ---
 *
 * At least `threshold` zeros in a row are a hole, up to their end. In the rest a cut falls after each byte that sets the
 * low `bits` bits of the sum of the last 64 bytes of the file, among these the holes'; and before a hole.
 *
 * A cut before a hole may end nothing. The one that ends a hole is given as negative. A call's last zeros are looked at again if they are fewer than
 * `threshold`. The window is 64, with 64 zeros before a file's first byte, which the caller puts there as settled.
 * Requires bits <= 16 and 1 <= threshold.
 */

/* Where the first hole begins in data[at..n), or n. Each hole has one of the bytes that are `threshold` apart. */
static size_t next_hole(const uint8_t *data, size_t at, size_t n, size_t threshold)
{
    size_t begin = at;
    while (n - begin >= threshold) {
        size_t zero = begin + threshold;
        while (zero > begin && data[zero - 1] == 0) zero--;
        if (zero == begin) return begin;
        begin = zero;
    }
    return n;
}

static size_t sum_fires(const uint8_t *data, uint32_t bits, size_t first, size_t limit)
{
    const uint32_t mask = ((uint32_t)1 << bits) - 1;
    uint32_t sum = 64 * 31, sums = 64 * 63 * 31;
    for (size_t i = first - 64; i < first; i++) {
        sum += data[i];
        sums += (uint32_t)(first - i) * data[i];
    }
    for (size_t at = first;; at++) {
        if ((~sums & mask) == 0) return at;
        if (at == limit) return 0;
        sum += (uint32_t)data[at] - data[at - 64];
        sums += sum - 64 * (uint32_t)(data[at - 64] + 31);
    }
}

ptrdiff_t crules_rolling_sum(uint32_t bits, size_t threshold, crules_piece *piece)
{
    const uint8_t *const data = piece->data;
    const size_t n = piece->n;
    size_t at = piece->settled, count = 0;
    size_t hole = at, end = at; /* the next hole, and where the bytes before it end that are settled */
    while (at < n && count < piece->capacity) {
        if (piece->hole) {
            while (at < n && data[at] == 0) at++;
            if (at == n) break;
            piece->cuts[count++] = -(ptrdiff_t)at;
            piece->hole = 0;
            hole = at;
            continue;
        }
        if (hole == at) {
            end = hole = next_hole(data, at, n, threshold);
            if (hole == n && !piece->last)
                while (end > at && data[end - 1] == 0) end--;
        }
        const size_t cut = end > at ? sum_fires(data, bits, at + 1, end) : 0;
        if (cut != 0)
            piece->cuts[count++] = (ptrdiff_t)(at = cut);
        else {
            at = end;
            if (hole == n) break;
            piece->cuts[count++] = (ptrdiff_t)at;
            piece->hole = 1;
        }
    }
    piece->settled = at;
    return (ptrdiff_t)count;
}
