/* SPDX-License-Identifier: Apache-2.0
 *
 * Clones the child, and waits until it has left the caller's memory.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define CLEAR_SIGHAND 0x100000000ULL /* clone3(2), CLONE_CLEAR_SIGHAND */
#define INTO_CGROUP 0x200000000ULL   /* CLONE_INTO_CGROUP */
#define BETWEEN_STACK_SIZE 8192

int64_t sbx_now(void) {
    struct timespec now;
    raw(__NR_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

/* The seccomp filters of some containers know clone(2) only. Unlike clone3, it cannot clear
 * handlers: so the child keeps its signals blocked, and resets every disposition itself. */
static long clone_any(struct raw_clone_args *args, int (*entry)(void *), void *argument) {
    long pid = clone_onto(args, entry, argument);
    if (pid != -ENOSYS)
        return pid;
    int saved = errno, *child_tid = (int *)(uintptr_t)args->child_tid;
    char *top = (char *)(uintptr_t)args->stack + args->stack_size;
    pid = clone(entry, top, (int)args->flags, argument, (int *)(uintptr_t)args->pidfd, NULL,
                child_tid);
    pid = pid < 0 ? -errno : pid;
    errno = saved;
    return pid;
}

/* clone_orphan shares this with the process in between. */
struct orphan {
    struct sbx_child *child;
    struct raw_clone_args args;
    long pid;
};

static int between_main(void *argument) {
    struct orphan *o = argument;
    o->pid = clone_onto(&o->args, sbx_child_main, o->child);
    return 0;
}

/* A resident outlives the call. If it were a child of the caller, a caller that waits for any child
 * would wait for it, for ever. So a process in between starts it, and ends. That process shares the
 * caller's descriptors, so that the pidfd arrives there. */
static long clone_orphan(struct sbx_child *c, struct raw_clone_args *args, char *stack) {
    struct orphan o = {c, *args, -ECHILD};
    args->flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLEAR_SIGHAND;
    args->stack = (uint64_t)(uintptr_t)stack;
    args->stack_size = BETWEEN_STACK_SIZE;
    long between = clone_onto(args, between_main, &o);
    if (between < 0)
        return between;
    while (raw(__NR_waitid, P_PID, between, 0, WEXITED | __WALL, 0) == -EINTR)
        ;
    return o.pid;
}

/* Waits until the child has left the caller's memory, but not longer than END (0: no end). Returns
 * whether it has. */
static int await_exec(struct sbx_run *run, int64_t end) {
    while (__atomic_load_n(&run->setting_up, __ATOMIC_ACQUIRE)) {
        int64_t left = end ? end - sbx_now() : 0;
        struct timespec wait = {left / NS, left % NS};
        if (end && left <= 0)
            return 0;
        raw(__NR_futex, &run->setting_up, 0 /* FUTEX_WAIT */, 1, end ? &wait : NULL, 0, 0);
    }
    return 1;
}

/* Clones the child, and waits until it has left the caller's memory, but not longer than END. */
static long clone_and_await(struct sbx_child *c, struct raw_clone_args *args, char *stack,
                            int64_t end) {
    struct sbx_run *run = c->run;
    struct raw_clone_args with = *args; /* clone_orphan changes its own */
    run->setting_up = !(args->flags & CLONE_VFORK);
    long pid = run->orphan ? clone_orphan(c, &with, stack + with.stack_size)
                           : clone_any(&with, sbx_child_main, c);
    run->pid = pid < 0 ? 0 : (int)pid;
    if (pid >= 0 && !await_exec(run, end)) {
        struct sbx_failure at = run->at;
        if (kill_run(run) < 0) /* the child may go on in our memory at any moment */
            await_exec(run, 0);
        else
            await_exec(run, run->killed + LAST_NS);
        sbx_fail(run, at.step, at.index, -ETIMEDOUT);
    }
    return pid;
}

/* A child is born in its cgroup of v2: to be moved there it would have to wait for a grace period
 * of RCU. If the kernel refuses that, step CGROUP moves it, and says why that fails as well. Linux
 * from 6.14 on kills the child at once if cgroup.kill was written another number of times in that
 * cgroup than in the caller's (cgroup_css_set_fork compares the wrong ones): such a child takes no
 * step. */
static long clone_into_cgroup(struct sbx_child *c, struct raw_clone_args *args, char *stack,
                              int64_t end) {
    struct sbx_run *run = c->run;
    if (c->job->unified) {
        struct raw_clone_args with = *args;
        with.flags |= INTO_CGROUP;
        with.cgroup = (uint64_t)c->job->unified;
        c->is_in_unified = 1;
        long pid = clone_and_await(c, &with, stack, end);
        if (pid >= 0 && (run->at.step != SBX_STEP_CLONE || run->killed))
            return pid;
        c->is_in_unified = 0;
        if (pid >= 0) {
            raw(__NR_waitid, WAIT_PIDFD, run->pidfd, 0, WEXITED | __WALL, 0);
            sbx_close(&run->pidfd);
            run->stillborn = 1;
        }
    }
    return clone_and_await(c, args, stack, end);
}

/* exit_signal stays 0, so that a child that dies before its exec sends the caller no SIGCHLD; the
 * exec sets it. */
long clone_child(struct sbx_child *c, char *stack) {
    struct sbx_run *run = c->run;
    int64_t end = c->job->setup_ns ? sbx_now() + c->job->setup_ns : 0;
    struct raw_clone_args args = {
        .flags = CLONE_VM | CLONE_PIDFD | CLEAR_SIGHAND | c->place->namespaces,
        .pidfd = (uint64_t)(uintptr_t)&run->pidfd,
        .child_tid = (uint64_t)(uintptr_t)&run->setting_up,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = SBX_STACK_SIZE - BETWEEN_STACK_SIZE,
    };
    /* Without an END the thread waits by CLONE_VFORK, which is a little faster. Step OOM_SCORE
     * needs CLONE_VFORK whatever END is: otherwise it would change the caller's score as well,
     * whose memory the child shares. Python refuses it if the set-up may hang. */
    int waits = !end || c->place->limits.oom_score_adj;
    args.flags |= waits ? CLONE_VFORK : CLONE_CHILD_CLEARTID;
    uint64_t all = RAW_ALL_SIGNALS, before;
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, RAW_SIGSET_SIZE);
    long pid = clone_into_cgroup(c, &args, stack, end);
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, RAW_SIGSET_SIZE);
#ifdef __SANITIZE_ADDRESS__
    /* The child left its frames by exec, and the red zones of these frames are still marked. */
    void __asan_unpoison_memory_region(void const volatile *, size_t);
    __asan_unpoison_memory_region(stack, SBX_STACK_SIZE);
#endif
    return pid;
}

/* The looker lies on the child's stack. If the child does not end, Python keeps that stack. */
int sbx_filesystem_answers(struct sbx_run *run, const char *root, const char *path, int64_t ns,
                           char *stack) {
    size_t size = SBX_STACK_SIZE - 64; /* a stack is aligned */
    struct sbx_looker *looker = (struct sbx_looker *)(void *)(stack + size);
    struct raw_clone_args args = {
        .flags = CLONE_VM | CLONE_CHILD_CLEARTID | CLONE_PIDFD | CLEAR_SIGHAND,
        .pidfd = (uint64_t)(uintptr_t)&run->pidfd,
        .child_tid = (uint64_t)(uintptr_t)&run->setting_up,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = size,
    };
    uint64_t all = RAW_ALL_SIGNALS, before;
    reset_run(run, NULL);
    *looker = (struct sbx_looker){root, path, -ETIMEDOUT};
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, RAW_SIGSET_SIZE);
    run->setting_up = 1;
    long pid = clone_any(&args, sbx_answers_main, looker);
    run->pid = pid < 0 ? 0 : (int)pid;
    if (pid >= 0 && !await_exec(run, sbx_now() + ns)) {
        if (kill_run(run) < 0)
            await_exec(run, 0);
        else
            await_exec(run, run->killed + LAST_NS);
    }
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, RAW_SIGSET_SIZE);
    if (pid < 0)
        return (int)pid;
    return run->killed ? -ETIMEDOUT : (int)(looker->result < 0 ? looker->result : 0);
}
