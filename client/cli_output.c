/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the user sees: the progress bar, errors, sizes, JSON.  Results go to stdout, everything else
 * to stderr; text that comes from images and services is escaped on its way to either.
 */
#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

/* -- Text from outside ---------------------------------------------------------------------- */

/* Bytes of the UTF-8 sequence at s that may be printed as it is, or 0. */
static size_t printable_len(const unsigned char *s)
{
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    json_t *valid;

    if (s[0] >= 0x20 && s[0] < 0x7f)
        return 1;
    if (s[0] < 0xc3 ||
        s[0] > 0xf4) /* ASCII controls, 0xc2: C1 controls and a few more; not UTF-8 */
        return 0;
    if (memcmp(s, "\xe2\x80", 2) == 0 || memcmp(s, "\xe2\x81", 2) == 0) /* directional marks */
        return 0;
    if (strnlen((const char *)s, len) < len)
        return 0;
    valid = json_stringn((const char *)s, len); /* checks UTF-8 */
    json_decref(valid);
    return valid ? len : 0;
}

char *cli_escape(const char *text, char buf[CLI_ESCAPE_MAX])
{
    const unsigned char *s = (const unsigned char *)text;
    size_t n = 0;

    while (*s && n + 8 < CLI_ESCAPE_MAX) {
        size_t len = printable_len(s);

        if (len == 0) {
            n += (size_t)sprintf(buf + n, "\\x%02x", *s++);
            continue;
        }
        memcpy(buf + n, s, len);
        n += len;
        s += len;
    }
    buf[n] = 0;
    return buf;
}

char *cli_size(uint64_t bytes, char buf[CLI_SIZE_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(buf, CLI_SIZE_MAX, "%" PRIu64 " B", bytes);
    else
        snprintf(buf, CLI_SIZE_MAX, "%.*f %s", value < 100 ? 1 : 0, value, units[unit]);
    return buf;
}

/* -- Progress and signals ------------------------------------------------------------------- */

/* Set by a signal handler, on whichever thread that runs, and read by any. */
static atomic_int cancelled;
static_assert(ATOMIC_INT_LOCK_FREE == 2, "a signal handler may use it");

static struct {
    bool shown;
    char what[64];
    double started, printed; /* seconds */
    uint64_t start_bytes;
} bar;

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int terminal_width(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 40 ? size.ws_col : 80;
}

static void format_eta(double seconds, char *buf, size_t room)
{
    long s = (long)seconds;

    if (seconds < 0 || seconds > 360000)
        snprintf(buf, room, "--:--");
    else if (s >= 3600)
        snprintf(buf, room, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, room, "%ld:%02ld", s / 60, s % 60);
}

static void draw(uint64_t done, uint64_t total, double at)
{
    double elapsed = at - bar.started;
    double rate = elapsed > 0.2 ? (double)(done - bar.start_bytes) / elapsed : 0;
    double part = total ? (double)done / (double)total : 1;
    char done_text[CLI_SIZE_MAX], total_text[CLI_SIZE_MAX], rate_text[CLI_SIZE_MAX];
    char eta[32], tail[160], cells[64];
    int width = terminal_width(), nr_cells;

    format_eta(rate > 0 ? (double)(total - done) / rate : -1, eta, sizeof(eta));
    snprintf(tail, sizeof(tail), "%3d%%  %s of %s  %s/s  %s", (int)(part * 100),
             cli_size(done, done_text), cli_size(total, total_text),
             cli_size((uint64_t)rate, rate_text), eta);
    nr_cells = width - 14 - (int)strlen(tail);
    nr_cells = nr_cells < 0 ? 0 : nr_cells > 40 ? 40 : nr_cells;
    memset(cells, '.', sizeof(cells));
    memset(cells, '#', (size_t)(part * nr_cells));
    fprintf(stderr, "\r%-8.8s [%.*s] %s\033[K", bar.what, nr_cells, cells, tail);
    bar.shown = true;
}

static int on_progress(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    const bool *visible = ctx;
    double at;

    if (*visible && total > 0) {
        at = now();
        if (strncmp(bar.what, what, sizeof(bar.what) - 1) != 0) {
            snprintf(bar.what, sizeof(bar.what), "%s", what);
            bar.started = at;
            bar.start_bytes = done;
        }
        if (done > total)
            total = done;
        if (done < bar.start_bytes) /* an upload that had to go back */
            bar.start_bytes = done;
        /* What is over in a moment needs no bar. */
        if (at - bar.printed > 0.1 && (bar.shown || at - bar.started > 0.3)) {
            draw(done, total, at);
            bar.printed = at;
        }
    }
    return atomic_load(&cancelled);
}

void cli_progress_end(void)
{
    if (bar.shown)
        fprintf(stderr, "\r\033[K");
    bar.shown = false;
}

static void on_signal(int signal_nr)
{
    (void)signal_nr;
    atomic_store(&cancelled, 1);
}

cairn_progress_fn cli_progress(const struct cli_common *common, void **ret_ctx)
{
    static bool visible;
    const struct sigaction action = {.sa_handler = on_signal,
                                     .sa_flags = SA_RESTART | (int)SA_RESETHAND};

    visible = !common->quiet && isatty(STDERR_FILENO);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    *ret_ctx = &visible;
    return on_progress;
}

int cli_client_new(const struct cli_common *common, struct cairn_client **ret_client,
                   struct cairn_error *err)
{
    struct cairn_client_options options = CAIRN_CLIENT_OPTIONS_INIT;

    options.server = common->server;
    options.token_file = common->token_file;
    options.insecure_token = common->insecure_token;
    options.cacert = common->cacert;
    options.cert = common->cert;
    options.key = common->key;
    options.progress = cli_progress(common, &options.progress_ctx);
    return cairn_client_new(&options, ret_client, err);
}

/* -- Errors --------------------------------------------------------------------------------- */

/* What to do about it, where the message cannot know. */
static const char *advice(int code)
{
    if (code == CAIRN_E_UNAVAILABLE)
        return "; is cairnd running there? (--server, CAIRN_SERVER)";
    if (code == CAIRN_E_CANCELLED)
        return "; the same command goes on where it was";
    if (code == CAIRN_E_DENIED)
        return "; check permissions, the token (--token-file, CAIRN_TOKEN), certificates";
    return "";
}

int cli_fail(const struct cairn_error *err)
{
    char escaped[CLI_ESCAPE_MAX];

    cli_progress_end();
    fprintf(stderr, "cairn: %s%s\n", cli_escape(err->message, escaped), advice(err->code));
    return cairn_exit_code(err->code);
}

int cli_usage(const char *command, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "cairn %s: ", command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "; see `cairn help %s`\n", command);
    va_end(ap);
    return 2;
}

/* -- JSON ----------------------------------------------------------------------------------- */

json_t *cli_load_json(const char *text)
{
    json_error_t trouble;
    json_t *json = json_loads(text, 0, &trouble);

    if (!json)
        fprintf(stderr, "cairn: the answer is not JSON: %s\n", trouble.text);
    return json;
}

int cli_print_json(const json_t *json)
{
    cli_progress_end();
    if (json_dumpf(json, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII) != 0 || putchar('\n') == EOF ||
        fflush(stdout) != 0) {
        fprintf(stderr, "cairn: cannot write the result\n");
        return 1;
    }
    return 0;
}

const char *cli_string(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));

    return text ? text : "";
}

uint64_t cli_number(const json_t *object, const char *field)
{
    json_int_t n = json_integer_value(json_object_get(object, field));

    return n > 0 ? (uint64_t)n : 0;
}

bool cli_bool(const json_t *object, const char *field)
{
    return json_is_true(json_object_get(object, field));
}

void cli_line(const char *name, const char *fmt, ...)
{
    char label[64];
    va_list ap;

    snprintf(label, sizeof(label), "%s:", name);
    printf("%-16s ", label);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}
