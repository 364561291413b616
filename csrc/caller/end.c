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

/* The kernel counts the peak of the memory that the child shared with the caller, until its exec,
 * as the child's own (exec_mmap in fs/exec.c). If the peak is not above the caller's, the command's
 * is not known: 0. */
static void forget_our_peak(struct sbx_run *run) {
    int64_t ours[18] = {0};
    raw(__NR_getrusage, 0 /* RUSAGE_SELF */, ours);
    if (run->usage[SBX_PEAK] <= ours[SBX_PEAK])
        run->usage[SBX_PEAK] = 0;
}

/* Waits for a process that is known to be dead, so that it leaves no zombie. 0 or -errno: -EAGAIN
 * if it cannot be reaped in time. */
static long wait_for_status(struct sbx_run *run, siginfo_t *info) {
    int64_t end = 0;
    for (;;) {
        struct timespec pause = {0, 1000000};
        info->si_pid = info->si_code = 0;
        long error =
            raw(__NR_waitid, WAIT_PIDFD, run->pidfd, info, WEXITED | WNOHANG | __WALL, run->usage);
        /* If its parent traces a process, waitid reports each stop as well, unasked. */
        if (error == 0 && (info->si_code == CLD_TRAPPED || info->si_code == CLD_STOPPED))
            continue;
        if (error < 0 || info->si_pid)
            return error;
        /* If somebody else traces it, it stays a zombie for as long as the tracer likes. */
        if (end && sbx_now() > end)
            return -EAGAIN;
        end = end ? end : sbx_now() + LAST_NS;
        raw(__NR_nanosleep, &pause, 0);
    }
}

/* Another waiter is reaping it right now: asks the pidfd until the kernel publishes the status. */
static void ask_for_status(struct sbx_run *run) {
    for (int tries = 0; tries < 1000; tries++) {
        struct pidfd_info answer = {.mask = 1 << 3 /* PIDFD_INFO_EXIT */};
        struct timespec pause = {0, 100000};
        long error = raw(__NR_ioctl, run->pidfd, _IOWR(0xff, 11, struct pidfd_info), &answer);
        if (error == 0 && answer.mask & 1 << 3) {
            run->wait_status = answer.exit_code;
            return;
        }
        if (error < 0 && error != -ESRCH) /* older than Linux 6.13 */
            return;
        raw(__NR_nanosleep, &pause, 0);
    }
}

void sbx_reap(struct sbx_run *run) {
    siginfo_t info;
    long error = wait_for_status(run, &info);
    if (error < 0) {
        run->wait_status = (int)error;
        if (error != -EAGAIN)
            ask_for_status(run);
        return;
    }
    forget_our_peak(run);
    run->has_usage = 1;
    run->wait_status = info.si_status;
    if (info.si_code == CLD_EXITED)
        run->wait_status = (info.si_status & 0xff) << 8;
}

/* Signals a process (SIDE 1) or a group (-1). No child has the number 0 or 1: to kill(2) they mean
 * the caller's own group, and everybody. */
static long kill_by_number(int side, int pid, int signum) {
    return pid > 1 ? raw(__NR_kill, side * pid, signum) : -ESRCH;
}

/* Signals the group by its pidfd, so that it cannot hit a number that was used again (Linux 6.9).
 * Older kernels take the number: it is safe as long as the leader, dead or alive, has not been
 * reaped. */
static long signal_group(struct sbx_run *run, int signum) {
    siginfo_t info = {0};
    long error = raw(RAW_pidfd_send_signal, run->pidfd, signum, 0, SIGNAL_GROUP);
    if (error != -EINVAL)
        return error;
    error =
        raw(__NR_waitid, WAIT_PIDFD, run->pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return error < 0 ? error : kill_by_number(-1, run->pid, signum);
}

/* Tells pid 1, which sends the signal to all processes below it. */
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

int wait_for_end(int pidfd, int64_t killed) {
    struct pollfd dead = {pidfd, POLLIN, 0};
    for (;;) { /* signals do not end this wait; Python handles them afterwards */
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
    if (error < 0) /* it is somebody else's child */
        return wait_for_end(pidfd, 0);
    return info.si_pid != 0;
}

long kill_run(struct sbx_run *run) {
    run->asked = 0;
    if (!run->killed || run->killed > sbx_now())
        run->killed = sbx_now();
    if (run->slot) {
        kill_slot(run->slot);
        return 0;
    }
    if (run->in_session) /* its reaper then ends all descendants of the command, and itself */
        return raw(__NR_shutdown, run->status, SHUT_WR);
    /* Without a reaper the command leads its group. If it is also pid 1, this is enough. */
    if (run->group && signal_group(run, SIGKILL) == 0)
        return 0;
    long error = raw(RAW_pidfd_send_signal, run->pidfd, SIGKILL, 0, 0);
    /* A seccomp filter forbids pidfd_send_signal. The number is safe, as we have not reaped it. */
    if (error < 0 && error != -ESRCH && !run->orphan)
        error = kill_by_number(1, run->pid, SIGKILL);
    return error;
}

int sbx_signal(struct sbx_run *run, int signum) {
    int pidfd = run->slot ? run->slot->pidfd : run->pidfd;
    if (run->owner == 0 || pidfd < 0
        || run->ended) /* owner 0: no run began, and all fields are zero */
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

int sbx_stop(struct sbx_run *run) {
    if (run->owner == 0 || run->ended || run->in_session || (!run->slot && run->status < 0))
        return sbx_signal(run, SIGKILL);
    if (run->slot)
        run->slot->signalled = run->slot->runs;
    if (signal_through(run, SIGKILL) < 0)
        return (int)kill_run(run);
    run->killed = sbx_now();
    run->asked = 1;
    return 0;
}

/* If the caller adopts orphans (PR_SET_CHILD_SUBREAPER), it has to reap a resident. */
void reap_orphan(int pidfd) {
    raw(__NR_waitid, WAIT_PIDFD, pidfd, 0, WEXITED | WNOHANG | __WALL, 0);
}

/* Kills the process, and waits for it; if it does not end, Python keeps its pidfd. A reaper that
 * cannot be signalled ends when its caller hangs up. */
static void end_process(struct sbx_run *run) {
    long error = run->killed && !run->asked ? 0 : kill_run(run);
    if (error < 0 && error != -ESRCH)
        sbx_close(&run->status);
    /* A reaper in a session has to find what it kills. */
    if (!wait_for_end(run->pidfd, run->killed + (run->in_session ? LAST_NS : 0))) {
        run->stuck = (int)move_above(run->pidfd, 3);
        run->pidfd = -1;
    } else if (run->orphan && !run->in_session) {
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
