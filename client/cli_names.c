/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn tag and cairn rm.
 */
#include <stdio.h>

#include "cli.h"

static int tag(struct cairn_client *client, char **operands, struct cairn_error *err)
{
    return cairn_tag(client, operands[0], operands[1], err);
}

static int rm(struct cairn_client *client, char **operands, struct cairn_error *err)
{
    return cairn_remove(client, operands[0], err);
}

static int run(const struct cli_spec *spec, int argc, char **argv,
               int (*act)(struct cairn_client *client, char **operands, struct cairn_error *err))
{
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(spec, argc, argv, &common, &ret))
        return ret;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = act(client, common.operands, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    return 0;
}

int cli_tag(int argc, char **argv)
{
    static const struct cli_spec spec = {
        .name = "tag",
        .min_operands = 2,
        .max_operands = 2,
        .help =
            "NEW (repo:tag) names what REF names, in the same repository or another; no data is\n"
            "copied.  A tag of that name is moved.",
    };

    return run(&spec, argc, argv, tag);
}

int cli_rm(int argc, char **argv)
{
    static const struct cli_spec spec = {
        .name = "rm",
        .min_operands = 1,
        .max_operands = 1,
        .help =
            "A tag (repo:tag) is removed by itself; a digest (repo@sha256:…) with all tags that\n"
            "name it.",
    };

    return run(&spec, argc, argv, rm);
}
