/* SPDX-License-Identifier: Apache-2.0 */
/* Changing the log's level by request and by signal. */
#include "log_level.h"

#include <stdio.h>
#include <string.h>

#include "log.h"
#include "quote.h"

#define WHITE " \t\r\n"

/* Cut white space off both ends. */
static void trim(char *word)
{
    size_t skip = strspn(word, WHITE), len = strlen(word + skip);

    while (len > 0 && strchr(WHITE, word[skip + len - 1]))
        len--;
    memmove(word, word + skip, len);
    word[len] = 0;
}

/* The word in a body: {"level": "debug"}, or debug with white space around it. */
static bool parse_body(const struct http_request *req, enum log_level *ret_level,
                       char word[LOG_LEVEL_BODY_MAX + 1])
{
    size_t len;
    const char *body = http_body(req, &len);
    json_t *json = json_loadb(body, len, JSON_REJECT_DUPLICATES, NULL); /* NULL: a bare word */
    const char *level = json_string_value(json_object_get(json, "level"));

    snprintf(word, LOG_LEVEL_BODY_MAX + 1, "%.*s", level ? (int)strlen(level) : (int)len,
             level ? level : body);
    json_decref(json);
    if (level)
        return log_parse_level(word, ret_level);
    if (strlen(word) != len) /* a zero byte */
        return false;
    trim(word);
    return log_parse_level(word, ret_level);
}

void log_level_handle(void *unused, const struct http_request *req, struct http_reply *reply)
{
    char word[LOG_LEVEL_BODY_MAX + 1], quoted[QUOTE_MAX];
    enum log_level level;

    (void)unused;
    if (http_method(req) == HTTP_PUT) {
        if (!parse_body(req, &level, word)) {
            http_reply_error(reply, 400, "BAD_REQUEST",
                             "level %s, expected error, warn, info or debug",
                             quote_str(word, quoted));
            return;
        }
        log_change_level(level, http_request_id(req));
    }
    http_reply_json(reply, 200, json_pack("{s:s}", "level", log_level_name(log_get_level())));
}

void log_level_step(int step, const char *by)
{
    int level = (int)log_get_level() + step;

    if (level >= LOG_LEVEL_ERROR && level <= LOG_LEVEL_DEBUG)
        log_change_level((enum log_level)level, by);
}
