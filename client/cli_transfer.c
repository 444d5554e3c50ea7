/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn push and cairn pull.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* -- push ----------------------------------------------------------------------------------- */

struct push_args {
    const char *file, *format, *snapshot, *ref;
    bool all;
};

/* The names by digest of what cairn_push_internal_all gave, REF's last. */
static int print_pushed(const char *json_text)
{
    json_t *json = cli_load_json(json_text);
    const json_t *snapshot;
    size_t i;

    if (!json)
        return 1;
    json_array_foreach(json_object_get(json, "snapshots"), i, snapshot)
    {
        char name[CLI_ESCAPE_MAX];

        printf("%s %s %s\n", cli_string(snapshot, "tag"), cli_string(snapshot, "ref"),
               cli_escape(cli_string(snapshot, "name"), name));
    }
    puts(cli_string(json, "ref"));
    json_decref(json);
    return 0;
}

static int push(struct cairn_client *client, const struct push_args *args, char **ret_text,
                struct cairn_error *err)
{
    if (args->all)
        return cairn_push_internal_all(client, args->file, args->ref, ret_text, err);
    if (args->snapshot)
        return cairn_push_internal(client, args->file, args->snapshot, args->ref, ret_text, err);
    return cairn_push(client, args->file, args->format, args->ref, ret_text, err);
}

static int push_and_print(const struct cli_common *common, const struct push_args *args)
{
    struct cairn_client *client;
    struct cairn_error err;
    char *text;
    int ret = cli_client_new(common, &client, &err);

    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = push(client, args, &text, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    ret = 0;
    if (args->all)
        ret = print_pushed(text);
    else
        puts(text);
    free(text);
    return ret;
}

int cli_push(int argc, char **argv)
{
    struct push_args args = {0};
    const struct cli_option options[] = {
        {"format", "qcow2|raw", &args.format, NULL, "of FILE (default: by its name, else qcow2)"},
        {"internal", "NAME", &args.snapshot, NULL, "push this internal snapshot (name or ID)"},
        {"internal-all", NULL, NULL, &args.all, "push all internal snapshots and the active disk"},
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
            "is repeated.  The last line printed is the disk's name by digest.\n\n"
            "With --internal-all the snapshots become the tags TAG-NAME and the active disk REF,\n"
            "a line each; what they share is stored once.",
    };
    struct cli_common common;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (args.snapshot && args.all)
        return cli_usage("push", "--internal and --internal-all exclude each other");
    if ((args.snapshot || args.all) && args.format && strcmp(args.format, "qcow2") != 0)
        return cli_usage("push", "only qcow2 images have internal snapshots");
    args.file = common.operands[0];
    args.ref = common.operands[1];
    return push_and_print(&common, &args);
}

/* -- pull ----------------------------------------------------------------------------------- */

int cli_pull(int argc, char **argv)
{
    bool raw = false, chain = false;
    const char *internal = NULL;
    const struct cli_option options[] = {
        {"raw", NULL, NULL, &raw, "OUT is a sparse raw file"},
        {"chain", NULL, NULL, &chain, "OUT is a folder with all layers, linked; DIR/top.qcow2"},
        {"internal", "NAME", &internal, NULL,
         "pull this internal snapshot of the top layer (name or ID)"},
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
    if (internal && chain)
        return cli_usage("pull", "--internal and --chain exclude each other");
    if (raw || chain)
        mode = raw ? CAIRN_PULL_RAW : CAIRN_PULL_CHAIN;
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = internal ? cairn_pull_internal(client, common.operands[0], internal, mode,
                                         common.operands[1], &err)
                   : cairn_pull(client, common.operands[0], mode, common.operands[1], &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    cli_progress_end();
    return 0;
}
