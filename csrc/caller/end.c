/* SPDX-License-Identifier: Apache-2.0
 *
 * The end of a run: signals, the wait for what was killed, the status.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIGNAL_GROUP 4 /* pidfd_send_signal(2), PIDFD_SIGNAL_PROCESS_GROUP */

struct pidfd_info { /* ioctl_pidfd(2const), as first published */
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
};

/* The child's peak begins with that of the memory that it shared with the caller until its exec
 * (exec_mmap in fs/exec.c). Of what is not above that nothing is known: 0. */
static void forget_our_peak(struct sbx_run *run) {
    int64_t ours[18] = {0};
    raw(__NR_getrusage, 0 /* RUSAGE_SELF */, ours);
    if (run->usage[SBX_PEAK] <= ours[SBX_PEAK])
        run->usage[SBX_PEAK] = 0;
}

/* The status, and no zombie. The process is known to be dead. */
void sbx_reap(struct sbx_run *run) {
    siginfo_t info;
    int64_t end = 0;
    long error;
    for (;;) {
        struct timespec pause = {0, 1000000};
        info.si_pid = info.si_code = 0;
        error =
            raw(__NR_waitid, WAIT_PIDFD, run->pidfd, &info, WEXITED | WNOHANG | __WALL, run->usage);
        /* A process that its parent traces is reported at each stop as well, unasked. */
        if (error == 0 && (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED))
            continue;
        /* One that somebody else traces stays a zombie for as long as that one likes. */
        if (error < 0 || info.si_pid || (end && sbx_now() > end))
            break;
        end = end ? end : sbx_now() + LAST_NS;
        raw(__NR_nanosleep, &pause, 0);
    }
    error = error == 0 && !info.si_pid ? -EAGAIN : error;
    run->wait_status = error < 0 ? (int)error : run->wait_status;
    if (error == 0) {
        int value = info.si_status;
        forget_our_peak(run);
        run->has_usage = 1;
        run->wait_status = info.si_code == CLD_EXITED ? (value & 0xff) << 8 : value;
        return;
    }
    if (error == -EAGAIN)
        return;
    /* Whoever was faster may still be at it: the kernel has the status once the process is gone. */
    for (int tries = 0; tries < 1000; tries++) {
        struct pidfd_info told = {.mask = 1 << 3 /* PIDFD_INFO_EXIT */};
        struct timespec pause = {0, 100000};
        error = raw(__NR_ioctl, run->pidfd, _IOWR(0xff, 11, struct pidfd_info), &told);
        if (error == 0 && told.mask & 1 << 3) {
            run->wait_status = told.exit_code;
            return;
        }
        if (error < 0 && error != -ESRCH) /* older than Linux 6.13 */
            return;
        raw(__NR_nanosleep, &pause, 0);
    }
}

/* To a process (SIDE 1) or a group (-1). 0 and 1 are no child's number: to kill(2) they mean the
 * caller's own group, and everybody. */
static long kill_by_number(int side, int pid, int signum) {
    return pid > 1 ? raw(__NR_kill, side * pid, signum) : -ESRCH;
}

/* The group by pidfd, where a recycled number cannot be hit (Linux 6.9); before that by number, as
 * long as the leader, dead or alive, is still there to hold it. */
static long signal_group(struct sbx_run *run, int signum) {
    siginfo_t info = {0};
    long error = raw(RAW_pidfd_send_signal, run->pidfd, signum, 0, SIGNAL_GROUP);
    if (error != -EINVAL)
        return error;
    error =
        raw(__NR_waitid, WAIT_PIDFD, run->pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return error < 0 ? error : kill_by_number(-1, run->pid, signum);
}

/* Pid 1 is told, and sends the signal to all below it. */
static int signal_through(struct sbx_run *run, int signum) {
    struct sbx_order order = {.kind = SBX_SIGNAL, .run = 1, .signum = signum};
    int socket = run->status;
    if (run->slot) {
        order.run = run->slot->runs;
        socket = run->slot->control;
    }
    long sent = raw(__NR_sendto, socket, &order, sizeof order, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
    if (sent > 0 && run->slot)
        sent = raw(RAW_pidfd_send_signal, run->slot->pidfd, RESIDENT_BELL, 0, 0);
    return sent < 0 ? (int)sent : 0;
}

/* Until the process of PIDFD is dead, at most for the time that the kernel has: whether it is. */
int wait_for_end(int pidfd, int64_t killed) {
    struct pollfd dead = {pidfd, POLLIN, 0};
    for (;;) { /* signals: Python sees to them afterwards */
        int64_t left = killed + LAST_NS - sbx_now();
        struct timespec wait = {left / NS, left % NS};
        if (left < 0)
            wait.tv_sec = wait.tv_nsec = 0;
        if (raw(__NR_ppoll, &dead, 1, &wait, 0, 0) == 1)
            return 1;
        if (left <= 0)
            return 0;
    }
}

int sbx_reap_stuck(int pidfd) {
    siginfo_t info = {0};
    long error = raw(__NR_waitid, WAIT_PIDFD, pidfd, &info, WEXITED | WNOHANG | __WALL, 0);
    if (error < 0) /* somebody else's child */
        return wait_for_end(pidfd, 0);
    return info.si_pid != 0;
}

long kill_run(struct sbx_run *run) {
    if (!run->killed || run->killed > sbx_now())
        run->killed = sbx_now();
    if (run->slot) {
        kill_slot(run->slot);
        return 0;
    }
    /* Without a reaper the command leads its group, also as pid 1, whose death needs no more. */
    if (run->group && signal_group(run, SIGKILL) == 0)
        return 0;
    long error = raw(RAW_pidfd_send_signal, run->pidfd, SIGKILL, 0, 0);
    if (error < 0 && error != -ESRCH && !run->orphan) /* a seccomp filter; we have not reaped it */
        error = kill_by_number(1, run->pid, SIGKILL);
    return error;
}

int sbx_signal(struct sbx_run *run, int signum) {
    int pidfd = run->slot ? run->slot->pidfd : run->pidfd;
    if (run->owner == 0 || pidfd < 0 || run->ended) /* owner 0: it has not begun, all is zero */
        return -ESRCH;
    if (run->slot)
        run->slot->signalled = run->slot->runs;
    if (signum == SIGKILL)
        return (int)kill_run(run);
    if (run->slot || run->status >= 0)
        return signal_through(run, signum);
    if (signal_group(run, signum) == 0)
        return 0;
    return (int)raw(RAW_pidfd_send_signal, pidfd, signum, 0, 0);
}

/* A resident is the caller's to reap where the caller adopts orphans. */
void reap_orphan(int pidfd) {
    raw(__NR_waitid, WAIT_PIDFD, pidfd, 0, WEXITED | WNOHANG | __WALL, 0);
}

/* Kills what runs, and waits for it; what does not end is left to Python. A reaper that cannot be
 * sent a signal ends when its caller hangs up. */
static void end_process(struct sbx_run *run) {
    long error = run->killed ? 0 : kill_run(run);
    if (error < 0 && error != -ESRCH)
        sbx_close(&run->status);
    if (!wait_for_end(run->pidfd, run->killed)) {
        run->stuck = (int)move_above(run->pidfd, 3);
        run->pidfd = -1;
    } else if (run->orphan) {
        reap_orphan(run->pidfd);
    } else {
        sbx_collect(run);
    }
}

void sbx_end(struct sbx_run *run) {
    if (run->owner == 0)
        return;
    if (!run->ended && run->slot) {
        sbx_close_slot(run->slot);
        run->wait_status = SIGKILL;
    } else if (!run->ended && run->pidfd >= 0 && run->owner == getpid()) {
        end_process(run);
    }
    if (run->slot && run->slot->stuck) {
        run->stuck = run->slot->stuck;
        run->slot->stuck = 0;
    }
    sbx_close(&run->pidfd);
    sbx_close(&run->status);
    sbx_close(&run->out.fd);
    sbx_close(&run->err.fd);
    run->ended = 1;
    run->owner = 0;
}
