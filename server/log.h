/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one line per event on standard error, in logfmt, each written by one write(2).
 *
 *     struct log_line line;
 *     log_begin(&line, LOG_LEVEL_INFO, "request");
 *     log_text(&line, "path", path);
 *     log_number(&line, "status", 200);
 *     log_end(&line);
 *
 * Keys are ours; values may come from anywhere: they are quoted and escaped where needed and cut
 * where the line is full.  Thread-safe, a line belongs to one thread.
 */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

/* Lines above the level are dropped; LOG_LEVEL_INFO at first. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
const char *log_level_name(enum log_level level);
/* The same while it runs: logged whatever the level, with who has asked for it. */
void log_change_level(enum log_level level, const char *by);
/* "error", "warn", "info", "debug"; false for anything else. */
bool log_parse_level(const char *name, enum log_level *ret_level);

#define LOG_LINE_MAX 4096

struct log_line {
    bool dropped;
    size_t len;
    char text[LOG_LINE_MAX];
};

void log_begin(struct log_line *line, enum log_level level, const char *event);
void log_text(struct log_line *line, const char *key, const char *value);
void log_number(struct log_line *line, const char *key, uint64_t value);
/* A duration of us microseconds, as milliseconds with three digits behind the point. */
void log_milliseconds(struct log_line *line, const char *key, uint64_t us);
void log_end(struct log_line *line);

/* An event with one thing to say, and an error with its code. */
void log_event(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void log_error(const char *event, const struct cairn_error *err);

#endif
