/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn image seal, and the options that it shares with cairn snapshot.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

bool cli_seal_options(const char *command, const char *compress, const char *level,
                      struct cairn_seal_options *ret_options)
{
    static const char *const names[] = {
        [CAIRN_COMPRESS_NONE] = "none",
        [CAIRN_COMPRESS_ZLIB] = "zlib",
        [CAIRN_COMPRESS_ZSTD] = "zstd",
    };
    const int max = (int)(sizeof(names) / sizeof(names[0]));
    char escaped[CLI_ESCAPE_MAX];
    int type = 0;
    char *end;

    *ret_options = (struct cairn_seal_options)CAIRN_SEAL_OPTIONS_INIT;
    while (compress && type < max && strcmp(compress, names[type]) != 0)
        type++;
    if (type == max) {
        cli_usage(command, "--compress is none, zlib or zstd, not %s",
                  cli_escape(compress, escaped));
        return false;
    }
    ret_options->compress = (enum cairn_compress)type;
    if (!level)
        return true;
    ret_options->level = (int)strtoul(level, &end, 10);
    if (strlen(level) <= 2 && level[0] >= '1' && level[0] <= '9' && !*end)
        return true;
    cli_usage(command, "--level is a number such as 3, not %s", cli_escape(level, escaped));
    return false;
}

static void count_line(const json_t *json, const char *field, const char *label)
{
    if (cli_number(json, field) > 0)
        cli_line(label, "%" PRIu64, cli_number(json, field));
}

static void print_seal(const json_t *json)
{
    char before[CLI_SIZE_MAX], after[CLI_SIZE_MAX], zeros[CLI_SIZE_MAX];

    cli_line("size", "%s, was %s", cli_size(cli_number(json, "bytesAfter"), after),
             cli_size(cli_number(json, "bytesBefore"), before));
    cli_line("clusters", "%" PRIu64 ", and %" PRIu64 " compressed",
             cli_number(json, "dataClusters"), cli_number(json, "compressedClusters"));
    cli_line("zeros found", "%s", cli_size(cli_number(json, "zeroBytes"), zeros));
    count_line(json, "clustersDropped", "clusters dropped");
    count_line(json, "snapshotsDropped", "snapshots dropped");
    count_line(json, "bitmapsDropped", "bitmaps dropped");
}

static int show(const char *text, bool as_json)
{
    json_t *json = cli_load_json(text);
    int ret = 0;

    if (!json)
        return 1;
    if (as_json)
        ret = cli_print_json(json);
    else
        print_seal(json);
    json_decref(json);
    return ret;
}

int cli_image_seal(int argc, char **argv)
{
    const char *format = NULL, *compress = NULL, *level = NULL;
    bool as_json = false;
    const struct cli_option options[] = {
        {"format", "qcow2", &format, NULL, "of FILE (default: by its name, else qcow2)"},
        {"compress", "none|zlib|zstd", &compress, NULL, "of whole clusters (default: none)"},
        {"level", "N", &level, NULL, "of compression: zlib 1-9, zstd 1-19"},
        {"json", NULL, NULL, &as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "image seal",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .local = true,
        .help =
            "Writes what FILE shows into OUT, in guest order, without anything that is not needed\n"
            "for it, and without zeros.  The backing file stays what it is.  The same content and\n"
            "options give the same bytes.",
    };
    struct cairn_seal_options seal;
    struct cli_common common;
    struct cairn_error err;
    cairn_progress_fn progress;
    void *progress_ctx;
    char *text;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (!cli_seal_options(spec.name, compress, level, &seal))
        return 2;
    progress = cli_progress(&common, &progress_ctx);
    ret = cairn_image_seal(common.operands[0], format, common.operands[1], &seal, progress,
                           progress_ctx, &text, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    ret = show(text, as_json);
    free(text);
    return ret;
}
