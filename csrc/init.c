/* SPDX-License-Identifier: Apache-2.0
 *
 * The reaper: pid 1 of an isolated run, a static program without libc. It starts the command,
 * reaps what the command leaves behind, passes on the command's true status, and ends. Its end is
 * the end of the namespace: the kernel kills whatever is still in it.
 *
 * It is given
 *   argv    the number of paths to try, in decimal, and the command's uid and gid if they are to
 *           change; those paths; the command's own argv
 *   envp    the command's environment
 *   fd 3    the status pipe: one struct sbx_record is written, however the run ends
 *   fd 4    the lifeline: a pidfd of the caller, readable when that process is dead
 * and every signal blocked. Pid 1 gets no signal that it does not handle, so nothing sent from
 * inside stops or kills it, and it is not dumpable, so nothing inside can trace it.
 */
#define _GNU_SOURCE
#include "raw.h"
#include "sandbox.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* The stack of a new program: argc, argv, NULL, envp, NULL (System V ABI; same on aarch64). */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
        "xor %ebp, %ebp\nmov %rsp, %rdi\nand $-16, %rsp\ncall reaper\nhlt\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov $15, %eax\nsyscall\n");
#define RESTORER 0x04000000 /* SA_RESTORER: x86_64 leaves the way back to the program */
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\nmov x29, #0\nmov x0, sp\nbl reaper\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov x8, #139\nsvc #0\n");
#define RESTORER 0x04000000
#endif

void return_from_signal(void);
void reaper(const char **stack) __attribute__((noreturn, used));

static void on_child(int signum) { (void)signum; /* only to end ppoll */ }

static void finish(int step, int index, int error, int wait_status) __attribute__((noreturn));
static void finish(int step, int index, int error, int wait_status) {
    struct sbx_record record = {SBX_RECORD_MAGIC, step, index, error, wait_status};
    raw(__NR_write, REAPER_STATUS_FD, &record, sizeof record);
    for (;;)
        raw(__NR_exit_group, 0);
}

/* The next of some numbers, each with a space before it; -1: there is none. */
static long next_number(const char **text) {
    long number = 0;
    if (!**text)
        return -1;
    while (*++*text && **text != ' ')
        number = number * 10 + (**text - '0');
    return number;
}

/* From uid 0 to another takes all capabilities away (capabilities(7)). */
static int become(long uid, long gid) {
    long result = raw(__NR_setgroups, 0, 0);
    if (result >= 0)
        result = raw(__NR_setresgid, gid, gid, gid);
    if (result >= 0)
        result = raw(__NR_setresuid, uid, uid, uid);
    return (int)result;
}

/* A vfork: the two share this frame until the exec, so the child leaves its failure in it. */
static long start(int n_paths, long uid, long gid, const char *const *paths,
                  const char *const *envp) {
    volatile int error = 0, index = 0, step = SBX_STEP_USER;
    long pid = raw(__NR_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        uint64_t none = 0;
        struct raw_sigaction dfl = {0};
        int32_t which;
        raw(__NR_setsid, 0);
        raw(__NR_rt_sigaction, SIGCHLD, &dfl, 0, RAW_SIGSET_SIZE);
        raw(__NR_rt_sigprocmask, SIG_SETMASK, &none, 0, RAW_SIGSET_SIZE);
        error = uid < 0 ? 0 : become(uid, gid);
        if (error == 0) {
            step = SBX_STEP_EXEC;
            error = exec_first(paths, n_paths, paths + n_paths, envp, &which);
            index = which;
        }
        for (;;)
            raw(__NR_exit, 127);
    }
    if (pid < 0)
        finish(SBX_STEP_FORK, 0, (int)-pid, 0);
    if (error)
        finish(step, index, -error, 0);
    return pid;
}

/* Until the command ends, or the caller: it dies, or it becomes another program by exec, and then
 * nobody is left to read the status. */
static void reap(long command) {
    struct pollfd caller[] = {{REAPER_LIFELINE_FD, POLLIN, 0}, {REAPER_STATUS_FD, 0, 0}};
    uint64_t all_but_child = RAW_ALL_SIGNALS & ~((uint64_t)1 << (SIGCHLD - 1));
    for (;;) {
        int status;
        long pid;
        while ((pid = raw(__NR_wait4, -1, &status, WNOHANG, 0)) > 0)
            if (pid == command)
                finish(SBX_STEP_NONE, 0, 0, status);
        if (raw(__NR_ppoll, caller, 2, 0, &all_but_child, RAW_SIGSET_SIZE) > 0)
            finish(SBX_STEP_LIFELINE, 0, ESRCH, 0);
    }
}

void reaper(const char **stack) {
    int argc = (int)(long)stack[0];
    const char *const *argv = stack + 1, *const *envp = argv + argc + 1, *numbers = argv[0];
    long n_paths = next_number(&numbers), uid = next_number(&numbers), gid = next_number(&numbers);
    struct raw_sigaction action = {on_child, RESTORER, return_from_signal, RAW_ALL_SIGNALS};
    raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    raw(RAW_close_range, REAPER_STATUS_FD, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    raw(__NR_rt_sigaction, SIGCHLD, &action, 0, RAW_SIGSET_SIZE);
    long command = start((int)n_paths, uid, gid, argv + 1, envp);
    if (uid >= 0) /* a change of ids in shared memory set it to fs.suid_dumpable */
        raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    reap(command);
    __builtin_unreachable();
}
