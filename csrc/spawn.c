/* SPDX-License-Identifier: Apache-2.0
 *
 * THEORY OF OPERATION
 *
 * sbx_spawn makes the pipes, blocks every signal, and clones a child that shares the caller's
 * memory (CLONE_VM) while the calling thread waits (CLONE_VFORK): nothing is copied, so a caller
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#define CLEAR_SIGHAND 0x100000000ULL /* clone3(2), CLONE_CLEAR_SIGHAND */
#define WAIT_PIDFD 3                 /* waitid(2), P_PIDFD */
#define SIGNAL_GROUP 4               /* pidfd_send_signal(2), PIDFD_SIGNAL_PROCESS_GROUP */

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
    return higher;
}

static int make_pipe(int *read_end, int *write_end) {
    int ends[2];
    long error = raw(__NR_pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    long reader = above(ends[0], 3), writer = above(ends[1], 3);
    *read_end = reader < 0 ? -1 : (int)reader;
    *write_end = writer < 0 ? -1 : (int)writer;
    return (int)(reader < 0 ? reader : writer < 0 ? writer : 0);
}

/* The caller's descriptors of the run, and in C the child's. */
static int make_pipes(const struct sbx_job *job, struct sbx_run *run, struct sbx_child *c) {
    struct sbx_stream *streams[] = {&run->out, &run->err};
    for (int i = 0; i < 3; i++) /* before a pipe takes the number of one that is closed */
        if (job->stdio[i] >= 0 && raw(__NR_fcntl, job->stdio[i], F_GETFD) < 0)
            return sbx_fail(run, SBX_STEP_STDIO, i, -EBADF);
    c->stdio[0] = job->stdio[0];
    for (int i = 0; i < 2; i++) {
        int error = 0;
        if (job->stdio[i + 1] == SBX_CAPTURE)
            error = make_pipe(&streams[i]->fd, &c->stdio[i + 1]);
        else
            c->stdio[i + 1] = job->stdio[i + 1];
        if (error < 0)
            return sbx_fail(run, SBX_STEP_PIPE, i + 1, error);
    }
    if (job->stdio[2] == SBX_STDOUT)
        c->stdio[2] = c->stdio[1];
    int error = c->place->reaper ? make_pipe(&run->status, &c->status) : 0;
    if (error < 0)
        return sbx_fail(run, SBX_STEP_PIPE, REAPER_STATUS_FD, error);
    long lifeline = above(raw(RAW_pidfd_open, run->owner, 0), 3);
    if (lifeline < 0)
        return sbx_fail(run, SBX_STEP_LIFELINE, 0, lifeline);
    c->lifeline = (int)lifeline;
    return 0;
}

/* ---- clone ------------------------------------------------------------------------------- */

/* clone3 onto a stack of its own: no libc function does that. The child's half never returns. */
static long clone_onto(struct raw_clone_args *args, int (*entry)(void *), void *argument) {
    long result;
#if defined(__x86_64__)
    register int (*fn)(void *) __asm__("r12") = entry;
    register void *arg __asm__("r13") = argument;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "mov %%eax, %%edi\n\t"
                     "mov %[exit], %%eax\n\t"
                     "syscall\n\t"
                     "1:"
                     : "=a"(result)
                     : "a"((long)RAW_clone3), "D"(args), "S"(sizeof *args), "r"(fn),
                       "r"(arg), [exit] "i"(__NR_exit)
                     : "rcx", "r11", "memory", "cc");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = RAW_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register int (*fn)(void *) __asm__("x19") = entry;
    register void *arg __asm__("x20") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, x20\n\t"
                     "blr x19\n\t"
                     "mov x8, %[exit]\n\t"
                     "svc #0\n\t"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(fn), "r"(arg), [exit] "i"(__NR_exit)
                     : "memory", "cc");
    result = x0;
#endif
    return result;
}

/* exit_signal stays 0, so that the caller's SIGCHLD is quiet until the exec sets it. */
static long clone_child(struct sbx_child *c, char *stack) {
    uint64_t flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | c->place->namespaces;
    struct raw_clone_args args = {
        .flags = flags | CLEAR_SIGHAND,
        .pidfd = (uint64_t)(uintptr_t)&c->run->pidfd,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = SBX_STACK_SIZE,
    };
    uint64_t all = RAW_ALL_SIGNALS, before;
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, RAW_SIGSET_SIZE);
    long pid = clone_onto(&args, sbx_child_main, c);
    /* Seccomp filters of some containers know only clone(2); the child resets every disposition
     * itself, so nothing is lost with CLEAR_SIGHAND. */
    if (pid == -ENOSYS) {
        int saved = errno;
        pid = clone(sbx_child_main, stack + SBX_STACK_SIZE, (int)flags, c, &c->run->pidfd);
        pid = pid < 0 ? -errno : pid;
        errno = saved;
    }
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, RAW_SIGSET_SIZE);
#ifdef __SANITIZE_ADDRESS__
    /* The child left its frames by exec; their red zones are still marked. */
    void __asan_unpoison_memory_region(void const volatile *, size_t);
    __asan_unpoison_memory_region(stack, SBX_STACK_SIZE);
#endif
    return pid;
}

/* ---- start ------------------------------------------------------------------------------- */

enum { SBX_NUMBERS = 3 * (1 + 10) + 1 };

/* In decimal and with a space before it, so that it ends at END; returns where it begins. */
static char *put_number(char *end, uint32_t number) {
    do
        *--end = (char)('0' + number % 10);
    while (number /= 10);
    *--end = ' ';
    return end;
}

/* vec: the numbers for the reaper, the paths, argv, NULL, environment, NULL. */
static void point_at_strings(const struct sbx_place *place, const struct sbx_job *job,
                             char numbers[SBX_NUMBERS]) {
    const char **slot = job->vec, *string = job->strings;
    int n_words = job->n_candidates + job->n_args;
    char *text = numbers + SBX_NUMBERS - 1;
    *text = 0;
    if (place->change_ids)
        text = put_number(put_number(text, place->gid), place->uid);
    *slot++ = put_number(text, (uint32_t)job->n_candidates);
    for (int i = 0; i < n_words + job->n_env; i++) {
        if (i == n_words)
            *slot++ = NULL;
        *slot++ = string;
        string += strlen(string) + 1;
    }
    if (job->n_env == 0)
        *slot++ = NULL;
    *slot = NULL;
}

static void begin(struct sbx_run *run, const struct sbx_place *place) {
    run->owner = getpid();
    run->pid = 0;
    run->pidfd = run->status = run->out.fd = run->err.fd = -1;
    run->out.length = run->err.length = 0;
    run->group = place->session && !(place->namespaces & CLONE_NEWPID);
    run->ended = 0;
    run->wait_status = -1;
    run->failure.step = SBX_STEP_NONE;
    run->failure.index = run->failure.error = 0;
}

int sbx_spawn(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
              char *stack) {
    struct sbx_child child = {.place = place, .job = job, .run = run, .init = job->init_fd};
    char numbers[SBX_NUMBERS];
    child.stdio[0] = child.stdio[1] = child.stdio[2] = SBX_NULL;
    child.status = child.lifeline = child.root = child.tree = -1;
    point_at_strings(place, job, numbers);
    begin(run, place);
    if (make_pipes(job, run, &child) == 0) {
        long pid = clone_child(&child, stack);
        if (pid < 0)
            sbx_fail(run, SBX_STEP_CLONE, 0, pid);
        else
            run->pid = (int)pid;
    }
    for (int i = 1; i < 3; i++)
        if (job->stdio[i] == SBX_CAPTURE)
            sbx_close(&child.stdio[i]);
    sbx_close(&child.status);
    sbx_close(&child.lifeline);
    if (run->failure.step == SBX_STEP_NONE)
        return 0;
    sbx_end(run);
    return -1;
}

/* ---- end --------------------------------------------------------------------------------- */

struct pidfd_info { /* ioctl_pidfd(2const), as first published */
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
};

/* The status, and no zombie. The process is known to be dead. */
void sbx_reap(struct sbx_run *run) {
    siginfo_t info = {0};
    long error = raw(__NR_waitid, WAIT_PIDFD, run->pidfd, &info, WEXITED | __WALL, 0);
    if (error == 0) {
        int value = info.si_status;
        run->wait_status = info.si_code == CLD_EXITED ? (value & 0xff) << 8 : value;
        return;
    }
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

/* The group by pidfd, where a recycled number cannot be hit (Linux 6.9); before that by number, as
 * long as the leader, dead or alive, is still there to hold it. */
static long signal_group(struct sbx_run *run, int signum) {
    siginfo_t info = {0};
    long error = raw(RAW_pidfd_send_signal, run->pidfd, signum, 0, SIGNAL_GROUP);
    if (error != -EINVAL)
        return error;
    error =
        raw(__NR_waitid, WAIT_PIDFD, run->pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return error < 0 ? error : raw(__NR_kill, -run->pid, signum);
}

int sbx_signal(struct sbx_run *run, int signum) {
    if (run->pidfd < 0)
        return -ESRCH;
    if (run->group && signal_group(run, signum) == 0)
        return 0;
    return (int)raw(RAW_pidfd_send_signal, run->pidfd, signum, 0, 0);
}

void sbx_end(struct sbx_run *run) {
    if (run->owner == 0)
        return;
    if (!run->ended && run->pidfd >= 0 && run->owner == getpid()) {
        struct pollfd dead = {run->pidfd, POLLIN, 0};
        sbx_signal(run, SIGKILL);
        while (raw(__NR_ppoll, &dead, 1, 0, 0, 0) != 1)
            ; /* signals: Python sees to them afterwards */
        sbx_reap(run);
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
    fd = above(fd, REAPER_FDS); /* where the child will not put anything else */
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

int sbx_open_in_root(int directory, const char *path, int flags) {
    struct {
        uint64_t flags, mode, resolve;
    } how = {(uint64_t)flags | O_CLOEXEC, 0, 0x10 | 0x02 /* IN_ROOT, NO_MAGICLINKS */};
    return (int)raw(RAW_openat2, directory, path, &how, sizeof how);
}
