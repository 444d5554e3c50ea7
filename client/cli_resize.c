/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn image resize: a local file, no service.
 */
#include <inttypes.h>
#include <stdio.h>

#include "cli.h"

/* "20G", "+5G", "-1G". */
static bool parse_change(const char *text, enum cairn_resize *ret_how, uint64_t *ret_size)
{
    *ret_how = text[0] == '+'   ? CAIRN_RESIZE_ADD
               : text[0] == '-' ? CAIRN_RESIZE_SUBTRACT
                                : CAIRN_RESIZE_TO;
    return cli_parse_size(*ret_how == CAIRN_RESIZE_TO ? text : text + 1, ret_size);
}

static int print_size(const char *file, uint64_t size, bool as_json)
{
    char text[CLI_SIZE_MAX];
    json_t *json;
    int ret;

    if (!as_json) {
        cli_line("virtual size", "%s (%" PRIu64 " bytes)", cli_size(size, text), size);
        return 0;
    }
    json = json_pack("{s:s, s:I}", "filename", file, "virtualSize", (json_int_t)size);
    ret = cli_print_json(json);
    json_decref(json);
    return ret;
}

int cli_image_resize(int argc, char **argv)
{
    bool as_json = false, shrink = false;
    const struct cli_option options[] = {
        {"shrink", NULL, NULL, &shrink, "allow a smaller size: what lies past it is lost"},
        {"json", NULL, NULL, &as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "image resize",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .local = true,
        .help =
            "SIZE is the new size (20G), or what to add (+5G) or take away (-1G); it takes K, M,\n"
            "G, T (multiples of 1024).  What is added reads as zeros.  FILE may be active.qcow2\n"
            "in the folder of a disk that is not attached.",
    };
    struct cli_common common;
    struct cairn_error err;
    char escaped[CLI_ESCAPE_MAX];
    enum cairn_resize how;
    uint64_t size;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (!parse_change(common.operands[1], &how, &size))
        return cli_usage(spec.name, "%s is not a size such as 20G, +5G or -1G",
                         cli_escape(common.operands[1], escaped));
    if (cairn_image_resize(common.operands[0], how, size, shrink, &size, &err) != CAIRN_OK)
        return cli_fail(&err);
    return print_size(common.operands[0], size, as_json);
}
