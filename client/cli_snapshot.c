/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn snapshot.
 */
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"

int cli_snapshot(int argc, char **argv)
{
    const struct cli_spec spec = {
        .name = "snapshot",
        .min_operands = 2,
        .max_operands = 2,
        .help =
            "Publishes what the disk in DIR holds now as REF (repo:tag).  If the disk is attached\n"
            "it goes on meanwhile, and goes on on top of the snapshot.  A snapshot that failed is\n"
            "completed by repeating it.  The last line printed is the disk's name by digest.",
    };
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char *by_digest;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = cairn_folder_snapshot(client, common.operands[0], common.operands[1], &by_digest, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    puts(by_digest);
    free(by_digest);
    return 0;
}
