/* SPDX-License-Identifier: Apache-2.0
 *
 * The child's side of a run: the table of its steps, in the order in which they are done.
 *
 * This code runs in the caller's memory while the calling thread waits for its exec and every other
 * thread goes on (clone with CLONE_VM). So it calls nothing of libc but strlen and the like:
 * another thread may hold a lock, and errno belongs to the caller. A step returns 0 or -errno. All
 * that a step opens is closed with the process or by the exec: every descriptor here is
 * close-on-exec.
 */
#define _GNU_SOURCE
#include "child.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

static int do_order(struct sbx_child *c) {
    if (!c->await_order)
        return 0;
    int error = c->await_order(c);
    if (error == 0)
        error = place_stdio(c);
    return error < 0 || !c->run_seen ? error : check_mounts(c, c->run_seen, 0);
}

/* The command's session is new, so this cannot take a terminal from another session. */
static int do_terminal(struct sbx_child *c) {
    if (!c->job->terminal || c->place->reaper)
        return 0;
    return (int)raw(__NR_ioctl, 0, TIOCSCTTY, 0);
}

/* The reaper's program does without the steps that the command's process does not take there. */
#ifdef SBX_IN_REAPER
#define BEFORE_REAPER(name, act)
#else
#define BEFORE_REAPER(name, act) {name, act},
#endif

#if defined(SBX_IN_REAPER) && !defined(SBX_WATCHES_CPU)
#define WHERE_TRACED(name, act)
#else
#define WHERE_TRACED(name, act) {name, act},
#endif

#if defined(SBX_IN_REAPER) && !defined(SBX_STACKS)
#define WHERE_STACKED(name, act)
#else
#define WHERE_STACKED(name, act) {name, act},
#endif

/* The order of work: sources before the root changes, privilege before exec, signals last. */
/* clang-format off */
static const struct {
    enum sbx_step name;
    int (*act)(struct sbx_child *);
} steps[] = {
    BEFORE_REAPER(SBX_STEP_IDS, do_ids)
    BEFORE_REAPER(SBX_STEP_STDIO, do_stdio)
    {SBX_STEP_SESSION, do_session},
    {SBX_STEP_KEYRING, do_keyring},
    BEFORE_REAPER(SBX_STEP_OOM_SCORE, do_oom_score)
    BEFORE_REAPER(SBX_STEP_LOOPBACK, do_loopback)
    BEFORE_REAPER(SBX_STEP_WATCH, do_watch)
    BEFORE_REAPER(SBX_STEP_HOSTNAME, do_hostname)
    BEFORE_REAPER(SBX_STEP_PRIVATE, do_private)
    {SBX_STEP_ROOT, do_root},
    BEFORE_REAPER(SBX_STEP_READ_ONLY, do_read_only)
    BEFORE_REAPER(SBX_STEP_SOURCE, do_sources)
    WHERE_STACKED(SBX_STEP_UPPER, do_upper)
    WHERE_STACKED(SBX_STEP_LAYER, do_layers)
    WHERE_STACKED(SBX_STEP_OVERLAY, do_overlay)
    WHERE_STACKED(SBX_STEP_ATTACH, do_attach)
    {SBX_STEP_MOUNT, do_mounts},
    WHERE_STACKED(SBX_STEP_PIVOT, do_pivot)
    BEFORE_REAPER(SBX_STEP_CHROOT, do_chroot)
    {SBX_STEP_ORDER, do_order},
    {SBX_STEP_TERMINAL, do_terminal},
    {SBX_STEP_CWD, do_cwd},
    BEFORE_REAPER(SBX_STEP_CGROUP, do_cgroup)
    WHERE_TRACED(SBX_STEP_TRACE, do_trace)
    {SBX_STEP_LIMITS, do_limits},
    {SBX_STEP_NO_NEW_PRIVS, do_no_new_privs},
    BEFORE_REAPER(SBX_STEP_PARENT_KEYRING, do_parent_keyring)
    {SBX_STEP_SECCOMP, do_seccomp},
    {SBX_STEP_CAPABILITIES, do_capabilities},
    BEFORE_REAPER(SBX_STEP_PARENT_DEATH, do_parent_death)
    {SBX_STEP_SIGNALS, do_signals},
    BEFORE_REAPER(SBX_STEP_REAPER, do_reaper)
    {SBX_STEP_USER, do_user},
    {SBX_STEP_EXEC, do_exec},
};
/* clang-format on */

/* Whether a step waits for the order, as it makes a root of layers that the order names. */
static int is_late(const struct sbx_child *c, enum sbx_step step) {
#ifdef SBX_STACKS
    return c->place->overlay & SBX_LATE && step >= SBX_STEP_UPPER && step <= SBX_STEP_PIVOT;
#else
    return (void)c, (void)step, 0;
#endif
}

/* Does the steps in order: those that wait for the order, if LATE, or the others. Below 0: one
 * failed. */
static int do_steps(struct sbx_child *c, int late) {
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        if (is_late(c, steps[i].name) != late)
            continue;
        c->run->at.step = steps[i].name;
        c->run->at.index = 0;
        int error = steps[i].act(c);
#ifdef SBX_STACKS
        if (error >= 0 && steps[i].name == SBX_STEP_ORDER)
            error = do_steps(c, 1);
#endif
        if (error < 0)
            return sbx_fail(c->run, steps[i].name, c->index, error);
    }
    return 0;
}

int sbx_child_main(void *child) {
    struct sbx_child *c = child;
    /* A set-up that hangs dies with its caller as well. Not for a resident: its parent, the process
     * in between, ends at once. */
    if (!IN_REAPER && c->place->reaper != SBX_RESIDENT)
        raw(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    do_steps(c, 0);
    return 127; /* the exit status of the process, which nobody reads */
}
