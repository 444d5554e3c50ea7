/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn rm: tags, and manifests by their digests.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

struct rm_args {
    unsigned flags;
    bool as_json;
    json_t *removed; /* with as_json: what is printed at the end */
};

/* "repo" of a ref. */
static int repo_len(const char *ref)
{
    return (int)strcspn(ref, ":@");
}

static void print_removed(const json_t *what)
{
    char ref[CLI_ESCAPE_MAX], name[CLI_ESCAPE_MAX];
    const json_t *tag;
    size_t i;

    cli_escape(cli_string(what, "ref"), ref);
    puts(ref);
    if (!strchr(ref, '@'))
        return;
    json_array_foreach(json_object_get(what, "tags"), i, tag)
        printf("%.*s:%s\n", repo_len(ref), ref,
               cli_escape(json_is_string(tag) ? json_string_value(tag) : "", name));
}

static int tell(struct rm_args *args, const char *text)
{
    json_t *what = cli_load_json(text);
    int ret = what ? 0 : 1;

    if (what && args->as_json)
        ret = json_array_append(args->removed, what) != 0;
    else if (what && (args->flags & CAIRN_REMOVE_DRY_RUN))
        print_removed(what);
    json_decref(what);
    return ret;
}

static int remove_one(struct cairn_client *client, struct rm_args *args, const char *ref)
{
    struct cairn_error err;
    char *text;
    int ret = cairn_remove_with(client, ref, args->flags, &text, &err);

    if (ret == CAIRN_E_CONFLICT && !(args->flags & CAIRN_REMOVE_TAGS)) {
        char escaped[CLI_ESCAPE_MAX];

        fprintf(stderr, "cairn: %s; --force removes them, too\n", cli_escape(err.message, escaped));
        return 1;
    }
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = tell(args, text);
    free(text);
    return ret;
}

/* The others are removed also if one cannot be. */
static int remove_all(const struct cli_common *common, struct rm_args *args)
{
    struct cairn_client *client;
    struct cairn_error err;
    int worst = 0;

    if (cli_client_new(common, &client, &err) != CAIRN_OK)
        return cli_fail(&err);
    for (int i = 0; i < common->nr_operands; i++) {
        int ret = remove_one(client, args, common->operands[i]);

        worst = ret > worst ? ret : worst;
    }
    cairn_client_free(client);
    cli_progress_end();
    return worst;
}

int cli_rm(int argc, char **argv)
{
    bool force = false, dry_run = false;
    struct rm_args args = {0};
    const struct cli_option options[] = {
        {"force", NULL, NULL, &force, "a manifest also if it has tags, with them"},
        {"dry-run", NULL, NULL, &dry_run, "print what would go, one name a line"},
        {"json", NULL, NULL, &args.as_json, "print what goes as JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "rm",
        .min_operands = 1,
        .max_operands = 10000,
        .options = options,
        .help =
            "A tag (repo:tag) is removed by itself; what it names stays as long as something else\n"
            "names it, and layers as long as a disk has them.  A manifest (repo@sha256:…) is\n"
            "removed if it has no tags, or with --force together with them.  Of several REFs all\n"
            "are tried; the exit code is 1 if one could not be removed.",
    };
    struct cli_common common;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    args.flags = (force ? CAIRN_REMOVE_TAGS : 0u) | (dry_run ? CAIRN_REMOVE_DRY_RUN : 0u);
    args.removed = json_array();
    ret = remove_all(&common, &args);
    if (args.as_json && cli_print_json(args.removed) != 0)
        ret = 1;
    json_decref(args.removed);
    return ret;
}
