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
#include "internal.h"
#include "raw.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#define CLEAR_SIGHAND 0x100000000ULL /* clone3(2), CLONE_CLEAR_SIGHAND */
#define WAIT_PIDFD 3                 /* waitid(2), P_PIDFD */
#define BETWEEN_STACK_SIZE 8192
#define NS 1000000000LL
#define PATIENCE_NS (5 * NS) /* with a resident that is not ready */
#define LAST_NS (SBX_LAST_MS * 1000000LL)
#define SIGNAL_GROUP 4 /* pidfd_send_signal(2), PIDFD_SIGNAL_PROCESS_GROUP */

/* ---- descriptors ------------------------------------------------------------------------- */

void sbx_close(int *fd) {
    if (*fd >= 0)
        raw(__NR_close, *fd);
    *fd = -1;
}

/* Out of the way of 0, 1 and 2: a caller may have closed its own. */
static long above(long fd, int lowest) {
    if (fd < 0 || fd >= lowest)
        return fd;
    long higher = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC, lowest);
    raw(__NR_close, fd);
    return higher == -EINVAL ? -EMFILE : higher; /* fcntl(2): beyond RLIMIT_NOFILE */
}

/* Our end does not block: a command may take back what poll(2) told us of, by opening its own end
 * for reading. The two ends have flags of their own, so that the command's stays as it expects. */
static int make_pipe(int *read_end, int *write_end) {
    int ends[2];
    long error = raw(__NR_pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    raw(__NR_fcntl, ends[0], F_SETFL, O_NONBLOCK);
    long reader = above(ends[0], 3), writer = above(ends[1], 3);
    *read_end = reader < 0 ? -1 : (int)reader;
    *write_end = writer < 0 ? -1 : (int)writer;
    return (int)(reader < 0 ? reader : writer < 0 ? writer : 0);
}

/* A reaper, or a resident, that does not answer within seconds is of no use. */
static void limit_patience(int socket) {
    struct timeval patience = {5, 0};
    raw(__NR_setsockopt, socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    raw(__NR_setsockopt, socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

/* To a reaper, and back. */
static int make_socket(int *ours, int *theirs) {
    int ends[2];
    long error = raw(__NR_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
    if (error < 0)
        return (int)error;
    long first = above(ends[0], 3), second = above(ends[1], 3);
    *ours = first < 0 ? -1 : (int)first;
    *theirs = second < 0 ? -1 : (int)second;
    return (int)(first < 0 ? first : second < 0 ? second : 0);
}

/* The caller's ends of the outputs, and in STDIO the command's. */
static int make_outputs(const struct sbx_job *job, struct sbx_run *run, int stdio[3]) {
    struct sbx_stream *streams[] = {&run->out, &run->err};
    for (int i = 0; i < 3; i++) /* before a pipe takes the number of one that is closed */
        if (job->stdio[i] >= 0 && raw(__NR_fcntl, job->stdio[i], F_GETFD) < 0)
            return sbx_fail(run, SBX_STEP_STDIO, i, -EBADF);
    for (int i = 0; i < job->n_passed; i++)
        if (raw(__NR_fcntl, job->passed_from[i], F_GETFD) < 0)
            return sbx_fail(run, SBX_STEP_STDIO, REAPER_FDS + i, -EBADF);
    stdio[0] = job->stdio[0];
    for (int i = 0; i < 2; i++) {
        int error = 0;
        if (job->stdio[i + 1] == SBX_CAPTURE)
            error = make_pipe(&streams[i]->fd, &stdio[i + 1]);
        else
            stdio[i + 1] = job->stdio[i + 1];
        if (error < 0)
            return sbx_fail(run, SBX_STEP_PIPE, i + 1, error);
    }
    if (job->stdio[2] == SBX_STDOUT)
        stdio[2] = stdio[1];
    return 0;
}

/* Once the command has them, or nobody will. */
static void close_outputs(const struct sbx_job *job, int stdio[3]) {
    for (int i = 1; i < 3; i++)
        if (job->stdio[i] == SBX_CAPTURE)
            sbx_close(&stdio[i]);
}

/* The caller's descriptors of the run, and in C the child's. */
static int make_pipes(const struct sbx_job *job, struct sbx_run *run, struct sbx_child *c) {
    if (make_outputs(job, run, c->stdio) < 0)
        return -1;
    int error = 0;
    if (c->place->reaper)
        error = make_socket(&run->status, &c->status);
    if (error < 0)
        return sbx_fail(run, SBX_STEP_PIPE, REAPER_STATUS_FD, error);
    /* Of this thread where the command dies with it (see do_parent_death), else of the process. */
    long lifeline = -EINVAL;
    if (!c->place->reaper)
        lifeline = raw(RAW_pidfd_open, raw(__NR_gettid, 0), O_EXCL /* PIDFD_THREAD, Linux 6.9 */);
    if (lifeline == -EINVAL)
        lifeline = raw(RAW_pidfd_open, run->owner, 0);
    lifeline = above(lifeline, 3);
    if (lifeline < 0)
        return sbx_fail(run, SBX_STEP_LIFELINE, 0, lifeline);
    c->lifeline = (int)lifeline;
    return 0;
}

/* ---- clone ------------------------------------------------------------------------------- */

static long kill_run(struct sbx_run *run);

int64_t sbx_now(void) {
    struct timespec now;
    raw(__NR_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

/* Seccomp filters of some containers know only clone(2). It leaves handlers as they are: so these
 * processes keep signals blocked, and the child of a run resets every disposition itself. */
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

/* What clone_orphan shares with the process between. */
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

/* A resident outlives the call, and must not be a child of the caller's: one that waits for any
 * child would wait for it, for ever. So there is a process between the two, which starts it and
 * ends. It shares the caller's descriptors, so that the pidfd arrives there. */
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

/* Until the child has left the caller's memory, or it is END (0: no end): whether it has. */
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

/* exit_signal stays 0, so that the caller's SIGCHLD is quiet until the exec sets it. */
static long clone_child(struct sbx_child *c, char *stack) {
    struct sbx_run *run = c->run;
    int64_t end = c->job->setup_ns ? sbx_now() + c->job->setup_ns : 0;
    struct raw_clone_args args = {
        .flags = CLONE_VM | CLONE_PIDFD | CLEAR_SIGHAND | c->place->namespaces,
        .pidfd = (uint64_t)(uintptr_t)&run->pidfd,
        .child_tid = (uint64_t)(uintptr_t)&run->setting_up,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = SBX_STACK_SIZE - BETWEEN_STACK_SIZE,
    };
    /* Without an END there is nothing to look at a clock for, and standing still is a little
     * faster. And step OOM_SCORE would otherwise be about the caller as well, whose memory it is:
     * so there the calling thread stands still whatever END is; Python refuses it where the set-up
     * may hang. */
    int waits = !end || c->place->limits.oom_score_adj;
    args.flags |= waits ? CLONE_VFORK : CLONE_CHILD_CLEARTID;
    uint64_t all = RAW_ALL_SIGNALS, before;
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, RAW_SIGSET_SIZE);
    run->setting_up = !waits;
    long pid = run->orphan ? clone_orphan(c, &args, stack + args.stack_size)
                           : clone_any(&args, sbx_child_main, c);
    run->pid = pid < 0 ? 0 : (int)pid;
    if (pid >= 0 && !await_exec(run, end)) {
        struct sbx_failure at = run->at;
        if (kill_run(run) < 0) /* it may go on in our memory at any moment */
            await_exec(run, 0);
        else
            await_exec(run, run->killed + LAST_NS);
        sbx_fail(run, at.step, at.index, -ETIMEDOUT);
    }
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, RAW_SIGSET_SIZE);
#ifdef __SANITIZE_ADDRESS__
    /* The child left its frames by exec; their red zones are still marked. */
    void __asan_unpoison_memory_region(void const volatile *, size_t);
    __asan_unpoison_memory_region(stack, SBX_STACK_SIZE);
#endif
    return pid;
}

/* ---- messages ---------------------------------------------------------------------------- */

/* Sends PARTS, and takes from them what went. Descriptors go with the first byte. A message that is
 * longer than the socket's buffer goes in several pieces, which a reaper takes as they come.
 * 0 or -errno; what was not sent is left in PARTS. */
static long send_all(int socket, struct iovec *parts, int n, const int *fds, int n_fds, int flags) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE((3 + SBX_MOST_CGROUPS) * sizeof(int))];
    } control = {.head = {0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)n};
    if (n_fds) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        control.head.cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.head), fds, (size_t)n_fds * sizeof(int));
    }
    for (;;) {
        size_t left = 0;
        for (int i = 0; i < n; i++)
            left += parts[i].iov_len;
        if (left == 0)
            return 0;
        long sent = raw(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | flags);
        if (sent == -EINTR)
            continue;
        if (sent <= 0)
            return sent < 0 ? sent : -EPIPE;
        message.msg_controllen = 0;
        for (int i = 0; i < n; i++) {
            size_t taken = (size_t)sent < parts[i].iov_len ? (size_t)sent : parts[i].iov_len;
            parts[i].iov_base = (char *)parts[i].iov_base + taken;
            parts[i].iov_len -= taken;
            sent -= (long)taken;
        }
    }
}

static struct sbx_order order_of(const struct sbx_job *job, uint32_t run) {
    size_t passed = (size_t)job->n_passed * sizeof *job->passed;
    struct sbx_order order = {
        .kind = SBX_ORDER, .run = run, .size = (uint32_t)(passed + job->size)};
    order.cwd_size = (uint32_t)job->cwd_size;
    order.n_candidates = job->n_candidates;
    order.n_args = job->n_args;
    order.n_env = job->n_env;
    order.n_passed = job->n_passed;
    order.terminal = job->terminal;
    order.cpu_seconds = job->cpu_seconds;
    order.announce = job->announce;
    return order;
}

enum { SBX_PARTS = 6 };

/* What the reaper of a single run is sent: the place, its filter, and the command. */
struct letter {
    struct sbx_order orders[2];
    struct sbx_place place;
    struct iovec parts[SBX_PARTS];
};

/* Of the place all but what the child does before the exec of the reaper. */
static void write_letter(struct letter *l, const struct sbx_place *place,
                         const struct sbx_job *job) {
    l->place = *place;
    l->place.namespaces = 0;
    l->place.uid_map = l->place.gid_map = l->place.root = l->place.hostname = NULL;
    l->place.mounts = NULL;
    l->place.n_mounts = l->place.read_only = l->place.keyring = 0;
    l->place.limits.oom_score_adj = NULL;
    size_t filter = place->filter ? (size_t)place->filter_length * 8 : 0;
    if (filter)
        l->place.filter = (const void *)sizeof l->place; /* an offset, as all pointers there */
    l->orders[0] = (struct sbx_order){.kind = SBX_PLACE, .run = 1};
    l->orders[0].size = (uint32_t)(sizeof l->place + filter);
    l->orders[1] = order_of(job, 1);
    const void *starts[] = {&l->orders[0], &l->place,   place->filter,
                            &l->orders[1], job->passed, job->cwd};
    size_t passed = (size_t)job->n_passed * sizeof *job->passed;
    size_t sizes[] = {sizeof *l->orders, sizeof l->place, filter,
                      sizeof *l->orders, passed,          job->size};
    for (int i = 0; i < SBX_PARTS; i++)
        l->parts[i] = (struct iovec){(void *)(uintptr_t)starts[i], sizes[i]};
}

/* ---- start ------------------------------------------------------------------------------- */

static void begin(struct sbx_run *run, const struct sbx_place *place) {
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
static int go_on(const struct sbx_job *job, struct sbx_run *run) {
    if (job->pump_ns)
        run->first = sbx_pump(run, job->pump_ns);
    if (run->first == SBX_PUMP_DONE)
        sbx_end(run);
    return 0;
}

/* The clone, and what the reaper is told. Most of that, and most often all, is in the socket before
 * there is a reaper: it never waits for it, and the caller does not wait for a reaper that is not
 * there yet. The rest goes once the reaper reads. */
static void clone_and_tell(struct sbx_child *c, char *stack, struct letter *l) {
    struct sbx_run *run = c->run;
    long sent = 0;
    if (c->place->reaper == SBX_REAPER) {
        write_letter(l, c->place, c->job);
        sent = send_all(run->status, l->parts, SBX_PARTS, NULL, 0, MSG_DONTWAIT);
    }
    long pid = clone_child(c, stack);
    if (pid < 0)
        sbx_fail(run, SBX_STEP_CLONE, 0, pid);
    if (sent < 0 && run->failure.step == SBX_STEP_NONE) {
        limit_patience(run->status);
        sent = send_all(run->status, l->parts, SBX_PARTS, NULL, 0, 0);
        if (sent < 0 && sent != -EPIPE
            && sent != -ECONNRESET) /* a dead one is the pump's to find */
            sbx_fail(run, SBX_STEP_REAPER, 0, sent);
    }
}

int sbx_spawn(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
              char *stack) {
    struct sbx_child child = {.place = place, .job = job, .run = run, .init = job->init_fd};
    struct letter letter;
    child.stdio[0] = child.stdio[1] = child.stdio[2] = SBX_NULL;
    child.status = child.lifeline = child.root = child.tree = child.dev = -1;
    begin(run, place);
    if (job->size > INT32_MAX) /* an order has no room for it, nor has an exec */
        sbx_fail(run, SBX_STEP_EXEC, -1, -E2BIG);
    if (!place->reaper)
        sbx_point_at_strings(job);
    child.envp = job->vec + job->n_candidates + job->n_args + 1;
    if (run->failure.step == SBX_STEP_NONE && make_pipes(job, run, &child) == 0)
        clone_and_tell(&child, stack, &letter);
    close_outputs(job, child.stdio);
    sbx_close(&child.status);
    sbx_close(&child.lifeline);
    if (job->announce && place->reaper == SBX_REAPER && run->failure.step == SBX_STEP_NONE)
        await_command(run, job->setup_ns);
    if (run->failure.step == SBX_STEP_NONE)
        return go_on(job, run);
    sbx_end(run);
    return -1;
}

int sbx_open_bell(struct sbx_run *bell) {
    begin(bell, NULL);
    long fd = above(raw(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK), 3);
    bell->out.fd = fd < 0 ? -1 : (int)fd;
    return fd < 0 ? (int)fd : 0;
}

/* ---- slots ------------------------------------------------------------------------------- */

int sbx_set_dumpable(int dumpable) {
    int before = (int)raw(__NR_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
    raw(__NR_prctl, PR_SET_DUMPABLE, dumpable, 0, 0, 0);
    return before;
}

uint64_t sbx_file_of(int fd) {
    struct stat status;
    long error = raw(__NR_fstat, fd, &status);
    return error ? 0 : (uint64_t)status.st_dev << 32 ^ status.st_ino;
}

int sbx_open_slot(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
                  char *stack, const char *inside, size_t size, struct sbx_slot *slot) {
    struct sbx_order order = {.kind = SBX_PLACE, .run = 1, .size = (uint32_t)size, .stays = 1};
    struct iovec parts[] = {{&order, sizeof order}, {(void *)(uintptr_t)inside, size}};
    if (sbx_spawn(place, job, run, stack) != 0)
        return -1;
    slot->owner = run->owner;
    slot->pidfd = (int)above(run->pidfd, 3); /* it stays, and must not be found as stdin */
    slot->control = run->status;
    slot->files[0] = sbx_file_of(slot->pidfd);
    slot->files[1] = sbx_file_of(slot->control);
    slot->killed = slot->stuck = 0;
    slot->runs = slot->signalled = 0;
    run->pidfd = run->status = -1;
    run->owner = 0;
    run->ended = 1;
    limit_patience(slot->control);
    long error = send_all(slot->control, parts, 2, NULL, 0, 0);
    if (error == 0)
        return 0;
    sbx_close_slot(slot);
    return sbx_fail(run, SBX_STEP_REAPER, 0, error);
}

/* What is not ours any more is left alone. The resident ends when its socket is closed. */
static void forget_foreign(struct sbx_slot *slot) {
    if (sbx_file_of(slot->pidfd) != slot->files[0])
        slot->pidfd = -1;
    if (sbx_file_of(slot->control) != slot->files[1])
        slot->control = -1;
}

/* Whether the resident has asked for this command and said nothing else; it has not asked when the
 * run before left something, or somebody outside killed a process of the slot. It is waited
 * for MOST_NS at most. */
static int is_ready(const struct sbx_slot *slot, int64_t most_ns) {
    struct sbx_record records[2]; /* room for one more than there may be */
    struct pollfd fds[] = {{slot->control, POLLIN, 0}, {slot->pidfd, POLLIN, 0}};
    struct timespec patience = {most_ns / NS, most_ns % NS};
    long n = raw(__NR_recvfrom, slot->control, records, sizeof records, MSG_DONTWAIT, 0, 0);
    /* A fork of the caller may have the resident's end as well, so its death is looked for. */
    long waited = n == -EAGAIN ? -EINTR : 0;
    while (waited == -EINTR) /* the kernel counts PATIENCE down */
        waited = raw(__NR_ppoll, fds, 2, &patience, 0, 0);
    if (waited > 0)
        n = raw(__NR_recvfrom, slot->control, records, sizeof records, MSG_DONTWAIT, 0, 0);
    struct timespec at_once = {0, 0}; /* it may have died after it had asked */
    return n == sizeof *records && records->magic == SBX_READY_MAGIC
           && records->run == slot->runs + 1 && raw(__NR_ppoll, &fds[1], 1, &at_once, 0, 0) == 0;
}

/* The descriptors that go with an order: the command's, then those of the cgroups. NULL_FD is
 * opened where it is needed: its flags and locks are this run's alone. */
static int collect_descriptors(const struct sbx_job *job, struct sbx_run *run, const int stdio[3],
                               int *null_fd, int *fds) {
    for (int i = 0; i < 3; i++) {
        if (stdio[i] < 0 && *null_fd < 0)
            *null_fd = (int)raw(__NR_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
        fds[i] = stdio[i] < 0 ? *null_fd : stdio[i];
        if (fds[i] < 0)
            return sbx_fail(run, SBX_STEP_STDIO, i, *null_fd);
    }
    for (int i = 0; i < job->n_cgroups; i++)
        fds[3 + i] = job->cgroups[i];
    return 0;
}

int sbx_spawn_in_slot(struct sbx_slot *slot, const struct sbx_job *job, struct sbx_run *run) {
    int stdio[] = {SBX_NULL, SBX_NULL, SBX_NULL}, fds[3 + SBX_MOST_CGROUPS], null = -1;
    int is_sent = 0;
    begin(run, NULL);
    if (job->size > INT32_MAX) { /* an order has no room for it, nor has an exec */
        run->owner = 0;
        return sbx_fail(run, SBX_STEP_EXEC, -1, -E2BIG);
    }
    forget_foreign(slot);
    int64_t patience = job->setup_ns && job->setup_ns < PATIENCE_NS ? job->setup_ns : PATIENCE_NS;
    if (slot->owner != run->owner || !is_ready(slot, patience)) {
        run->owner = 0;
        sbx_close_slot(slot);
        return 1;
    }
    run->slot = slot;
    int error = make_outputs(job, run, stdio);
    if (error == 0)
        error = collect_descriptors(job, run, stdio, &null, fds);
    if (error == 0) {
        struct sbx_order order = order_of(job, ++slot->runs);
        struct iovec parts[] = {{&order, sizeof order}, {(void *)(uintptr_t)job->cwd, job->size}};
        order.n_cgroups = job->n_cgroups;
        is_sent = send_all(slot->control, parts, 2, fds, 3 + job->n_cgroups, 0) == 0;
    }
    close_outputs(job, stdio);
    sbx_close(&null);
    if (error == 0 && is_sent)
        return go_on(job, run);
    sbx_end(run); /* closes the slot, which may have a part of the order: nothing runs there */
    return error == 0 ? 1 : -1;
}

/* ---- end --------------------------------------------------------------------------------- */

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
static long by_number(int side, int pid, int signum) {
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
    return error < 0 ? error : by_number(-1, run->pid, signum);
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
static int wait_for_end(int pidfd, int64_t killed) {
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

/* If the host's seccomp filter forbids to send a signal, the resident ends when its socket is
 * closed. */
static void kill_slot(struct sbx_slot *slot) {
    if (!slot->killed || slot->killed > sbx_now())
        slot->killed = sbx_now();
    long error = raw(RAW_pidfd_send_signal, slot->pidfd, SIGKILL, 0, 0);
    if (error < 0 && error != -ESRCH)
        sbx_close(&slot->control);
}

static long kill_run(struct sbx_run *run) {
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
        error = by_number(1, run->pid, SIGKILL);
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
static void reap_orphan(int pidfd) {
    raw(__NR_waitid, WAIT_PIDFD, pidfd, 0, WEXITED | WNOHANG | __WALL, 0);
}

void sbx_close_slot(struct sbx_slot *slot) {
    if (slot->owner == 0)
        return;
    forget_foreign(slot);
    if (slot->owner == getpid() && slot->pidfd >= 0) {
        kill_slot(slot);
        sbx_close(&slot->control);
        if (wait_for_end(slot->pidfd, slot->killed)) {
            reap_orphan(slot->pidfd);
        } else {
            slot->stuck = (int)above(slot->pidfd, 3);
            slot->pidfd = -1;
        }
    }
    sbx_close(&slot->pidfd);
    sbx_close(&slot->control);
    slot->owner = 0;
}

/* Kills what runs, and waits for it; what does not end is left to Python. A reaper that cannot be
 * sent a signal ends when its caller hangs up. */
static void end_process(struct sbx_run *run) {
    long error = run->killed ? 0 : kill_run(run);
    if (error < 0 && error != -ESRCH)
        sbx_close(&run->status);
    if (!wait_for_end(run->pidfd, run->killed)) {
        run->stuck = (int)above(run->pidfd, 3);
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

/* ---- the reaper's program, stacks, look-ups ---------------------------------------------- */

__asm__(".section .rodata\n"
        ".globl sbx_init_start\n.hidden sbx_init_start\n"
        ".globl sbx_init_end\n.hidden sbx_init_end\n"
        "sbx_init_start:\n.incbin \"" SBX_INIT "\"\nsbx_init_end:\n.previous\n");
extern const char sbx_init_start[], sbx_init_end[];

int sbx_open_init(void) {
    size_t size = (size_t)(sbx_init_end - sbx_init_start), written = 0;
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    long fd = raw(__NR_memfd_create, "sandboxlib-init", flags | 0x10 /* MFD_EXEC, Linux 6.3 */);
    if (fd == -EINVAL)
        fd = raw(__NR_memfd_create, "sandboxlib-init", flags);
    fd = above(fd, RESIDENT_FDS); /* where the child will not put anything else */
    long result = fd;
    while (result >= 0 && written < size) {
        result = raw(__NR_write, fd, sbx_init_start + written, size - written);
        written += result > 0 ? (size_t)result : 0;
    }
    if (result >= 0)
        result = raw(__NR_fcntl, fd, F_ADD_SEALS,
                     F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    if (result < 0 && fd >= 0)
        raw(__NR_close, fd);
    return (int)(result < 0 ? result : fd);
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

char *sbx_new_stack(void) {
    size_t guard = page_size();
    char *memory = mmap(NULL, guard + SBX_STACK_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, guard, PROT_NONE) != 0) {
        munmap(memory, guard + SBX_STACK_SIZE);
        return NULL;
    }
    return memory + guard;
}

void sbx_free_stack(char *stack) {
    if (stack)
        munmap(stack - page_size(), page_size() + SBX_STACK_SIZE);
}

/* The looker lies on the child's stack, which Python keeps if the child does not end. */
int sbx_look(struct sbx_run *run, const char *root, const char *path, int64_t ns, char *stack) {
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
    begin(run, NULL);
    *looker = (struct sbx_looker){root, path, -ETIMEDOUT};
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, RAW_SIGSET_SIZE);
    run->setting_up = 1;
    long pid = clone_any(&args, sbx_look_main, looker);
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

int sbx_is_directory(const char *path) {
    struct raw_statx there = {.mode = 0};
    raw(__NR_statx, AT_FDCWD, path, 0x4000 /* AT_STATX_DONT_SYNC */, 1 /* STATX_TYPE */, &there);
    return S_ISDIR(there.mode);
}

long sbx_filesystem_of(int fd) {
    struct statfs filesystem;
    long error = raw(__NR_fstatfs, fd, &filesystem);
    return error < 0 ? error : (long)filesystem.f_type;
}

static int see(const char *paths, int n, uint64_t *seen, int keep) {
    int same = 1;
    for (int i = 0; i < n; i++, paths += strlen(paths) + 1) {
        struct raw_statx there = {.mount_id = 0};
        raw(__NR_statx, AT_FDCWD, paths, 0, 0x1100 /* STATX_INO, STATX_MNT_ID */, &there);
        uint64_t device = (uint64_t)there.device[0] << 32 | there.device[1];
        uint64_t now[] = {there.inode, device, there.mount_id};
        same &= memcmp(&seen[i * 3], now, sizeof now) == 0;
        if (keep)
            memcpy(&seen[i * 3], now, sizeof now);
    }
    return same;
}

/* Without a mountinfo what the host mounts later is not noticed. */
void sbx_open_watch(const char *paths, int n, uint64_t *seen, struct sbx_watch *watch) {
    int flags = O_RDONLY | O_CLOEXEC;
    watch->mountinfo = (int)above(raw(__NR_openat, AT_FDCWD, "/proc/self/mountinfo", flags), 3);
    watch->file = sbx_file_of(watch->mountinfo);
    see(paths, n, seen, 1);
}

int sbx_see(const char *paths, int n, uint64_t *seen, const struct sbx_watch *watch) {
    struct pollfd changed = {watch->mountinfo, POLLPRI, 0}; /* proc_pid_mounts(5) */
    struct timespec at_once = {0, 0};
    return raw(__NR_ppoll, &changed, 1, &at_once, 0, 0) <= 0 && see(paths, n, seen, 0);
}

void sbx_close_watch(struct sbx_watch *watch) {
    if (watch->file && sbx_file_of(watch->mountinfo) == watch->file)
        sbx_close(&watch->mountinfo);
    watch->file = 0;
}
