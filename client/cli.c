/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cairn command: a table of subcommands drives dispatch and help.  All that they do is done by
 * libcairn.
 */
#include "cli.h"

#include <stdio.h>
#include <string.h>

static int help(int argc, char **argv);

static const struct cli_command commands[] = {
    {"push", "FILE REF", "push an image and its backing chain; only what is missing travels",
     cli_push},
    {"pull", "REF OUT", "pull a disk into one qcow2 file, a raw file, or a chain of files",
     cli_pull},
    {"attach", "[REF]", "export a disk over NBD on a Unix socket", cli_attach},
    {"snapshot", "DIR REF", "publish the state of a disk folder, running or stopped", cli_snapshot},
    {"info", "REF|DIR", "describe a disk, or the disk of a folder", cli_info},
    {"log", "REF", "list the layers of a disk, top first", cli_log},
    {"map", "REF", "show which layer has which part of a disk", cli_map},
    {"ls", "[REPO]", "list repositories, or the tags of one", cli_ls},
    {"diff", "SINCE REF", "show where two disks may differ", cli_diff},
    {"tag", "REF NEW", "give a disk another name", cli_tag},
    {"rm", "REF…", "remove tags, or manifests by their digests", cli_rm},
    {"verify", "REF|DIR", "read a disk and compare it with its digests", cli_verify},
    {"gc", "", "have the service give back what nothing refers to", cli_gc},
    {"scrub", "", "have the service read all that it stores", cli_scrub},
    {"token", "NAME GRANT…", "make a token, and its line for the server's token file", cli_token},
    {"image create", "FILE [SIZE]", "make a local qcow2 image", cli_image_create},
    {"image info", "FILE", "describe a local image", cli_image_info},
    {"image check", "FILE", "check a local qcow2 image, and repair it", cli_image_check},
    {"image resize", "FILE SIZE", "change the size of a local qcow2 image", cli_image_resize},
    {"image map", "FILE", "show what a local image and its backing chain hold", cli_image_map},
    {"image bitmap", "FILE NAME", "print the dirty ranges of a bitmap in a local image",
     cli_image_bitmap},
    {"image seal", "FILE OUT", "write a local qcow2 image anew, without what it does not need",
     cli_image_seal},
    {"help", "[COMMAND]", "explain a command", help},
};
#define NR_COMMANDS (sizeof(commands) / sizeof(commands[0]))

const struct cli_command *cli_command(const char *name)
{
    for (size_t i = 0; i < NR_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* The command that argv begins with; *ret_words is how many words name it. */
static const struct cli_command *find_command(int argc, char **argv, int *ret_words)
{
    char two_words[64];

    if (argc > 1) {
        snprintf(two_words, sizeof(two_words), "%.30s %.30s", argv[0], argv[1]);
        *ret_words = 2;
        if (cli_command(two_words))
            return cli_command(two_words);
    }
    *ret_words = 1;
    return argc > 0 ? cli_command(argv[0]) : NULL;
}

static void overview(FILE *out)
{
    fprintf(out, "usage: cairn COMMAND [OPTION]… [OPERAND]…\n\n"
                 "Disks as chains of immutable QCOW2 layers, kept by a cairnd service.\n\n");
    for (size_t i = 0; i < NR_COMMANDS; i++)
        fprintf(out, "  %-13s %-12s %s\n", commands[i].name, commands[i].operands,
                commands[i].summary);
    fprintf(out, "\n"
                 "A REF is repo:tag or repo@sha256:DIGEST.  The service is named by --server or\n"
                 "CAIRN_SERVER (http://127.0.0.1:7117), a token for it by CAIRN_TOKEN\n"
                 "or, in a file, by --token-file or CAIRN_TOKEN_FILE.\n"
                 "`cairn help COMMAND` explains a command; the manual is cairn(1).\n");
}

/* The commands whose first word is name ("image"), as an overview of their own; how many. */
static int group_overview(const char *name, FILE *out)
{
    size_t len = strlen(name);
    int nr = 0;

    for (size_t i = 0; i < NR_COMMANDS; i++)
        if (strncmp(commands[i].name, name, len) == 0 && commands[i].name[len] == ' ')
            fprintf(out, "%s cairn %-13s %-12s %s\n", nr++ ? "      " : "usage:", commands[i].name,
                    commands[i].operands, commands[i].summary);
    return nr;
}

static int unknown_command(const char *name)
{
    char escaped[CLI_ESCAPE_MAX];

    if (group_overview(name, stderr) > 0)
        return 2;
    fprintf(stderr, "cairn: %s is not a command; `cairn help` lists them\n",
            cli_escape(name, escaped));
    return 2;
}

static int help(int argc, char **argv)
{
    char help_option[] = "--help";
    const struct cli_command *command;
    char *help_argv[2];
    int words;

    if (argc < 2 || argv[1][0] == '-') {
        overview(stdout);
        return 0;
    }
    command = find_command(argc - 1, argv + 1, &words);
    if (!command && group_overview(argv[1], stdout) > 0)
        return 0;
    if (!command || command->run == help)
        return unknown_command(argv[1]);
    help_argv[0] = argv[words];
    help_argv[1] = help_option;
    return command->run(2, help_argv);
}

static bool is_help(const char *arg)
{
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0;
}

int main(int argc, char **argv)
{
    const struct cli_command *command;
    int words;

    if (argc < 2) {
        overview(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("cairn %s\n", cairn_version());
        return 0;
    }
    if (is_help(argv[1])) {
        overview(stdout);
        return 0;
    }
    command = find_command(argc - 1, argv + 1, &words);
    if (command)
        return command->run(argc - words, argv + words);
    if (argc > 2 && is_help(argv[2]) && group_overview(argv[1], stdout) > 0)
        return 0;
    return unknown_command(argv[1]);
}
