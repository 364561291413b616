/* SPDX-License-Identifier: Apache-2.0
 *
 * The reaper: pid 1 of an isolated run, a static program without libc. It starts the command,
 * reaps what the command leaves behind, passes on the command's true status, and ends. Its end is
 * the end of the namespace: the kernel kills whatever is still in it.
 *
 * It is given
 * - as descriptor 3 a socket to the caller. Every message from there begins with a struct
 * sbx_order: first what is done for each run (a struct sbx_place and all that it points to), then a
 * command with its strings, later signals. It answers with one struct sbx_record for each command;
 * - as descriptor 4 the lifeline: a pidfd of the caller, readable when that process is dead;
 * - from 5 on the descriptors that are passed on to the command;
 * - and every signal blocked.
 *
 * Pid 1 gets no signal that it does not handle, so nothing sent from inside stops or kills it. It
 * is not dumpable, so nothing inside can trace it; and it keeps all capabilities of the caller, so
 * that a command with fewer can neither renice nor reschedule it. No command can reach the socket.
 *
 * Each run has a number, which every message about it carries. What is meant for another run is
 * never obeyed: a signal is ignored, an order breaks off.
 *
 * A resident gets a SBX_TEMPLATE as its first message, and stays: it asks for one command after the
 * other (SBX_READY_MAGIC). Each runs in a pid namespace and a mount namespace made for it, below
 * and copied from the resident's own: the command cannot name the resident, and what it could
 * change in the other namespaces, which are the resident's, is looked at after the run. If anything
 * was changed the resident ends, and all of it with it.
 *
 *     resident        pid namespace, mount namespace (the template), network, ipc, uts, cgroup
 *       reaper        pid and mount namespace of the run; a fork, which ends with the command
 *         command     the steps of child.c that belong to a run, then exec
 */
#define _GNU_SOURCE
#include "internal.h"
#include "raw.h"

#include <linux/capability.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/wait.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
        "xor %ebp, %ebp\nand $-16, %rsp\ncall reaper\nhlt\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov $15, %eax\nsyscall\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\nmov x29, #0\nbl reaper\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov x8, #139\nsvc #0\n");
#endif
#define MOST_LEAVING 16 /* reapers that have told, and are still on their way out */
#define ALIGNED(size) (((size_t)(size) + 7) & ~(size_t)7)
#define CHILD_SIGNAL ((uint64_t)1 << (SIGCHLD - 1))
#define BELL_SIGNAL ((uint64_t)1 << (RESIDENT_BELL - 1))
#define RESTORER 0x04000000 /* SA_RESTORER: x86_64 leaves the way back to the program */

void return_from_signal(void);
void reaper(void) __attribute__((noreturn, used));

static void end(void) __attribute__((noreturn));
static void end(void) {
    for (;;)
        raw(__NR_exit_group, 0);
}

/* ---- what the compiler, and child.c, expect of a libc -------------------------------------- */

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

void *memcpy(void *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++)
        ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memset(void *to, int byte, size_t n) {
    for (size_t i = 0; i < n; i++)
        ((volatile char *)to)[i] = (char)byte;
    return to;
}

/* ---- one command --------------------------------------------------------------------------- */

static struct sbx_place inside; /* what is done for each run */
static uint32_t runs;           /* the number of this run; the first is 1 */
static struct sbx_run run;      /* shared by the processes of a resident, as all of their memory */
static char first_buffer[16384] __attribute__((aligned(16)));
static char order_buffer[131072] __attribute__((aligned(16))); /* of a resident */
static char filter[4096 * 8];                                  /* BPF_MAXINSNS instructions */
static char *buffer; /* what came with an order, then the pointers to its strings */
static size_t capacity;
static int is_larger;     /* than that was an order */
static volatile int rung; /* a resident: the caller says that there is a message */

/* SIGCHLD has no other use than to end ppoll. */
static void on_signal(int signum) {
    if (signum == RESIDENT_BELL)
        rung = 1;
}

/* Apart from `start`, whose frame the two share until the exec. */
static void run_child(struct sbx_child *c) __attribute__((noinline, noreturn));
static void run_child(struct sbx_child *c) {
    int status = sbx_child_main(c);
    for (;;)
        raw(__NR_exit, status);
}

/* A vfork, so a failure of the child's is there when this returns: the command's pid, or < 0. */
static long start(struct sbx_child *c, uint64_t namespaces) {
    long pid = raw(__NR_clone, namespaces | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        run_child(c);
    if (pid < 0)
        sbx_fail(c->run, SBX_STEP_FORK, 0, pid);
    return c->run->failure.step == SBX_STEP_NONE ? pid : -1;
}

static void tell(uint32_t magic) {
    struct sbx_record record = {.magic = magic, .run = runs};
    if (magic == SBX_RECORD_MAGIC) {
        raw(__NR_getrusage, -1 /* RUSAGE_CHILDREN */, record.usage);
        record.step = (int32_t)run.failure.step;
        record.index = run.failure.index;
        record.error = run.failure.error;
        record.wait_status = run.wait_status;
    }
    raw(__NR_write, REAPER_STATUS_FD, &record, sizeof record);
}

/* Sends on what signals came for this run; 0: the caller hung up, or says something else. */
static int pass_signals(void) {
    struct sbx_order message;
    long n;
    while ((n = raw(__NR_recvfrom, REAPER_STATUS_FD, &message, sizeof message, MSG_DONTWAIT, 0, 0))
           == sizeof message) {
        if (message.kind != SBX_SIGNAL)
            return 0;
        if (message.run == runs)
            raw(__NR_kill, -1, message.signum);
    }
    return n == -EAGAIN;
}

/* Waits until something happens to a child, and passes on signals; 0: the caller died, or it hung
 * up: it became another program by exec, and then nobody is left to read the status. By
 * pselect6(2), because ppoll(2) fails under a low RLIMIT_NOFILE, which a command may set on pid 1.
 */
static int caller_lives(void) {
    unsigned long readable = 1UL << REAPER_LIFELINE_FD | 1UL << REAPER_STATUS_FD;
    uint64_t blocked = RAW_ALL_SIGNALS & ~CHILD_SIGNAL;
    struct {
        const uint64_t *set;
        size_t size;
    } mask = {&blocked, RAW_SIGSET_SIZE};
    if (raw(__NR_pselect6, REAPER_FDS, &readable, 0, 0, 0, &mask) <= 0)
        return 1;
    return !(readable >> REAPER_LIFELINE_FD & 1) && pass_signals();
}

/* PTRACE_TRACEME makes the parent the tracer, so wait4 reports a stop to us at each signal of such
 * a process. We trace nobody: detach, and deliver the signal. The exceptions are stops that only
 * wait for a tracer: SIGTRAP (after an exec), and a stop signal from within the run. One that we
 * send ourselves (Process.suspend) has the sender 1, or 0 if it comes from another pid namespace.
 */
static void detach(long pid, int status) {
    siginfo_t info = {0};
    int signum = WSTOPSIG(status);
    int is_stop = signum == SIGSTOP || signum == SIGTSTP || signum == SIGTTIN || signum == SIGTTOU;
    raw(__NR_ptrace, PTRACE_GETSIGINFO, pid, 0, &info);
    if (signum == SIGTRAP || (is_stop && info.si_pid > 1))
        signum = 0;
    raw(__NR_ptrace, PTRACE_DETACH, pid, 0, signum);
}

/* wait4(2) for any child, of which stops are no end: its pid, 0: none ended (WNOHANG), or -errno.
 */
static long wait_for_child(int *status, int flags) {
    for (;;) {
        long pid = raw(__NR_wait4, -1, status, flags, 0);
        if (pid > 0 && WIFSTOPPED(*status))
            detach(pid, *status);
        else if (pid != -EINTR)
            return pid;
    }
}

/* Reaps whatever ends, until it is `command`: its status, or -errno if the kernel does not tell. */
static int reap(long command) {
    for (;;) {
        int status;
        long pid;
        while ((pid = wait_for_child(&status, WNOHANG)) > 0)
            if (pid == command)
                return status;
        if (pid < 0)
            return (int)pid;
        if (!caller_lives())
            end();
    }
}

/* Whether a signal reaches all processes of a run: by CAP_KILL, or as none can have other ids. */
static int may_kill(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{0}};
    raw(__NR_capget, &header, sets);
    if (sets[0].effective >> CAP_KILL & 1)
        return 1;
    return !inside.change_ids && inside.no_new_privs;
}

/* Waits for the end of a child; 0: none ends in SBX_LAST_MS. */
static int await_child(void) {
    struct {
        int64_t seconds, nanoseconds;
    } most = {SBX_LAST_MS / 1000, SBX_LAST_MS % 1000 * 1000000};
    uint64_t signals = CHILD_SIGNAL; /* which is blocked, and so pending once one ended */
    return raw(__NR_rt_sigtimedwait, &signals, 0, &most, RAW_SIGSET_SIZE) != -EAGAIN;
}

/* All that is left in the pid namespace; waiting for some counts it in what was used. Processes
 * that we may not signal are killed by the kernel when pid 1 exits. 0: some that got SIGKILL do not
 * end, as they wait in the kernel for something that does not come. */
static int kill_and_reap(void) {
    long pid;
    int status;
    while ((pid = wait_for_child(&status, WNOHANG)) > 0)
        ;
    if (pid == -ECHILD) /* so there is nobody, and kill(2) need not look for them everywhere */
        return 1;
    if (raw(__NR_getpid, 0) == 1) /* never of another's */
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

/* ---- messages ------------------------------------------------------------------------------ */

static long get_memory(size_t size) {
    return raw(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static long make_room(size_t size) {
    if (size <= capacity)
        return 0;
    size = (size + 0xffff) & ~(size_t)0xffff;
    long memory = get_memory(size);
    if (memory < 0 && memory > -4096)
        return memory;
    if (buffer != first_buffer && buffer != order_buffer)
        raw(__NR_munmap, buffer, capacity);
    capacity = size;
    buffer = (char *)memory;
    is_larger = 1;
    return 0;
}

/* The next message; who sends it is the caller's core. 0 or -errno: -ECANCELED if it hung up, or
 * says something else than KIND. A signal for a run that is over may come first. With an order for
 * a slot come descriptors. */
static long receive(uint32_t kind, struct sbx_order *order, int *fds) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE((3 + SBX_MOST_CGROUPS) * sizeof(int))];
    } control;
    struct iovec part = {order, sizeof *order};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    long n;
    do {
        message.msg_controllen = sizeof control;
        n = raw(__NR_recvmsg, REAPER_STATUS_FD, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    } while (n == sizeof *order && order->kind == SBX_SIGNAL);
    if (n != sizeof *order || order->kind != kind || order->run != runs)
        return -ECANCELED;
    size_t got = message.msg_controllen >= CMSG_LEN(sizeof(int)) ? control.head.cmsg_len : 0;
    size_t n_fds = 3 + (size_t)order->n_cgroups;
    if (fds && got != CMSG_LEN(n_fds * sizeof(int)))
        return -ECANCELED;
    for (size_t i = 0; fds && i < n_fds; i++)
        fds[i] = ((int *)CMSG_DATA(&control.head))[i];
    size_t pointers = (size_t)(order->n_candidates + order->n_args + order->n_env) + 3;
    long error = make_room(ALIGNED(order->size) + pointers * sizeof(char *));
    for (size_t at = 0; at < order->size && error == 0; at += (size_t)n) {
        n = raw(__NR_recvfrom, REAPER_STATUS_FD, buffer + at, order->size - at, 0, 0, 0);
        if (n <= 0)
            error = -ECANCELED;
    }
    return error;
}

/* What an order asks for: its descriptors, the cwd and the strings lie one after the other. */
static void read_job(const struct sbx_order *order, struct sbx_job *job, struct sbx_child *c) {
    job->terminal = order->terminal;
    job->cpu_seconds = order->cpu_seconds;
    job->n_candidates = order->n_candidates;
    job->n_args = order->n_args;
    job->n_env = order->n_env;
    job->passed = (const int *)buffer;
    job->n_passed = order->n_passed;
    job->strings = buffer + (size_t)order->n_passed * sizeof(int) + order->cwd_size;
    job->vec = (const char **)(buffer + ALIGNED(order->size));
    sbx_point_at_strings(job);
    c->envp = job->vec + job->n_candidates + job->n_args + 1;
    c->job = job;
}

/* The first message is the place of the runs; its pointers are offsets. */
static long read_place(void) {
    char *start = buffer;
    inside = *(struct sbx_place *)start;
    if (inside.n_mounts) { /* they stay there */
        buffer = first_buffer;
        capacity = start == buffer ? 0 : sizeof first_buffer;
    }
    struct sbx_mount *mounts = (struct sbx_mount *)(start + (uintptr_t)inside.mounts);
    for (int i = 0; i < inside.n_mounts; i++) {
        const char **strings[] = {&mounts[i].source, &mounts[i].target, &mounts[i].size,
                                  &mounts[i].inodes, &mounts[i].mode};
        for (int j = 0; j < 5; j++)
            if (*strings[j])
                *strings[j] = start + (uintptr_t)*strings[j];
    }
    inside.mounts = mounts;
    if (inside.filter) { /* what comes next may lie where it lay */
        memcpy(filter, start + (uintptr_t)inside.filter, (size_t)inside.filter_length * 8);
        inside.filter = filter;
    }
    if (!inside.cut_capabilities)
        return 0;
    raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return sbx_cut_bounding_set(inside.capabilities);
}

/* ---- the reaper of a single run ------------------------------------------------------------ */

static void end_with(enum sbx_step step, int index, long error) __attribute__((noreturn));
static void end_with(enum sbx_step step, int index, long error) {
    sbx_fail(&run, step, index, error);
    tell(SBX_RECORD_MAGIC);
    end();
}

static void run_once(void) __attribute__((noreturn));
static void run_once(void) {
    static struct sbx_order order;
    static struct sbx_job job;
    static struct sbx_child c;
    long error = read_place();
    if (error < 0)
        end_with(SBX_STEP_CAPABILITIES, 0, error);
    error = receive(SBX_ORDER, &order, 0);
    if (error < 0)
        end_with(SBX_STEP_EXEC, -1, error);
    read_job(&order, &job, &c);
    inside.reaper = 0;
    c.run = &run;
    c.place = &inside;
    c.inside = 1;
    c.root = c.tree = c.dev = -1;
    for (int i = 0; i < 3; i++)
        c.stdio[i] = i;
    long command = start(&c, 0);
    if (command >= 0 && order.announce)
        tell(SBX_READY_MAGIC);
    if (command >= 0)
        run.wait_status = reap(command);
    if (!kill_and_reap()) /* for their usage: the kernel would do it as well */
        sbx_fail(&run, SBX_STEP_KILL, 0, -ETIMEDOUT);
    tell(SBX_RECORD_MAGIC);
    end();
}

/* ---- a resident ---------------------------------------------------------------------------- */

static const unsigned char *held;
static struct sbx_seen *kept, *seen;
static int with_reaper, own_users;
/* The caller: for an order, which came whole; how it ended. */
static volatile int asked, ordered, told;
static int waker; /* an eventfd, by which a reaper says that it is done */
static char reaper_stack[8192] __attribute__((aligned(16)));
static char command_stack[32768] __attribute__((aligned(16)));

static void settle(void) {
    long error = read_place();
    with_reaper = inside.reaper;
    own_users = inside.namespaces != 0;
    inside.reaper = 0;
    inside.namespaces = 0;
    size_t size = (size_t)inside.n_mounts * sizeof *kept;
    long memory = get_memory(2 * size + 1);
    if (error < 0 || (memory < 0 && memory > -4096))
        end();
    kept = (struct sbx_seen *)memory;
    seen = kept + inside.n_mounts;
    for (int i = 0; i < inside.n_mounts; i++)
        if (inside.mounts[i].flags & SBX_KEPT)
            kept[i] = sbx_see_mount(inside.mounts[i].target);
    for (int i = 0; i < inside.n_mounts; i++) {
        const struct sbx_mount *m = &inside.mounts[i];
        if (m->kind == SBX_DEV && m->flags & SBX_KEPT && kept[i].inode
            && sbx_watch_dev(m, kept[i], kept, inside.n_mounts) < 0)
            end();
    }
    held = (const unsigned char *)(inside.mounts + inside.n_mounts);
}

/* Step ORDER: report that the set-up is done, then wait for the message that says what to run. */
static int await_order(struct sbx_child *c) {
    static struct sbx_job job;
    static int fds[3 + SBX_MOST_CGROUPS];
    struct sbx_order order;
    asked = 1;
    tell(SBX_READY_MAGIC);
    long error = receive(SBX_ORDER, &order, fds);
    if (error < 0)
        return (int)error;
    for (int i = 0; i < 3; i++)
        c->stdio[i] = fds[i];
    job = *c->job;
    job.cgroups = fds + 3;
    job.n_cgroups = order.n_cgroups;
    job.cwd = buffer;
    read_job(&order, &job, c);
    ordered = 1; /* from here on a command may have begun */
    return 0;
}

/* By clone(2): filters of system calls know no clone3, as its flags lie in memory. */
static long spawn(uint64_t flags, char *stack, size_t size, int (*entry)(void *), void *argument,
                  int *pidfd) {
    long all = (long)flags | CLONE_VM | SIGCHLD | (pidfd ? RAW_CLONE_PIDFD : 0);
    return clone_by(__NR_clone, all, (long)(stack + size), (long)pidfd, entry, argument);
}

/* The end of a reaper, without its stack: that is the next one's as soon as the resident wakes. */
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

/* The reaper of one run. It tells the status once no process of the run is left; the mounts go with
 * it, after that. Without a reaper the command is pid 1, and this is who waits for it. */
static int reaper_main(void *child) {
    struct sbx_child *c = child;
    int status = -1;
    raw(__NR_setsid, 0); /* the resident's autogroup (sched(7)) belongs to its session */
    long pid = 0, command = spawn(with_reaper ? 0 : CLONE_NEWPID, command_stack,
                                  sizeof command_stack, sbx_child_main, c, 0);
    if (command < 0)
        sbx_fail(&run, SBX_STEP_FORK, 0, command);
    while (command > 0 && pid >= 0 && pid != command)
        pid = wait_for_child(&status, 0);
    if (pid < 0) /* the resident ends for it, and all that is left with it */
        raw(__NR_kill, command, SIGKILL);
    run.wait_status = pid < 0 ? (int)pid : status;
    if (!ordered) /* somebody outside killed who waits for it: the next must not get it */
        sbx_fail(&run, SBX_STEP_ORDER, 0, -ECANCELED);
    if (!kill_and_reap())
        sbx_fail(&run, SBX_STEP_KILL, 0, -ETIMEDOUT);
    told = 1;
    tell(SBX_RECORD_MAGIC);
    wake_and_exit(waker);
    return 0;
}

/* Waits until the reaper is done; 0: it was killed from outside, or the caller is gone. The bell
 * may be faster than the order that it follows: nobody but the command's process reads the socket
 * until that is there. */
static int await_reaper(int pidfd) {
    struct pollfd watched[] = {{waker, POLLIN, 0},
                               {pidfd, POLLIN, 0},
                               {REAPER_LIFELINE_FD, POLLIN, 0},
                               {REAPER_STATUS_FD, 0, 0}};
    uint64_t blocked = RAW_ALL_SIGNALS & ~BELL_SIGNAL;
    for (int tries = 0;;) {
        struct {
            long seconds, nanoseconds;
        } soon = {0, 10000000};
        if (raw(__NR_ppoll, watched, 4, rung ? &soon : 0, &blocked, RAW_SIGSET_SIZE) > 0)
            return watched[0].revents;
        if (rung && (ordered || ++tries > 500))
            rung = tries = 0;
        if (!rung && ordered)
            pass_signals();
    }
}

/* After a reaper that was killed: what is left of its run goes before anything is told, so that no
 * order is taken any more. If none was, the caller makes the run anew. */
static void give_up(void) {
    int status;
    raw(__NR_kill, -1, SIGKILL);
    while (wait_for_child(&status, 0) > 0)
        ;
    if (asked && !ordered && !told)
        end_with(SBX_STEP_ORDER, 0, -ECANCELED);
}

/* Makes ready for a run, lets it happen, and waits until no process of it is left; 0: something is
 * wrong. The reaper goes after that: its mounts take it a grace period of RCU, which can be long.
 */
static int serve(void) {
    static struct sbx_child c;
    static struct sbx_job job;
    static int leaving;
    uint64_t woken;
    int pidfd = -1;
    memset(&run, 0, sizeof run);
    memset(&c, 0, sizeof c);
    asked = ordered = told = 0;
    job.held = held;
    runs++;
    c.place = &inside;
    c.job = &job;
    c.run = &run;
    c.inside = 1;
    c.order = await_order;
    c.kept = kept;
    c.seen = seen;
    c.root = c.tree = c.dev = -1;
    uint64_t flags = CLONE_NEWNS | (with_reaper ? CLONE_NEWPID : 0);
    long pid;
    do /* those on their way out still count for limits on processes and namespaces */
        pid = spawn(flags, reaper_stack, sizeof reaper_stack, reaper_main, &c, &pidfd);
    while (pid < 0 && leaving > 0 && raw(__NR_wait4, -1, 0, 0, 0) > 0 && leaving--);
    if (pid < 0)
        return 0;
    leaving++;
    if (!await_reaper(pidfd)) {
        give_up();
        return 0;
    }
    raw(__NR_read, waker, &woken, sizeof woken);
    raw(__NR_close, pidfd);
    while (raw(__NR_wait4, -1, 0, leaving > MOST_LEAVING ? 0 : WNOHANG, 0) > 0)
        leaving--;
    enum sbx_step failed = run.failure.step;
    int changed = failed == SBX_STEP_ORDER || failed == SBX_STEP_TARGET || failed == SBX_STEP_KILL;
    return asked && told && !changed && run.wait_status >= 0;
}

/* ---- whether a run left something ---------------------------------------------------------- */

static char counted[RESIDENT_FDS - REAPER_FDS][1024];

/* What /proc says of the network namespace (bytes and packets of lo, sockets in use) and of the
 * memory that reaper and resident share. A socket that is left somewhere is counted as in use; what
 * was sent went over lo. */
static int is_count_same(int i, int first) {
    char now[1024] = {0};
    long n = raw(__NR_pread64, REAPER_FDS + i, now, sizeof now - 1, 0);
    if (first)
        memcpy(counted[i], now, sizeof now);
    /* Of the sockets the first line alone is about this namespace: "sockets: used 0". */
    for (long at = 0; at < n; at++) {
        if (now[at] != counted[i][at])
            return 0;
        if (REAPER_FDS + i == RESIDENT_SOCKETS_FD && now[at] == '\n')
            break;
    }
    return n >= 0; /* a projid_map is empty at first */
}

static int are_counts_same(int first) {
    static int is_there[RESIDENT_FDS - REAPER_FDS];
    for (int i = 0; i < RESIDENT_FDS - REAPER_FDS; i++) {
        if (first)
            is_there[i] = raw(__NR_fcntl, REAPER_FDS + i, 1 /* F_GETFD */) >= 0;
        if (is_there[i] && !is_count_same(i, first))
            return 0;
    }
    return 1;
}

/* System V objects (shmctl(2), semctl(2), msgctl(2)) and POSIX message queues, by their directory.
 */
static int is_ipc_empty(int queues) {
    struct shm_info shm = {0};
    struct seminfo sem = {0};
    struct msginfo msg = {0};
    char entries[256];
    if (raw(__NR_shmctl, 0, SHM_INFO, &shm) < 0 || raw(__NR_semctl, 0, 0, SEM_INFO, &sem) < 0
        || raw(__NR_msgctl, 0, MSG_INFO, &msg) < 0)
        return 0;
    if (shm.used_ids || sem.semusz || msg.msgpool)
        return 0;
    raw(__NR_lseek, queues, 0, 0);
    return raw(__NR_getdents64, queues, entries, sizeof entries) == 48; /* "." and ".." */
}

/* The keyrings of a user belong to the user namespace (keyrings(7)): with none of its own, to the
 * host, as in every other run. Nobody has the right SETATTR on those here, so that their mode,
 * owner and timeout stay; a run may put another in their place, which has another number. */
static struct {
    int are_there; /* 0: a kernel without, or a filter before us, which the commands have as well */
    int32_t user, session, persistent;
} keyrings;

static int are_keyrings_empty(void) {
    const long size = sizeof(int32_t); /* of a link; the second has one, to the first */
    return raw(__NR_keyctl, KEYCTL_READ, KEY_SPEC_USER_KEYRING, 0, 0) == 0
           && raw(__NR_keyctl, KEYCTL_READ, KEY_SPEC_USER_SESSION_KEYRING, 0, 0) == size
           && (keyrings.persistent < 0
               || raw(__NR_keyctl, KEYCTL_READ, keyrings.persistent, 0, 0) == 0);
}

static int32_t number_of(int32_t key) {
    return (int32_t)raw(__NR_keyctl, KEYCTL_GET_KEYRING_ID, key, 0);
}

/* It counts as used by each call; here that is always just before a run. */
static int32_t persistent_keyring(void) {
    return (int32_t)raw(__NR_keyctl, KEYCTL_GET_PERSISTENT, -1, KEY_SPEC_PROCESS_KEYRING);
}

static void open_keyrings(void) {
    const uint32_t mode = 0x1f1f0000; /* KEYCTL_SETPERM(2const): possessor and user, no SETATTR */
    keyrings.user = number_of(KEY_SPEC_USER_KEYRING);
    keyrings.session = number_of(KEY_SPEC_USER_SESSION_KEYRING);
    keyrings.persistent = persistent_keyring();
    keyrings.are_there = keyrings.user > 0 && are_keyrings_empty();
    if (keyrings.are_there
        && (raw(__NR_keyctl, KEYCTL_SETPERM, keyrings.user, mode) < 0
            || raw(__NR_keyctl, KEYCTL_SETPERM, keyrings.session, mode) < 0))
        end();
}

static int are_keyrings_same(void) {
    return !keyrings.are_there
           || (number_of(KEY_SPEC_USER_KEYRING) == keyrings.user
               && number_of(KEY_SPEC_USER_SESSION_KEYRING) == keyrings.session
               && persistent_keyring() == keyrings.persistent && are_keyrings_empty());
}

static long open_queues(void) {
    static const char *const none[] = {NULL};
    long mount = sbx_new_filesystem("mqueue", none, 0);
    if (mount < 0)
        return mount;
    long fd = raw(__NR_openat, mount, ".", 0x10000 | 0x80000 /* O_DIRECTORY | O_CLOEXEC */);
    raw(__NR_close, mount);
    return fd;
}

/* A command sees in /proc/1/status how much memory we have, as its reaper shares it: always the
 * same. So all of it is there from the first run on, and after an order that takes more we end. */
static void touch_memory(void) {
    static const struct {
        volatile char *start;
        size_t size;
    } parts[] = {{order_buffer, sizeof order_buffer},
                 {reaper_stack, sizeof reaper_stack},
                 {command_stack, sizeof command_stack}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (size_t at = 0; at < parts[i].size; at += 4096)
            parts[i].start[at] = parts[i].start[at];
    buffer = order_buffer;
    capacity = sizeof order_buffer;
    is_larger = 0;
}

/* Once for all runs, which inherit it. A filter of ours leaves nobody a way to a key: so they share
 * a session keyring, and none is looked at. */
static void install_filter(void) {
    if (inside.keyring)
        raw(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    if (sbx_install_filter(&inside) < 0)
        end();
    inside.keyring = 0;
    inside.filter = NULL;
}

static void stay(void) __attribute__((noreturn));
static void stay(void) {
    are_counts_same(1); /* first: what is opened later may have numbers of what is not there */
    settle();
    touch_memory();
    waker = (int)raw(__NR_eventfd2, 0, 0x80000 /* EFD_CLOEXEC */);
    int own_ipc = inside.keyring;
    long queues = own_ipc ? open_queues() : 0;
    if (inside.filter && inside.filter_when == SBX_FILTER_RESIDENT)
        install_filter();
    else if (own_users)
        open_keyrings();
    while (serve() && are_counts_same(0) && sbx_renew_dev()
           && (!own_ipc || is_ipc_empty((int)queues)) && are_keyrings_same() && !is_larger)
        ;
    end();
}

void reaper(void) {
    struct raw_sigaction action = {on_signal, RESTORER, return_from_signal, RAW_ALL_SIGNALS};
    struct sbx_order order;
    raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    raw(RAW_close_range, REAPER_STATUS_FD, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    raw(__NR_rt_sigaction, SIGCHLD, &action, 0, RAW_SIGSET_SIZE);
    buffer = first_buffer; /* set here, as a .data would take a page more of the program */
    capacity = sizeof first_buffer;
    runs = 1;
    if (receive(SBX_PLACE, &order, 0) < 0)
        end();
    if (!order.stays)
        run_once();
    runs = 0;
    raw(__NR_rt_sigaction, RESIDENT_BELL, &action, 0, RAW_SIGSET_SIZE);
    stay();
    __builtin_unreachable();
}
