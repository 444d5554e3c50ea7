/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the cairn command: what its subcommands share.  A subcommand is called with argv[0] its
 * own name and returns the exit code: 0, 1 for a failure, 2 for usage.
 */
#ifndef CLIENT_CLI_H
#define CLIENT_CLI_H

#include <stdbool.h>

#include "cairn.h"

int cli_push(int argc, char **argv);
int cli_pull(int argc, char **argv);
int cli_attach(int argc, char **argv);
int cli_snapshot(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_log(int argc, char **argv);
int cli_map(int argc, char **argv);
int cli_ls(int argc, char **argv);
int cli_diff(int argc, char **argv);
int cli_tag(int argc, char **argv);
int cli_rm(int argc, char **argv);
int cli_image(int argc, char **argv);

/* -- Options ------------------------------------------------------------------------------------
 */

/*
 * A subcommand's options and operands, in one table row each; ends with a row without name.
 * --help, --quiet and --server are understood by every subcommand that is given a struct
 * cli_common.
 */
struct cli_option {
    const char *name;    /* without the dashes */
    const char *metavar; /* of the value; NULL: a flag */
    const char **value;  /* set, if it has a value … */
    bool *flag;          /* … or set to true */
    const char *help;
};

struct cli_spec {
    const char *name;     /* "push" */
    const char *operands; /* "FILE REF" */
    const char *summary;  /* one line, from the table of commands */
    const char *help;     /* paragraphs after the options; may be NULL */
    int min_operands, max_operands;
    const struct cli_option *options;
};

struct cli_common {
    bool quiet;
    const char *server; /* NULL: the library's default */
    int nr_operands;
    char **operands;
};

/*
 * Parse; true: go on.  False: *ret_exit is the exit code to return, and help or a message has been
 * printed.  Options may stand before and after operands; `--` ends them.
 */
bool cli_parse(const struct cli_spec *spec, int argc, char **argv, struct cli_common *ret_common,
               int *ret_exit);

/* -- Doing ---------------------------------------------------------------------------------------
 */

/*
 * The service as the options name it, with a progress bar on stderr if that is a terminal and not
 * quiet.  SIGINT and SIGTERM cancel what reports progress, a second one ends the program.
 */
int cli_client_new(const struct cli_common *common, struct cairn_client **ret_client,
                   struct cairn_error *err);

/* End the progress bar's line; call before anything else is printed. */
void cli_progress_end(void);

/* Print `cairn: message` on stderr, escaped; returns the exit code of err's code. */
int cli_fail(const struct cairn_error *err);

#endif
