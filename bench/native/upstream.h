// What the two protocols of the upstream share: connections, answers that are streams, and their pace.
#ifndef UPSTREAM_H
#define UPSTREAM_H
#include "common.h"
#include "hpack.h"
#include <stdbool.h>

#define STREAM_BUCKETS 256
#define TEXT "The quick brown fox jumps over the lazy dog and runs away. "
#define TEXT_TOKENS 12
#define PROMPT_TOKENS 5

typedef struct Connection Connection;

// One answer. What it is like is in the request: `tokens=100 rate=50` somewhere in its body; without a rate it is a
// burst.
typedef struct Answer {
    Connection *connection;
    struct Answer *next_in_bucket;          // HTTP/2: of its connection
    struct Answer *previous, *next;         // paced answers, sorted by `due_us`
    char path[64];
    int64_t due_us, interval_us;
    int tokens, sent;
    uint32_t id;                            // HTTP/2: of its stream
    int64_t window;                         // HTTP/2: bytes that the peer takes
    bool started, waits;                    // HTTP/2: for a window
    bool paced;
} Answer;

struct Connection {
    int fd;
    bool dead, wants_write;
    Buffer in, out;
    Answer *http;                           // HTTP/1.1: the answer that is being sent
    // HTTP/2
    bool greeted, ends_stream;
    Hpack hpack;
    Buffer block;                           // a header block that is not complete
    Answer *answers[STREAM_BUCKETS];
    int64_t window, initial_window, received;
};

static inline void read_shape(Answer *answer, const char *body, size_t size) {
    const char *tokens = memmem(body, size, "tokens=", 7), *rate = memmem(body, size, "rate=", 5);
    if (tokens) answer->tokens = atoi(tokens + 7);
    if (rate && atoi(rate + 5) > 0) answer->interval_us = 1000000 / atoi(rate + 5);
}

void pace(Answer *answer);
void unpace(Answer *answer);
void send_out(Connection *connection);

// Both return false if the peer broke the protocol.
bool grpc_read(Connection *connection);
bool http_read(Connection *connection);
void grpc_prepare(void);
void grpc_greet(Connection *connection);
void grpc_token(Answer *answer);
void http_token(Answer *answer);
void grpc_forget(Connection *connection);
#endif
