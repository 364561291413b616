/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether a run left something in the namespaces that it shared with the next one.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <linux/keyctl.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

static char counted[RESIDENT_READ - REAPER_FDS][1024];

/* Compares what /proc says of the network namespace (bytes and packets of lo, sockets in use) and
 * of the memory that reaper and resident share. A socket that a run leaves behind counts as in use,
 * and all that a run sends goes over lo. */
static int is_count_same(int i, int first) {
    char now[1024] = {0};
    long n = raw(__NR_pread64, REAPER_FDS + i, now, sizeof now - 1, 0);
    if (first)
        memcpy(counted[i], now, sizeof now);
    /* only the first line of sockstat is about this namespace: "sockets: used 0" */
    for (long at = 0; at < n; at++) {
        if (now[at] != counted[i][at])
            return 0;
        if (REAPER_FDS + i == RESIDENT_SOCKETS_FD && now[at] == '\n')
            break;
    }
    return n >= 0; /* an unwritten projid_map is empty */
}

int are_counts_same(int first) {
    static int is_there[RESIDENT_READ - REAPER_FDS];
    for (int i = 0; i < RESIDENT_READ - REAPER_FDS; i++) {
        if (first)
            is_there[i] = raw(__NR_fcntl, REAPER_FDS + i, 1 /* F_GETFD */) >= 0;
        if (is_there[i] && !is_count_same(i, first))
            return 0;
    }
    return 1;
}

/* Looks for System V objects (shmctl(2), semctl(2), msgctl(2)), and in their directory for POSIX
 * message queues. */
int is_ipc_empty(int queues) {
    struct shm_info shm = {0};
    struct seminfo sem = {0};
    struct msginfo msg = {0};
    char entries[256];
    if (raw(__NR_shmctl, 0, SHM_INFO, &shm) < 0 || raw(__NR_semctl, 0, 0, SEM_INFO, &sem) < 0
        || raw(__NR_msgctl, 0, MSG_INFO, &msg) < 0)
        return 0;
    if (shm.used_ids || sem.semusz || msg.msgpool)
        return 0;
    raw(__NR_lseek, queues, 0, 0);
    return raw(__NR_getdents64, queues, entries, sizeof entries) == 48; /* "." and ".." */
}

/* A user's keyrings belong to the user namespace (keyrings(7)); without one of its own, a slot has
 * the host's, like every other run. Here nobody has the right SETATTR on them, so their mode, owner
 * and timeout stay. A run may replace one, but then the number is another. */
static struct {
    int are_there; /* 0: the kernel lacks them, or a filter that commands inherit refuses keyctl */
    int32_t user, session, persistent;
} keyrings;

static int are_keyrings_empty(void) {
    const long size =
        sizeof(int32_t); /* of a link; the user session keyring has one link, to the user keyring */
    return raw(__NR_keyctl, KEYCTL_READ, KEY_SPEC_USER_KEYRING, 0, 0) == 0
           && raw(__NR_keyctl, KEYCTL_READ, KEY_SPEC_USER_SESSION_KEYRING, 0, 0) == size
           && (keyrings.persistent < 0
               || raw(__NR_keyctl, KEYCTL_READ, keyrings.persistent, 0, 0) == 0);
}

static int32_t number_of(int32_t key) {
    return (int32_t)raw(__NR_keyctl, KEYCTL_GET_KEYRING_ID, key, 0);
}

/* Each call starts the timeout of the persistent keyring again; here that is always just before a
 * run. */
static int32_t persistent_keyring(void) {
    return (int32_t)raw(__NR_keyctl, KEYCTL_GET_PERSISTENT, -1, KEY_SPEC_PROCESS_KEYRING);
}

void open_keyrings(void) {
    const uint32_t mode = 0x1f1f0000; /* KEYCTL_SETPERM(2const): possessor and user, no SETATTR */
    keyrings.user = number_of(KEY_SPEC_USER_KEYRING);
    keyrings.session = number_of(KEY_SPEC_USER_SESSION_KEYRING);
    keyrings.persistent = persistent_keyring();
    keyrings.are_there = keyrings.user > 0 && are_keyrings_empty();
    if (keyrings.are_there
        && (raw(__NR_keyctl, KEYCTL_SETPERM, keyrings.user, mode) < 0
            || raw(__NR_keyctl, KEYCTL_SETPERM, keyrings.session, mode) < 0))
        exit_reaper();
}

int are_keyrings_same(void) {
    return !keyrings.are_there
           || (number_of(KEY_SPEC_USER_KEYRING) == keyrings.user
               && number_of(KEY_SPEC_USER_SESSION_KEYRING) == keyrings.session
               && persistent_keyring() == keyrings.persistent && are_keyrings_empty());
}

long open_queues(void) {
    static const char *const none[] = {NULL};
    long mount = sbx_new_filesystem("mqueue", none, 0);
    if (mount < 0)
        return mount;
    long fd = raw(__NR_openat, mount, ".", 0x10000 | 0x80000 /* O_DIRECTORY | O_CLOEXEC */);
    raw(__NR_close, mount);
    return fd;
}
