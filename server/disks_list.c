/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON lists that may have millions of elements: made piece by piece as the client takes them, so
 * that memory holds one piece and a client that goes away costs no more.
 */
#include "disks_internal.h"

#include <stdarg.h>
#include <stdio.h>

#define ROOM_AT_FIRST 4096u

static bool grow(struct list *list, size_t need)
{
    size_t room = list->room ? list->room : ROOM_AT_FIRST;
    char *text;

    while (room < need)
        room *= 2;
    text = realloc(list->text, room);
    if (!text)
        return false;
    list->text = text;
    list->room = room;
    return true;
}

void list_printf(struct list *list, const char *fmt, ...)
{
    size_t need;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || list->failed) {
        list->failed = true;
        return;
    }
    need = list->len + (size_t)n + 1;
    if (need > list->room && !grow(list, need)) {
        list->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(list->text + list->len, list->room - list->len, fmt, ap);
    va_end(ap);
    list->len += (size_t)n;
}

static int refill(struct list *list, struct cairn_error *err)
{
    int code;

    list->len = list->sent = 0;
    code = list->next(list, err);
    if (code != CAIRN_OK)
        return code;
    return list->failed ? error_no_memory(err, "a list of extents") : CAIRN_OK;
}

static int list_read(void *ctx, void *buf, size_t len, size_t *ret_len, struct cairn_error *err)
{
    struct list *list = ctx;
    size_t n;

    while (list->sent == list->len && !list->done) {
        int code = refill(list, err);

        if (code != CAIRN_OK)
            return code;
    }
    n = list->len - list->sent;
    if (n > len)
        n = len;
    if (n > 0)
        memcpy(buf, list->text + list->sent, n);
    list->sent += n;
    *ret_len = n;
    return CAIRN_OK;
}

static void list_free(void *ctx)
{
    struct list *list = ctx;

    list->free(list);
}

void list_release(struct list *list)
{
    free(list->text);
}

void list_reply(struct list *list, struct http_reply *reply)
{
    struct http_chunks chunks = {.read = list_read, .free = list_free, .ctx = list};

    http_reply_chunked(reply, 200, "application/json", &chunks);
}
