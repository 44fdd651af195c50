// backend.proto over gRPC with as little HTTP/2 (RFC 9113) as that needs: no library, header blocks of fixed bytes.
#include "upstream.h"

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, WITH_PRIORITY = 32 };
enum { SETTING_MAX_STREAMS = 3, SETTING_INITIAL_WINDOW = 4 };
#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define PREFACE_SIZE 24
#define FRAME_HEAD 9
#define FRAME_MAX 16384
#define WINDOW_DEFAULT 65535
#define ACKNOWLEDGE_BYTES 16384  // what we have received is acknowledged from this size on

// Header blocks of literals without indexing (RFC 7541, 6.2.2): they are the same on every connection. Each begins with
// a table size of 0 (6.3), since a client that allows no table wants to hear it.
static const char RESPONSE_BLOCK[] = "\x20" "\x88\x0f\x10\x10" "application/grpc";
static const char TRAILER_BLOCK[] = "\x00\x0b" "grpc-status" "\x01" "0" "\x00\x17" "x-gateway-finish-reason" "\x04" "stop";
static const char UNKNOWN_BLOCK[] = "\x20" "\x88\x0f\x10\x10" "application/grpc" "\x00\x0b" "grpc-status" "\x02" "12";

static void frame(Connection *c, int type, int flags, uint32_t id, const void *payload, size_t size) {
    uint8_t head[FRAME_HEAD] = {size >> 16, size >> 8, size, type, flags, id >> 24, id >> 16, id >> 8, id};
    append(&c->out, head, sizeof head);
    append(&c->out, payload, size);
}

static uint32_t read_u32(const char *at) {
    const uint8_t *b = (const uint8_t *)at;
    return (uint32_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

static void window_update(Connection *c, uint32_t id, uint32_t bytes) {
    uint8_t payload[4] = {bytes >> 24, bytes >> 16, bytes >> 8, bytes};
    frame(c, WINDOW_UPDATE, 0, id, payload, sizeof payload);
}

void grpc_prepare(void) { hpack_prepare(); }

void grpc_greet(Connection *c) {
    static const char settings[] = {0, SETTING_MAX_STREAMS, 0, 1, 0, 0};
    c->window = c->initial_window = WINDOW_DEFAULT;
    c->hpack.limit = HPACK_TABLE_BYTES;
    frame(c, SETTINGS, 0, 0, settings, sizeof settings);
}

// ---- streams

static Answer **bucket(Connection *c, uint32_t id) { return &c->answers[id / 2 % STREAM_BUCKETS]; }

static Answer *find(Connection *c, uint32_t id) {
    Answer *found = *bucket(c, id);
    while (found && found->id != id) found = found->next_in_bucket;
    return found;
}

static Answer *open_answer(Connection *c, uint32_t id) {
    Answer *answer = calloc(1, sizeof *answer);
    if (!answer) fail("calloc");
    *answer = (Answer){.connection = c, .id = id, .tokens = 1, .window = c->initial_window};
    answer->next_in_bucket = *bucket(c, id);
    return *bucket(c, id) = answer;
}

static void close_answer(Answer *answer) {
    Answer **at = bucket(answer->connection, answer->id);
    while (*at != answer) at = &(*at)->next_in_bucket;
    *at = answer->next_in_bucket;
    unpace(answer);
    free(answer);
}

void grpc_forget(Connection *c) {
    for (int i = 0; i < STREAM_BUCKETS; i++)
        while (c->answers[i]) close_answer(c->answers[i]);
    hpack_evict(&c->hpack, 0);
    free(c->block.data);
}

// ---- answers

static size_t varint(uint8_t *out, uint32_t value) {
    size_t size = 0;
    for (; value > 127; value >>= 7) out[size++] = value | 128;
    out[size++] = value;
    return size;
}

// A length-prefixed `Reply`; its text is shorter than 128 bytes.
static size_t reply(uint8_t *out, const char *text, int tokens) {
    uint8_t *body = out + 5;
    size_t text_size = strlen(text), size = 0;
    body[size++] = 0x0a;  // message
    body[size++] = text_size;
    memcpy(body + size, text, text_size);
    size += text_size;
    body[size++] = 0x10;  // tokens
    size += varint(body + size, tokens);
    body[size++] = 0x18;  // prompt_tokens
    size += varint(body + size, PROMPT_TOKENS);
    memcpy(out, (uint8_t[]){0, 0, 0, size >> 8, size}, 5);
    return size + 5;
}

static void begin(Answer *answer) {
    if (answer->started) return;
    frame(answer->connection, HEADERS, END_HEADERS, answer->id, RESPONSE_BLOCK, sizeof RESPONSE_BLOCK - 1);
    answer->started = true;
}

static void finish(Answer *answer) {
    frame(answer->connection, HEADERS, END_HEADERS | END_STREAM, answer->id, TRAILER_BLOCK, sizeof TRAILER_BLOCK - 1);
    close_answer(answer);
}

static void data(Answer *answer, const void *message, size_t size) {
    begin(answer);
    frame(answer->connection, DATA, 0, answer->id, message, size);
    answer->window -= size;
    answer->connection->window -= size;
}

// Sends the next token, or marks that the answer waits for a window. The last token ends the answer.
void grpc_token(Answer *answer) {
    char text[40];
    uint8_t message[200];
    snprintf(text, sizeof text, "t%lld ", (long long)now_us());
    size_t size = reply(message, text, answer->sent + 1);
    answer->waits = answer->window < (int64_t)size || answer->connection->window < (int64_t)size;
    if (answer->waits) return;
    data(answer, message, size);
    if (++answer->sent >= answer->tokens) finish(answer);
}

static void burst(Answer *answer) {
    while (answer->sent + 1 < answer->tokens && !answer->waits) grpc_token(answer);
    if (!answer->waits) grpc_token(answer);
}

static void answer_unary(Answer *answer, const char *text, int tokens) {
    uint8_t message[200];
    data(answer, message, reply(message, text, tokens));
    finish(answer);
}

static void answer_request(Answer *answer) {
    static const uint8_t loaded[] = {0, 0, 0, 0, 2, 0x10, 1};  // Result{success: true}
    const char *slash = strrchr(answer->path, '/'), *method = slash ? slash + 1 : "";
    if (!strcmp(method, "Predict")) {
        answer_unary(answer, TEXT, TEXT_TOKENS);
    } else if (!strcmp(method, "PredictStream")) {
        if (answer->interval_us) pace(answer);
        else burst(answer);
    } else if (!strcmp(method, "Health")) {
        answer_unary(answer, "OK", 0);
    } else if (!strcmp(method, "LoadModel")) {
        data(answer, loaded, sizeof loaded);
        finish(answer);
    } else {
        frame(answer->connection, HEADERS, END_HEADERS | END_STREAM, answer->id, UNKNOWN_BLOCK, sizeof UNKNOWN_BLOCK - 1);
        close_answer(answer);
    }
}

// ---- frames

// A paced answer that has waited for a window goes on at its pace.
static void resume(Connection *c) {
    for (int i = 0; i < STREAM_BUCKETS; i++)
        for (Answer *answer = c->answers[i], *next; answer; answer = next) {
            next = answer->next_in_bucket;
            if (!answer->waits) continue;
            answer->waits = false;
            if (answer->interval_us) grpc_token(answer);
            else burst(answer);
        }
}

static void read_settings(Connection *c, const char *payload, size_t size) {
    for (; size >= 6; payload += 6, size -= 6) {
        if (payload[0] || payload[1] != SETTING_INITIAL_WINDOW) continue;
        int64_t initial = read_u32(payload + 2);
        for (int i = 0; i < STREAM_BUCKETS; i++)
            for (Answer *answer = c->answers[i]; answer; answer = answer->next_in_bucket)
                answer->window += initial - c->initial_window;
        c->initial_window = initial;
    }
    frame(c, SETTINGS, ACK, 0, "", 0);
    resume(c);
}

static void note_header(void *to, const char *name, const char *value) {
    Answer *answer = to;
    if (!strcmp(name, ":path") && strlen(value) < sizeof answer->path) strcpy(answer->path, value);
}

static bool end_headers(Connection *c, uint32_t id) {
    Answer *answer = open_answer(c, id);
    if (hpack_decode(&c->hpack, (uint8_t *)unread(&c->block), unread_size(&c->block), note_header, answer)) return false;
    c->block.start = c->block.end = 0;
    if (c->ends_stream) answer_request(answer);
    return true;
}

static bool without_padding(int flags, const char **payload, size_t *size) {
    if (flags & PADDED) {
        size_t padding = *size ? (uint8_t)**payload : 0;
        if (padding + 1 > *size) return false;
        *payload += 1;
        *size -= padding + 1;
    }
    return true;
}

static bool read_headers(Connection *c, int flags, uint32_t id, const char *payload, size_t size) {
    if (!without_padding(flags, &payload, &size)) return false;
    size_t priority = flags & WITH_PRIORITY ? 5 : 0;
    if (priority > size) return false;
    append(&c->block, payload + priority, size - priority);
    c->ends_stream = flags & END_STREAM;
    return flags & END_HEADERS ? end_headers(c, id) : true;
}

static bool read_data(Connection *c, int flags, uint32_t id, const char *payload, size_t size) {
    Answer *answer = find(c, id);
    c->received += size;
    if (c->received >= ACKNOWLEDGE_BYTES) {
        window_update(c, 0, c->received);
        c->received = 0;
    }
    if (!answer) return true;
    if (size && !(flags & END_STREAM)) window_update(c, id, size);
    if (!without_padding(flags, &payload, &size)) return false;
    read_shape(answer, payload, size);
    if (flags & END_STREAM) answer_request(answer);
    return true;
}

static void read_window_update(Connection *c, uint32_t id, uint32_t bytes) {
    Answer *answer = find(c, id);
    if (id == 0) c->window += bytes;
    else if (answer) answer->window += bytes;
    resume(c);
}

static bool read_frame(Connection *c, int type, int flags, uint32_t id, const char *payload, size_t size) {
    Answer *answer;
    switch (type) {
        case DATA: return read_data(c, flags, id, payload, size);
        case HEADERS: return read_headers(c, flags, id, payload, size);
        case CONTINUATION:
            append(&c->block, payload, size);
            return flags & END_HEADERS ? end_headers(c, id) : true;
        case SETTINGS:
            if (!(flags & ACK)) read_settings(c, payload, size);
            return true;
        case PING:
            if (!(flags & ACK)) frame(c, PING, ACK, 0, payload, size);
            return true;
        case RST_STREAM:
            if ((answer = find(c, id))) close_answer(answer);
            return true;
        case WINDOW_UPDATE:
            if (size != 4) return false;
            read_window_update(c, id, read_u32(payload) & 0x7fffffff);
            return true;
        default: return true;
    }
}

bool grpc_read(Connection *c) {
    if (!c->greeted) {
        if (unread_size(&c->in) < PREFACE_SIZE) return true;
        if (memcmp(unread(&c->in), PREFACE, PREFACE_SIZE)) return false;
        c->in.start += PREFACE_SIZE;
        c->greeted = true;
    }
    while (unread_size(&c->in) >= FRAME_HEAD) {
        const char *head = unread(&c->in);
        size_t size = read_u32(head) >> 8;
        if (size > FRAME_MAX) return false;
        if (unread_size(&c->in) < FRAME_HEAD + size) break;
        c->in.start += FRAME_HEAD + size;
        if (!read_frame(c, head[3], (uint8_t)head[4], read_u32(head + 5) & 0x7fffffff, head + FRAME_HEAD, size)) return false;
    }
    return true;
}
