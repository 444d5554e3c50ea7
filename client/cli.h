/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the cairn command: what its subcommands share.  A subcommand is called with argv[0] its
 * own name and returns the exit code: 0, 1 for a failure, 2 for usage.
 */
#ifndef CLIENT_CLI_H
#define CLIENT_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "cairn.h"

/* -- Subcommands: one row each in the table of cli.c ------------------------------------------ */

struct cli_command {
    const char *name;     /* "push", "image create" */
    const char *operands; /* "FILE REF" */
    const char *summary;  /* one line */
    int (*run)(int argc, char **argv);
};
/* The row of a name, or NULL. */
const struct cli_command *cli_command(const char *name);

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
int cli_gc(int argc, char **argv);
int cli_scrub(int argc, char **argv);
int cli_verify(int argc, char **argv);
int cli_token(int argc, char **argv);
int cli_image_create(int argc, char **argv);
int cli_image_info(int argc, char **argv);
int cli_image_check(int argc, char **argv);
int cli_image_resize(int argc, char **argv);
int cli_image_map(int argc, char **argv);
int cli_image_bitmap(int argc, char **argv);
int cli_image_seal(int argc, char **argv);

/* -- Options ---------------------------------------------------------------------------------- */

/*
 * A subcommand's options, one row each; the table ends with a row without name.  --help and --quiet
 * are understood by every subcommand, --server and what proves us to it by those that are not
 * local.
 */
struct cli_option {
    const char *name;    /* without the dashes */
    const char *metavar; /* of the value; NULL: a flag */
    const char **value;  /* set, if it has a value … */
    bool *flag;          /* … or set to true */
    const char *help;
};

struct cli_spec {
    const char *name; /* as in the table of commands, which has operands and summary */
    const char *help; /* paragraphs after the options; may be NULL */
    int min_operands, max_operands;
    const struct cli_option *options; /* may be NULL */
    bool local;                       /* does not use the service */
};

struct cli_common {
    bool quiet;
    /* Of the service; NULL: the library's default. */
    const char *server, *token_file, *cacert, *cert, *key;
    bool insecure_token;
    int nr_operands;
    char **operands;
};

/*
 * Parse; true: go on.  False: *ret_exit is the exit code to return, and help or a message has been
 * printed.  Options may stand before and after operands; `--` ends them.  A dash and a digit is an
 * operand, a number.
 */
bool cli_parse(const struct cli_spec *spec, int argc, char **argv, struct cli_common *ret_common,
               int *ret_exit);

/* "20G", "512M", "1.5T", "65536", with an optional "iB" or "B"; multiples of 1024. */
bool cli_parse_size(const char *text, uint64_t *ret_bytes);

/* -- Doing ------------------------------------------------------------------------------------ */

/*
 * The service as the options name it, with a progress bar on stderr if that is a terminal and not
 * quiet.  From here on SIGINT and SIGTERM cancel what reports progress; a second one ends the
 * program.  (Who waits for signals himself changes that afterwards.)
 */
int cli_client_new(const struct cli_common *common, struct cairn_client **ret_client,
                   struct cairn_error *err);

/* The same progress bar and signals for what needs no service. */
cairn_progress_fn cli_progress(const struct cli_common *common, void **ret_ctx);

/* --compress and --level, each NULL if it was not given; false: a message has been printed. */
bool cli_seal_options(const char *command, const char *compress, const char *level,
                      struct cairn_seal_options *ret_options);

/* Take the progress bar away, before anything else is printed. */
void cli_progress_end(void);

/* Print `cairn: message` on stderr, escaped; returns the exit code of err's code. */
int cli_fail(const struct cairn_error *err);

/* The same for wrong usage of a subcommand: 2. */
int cli_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* -- Printing --------------------------------------------------------------------------------- */

/* Text from outside, safe for a terminal: control characters and what is not UTF-8 become \xNN. */
#define CLI_ESCAPE_MAX 1024
char *cli_escape(const char *text, char buf[CLI_ESCAPE_MAX]);

/* "1.5 GiB"; returns buf. */
#define CLI_SIZE_MAX 32
char *cli_size(uint64_t bytes, char buf[CLI_SIZE_MAX]);

/* Print JSON that the library gave as it is for programs; returns the exit code. */
int cli_print_json(const json_t *json);

/* Parse what the library gave; on failure an error has been printed and NULL is returned. */
json_t *cli_load_json(const char *text);

/* Fields of JSON objects, with nothing in place of what is missing. */
const char *cli_string(const json_t *object, const char *field);
uint64_t cli_number(const json_t *object, const char *field);
bool cli_bool(const json_t *object, const char *field);

/* A line for each of "snapshots", as cairn_info and cairn_image_info list them. */
void cli_snapshot_lines(const json_t *json);

/* One line "name: value" of a description, aligned. */
void cli_line(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
