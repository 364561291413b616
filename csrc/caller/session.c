/* SPDX-License-Identifier: Apache-2.0
 *
 * Starts a command in a session, which is a run whose reaper waits for commands.
 *
 * Pid 1 of the session forks a reaper for the command, and answers with a pidfd of that reaper.
 * From then on the run looks like any other: it has a pidfd, and a socket to its reaper.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define PATIENCE_NS (5 * NS) /* how long pid 1 of a session may take to fork */

/* Gives pid 1 of the session the descriptors of a command. NULL_FD is opened if the command needs
 * one. */
static int send_descriptors(int control, const struct sbx_job *job, struct sbx_run *run,
                            const int stdio[3], int theirs, int *null_fd) {
    struct sbx_order order = {.kind = SBX_COMMAND_FDS, .run = 1, .n_passed = job->n_passed};
    struct iovec part = {&order, sizeof order};
    int fds[SBX_OF_A_COMMAND + SBX_MOST_PASSED] = {theirs};
    if (collect_stdio(run, stdio, null_fd, fds + 1) < 0)
        return -1;
    for (int i = 0; i < job->n_passed; i++)
        fds[SBX_OF_A_COMMAND + i] = job->passed_from[i];
    long error = send_all(control, &part, 1, fds, SBX_OF_A_COMMAND + job->n_passed, 0);
    return error < 0 ? sbx_fail(run, SBX_STEP_ORDER, 0, error) : 0;
}

/* Waits for the answer of pid 1, for NS at most: takes the pidfd of the reaper, or the reason why
 * there is none. */
static int take_pidfd(struct sbx_run *run, int64_t ns) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {0}};
    struct sbx_record record = {0};
    struct iovec part = {&record, sizeof record};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    struct pollfd told = {run->status, POLLIN, 0};
    struct timespec patience = {ns / NS, ns % NS};
    message.msg_controllen = sizeof control;
    long n = -EINTR;
    while (n == -EINTR) /* the kernel counts PATIENCE down by itself */
        n = raw(__NR_ppoll, &told, 1, &patience, 0, 0);
    if (n <= 0)
        return sbx_fail(run, SBX_STEP_ORDER, 0, n < 0 ? n : -ETIMEDOUT);
    n = raw(__NR_recvmsg, run->status, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n == sizeof record && record.magic == SBX_RECORD_MAGIC)
        return sbx_fail(run, (enum sbx_step)record.step, record.index, -(long)record.error);
    if (message.msg_flags & MSG_CTRUNC)
        return sbx_fail(run, SBX_STEP_PIPE, REAPER_STATUS_FD, -EMFILE);
    if (n != sizeof record || record.magic != SBX_READY_MAGIC
        || message.msg_controllen < CMSG_LEN(sizeof(int)))
        return sbx_fail(run, SBX_STEP_ORDER, 0, -EOWNERDEAD);
    long pidfd = move_above(*(int *)CMSG_DATA(&control.head), 3);
    if (pidfd < 0)
        return sbx_fail(run, SBX_STEP_ORDER, 0, pidfd);
    run->pidfd = (int)pidfd;
    return 0;
}

/* Tells the reaper what to run. It comes last: so no command begins before the run has its pidfd.
 */
static void send_order(const struct sbx_job *job, struct sbx_run *run) {
    struct sbx_order order = order_of(job, 1);
    struct iovec parts[] = {{&order, sizeof order},
                            {(void *)(uintptr_t)job->limits, order.limits},
                            {(void *)(uintptr_t)job->passed, (size_t)job->n_passed * sizeof(int)},
                            {(void *)(uintptr_t)job->cwd, job->size}};
    long error = send_all(run->status, parts, 4, NULL, 0, MSG_DONTWAIT);
    if (error == -EAGAIN) { /* the rest follows as the reaper reads */
        limit_patience(run->status);
        error = send_all(run->status, parts, 4, NULL, 0, 0);
    }
    if (error < 0 && error != -EPIPE && error != -ECONNRESET) /* sbx_pump reports its death */
        sbx_fail(run, SBX_STEP_ORDER, 0, error);
}

int sbx_spawn_in_session(int control, const struct sbx_job *job, struct sbx_run *run) {
    int stdio[] = {SBX_NULL, SBX_NULL, SBX_NULL}, theirs = -1, null = -1;
    int64_t patience = job->setup_ns && job->setup_ns < PATIENCE_NS ? job->setup_ns : PATIENCE_NS;
    reset_run(run, NULL);
    run->orphan = run->in_session = 1;
    if (job->size > INT32_MAX) /* too large for an order's size field, and for any exec */
        sbx_fail(run, SBX_STEP_EXEC, -1, -E2BIG);
    long error = run->failure.step == SBX_STEP_NONE ? make_outputs(job, run, stdio) : -1;
    if (error == 0) {
        error = make_socket(&run->status, &theirs);
        if (error < 0)
            sbx_fail(run, SBX_STEP_PIPE, REAPER_STATUS_FD, error);
    }
    if (error == 0)
        error = send_descriptors(control, job, run, stdio, theirs, &null);
    close_outputs(job, stdio);
    sbx_close(&theirs);
    sbx_close(&null);
    if (error == 0)
        error = take_pidfd(run, patience);
    if (error == 0)
        send_order(job, run);
    if (job->announce && run->failure.step == SBX_STEP_NONE)
        await_command(run, job->setup_ns);
    if (run->failure.step == SBX_STEP_NONE)
        return pump_at_once(job, run);
    sbx_end(run);
    return -1;
}
