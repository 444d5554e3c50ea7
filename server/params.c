/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parameters: one table, and the four ways it is used.
 *
 * A value goes through set_param whichever way it came, so all of them have the same limits and
 * the same messages; where it was found ("--workers", "cairnd.conf:3: workers", "CAIRN_WORKERS") is
 * put in front.
 */
#include "params.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "byte_count.h"
#include "chain_index.h"
#include "log.h"
#include "manifest.h"
#include "proxies.h"
#include "quota_rules.h"
#include "quote.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define CONFIG_LINE_MAX 4096

enum param_type {
    PARAM_TEXT,
    PARAM_LOG_LEVEL,
    PARAM_QUOTA,
    PARAM_PROXIES,
    PARAM_METRICS_ACCESS,
    PARAM_NUMBER,
    PARAM_BYTES, /* a number with an optional K, M, G or T behind it */
};

struct param {
    const char *name;
    enum param_type type;
    size_t field; /* offset in struct params: char * for text, else uint64_t */
    const char *default_text;
    uint64_t min, max;
    const char *unit;
    const char *help;
};

#define FIELD(f) offsetof(struct params, f)

static const struct param table[] = {
    {"listen", PARAM_TEXT, FIELD(listen), "127.0.0.1:7117", 0, 0, "addr:port",
     "address to listen on; port 0 takes any that is free"},
    {"store", PARAM_TEXT, FIELD(store), "fs:/var/lib/cairn", 0, 0, "URL",
     "object store: fs:<folder>, made if missing; slow:<ms>:<URL>: the same from afar"},
    {"port-file", PARAM_TEXT, FIELD(port_file), NULL, 0, 0, "file",
     "write the address listened on to this file once requests are answered"},
    {"tls-cert", PARAM_TEXT, FIELD(tls_cert), NULL, 0, 0, "file",
     "certificate of the server (PEM, with those in between): serve TLS; read again on SIGHUP"},
    {"tls-key", PARAM_TEXT, FIELD(tls_key), NULL, 0, 0, "file", "its key (PEM)"},
    {"tls-client-ca", PARAM_TEXT, FIELD(tls_client_ca), NULL, 0, 0, "file",
     "demand certificates of clients, signed by one of these (PEM)"},
    {"token-file", PARAM_TEXT, FIELD(token_file), NULL, 0, 0, "file",
     "tokens and what they may do; without it everybody may do everything; read again on SIGHUP"},
    {"anonymous-pull", PARAM_TEXT, FIELD(anonymous_pull), NULL, 0, 0, "pattern[,pattern…]",
     "repositories that may be read without a token, such as public/*"},
    {"metrics-access", PARAM_METRICS_ACCESS, FIELD(metrics_access), "admin", 0, 0, "who",
     "who may read /metrics: admin (tokens granted that) or open (everybody)"},
    {"trusted-proxies", PARAM_PROXIES, FIELD(trusted_proxies), NULL, 0, 0, "address|network[,...]",
     "proxies whose X-Forwarded-For says which client= a request's line of the log names"},
    {"log-level", PARAM_LOG_LEVEL, FIELD(log_level), "info", 0, 0, "level",
     "what is logged: error, warn, info (a line per request) or debug"},
    {"workers", PARAM_NUMBER, FIELD(workers), "16", 1, 1024, "threads",
     "threads that read and write the store"},
    {"http-threads", PARAM_NUMBER, FIELD(http_threads), "2", 1, 256, "threads",
     "threads that parse requests and send replies"},
    {"max-connections", PARAM_NUMBER, FIELD(max_connections), "4096", 1, 1000000, "connections",
     "connections at a time; more are refused"},
    {"max-connections-per-client", PARAM_NUMBER, FIELD(max_connections_per_client), "2048", 0,
     1000000, "connections", "the same of one address, of IPv6 of one /64; 0: no limit"},
    {"connection-memory", PARAM_BYTES, FIELD(connection_memory), "128K", 32 * KIB, 16 * MIB,
     "bytes", "buffer of a connection: bounds its headers, and what one step of an upload takes"},
    {"connection-timeout", PARAM_NUMBER, FIELD(connection_timeout), "120", 1, 86400, "seconds",
     "a connection on which nothing happens for this long is closed"},
    {"max-headers", PARAM_NUMBER, FIELD(max_headers), "100", 10, 10000, "headers",
     "headers of a request"},
    {"max-header-size", PARAM_BYTES, FIELD(max_header_size), "32K", 4 * KIB, 16 * MIB, "bytes",
     "headers of a request together"},
    {"header-timeout", PARAM_NUMBER, FIELD(header_timeout), "30", 0, 86400, "seconds",
     "how long the headers of a request may take from its first byte on; 0: no limit"},
    {"min-rate", PARAM_BYTES, FIELD(min_rate), "1K", 0, GIB, "bytes a second",
     "who sends a body or fetches a reply more slowly is cut; 0: nobody is"},
    {"min-rate-window", PARAM_NUMBER, FIELD(min_rate_window), "30", 1, 3600, "seconds",
     "over how long a time of waiting for a client its rate is taken"},
    {"request-deadline", PARAM_NUMBER, FIELD(request_deadline), "86400", 0, 31536000, "seconds",
     "a request that takes longer, from its first line to the end of its reply, is cut; 0: none "
     "is"},
    {"body-memory", PARAM_BYTES, FIELD(body_memory), "256M", 32 * MIB, 16 * TIB, "bytes",
     "memory for manifests that are being received; more are refused with 503"},
    {"reply-memory", PARAM_BYTES, FIELD(reply_memory), "1G", 32 * MIB, 16 * TIB, "bytes",
     "memory for replies that clients have not fetched yet; more are refused with 503"},
    {"drain-time", PARAM_NUMBER, FIELD(drain_time), "0", 0, 3600, "seconds",
     "how long to go on serving after SIGTERM, with /readyz at 503, before the end; another ends "
     "it"},
    {"stop-timeout", PARAM_NUMBER, FIELD(stop_timeout), "30", 0, 3600, "seconds",
     "how long requests may go on after SIGTERM"},
    {"redis", PARAM_TEXT, FIELD(redis), NULL, 0, 0, "host:port[,host:port…]",
     "Redis nodes that all servers share as a cache of chain indexes; keys are spread over them"},
    {"redis-sentinel", PARAM_TEXT, FIELD(redis_sentinel), NULL, 0, 0, "name@host:port[,host:port…]",
     "sentinels that know the master of this name, instead of redis"},
    {"redis-deadline", PARAM_NUMBER, FIELD(redis_deadline), "10", 1, 1000, "milliseconds",
     "how long a look-up waits for Redis before it goes on without"},
    {"redis-expiry", PARAM_NUMBER, FIELD(redis_expiry), "604800", 0, 315360000, "seconds",
     "how long Redis keeps what is put there; 0: until it needs the memory"},
    {"meta-cache", PARAM_BYTES, FIELD(meta_cache), "256M", MIB, 16 * TIB, "bytes",
     "memory for L1s and L2 slices of chain indexes"},
    {"cluster-cache", PARAM_BYTES, FIELD(cluster_cache), "64M", MIB, 16 * TIB, "bytes",
     "memory for decompressed clusters"},
    {"max-depth", PARAM_NUMBER, FIELD(max_depth), "65535", 1, CHAIN_DEPTH_MAX, "layers",
     "the longest chain that is accepted"},
    {"max-virtual-size", PARAM_BYTES, FIELD(max_virtual_size), "64T", MIB, CHAIN_VIRTUAL_SIZE_MAX,
     "bytes", "the largest disk that is accepted"},
    {"max-manifest", PARAM_BYTES, FIELD(max_manifest), "32M", 4 * KIB, MANIFEST_BYTES_MAX, "bytes",
     "the largest manifest that is accepted"},
    {"max-upload", PARAM_BYTES, FIELD(max_upload), "64T", MIB, CHAIN_VIRTUAL_SIZE_MAX, "bytes",
     "the largest blob that is accepted"},
    {"scrub-rate", PARAM_BYTES, FIELD(scrub_rate), "64M", 0, TIB, "bytes",
     "a scrub reads so much per second at most, unless it is told otherwise; 0: no limit"},
    {"scrub-interval", PARAM_NUMBER, FIELD(scrub_interval), "0", 0, 315360000, "seconds",
     "a scrub of the store starts so long after the last one; 0: only when it is asked for"},
    {"quota", PARAM_QUOTA, FIELD(quota), NULL, 0, 0, "size|pattern=size[,...]",
     "bytes that a repository may hold; of several patterns the first that matches counts"},
    {"max-uploads", PARAM_NUMBER, FIELD(max_uploads), "1024", 1, 1000000, "uploads",
     "unfinished uploads that one repository may have"},
    {"max-unfinished", PARAM_BYTES, FIELD(max_unfinished), "64T", MIB, CHAIN_VIRTUAL_SIZE_MAX,
     "bytes", "what unfinished uploads of one repository may hold together"},
    {"upload-age", PARAM_NUMBER, FIELD(upload_age), "604800", 60, 315360000, "seconds",
     "an unfinished upload is removed when nothing was added to it for this long"},
    {"gc-interval", PARAM_NUMBER, FIELD(gc_interval), "0", 0, 315360000, "seconds",
     "between garbage collections that begin by themselves, on one server of the store; 0: none"},
    {"gc-grace", PARAM_NUMBER, FIELD(gc_grace), "86400", 0, 315360000, "seconds",
     "what nothing refers to is kept for so long, for whoever is about to refer to it"},
    {"gc-memory", PARAM_BYTES, FIELD(gc_memory), "256M", MIB, 16 * TIB, "bytes",
     "what a garbage collection may use to tell what is live: 43 to 85 bytes for each manifest, "
     "layer and chain"},
};
#define NR_PARAMS (sizeof(table) / sizeof(table[0]))

static int check_log_level(const char *text, struct cairn_error *err)
{
    enum log_level level;
    char quoted[QUOTE_MAX];

    if (log_parse_level(text, &level))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "%s, expected error, warn, info or debug",
                     quote_str(text, quoted));
}

static int check_quota(const char *text, struct cairn_error *err)
{
    CLEANUP(quota_rules_free_p) struct quota_rules *rules = NULL;

    return quota_rules_parse(text, &rules, err);
}

static int check_proxies(const char *text, struct cairn_error *err)
{
    CLEANUP(proxies_free_p) struct proxies *proxies = NULL;

    return proxies_parse(text, &proxies, err);
}

static int check_metrics_access(const char *text, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (strcmp(text, "admin") == 0 || strcmp(text, "open") == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "%s, expected admin or open", quote_str(text, quoted));
}

/* The types that are texts; NULL: any text will do. */
static const struct {
    bool is_text;
    int (*check)(const char *text, struct cairn_error *err);
} types[] = {
    [PARAM_TEXT] = {true, NULL},
    [PARAM_LOG_LEVEL] = {true, check_log_level},
    [PARAM_METRICS_ACCESS] = {true, check_metrics_access},
    [PARAM_QUOTA] = {true, check_quota},
    [PARAM_PROXIES] = {true, check_proxies},
    [PARAM_NUMBER] = {false, NULL},
    [PARAM_BYTES] = {false, NULL},
};

static bool is_text(const struct param *p)
{
    return types[p->type].is_text;
}

static void *field_of(struct params *params, const struct param *p)
{
    return (char *)params + p->field;
}

static const struct param *find_param(const char *name, size_t len)
{
    for (size_t i = 0; i < NR_PARAMS; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

/* -- Values ------------------------------------------------------------------------------- */

static int set_text(const struct param *p, char **field, const char *text, struct cairn_error *err)
{
    char *copy;
    int r;

    if (!*text)
        return error_set(err, CAIRN_E_USAGE, "empty, expected %s", p->unit);
    r = types[p->type].check ? types[p->type].check(text, err) : CAIRN_OK;
    if (r)
        return r;
    copy = strdup(text);
    if (!copy)
        return error_no_memory(err, "a parameter");
    free(*field);
    *field = copy;
    return CAIRN_OK;
}

static int set_number(const struct param *p, uint64_t *field, const char *text,
                      struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    const size_t len = strlen(text);
    uint64_t value;
    bool is_one = p->type == PARAM_BYTES ? byte_count_parse(text, len, &value)
                                         : number_parse(text, len, &value);

    if (!is_one || value < p->min || value > p->max)
        return error_set(err, CAIRN_E_USAGE, "%s, expected %" PRIu64 " to %" PRIu64 " %s%s",
                         quote_str(text, quoted), p->min, p->max, p->unit,
                         p->type == PARAM_BYTES ? " (K, M, G, T)" : "");
    *field = value;
    return CAIRN_OK;
}

static int set_param(struct params *params, const struct param *p, const char *text,
                     struct cairn_error *err)
{
    return is_text(p) ? set_text(p, field_of(params, p), text, err)
                      : set_number(p, field_of(params, p), text, err);
}

static int set_defaults(struct params *params, struct cairn_error *err)
{
    int r = CAIRN_OK;

    memset(params, 0, sizeof(*params));
    for (size_t i = 0; i < NR_PARAMS && r == CAIRN_OK; i++)
        if (table[i].default_text)
            r = set_param(params, &table[i], table[i].default_text, err);
    return r;
}

void params_release(struct params *params)
{
    for (size_t i = 0; i < NR_PARAMS; i++)
        if (is_text(&table[i]))
            free(*(char **)field_of(params, &table[i]));
    memset(params, 0, sizeof(*params));
}

/* -- Configuration file ------------------------------------------------------------------- */

static char *strip(char *text)
{
    size_t len;

    while (isspace((unsigned char)*text))
        text++;
    len = strlen(text);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        text[--len] = 0;
    return text;
}

static int apply_line(struct params *params, char *line, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    const struct param *p;
    char *name = strip(line);
    char *value;
    int r;

    if (!*name || *name == '#')
        return CAIRN_OK;
    value = strchr(name, '=');
    if (!value)
        return error_set(err, CAIRN_E_USAGE, "%s, expected `name = value`",
                         quote_str(name, quoted));
    *value++ = 0;
    name = strip(name);
    p = find_param(name, strlen(name));
    if (!p)
        return error_set(err, CAIRN_E_USAGE, "unknown parameter %s", quote_str(name, quoted));
    r = set_param(params, p, strip(value), err);
    return r == CAIRN_OK ? r : error_prefix(err, r, "%s", p->name);
}

static int apply_file(struct params *params, const char *path, struct cairn_error *err)
{
    char line[CONFIG_LINE_MAX];
    FILE *file = fopen(path, "re");
    int r = CAIRN_OK;

    if (!file)
        return error_set_errno(err, errno, "cannot open configuration file %s", path);
    for (unsigned nr = 1; r == CAIRN_OK && fgets(line, sizeof(line), file); nr++) {
        if (strlen(line) == sizeof(line) - 1)
            r = error_set(err, CAIRN_E_USAGE, "line longer than %d bytes", CONFIG_LINE_MAX - 2);
        else
            r = apply_line(params, line, err);
        if (r)
            error_prefix(err, r, "%s:%u", path, nr);
    }
    if (r == CAIRN_OK && ferror(file))
        r = error_set_errno(err, errno, "cannot read configuration file %s", path);
    fclose(file);
    return r;
}

/* -- Environment -------------------------------------------------------------------------- */

/* "CAIRN_HTTP_THREADS" for "http-threads". */
static void env_name(const struct param *p, char *buf, size_t room)
{
    size_t n = (size_t)snprintf(buf, room, "CAIRN_%s", p->name);

    for (size_t i = 0; i < n && i < room; i++)
        buf[i] = buf[i] == '-' ? '_' : (char)toupper((unsigned char)buf[i]);
}

static int apply_env(struct params *params, char **env, struct cairn_error *err)
{
    int r = CAIRN_OK;

    for (; env && *env && r == CAIRN_OK; env++) {
        for (size_t i = 0; i < NR_PARAMS && r == CAIRN_OK; i++) {
            char name[64];
            size_t len;

            env_name(&table[i], name, sizeof(name));
            len = strlen(name);
            if (strncmp(*env, name, len) != 0 || (*env)[len] != '=')
                continue;
            r = set_param(params, &table[i], *env + len + 1, err);
            if (r)
                error_prefix(err, r, "environment variable %s", name);
        }
    }
    return r;
}

/* -- Command line ------------------------------------------------------------------------- */

/* One option of the command line: its name without dashes, and its value. */
struct option_at {
    const char *name;
    size_t name_len;
    const char *value;
};

/* Take apart argv[*i]; *i moves to the last word that was used. */
static int next_option(int argc, char **argv, int *i, struct option_at *ret_option,
                       struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    const char *word = argv[*i];
    const char *equals = strchr(word, '=');

    if (strncmp(word, "--", 2) != 0 || !word[2])
        return error_set(err, CAIRN_E_USAGE, "unexpected argument %s; try --help",
                         quote_str(word, quoted));
    ret_option->name = word + 2;
    ret_option->name_len = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
    ret_option->value = equals ? equals + 1 : NULL;
    if (!equals && *i + 1 < argc)
        ret_option->value = argv[++*i];
    return CAIRN_OK;
}

static bool option_is(const struct option_at *o, const char *name)
{
    return o->name_len == strlen(name) && memcmp(o->name, name, o->name_len) == 0;
}

static int apply_option(struct params *params, const struct option_at *o, bool config_only,
                        struct cairn_error *err)
{
    bool is_config = option_is(o, "config");
    const struct param *p = find_param(o->name, o->name_len);
    char quoted[QUOTE_MAX];
    int r;

    if (!is_config && !p)
        return error_set(err, CAIRN_E_USAGE, "unknown option --%s; try --help",
                         quote_bytes(o->name, o->name_len, quoted));
    if (!o->value)
        return error_set(err, CAIRN_E_USAGE, "--%.*s needs a value", (int)o->name_len, o->name);
    if (is_config != config_only)
        return CAIRN_OK;
    r = is_config ? apply_file(params, o->value, err) : set_param(params, p, o->value, err);
    if (r && !is_config)
        error_prefix(err, r, "--%s", p->name);
    return r;
}

static int apply_command_line(struct params *params, int argc, char **argv, bool config_only,
                              struct cairn_error *err)
{
    int r = CAIRN_OK;

    for (int i = 1; i < argc && r == CAIRN_OK; i++) {
        struct option_at o = {0};

        r = next_option(argc, argv, &i, &o, err);
        if (r == CAIRN_OK)
            r = apply_option(params, &o, config_only, err);
    }
    return r;
}

static enum params_action wanted_action(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0)
            return PARAMS_HELP;
        if (strcmp(argv[i], "--version") == 0)
            return PARAMS_VERSION;
        if (strcmp(argv[i], "--routes") == 0)
            return PARAMS_ROUTES;
    }
    return PARAMS_RUN;
}

int params_load(int argc, char **argv, char **env, struct params *ret_params,
                enum params_action *ret_action, struct cairn_error *err)
{
    int r = set_defaults(ret_params, err);

    *ret_action = wanted_action(argc, argv);
    if (r == CAIRN_OK && *ret_action == PARAMS_RUN) {
        r = apply_command_line(ret_params, argc, argv, true, err);
        if (r == CAIRN_OK)
            r = apply_env(ret_params, env, err);
        if (r == CAIRN_OK)
            r = apply_command_line(ret_params, argc, argv, false, err);
    }
    if (r)
        params_release(ret_params);
    return r;
}

/* -- Help --------------------------------------------------------------------------------- */

void params_help(FILE *out)
{
    fprintf(out, "usage: cairnd [--config FILE] [--NAME VALUE]...\n\n"
                 "Serves disks that are chains of QCOW2 layers over HTTP; see cairnd(8).\n"
                 "Each parameter can also stand in FILE as `NAME = VALUE`, or in the environment "
                 "as CAIRN_NAME.\n\n");
    for (size_t i = 0; i < NR_PARAMS; i++) {
        const struct param *p = &table[i];

        fprintf(out, "  --%s <%s>\n        %s", p->name, p->unit, p->help);
        if (p->default_text)
            fprintf(out, "\n        default %s", p->default_text);
        if (!is_text(p))
            fprintf(out, "; %" PRIu64 " to %" PRIu64, p->min, p->max);
        fputc('\n', out);
    }
    fprintf(out, "  --routes\n        print what a token must be granted for each request\n"
                 "  --help, --version\n");
}
