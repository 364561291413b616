/* SPDX-License-Identifier: Apache-2.0
 *
 * Puts each descriptor where the command expects it.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>

void sbx_point_at_strings(const struct sbx_job *job) {
    const char **slot = job->vec, *string = job->strings;
    int n_words = job->n_candidates + job->n_args;
    for (int i = 0; i < n_words + job->n_env; i++) {
        if (i == n_words)
            *slot++ = NULL;
        *slot++ = string;
        string += strlen(string) + 1;
    }
    if (job->n_env == 0)
        *slot++ = NULL;
    *slot = NULL;
}

static int is_among(long fd, const int *numbers, int n) {
    for (int i = 0; i < n; i++)
        if (numbers[i] == fd)
            return 1;
    return 0;
}

/* Copies FD to a number that is none of the N. Copies that were made on the way stay open: another
 * descriptor takes their place, or the exec closes them. */
static long move_away(long fd, const int *numbers, int n) {
    long copy = -1;
    do
        copy = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC, copy + 1);
    while (copy >= 0 && is_among(copy, numbers, n));
    return copy == -EINVAL ? -EMFILE : copy; /* beyond RLIMIT_NOFILE (fcntl(2)) */
}

/* Finds the descriptor that has the number where descriptor I belongs, and is still to be moved
 * itself; -1: there is none. */
static int in_the_way(int i, const int *from, const int *to, int n, uint64_t is_put) {
    for (int j = 0; j < n; j++)
        if (j != i && !(is_put >> j & 1) && from[j] == to[i] && from[j] != to[j])
            return j;
    return -1;
}

/* Moves first those descriptors whose place is free, or is one that was moved already. If there is
 * no such one, the rest form a ring, and one of them is moved away to open it. */
int put_descriptors(struct sbx_child *c, int *from, const int *to, int n) {
    uint64_t is_put = 0;
    int in_ring = -1;
    for (c->index = 0; c->index < n; c->index++) {
        int *fd = &from[c->index];
        if (*fd == SBX_NULL)
            *fd = (int)raw(__NR_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
        if (*fd < 0)
            return *fd;
    }
    for (int left = n, before = n + 1; left > 0;) {
        if (left == before) {
            c->index = in_ring;
            from[in_ring] = (int)move_away(from[in_ring], to, n);
            if (from[in_ring] < 0)
                return from[in_ring];
        }
        before = left;
        for (c->index = 0; c->index < n; c->index++) {
            int i = c->index, other = in_the_way(i, from, to, n, is_put);
            if (other >= 0 && !(is_put >> i & 1))
                in_ring = other;
            if (other >= 0 || is_put >> i & 1)
                continue;
            long result = from[i] == to[i] ? raw(__NR_fcntl, to[i], F_SETFD, 0)
                                           : raw(__NR_dup3, from[i], to[i], 0);
            if (result < 0)
                return (int)result;
            is_put |= (uint64_t)1 << i;
            left--;
        }
    }
    c->index = 0;
    return 0;
}

/* Places 0, 1 and 2; for a reaper also its socket, its lifeline, what it passes on to the
 * command, and the socket of its trace. The reaper's program, the cgroups and the socket for the
 * upper are used later: they are moved away first if they have one of these numbers. */
int place_stdio(struct sbx_child *c) {
    const struct sbx_job *job = c->job;
    int from[REAPER_FDS + SBX_MOST_PASSED + 1], to[REAPER_FDS + SBX_MOST_PASSED + 1], n = 3;
    const int first[REAPER_FDS] = {c->stdio[0], c->stdio[1], c->stdio[2], c->status, c->lifeline};
    if (c->place->reaper)
        n = REAPER_FDS + job->n_passed;
    for (int i = 0; i < n; i++)
        from[i] = i < REAPER_FDS ? first[i] : job->passed[i - REAPER_FDS];
    if (TRACES && c->place->reaper && job->tracer)
        from[n++] = job->tracer;
    for (int i = 0; i < n; i++)
        to[i] = i;
    for (int i = IN_REAPER ? -1 : -2; i < job->n_cgroups; i++) {
        int *fd = i < -1 ? &c->upper_socket : i < 0 ? &c->init : &c->cgroups[i];
        if (i >= 0)
            *fd = job->cgroups[i];
        if (!*fd || !is_among(*fd, to, n))
            continue;
        *fd = (int)move_away(*fd, to, n);
        if (*fd < 0)
            return *fd;
    }
    return put_descriptors(c, from, to, n);
}

/* Opens the caller's /dev/null now, before the root changes. Under a reaper the descriptors are in
 * place already, or arrive with the order. */
int do_stdio(struct sbx_child *c) { return IN_REAPER ? 0 : place_stdio(c); }
