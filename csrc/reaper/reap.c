/* SPDX-License-Identifier: Apache-2.0
 *
 * Starts a command, and waits for it and for all that it leaves behind.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>

volatile int is_rung;
long run_reaper;
volatile int is_stopped;

/* SIGCHLD is handled only so that it ends a wait. */
void on_signal(int signum) {
    if (signum == RESIDENT_BELL)
        is_rung = 1;
}

/* Not inlined: parent and vfork child share start_command's frame until the exec. */
static void run_child(struct sbx_child *c) __attribute__((noinline, noreturn));
static void run_child(struct sbx_child *c) {
    int status = sbx_child_main(c);
    for (;;)
        raw(__NR_exit, status);
}

long start_command(struct sbx_child *c, uint64_t namespaces) {
    long pid = raw(__NR_clone, namespaces | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        run_child(c);
    if (pid < 0)
        sbx_fail(c->run, SBX_STEP_FORK, 0, pid);
    return c->run->failure.step == SBX_STEP_NONE ? pid : -1;
}

void write_record(uint32_t magic) {
    struct sbx_record record = {.magic = magic, .run = run_number};
    if (magic == SBX_RECORD_MAGIC) {
        raw(__NR_getrusage, -1 /* RUSAGE_CHILDREN */, record.usage);
        record.step = (int32_t)run.failure.step;
        record.index = run.failure.index;
        record.error = run.failure.error;
        record.wait_status = run.wait_status;
        if (WATCHES_CPU)
            record.over_cpu_time = run.over_cpu_time;
    }
    raw(__NR_write, REAPER_STATUS_FD, &record, sizeof record);
}

/* Tells whether a signal of ours reaches all processes of a run: we have CAP_KILL, or none of them
 * can have other ids. */
static int may_kill(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{0}};
    raw(__NR_capget, &header, sets);
    if (sets[0].effective >> CAP_KILL & 1)
        return 1;
    return !run_place.change_ids && run_place.no_new_privs;
}

/* A resident cannot kill a run without its reaper, which has to report, so it tells the reaper to.
 * If that could not reach all of the run, the kernel kills it, and nobody reports. */
static void signal_run(int signum) {
    long pid = -1;
    if (signum == SIGKILL && !may_kill())
        exit_reaper();
    if (signum == SIGKILL && run_reaper) {
        is_stopped = 1;
        pid = run_reaper;
        signum = RESIDENT_BELL;
    }
    raw(__NR_kill, pid, signum);
}

int pass_signals(void) {
    struct sbx_order message;
    long n;
    while ((n = raw(__NR_recvfrom, REAPER_STATUS_FD, &message, sizeof message, MSG_DONTWAIT, 0, 0))
           == sizeof message) {
        if (message.kind != SBX_SIGNAL)
            return 0;
        if (message.run == run_number && IN_SESSION)
            signal_descendants(message.signum);
        else if (message.run == run_number)
            signal_run(message.signum);
    }
    return n == -EAGAIN;
}

/* Waits until something happens to a child, or only looks, and passes on signals. 0: the caller
 * died, or it hung up, because it became another program by exec: then nobody is left to read the
 * status. This calls pselect6(2), because ppoll(2) fails under a low RLIMIT_NOFILE, which a command
 * may set on pid 1.
 */
static int caller_lives(int waits) {
    unsigned long readable = 1UL << REAPER_LIFELINE_FD | 1UL << REAPER_STATUS_FD;
    uint64_t blocked = RAW_ALL_SIGNALS & ~CHILD_SIGNAL;
    struct {
        const uint64_t *set;
        size_t size;
    } mask = {&blocked, RAW_SIGSET_SIZE};
    int looks = WATCHES_CPU && most_cpu_time;
    int64_t most[2] = {0, looks && waits ? 10000000 : 0};
    if (raw(__NR_pselect6, REAPER_FDS, &readable, 0, 0, waits && !looks ? 0 : most, &mask) <= 0)
        return 1;
    return !(readable >> REAPER_LIFELINE_FD & 1) && pass_signals();
}

/* PTRACE_TRACEME makes us the tracer of a process, so wait4 reports a stop to us at each signal
 * that it gets. We trace nobody: this detaches it, and delivers the signal. Two kinds of signals
 * are not delivered, because they only wait for a tracer: SIGTRAP (after an exec), and a stop
 * signal from within the run. A stop signal of our own (Process.suspend) has the sender 1, or 0 if
 * it comes from another pid namespace. */
static void detach_tracee(long pid, int status) {
    siginfo_t info = {0};
    int signum = WSTOPSIG(status);
    int is_stop = signum == SIGSTOP || signum == SIGTSTP || signum == SIGTTIN || signum == SIGTTOU;
    raw(__NR_ptrace, PTRACE_GETSIGINFO, pid, 0, &info);
    if (IN_SESSION && info.si_pid == raw(__NR_getpid, 0))
        is_stop = 0;
    if (signum == SIGTRAP || (is_stop && info.si_pid > 1))
        signum = 0;
    raw(__NR_ptrace, PTRACE_DETACH, pid, 0, signum);
}

long wait_for_child(int *status, int flags) {
    for (;;) {
        long pid = raw(__NR_wait4, -1, status, flags, 0);
        if (pid > 0 && WIFSTOPPED(*status))
            detach_tracee(pid, *status);
        else if (pid != -EINTR)
            return pid;
    }
}

/* In a storm of forks there is always one more to reap: so the reaper of a session, which only the
 * caller tells to kill, looks at the caller in between, and one that watches at the CPU time. */
int reap_until(long command) {
    for (;;) {
        int status;
        long pid = 1;
        for (int left = MOST_AT_ONCE; (!WATCHES_CPU || left--) && pid > 0;) {
            pid = wait_for_child(&status, WNOHANG);
            if (pid == command)
                return status;
        }
        if (pid < 0)
            return (int)pid;
        if (WATCHES_CPU && most_cpu_time && is_over_cpu_time())
            run.over_cpu_time = 1;
        else if (caller_lives(!WATCHES_CPU || pid == 0))
            continue;
        if (IN_SESSION)
            return kill_descendants(command);
        if (WATCHES_CPU && run.over_cpu_time)
            return SIGKILL; /* the rest of the run is killed next */
        exit_reaper();
    }
}

/* Waits for the end of a child; 0: none ends in SBX_LAST_MS. */
static int await_child(void) {
    struct {
        int64_t seconds, nanoseconds;
    } most = {SBX_LAST_MS / 1000, SBX_LAST_MS % 1000 * 1000000};
    uint64_t signals =
        CHILD_SIGNAL; /* SIGCHLD is blocked, so it is pending once a child has ended */
    return raw(__NR_rt_sigtimedwait, &signals, 0, &most, RAW_SIGSET_SIZE) != -EAGAIN;
}

/* Waiting for a process counts its usage. Processes that we may not signal are killed by the kernel
 * when pid 1 exits. */
int kill_and_reap(void) {
    long pid;
    int status;
    while ((pid = wait_for_child(&status, WNOHANG)) > 0)
        ;
    if (pid == -ECHILD) /* nobody is left, so kill(2) need not look at all processes */
        return 1;
    if (raw(__NR_getpid, 0) == 1) /* not if this is the caller's pid namespace */
        raw(__NR_kill, -1, SIGKILL);
    int may = may_kill();
    while ((pid = wait_for_child(&status, WNOHANG)) >= 0) {
        if (pid == 0 && !may)
            return 1;
        if (pid == 0 && !await_child())
            return 0;
    }
    return 1;
}
