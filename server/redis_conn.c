/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection to Redis: hiredis for the protocol, our own loop for time.
 *
 * hiredis' blocking calls time out per system call, so that a peer that sends a byte now and then
 * keeps them busy for ever.  Here the context does not block, and one deadline covers connecting,
 * writing and all answers.
 *
 * hiredis builds reply objects through functions that we give it: they make struct redis_answer,
 * and refuse whatever a cache has no use for, long arrays above all, before memory is spent on it.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "quote.h"
#include "redis_internal.h"

/* What one exchange may bring, taken and pending. */
#define PENDING_BYTES_MAX (REDIS_VALUE_MAX + ((size_t)64 << 10))

#define READ_ONLY "READONLY"

struct redis_conn {
    redisContext *context;
};

/* -- Addresses -------------------------------------------------------------------------------- */

int redis_address_parse(const char *text, size_t len, struct redis_address *ret_address,
                        struct cairn_error *err)
{
    const char *colon = memrchr(text, ':', len);
    size_t host_len = colon ? (size_t)(colon - text) : 0;
    char quoted[QUOTE_MAX];
    unsigned port = 0;
    const char *p;

    for (p = colon ? colon + 1 : text;
         colon && p < text + len && *p >= '0' && *p <= '9' && port < 65536; p++)
        port = 10 * port + (unsigned)(*p - '0');
    if (!colon || host_len == 0 || p != text + len || port == 0 || port > 65535)
        return error_set(err, CAIRN_E_USAGE, "%s, expected host:port",
                         quote_bytes(text, len, quoted));
    if (text[0] == '[' && text[host_len - 1] == ']') {
        text++;
        host_len -= 2;
    }
    if (host_len == 0 || host_len >= sizeof(ret_address->host))
        return error_set(err, CAIRN_E_USAGE, "%s: a host name of 1 to %zu bytes expected",
                         quote_bytes(text, len, quoted), sizeof(ret_address->host) - 1);
    memcpy(ret_address->host, text, host_len);
    ret_address->host[host_len] = 0;
    ret_address->port = (uint16_t)port;
    return CAIRN_OK;
}

/* -- Reply objects ---------------------------------------------------------------------------- */

void redis_answer_release(struct redis_answer *a)
{
    free(a->text[0]);
    free(a->text[1]);
    memset(a, 0, sizeof(*a));
}

static struct redis_answer *answer_new(const redisReadTask *task, enum redis_answer_kind kind)
{
    struct redis_answer *a = task->parent ? NULL : calloc(1, sizeof(*a));

    if (a)
        a->kind = kind;
    return a;
}

/* Put a string into a, or as the task's element into the pair that is its parent. */
static bool answer_text(struct redis_answer *a, int at, const char *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (!copy)
        return false;
    memcpy(copy, text, len);
    copy[len] = 0;
    a->text[at] = copy;
    a->len[at] = len;
    return true;
}

/* An object of our own for hiredis to hold, or the parent itself for an element of it.  NULL makes
 * the reader fail. */
static void *create_string(const redisReadTask *task, char *text, size_t len)
{
    struct redis_answer *a;

    if (task->parent) {
        a = task->parent->obj;
        return task->idx < 2 && !a->text[task->idx] && answer_text(a, task->idx, text, len) ? a
                                                                                            : NULL;
    }
    a = answer_new(task, task->type == REDIS_REPLY_ERROR ? ANSWER_NONE : ANSWER_TEXT);
    if (a && task->type == REDIS_REPLY_ERROR) {
        a->is_error = true;
        a->is_read_only = len >= strlen(READ_ONLY) && !memcmp(text, READ_ONLY, strlen(READ_ONLY));
    } else if (a && !answer_text(a, 0, text, len)) {
        free(a);
        a = NULL;
    }
    return a;
}

static void *create_array(const redisReadTask *task, int elements)
{
    return elements == 2 ? answer_new(task, ANSWER_PAIR) : NULL;
}

static void *create_integer(const redisReadTask *task, long long value)
{
    (void)value;
    return answer_new(task, ANSWER_NONE);
}

static void *create_nil(const redisReadTask *task)
{
    return answer_new(task, ANSWER_NONE);
}

static void free_object(void *object)
{
    struct redis_answer *a = object;

    if (!a)
        return;
    redis_answer_release(a);
    free(a);
}

static redisReplyObjectFunctions functions = {
    .createString = create_string,
    .createArray = create_array,
    .createInteger = create_integer,
    .createNil = create_nil,
    .freeObject = free_object,
};

/* -- Connections ------------------------------------------------------------------------------ */

struct redis_conn *redis_conn_open(const struct redis_address *address)
{
    struct redis_conn *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    c->context = redisConnectNonBlock(address->host, address->port);
    if (!c->context || c->context->err) {
        redis_conn_close(c);
        return NULL;
    }
    c->context->reader->fn = &functions;
    return c;
}

void redis_conn_close(struct redis_conn *c)
{
    if (!c)
        return;
    if (c->context)
        redisFree(c->context);
    free(c);
}

bool redis_conn_add(struct redis_conn *c, int argc, const char *const argv[], const size_t lens[])
{
    /* hiredis takes pointers to pointers to char that it does not write through. */
    const char *args[8];

    memcpy(args, argv, (size_t)argc * sizeof(*args));
    return redisAppendCommandArgv(c->context, argc, args, lens) == REDIS_OK;
}

/* Wait until something can be done; false: the time is over. */
static bool wait_for(struct redis_conn *c, bool to_write, uint64_t until_us)
{
    struct pollfd fd = {.fd = c->context->fd, .events = (short)(POLLIN | (to_write ? POLLOUT : 0))};

    for (;;) {
        uint64_t now = clock_now_us();
        struct timespec left;
        int n;

        if (now >= until_us)
            return false;
        left.tv_sec = (time_t)((until_us - now) / 1000000);
        left.tv_nsec = (long)((until_us - now) % 1000000 * 1000);
        n = ppoll(&fd, 1, &left, NULL);
        if (n > 0)
            return true;
        if (n < 0 && errno != EINTR)
            return false;
    }
}

/* Answers of one exchange as they come. */
struct intake {
    struct redis_answer *answers;
    size_t nr, done;
    size_t bytes; /* of those that are done */
};

/* What came that nobody has taken yet. */
static size_t pending_bytes(const struct redis_conn *c)
{
    return c->context->reader->len - c->context->reader->pos;
}

/* The answers that have come whole; false: Redis does not speak as it should.  What it says beyond
 * the last answer would be taken for that to the next question. */
static bool take_answers(struct redis_conn *c, struct intake *in)
{
    while (in->done < in->nr) {
        struct redis_answer *a;
        void *object = NULL;

        if (redisGetReplyFromReader(c->context, &object) != REDIS_OK)
            return false;
        if (!object)
            return in->bytes + pending_bytes(c) <= PENDING_BYTES_MAX;
        a = &in->answers[in->done++];
        *a = *(struct redis_answer *)object;
        free(object);
        in->bytes += a->len[0] + a->len[1];
        if (in->bytes > PENDING_BYTES_MAX)
            return false;
    }
    return pending_bytes(c) == 0;
}

bool redis_conn_is_quiet(const struct redis_conn *c)
{
    struct pollfd fd = {.fd = c->context->fd, .events = POLLIN};

    return poll(&fd, 1, 0) == 0;
}

bool redis_conn_exchange(struct redis_conn *c, struct redis_answer *answers, size_t nr,
                         uint64_t until_us)
{
    struct intake in = {.answers = answers, .nr = nr};
    int written = 0;

    memset(answers, 0, nr * sizeof(*answers));
    while (in.done < nr) {
        if (!written && redisBufferWrite(c->context, &written) != REDIS_OK)
            return false;
        if (!wait_for(c, !written, until_us))
            return false;
        if (redisBufferRead(c->context) != REDIS_OK)
            return false;
        if (!take_answers(c, &in))
            return false;
    }
    return true;
}
