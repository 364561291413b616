/* SPDX-License-Identifier: Apache-2.0
 *
 * THEORY OF OPERATION
 *
 * sbx_spawn makes the pipes, blocks every signal, and clones a child that shares the caller's
 * memory (CLONE_VM), while the calling thread waits for its exec. Nothing is copied, so a caller of
 * 4 GB pays what a small one pays. The child is born into its namespaces, does the steps of
 * child/steps.c on a stack of its own, and execs. If a step fails, the child writes which one into
 * struct sbx_run, which both share, and dies. Then the calling thread goes on.
 *
 *     caller                        child                        reaper
 *     sbx_spawn: pipes, clone  -->  mounts, pivot_root, ...
 *                                   execveat(reaper)       -->   vfork, exec the command
 *     (Python: signals?)                                         wait, reap orphans, watch the
 *     sbx_pump: poll, read     <--  output                       lifeline
 *                              <--  {step, index, errno, status}
 *                              <--  pidfd: pid 1 and all of its namespace is gone
 *     sbx_end: reap, close
 *
 * Signals are blocked around the clone because the child is born with the caller's handlers, in the
 * caller's memory, and would run them there. CLONE_CLEAR_SIGHAND alone is not enough: then a signal
 * kills the child in the middle of its work. This calls rt_sigprocmask itself, because libc's
 * function leaves two signals of libc open.
 *
 * The reaper sends the status over a socket, because wait(2) may give it to somebody else: to a
 * caller that ignores SIGCHLD, or that waits for any child. Without a reaper the status comes from
 * waitid(2), and, if somebody else was faster, from the pidfd (Linux 6.15).
 *
 * If the run has a timeout, the calling thread waits on a futex, which the kernel clears when the
 * child leaves the caller's memory (CLONE_CHILD_CLEARTID). CLONE_VFORK has no time limit, and a
 * step may hang in a file system that does not answer. If even SIGKILL does not end the child in
 * time, it runs no instruction of ours any more, so the thread may go on; Python keeps the memory
 * until the child is gone.
 *
 * C owns no memory here: there is no malloc, and the only global is what child/seals.c remembers of
 * /proc for a second.
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
    run->killed = run->reported = run->asked = run->stuck = run->stillborn = 0;
    run->out.length = run->err.length = 0;
    run->out.is_terminal = run->err.is_terminal = 0;
    run->group = place && place->session && !(place->namespaces & CLONE_NEWPID);
    run->orphan = place && place->reaper == SBX_RESIDENT;
    run->in_session = 0;
    run->ended = run->has_usage = run->over_cpu_time = 0;
    run->first = SBX_PUMP_AGAIN;
    run->wait_status = -ECHILD;
    run->at.step = SBX_STEP_CLONE;
    run->at.index = 0;
    run->failure.step = SBX_STEP_NONE;
    run->failure.index = run->failure.error = 0;
}

void await_command(struct sbx_run *run, int64_t ns) {
    struct sbx_record record = {0};
    struct pollfd told = {run->status, POLLIN, 0};
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    long n = -EINTR;
    while (n == -EINTR)
        n = raw(__NR_ppoll, &told, 1, ns ? &left : NULL, 0, 0);
    if (n == 0) { /* the program lies on a file system that does not answer */
        sbx_fail(run, SBX_STEP_EXEC, -1, -ETIMEDOUT);
        return;
    }
    n = raw(__NR_recvfrom, run->status, &record, sizeof record, MSG_DONTWAIT, 0, 0);
    if (n == sizeof record && record.magic == SBX_RECORD_MAGIC && record.step != SBX_STEP_NONE)
        sbx_fail(run, (enum sbx_step)record.step, record.index, -(long)record.error);
}

int pump_at_once(const struct sbx_job *job, struct sbx_run *run) {
    if (job->pump_ns)
        run->first = sbx_pump(run, job->pump_ns);
    if (run->first == SBX_PUMP_DONE)
        sbx_end(run);
    return 0;
}

/* Sends as much as the socket takes before the clone, which is nearly always all: so the reaper
 * never waits for its messages, and the caller never waits for the reaper's exec. The rest is sent
 * once the reaper reads. */
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
            && sent != -ECONNRESET) /* the reaper is dead: sbx_pump reports that */
            sbx_fail(run, SBX_STEP_REAPER, 0, sent);
    }
}

int sbx_spawn(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
              char *stack) {
    struct sbx_child child = {.place = place, .job = job, .run = run, .init = job->init_fd};
    struct first_messages letter;
    child.stdio[0] = child.stdio[1] = child.stdio[2] = SBX_NULL;
    child.status = child.lifeline = child.root = child.tree = child.dev = -1;
    child.scratch = -1;
    child.upper = -1;
    child.upper_socket = job->upper_socket;
    reset_run(run, place);
    if (job->size > INT32_MAX) /* too large for an order's size field, and for any exec */
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
