/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn tag: another name for a disk.
 */
#include "cli.h"

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
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = cairn_tag(client, common.operands[0], common.operands[1], &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    return 0;
}
