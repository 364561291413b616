/* SPDX-License-Identifier: Apache-2.0
 *
 * A reaper that stays, and runs one command after the other.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define MOST_LEAVING 16 /* reapers that have written their record, and are still to exit */

static const unsigned char *held; /* see struct sbx_job; the same for all runs */
/* What lies at the targets before a run, and once all of the run's mounts are there. */
static struct sbx_seen *template_seen, *run_seen;
static int with_reaper; /* 1: each run has a reaper; 0: its command is pid 1 */
static int own_users;   /* 1: the slot has a user namespace */
/* State of the run under way: the order was requested, all of the order came, the record was
 * written. */
static volatile int is_asked, is_ordered, is_told;
static int done_fd; /* an eventfd that a reaper writes to when it is done */
static int cgroups[SBX_MOST_CGROUPS], n_cgroups;
enum { REAPER_STACK_SIZE = 8192, COMMAND_STACK_SIZE = 32768 };
static char stacks[REAPER_STACK_SIZE + COMMAND_STACK_SIZE] __attribute__((aligned(16)));

/* Where the template has a mount. */
static const char *kept_at(const struct sbx_mount *m) {
    return STACKS && run_place.overlay ? m->source : m->target;
}

static void prepare_resident(void) {
    long error = read_place();
    with_reaper = run_place.reaper;
    own_users = run_place.namespaces != 0;
    run_place.reaper = 0;
    run_place.namespaces = 0;
    size_t size = (size_t)run_place.n_mounts * sizeof *template_seen;
    long memory = get_memory(2 * size + 1);
    if (error < 0 || (memory < 0 && memory > -4096))
        exit_reaper();
    template_seen = (struct sbx_seen *)memory;
    run_seen = template_seen + run_place.n_mounts;
    for (int i = 0; i < run_place.n_mounts; i++)
        if (run_place.mounts[i].flags & SBX_KEPT)
            template_seen[i] = sbx_see_mount(kept_at(&run_place.mounts[i]));
    for (int i = 0; i < run_place.n_mounts; i++) {
        const struct sbx_mount *m = &run_place.mounts[i];
        if (m->kind == SBX_DEV && m->flags & SBX_KEPT && template_seen[i].inode
            && sbx_watch_dev(m, kept_at(m), template_seen[i], template_seen, run_place.n_mounts)
                   < 0)
            exit_reaper();
    }
    held = (const unsigned char *)(run_place.mounts + run_place.n_mounts);
}

/* The numbers below belong to the files that are looked at after each run, also if one of these is
 * missing. */
static void keep_cgroups(const int *fds, int n) {
    for (n_cgroups = 0; n_cgroups < n; n_cgroups++) {
        long fd = raw(__NR_fcntl, fds[n_cgroups], F_DUPFD_CLOEXEC, RESIDENT_FDS);
        close_fd(fds[n_cgroups]);
        if (fd < 0)
            exit_reaper();
        cgroups[n_cgroups] = (int)fd;
    }
}

/* Does step CGROUP ahead of the order, and then step ORDER: reports that the set-up is done, and
 * waits for the message that says what to run. */
static int await_order(struct sbx_child *c) {
    static struct sbx_job job;
    static int fds[SBX_MOST_CGROUPS];
    struct sbx_order order;
    long error = do_cgroup(c);
    if (error < 0) {
        sbx_fail(&run, SBX_STEP_CGROUP, c->index, error);
        return (int)error;
    }
    is_asked = 1;
    write_record(SBX_READY_MAGIC);
    error = receive_message(SBX_ORDER, &order, fds);
    int has_socket = STACKS && order.n_fds == 4;
    if (error < 0 || order.n_fds != 3 + has_socket)
        return error < 0 ? (int)error : -ECANCELED;
    for (int i = 0; i < 3; i++)
        c->stdio[i] = fds[i];
    job = *c->job;
    job.n_cgroups = 0; /* it is in them */
    read_job(&order, &job, c);
    c->upper_socket = has_socket ? fds[3] : 0;
    if (has_socket && c->upper >= 0 && (error = send_upper(c)) < 0)
        return (int)error;
    is_ordered = 1; /* from here on the command may have begun */
    return 0;
}

/* This calls clone(2), because seccomp filters refuse clone3: they cannot see its flags, which lie
 * in memory. */
static long clone_on_stack(uint64_t flags, char *stack, size_t size, int (*entry)(void *),
                           void *argument, int *pidfd) {
    long all = (long)flags | CLONE_VM | SIGCHLD | (pidfd ? RAW_CLONE_PIDFD : 0);
    return clone_by(__NR_clone, all, (long)(stack + size), (long)pidfd, entry, argument);
}

/* Writes to the eventfd and exits without touching the stack: once woken, the resident gives this
 * stack to the next reaper. */
static void wake_and_exit(int fd) {
    static const uint64_t one = 1;
#if defined(__x86_64__)
    __asm__ volatile("syscall\n\tmov %[exit], %%eax\n\txor %%edi, %%edi\n\tsyscall"
                     :
                     : "a"((long)__NR_write), "D"((long)fd), "S"(&one),
                       "d"(8L), [exit] "i"(__NR_exit)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = __NR_write;
    register long x0 __asm__("x0") = fd;
    register long x1 __asm__("x1") = (long)&one;
    register long x2 __asm__("x2") = 8;
    __asm__ volatile("svc #0\n\tmov x8, %[exit]\n\tmov x0, #0\n\tsvc #0"
                     : "+r"(x8), "+r"(x0)
                     : "r"(x1), "r"(x2), [exit] "i"(__NR_exit)
                     : "memory");
#endif
}

/* Waits for the end of a child, or for the resident, which says that the run has to be killed. */
static void await_signal(void) {
    uint64_t signals = CHILD_SIGNAL | BELL_SIGNAL;
    raw(__NR_rt_sigtimedwait, &signals, 0, 0, RAW_SIGSET_SIZE);
    if (is_stopped)
        raw(__NR_kill, -1, SIGKILL);
}

/* The main function of the reaper of one run. It writes the record once no process of the run is
 * left; the mounts go after that, when it exits. If the runs have no reaper, the command is pid 1,
 * and this process only waits for it. */
static int reaper_main(void *child) {
    struct sbx_child *c = child;
    int status = -1;
    raw(__NR_setsid, 0); /* a session of its own has an autogroup of its own (sched(7)) */
    long pid = 0;
    long command = clone_on_stack(with_reaper ? 0 : CLONE_NEWPID, stacks + REAPER_STACK_SIZE,
                                  COMMAND_STACK_SIZE, sbx_child_main, c, 0);
    if (command < 0)
        sbx_fail(&run, SBX_STEP_FORK, 0, command);
    while (command > 0 && pid >= 0 && pid != command) {
        pid = wait_for_child(&status, WNOHANG);
        if (pid == 0)
            await_signal();
    }
    if (pid < 0) /* the resident exits then, and all that is left of the run dies with it */
        raw(__NR_kill, command, SIGKILL);
    run.wait_status = pid < 0 ? (int)pid : status;
    /* Somebody outside killed the process that waited for the order: no later run must get it. */
    if (!is_ordered)
        sbx_fail(&run, SBX_STEP_ORDER, 0, -ECANCELED);
    if (!kill_and_reap())
        sbx_fail(&run, SBX_STEP_KILL, 0, -ETIMEDOUT);
    is_told = 1;
    write_record(SBX_RECORD_MAGIC);
    wake_and_exit(done_fd);
    return 0;
}

/* Waits until the reaper is done. 0: it was killed from outside, or the caller is gone. The bell
 * may arrive before the order does, and until then only the command's process may read the socket.
 */
static int await_reaper(int pidfd) {
    struct pollfd watched[] = {{done_fd, POLLIN, 0},
                               {pidfd, POLLIN, 0},
                               {REAPER_LIFELINE_FD, POLLIN, 0},
                               {REAPER_STATUS_FD, 0, 0}};
    uint64_t blocked = RAW_ALL_SIGNALS & ~BELL_SIGNAL;
    for (int tries = 0;;) {
        struct {
            long seconds, nanoseconds;
        } soon = {0, 10000000};
        if (raw(__NR_ppoll, watched, 4, is_rung ? &soon : 0, &blocked, RAW_SIGSET_SIZE) > 0)
            return watched[0].revents;
        if (is_rung && (is_ordered || ++tries > 500))
            is_rung = tries = 0;
        if (!is_rung && is_ordered)
            pass_signals();
    }
}

/* Ends a run whose reaper was killed. All that is left of the run is killed first, so that nobody
 * takes an order any more. If nobody took one, the caller makes the run again. */
static void give_run_up(void) {
    int status;
    raw(__NR_kill, -1, SIGKILL);
    while (wait_for_child(&status, 0) > 0)
        ;
    if (is_asked && !is_ordered && !is_told)
        fail_and_exit(SBX_STEP_ORDER, 0, -ECANCELED);
}

/* Starts the reaper of the next run, and waits until no process of that run is left; 0: something
 * is wrong. The reaper exits after that: its mounts take a grace period of RCU to go, which can be
 * long. */
static int serve_one_run(void) {
    static struct sbx_child c;
    static struct sbx_job job;
    static int leaving;
    uint64_t woken;
    int pidfd = -1;
    memset(&run, 0, sizeof run);
    memset(&c, 0, sizeof c);
    is_asked = is_ordered = is_told = is_stopped = 0;
    job.held = held;
    job.n_cgroups = n_cgroups;
    memcpy(c.cgroups, cgroups, sizeof cgroups);
    run_number++;
    c.place = &run_place;
    c.job = &job;
    c.run = &run;
    c.await_order = await_order;
    c.root = c.tree = c.dev = -1;
    c.scratch = c.upper = -1;
    if (!STACKS || !run_place.overlay) { /* nobody else can rename anything in a root of its own */
        c.template_seen = template_seen;
        c.run_seen = run_seen;
    }
    uint64_t flags = CLONE_NEWNS | (with_reaper ? CLONE_NEWPID : 0);
    long pid;
    do /* reapers that are still exiting count for limits on processes and namespaces */
        pid = clone_on_stack(flags, stacks, REAPER_STACK_SIZE, reaper_main, &c, &pidfd);
    while (pid < 0 && leaving > 0 && raw(__NR_wait4, -1, 0, 0, 0) > 0 && leaving--);
    if (pid < 0)
        return 0;
    run_reaper = pid;
    leaving++;
    if (!await_reaper(pidfd)) {
        give_run_up();
        return 0;
    }
    raw(__NR_read, done_fd, &woken, sizeof woken);
    raw(__NR_close, pidfd);
    while (raw(__NR_wait4, -1, 0, leaving > MOST_LEAVING ? 0 : WNOHANG, 0) > 0)
        leaving--;
    enum sbx_step failed = run.failure.step;
    int changed = failed == SBX_STEP_ORDER || failed == SBX_STEP_TARGET || failed == SBX_STEP_KILL;
    return is_asked && is_told && !changed && run.wait_status >= 0;
}

/* Touches the stacks for the reason that use_large_buffer has. */
static void touch_all_memory(void) {
    volatile char *start = stacks;
    for (size_t at = 0; at < sizeof stacks; at += 4096)
        start[at] = start[at];
    use_large_buffer();
}

/* All runs inherit the filter, so the resident installs it once. It lets nobody reach a key: so the
 * runs share a session keyring, and the keyrings need no look. */
static void install_filter(void) {
    if (run_place.keyring)
        raw(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    if (sbx_install_filter(&run_place) < 0)
        exit_reaper();
    run_place.keyring = 0;
    run_place.filter = NULL;
}

void resident_main(const int *fds, int n) {
    keep_cgroups(fds, n);
    are_counts_same(
        1); /* before anything is opened, which might get the number of a file that is missing */
    prepare_resident();
    touch_all_memory();
    done_fd = (int)raw(__NR_eventfd2, 0, 0x80000 /* EFD_CLOEXEC */);
    int own_ipc = run_place.keyring;
    long queues = own_ipc ? open_queues() : 0;
    if (run_place.filter && run_place.filter_when == SBX_FILTER_RESIDENT)
        install_filter();
    else if (own_users)
        open_keyrings();
    while (serve_one_run() && are_counts_same(0) && sbx_renew_dev()
           && (!own_ipc || is_ipc_empty((int)queues)) && are_keyrings_same() && !is_message_large)
        ;
    exit_reaper();
}
