/* SPDX-License-Identifier: Apache-2.0
 *
 * What a reaper is sent.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <signal.h>
#include <string.h>
#include <sys/socket.h>

long send_all(int socket, struct iovec *parts, int n, const int *fds, int n_fds, int flags) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE((SBX_OF_A_COMMAND + SBX_MOST_PASSED) * sizeof(int))];
    } control = {.head = {0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)n};
    if (n_fds) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        control.head.cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.head), fds, (size_t)n_fds * sizeof(int));
    }
    for (;;) {
        size_t left = 0;
        for (int i = 0; i < n; i++)
            left += parts[i].iov_len;
        if (left == 0)
            return 0;
        long sent = raw(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | flags);
        if (sent == -EINTR)
            continue;
        if (sent <= 0)
            return sent < 0 ? sent : -EPIPE;
        message.msg_controllen = 0;
        for (int i = 0; i < n; i++) {
            size_t taken = (size_t)sent < parts[i].iov_len ? (size_t)sent : parts[i].iov_len;
            parts[i].iov_base = (char *)parts[i].iov_base + taken;
            parts[i].iov_len -= taken;
            sent -= (long)taken;
        }
    }
}

struct sbx_order order_of(const struct sbx_job *job, uint32_t run) {
    size_t passed = (size_t)job->n_passed * sizeof *job->passed;
    size_t limits = job->limits ? sizeof *job->limits : 0;
    struct sbx_order order = {
        .kind = SBX_ORDER, .run = run, .size = (uint32_t)(limits + passed + job->size)};
    order.limits = (uint32_t)limits;
    order.cwd_size = (uint32_t)job->cwd_size;
    order.cwd_or_root = job->cwd_or_root;
    order.n_candidates = job->n_candidates;
    order.n_args = job->n_args;
    order.n_env = job->n_env;
    order.n_passed = job->n_passed;
    order.terminal = job->terminal;
    order.cpu_seconds = job->cpu_seconds;
    order.cpu_ns = job->cpu_ns;
    order.announce = job->announce;
    order.traced = job->tracer != 0;
    return order;
}

/* The place goes without what the child has done before the exec of the reaper. */
void fill_first_messages(struct first_messages *l, const struct sbx_place *place,
                         const struct sbx_job *job) {
    l->place = *place;
    l->place.namespaces = 0;
    l->place.uid_map = l->place.gid_map = l->place.root = l->place.hostname = NULL;
    l->place.mounts = NULL;
    l->place.overlay = 0;
    l->place.upper_size = l->place.upper_inodes = NULL;
    l->place.n_mounts = l->place.read_only = l->place.keyring = 0;
    l->place.limits.oom_score_adj = NULL;
    size_t filter = place->filter ? (size_t)place->filter_length * 8 : 0;
    if (filter)
        l->place.filter = (const void *)sizeof l->place; /* in messages a pointer is an offset */
    l->orders[0] = (struct sbx_order){.kind = SBX_PLACE, .run = 1};
    l->orders[0].size = (uint32_t)(sizeof l->place + filter);
    l->orders[1] = order_of(job, 1);
    const void *starts[] = {&l->orders[0], &l->place,   place->filter,
                            &l->orders[1], job->passed, job->cwd};
    size_t passed = (size_t)job->n_passed * sizeof *job->passed;
    size_t sizes[] = {sizeof *l->orders, sizeof l->place, filter,
                      sizeof *l->orders, passed,          job->size};
    for (int i = 0; i < FIRST_PARTS; i++)
        l->parts[i] = (struct iovec){(void *)(uintptr_t)starts[i], sizes[i]};
}
