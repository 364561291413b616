/* SPDX-License-Identifier: Apache-2.0
 *
 * What ends the command with its caller, and what signals it finds.
 */
#define _GNU_SOURCE
#include "child.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

/* Without a reaper the kernel kills the command when the calling thread dies, which stays in the
 * call for as long as the run lasts. A change of credentials clears this, so it comes late. The
 * thread may be dead already: then the lifeline is readable (before Linux 6.9 only once the whole
 * process is dead), or the parent is another process. */
int do_parent_death(struct sbx_child *c) {
    if (IN_REAPER)
        return 0;
    if (c->place->reaper) /* a reaper has a lifeline, and outlives the thread */
        return (int)raw(__NR_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0);
    long result = raw(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct pollfd caller = {c->lifeline, POLLIN, 0};
    struct {
        long seconds, nanoseconds;
    } at_once = {0, 0};
    long parent = raw(__NR_getppid, 0); /* 0: in another pid namespace */
    if (result >= 0 && parent != 0 && parent != c->run->owner)
        result = -ESRCH;
    if (result >= 0 && raw(__NR_ppoll, &caller, 1, &at_once, 0, 0) == 1)
        result = -ESRCH;
    return (int)result;
}

/* CLONE_CLEAR_SIGHAND and exec leave ignored signals ignored, and Python ignores SIGPIPE. The two
 * signals that cannot be changed return EINVAL. */
int do_signals(struct sbx_child *c) {
    struct raw_sigaction dfl = {0};
    uint64_t none = 0, all = RAW_ALL_SIGNALS;
    struct {
        long seconds, nanoseconds;
    } at_once = {0, 0};
    for (int signum = 1; signum <= 64 && !IN_REAPER; signum++)
        raw(__NR_rt_sigaction, signum, &dfl, 0, RAW_SIGSET_SIZE);
    /* The reaper needs signals blocked until it is ready, and unblocks them for the command. */
    if (c->place->reaper)
        return 0;
    /* A signal that was sent to the caller's group, before the child had its own session, was not
     * meant for the command. It is pending, and would kill the command now. */
    while (!IN_REAPER && raw(__NR_rt_sigtimedwait, &all, 0, &at_once, RAW_SIGSET_SIZE) > 0)
        ;
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &none, 0, RAW_SIGSET_SIZE);
    return 0;
}
