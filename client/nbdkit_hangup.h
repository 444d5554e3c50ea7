/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ending nbdkit although clients are connected.  By itself nbdkit waits, when it is told to end,
 * until its clients leave; a guest does not.
 */
#ifndef CLIENT_NBDKIT_HANGUP_H
#define CLIENT_NBDKIT_HANGUP_H

/*
 * From here on, when the other end of the pipe stop_fd is closed, or writes, nbdkit is told to end
 * and connections over Unix sockets are hung up on: no more requests are read, and
 * those in flight are answered, if the client takes the answers within ten seconds.  0, or an
 * errno.
 */
int hangup_start(int stop_fd);
/* Before the plugin is unloaded. */
void hangup_end(void);

#endif
