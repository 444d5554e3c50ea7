/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn push and cairn pull.
 */
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"

int cli_push(int argc, char **argv)
{
    const char *format = NULL;
    const struct cli_option options[] = {
        {"format", "qcow2|raw", &format, NULL, "of FILE (default: by its name, else qcow2)"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "push",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .help =
            "FILE and the backing files that it names, down to the base, become the layers of\n"
            "the disk REF (repo:tag).  A push that was interrupted goes on where it was when it\n"
            "is repeated.  The last line printed is the disk's name by digest.",
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
    ret = cairn_push(client, common.operands[0], format, common.operands[1], &by_digest, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    puts(by_digest);
    free(by_digest);
    return 0;
}

int cli_pull(int argc, char **argv)
{
    bool raw = false, chain = false;
    const struct cli_option options[] = {
        {"raw", NULL, NULL, &raw, "OUT is a sparse raw file"},
        {"chain", NULL, NULL, &chain, "OUT is a folder with all layers, linked; DIR/top.qcow2"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "pull",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .help =
            "Without --raw or --chain OUT is one qcow2 file with the disk's content.  OUT must\n"
            "not exist; a folder that an interrupted `pull --chain` began is completed.",
    };
    enum cairn_pull_mode mode = CAIRN_PULL_FLAT;
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (raw && chain)
        return cli_usage("pull", "--raw and --chain exclude each other");
    if (raw || chain)
        mode = raw ? CAIRN_PULL_RAW : CAIRN_PULL_CHAIN;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = cairn_pull(client, common.operands[0], mode, common.operands[1], &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    return 0;
}
