/* SPDX-License-Identifier: Apache-2.0
 *
 * The descriptors of a run: pipes for its output, a socket to its reaper, a lifeline.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

void sbx_close(int *fd) {
    if (*fd >= 0)
        raw(__NR_close, *fd);
    *fd = -1;
}

long move_above(long fd, int lowest) {
    if (fd < 0 || fd >= lowest)
        return fd;
    long higher = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC, lowest);
    raw(__NR_close, fd);
    return higher == -EINVAL ? -EMFILE : higher; /* beyond RLIMIT_NOFILE (fcntl(2)) */
}

uint64_t sbx_file_of(int fd) {
    struct stat status;
    long error = raw(__NR_fstat, fd, &status);
    return error ? 0 : (uint64_t)status.st_dev << 32 ^ status.st_ino;
}

/* Our end does not block: the command may open its own end for reading, and take back what poll(2)
 * has told us of. Each end has its own flags, so the command's end still blocks, as the command
 * expects. */
static int make_pipe(int *read_end, int *write_end) {
    int ends[2];
    long error = raw(__NR_pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    raw(__NR_fcntl, ends[0], F_SETFL, O_NONBLOCK);
    long reader = move_above(ends[0], 3), writer = move_above(ends[1], 3);
    *read_end = reader < 0 ? -1 : (int)reader;
    *write_end = writer < 0 ? -1 : (int)writer;
    return (int)(reader < 0 ? reader : writer < 0 ? writer : 0);
}

void limit_patience(int socket) {
    struct timeval patience = {5, 0};
    raw(__NR_setsockopt, socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    raw(__NR_setsockopt, socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

int make_socket(int *ours, int *theirs) {
    int ends[2];
    long error = raw(__NR_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
    if (error < 0)
        return (int)error;
    long first = move_above(ends[0], 3), second = move_above(ends[1], 3);
    *ours = first < 0 ? -1 : (int)first;
    *theirs = second < 0 ? -1 : (int)second;
    return (int)(first < 0 ? first : second < 0 ? second : 0);
}

int make_outputs(const struct sbx_job *job, struct sbx_run *run, int stdio[3]) {
    struct sbx_stream *streams[] = {&run->out, &run->err};
    for (int i = 0; i < 3; i++) /* before a pipe gets the number of one that is closed */
        if (job->stdio[i] >= 0 && raw(__NR_fcntl, job->stdio[i], F_GETFD) < 0)
            return sbx_fail(run, SBX_STEP_STDIO, i, -EBADF);
    for (int i = 0; i < job->n_passed; i++)
        if (raw(__NR_fcntl, job->passed_from[i], F_GETFD) < 0)
            return sbx_fail(run, SBX_STEP_STDIO, REAPER_FDS + i, -EBADF);
    stdio[0] = job->stdio[0];
    for (int i = 0; i < 2; i++) {
        int error = 0;
        if (job->stdio[i + 1] == SBX_CAPTURE)
            error = make_pipe(&streams[i]->fd, &stdio[i + 1]);
        else
            stdio[i + 1] = job->stdio[i + 1];
        if (error < 0)
            return sbx_fail(run, SBX_STEP_PIPE, i + 1, error);
    }
    if (job->stdio[2] == SBX_STDOUT)
        stdio[2] = stdio[1];
    return 0;
}

void close_outputs(const struct sbx_job *job, int stdio[3]) {
    for (int i = 1; i < 3; i++)
        if (job->stdio[i] == SBX_CAPTURE)
            sbx_close(&stdio[i]);
}

int collect_stdio(struct sbx_run *run, const int stdio[3], int *null_fd, int fds[3]) {
    for (int i = 0; i < 3; i++) {
        if (stdio[i] < 0 && *null_fd < 0)
            *null_fd = (int)raw(__NR_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
        fds[i] = stdio[i] < 0 ? *null_fd : stdio[i];
        if (fds[i] < 0)
            return sbx_fail(run, SBX_STEP_STDIO, i, *null_fd);
    }
    return 0;
}

int make_pipes(const struct sbx_job *job, struct sbx_run *run, struct sbx_child *c) {
    if (make_outputs(job, run, c->stdio) < 0)
        return -1;
    int error = 0;
    if (c->place->reaper)
        error = make_socket(&run->status, &c->status);
    if (error < 0)
        return sbx_fail(run, SBX_STEP_PIPE, REAPER_STATUS_FD, error);
    /* Without a reaper the command dies with this thread (see do_parent_death), so the pidfd is the
     * thread's; otherwise it is the process's. */
    long lifeline = -EINVAL;
    if (!c->place->reaper)
        lifeline = raw(RAW_pidfd_open, raw(__NR_gettid, 0), O_EXCL /* PIDFD_THREAD, Linux 6.9 */);
    if (lifeline == -EINVAL)
        lifeline = raw(RAW_pidfd_open, run->owner, 0);
    lifeline = move_above(lifeline, 3);
    if (lifeline < 0)
        return sbx_fail(run, SBX_STEP_LIFELINE, 0, lifeline);
    c->lifeline = (int)lifeline;
    return 0;
}
