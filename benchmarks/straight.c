/* SPDX-License-Identifier: Apache-2.0
 *
 * The C loop that knows nothing of sandboxlib: one run, written down straight for the two columns
 * of run.py, with no table of steps, no struct of words and no line of csrc/. It makes the same
 * system calls in the same order as the library's core (`run.py --syscalls` compares the counts),
 * so what the library takes beyond it is the library: Python, generality, the words for errors.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK_SIZE 65536
#define CAPTURE_SIZE 65536
/* By value, as headers may be older than the kernel: clone3(2), waitid(2), pidfd_send_signal(2),
 * close_range(2), open_tree(2), move_mount(2), fsconfig(2), fsmount(2), openat2(2), statx(2). */
#define CLEAR_SIGHAND 0x100000000ULL
#define NEW_PIDFD 0x1000
#define BY_PIDFD 3
#define TO_GROUP 4
#define RANGE_CLOEXEC 4
#define TREE_CLONE 1
#define EMPTY_PATH 0x1000
#define RECURSIVE 0x8000
#define FROM_EMPTY 0x04
#define TO_EMPTY 0x40
#define SET_STRING 1
#define CREATE 6
#define READ_ONLY 1
#define NOSUID 2
#define NODEV 4
#define NOEXEC 8
#define INSIDE 0x12 /* RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS */
#define WANT_MODE 2

/* chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot
 * setfcap: the default of the library */
#define KEEP                                                                                       \
    (1ULL << 0 | 1ULL << 1 | 1ULL << 3 | 1ULL << 4 | 1ULL << 5 | 1ULL << 6 | 1ULL << 7 | 1ULL << 8 \
     | 1ULL << 10 | 1ULL << 13 | 1ULL << 18 | 1ULL << 31)

#define TRY(call)                                                                                  \
    do                                                                                             \
        if ((long)(call) < 0)                                                                      \
            return __LINE__ % 100 + 1; /* the status of the child: not 0 */                        \
    while (0)

struct run {
    const char *root, *program;
    int full;
    int out, err, lifeline; /* the child's ends */
};

/* A signal set and a struct sigaction as the kernel has them. */
typedef uint64_t set;
struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    set mask;
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* ---- the child, in the caller's memory: nothing of libc but thin wrappers ---------------------
 */

static int mount_one(int tree, const char *type, const char *mode, int attributes,
                     const char *target, int *made) {
    struct {
        uint64_t flags, mode, resolve;
    } how = {O_PATH | O_CLOEXEC, 0, INSIDE};
    uint32_t there[64];
    int context, at;
    TRY(context = (int)syscall(SYS_fsopen, type, 1));
    if (mode)
        TRY(syscall(SYS_fsconfig, context, SET_STRING, "mode", mode, 0));
    TRY(syscall(SYS_fsconfig, context, CREATE, 0, 0, 0));
    TRY(*made = (int)syscall(SYS_fsmount, context, 1, attributes));
    close(context);
    TRY(at = (int)syscall(SYS_openat2, tree, target, &how, sizeof how));
    TRY(syscall(SYS_statx, at, "", EMPTY_PATH, WANT_MODE, there));
    TRY(syscall(SYS_move_mount, *made, "", at, "", FROM_EMPTY | TO_EMPTY));
    close(at);
    return 0;
}

static int mount_all(int tree) {
    static const char *const covers[] = {"sys", "sysrq-trigger", "irq", "bus", "fs"};
    uint64_t attr[4] = {READ_ONLY, 0, 0, 0};
    int made, error;
    if ((error = mount_one(tree, "proc", NULL, NOSUID | NODEV | NOEXEC, "/proc", &made)))
        return error;
    TRY(fchdir(made));
    for (int i = 0; i < 5; i++) {
        if (mount(covers[i], covers[i], NULL, MS_BIND, NULL) < 0 && errno == ENOENT)
            continue;
        TRY(syscall(SYS_mount_setattr, made, covers[i], 0, attr, sizeof attr));
    }
    close(made);
    if ((error = mount_one(tree, "tmpfs", "1777", NOSUID | NODEV, "/tmp", &made)))
        return error;
    close(made);
    return 0;
}

/* lo up, then the new root with its mounts, and the old one gone. */
static int enter(const struct run *run) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd, tree, error;
    TRY(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0));
    TRY(fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    TRY(ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
    TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    TRY(fd = open(run->root, O_PATH | O_DIRECTORY | O_CLOEXEC));
    TRY(tree =
            (int)syscall(SYS_open_tree, fd, "", O_CLOEXEC | EMPTY_PATH | RECURSIVE | TREE_CLONE));
    TRY(syscall(SYS_move_mount, tree, "", AT_FDCWD, "/", FROM_EMPTY));
    if ((error = mount_all(tree)))
        return error;
    TRY(fchdir(tree));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    return 0;
}

static int cut_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    TRY(syscall(SYS_capget, &header, sets));
    for (int cap = 0; cap < 64; cap++)
        if (!(KEEP >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            break;
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    for (int i = 0; i < 2; i++) {
        sets[i].effective = sets[i].permitted &= (uint32_t)(KEEP >> 32 * i);
        sets[i].inheritable = 0;
    }
    TRY(syscall(SYS_capset, &header, sets));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    return 0;
}

static int child(void *argument) {
    const struct run *run = argument;
    char *argv[] = {(char *)run->program, NULL};
    char *envp[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    struct pollfd caller = {run->lifeline, POLLIN, 0};
    struct timespec at_once = {0, 0};
    struct action dfl = {0};
    set none = 0, all = ~(set)0;
    int fd, error;
    TRY(fd = open("/dev/null", O_RDWR | O_CLOEXEC));
    TRY(dup3(fd, 0, 0));
    TRY(dup3(run->out, 1, 0));
    TRY(dup3(run->err, 2, 0));
    TRY(setsid());
    if (run->full) {
        if ((error = enter(run)) || (error = cut_capabilities()))
            return error;
    } else {
        TRY(chdir(run->root));
        TRY(chroot("."));
    }
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
    TRY(syscall(SYS_ppoll, &caller, 1, &at_once, 0, 0));
    for (int signum = 1; signum <= 64; signum++)
        syscall(SYS_rt_sigaction, signum, &dfl, 0, sizeof none);
    syscall(SYS_rt_sigtimedwait, &all, 0, &at_once, sizeof all);
    TRY(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none));
    TRY(syscall(SYS_close_range, 3, ~0U, RANGE_CLOEXEC));
    TRY(execve(run->program, argv, envp));
    return 0;
}

/* ---- the caller ------------------------------------------------------------------------------ */

/* clone3 onto a stack of the child's own, so that the compiler's frames stay the caller's. */
static long clone_onto(uint64_t args[8], void *argument) {
    long result;
#if defined(__x86_64__)
    register int (*fn)(void *) __asm__("r12") = child;
    register void *arg __asm__("r13") = argument;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\tcall *%%r12\n\tmov %%eax, %%edi\n\tmov %[exit], %%eax\n\t"
                     "syscall\n\t1:"
                     : "=a"(result)
                     : "a"((long)SYS_clone3), "D"(args), "S"(64L), "r"(fn),
                       "r"(arg), [exit] "i"(SYS_exit)
                     : "rcx", "r11", "memory", "cc");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = 64;
    register int (*fn)(void *) __asm__("x19") = child;
    register void *arg __asm__("x20") = argument;
    __asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x29, #0\n\tmov x0, x20\n\tblr x19\n\t"
                     "mov x8, %[exit]\n\tsvc #0\n\t1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(fn), "r"(arg), [exit] "i"(SYS_exit)
                     : "memory", "cc");
    result = x0;
#endif
    return result;
}

static int start(struct run *run, int out[2], int err[2]) {
    static _Thread_local char stack[STACK_SIZE] __attribute__((aligned(16)));
    int pidfd = -1;
    set all = ~(set)0, before;
    uint64_t flags = CLONE_VM | CLONE_VFORK | NEW_PIDFD | CLEAR_SIGHAND;
    if (run->full)
        flags |= CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET
                 | CLONE_NEWCGROUP;
    uint64_t args[8] = {flags, (uintptr_t)&pidfd, 0, 0, 0, (uintptr_t)stack, STACK_SIZE, 0};
    syscall(SYS_geteuid); /* the library asks: what may run where depends on it */
    long self = syscall(SYS_getpid);
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        return -1;
    run->out = out[1];
    run->err = err[1];
    run->lifeline = (int)syscall(SYS_pidfd_open, self, 0);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    long pid = clone_onto(args, run);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, sizeof before);
    close(out[1]);
    close(err[1]);
    close(run->lifeline);
    return pid < 0 ? -1 : pidfd;
}

static int finish(const struct run *run, int pidfd, int out, int err) {
    static _Thread_local char kept[2][CAPTURE_SIZE];
    struct pollfd fds[] = {{pidfd, POLLIN, 0}, {out, POLLIN, 0}, {err, POLLIN, 0}};
    size_t length[2] = {0, 0};
    siginfo_t info = {0};
    int left;
    while (!fds[0].revents) {
        struct timespec wait = {0, 100000000};
        if (syscall(SYS_ppoll, fds, 3, &wait, 0, 0) <= 0)
            continue;
        for (int i = 1; i < 3; i++)
            if (fds[i].revents & POLLIN) {
                long n = read(fds[i].fd, kept[i - 1] + length[i - 1], CAPTURE_SIZE - length[i - 1]);
                length[i - 1] += n > 0 ? (size_t)n : 0;
            } else if (fds[i].revents) {
                close(fds[i].fd);
                fds[i].fd = -1;
            }
    }
    if (!run->full)
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, TO_GROUP);
    if (syscall(SYS_waitid, BY_PIDFD, pidfd, &info, WEXITED | __WALL, 0) != 0)
        return -1;
    for (int i = 1; i < 3; i++)
        if (fds[i].fd >= 0)
            ioctl(fds[i].fd, FIONREAD, &left);
    for (int i = 0; i < 3; i++)
        if (fds[i].fd >= 0)
            close(fds[i].fd);
    return info.si_code == CLD_EXITED && length[0] == 3 ? info.si_status : -1;
}

/* One run: nanoseconds, or minus what was wrong. */
int64_t straight(const char *root, const char *program, int full) {
    struct run run = {root, program, full, -1, -1, -1};
    int out[2], err[2];
    int64_t begin = now_ns();
    int pidfd = start(&run, out, err);
    int status = pidfd < 0 ? -1 : finish(&run, pidfd, out[0], err[0]);
    int64_t spent = now_ns() - begin;
    return status == 0 ? spent : -1 - (int64_t)(status > 0 ? status : 0);
}

/* Runs until the time is over: how many, or minus what was wrong. For several threads at once. */
int64_t straight_for(const char *root, const char *program, int full, int64_t duration_ns) {
    int64_t count = 0, end = now_ns() + duration_ns;
    while (now_ns() < end) {
        int64_t spent = straight(root, program, full);
        if (spent < 0)
            return spent;
        count++;
    }
    return count;
}
