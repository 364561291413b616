/* SPDX-License-Identifier: Apache-2.0
 *
 * What a run has of its own besides its mounts: ids, session, keyring, host name.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <string.h>

static int write_file(const char *path, const char *text) {
    long fd = raw(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return (int)fd;
    long written = raw(__NR_write, fd, text, strlen(text));
    close_fd(fd);
    return (int)written;
}

/* A process may map its own id itself, once it gives up setgroups(2) (user_namespaces(7)). More ids
 * have to be mapped from outside: a thread of the caller does it while the child waits. */
int do_ids(struct sbx_child *c) {
    static const char *const files[] = {"/proc/self/setgroups", "/proc/self/uid_map",
                                        "/proc/self/gid_map"};
    const char *texts[] = {"deny", c->place->uid_map, c->place->gid_map};
    int32_t answer = 0;
    if (!(c->place->namespaces & CLONE_NEWUSER))
        return 0;
    if (!c->place->uid_map) {
        raw(__NR_write, c->job->mapper, "", 1);
        long n = raw(__NR_read, c->job->mapper, &answer, sizeof answer);
        if (n == -EAGAIN) /* the socket's time limit is over, which the mapper set */
            return -ETIMEDOUT;
        return n == sizeof answer ? -answer : -ECANCELED;
    }
    for (; c->index < 3; c->index++) {
        int error = write_file(files[c->index], texts[c->index]);
        if (error < 0)
            return error;
    }
    c->index = 0;
    return 0;
}

int do_session(struct sbx_child *c) {
    long session = c->place->session ? raw(__NR_setsid, 0) : 0;
    return session < 0 ? (int)session : 0;
}

int do_keyring(struct sbx_child *c) {
    if (!c->place->keyring)
        return 0;
    long serial = raw(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    /* A kernel without keyrings has none to share. If every keyctl call is refused, a filter of the
     * caller refuses it, and the command inherits that filter. */
    if (serial == -ENOSYS || (serial == -EPERM && raw(__NR_keyctl, -1) == -EPERM))
        return 0;
    return serial < 0 ? (int)serial : 0;
}

/* Between vfork and exec the kernel applies oom_score_adj to this process only, not to all that
 * share its memory (__set_oom_adj in fs/proc/base.c). A resident sets it once for all its runs. */
int do_oom_score(struct sbx_child *c) {
    const char *score = c->place->limits.oom_score_adj;
    return score ? write_file("/proc/self/oom_score_adj", score) : 0;
}

/* Opens the files that a resident reads after each run, at the numbers where it expects them. */
int do_watch(struct sbx_child *c) {
    static const char *const files[] = {
        "/proc/self/net/dev",         "/proc/self/net/sockstat",  "/proc/self/net/ip6_flowlabel",
        "/proc/self/coredump_filter", "/proc/self/oom_score_adj", "/proc/self/projid_map"};
    int from = c->place->namespaces & CLONE_NEWNET ? 0 : RESIDENT_MEMORY_FD - REAPER_FDS;
    if (c->place->reaper != SBX_RESIDENT)
        return 0;
    raw(RAW_close_range, REAPER_FDS, RESIDENT_READ - 1, 0);
    for (c->index = from; c->index < RESIDENT_READ - REAPER_FDS; c->index++) {
        int wanted = REAPER_FDS + c->index;
        long fd = raw(__NR_openat, AT_FDCWD, files[c->index], O_RDONLY), result = fd;
        if (fd >= 0 && fd != wanted) {
            result = raw(__NR_dup3, fd, wanted, 0);
            close_fd(fd);
        }
        if (result < 0
            && !(result == -ENOENT && wanted == RESIDENT_LABELS_FD)) /* a kernel without IPv6 */
            return (int)result;
    }
    c->index = 0;
    return 0;
}

int do_hostname(struct sbx_child *c) {
    const char *name = c->place->hostname;
    return name ? (int)raw(__NR_sethostname, name, strlen(name)) : 0;
}
