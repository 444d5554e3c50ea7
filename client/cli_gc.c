/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn gc: has the service give back what nothing refers to, and follows it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

struct gc {
    const char *grace; /* as given, or NULL */
    bool dry_run, no_wait, as_json;
};

/* "90", "15m", "12h", "7d". */
static bool parse_seconds(const char *text, uint64_t *ret_seconds)
{
    static const struct {
        const char *unit;
        uint64_t seconds;
    } units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 9)
        return false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(text + digits, units[i].unit) != 0)
            continue;
        *ret_seconds = strtoull(text, NULL, 10) * units[i].seconds;
        return true;
    }
    return false;
}

/* -- What is told ----------------------------------------------------------------------------- */

static void print_kind(const char *name, const json_t *kind, bool dry_run)
{
    char size[CLI_SIZE_MAX];
    uint64_t revived = cli_number(kind, "revived");

    if (cli_number(kind, "seen") + cli_number(kind, "deleted") == 0)
        return;
    printf("%-12s %" PRIu64 " of %" PRIu64 " %s, %s", name, cli_number(kind, "deleted"),
           cli_number(kind, "seen"), dry_run ? "would go" : "gone",
           cli_size(cli_number(kind, "bytes"), size));
    if (revived)
        printf("; %" PRIu64 " were wanted after all", revived);
    putchar('\n');
}

static void print_job(const json_t *job)
{
    static const char *const kinds[] = {"manifests", "links",   "blobs",
                                        "index",     "uploads", "temporaries"};
    const json_t *result = json_object_get(job, "result");
    bool dry_run = cli_bool(result, "dryRun");
    char size[CLI_SIZE_MAX];

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        print_kind(kinds[i], json_object_get(json_object_get(result, "kinds"), kinds[i]), dry_run);
    if (cli_number(result, "expiredLeases"))
        printf("%" PRIu64 " leases had expired\n", cli_number(result, "expiredLeases"));
    if (cli_number(result, "keptRepositories"))
        printf("%" PRIu64 " repositories keep all that they have, for something in them cannot be "
               "read: see the service's log\n",
               cli_number(result, "keptRepositories"));
    printf("%s: %s %s\n", cli_string(job, "state"),
           cli_size(cli_number(result, "bytesFreed"), size), dry_run ? "would be freed" : "freed");
}

static int show(const char *text, bool as_json)
{
    json_t *job = cli_load_json(text);
    char error[CLI_ESCAPE_MAX];
    int ret;

    if (!job)
        return 1;
    ret = strcmp(cli_string(job, "state"), "done") != 0;
    cli_progress_end();
    if (as_json)
        ret |= cli_print_json(job);
    else
        print_job(job);
    if (!as_json && json_object_get(job, "error"))
        fprintf(stderr, "cairn: gc: %s\n", cli_escape(cli_string(job, "error"), error));
    json_decref(job);
    return ret;
}

/* -- The job ---------------------------------------------------------------------------------- */

static int follow(struct cairn_client *client, const char *id, bool as_json)
{
    struct cairn_error err;
    char *text;
    int ret = cairn_job_wait(client, id, &text, &err);

    if (ret == CAIRN_E_CANCELLED) {
        cli_progress_end();
        fprintf(stderr, "cairn: the collection goes on in the service as job %s\n", id);
        return 1;
    }
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = show(text, as_json);
    free(text);
    return ret;
}

static int start(struct cairn_client *client, const struct gc *gc, const char *options)
{
    struct cairn_error err;
    bool joined;
    char *id;
    int ret = cairn_job_start(client, "gc", options, &id, &joined, &err);

    if (ret != CAIRN_OK)
        return cli_fail(&err);
    if (joined) {
        cli_progress_end();
        fprintf(stderr,
                "cairn: a collection is running already, as job %s: this is about that "
                "one\n",
                id);
    }
    if (gc->no_wait)
        puts(id);
    else
        ret = follow(client, id, gc->as_json);
    free(id);
    return ret;
}

/* malloc'ed; NULL: a message has been printed. */
static char *make_options(const struct gc *gc)
{
    json_t *options = json_pack("{s:b}", "dryRun", gc->dry_run);
    uint64_t grace;
    char *text;

    if (gc->grace && !parse_seconds(gc->grace, &grace)) {
        json_decref(options);
        cli_usage("gc", "--grace: expected seconds, or a number with m, h or d");
        return NULL;
    }
    if (gc->grace)
        json_object_set_new(options, "grace", json_integer((json_int_t)grace));
    text = json_dumps(options, JSON_COMPACT);
    json_decref(options);
    return text;
}

int cli_gc(int argc, char **argv)
{
    struct gc gc = {.grace = NULL};
    const struct cli_option options[] = {
        {"dry-run", NULL, NULL, &gc.dry_run, "tell what would go, and change nothing"},
        {"grace", "TIME", &gc.grace, NULL,
         "keep what is younger: seconds, or 15m, 12h, 7d (default: the service's gc-grace)"},
        {"no-wait", NULL, NULL, &gc.no_wait, "print the job's ID and do not follow it"},
        {"json", NULL, NULL, &gc.as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "gc",
        .min_operands = 0,
        .max_operands = 0,
        .options = options,
        .help =
            "What no tag and no lease leads to is deleted: manifests, layers, and what was\n"
            "derived from them.  Everybody may go on pushing and reading meanwhile.  Disks that\n"
            "are attached are leased; a disk folder that is not attached needs a tag on the\n"
            "chain that it stands on.",
    };
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char *text;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    text = make_options(&gc);
    if (!text)
        return 2;
    ret = cli_client_new(&common, &client, &err);
    if (ret == CAIRN_OK) {
        ret = start(client, &gc, text);
        cairn_client_free(client);
    } else {
        ret = cli_fail(&err);
    }
    free(text);
    return ret;
}
