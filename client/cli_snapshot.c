/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn snapshot.
 */
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"

int cli_snapshot(int argc, char **argv)
{
    const char *compress = NULL, *level = NULL;
    const struct cli_option options[] = {
        {"compress", "none|zlib|zstd", &compress, NULL, "of whole clusters (default: none)"},
        {"level", "N", &level, NULL, "of compression: zlib 1-9, zstd 1-19"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "snapshot",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .help =
            "Publishes what the disk in DIR holds now as REF (repo:tag).  If the disk is attached\n"
            "it goes on meanwhile, and goes on on top of the snapshot.  A snapshot that failed is\n"
            "completed by repeating it.  The last line printed is the disk's name by digest.",
    };
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char escaped[CLI_ESCAPE_MAX];
    struct cairn_seal_options seal;
    char *by_digest, *notice;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (!cli_seal_options(spec.name, compress, level, &seal))
        return 2;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = cairn_folder_snapshot_with(client, common.operands[0], common.operands[1], &seal,
                                     &by_digest, &notice, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    if (notice)
        fprintf(stderr, "cairn: %s\n", cli_escape(notice, escaped));
    puts(by_digest);
    free(notice);
    free(by_digest);
    return 0;
}
