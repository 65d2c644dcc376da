/*
 * A load generator for HTTP/1.1 on loopback: one thread, one epoll, a fixed number of connections, each of which asks
 * again as soon as it has its answer.
 *
 *     load [-w WARM_UP_SECONDS] [-d DRAIN_SECONDS] [-k KEY] [-a EVENTS] PORT CONNECTIONS SECONDS BODY_FILE
 *
 * BODY_FILE is posted to /v1/chat/completions. -a: hang up after so many events of a stream, then connect anew. -d: in
 * the end wait so long at most for the answers to what was asked.
 * Prints JSON: counts of the whole run, and times (microseconds) of what ended after the warm-up.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 256, HEAD_SIZE = 16384, LINE_SIZE = 2048, READ_SIZE = 65536 };

enum place { HEAD, LENGTH, DATA, DATA_END, TRAILER }; /* in an answer; all but HEAD and DATA are of chunked ones */

struct connection {
    int fd;
    size_t sent;
    bool waits; /* for the socket to take the rest of the request */
    int64_t began;
    enum place place;
    char head[HEAD_SIZE];
    size_t head_size;
    bool chunked, done;
    int status;
    uint64_t left; /* of the body, or of a chunk of it */
    char line[LINE_SIZE]; /* the line of the body that is not complete yet */
    size_t line_size;
    long events;
};

struct times {
    double *all;
    size_t count, room;
};

static int epoll, port;
static long hang_up_after;
static int64_t warm_at, end_at;
static char *request;
static size_t request_size;
static struct times latency, event_delay;
static long asked, requests, refused, errors, hung_up, events_seen;

static void note(struct times *times, double value) {
    if (times->count == times->room) {
        times->room = 2 * times->room + 4096;
        times->all = grown(times->all, times->room * sizeof *times->all);
    }
    times->all[times->count++] = value;
}

static void watch(struct connection *connection, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(epoll, operation, connection->fd, &event) < 0) fail("epoll_ctl");
}

/* Asking. */

/* A connection that failed is found out where its answer is read. */
static void send_on(struct connection *connection) {
    const char *rest = request + connection->sent;
    ssize_t taken = send(connection->fd, rest, request_size - connection->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (taken > 0) connection->sent += taken;
    bool waits = connection->sent < request_size;
    if (waits != connection->waits) watch(connection, waits ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    connection->waits = waits;
}

static void ask(struct connection *connection) {
    connection->sent = connection->head_size = connection->line_size = 0;
    connection->events = 0;
    connection->done = false;
    connection->place = HEAD;
    connection->began = now_us();
    asked++;
    send_on(connection);
}

static void reconnect(struct connection *connection) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    if (connection->fd >= 0) close(connection->fd);
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    connection->waits = false;
    watch(connection, EPOLLIN, EPOLL_CTL_ADD);
    ask(connection);
}

/* Reading the answer. */

static void line_ends(struct connection *connection, int64_t now) {
    char *line = connection->line;
    line[connection->line_size] = 0;
    connection->line_size = 0;
    if (strncmp(line, "data: {", 7) != 0) return;
    events_seen++;
    connection->events++;
    char *stamp = strchr(line, STAMP);
    if (stamp != NULL && now >= warm_at) note(&event_delay, now - atoll(stamp + 1));
}

static void read_body(struct connection *connection, const char *data, size_t size, int64_t now) {
    while (size > 0) {
        const char *end = memchr(data, '\n', size);
        size_t part = end == NULL ? size : (size_t)(end - data), room = LINE_SIZE - 1 - connection->line_size;
        memcpy(connection->line + connection->line_size, data, part < room ? part : room);
        connection->line_size += part < room ? part : room;
        if (end == NULL) return;
        line_ends(connection, now);
        data += part + 1;
        size -= part + 1;
    }
}

static void head_ends(struct connection *connection) {
    char *head = connection->head;
    head[connection->head_size] = 0;
    char *length = strcasestr(head, "\r\ncontent-length:");
    connection->status = atoi(head + 9);
    connection->chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
    connection->left = length == NULL ? 0 : strtoull(length + 17, NULL, 10);
    connection->place = connection->chunked ? LENGTH : DATA;
    connection->done = !connection->chunked && connection->left == 0;
    connection->head_size = 0;
}

/* A line of a chunked answer's framing: a length, the end of a chunk, or of the trailer. */
static void frame_ends(struct connection *connection) {
    connection->head[connection->head_size] = 0;
    if (connection->place == LENGTH) {
        connection->left = strtoull(connection->head, NULL, 16);
        connection->place = connection->left > 0 ? DATA : TRAILER;
    } else if (connection->place == DATA_END) {
        connection->place = LENGTH;
    } else {
        connection->done = connection->head_size == 2; /* an empty line */
    }
    connection->head_size = 0;
}

/* Take the answer apart as it comes. */
static void digest(struct connection *connection, const char *data, size_t size, int64_t now) {
    while (size > 0 && !connection->done) {
        if (connection->place == DATA) {
            size_t part = size < connection->left ? size : connection->left;
            read_body(connection, data, part, now);
            data += part;
            size -= part;
            connection->left -= part;
            if (connection->left > 0) continue;
            connection->done = !connection->chunked;
            connection->place = DATA_END;
            continue;
        }
        if (connection->head_size < HEAD_SIZE - 1) connection->head[connection->head_size++] = *data;
        data++;
        size--;
        if (data[-1] != '\n') continue;
        if (connection->place != HEAD) {
            frame_ends(connection);
        } else if (connection->head_size >= 4 && memcmp(connection->head + connection->head_size - 4, "\r\n\r\n", 4) == 0) {
            head_ends(connection);
        }
    }
}

static void close_late(struct connection *connection) {
    if (!connection->done) errors++;
    epoll_ctl(epoll, EPOLL_CTL_DEL, connection->fd, NULL);
}

static void take(struct connection *connection) {
    static char data[READ_SIZE];
    ssize_t got = recv(connection->fd, data, sizeof data, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (now_us() >= end_at) return close_late(connection);
        errors++;
        reconnect(connection);
        return;
    }
    int64_t now = now_us();
    digest(connection, data, got, now);
    if (connection->done) {
        requests++;
        refused += connection->status != 200;
        if (now >= warm_at) note(&latency, now - connection->began);
        if (now < end_at) ask(connection);
    } else if (hang_up_after && connection->events >= hang_up_after) {
        hung_up++;
        reconnect(connection);
    }
}

/* The report. */

static int ascending(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void print_times(const char *name, struct times *times) {
    qsort(times->all, times->count, sizeof *times->all, ascending);
    double half = times->count ? times->all[times->count / 2] : 0;
    double most = times->count ? times->all[times->count * 99 / 100] : 0;
    printf(",\"%s\":{\"count\":%zu,\"p50\":%.1f,\"p99\":%.1f}", name, times->count, half, most);
}

static void read_request(const char *path, const char *key) {
    FILE *file = fopen(path, "rb");
    struct stat about;
    if (file == NULL || fstat(fileno(file), &about) < 0) fail(path);
    request = grown(NULL, about.st_size + 1024);
    int head = snprintf(request, 1024,
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\n"
                        "content-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\n"
                        "content-length: %lld\r\n\r\n",
                        port, key, (long long)about.st_size);
    request_size = head + fread(request + head, 1, about.st_size, file);
    fclose(file);
}

int main(int count, char **arguments) {
    const char *key = "sk-bench";
    double warm_up = 0, drain = 0;
    int option;
    while ((option = getopt(count, arguments, "w:d:k:a:")) != -1) {
        if (option == 'w') warm_up = atof(optarg);
        if (option == 'd') drain = atof(optarg);
        if (option == 'k') key = optarg;
        if (option == 'a') hang_up_after = atol(optarg);
    }
    if (count - optind != 4) {
        fprintf(stderr, "load [-w SECONDS] [-d SECONDS] [-k KEY] [-a EVENTS] PORT CONNECTIONS SECONDS BODY_FILE\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    port = atoi(arguments[optind]);
    int connections = atoi(arguments[optind + 1]);
    read_request(arguments[optind + 3], key);
    int64_t start = now_us();
    warm_at = start + (int64_t)(warm_up * 1e6);
    end_at = start + (int64_t)(atof(arguments[optind + 2]) * 1e6);
    epoll = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    if (all == NULL) fail("calloc");
    for (int i = 0; i < connections; i++) {
        all[i].fd = -1;
        reconnect(&all[i]);
    }
    struct epoll_event ready[BATCH];
    int64_t drained_at = end_at + (int64_t)(drain * 1e6), now;
    while ((now = now_us()) < end_at || (now < drained_at && requests + errors + hung_up < asked)) {
        int some = epoll_wait(epoll, ready, BATCH, 100);
        for (int i = 0; i < some; i++) {
            struct connection *connection = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT) send_on(connection);
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take(connection);
        }
    }
    printf("{\"seconds\":%.3f,\"requests\":%ld,\"refused\":%ld,\"errors\":%ld,\"hung_up\":%ld,\"events\":%ld",
           (now_us() - start) / 1e6, requests, refused, errors, hung_up, events_seen);
    print_times("latency_us", &latency);
    print_times("event_us", &event_delay);
    printf("}\n");
    return 0;
}
