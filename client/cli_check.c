/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn image check: a local file, no service.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static void count_line(const json_t *json, const char *field, const char *label)
{
    if (cli_number(json, field) > 0)
        cli_line(label, "%" PRIu64, cli_number(json, field));
}

static void print_findings(const json_t *json)
{
    const json_t *finding;
    size_t i;

    json_array_foreach(json_object_get(json, "findings"), i, finding)
    {
        char escaped[CLI_ESCAPE_MAX];

        printf("%-14s %s", cli_string(finding, "kind"),
               cli_escape(cli_string(finding, "text"), escaped));
        if (json_object_get(finding, "guest-offset"))
            printf(" (guest %#" PRIx64 ")", cli_number(finding, "guest-offset"));
        putchar('\n');
    }
    if (cli_number(json, "findings-omitted") > 0)
        printf("… and %" PRIu64 " more\n", cli_number(json, "findings-omitted"));
}

static void print_check(const json_t *json)
{
    uint64_t total = cli_number(json, "total-clusters");

    print_findings(json);
    cli_line("state", "%s", cli_string(json, "state"));
    count_line(json, "check-errors", "check errors");
    count_line(json, "corruptions", "corruptions");
    count_line(json, "corruptions-fixed", "fixed");
    count_line(json, "overlaps", "overlaps");
    count_line(json, "leaks", "leaks");
    count_line(json, "leaks-fixed", "leaks fixed");
    cli_line("clusters",
             "%" PRIu64 " of %" PRIu64 " allocated, %" PRIu64 " compressed, %" PRIu64 " fragmented",
             cli_number(json, "allocated-clusters"), total, cli_number(json, "compressed-clusters"),
             cli_number(json, "fragmented-clusters"));
    cli_line("image end", "%" PRIu64, cli_number(json, "image-end-offset"));
}

static bool parse_repair(const char *text, enum cairn_repair *ret_repair)
{
    *ret_repair = CAIRN_REPAIR_NONE;
    if (!text)
        return true;
    if (strcmp(text, "leaks") == 0)
        *ret_repair = CAIRN_REPAIR_LEAKS;
    else if (strcmp(text, "all") == 0)
        *ret_repair = CAIRN_REPAIR_ALL;
    else
        return false;
    return true;
}

/* 0 only for an image that is clean (now). */
static int show(const char *text, bool as_json)
{
    json_t *json = cli_load_json(text);
    int ret = 1;

    if (!json)
        return 1;
    if (strcmp(cli_string(json, "state"), "clean") == 0)
        ret = 0;
    if (as_json)
        ret = cli_print_json(json) == 0 ? ret : 1;
    else
        print_check(json);
    json_decref(json);
    return ret;
}

int cli_image_check(int argc, char **argv)
{
    const char *format = NULL, *repair_text = NULL;
    bool as_json = false;
    const struct cli_option options[] = {
        {"format", "qcow2", &format, NULL, "of FILE (default: by its name, else qcow2)"},
        {"repair", "leaks|all", &repair_text, NULL, "repair FILE in place"},
        {"json", NULL, NULL, &as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "image check",
        .min_operands = 1,
        .max_operands = 1,
        .options = options,
        .local = true,
        .help =
            "Counts references to all clusters and compares them with the refcounts.  The exit\n"
            "code is 0 if the image is clean, after the repair if one is asked for.",
    };
    struct cli_common common;
    enum cairn_repair repair;
    struct cairn_error err;
    char escaped[CLI_ESCAPE_MAX];
    cairn_progress_fn progress;
    void *progress_ctx;
    char *text;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (!parse_repair(repair_text, &repair))
        return cli_usage(spec.name, "--repair is leaks or all, not %s",
                         cli_escape(repair_text, escaped));
    progress = cli_progress(&common, &progress_ctx);
    ret =
        cairn_image_check(common.operands[0], format, repair, progress, progress_ctx, &text, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    ret = show(text, as_json);
    free(text);
    return ret;
}
