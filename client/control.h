/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of a running disk, `control.sock` in its folder: how `cairn snapshot` and
 * `cairn info DIR` reach the process that has the disk open.  The protocol is in control.c.
 */
#ifndef CLIENT_CONTROL_H
#define CLIENT_CONTROL_H

#include "client.h"

struct cairn_disk;
struct control;

/* Listen, in threads of its own, until control_stop, which cancels what is under way. */
int control_start(struct cairn_disk *disk, struct control **ret_control, struct cairn_error *err);
void control_stop(struct control *control); /* NULL is allowed */

/*
 * Ask the process that has the folder open.  *ret_running is always set; false: nobody listens,
 * nothing was asked, and there is no error.  client is for progress and cancelling alone.
 */
int control_ask_snapshot(struct cairn_client *client, const char *folder, const char *ref,
                         const struct cairn_seal_options *options, bool *ret_running,
                         char **ret_ref, char **ret_notice, struct cairn_error *err);
int control_ask_info(struct cairn_client *client, const char *folder, bool *ret_running,
                     char **ret_json, struct cairn_error *err);

#endif
