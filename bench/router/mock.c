/*
 * A mock of an OpenAI upstream: one thread, one epoll.
 *
 *     mock PORT [PORT ...]
 *
 * POST answers a chat completion, streamed if the body says "stream":true; every event carries the time it was sent.
 * GET /control?chunk_us=N&chunks=N&answer_us=N sets the pause between two events, the events per stream and the delay
 * of an answer that is not streamed; it returns the counters. Times are in microseconds.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 256, EVENT_SIZE = 512 };

enum state { IDLE, ANSWERING, STREAMING };

struct client {
    int fd;
    bool listens, dead, queued;
    enum state state;
    char *in; /* the request, as far as it has come */
    size_t in_size, in_room;
    char *out; /* what the socket has not taken yet */
    size_t out_size, out_room;
    long events_left;
    int64_t due;
    struct client *before, *after; /* in the queue of those that wait for their time */
};

static int epoll;
static struct client *first, *last, *dead;
static long chunk_us, chunks = 100, answer_us;
static long requests, streams, aborted, sent_chunks, sent_bytes;

/* The queue, sorted by time. Pauses are alike, so a place near the end is nearly always right. */

static void enqueue(struct client *client) {
    struct client *place = last;
    while (place != NULL && place->due > client->due) place = place->before;
    client->before = place;
    client->after = place == NULL ? first : place->after;
    *(client->after == NULL ? &last : &client->after->before) = client;
    *(place == NULL ? &first : &place->after) = client;
    client->queued = true;
}

static void dequeue(struct client *client) {
    if (!client->queued) return;
    *(client->before == NULL ? &first : &client->before->after) = client->after;
    *(client->after == NULL ? &last : &client->after->before) = client->before;
    client->queued = false;
}

static void drop(struct client *client) {
    if (client->dead) return;
    if (client->state != IDLE) aborted++;
    dequeue(client);
    close(client->fd);
    client->dead = true;
    client->after = dead; /* freed at the end of the turn: epoll may have more to say of it */
    dead = client;
}

static void bury(void) {
    while (dead != NULL) {
        struct client *client = dead;
        dead = client->after;
        free(client->in);
        free(client->out);
        free(client);
    }
}

/* Writing. */

static void watch(struct client *client, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, operation, client->fd, &event) < 0) fail("epoll_ctl");
}

static void send_all(struct client *client, const char *data, size_t size) {
    ssize_t taken = 0;
    if (client->out_size == 0) {
        taken = send(client->fd, data, size, MSG_NOSIGNAL);
        if (taken < 0 && errno != EAGAIN) {
            drop(client);
            return;
        }
        if (taken < 0) taken = 0;
        sent_bytes += taken;
        if ((size_t)taken == size) return;
        watch(client, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    size -= taken;
    if (client->out_size + size > client->out_room) {
        client->out_room = client->out_size + size + EVENT_SIZE;
        client->out = grown(client->out, client->out_room);
    }
    memcpy(client->out + client->out_size, data + taken, size);
    client->out_size += size;
}

static void send_json(struct client *client, const char *status, const char *body) {
    char answer[2 * EVENT_SIZE];
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", status,
                        strlen(body), body);
    send_all(client, answer, size);
}

static void send_completion(struct client *client) {
    client->state = IDLE;
    send_json(client, "200 OK",
              "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\","
              "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello. How can I help?\"},"
              "\"finish_reason\":\"stop\"}],"
              "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":7,\"total_tokens\":16}}");
}

static void send_event(struct client *client) {
    char data[EVENT_SIZE], framed[EVENT_SIZE + 64];
    bool end = --client->events_left <= 0;
    int size = snprintf(data, sizeof data,
                        "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                        "\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%c%0*lld\"},"
                        "\"finish_reason\":%s}]}\n\n%s",
                        STAMP, STAMP_DIGITS, (long long)now_us(), end ? "\"stop\"" : "null",
                        end ? "data: [DONE]\n\n" : "");
    size = snprintf(framed, sizeof framed, "%x\r\n%s\r\n%s", size, data, end ? "0\r\n\r\n" : "");
    if (end) client->state = IDLE;
    sent_chunks++;
    send_all(client, framed, size);
}

/* Requests. */

static long setting(const char *query, const char *name, long otherwise) {
    const char *found = strstr(query, name);
    return found == NULL ? otherwise : atol(found + strlen(name));
}

static void control(struct client *client, const char *query) {
    char body[EVENT_SIZE];
    chunk_us = setting(query, "chunk_us=", chunk_us);
    chunks = setting(query, "chunks=", chunks);
    answer_us = setting(query, "answer_us=", answer_us);
    snprintf(body, sizeof body,
             "{\"requests\":%ld,\"streams\":%ld,\"aborted\":%ld,\"sent_chunks\":%ld,\"sent_bytes\":%ld}", requests,
             streams, aborted, sent_chunks, sent_bytes);
    send_json(client, "200 OK", body);
}

static void get(struct client *client, const char *target) {
    if (strncmp(target, "/control", 8) == 0) {
        control(client, target);
    } else if (strncmp(target, "/v1/models", 10) == 0) {
        send_json(client, "200 OK",
                  "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
                  "\"owned_by\":\"bench\"}]}");
    } else if (strncmp(target, "/health", 7) == 0) {
        send_json(client, "200 OK", "{\"status\":\"ok\"}");
    } else {
        send_json(client, "404 Not Found", "{\"error\":{\"message\":\"Not here.\",\"type\":\"not_found_error\"}}");
    }
}

static void post(struct client *client, const char *body, size_t size) {
    requests++;
    bool streamed = memmem(body, size, "\"stream\":true", 13) || memmem(body, size, "\"stream\": true", 14);
    if (streamed) {
        static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                                   "transfer-encoding: chunked\r\n\r\n";
        streams++;
        client->state = STREAMING;
        client->events_left = chunks;
        /* Streams that began together must not stay in step, or the proxy would get their events in one go. */
        client->due = now_us() + (chunk_us ? rand() % chunk_us : 0);
        send_all(client, head, sizeof head - 1);
        if (!client->dead) enqueue(client);
    } else if (answer_us) {
        client->state = ANSWERING;
        client->due = now_us() + answer_us;
        enqueue(client);
    } else {
        send_completion(client);
    }
}

/* One request, when it is there wholly. */
static void parse(struct client *client) {
    client->in[client->in_size] = 0;
    char *end = strstr(client->in, "\r\n\r\n");
    if (end == NULL || client->state != IDLE) return;
    char *body = end + 4;
    *end = 0;
    char *length = strcasestr(client->in, "\r\ncontent-length:");
    size_t size = length == NULL ? 0 : strtoul(length + 17, NULL, 10);
    if (client->in_size - (body - client->in) < size) {
        *end = '\r';
        return;
    }
    client->in_size = 0;
    if (strncmp(client->in, "GET ", 4) == 0) {
        client->in[strcspn(client->in, "\r")] = 0;
        get(client, client->in + 4);
    } else if (length == NULL) {
        send_json(client, "411 Length Required", "{\"error\":{\"message\":\"No length.\"}}");
    } else {
        post(client, body, size);
    }
}

static void take_in(struct client *client) {
    for (;;) {
        if (client->in_room - client->in_size < 65536) {
            client->in_room = 2 * client->in_room + 65537;
            client->in = grown(client->in, client->in_room);
        }
        ssize_t got = recv(client->fd, client->in + client->in_size, client->in_room - client->in_size - 1, 0);
        if (got < 0 && errno == EAGAIN) break;
        if (got <= 0) {
            drop(client);
            return;
        }
        client->in_size += got;
        if (client->in_size + 1 < client->in_room) break;
    }
    parse(client);
}

static void let_out(struct client *client) {
    ssize_t taken = send(client->fd, client->out, client->out_size, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        drop(client);
        return;
    }
    if (taken < 0) return;
    sent_bytes += taken;
    client->out_size -= taken;
    memmove(client->out, client->out + taken, client->out_size);
    if (client->out_size > 0) return;
    watch(client, EPOLLIN, EPOLL_CTL_MOD);
    if (client->state != IDLE && !client->queued) enqueue(client);
}

/* The turn of those whose time has come. A stream whose socket is full waits until it is not. */
static void serve_due(void) {
    int64_t now = now_us();
    while (first != NULL && first->due <= now) {
        struct client *client = first;
        dequeue(client);
        if (client->state == ANSWERING) {
            send_completion(client);
            continue;
        }
        send_event(client);
        client->due = chunk_us ? client->due + chunk_us : now + 1;
        if (!client->dead && client->state != IDLE && client->out_size == 0) enqueue(client);
    }
}

static void accept_all(int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct client *client = calloc(1, sizeof *client);
        if (client == NULL) fail("calloc");
        client->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        watch(client, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void listen_on(int port) {
    int yes = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct client *client = calloc(1, sizeof *client);
    if (client == NULL) fail("calloc");
    client->listens = true;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(client->fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(client->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(client->fd, 4096) < 0) fail("listen");
    watch(client, EPOLLIN, EPOLL_CTL_ADD);
}

static void handle(struct client *client, uint32_t events) {
    if (client->listens) {
        accept_all(client->fd);
        return;
    }
    if (!client->dead && (events & (EPOLLERR | EPOLLHUP))) drop(client);
    if (!client->dead && (events & EPOLLIN)) take_in(client);
    if (!client->dead && (events & EPOLLOUT)) let_out(client);
}

int main(int count, char **arguments) {
    struct epoll_event events[BATCH];
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(0);
    for (int i = 1; i < count; i++) listen_on(atoi(arguments[i]));
    for (;;) {
        int64_t wait = first == NULL ? 1000000 : first->due - now_us();
        struct timespec limit = {wait > 0 ? wait / 1000000 : 0, wait > 0 ? wait % 1000000 * 1000 : 0};
        int ready = epoll_pwait2(epoll, events, BATCH, &limit, NULL);
        if (ready < 0 && errno != EINTR) fail("epoll_pwait2");
        for (int i = 0; i < ready; i++) handle(events[i].data.ptr, events[i].events);
        serve_due();
        bury();
    }
}
