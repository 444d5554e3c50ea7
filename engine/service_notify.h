/* SPDX-License-Identifier: Apache-2.0 */
/* Telling a service manager how a program stands: sd_notify(3)'s protocol, without its library. */
#ifndef ENGINE_SERVICE_NOTIFY_H
#define ENGINE_SERVICE_NOTIFY_H

/* Send "READY=1", "STOPPING=1"… to the socket that $NOTIFY_SOCKET names.  Without one, or if nobody
 * listens there, nothing happens: a program serves as well unobserved. */
void service_notify(const char *state);

#endif
