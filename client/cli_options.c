/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of subcommands: `--name value`, `--name=value` and flags, from the subcommand's table and
 * from the few that all of them share.  Help is printed from the same tables.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

#define COMMON_MAX 8

struct parser {
    const struct cli_spec *spec;
    struct cli_common *common;
    bool help;
    struct cli_option shared[COMMON_MAX + 1];
};

static void share_options(struct parser *p)
{
    struct cli_common *common = p->common;
    const struct cli_option service[] = {
        {"server", "URLS", &common->server, NULL,
         "of the service, with commas (default: $CAIRN_SERVER)"},
        {"token-file", "FILE", &common->token_file, NULL,
         "that holds a token for it (default: $CAIRN_TOKEN_FILE)"},
        {"cacert", "FILE", &common->cacert, NULL,
         "authorities of its certificate (default: $CAIRN_CACERT)"},
        {"cert", "FILE", &common->cert, NULL, "certificate of ours (default: $CAIRN_CERT)"},
        {"key", "FILE", &common->key, NULL, "and its key (default: $CAIRN_KEY)"},
        {"insecure-token", NULL, NULL, &common->insecure_token,
         "send the token without TLS to another host"},
    };
    const struct cli_option all[] = {
        {"quiet", NULL, NULL, &common->quiet, "print results and errors only (-q)"},
        {"help", NULL, NULL, &p->help, "print this text (-h)"},
    };
    size_t nr = p->spec->local ? 0 : sizeof(service) / sizeof(service[0]);

    static_assert(sizeof(service) / sizeof(service[0]) + 2 == COMMON_MAX, "room for all of them");
    memcpy(p->shared, service, nr * sizeof(service[0]));
    memcpy(p->shared + nr, all, sizeof(all));
    p->shared[nr + 2] = (struct cli_option){0};
}

static const struct cli_option *find_in(const struct cli_option *table, size_t max,
                                        const char *name, size_t len)
{
    for (size_t i = 0; table && i < max && table[i].name; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

static const struct cli_option *find_option(const struct parser *p, const char *arg)
{
    const struct cli_option *found;
    const char *name = arg + 2;
    size_t len;

    if (strcmp(arg, "-q") == 0)
        name = "quiet";
    else if (strcmp(arg, "-h") == 0)
        name = "help";
    else if (strncmp(arg, "--", 2) != 0)
        return NULL;
    len = strcspn(name, "=");
    found = find_in(p->spec->options, SIZE_MAX, name, len);
    return found ? found : find_in(p->shared, COMMON_MAX, name, len);
}

/* Take option number *at of argv, and its value; *at is then the last word taken. */
static int take_option(const struct parser *p, int argc, char **argv, int *at)
{
    const struct cli_option *option = find_option(p, argv[*at]);
    const char *equals = strchr(argv[*at], '=');
    char escaped[CLI_ESCAPE_MAX];

    if (!option)
        return cli_usage(p->spec->name, "unknown option %s", cli_escape(argv[*at], escaped));
    if (!option->metavar) {
        if (equals)
            return cli_usage(p->spec->name, "option --%s takes no value", option->name);
        *option->flag = true;
        return 0;
    }
    if (!equals && *at + 1 >= argc)
        return cli_usage(p->spec->name, "option --%s needs a value: %s", option->name,
                         option->metavar);
    *option->value = equals ? equals + 1 : argv[++*at];
    return 0;
}

static void print_options(const struct cli_option *table, size_t max)
{
    char name[64];

    for (size_t i = 0; table && i < max && table[i].name; i++) {
        snprintf(name, sizeof(name), "--%s%s%s", table[i].name, table[i].metavar ? " " : "",
                 table[i].metavar ? table[i].metavar : "");
        printf("  %-24s %s\n", name, table[i].help);
    }
}

static void print_help(const struct parser *p)
{
    const struct cli_command *command = cli_command(p->spec->name);

    printf("usage: cairn %s [OPTION]… %s\n\n%s.\n\n", p->spec->name, command->operands,
           command->summary);
    print_options(p->spec->options, SIZE_MAX);
    print_options(p->shared, COMMON_MAX);
    if (p->spec->help)
        printf("\n%s\n", p->spec->help);
}

static int check_operands(const struct parser *p)
{
    const struct cli_spec *spec = p->spec;
    int nr = p->common->nr_operands;

    if (nr < spec->min_operands)
        return cli_usage(spec->name, "expected %s", cli_command(spec->name)->operands);
    if (nr > spec->max_operands)
        return cli_usage(spec->name, "too many operands, expected %s",
                         cli_command(spec->name)->operands);
    return 0;
}

bool cli_parse(const struct cli_spec *spec, int argc, char **argv, struct cli_common *ret_common,
               int *ret_exit)
{
    struct parser p = {.spec = spec, .common = ret_common};
    bool options_end = false;

    *ret_common = (struct cli_common){.operands = argv + 1};
    share_options(&p);
    *ret_exit = 0;
    for (int i = 1; i < argc && *ret_exit == 0; i++) {
        bool number = argv[i][0] && argv[i][1] >= '0' && argv[i][1] <= '9';

        if (options_end || argv[i][0] != '-' || argv[i][1] == 0 || number)
            ret_common->operands[ret_common->nr_operands++] = argv[i];
        else if (strcmp(argv[i], "--") == 0)
            options_end = true;
        else
            *ret_exit = take_option(&p, argc, argv, &i);
    }
    if (*ret_exit != 0)
        return false;
    if (p.help) {
        print_help(&p);
        return false;
    }
    *ret_exit = check_operands(&p);
    return *ret_exit == 0;
}
