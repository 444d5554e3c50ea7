/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Markers: what is about to be deleted, and how those who want it find out in time.
 *
 * An object is live, condemned, or being deleted.  Its marker, `condemned/<2 hex>/<sha256 of its
 * key>`, says which; there is none while it is live:
 *
 *     absent ──mark──▶ condemned <by> ──delete──▶ deleting <by> ──▶ object gone ──▶ absent
 *        ▲                    │
 *        └─── revive, pardon ─┘
 *
 * Every arrow but the last two is one compare-and-set from the very value that was read, so who
 * revives and who deletes cannot both succeed.  A marker says `deleting` only while whoever wrote
 * that holds the lock of the object's key, which ends with its process: who finds such a marker
 * and gets the lock knows that its writer is dead, and finishes its work.  So nobody ever stores
 * an object that somebody else is still deleting, and nobody waits for the dead.
 *
 * What must happen before an object may be condemned and deleted is the collector's business
 * (collect.h); what must happen before it is revived, the publishers'.
 */
#ifndef SERVER_CONDEMNED_H
#define SERVER_CONDEMNED_H

#include "store.h"

#define CONDEMNED_BY_MAX 64 /* bytes of who condemns: one word */

/*
 * Condemn an object; *ret_marked is false if somebody else has.  with (may be NULL): the key of
 * what goes before it, when it goes.
 */
int condemned_mark(struct store *store, const char *by, const char *key, const char *with,
                   bool *ret_marked, struct cairn_error *err);

/* Let it live after all, if it is still condemned by that; *ret_pardoned (may be NULL) says so. */
int condemned_pardon(struct store *store, const char *by, const char *key, const char *with,
                     bool *ret_pardoned, struct cairn_error *err);

/* Delete the object, if it is still condemned by that; *ret_gone is false if it was revived. */
int condemned_delete(struct store *store, const char *by, const char *key, const char *with,
                     bool *ret_gone, struct cairn_error *err);

/*
 * For who has made a claim on an object that the collector will see (collect.h): when this returns,
 * the object is not condemned, and if it is there, which is to be looked at only now, it will be
 * deleted only if it is condemned anew.  If it was being deleted that is over; waiting for it ends
 * with CAIRN_E_UNAVAILABLE.
 */
int condemned_revive(struct store *store, const char *key, struct cairn_error *err);

/*
 * Clear away all markers that nobody is busy with: what is being deleted is gone when this returns,
 * what is condemned lives.  For who alone may condemn now.
 */
int condemned_recover(struct store *store, struct cairn_error *err);

#endif
