/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs that go on while their caller does something else. Any thread may call any of these
 * functions at any moment, also from a signal handler of Python's: such a handler runs between two
 * calls into C, and never within one. So the lock, which is held within a call only, and never
 * while a call waits for the run, cannot keep a handler for ever.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

/* A host may close descriptors that are not its own, and use their numbers again: then they are not
 * ours any more. */
static void forget_foreign(struct sbx_handle *h) {
    if (sbx_file_of(h->run.pidfd) != h->files[0])
        h->run.pidfd = -1;
    if (sbx_file_of(h->run.status) != h->files[1])
        h->run.status = -1;
}

/* The lock is the pid of its holder. Another pid is that of the process that forked us: the thread
 * that holds the lock there does not exist here, and neither do the threads that wait. */
static void lock(struct sbx_handle *h) {
    const int pid = getpid();
    for (int holder = 0;; holder = holder == pid ? 0 : holder) {
        if (__atomic_compare_exchange_n(&h->lock, &holder, pid, 0, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED))
            break;
        struct timespec pause = {0, 20000};
        if (holder == pid)
            raw(__NR_nanosleep, &pause, 0);
    }
    if (h->user != pid) {
        h->user = pid;
        h->n_waiting = 0;
    }
    forget_foreign(h);
}

/* The last one to leave closes what is not needed after the end: another thread may still wait on
 * the number of the pidfd. */
static void unlock(struct sbx_handle *h) {
    if (h->is_over && h->n_waiting == 0) {
        sbx_close(&h->run.pidfd);
        sbx_close(&h->run.status);
    }
    __atomic_store_n(&h->lock, 0, __ATOMIC_RELEASE);
}

/* Takes the status if the run is over. A fork of the caller cannot: the status is the caller's. */
static void look(struct sbx_handle *h) {
    struct sbx_run *run = &h->run;
    struct pollfd dead = {run->pidfd, POLLIN, 0};
    struct timespec at_once = {0, 0};
    if (h->is_over)
        return;
    if (run->pidfd >= 0 && raw(__NR_ppoll, &dead, 1, &at_once, 0, 0) <= 0) {
        notice_record(run);
        return;
    }
    if (run->pidfd < 0)
        run->wait_status = -EBADF;
    else if (run->owner == h->user)
        sbx_collect(run);
    run->ended = 1;
    h->is_over = 1;
}

void sbx_hand_over(struct sbx_run *run, struct sbx_handle *h) {
    h->run = *run;
    h->lock = h->n_waiting = h->is_over = h->stuck = 0;
    h->user = run->owner;
    h->run.pidfd = (int)move_above(run->pidfd, 3); /* it stays open: nobody must find it as stdin */
    h->files[0] = sbx_file_of(h->run.pidfd);
    h->files[1] = sbx_file_of(h->run.status);
    run->pidfd = run->status = run->out.fd = run->err.fd = -1;
    run->ended = 1;
    run->owner = 0;
}

int sbx_await_handle(struct sbx_handle *h, int64_t ns) {
    lock(h);
    look(h);
    if (!h->is_over && ns > 0) {
        struct pollfd dead = {h->run.pidfd, POLLIN, 0};
        struct timespec wait = {ns / NS, ns % NS};
        h->n_waiting++;
        unlock(h);
        raw(__NR_ppoll, &dead, 1, &wait, 0, 0);
        lock(h);
        h->n_waiting--;
        look(h);
    }
    int is_over = h->is_over;
    unlock(h);
    return is_over;
}

int sbx_signal_handle(struct sbx_handle *h, int signum) {
    lock(h);
    int error = h->is_over ? -ESRCH : sbx_signal(&h->run, signum);
    unlock(h);
    return error;
}

int sbx_pidfd_of_handle(struct sbx_handle *h) {
    lock(h);
    long fd = h->is_over ? -ESRCH : raw(__NR_fcntl, h->run.pidfd, F_DUPFD_CLOEXEC, 3);
    unlock(h);
    return (int)fd;
}

/* If SIGKILL does not end it in time, Python keeps a pidfd, by which it is reaped later. */
void sbx_end_handle(struct sbx_handle *h) {
    struct sbx_run *run = &h->run;
    if (run->owner == 0)
        return;
    lock(h);
    look(h);
    if (!h->is_over && run->owner == h->user) {
        long error = kill_run(run);
        if (error < 0 && error != -ESRCH)
            sbx_close(&run->status); /* a reaper ends when its caller hangs up */
        int pidfd = run->pidfd;
        int64_t killed = run->killed + (run->in_session ? LAST_NS : 0);
        h->n_waiting++;
        unlock(h);
        wait_for_end(pidfd, killed);
        lock(h);
        h->n_waiting--;
        look(h);
        if (!h->is_over)
            h->stuck = (int)raw(__NR_fcntl, run->pidfd, F_DUPFD_CLOEXEC, 3);
    }
    h->is_over = run->ended = 1;
    sbx_close(&run->out.fd);
    sbx_close(&run->err.fd);
    unlock(h);
}

int sbx_take_stuck(struct sbx_handle *h) {
    int fd = __atomic_exchange_n(&h->stuck, 0, __ATOMIC_ACQ_REL);
    return fd > 0 ? fd : 0;
}
