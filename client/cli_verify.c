/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn verify: is a disk whole?
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

static void print_list(const json_t *list, const char *prefix)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        char layer[CLI_ESCAPE_MAX], text[CLI_ESCAPE_MAX];

        cli_escape(cli_string(item, "layer"), layer);
        printf("%s%s%s%s\n", prefix, layer, layer[0] ? ": " : "",
               cli_escape(cli_string(item, "text"), text));
    }
}

static void print_result(const json_t *json)
{
    char ref[CLI_ESCAPE_MAX], size[CLI_SIZE_MAX];

    print_list(json_object_get(json, "problems"), "");
    print_list(json_object_get(json, "skipped"), "not checked: ");
    printf("%s: %s, %" PRIu64 " layers, %s\n", cli_escape(cli_string(json, "ref"), ref),
           cli_string(json, "state"), cli_number(json, "depth"),
           cli_size(cli_number(json, "bytes"), size));
}

/* 0 only for a disk in which nothing is wrong. */
static int show(const char *text, bool as_json)
{
    json_t *json = cli_load_json(text);
    int ret;

    if (!json)
        return 1;
    ret = strcmp(cli_string(json, "state"), "good") != 0;
    cli_progress_end();
    if (as_json)
        ret |= cli_print_json(json);
    else
        print_result(json);
    json_decref(json);
    return ret;
}

/* A folder of a disk, not a ref: those have a colon or an @, and do not exist as folders. */
static bool is_folder(const char *operand)
{
    struct stat st;

    return stat(operand, &st) == 0 && S_ISDIR(st.st_mode);
}

int cli_verify(int argc, char **argv)
{
    bool as_json = false, where_stored = false;
    const struct cli_option options[] = {
        {"scrub", NULL, NULL, &where_stored,
         "the service reads the layers where they are stored (needs admin)"},
        {"json", NULL, NULL, &as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "verify",
        .min_operands = 1,
        .max_operands = 1,
        .options = options,
        .help =
            "The manifest and every layer of REF are fetched and compared with their digests, the\n"
            "layers' tables checked, and the chain that the service serves compared with the\n"
            "manifest's.  That needs no more than the right to pull; nothing is kept.  With\n"
            "--scrub only tables travel, and layers that are damaged are put into quarantine.\n"
            "Of a disk folder DIR the chain below it is verified, and its local layers.\n"
            "The exit code is 0 if nothing is wrong; else what is wrong is listed.",
    };
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char *text;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (cli_client_new(&common, &client, &err) != CAIRN_OK)
        return cli_fail(&err);
    if (is_folder(common.operands[0]))
        ret = cairn_verify_folder(client, common.operands[0], where_stored, &text, &err);
    else
        ret = cairn_verify(client, common.operands[0], where_stored, &text, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = show(text, as_json);
    free(text);
    return ret;
}
