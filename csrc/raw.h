/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls without libc, and the messages between caller and reaper. The child may not touch
 * libc, because it lives in the caller's memory, and the reaper has none. Every call returns the
 * kernel's own answer: a result, or -errno. errno is never written.
 */
#ifndef SBX_RAW_H
#define SBX_RAW_H

#include <asm/unistd.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

/* One function for each number of arguments: most calls have few, and the other registers are not
 * set. */
#if defined(__x86_64__)
#define RAW_CALL(...)                                                                              \
    long result;                                                                                   \
    __asm__ volatile("syscall" : "=a"(result) : __VA_ARGS__ : "rcx", "r11", "memory");             \
    return result

static inline long raw0(long n) { RAW_CALL("a"(n)); }
static inline long raw1(long n, long a) { RAW_CALL("a"(n), "D"(a)); }
static inline long raw2(long n, long a, long b) { RAW_CALL("a"(n), "D"(a), "S"(b)); }
static inline long raw3(long n, long a, long b, long c) {
    RAW_CALL("a"(n), "D"(a), "S"(b), "d"(c));
}
static inline long raw4(long n, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    RAW_CALL("a"(n), "D"(a), "S"(b), "d"(c), "r"(r10));
}
static inline long raw5(long n, long a, long b, long c, long d, long e) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    RAW_CALL("a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8));
}
static inline long raw6(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    RAW_CALL("a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9));
}
#elif defined(__aarch64__)
#define RAW_CALL(...)                                                                              \
    __asm__ volatile("svc 0" : "+r"(x0) : __VA_ARGS__ : "memory", "cc");                           \
    return x0
#define RAW_SET(name, value) register long name __asm__(#name) = value

static inline long raw1(long n, long a) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_CALL("r"(x8));
}
#define raw0(n) raw1(n, 0)
static inline long raw2(long n, long a, long b) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_SET(x1, b);
    RAW_CALL("r"(x8), "r"(x1));
}
static inline long raw3(long n, long a, long b, long c) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_SET(x1, b);
    RAW_SET(x2, c);
    RAW_CALL("r"(x8), "r"(x1), "r"(x2));
}
static inline long raw4(long n, long a, long b, long c, long d) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_SET(x1, b);
    RAW_SET(x2, c);
    RAW_SET(x3, d);
    RAW_CALL("r"(x8), "r"(x1), "r"(x2), "r"(x3));
}
static inline long raw5(long n, long a, long b, long c, long d, long e) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_SET(x1, b);
    RAW_SET(x2, c);
    RAW_SET(x3, d);
    RAW_SET(x4, e);
    RAW_CALL("r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4));
}
static inline long raw6(long n, long a, long b, long c, long d, long e, long f) {
    RAW_SET(x8, n);
    RAW_SET(x0, a);
    RAW_SET(x1, b);
    RAW_SET(x2, c);
    RAW_SET(x3, d);
    RAW_SET(x4, e);
    RAW_SET(x5, f);
    RAW_CALL("r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5));
}
#else
#error "sandboxlib knows x86_64 and aarch64"
#endif

#define RAW_0(n) raw0(n)
#define RAW_1(n, a) raw1(n, (long)(a))
#define RAW_2(n, a, b) raw2(n, (long)(a), (long)(b))
#define RAW_3(n, a, b, c) raw3(n, (long)(a), (long)(b), (long)(c))
#define RAW_4(n, a, b, c, d) raw4(n, (long)(a), (long)(b), (long)(c), (long)(d))
#define RAW_5(n, a, b, c, d, e) raw5(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define RAW_6(n, a, b, c, d, e, f)                                                                 \
    raw6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define RAW_PICK(n, a, b, c, d, e, f, name, ...) name
#define raw(...) RAW_PICK(__VA_ARGS__, RAW_6, RAW_5, RAW_4, RAW_3, RAW_2, RAW_1, RAW_0)(__VA_ARGS__)

/* The kernel headers of old build images lack these calls. From 424 on every architecture has the
 * same numbers. */
enum {
    RAW_pidfd_send_signal = 424,
    RAW_open_tree = 428,
    RAW_move_mount = 429,
    RAW_fsopen = 430,
    RAW_fsconfig = 431,
    RAW_fsmount = 432,
    RAW_fspick = 433,
    RAW_pidfd_open = 434,
    RAW_clone3 = 435,
    RAW_close_range = 436,
    RAW_openat2 = 437,
    RAW_faccessat2 = 439,
    RAW_mount_setattr = 442
};

#define RAW_CLOSE_RANGE_CLOEXEC 4 /* close_range(2) */

/* rt_sigaction(2) takes this struct, which is not libc's. */
struct raw_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};
#define RAW_SIGSET_SIZE 8
#define RAW_ALL_SIGNALS (~(uint64_t)0)

struct raw_mount_attr { /* mount_setattr(2) */
    uint64_t set, clear, propagation, userns_fd;
};

struct raw_open_how { /* openat2(2) */
    uint64_t flags, mode, resolve;
};

struct raw_clone_args { /* clone3(2), Linux 5.7 */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size, cgroup;
};

#define RAW_CLONE_PIDFD 0x1000

/* Clones a child onto a stack of its own, by the system call NUMBER: no function of libc does that.
 * In the child this never returns: it calls ENTRY, and exits with what that returns. */
static inline long clone_by(long number, long a, long b, long c, int (*entry)(void *),
                            void *argument) {
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
                     "2: mov %[exit], %%eax\n\t"
                     "syscall\n\t"
                     "jmp 2b\n\t"
                     "1:"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fn), "r"(arg), [exit] "i"(__NR_exit)
                     : "rcx", "r11", "memory", "cc");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register int (*fn)(void *) __asm__("x19") = entry;
    register void *arg __asm__("x20") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, x20\n\t"
                     "blr x19\n\t"
                     "2: mov x8, %[exit]\n\t"
                     "svc #0\n\t"
                     "b 2b\n\t"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(fn), "r"(arg), [exit] "i"(__NR_exit)
                     : "memory", "cc");
    result = x0;
#endif
    return result;
}

static inline void close_fd(long fd) { raw(__NR_close, fd); }

static inline long clone_onto(struct raw_clone_args *args, int (*entry)(void *), void *argument) {
    return clone_by(RAW_clone3, (long)args, sizeof *args, 0, entry, argument);
}

/* The descriptors of a reaper. A resident also has the files that it reads after each run, as far
 * as the namespaces are its own. */
enum {
    REAPER_STATUS_FD = 3,
    REAPER_LIFELINE_FD = 4,
    REAPER_FDS = 5,
    RESIDENT_TRAFFIC_FD = 5, /* /proc/net/dev */
    RESIDENT_SOCKETS_FD = 6, /* /proc/net/sockstat */
    RESIDENT_LABELS_FD = 7,  /* /proc/net/ip6_flowlabel */
    RESIDENT_MEMORY_FD =
        8, /* /proc/self/coredump_filter, which belongs to the memory, not to the process */
    RESIDENT_OOM_FD = 9, /* /proc/self/oom_score_adj, which all have that share memory */
    RESIDENT_PROJECTS_FD =
        10,             /* /proc/self/projid_map, which anybody in a user namespace may write */
    RESIDENT_READ = 11, /* the first that it does not read */
    RESIDENT_ROUTES_FD = 11, /* the socket that gave lo its address: it counts as used until some
                              * time after it was closed, and would be taken for one of a run */
    RESIDENT_FDS = 12
};

/* SIGUSR1 tells a resident to read a SBX_SIGNAL: while it waits for a run, it cannot poll the
 * socket, because the order comes there as well. It is a standard signal, because RLIMIT_SIGPENDING
 * does not stop these. */
enum { RESIDENT_BELL = 10 };

/* The reaper writes one for each command: how it ended, or why it did not begin. */
struct sbx_record {
    uint32_t magic;
    uint32_t run;
    int32_t step; /* of enum sbx_step */
    int32_t index;
    int32_t error;
    int32_t wait_status;   /* or -errno, if nobody knows it */
    int64_t over_cpu_time; /* as in struct sbx_run */
    int64_t usage[18];
};
#define SBX_RECORD_MAGIC 0x53425831u
#define SBX_READY_MAGIC                                                                            \
    0x53425832u /* a resident asks for the next command; a reaper says that its command began */

/* The kinds of messages that a reaper is sent. */
enum sbx_message {
    SBX_PLACE = 1,  /* the first message: a struct sbx_place follows, and all that it points to */
    SBX_ORDER,      /* a command: the numbers of its descriptors, its cwd and strings follow */
    SBX_SIGNAL,     /* a signal for every process of the run */
    SBX_COMMAND_FDS /* to pid 1 of a session: the descriptors of a command come along: the socket of
                       its reaper, stdio, and those that are passed. The order follows there */
};

enum { SBX_OF_A_COMMAND = 4 }; /* descriptors of SBX_COMMAND_FDS, without those that are passed */

/* Every message begins with this. */
struct sbx_order {
    uint32_t kind; /* of enum sbx_message */
    uint32_t run;  /* the number of the run, from 1 on; the record has it as well */
    uint32_t size; /* of what follows */
    uint32_t cwd_size;
    int32_t cwd_or_root;
    int32_t n_candidates, n_args, n_env, n_passed, terminal, cpu_seconds, announce;
    int32_t traced;  /* 1: the socket of the trace lies after what is passed */
    uint32_t inputs; /* the size of the names of layers that come last */
    int32_t n_inputs;
    uint32_t limits; /* the size of the struct sbx_limits that follows first; 0: there is none */
    int32_t n_fds;   /* of the descriptors that come with it. A resident gets those of its cgroups
                        with the place, those of stdio with an order; others get none */
    int32_t stays;   /* SBX_PLACE: 1 for a resident */
    int32_t signum;  /* SBX_SIGNAL */
    int64_t cpu_ns;  /* as in struct sbx_job */
};

#endif
