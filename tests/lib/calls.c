// SPDX-License-Identifier: Apache-2.0
// Makes system calls by number, and prints what each returns: a number, or -errno.
//
//     calls WAY:NUMBER,ARGUMENT,... ...
//
// WAY: n (as this machine does), i (of i386, by int 0x80: 32-bit arguments), t (a call that was
// another one until a tracer changed it), s (as n, below a filter of its own that allows all).

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static long normal(const unsigned long *a) {
    long result = syscall((long)a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    return result < 0 ? -errno : result;
}

#ifdef __x86_64__
static long of_i386(const unsigned long *a) {
    int result = (int)a[0];
    __asm__ volatile("int $0x80"
                     : "+a"(result)
                     : "b"(a[1]), "c"(a[2]), "d"(a[3]), "S"(a[4]), "D"(a[5])
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}

static void to_the_next_stop(pid_t pid) {
    int status;
    ptrace(PTRACE_SYSCALL, pid, 0, 0);
    waitpid(pid, &status, 0);
}

static long traced(const unsigned long *a) {
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        syscall(SYS_getppid);
        _exit(0);
    }
    struct user_regs_struct registers;
    waitpid(pid, NULL, 0);
    do {
        to_the_next_stop(pid);
        if (ptrace(PTRACE_GETREGS, pid, 0, &registers) != 0)
            return -errno;
    } while (registers.orig_rax != SYS_getppid);
    registers.orig_rax = a[0];
    registers.rdi = a[1];
    registers.rsi = a[2];
    registers.rdx = a[3];
    ptrace(PTRACE_SETREGS, pid, 0, &registers);
    to_the_next_stop(pid);
    ptrace(PTRACE_GETREGS, pid, 0, &registers);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return (long)registers.rax;
}
#else
static long of_i386(const unsigned long *a) { return a[0] ? -ENOSYS : 0; }

static long traced(const unsigned long *a) { return a[0] ? -ENOSYS : 0; }
#endif

static long below_another(const unsigned long *a) {
    struct sock_filter all = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    struct sock_fprog program = {1, &all};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
        return -errno;
    return normal(a);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        unsigned long a[7] = {0};
        char *rest = argv[i] + 2;
        for (int n = 0; n < 7 && *rest; n++)
            a[n] = strtoul(rest, &rest, 0), rest += *rest == ',';
        long result = 0;
        switch (argv[i][0]) {
        case 'i':
            result = of_i386(a);
            break;
        case 't':
            result = traced(a);
            break;
        case 's':
            result = below_another(a);
            break;
        default:
            result = normal(a);
        }
        printf("%ld\n", result);
        fflush(stdout);
    }
    return 0;
}
