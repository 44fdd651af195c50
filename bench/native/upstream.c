// A backend that answers at once, on one thread: `upstream --addr HOST:PORT` speaks backend.proto over gRPC, and
// `upstream --http HOST:PORT` OpenAI over HTTP/1.1 for those that do not know the other. The answers are the same.
//
// The text of each streamed token is the microsecond (CLOCK_MONOTONIC) at which it was written, so that a client of the
// same machine knows how long it was under way.
#include "upstream.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define EVENTS 256
#define READ_BYTES 65536

static bool speaks_grpc;
static int poller, timer;
static int64_t timer_due_us;
static char unary_response[1000];

// ---- pace

static Answer paced = {.previous = &paced, .next = &paced};

void pace(Answer *answer) {
    if (answer->due_us == 0) answer->due_us = now_us();
    Answer *before = paced.previous;
    while (before != &paced && before->due_us > answer->due_us) before = before->previous;
    answer->previous = before;
    answer->next = before->next;
    before->next->previous = answer;
    before->next = answer;
    answer->paced = true;
}

void unpace(Answer *answer) {
    if (!answer->paced) return;
    answer->previous->next = answer->next;
    answer->next->previous = answer->previous;
    answer->paced = false;
}

static void set_timer(void) {
    int64_t due = paced.next == &paced ? 0 : paced.next->due_us;
    if (due == timer_due_us) return;
    struct itimerspec at = {.it_value = {due / 1000000, due % 1000000 * 1000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
    timer_due_us = due;
}

static void send_due_tokens(void) {
    int64_t now = now_us();
    while (paced.next != &paced && paced.next->due_us <= now) {
        Answer *answer = paced.next;
        Connection *connection = answer->connection;
        unpace(answer);
        answer->due_us += answer->interval_us;
        if (answer->sent + 1 < answer->tokens || answer->waits) pace(answer);  // the last token ends the answer
        if (answer->waits) continue;
        if (speaks_grpc) grpc_token(answer);
        else http_token(answer);
        send_out(connection);
    }
}

// ---- OpenAI over HTTP/1.1

static void chunk(Connection *c, const char *text) {
    char head[20];
    append(&c->out, head, snprintf(head, sizeof head, "%zx\r\n", strlen(text)));
    append(&c->out, text, strlen(text));
    append(&c->out, "\r\n", 2);
}

static void event(Connection *c, const char *delta, const char *finish_reason) {
    char text[500];
    snprintf(text, sizeof text,
             "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\",\"choices\":"
             "[{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}]}\n\n", delta, finish_reason);
    chunk(c, text);
}

void http_token(Answer *answer) {
    Connection *c = answer->connection;
    char delta[100];
    snprintf(delta, sizeof delta, "%s\"content\":\"t%lld \"", answer->sent ? "" : "\"role\":\"assistant\",", (long long)now_us());
    event(c, delta, "null");
    if (++answer->sent < answer->tokens) return;
    event(c, "", "\"stop\"");
    chunk(c, "data: [DONE]\n\n");
    append(&c->out, "0\r\n\r\n", 5);
    c->http = NULL;
    free(answer);
}

static void http_stream(Connection *c, const char *body, size_t size) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    append(&c->out, head, sizeof head - 1);
    Answer *answer = calloc(1, sizeof *answer);
    if (!answer) fail("calloc");
    *answer = (Answer){.connection = c, .tokens = 1};
    read_shape(answer, body, size);
    c->http = answer;
    if (answer->interval_us) pace(answer);
    else while (c->http) http_token(answer);
}

static void http_json(char *out, size_t size, const char *body) {
    snprintf(out, size, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
}

// Routers ask which model this is, and whether it lives.
static void http_get(Connection *c, const char *head) {
    char response[500];
    int is_list = !strncmp(head, "GET /v1/models", 14);
    http_json(response, sizeof response,
              is_list ? "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\"}]}"
                      : "{\"status\":\"ok\",\"model_path\":\"bench\",\"is_generation\":true}");
    append(&c->out, response, strlen(response));
}

static void http_request(Connection *c, const char *head, const char *body, size_t size) {
    bool streams = memmem(body, size, "\"stream\":true", 13) || memmem(body, size, "\"stream\": true", 14);
    if (strncmp(head, "POST", 4)) http_get(c, head);
    else if (streams) http_stream(c, body, size);
    else append(&c->out, unary_response, strlen(unary_response));
}

bool http_read(Connection *c) {
    while (!c->http && unread_size(&c->in)) {
        Head head = read_head(unread(&c->in), unread_size(&c->in));
        size_t size = message_size(unread(&c->in), unread_size(&c->in), head);
        if (!size) break;
        http_request(c, unread(&c->in), unread(&c->in) + head.head, size - head.head);
        c->in.start += size;
    }
    return true;
}

static void prepare_unary_response(void) {
    char body[700];
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,"
             "\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":"
             "\"stop\"}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}",
             TEXT, PROMPT_TOKENS, TEXT_TOKENS, PROMPT_TOKENS + TEXT_TOKENS);
    http_json(unary_response, sizeof unary_response, body);
}

// ---- connections

void send_out(Connection *c) {
    while (unread_size(&c->out) && !c->dead) {
        ssize_t sent = send(c->fd, unread(&c->out), unread_size(&c->out), MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) c->dead = true;
        else c->out.start += sent;
    }
    bool wants_write = unread_size(&c->out) > 0;
    if (wants_write == c->wants_write) return;
    struct epoll_event watch = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &watch);
    c->wants_write = wants_write;
}

static void receive(Connection *c) {
    reserve(&c->in, READ_BYTES);
    ssize_t got = recv(c->fd, c->in.data + c->in.end, READ_BYTES, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        c->dead = true;
        return;
    }
    c->in.end += got;
    c->in.data[c->in.end] = 0;
    if (!(speaks_grpc ? grpc_read(c) : http_read(c))) c->dead = true;
}

static void drop(Connection *c) {
    close(c->fd);
    grpc_forget(c);
    if (c->http) {
        unpace(c->http);
        free(c->http);
    }
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Connection *c = calloc(1, sizeof *c);
        if (!c) fail("calloc");
        c->fd = fd;
        struct epoll_event watch = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &watch);
        if (speaks_grpc) grpc_greet(c);
        send_out(c);
    }
}

static int listen_at(char *address) {
    char *colon = strrchr(address, ':');
    if (!colon) fail("address");
    *colon = 0;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    inet_pton(AF_INET, address, &at.sin_addr);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) fail("listen");
    return listener;
}

static void serve(int listener) {
    struct epoll_event events[EVENTS];
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = NULL}, watch_timer = {.events = EPOLLIN, .data.ptr = &timer};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &watch);
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &watch_timer);
    for (;;) {
        set_timer();
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) accept_all(listener);
            if (!c || events[i].data.ptr == &timer) continue;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
            send_out(c);
            if (c->dead) drop(c);
        }
        send_due_tokens();
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: upstream --addr|--http HOST:PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    pin_to_core();
    allow_many_files();
    grpc_prepare();
    prepare_unary_response();
    speaks_grpc = !strcmp(arguments[1], "--addr");
    serve(listen_at(arguments[2]));
}
