// What upstream and load generator share: a clock, growing buffers, a core of their own, the end of an HTTP message.
#ifndef COMMON_H
#define COMMON_H
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>

static inline int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static inline void fail(const char *what) {
    perror(what);
    exit(1);
}

// Bytes from `start` to `end` of `data` have not been consumed yet. `data` always has room for a final 0.
typedef struct {
    char *data;
    size_t start, end, capacity;
} Buffer;

static inline void reserve(Buffer *b, size_t more) {
    if (b->start == b->end) b->start = b->end = 0;
    if (b->start > 0 && b->end + more >= b->capacity) {
        memmove(b->data, b->data + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + more >= b->capacity) {
        b->capacity = (b->end + more + 1) * 2;
        if (!(b->data = realloc(b->data, b->capacity))) fail("realloc");
    }
}

static inline void append(Buffer *b, const void *data, size_t size) {
    reserve(b, size);
    memcpy(b->data + b->end, data, size);
    b->end += size;
    b->data[b->end] = 0;
}

static inline char *unread(const Buffer *b) { return b->data + b->start; }
static inline size_t unread_size(const Buffer *b) { return b->end - b->start; }

// The variable BENCH_CORE pins this process, also where another process has started it on its own core.
static inline void pin_to_core(void) {
    const char *core = getenv("BENCH_CORE");
    if (!core || !*core) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(atoi(core), &set);
    if (sched_setaffinity(0, sizeof set, &set)) fail("sched_setaffinity");
}

static inline void allow_many_files(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

// ---- HTTP/1.1: just enough for peers that send well-formed messages

typedef struct {
    size_t head;    // bytes up to and with the empty line; 0 if the head is not complete
    int chunked;
    size_t length;  // of Content-Length
} Head;

static inline Head read_head(const char *data, size_t size) {
    Head found = {0};
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return found;
    found.head = end - data + 4;
    for (const char *line = data; line < end;) {
        if (!strncasecmp(line, "content-length:", 15)) found.length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) found.chunked = 1;
        line = (const char *)memmem(line, end + 2 - line, "\r\n", 2) + 2;
    }
    return found;
}

// The next chunk of a chunked body: returns its bytes on the wire, or 0 if it is not complete. A last chunk has no
// payload, and its size counts the empty line behind it (nobody here sends trailers).
static inline size_t read_chunk(const char *data, size_t size, const char **payload, size_t *payload_size) {
    const char *line_end = memmem(data, size, "\r\n", 2);
    if (!line_end) return 0;
    *payload = line_end + 2;
    *payload_size = strtoul(data, NULL, 16);
    size_t total = line_end + 2 - data + *payload_size + 2;
    return total <= size ? total : 0;
}

// Bytes of the whole message at the start of `data`, or 0 if it is not complete.
static inline size_t message_size(const char *data, size_t size, Head head) {
    if (!head.head) return 0;
    if (!head.chunked) return size >= head.head + head.length ? head.head + head.length : 0;
    const char *payload;
    size_t payload_size, used = head.head, chunk;
    while ((chunk = read_chunk(data + used, size - used, &payload, &payload_size))) {
        used += chunk;
        if (payload_size == 0) return used;
    }
    return 0;
}
#endif
