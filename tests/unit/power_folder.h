/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a power cut may leave of a folder.  All changes below it are recorded (fs_calls.h); for any
 * point of the record a folder can be made as a cut there could have left it, under no more than
 * POSIX promises: what a file holds is sure once the file was synced, and a name in a folder is
 * sure once that folder was.  Of what came later each 512 bytes of a file are there or not, each
 * change of a file's length, and each name has any of the states that it had since, one independent
 * of the other: a rename may come out with both names, or with none.
 */
#ifndef TESTS_UNIT_POWER_FOLDER_H
#define TESTS_UNIT_POWER_FOLDER_H

#include <stddef.h>
#include <stdint.h>

struct power_record;

/* Record what this process changes below folder, which is there and empty. */
struct power_record *power_record_start(const char *folder);
void power_record_stop(struct power_record *record);
size_t power_record_len(struct power_record *record);
void power_record_free(struct power_record *record);

enum power_cut {
    POWER_CUT_NOTHING_UNSYNCED, /* nothing is there but what is sure */
    POWER_CUT_EVERYTHING,       /* everything is there: as after kill -9 */
    POWER_CUT_RANDOM,
};
/* Make the folder, which must not exist, as a cut behind the first len events could leave it. */
void power_record_cut(const struct power_record *record, size_t len, enum power_cut how,
                      uint64_t seed, const char *folder);

#endif
