// Closed-loop load on OpenAI's chat route over HTTP/1.1, on one thread: each connection sends its next request as soon as
// it has its answer. Prints one line of JSON; times are microseconds.
//
//   load --port P --connections N --seconds S --model M [--tokens T --rate R] [--spread US] [--bearer KEY]
//
// Without `--tokens` requests are unary. `--rate 0` asks for bursts. `--spread` is the time between the first requests of
// two connections. No request begins after S seconds; those that run are finished.
#include "common.h"
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES 65536
#define EVENTS 512
#define HARD_LIMIT_US 60000000
#define ERRORS_MAX 10000

typedef struct {
    int32_t *values;
    size_t count, capacity;
} Samples;

typedef struct {
    int fd;
    Buffer in, events;               // what has come, and of a chunked body what has not been read by the line
    Head head;
    int64_t began_us, last_arrival_us, last_stamp_us;
    int tokens;
} Connection;

static struct {
    int port, connections, tokens, rate, spread_us;
    double seconds;
    const char *model, *bearer;
} options = {.connections = 1, .seconds = 1, .model = "bench", .bearer = ""};

static Samples latency, first_token, delay, jitter, silence;
static long done, errors, tokens_read;
static int poller, busy;
static int64_t stop_us, last_event_us;
static char request[2000];
static int request_size;

static void add(Samples *samples, int64_t value) {
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 65536;
        if (!(samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values))) fail("realloc");
    }
    samples->values[samples->count++] = value > INT32_MAX ? INT32_MAX : value;
}

static int by_value(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int at_share(const Samples *samples, double share) {
    size_t index = samples->count * share;
    return samples->values[index < samples->count ? index : samples->count - 1];
}

static void print_samples(const char *name, Samples *samples) {
    if (!samples->count) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(samples->values, samples->count, sizeof *samples->values, by_value);
    printf(",\"%s\":{\"p50\":%d,\"p99\":%d,\"p999\":%d,\"max\":%d}", name, at_share(samples, .5), at_share(samples, .99),
           at_share(samples, .999), at_share(samples, 1));
}

// ---- one connection

static void prepare_request(void) {
    char body[900], credential[200] = "", shape[60] = "hello";
    if (options.tokens) snprintf(shape, sizeof shape, "tokens=%d rate=%d", options.tokens, options.rate);
    snprintf(body, sizeof body,
             "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":1000,\"stream\":%s}",
             options.model, shape, options.tokens ? "true" : "false");
    if (*options.bearer) snprintf(credential, sizeof credential, "authorization: Bearer %s\r\n", options.bearer);
    request_size = snprintf(request, sizeof request,
                            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n%scontent-type: application/json\r\n"
                            "content-length: %zu\r\n\r\n%s", credential, strlen(body), body);
}

static bool open_connection(Connection *c) {
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&at, sizeof at)) {
        if (c->fd >= 0) close(c->fd);
        c->fd = -1;
        return false;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &watch);
    return true;
}

static void start_request(Connection *c) {
    c->in.start = c->in.end = c->events.start = c->events.end = 0;
    c->head = (Head){0};
    c->tokens = 0;
    c->last_arrival_us = 0;
    c->began_us = now_us();
    busy++;
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != request_size) shutdown(c->fd, SHUT_RDWR);  // read as an end
}

static void note_token(Connection *c, int64_t stamp_us, int64_t now) {
    if (c->tokens++ == 0) add(&first_token, now - c->began_us);
    tokens_read++;
    add(&delay, now - stamp_us);
    if (c->last_arrival_us) add(&jitter, llabs((now - c->last_arrival_us) - (stamp_us - c->last_stamp_us)));
    c->last_arrival_us = now;
    c->last_stamp_us = stamp_us;
}

// A token's text is `t` and its microsecond.
static void read_event(Connection *c, const char *line, const char *end, int64_t now) {
    static const char key[] = "\"content\":";
    const char *at = memmem(line, end - line, key, sizeof key - 1);
    if (!at) return;
    at += sizeof key - 1;
    at += strspn(at, " ");
    if (at[0] == '"' && at[1] == 't' && at[2] >= '0' && at[2] <= '9') note_token(c, strtoll(at + 2, NULL, 10), now);
}

static void read_events(Connection *c, int64_t now) {
    char *end;
    while ((end = memchr(unread(&c->events), '\n', unread_size(&c->events)))) {
        read_event(c, unread(&c->events), end, now);
        c->events.start = end + 1 - c->events.data;
    }
}

// Returns 1 at the end of the answer, 0 before it.
static int read_stream(Connection *c, int64_t now) {
    const char *payload;
    size_t payload_size, size;
    while ((size = read_chunk(unread(&c->in), unread_size(&c->in), &payload, &payload_size))) {
        c->in.start += size;
        if (!payload_size) return 1;
        append(&c->events, payload, payload_size);
        read_events(c, now);
    }
    return 0;
}

// Returns 1 at the end of the answer, 0 before it, -1 if it is no answer.
static int read_answer(Connection *c, int64_t now) {
    if (!c->head.head) {
        c->head = read_head(unread(&c->in), unread_size(&c->in));
        if (!c->head.head) return 0;
        if (strncmp(unread(&c->in) + 9, "200", 3)) {
            if (!errors) fprintf(stderr, "%.600s\n", unread(&c->in));
            return -1;
        }
        if (options.tokens && !c->head.chunked) return -1;
        if (options.tokens) c->in.start += c->head.head;
    }
    if (options.tokens) return read_stream(c, now);
    return message_size(unread(&c->in), unread_size(&c->in), c->head) > 0;
}

static int receive(Connection *c, int64_t now) {
    reserve(&c->in, READ_BYTES);
    ssize_t got = recv(c->fd, c->in.data + c->in.end, READ_BYTES, 0);
    if (got <= 0) return -1;
    c->in.end += got;
    c->in.data[c->in.end] = 0;
    return read_answer(c, now);
}

static void end_request(Connection *c, int64_t now) {
    busy--;
    done++;
    add(&latency, now - c->began_us);
    if (options.tokens && c->tokens != options.tokens) errors++;
    if (now < stop_us) start_request(c);
}

static void break_request(Connection *c, int64_t now) {
    busy--;
    errors++;
    close(c->fd);
    if (now < stop_us && errors < ERRORS_MAX && open_connection(c)) start_request(c);
}

// ---- all connections

static void poll_once(int milliseconds) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, milliseconds);
    int64_t now = now_us();
    if (count > 0) {
        if (last_event_us) add(&silence, now - last_event_us);
        last_event_us = now;
    }
    for (int i = 0; i < count; i++) {
        Connection *c = events[i].data.ptr;
        int end = receive(c, now);
        if (end < 0) break_request(c, now);
        else if (end) end_request(c, now);
    }
}

static void open_all(Connection *connections) {
    for (int i = 0; i < options.connections; i++)
        if (!open_connection(&connections[i])) errors++;
}

static void start_all(Connection *connections, int64_t began_us) {
    for (int i = 0; i < options.connections; i++) {
        int64_t due = began_us + (int64_t)i * options.spread_us;
        if (options.spread_us) poll_once(0);
        if (now_us() < due) usleep(due - now_us());
        if (connections[i].fd >= 0) start_request(&connections[i]);
    }
}

static void read_options(int count, char **arguments) {
    static const struct option known[] = {{"port", 1, 0, 'p'},   {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
                                          {"model", 1, 0, 'm'},  {"tokens", 1, 0, 't'},      {"rate", 1, 0, 'r'},
                                          {"spread", 1, 0, 'd'}, {"bearer", 1, 0, 'b'},      {0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) {
        switch (option) {
            case 'p': options.port = atoi(optarg); break;
            case 'c': options.connections = atoi(optarg); break;
            case 's': options.seconds = atof(optarg); break;
            case 'm': options.model = optarg; break;
            case 't': options.tokens = atoi(optarg); break;
            case 'r': options.rate = atoi(optarg); break;
            case 'd': options.spread_us = atoi(optarg); break;
            case 'b': options.bearer = optarg; break;
            default: exit(2);
        }
    }
}

int main(int count, char **arguments) {
    read_options(count, arguments);
    pin_to_core();
    allow_many_files();
    prepare_request();
    poller = epoll_create1(0);
    Connection *connections = calloc(options.connections, sizeof *connections);
    if (!connections) fail("calloc");
    open_all(connections);
    int64_t began_us = now_us();
    stop_us = began_us + (int64_t)(options.seconds * 1e6);
    start_all(connections, began_us);
    while (busy > 0 && now_us() < stop_us + HARD_LIMIT_US) poll_once(200);
    errors += busy;
    double seconds = (now_us() - began_us) / 1e6;
    printf("{\"done\":%ld,\"errors\":%ld,\"tokens\":%ld,\"seconds\":%.6f", done, errors, tokens_read, seconds);
    print_samples("latency", &latency);
    print_samples("first_token", &first_token);
    print_samples("delay", &delay);
    print_samples("jitter", &jitter);
    print_samples("silence", &silence);
    puts("}");
    return 0;
}
