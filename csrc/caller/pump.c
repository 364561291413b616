/* SPDX-License-Identifier: Apache-2.0
 *
 * Moves the output of runs into their buffers, until one run is over. A call returns when Python
 * has something to do, above all on every signal, because only Python can run handlers; and when
 * its time is over, however much output there still is.
 *
 * A run ends with its command, not with its pipes: a daemon may hold those for ever. What a pipe
 * holds at that moment is counted once and read, and nothing that comes later.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define LARGE_PIPE 1048576 /* what a user may have by default (pipe(7)) */
#define LAST_WITHOUT_HASTE_NS 8000000000LL
#define MOST_OF_TERMINAL 65536 /* more than a terminal holds (drivers/tty/pty.c, n_tty.c) */

/* Reads once, without blocking: the command may have taken back what poll(2) told us of. Closes the
 * stream at its end. Returns whether there may be more. */
static int read_some(struct sbx_stream *s) {
    long n = raw(__NR_read, s->fd, s->buffer + s->length, s->size - s->length);
    if (n > 0)
        s->length += (size_t)n;
    else if (n != -EINTR && n != -EAGAIN)
        sbx_close(&s->fd);
    return n > 0 || n == -EINTR;
}

static void read_ready(struct sbx_stream *s, int events) {
    if (events & POLLIN)
        read_some(s);
    else if (events)
        sbx_close(&s->fd); /* the stream is at its end, and empty */
}

static int is_buffer_full(struct sbx_stream *s) {
    return s->fd >= 0 && (s->length == s->size || (s->eager && s->length > 0));
}

/* A stream that fills its first buffer has much output: a larger pipe makes reads fewer and larger.
 */
static enum sbx_pump_result report_full(struct sbx_stream *s) {
    if (s->length == s->size && s->length <= LARGE_PIPE)
        raw(__NR_fcntl, s->fd, F_SETPIPE_SZ, LARGE_PIPE);
    return SBX_PUMP_FULL;
}

static int bytes_in(int fd) {
    int bytes = 0;
    return fd >= 0 && raw(__NR_ioctl, fd, FIONREAD, &bytes) == 0 ? bytes : 0;
}

static void take_record(struct sbx_run *run, const struct sbx_record *record) {
    run->wait_status = record->wait_status;
    run->over_cpu_time = record->over_cpu_time != 0;
    run->has_usage = 1;
    for (size_t i = 0; i < sizeof run->usage / sizeof *run->usage; i++)
        run->usage[i] = record->usage[i];
    if (record->step != SBX_STEP_NONE)
        sbx_fail(run, (enum sbx_step)record->step, record->index, -(long)record->error);
}

/* Reads the reaper's record. A reaper always writes a record before it exits, so no record means
 * that it was killed from outside, and the command with it: then its own status is the command's.
 */
static void read_record(struct sbx_run *run) {
    struct sbx_record record = {0};
    if (run->status < 0)
        return;
    run->has_usage =
        0; /* the usage is the reaper's own: it did not wait for those that died with it */
    if (bytes_in(run->status) == sizeof record)
        raw(__NR_recvfrom, run->status, &record, sizeof record, MSG_DONTWAIT, 0, 0);
    if (record.magic == SBX_RECORD_MAGIC && record.run == 1)
        take_record(run, &record);
    else if (!run->in_session && WIFEXITED(run->wait_status))
        run->wait_status = -ECHILD;
}

/* Reads the resident's record of this run, which it writes once all of the run is gone. No record
 * means that the resident was killed, and the command with it: first the socket is closed, and only
 * when the last process of the run is dead the resident is dead. If it was killed before all of the
 * order was read (ECONNRESET: the socket was closed with something left in it), no command began,
 * and the run can be made again. Any other answer comes from somebody else, and the status is
 * unknown. Returns 0 if nothing is known yet. */
static int read_answer(struct sbx_run *run) {
    struct sbx_record record = {0};
    struct pollfd dead = {run->slot->pidfd, POLLIN, 0};
    struct timespec at_once = {0, 0};
    long n = raw(__NR_recvfrom, run->slot->control, &record, sizeof record, MSG_DONTWAIT, 0, 0);
    if (record.magic == SBX_RECORD_MAGIC && record.run == run->slot->runs) {
        take_record(run, &record);
        return 1;
    }
    if (n == -ECONNRESET && run->slot->signalled != run->slot->runs)
        sbx_fail(run, SBX_STEP_ORDER, 0, -ECANCELED);
    if (n > 0)
        run->wait_status = -EPROTO;
    if (raw(__NR_ppoll, &dead, 1, &at_once, 0, 0) == 0) {
        sbx_signal(run, SIGKILL);
        sbx_close(&run->slot->control);
        return 0;
    }
    sbx_close_slot(run->slot);
    if (run->wait_status != -EPROTO)
        run->wait_status = SIGKILL;
    return 1;
}

/* The process is dead: kills what is left of its group, takes its status, and counts what the pipes
 * hold, so that a writer that lives on cannot keep the caller. */
void sbx_collect(struct sbx_run *run) {
    if (run->slot) {
        if (!read_answer(run))
            return;
    } else {
        if (run->group)
            sbx_signal(run, SIGKILL);
        if (run->in_session)
            run->wait_status = -EOWNERDEAD; /* unless there is a record */
        else
            sbx_reap(run);
        read_record(run);
    }
    run->ended = 1;
    run->out.left = run->out.is_terminal ? MOST_OF_TERMINAL : bytes_in(run->out.fd);
    run->err.left = bytes_in(run->err.fd);
}

/* FIONREAD of a terminal counts only what can be read at once. More may be on its way, and only
 * poll(2) waits for that. */
static int is_terminal_empty(struct sbx_stream *s) {
    struct pollfd fd = {s->fd, POLLIN, 0};
    struct timespec at_once = {0, 0};
    return s->is_terminal
           && (raw(__NR_ppoll, &fd, 1, &at_once, 0, 0) != 1 || !(fd.revents & POLLIN));
}

/* Reads what is left of S; 1: the buffer is too small. */
static int read_rest(struct sbx_stream *s) {
    while (s->fd >= 0 && s->left > 0) {
        size_t before = s->length;
        if (is_buffer_full(s))
            return 1;
        if (is_terminal_empty(s) || !read_some(s))
            break;
        s->left -= (int)(s->length - before);
    }
    sbx_close(&s->fd);
    return 0;
}

/* Tells what Python has to do before a run can go on; AGAIN: nothing. */
static enum sbx_pump_result what_it_needs(struct sbx_run *run) {
    if (!run->ended) {
        if (run->asked && sbx_now() > run->killed + SBX_ASKED_MS * 1000000LL)
            kill_run(run);
        if (is_buffer_full(&run->out))
            return report_full(&run->out);
        return is_buffer_full(&run->err) ? report_full(&run->err) : SBX_PUMP_AGAIN;
    }
    if (run->failure.step != SBX_STEP_NONE)
        return SBX_PUMP_ERROR;
    return read_rest(&run->out) || read_rest(&run->err) ? SBX_PUMP_FULL : SBX_PUMP_DONE;
}

static void fill_pollfds(const struct sbx_run *run, struct pollfd fds[4]) {
    fds[0].fd = run->slot ? run->slot->pidfd : run->pidfd;
    fds[1].fd = run->slot ? run->slot->control : -1;
    fds[2].fd = run->out.fd;
    fds[3].fd = run->err.fd;
    for (int i = 0; i < 4; i++)
        fds[i].events = POLLIN;
}

static void move_bytes(struct sbx_run *run, const struct pollfd fds[4]) {
    read_ready(&run->out, fds[2].revents);
    read_ready(&run->err, fds[3].revents);
    if (fds[0].revents || fds[1].revents)
        sbx_collect(run);
}

/* A reaper exits as soon as it has written its record, unless something delays the end of its
 * namespace. Nothing is late yet, and mounts take time to go, so the kernel gets longer than after
 * a SIGKILL. */
void notice_record(struct sbx_run *run) {
    if (!run->ended && !run->killed && run->status >= 0
        && bytes_in(run->status) >= (int)sizeof(struct sbx_record)) {
        run->killed = sbx_now() + LAST_WITHOUT_HASTE_NS;
        run->reported = 1;
    }
}

int sbx_pump_any(struct sbx_run **runs, int n, enum sbx_pump_result *results, void *room,
                 int64_t wait_ns) {
    struct pollfd *fds = room;
    /* the system call leaves the rest of the time here (poll(2)) */
    struct {
        int64_t seconds, nanoseconds;
    } wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    for (int over = 0;; over = !(wait.seconds || wait.nanoseconds)) {
        int found = 0;
        for (int i = 0; i < n; i++) {
            results[i] = what_it_needs(runs[i]);
            found += results[i] != SBX_PUMP_AGAIN;
            fill_pollfds(runs[i], fds + 4 * i);
        }
        if (found || over)
            return found;
        if (raw(__NR_ppoll, fds, 4 * n, &wait, 0, 0) <= 0) {
            for (int i = 0; i < n; i++)
                notice_record(runs[i]);
            return 0;
        }
        for (int i = 0; i < n; i++)
            move_bytes(runs[i], fds + 4 * i);
    }
}

enum sbx_pump_result sbx_pump(struct sbx_run *run, int64_t wait_ns) {
    enum sbx_pump_result result;
    struct pollfd room[4];
    sbx_pump_any(&run, 1, &result, room, wait_ns);
    return result;
}

int sbx_open_bell(struct sbx_run *bell) {
    reset_run(bell, NULL);
    long fd = move_above(raw(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK), 3);
    bell->out.fd = fd < 0 ? -1 : (int)fd;
    return fd < 0 ? (int)fd : 0;
}
