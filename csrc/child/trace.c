/* SPDX-License-Identifier: Apache-2.0
 *
 * The filter of a trace, by which the caller sees the calls of the command that take paths.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

/* Sends the descriptor of the trace, and the root in which the command looks up its paths. */
static long send_listener(int socket, long listener, long root) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(2 * sizeof(int))];
    } control;
    char byte = 0;
    struct {
        void *base;
        size_t size;
    } part = {&byte, 1};
    struct msghdr message = {.msg_iov = (void *)&part, .msg_iovlen = 1};
    const int fds[2] = {(int)listener, (int)root};
    memset(&control, 0, sizeof control);
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    control.head.cmsg_len = CMSG_LEN(sizeof fds);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(&control.head), fds, sizeof fds);
    return raw(__NR_sendmsg, socket, &message, MSG_NOSIGNAL);
}

/* The caller has written the filter to the socket. It comes ahead of the limits, which may leave no
 * descriptor, and of the policy's filter, which may close the calls of this step; of two filters
 * the kernel takes the stricter answer, whatever their order. After it every path of this process
 * is a wait for the caller's tracer, so nothing opens one any more but the exec. The caller's own
 * process may have such a filter, and the kernel allows one listener in a tree of filters: EBUSY.
 */
int do_trace(struct sbx_child *c) {
    char program[SBX_MOST_TRACE];
    if (!TRACES || !c->job->tracer || c->place->reaper)
        return 0;
    long n = do_no_new_privs(c); /* which a filter takes, or CAP_SYS_ADMIN */
    if (n < 0)
        return (int)n;
    n = raw(__NR_recvfrom, c->job->tracer, program, sizeof program, 0, 0, 0);
    if (n < 8)
        return n < 0 ? (int)n : -ECANCELED;
    long root = raw(__NR_openat, AT_FDCWD, "/", O_SEARCH_DIR);
    if (root < 0)
        return (int)root;
    long listener = sbx_listen(program, (size_t)n / 8);
    if (listener < 0)
        return (int)listener;
    n = send_listener(c->job->tracer, listener, root);
    close_fd(listener);
    close_fd(root);
    close_fd(c->job->tracer);
    return n < 0 ? (int)n : 0;
}
