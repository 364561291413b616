/* SPDX-License-Identifier: Apache-2.0
 *
 * A session: several commands, one after the other or at once, in the same namespaces. This is a
 * program of its own (SBX_IN_SESSION), made of the same files as the other reaper.
 *
 *     pid 1           waits for SBX_COMMAND: the descriptors of a command; forks a reaper for it
 *       reaper        adopts the orphans of its command (PR_SET_CHILD_SUBREAPER)
 *         command     the steps of child/steps.c that belong to a command, then exec
 *       daemons       what a command left when it ended
 *
 * Each reaper has a socket of its own to the caller, over which come the order and signals, and
 * goes the record. If the caller hangs up there, the reaper kills all descendants of its command.
 * If a reaper is killed, its socket closes without a record, and the caller ends the session: only
 * that reaper could tell which processes belonged to its command.
 *
 * The commands share the pid namespace with all of this. Pid 1 cannot be killed or stopped. Neither
 * it nor a reaper is dumpable, and both keep the capabilities of the caller, so no command can
 * trace them.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MOST_PASSES = 8,
    FEW_BLOCKS = 16,
    MANY_BLOCKS = 512,
    MOST_FDS = SBX_OF_A_COMMAND + SBX_MOST_PASSED
};

#define GENTLE_NS 200000000LL /* how long a reaper kills before it stops everybody for it */

static int *is_freezing; /* shared by all reapers of the session: 1 while one of them stops all */

static unsigned char is_descendant[MOST_PIDS / 8];

static int is_marked(int pid) { return is_descendant[pid / 8] >> pid % 8 & 1; }
static void mark(int pid) { is_descendant[pid / 8] |= (unsigned char)(1 << pid % 8); }

/* Signals those descendants that are listed and not marked yet. Returns how many. */
static int signal_listed(struct listing *l, int signum) {
    int pid, found = 0;
    while ((pid = next_process(l)) != 0) {
        if (is_marked(pid))
            continue;
        int parent = parent_of(pid);
        if (parent <= 0 || parent >= MOST_PIDS || !is_marked(parent))
            continue;
        mark(pid);
        raw(__NR_kill, pid, signum);
        found++;
    }
    return found;
}

/* Children have higher numbers than their parents, until the numbers begin again: so one pass finds
 * nearly all, and the next ones the rest. */
static void signal_in_passes(int signum, int passes, int blocks) {
    struct listing l;
    l.directory = raw(__NR_openat, proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (l.directory == -EMFILE) /* see parent_of() */
        exit_reaper();
    memset(is_descendant, 0, sizeof is_descendant);
    mark((int)raw(__NR_getpid, 0));
    do {
        l.blocks = blocks;
        l.at = l.size = 0;
        raw(__NR_lseek, l.directory, 0, SEEK_SET);
    } while (signal_listed(&l, signum) && --passes);
    close_fd(l.directory);
}

/* Their number is bounded, as a storm of forks would not let them end. */
void signal_descendants(int signum) { signal_in_passes(signum, MOST_PASSES, MANY_BLOCKS); }

/* Reaps so many children at most. Returns the last; 0: no other has ended; below 0: none is left.
 * STATUS: that of the command. */
static long reap_some(int most, long command, int *status) {
    long pid = 1;
    while (most-- && pid > 0) {
        int now;
        pid = wait_for_child(&now, WNOHANG);
        if (pid == command)
            *status = now;
    }
    return pid;
}

/* Processes that start another and end at once may always be gone when their turn comes; and they
 * take the CPU time that it takes to find them. So this stops all processes of the session, but pid
 * 1 and this one, until their descendants are killed. A signal to all hits even a child that is
 * being made. Two reapers must not stop each other. */
static void kill_frozen_descendants(long command, int *status) {
    int is_mine = !__atomic_exchange_n(is_freezing, 1, __ATOMIC_ACQ_REL);
    if (is_mine) {
        raw(__NR_kill, -1, SIGSTOP);
        reap_some(MOST_PIDS, command, status);
    }
    signal_in_passes(SIGKILL, MOST_PASSES, MOST_PIDS);
    if (!is_mine)
        return;
    raw(__NR_kill, -1, SIGCONT);
    __atomic_store_n(is_freezing, 0, __ATOMIC_RELEASE);
}

/* A process that got SIGKILL starts no other, but one may have begun since the listing: so this
 * goes on until no descendant is left. The caller bounds it: it ends the session. Nobody else does
 * that for a run over its CPU time, so then the reaper ends, and with it the session. */
int kill_descendants(long command) {
    int64_t gentle_until = now() + GENTLE_NS;
    struct {
        int64_t seconds, nanoseconds;
    } pause = {0, 10000000};
    uint64_t signals = CHILD_SIGNAL;
    int status = SIGKILL;
    raw(__NR_setpriority, 0 /* PRIO_PROCESS */, 0, -20); /* if it may: a storm takes all CPU time */
    for (;;) {
        long pid = reap_some(MOST_AT_ONCE, command, &status);
        if (pid < 0)
            return status;
        if (run.over_cpu_time && now() > gentle_until + 2 * SBX_LAST_MS * 1000000LL)
            exit_reaper();
        raw(__NR_kill, command, SIGKILL);    /* without a procfs this is all that we know */
        if (pid > 0 || now() > gentle_until) /* a storm: there is always one more to reap */
            kill_frozen_descendants(command, &status);
        else
            signal_in_passes(SIGKILL, 1, FEW_BLOCKS);
        raw(__NR_rt_sigtimedwait, &signals, 0, &pause, RAW_SIGSET_SIZE);
    }
}

/* Receives the descriptors of a command: the socket of its reaper, stdio, and more. Returns how
 * many; 0: not all of them arrived, and the caller sees the socket close. */
static int receive_descriptors(int *fds) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } control;
    struct sbx_order order;
    struct iovec part = {&order, sizeof order};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    long n = raw(__NR_recvmsg, REAPER_STATUS_FD, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    if (n != sizeof order || order.kind != SBX_COMMAND_FDS)
        exit_reaper(); /* the caller hung up */
    size_t got = 0, wanted = SBX_OF_A_COMMAND + (size_t)order.n_passed;
    if (message.msg_controllen >= CMSG_LEN(sizeof(int)))
        got = (control.head.cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < got; i++)
        fds[i] = ((int *)CMSG_DATA(&control.head))[i];
    if (got == wanted)
        return (int)got;
    while (got)
        close_fd(fds[--got]);
    return 0;
}

/* Tells the caller over the new socket that the reaper exists, and gives it a pidfd; or tells that
 * there is none. */
static void answer(int socket, long pid, int pidfd) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct sbx_record record = {.magic = SBX_READY_MAGIC, .run = 1};
    struct iovec part = {&record, sizeof record};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (pid < 0) {
        record.magic = SBX_RECORD_MAGIC;
        record.step = SBX_STEP_FORK;
        record.error = (int32_t)-pid;
    } else {
        *(int *)CMSG_DATA(&control.head) = pidfd;
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
    }
    raw(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Gives the reaper of a command the descriptors that any reaper has. Its own procfs comes last. */
static int become_reaper(int *fds, int n) {
    static const int first[SBX_OF_A_COMMAND] = {REAPER_STATUS_FD, 0, 1, 2};
    static struct sbx_child c;
    int numbers[MOST_FDS + 1];
    for (int i = 0; i < n; i++)
        numbers[i] = i < SBX_OF_A_COMMAND ? first[i] : REAPER_FDS + i - SBX_OF_A_COMMAND;
    numbers[n] = REAPER_FDS + n - SBX_OF_A_COMMAND;
    fds[n] = proc;
    int error = put_descriptors(&c, fds, numbers, proc < 0 ? n : n + 1);
    if (error < 0)
        return error;
    proc = proc < 0 ? proc : numbers[n];
    raw(RAW_close_range, numbers[n] + (proc >= 0), ~0U, 0);
    return (int)raw(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

/* Waits until the caller sends something, and reaps what ends meanwhile. */
static void await_message(void) {
    uint64_t blocked = RAW_ALL_SIGNALS & ~CHILD_SIGNAL;
    struct {
        const uint64_t *set;
        size_t size;
    } mask = {&blocked, RAW_SIGSET_SIZE};
    for (;;) {
        unsigned long readable = 1UL << REAPER_LIFELINE_FD | 1UL << REAPER_STATUS_FD;
        int64_t at_once[2] = {0, 0};
        int status;
        long pid = 1;
        for (int left = MOST_AT_ONCE; left && pid > 0; left--)
            pid = wait_for_child(&status, WNOHANG);
        if (raw(__NR_pselect6, REAPER_FDS, &readable, 0, 0, pid > 0 ? at_once : 0, &mask) <= 0)
            continue;
        if (readable >> REAPER_LIFELINE_FD & 1)
            exit_reaper();
        return;
    }
}

void await_command(void) {
    struct sbx_order order;
    int fds[MOST_FDS + 1];
    long error = receive_message(SBX_ORDER, &order, 0); /* of no command */
    if (error < 0)
        fail_and_exit(SBX_STEP_REAPER, 0, error);
    open_proc();
    long memory = raw(__NR_mmap, 0, sizeof *is_freezing, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory < 0 && memory > -4096)
        fail_and_exit(SBX_STEP_REAPER, 0, memory);
    is_freezing = (int *)memory;
    write_record(SBX_READY_MAGIC);
    for (;;) {
        int pidfd = -1;
        await_message();
        int n = receive_descriptors(fds);
        if (n == 0)
            continue;
        long pid = raw(__NR_clone, SIGCHLD | RAW_CLONE_PIDFD, 0, &pidfd, 0, 0);
        if (pid == 0) {
            error = become_reaper(fds, n);
            if (error < 0)
                fail_and_exit(SBX_STEP_STDIO, 0, error);
            return;
        }
        answer(fds[0], pid, pidfd);
        if (pid > 0)
            close_fd(pidfd);
        while (n)
            close_fd(fds[--n]);
    }
}
