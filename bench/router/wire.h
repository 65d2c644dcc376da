/* What the mock upstream and the load generator share. */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STAMP '@' /* begins the 16 digits in an event that say when it was sent, in microseconds */
#define STAMP_DIGITS 16

static inline int64_t now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static inline void fail(const char *what) {
    perror(what);
    exit(1);
}

static inline void *grown(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (memory == NULL) fail("realloc");
    return memory;
}

#endif
