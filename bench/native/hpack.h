// A decoder of HPACK (RFC 7541): the names and values of one header block, with dynamic table and Huffman code.
//
// The Huffman code of Appendix B is canonical: its codes follow from the lengths alone, so only these are here.
#ifndef HPACK_H
#define HPACK_H
#include "common.h"

#define HPACK_TABLE_BYTES 4096  // the default of SETTINGS_HEADER_TABLE_SIZE, which we never change
#define HPACK_ENTRIES 128       // an entry counts 32 bytes more than its text: 4096 / 32
#define HPACK_TEXT 16384        // longest text of a header; a longer one is an error
#define HPACK_STATIC 61

typedef struct {
    char *name, *value;
} HpackEntry;

typedef struct {
    HpackEntry entries[HPACK_ENTRIES];  // the newest first
    int count;
    size_t bytes, limit;
} Hpack;

typedef void HpackHeader(void *to, const char *name, const char *value);

static const char HUFFMAN_LENGTHS[257] = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6,  10, 10, 12, 13, 6,  8,  11, 10, 10, 8,  11, 8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,
    7,  8,  15, 6,  12, 10, 13, 6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
    7,  8,  7,  8,  13, 19, 13, 14, 6,  15, 5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,
    5,  6,  7,  7,  7,  7,  7,  15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24,
    24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26,
    27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23,
    22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30};

static struct {
    int symbols[257];                  // sorted by length, then by value
    uint32_t first_code[32];           // of each length
    int first_index[32], count[32];
} huffman;

static const char *const HPACK_TABLE[HPACK_STATIC][2] = {
    {":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"},
    {":scheme", "http"}, {":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"},
    {":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"}, {"accept-charset", ""},
    {"accept-encoding", "gzip, deflate"}, {"accept-language", ""}, {"accept-ranges", ""}, {"accept", ""},
    {"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""}, {"cache-control", ""},
    {"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""},
    {"content-location", ""}, {"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""},
    {"expect", ""}, {"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""},
    {"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""},
    {"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""},
    {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
    {"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""},
    {"www-authenticate", ""}};

static inline void hpack_prepare(void) {
    uint32_t code = 0;
    int index = 0;
    for (int length = 1; length <= 30; length++) {
        code <<= 1;
        huffman.first_code[length] = code;
        huffman.first_index[length] = index;
        for (int symbol = 0; symbol < 257; symbol++)
            if (HUFFMAN_LENGTHS[symbol] == length) huffman.symbols[index++] = symbol;
        huffman.count[length] = index - huffman.first_index[length];
        code += huffman.count[length];
    }
}

static inline int huffman_decode(const uint8_t *in, size_t size, char *out) {
    uint32_t code = 0;
    int length = 0, written = 0;
    for (size_t bit = 0; bit < size * 8; bit++) {
        code = code << 1 | (in[bit / 8] >> (7 - bit % 8) & 1);
        if (++length > 30) return -1;
        uint32_t offset = code - huffman.first_code[length];
        if (code < huffman.first_code[length] || offset >= (uint32_t)huffman.count[length]) continue;
        int symbol = huffman.symbols[huffman.first_index[length] + offset];
        if (symbol == 256 || written >= HPACK_TEXT) return -1;
        out[written++] = symbol;
        code = length = 0;
    }
    out[written] = 0;
    int is_padding = length < 8 && code == (1u << length) - 1;
    return is_padding ? written : -1;
}

static inline int hpack_number(const uint8_t **at, const uint8_t *end, int prefix_bits, size_t *number) {
    if (*at >= end) return -1;
    size_t most = (1u << prefix_bits) - 1;
    *number = *(*at)++ & most;
    if (*number < most) return 0;
    for (int shift = 0; *at < end && shift < 28; shift += 7) {
        uint8_t byte = *(*at)++;
        *number += (size_t)(byte & 127) << shift;
        if (byte < 128) return 0;
    }
    return -1;
}

static inline int hpack_text(const uint8_t **at, const uint8_t *end, char *out) {
    if (*at >= end) return -1;
    int is_huffman = **at & 128;
    size_t size;
    if (hpack_number(at, end, 7, &size) || size > (size_t)(end - *at) || size > HPACK_TEXT) return -1;
    const uint8_t *from = *at;
    *at += size;
    if (is_huffman) return huffman_decode(from, size, out) < 0 ? -1 : 0;
    memcpy(out, from, size);
    out[size] = 0;
    return 0;
}

static inline void hpack_evict(Hpack *h, size_t limit) {
    while (h->bytes > limit) {
        HpackEntry *oldest = &h->entries[--h->count];
        h->bytes -= strlen(oldest->name) + strlen(oldest->value) + 32;
        free(oldest->name);
        free(oldest->value);
    }
}

static inline void hpack_add(Hpack *h, const char *name, const char *value) {
    size_t bytes = strlen(name) + strlen(value) + 32;
    if (bytes > h->limit) {
        hpack_evict(h, 0);
        return;
    }
    HpackEntry entry = {strdup(name), strdup(value)};
    hpack_evict(h, h->limit - bytes);
    memmove(h->entries + 1, h->entries, h->count * sizeof *h->entries);
    h->entries[0] = entry;
    h->count++;
    h->bytes += bytes;
}

static inline int hpack_look_up(const Hpack *h, size_t index, const char **name, const char **value) {
    if (index == 0 || index > (size_t)(HPACK_STATIC + h->count)) return -1;
    *name = index <= HPACK_STATIC ? HPACK_TABLE[index - 1][0] : h->entries[index - HPACK_STATIC - 1].name;
    *value = index <= HPACK_STATIC ? HPACK_TABLE[index - 1][1] : h->entries[index - HPACK_STATIC - 1].value;
    return 0;
}

static inline int hpack_literal(Hpack *h, const uint8_t **at, const uint8_t *end, int bits, HpackHeader *tell, void *to) {
    static char name_text[HPACK_TEXT + 1], value[HPACK_TEXT + 1];
    const char *name = name_text, *unused;
    size_t index;
    if (hpack_number(at, end, bits, &index)) return -1;
    if (index ? hpack_look_up(h, index, &name, &unused) : hpack_text(at, end, name_text)) return -1;
    if (hpack_text(at, end, value)) return -1;
    tell(to, name, value);
    if (bits == 6) hpack_add(h, name, value);
    return 0;
}

// Calls `tell` for each header of the block. Returns 0, or -1 if the block is wrong.
static inline int hpack_decode(Hpack *h, const uint8_t *at, size_t size, HpackHeader *tell, void *to) {
    const uint8_t *end = at + size;
    const char *name, *value;
    size_t number;
    while (at < end) {
        if (*at & 128) {
            if (hpack_number(&at, end, 7, &number) || hpack_look_up(h, number, &name, &value)) return -1;
            tell(to, name, value);
        } else if (*at & 64) {
            if (hpack_literal(h, &at, end, 6, tell, to)) return -1;
        } else if (*at & 32) {
            if (hpack_number(&at, end, 5, &number) || number > HPACK_TABLE_BYTES) return -1;
            h->limit = number;
            hpack_evict(h, number);
        } else if (hpack_literal(h, &at, end, 4, tell, to)) {
            return -1;
        }
    }
    return 0;
}
#endif
