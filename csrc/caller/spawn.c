/* SPDX-License-Identifier: Apache-2.0
 *
 * THEORY OF OPERATION
 *
 * sbx_spawn makes the pipes, blocks every signal, and clones a child that shares the caller's
 * memory (CLONE_VM) while the calling thread waits for its exec: nothing is copied, so a caller
 * of 4 GB pays what a small one pays. The child, born into its namespaces, does the steps of
 * child.c on a stack of its own and execs; if a step fails it writes which one into the shared
 * struct sbx_run and dies. Then the calling thread goes on.
 *
 *     caller                        child                        reaper (init.c)
 *     sbx_spawn: pipes, clone  -->  mounts, pivot_root, ...
 *                                   execveat(reaper)       -->   vfork, exec the command
 *     (Python: signals?)                                         wait, reap orphans, watch the
 *     sbx_pump: poll, read     <--  output                       lifeline
 *                              <--  {step, index, errno, status}
 *                              <--  pidfd: pid 1 and all of its namespace is gone
 *     sbx_end: reap, close
 *
 * Why signals are blocked around the clone: the child is born with the caller's handlers in the
 * caller's memory, and would run them there. CLONE_CLEAR_SIGHAND alone is not enough: then a
 * signal kills the child in the middle of its work. Raw rt_sigprocmask, because libc's leaves its
 * own two signals open.
 *
 * The status comes over a pipe from the reaper, because wait(2) may be answered to somebody else:
 * a caller that ignores SIGCHLD or waits for just any child. Without a reaper it comes from
 * waitid(2), and where somebody else was faster from the pidfd (Linux 6.15).
 *
 * Where the run has a timeout, the calling thread waits on a futex that the kernel clears when the
 * child leaves the caller's memory (CLONE_CHILD_CLEARTID), and not by CLONE_VFORK, which knows no
 * time limit: a step may hang in a file system that does not answer. A child that even SIGKILL does
 * not end in time never runs another instruction of ours, so the thread may go on; the memory stays
 * until the child is gone.
 *
 * C owns nothing here: no malloc, no globals.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void reset_run(struct sbx_run *run, const struct sbx_place *place) {
    run->owner = getpid();
    run->slot = NULL;
    run->pid = 0;
    run->pidfd = run->status = run->out.fd = run->err.fd = -1;
    run->killed = run->stuck = 0;
    run->out.length = run->err.length = 0;
    run->out.is_terminal = run->err.is_terminal = 0;
    run->group = place && place->session && !(place->namespaces & CLONE_NEWPID);
    run->orphan = place && place->reaper == SBX_RESIDENT;
    run->ended = run->has_usage = 0;
    run->first = SBX_PUMP_AGAIN;
    run->wait_status = -ECHILD;
    run->at.step = SBX_STEP_CLONE;
    run->at.index = 0;
    run->failure.step = SBX_STEP_NONE;
    run->failure.index = run->failure.error = 0;
}

/* The reaper tells that the command began, or why not. Killed before that, it is dead for the pump
 * to find. */
static void await_command(struct sbx_run *run, int64_t ns) {
    struct sbx_record record = {0};
    struct pollfd told = {run->status, POLLIN, 0};
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    long n = -EINTR;
    while (n == -EINTR)
        n = raw(__NR_ppoll, &told, 1, ns ? &left : NULL, 0, 0);
    if (n == 0) { /* the program is on a file system that does not answer */
        sbx_fail(run, SBX_STEP_EXEC, -1, -ETIMEDOUT);
        return;
    }
    n = raw(__NR_recvfrom, run->status, &record, sizeof record, MSG_DONTWAIT, 0, 0);
    if (n == sizeof record && record.magic == SBX_RECORD_MAGIC && record.step != SBX_STEP_NONE)
        sbx_fail(run, (enum sbx_step)record.step, record.index, -(long)record.error);
}

/* Most runs end in the call that starts them: Python has its lock to take once only. */
int pump_at_once(const struct sbx_job *job, struct sbx_run *run) {
    if (job->pump_ns)
        run->first = sbx_pump(run, job->pump_ns);
    if (run->first == SBX_PUMP_DONE)
        sbx_end(run);
    return 0;
}

/* The clone, and what the reaper is told. Most of that, and most often all, is in the socket before
 * there is a reaper: it never waits for it, and the caller does not wait for a reaper that is not
 * there yet. The rest goes once the reaper reads. */
static void clone_and_send(struct sbx_child *c, char *stack, struct first_messages *l) {
    struct sbx_run *run = c->run;
    long sent = 0;
    if (c->place->reaper == SBX_REAPER) {
        fill_first_messages(l, c->place, c->job);
        sent = send_all(run->status, l->parts, FIRST_PARTS, NULL, 0, MSG_DONTWAIT);
    }
    long pid = clone_child(c, stack);
    if (pid < 0)
        sbx_fail(run, SBX_STEP_CLONE, 0, pid);
    if (sent < 0 && run->failure.step == SBX_STEP_NONE) {
        limit_patience(run->status);
        sent = send_all(run->status, l->parts, FIRST_PARTS, NULL, 0, 0);
        if (sent < 0 && sent != -EPIPE
            && sent != -ECONNRESET) /* a dead one is the pump's to find */
            sbx_fail(run, SBX_STEP_REAPER, 0, sent);
    }
}

int sbx_spawn(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
              char *stack) {
    struct sbx_child child = {.place = place, .job = job, .run = run, .init = job->init_fd};
    struct first_messages letter;
    child.stdio[0] = child.stdio[1] = child.stdio[2] = SBX_NULL;
    child.status = child.lifeline = child.root = child.tree = child.dev = -1;
    reset_run(run, place);
    if (job->size > INT32_MAX) /* an order has no room for it, nor has an exec */
        sbx_fail(run, SBX_STEP_EXEC, -1, -E2BIG);
    if (!place->reaper)
        sbx_point_at_strings(job);
    child.envp = job->vec + job->n_candidates + job->n_args + 1;
    if (run->failure.step == SBX_STEP_NONE && make_pipes(job, run, &child) == 0)
        clone_and_send(&child, stack, &letter);
    close_outputs(job, child.stdio);
    sbx_close(&child.status);
    sbx_close(&child.lifeline);
    if (job->announce && place->reaper == SBX_REAPER && run->failure.step == SBX_STEP_NONE)
        await_command(run, job->setup_ns);
    if (run->failure.step == SBX_STEP_NONE)
        return pump_at_once(job, run);
    sbx_end(run);
    return -1;
}
