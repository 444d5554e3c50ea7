/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn scrub: has the service read all that it stores, and follows it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static void print_refs(const json_t *item)
{
    const json_t *tags = json_object_get(item, "tags"), *tag;
    uint64_t nr_more = cli_number(item, "moreTags");
    size_t i;

    json_array_foreach(tags, i, tag)
    {
        char escaped[CLI_ESCAPE_MAX];

        printf("    %s\n", cli_escape(json_is_string(tag) ? json_string_value(tag) : "", escaped));
    }
    if (nr_more > 0)
        printf("    (and %" PRIu64 " more; the server's log names them)\n", nr_more);
    else if (json_array_size(tags) == 0)
        printf("    (no tag needs it)\n");
}

static void print_damage(const json_t *result)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(result, "damaged"), i, item)
    {
        char digest[CLI_ESCAPE_MAX], problem[CLI_ESCAPE_MAX];

        printf("damaged %s %s: %s\n", cli_string(item, "kind"),
               cli_escape(cli_string(item, "digest"), digest),
               cli_escape(cli_string(item, "problem"), problem));
        print_refs(item);
    }
}

static void print_summary(const json_t *job)
{
    const json_t *result = json_object_get(job, "result");
    size_t nr_put_back = json_array_size(json_object_get(result, "putBack"));
    size_t nr_dropped = json_array_size(json_object_get(result, "dropped"));
    char size[CLI_SIZE_MAX];

    printf("%s: %" PRIu64 " blobs, %s, %" PRIu64 " manifests, %" PRIu64 " index objects; "
           "%zu damaged\n",
           cli_string(job, "state"), cli_number(result, "blobs"),
           cli_size(cli_number(result, "bytes"), size), cli_number(result, "manifests"),
           cli_number(result, "indexObjects"), json_array_size(json_object_get(result, "damaged")));
    if (nr_put_back)
        printf("%zu blobs of the quarantine were right and are back\n", nr_put_back);
    if (nr_dropped)
        printf("%zu damaged index objects were dropped; they are built again\n", nr_dropped);
}

/* 0 for a scrub that has ended and has found nothing. */
static int show(const char *text, bool as_json)
{
    json_t *job = cli_load_json(text);
    const json_t *damaged;
    int ret;

    if (!job)
        return 1;
    damaged = json_object_get(json_object_get(job, "result"), "damaged");
    ret = strcmp(cli_string(job, "state"), "done") != 0 || json_array_size(damaged) > 0;
    cli_progress_end();
    if (as_json) {
        ret |= cli_print_json(job);
    } else {
        char error[CLI_ESCAPE_MAX];

        print_damage(json_object_get(job, "result"));
        print_summary(job);
        if (json_object_get(job, "error"))
            fprintf(stderr, "cairn: scrub: %s\n", cli_escape(cli_string(job, "error"), error));
    }
    json_decref(job);
    return ret;
}

/* The ID of the scrub that runs or was interrupted, malloc'ed; NULL: there is none. */
static char *running_scrub(const char *list_text)
{
    json_t *list = cli_load_json(list_text);
    const json_t *job;
    char *id = NULL;
    size_t i;

    json_array_foreach(json_object_get(list, "jobs"), i, job)
    {
        const char *state = cli_string(job, "state");

        if (!id && (strcmp(state, "running") == 0 || strcmp(state, "interrupted") == 0))
            id = strdup(cli_string(job, "id"));
    }
    json_decref(list);
    return id;
}

static int cancel(struct cairn_client *client)
{
    struct cairn_error err;
    char *list = NULL, *id = NULL;
    int ret = cairn_job_list(client, "scrub", &list, &err);

    if (ret == CAIRN_OK) {
        id = running_scrub(list);
        if (!id) {
            fprintf(stderr, "cairn: no scrub is running\n");
            free(list);
            return 1;
        }
        ret = cairn_job_cancel(client, id, &err);
    }
    free(list);
    free(id);
    return ret == CAIRN_OK ? 0 : cli_fail(&err);
}

static int follow(struct cairn_client *client, const char *id, bool as_json)
{
    struct cairn_error err;
    char *text;
    int ret = cairn_job_wait(client, id, &text, &err);

    if (ret == CAIRN_E_CANCELLED) {
        cli_progress_end();
        fprintf(stderr,
                "cairn: the scrub goes on in the service as job %s; `cairn scrub` follows it, "
                "`cairn scrub --cancel` ends it\n",
                id);
        return 1;
    }
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = show(text, as_json);
    free(text);
    return ret;
}

static int start(struct cairn_client *client, const char *options, bool no_wait, bool as_json)
{
    struct cairn_error err;
    bool joined;
    char *id;
    int ret = cairn_job_start(client, "scrub", options, &id, &joined, &err);

    if (ret != CAIRN_OK)
        return cli_fail(&err);
    if (joined)
        fprintf(stderr, "cairn: a scrub is running already: job %s\n", id);
    if (no_wait)
        puts(id);
    else
        ret = follow(client, id, as_json);
    free(id);
    return ret;
}

static bool rate_option(const char *text, char options[64])
{
    uint64_t rate;

    options[0] = 0;
    if (!text)
        return true;
    if (strcmp(text, "0") != 0 && !cli_parse_size(text, &rate))
        return false;
    snprintf(options, 64, "{\"rate\":%" PRIu64 "}", strcmp(text, "0") == 0 ? 0 : rate);
    return true;
}

int cli_scrub(int argc, char **argv)
{
    const char *rate = NULL;
    bool as_json = false, no_wait = false, do_cancel = false;
    const struct cli_option options[] = {
        {"rate", "SIZE", &rate, NULL, "read so much per second at most (16M); 0: no limit"},
        {"no-wait", NULL, NULL, &no_wait, "print the job's ID and do not wait for it"},
        {"cancel", NULL, NULL, &do_cancel, "end the scrub that is running"},
        {"json", NULL, NULL, &as_json, "print the job as JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "scrub",
        .options = options,
        .help = "The service reads everything that it stores and compares it with its digests.\n"
                "Damaged layers are named with the tags that they touch, and put into quarantine:\n"
                "nobody gets their bytes any more, all else is served on, and pushing them again\n"
                "heals.  The exit code is 0 if there is no damage.",
    };
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char json[64], escaped[CLI_ESCAPE_MAX];
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (!rate_option(rate, json))
        return cli_usage("scrub", "--rate %s is not a size", cli_escape(rate, escaped));
    if (do_cancel && (rate || no_wait))
        return cli_usage("scrub", "--cancel starts nothing");
    if (cli_client_new(&common, &client, &err) != CAIRN_OK)
        return cli_fail(&err);
    ret = do_cancel ? cancel(client) : start(client, json[0] ? json : NULL, no_wait, as_json);
    cairn_client_free(client);
    return ret;
}
