/* SPDX-License-Identifier: Apache-2.0 */
/*
 * logfmt lines on standard error.  A line is put together in a buffer on the caller's stack and
 * written at once, so that lines of several threads and processes do not mix; there is nothing to
 * flush and nothing to lose in a crash.
 */
#include "log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int max_level = LOG_LEVEL_INFO;

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARN] = "warn",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};
#define NR_LEVELS (sizeof(level_names) / sizeof(level_names[0]))

void log_set_level(enum log_level level)
{
    atomic_store(&max_level, (int)level);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load(&max_level);
}

const char *log_level_name(enum log_level level)
{
    return level_names[level];
}

bool log_parse_level(const char *name, enum log_level *ret_level)
{
    for (unsigned i = 0; i < NR_LEVELS; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

/* The last byte is kept for the newline. */
static void put_char(struct log_line *line, char c)
{
    if (line->len < LOG_LINE_MAX - 1)
        line->text[line->len++] = c;
}

static void put_text(struct log_line *line, const char *text)
{
    while (*text)
        put_char(line, *text++);
}

static void put_escaped(struct log_line *line, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";

    if (c == '"' || c == '\\') {
        put_char(line, '\\');
        put_char(line, (char)c);
    } else if (c < 0x20 || c == 0x7f) {
        put_text(line, "\\x");
        put_char(line, hex[c >> 4]);
        put_char(line, hex[c & 15]);
    } else {
        put_char(line, (char)c);
    }
}

static bool needs_quotes(const char *value)
{
    if (*value == 0)
        return true;
    for (const char *p = value; *p; p++) {
        unsigned char c = (unsigned char)*p;

        if (c <= ' ' || c == 0x7f || c == '"' || c == '=' || c == '\\')
            return true;
    }
    return false;
}

/* ISO 8601 in UTC, with milliseconds. */
static void put_time(struct log_line *line)
{
    char text[64];
    struct timespec now;
    struct tm tm;
    size_t n;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)(now.tv_nsec / 1000000));
    put_text(line, text);
}

static void begin(struct log_line *line, enum log_level level, const char *event)
{
    line->dropped = false;
    line->len = 0;
    put_text(line, "ts=");
    put_time(line);
    put_text(line, " level=");
    put_text(line, level_names[level]);
    put_text(line, " event=");
    put_text(line, event);
}

void log_begin(struct log_line *line, enum log_level level, const char *event)
{
    line->dropped = (int)level > atomic_load(&max_level);
    if (!line->dropped)
        begin(line, level, event);
}

void log_change_level(enum log_level level, const char *by)
{
    const int old = atomic_exchange(&max_level, (int)level);
    struct log_line line;

    begin(&line, LOG_LEVEL_INFO, "log-level");
    log_text(&line, "from", level_names[old]);
    log_text(&line, "to", level_names[level]);
    log_text(&line, "by", by);
    log_end(&line);
}

void log_text(struct log_line *line, const char *key, const char *value)
{
    bool quotes;

    if (line->dropped)
        return;
    quotes = needs_quotes(value);
    put_char(line, ' ');
    put_text(line, key);
    put_char(line, '=');
    if (quotes)
        put_char(line, '"');
    for (; *value; value++)
        put_escaped(line, (unsigned char)*value);
    if (quotes)
        put_char(line, '"');
}

void log_number(struct log_line *line, const char *key, uint64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, value);
    log_text(line, key, text);
}

void log_milliseconds(struct log_line *line, const char *key, uint64_t us)
{
    char text[32];

    snprintf(text, sizeof(text), "%" PRIu64 ".%03u", us / 1000, (unsigned)(us % 1000));
    log_text(line, key, text);
}

void log_end(struct log_line *line)
{
    ssize_t n;

    if (line->dropped)
        return;
    line->text[line->len++] = '\n';
    n = write(STDERR_FILENO, line->text, line->len);
    (void)n; /* there is nobody to tell */
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    char text[LOG_LINE_MAX / 2];
    struct log_line line;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    log_begin(&line, level, event);
    log_text(&line, "msg", text);
    log_end(&line);
}

void log_error(const char *event, const struct cairn_error *err)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_ERROR, event);
    log_text(&line, "code", error_code_name(err->code));
    log_text(&line, "msg", err->message);
    log_end(&line);
}
