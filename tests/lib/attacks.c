/* SPDX-License-Identifier: Apache-2.0
 *
 * What a hostile command tries, for test_attacks.py: a static program that makes each attempt in a
 * child of its own and prints one line for it: "name worked" or "name refused ERRNO-TEXT". An
 * attempt "worked" only if it reached what it was after. The arguments choose attempts by name;
 * without one it makes them all. Two attempts are controls that must work, so that a probe which
 * fails at everything is noticed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Numbers from asm-generic/unistd.h, the same on every architecture from 424 on. */
enum { FSOPEN = 430, OPEN_TREE = 428, IO_URING_SETUP = 425, CLONE3 = 435 };

static long put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return -1;
    long n = write(fd, text, strlen(text));
    int saved = errno;
    close(fd);
    errno = saved;
    return n;
}

static long as_worked(int true_) {
    if (true_)
        return 0;
    errno = ENOENT;
    return -1;
}

/* ---- out of the root ------------------------------------------------------------------------ */

static long by_handle(void) { /* inode 2, the root of the host's file system */
    struct {
        struct file_handle head;
        unsigned char bytes[16];
    } handle = {{8, 1}, {2}};
    return open_by_handle_at(open("/", O_RDONLY), &handle.head, O_RDONLY);
}

static long chroot_twice(void) {
    int out = open("/", O_RDONLY);
    mkdir("/tmp/inner", 0755);
    if (chroot("/tmp/inner") || fchdir(out))
        return -1;
    for (int i = 0; i < 100; i++)
        if (chdir(".."))
            return -1;
    if (chroot("."))
        return -1;
    return as_worked(access("/MARK", F_OK) == 0);
}

static long climb(void) {
    char path[400] = "";
    for (int i = 0; i < 100; i++)
        strcat(path, "../");
    strcat(path, "MARK");
    return access(path, F_OK);
}

static long root_of_others(void) {
    char path[64];
    for (int pid = 1; pid < 400; pid++) {
        snprintf(path, sizeof path, "/proc/%d/root/MARK", pid);
        if (access(path, F_OK) == 0)
            return 0;
        snprintf(path, sizeof path, "/proc/%d/cwd/MARK", pid);
        if (access(path, F_OK) == 0)
            return 0;
    }
    return -1;
}

static long fds_of_pid_1(void) {
    char path[64];
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d", fd);
        if (open(path, O_RDONLY | O_NONBLOCK) >= 0)
            return 0;
    }
    return -1;
}

static long disk(void) {
    mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0));
    int fd = open("/tmp/disk", O_RDONLY);
    if (fd >= 0)
        return 0;
    for (const char *const *name =
             (const char *const[]){"/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mem", "/dev/kmsg",
                                   "/dev/fuse", "/dev/kvm", NULL};
         *name; name++)
        if (open(*name, O_RDONLY | O_NONBLOCK) >= 0)
            return 0;
    return -1;
}

/* ---- through a user namespace --------------------------------------------------------------- */

static long parent_of(long pid) { /* the new process ends here */
    if (pid == 0)
        _exit(0);
    return pid;
}

static long user_namespace(void) {
    if (unshare(CLONE_NEWUSER) == 0)
        return 0;
    return parent_of(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
}

static long user_namespace_clone3(void) {
    uint64_t args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0};
    return parent_of(syscall(CLONE3, args, sizeof args));
}

static long host_cgroups(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP))
        return -1;
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "0 0 1");
    mkdir("/tmp/cg", 0755);
    return mount("x", "/tmp/cg", "cgroup2", 0, 0) && mount("x", "/tmp/cg", "cgroup", 0, "freezer")
               ? -1
               : 0;
}

/* ---- the kernel's larger doors -------------------------------------------------------------- */

static long bpf_program(void) {
    char attributes[128] = {0};
    return syscall(SYS_bpf, 5, attributes, sizeof attributes) >= 0 || errno == EINVAL ? 0 : -1;
}

static long perf(void) {
    uint64_t attr[16] = {0};
    ((uint32_t *)attr)[1] = sizeof attr;
    return syscall(SYS_perf_event_open, attr, 0, -1, -1, 0);
}

static long uring(void) {
    char parameters[120] = {0};
    return syscall(IO_URING_SETUP, 1, parameters);
}

static long key(void) { return syscall(SYS_add_key, "user", "sandboxlib-attack", "x", 1, -4); }

static long key_of_the_user(void) {
    return syscall(SYS_keyctl, 10 /* KEYCTL_SEARCH */, -4, "user", "sandboxlib-host", 0);
}

static long session_to_parent(void) {
    syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, 0);
    return syscall(SYS_keyctl, 18 /* SESSION_TO_PARENT */);
}

static long family(int number) { return socket(number, SOCK_STREAM, 0); }

static long flow_label(void) {
    struct {
        uint8_t destination[16];
        uint32_t label;
        uint8_t action, share;
        uint16_t flags, expires, linger;
        uint32_t pad;
    } request = {.action = 0, .share = 255, .flags = 1, .linger = 60};
    request.destination[15] = 1;
    request.label = 0x01000000;
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : setsockopt(fd, 41, 32 /* IPV6_FLOWLABEL_MGR */, &request, sizeof request);
}

static long push_input(void) {
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    return fd < 0 ? -1 : ioctl(fd, TIOCSTI, "x");
}

static long push_input_high_bits(void) { /* CVE-2019-10063: the kernel takes the low half */
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    return fd < 0 ? -1 : syscall(SYS_ioctl, fd, 0x100000000UL | TIOCSTI, "x");
}

#if defined(__x86_64__)
static long by_int_80(long number, long a, long b) {
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(0L), "S"(0L), "D"(0L)
                     : "memory", "r8", "r9", "r10", "r11");
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
}
static long unshare_i386(void) { return by_int_80(310, CLONE_NEWUSER, 0); }
static long vsock_i386(void) { return by_int_80(359, 40, SOCK_STREAM); }
static long keyctl_i386(void) { return by_int_80(288, 1, 0); }
static long unshare_x32(void) { return syscall(0x40000000 | SYS_unshare, CLONE_NEWUSER); }
#else
static long unshare_i386(void) { return as_worked(0); }
static long vsock_i386(void) { return as_worked(0); }
static long keyctl_i386(void) { return as_worked(0); }
static long unshare_x32(void) { return as_worked(0); }
#endif

/* ---- pid 1 ---------------------------------------------------------------------------------- */

static long affinity(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    return sched_setaffinity(1, sizeof one, &one);
}

static long idle(void) {
    struct sched_param none = {0};
    return sched_setscheduler(1, SCHED_IDLE, &none);
}

static long memory_of_pid_1(void) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return process_vm_readv(1, &here, 1, &there, 1, 0);
}

static long kill_pid_1(void) { /* worked: it is gone, and with it this process */
    for (int signum = 1; signum <= 64; signum++)
        kill(1, signum);
    return as_worked(0);
}

static long capability(void) { /* anything beyond the twelve that the default leaves */
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2] = {{0}};
    const uint64_t allowed = 1 << CAP_CHOWN | 1 << CAP_DAC_OVERRIDE | 1 << CAP_FOWNER
                             | 1 << CAP_FSETID | 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID
                             | 1 << CAP_SETPCAP | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_NET_RAW
                             | 1 << CAP_SYS_CHROOT | (uint64_t)1 << CAP_SETFCAP;
    syscall(SYS_capget, &header, sets);
    uint64_t has = sets[0].permitted | (uint64_t)sets[1].permitted << 32;
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        has |= (uint64_t)prctl(PR_CAPBSET_READ, cap, 0, 0, 0) << cap;
    return as_worked((has & ~allowed) != 0);
}

static long new_privileges(void) { return as_worked(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1); }

static long core_pattern(void) { return put("/proc/sys/kernel/core_pattern", "|/bin/x"); }

static long knobs(void) {
    static const char *const names[] = {
        "/proc/sysrq-trigger",      "/proc/irq/default_smp_affinity",
        "/proc/sys/vm/drop_caches", "/proc/sys/net/core/somaxconn",
        "/proc/scsi/scsi",          "/proc/acpi/wakeup",
        "/proc/latency_stats",      "/proc/dynamic_debug/control"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (open(names[i], O_WRONLY) >= 0)
            return 0;
    return -1;
}

/* ---- controls: these work ------------------------------------------------------------------- */

static long trace_a_child(void) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (!WIFSTOPPED(status))
        return as_worked(0);
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    return 0;
}

static long linux32(void) { return personality(PER_LINUX32 | ADDR_NO_RANDOMIZE); }

#define CALL(name, call)                                                                           \
    static long try_##name(void) { return call; }
CALL(mount, mount("x", "/tmp", "tmpfs", 0, 0))
CALL(bind, mount("/", "/tmp", 0, MS_BIND, 0))
CALL(remount, mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0))
CALL(umount, umount2("/proc", MNT_DETACH))
CALL(pivot_root, syscall(SYS_pivot_root, "/tmp", "/tmp"))
CALL(fsopen, syscall(FSOPEN, "tmpfs", 0))
CALL(open_tree, syscall(OPEN_TREE, AT_FDCWD, "/", 1))
CALL(unshare, unshare(CLONE_NEWNS))
CALL(setns, setns(open("/proc/1/ns/mnt", O_RDONLY), 0))
CALL(ptrace, ptrace(PTRACE_SEIZE, 1, 0, 0))
CALL(mem, open("/proc/1/mem", O_RDWR))
CALL(exe, open("/proc/1/exe", O_RDONLY))
CALL(environ, open("/proc/1/environ", O_RDONLY))
CALL(reboot, syscall(SYS_reboot, 0, 0, 0, 0))
CALL(module, syscall(SYS_init_module, "", 0, ""))
CALL(hostname, sethostname("x", 1))
CALL(nice, setpriority(PRIO_PROCESS, 0, -5))
CALL(renice, setpriority(PRIO_PROCESS, 1, 19))
CALL(userfault, syscall(SYS_userfaultfd, 1))
CALL(fanotify, syscall(SYS_fanotify_init, 0, 0))
CALL(compare, syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0))
CALL(executable_data, personality(READ_IMPLIES_EXEC))
CALL(vsock, family(40))
CALL(alg, family(38))
CALL(bluetooth, family(31))
CALL(netlink_nft, family(AF_UNSPEC))

static const struct {
    const char *name;
    long (*attempt)(void);
} attempts[] = {
    {"control_trace", trace_a_child},
    {"control_linux32", linux32},
    {"by_handle", by_handle},
    {"chroot_twice", chroot_twice},
    {"climb", climb},
    {"root_of_others", root_of_others},
    {"fds_of_pid_1", fds_of_pid_1},
    {"disk", disk},
    {"user_namespace", user_namespace},
    {"user_namespace_clone3", user_namespace_clone3},
    {"host_cgroups", host_cgroups},
    {"bpf", bpf_program},
    {"perf", perf},
    {"io_uring", uring},
    {"add_key", key},
    {"key_of_the_user", key_of_the_user},
    {"session_to_parent", session_to_parent},
    {"flow_label", flow_label},
    {"tiocsti", push_input},
    {"tiocsti_high_bits", push_input_high_bits},
    {"unshare_i386", unshare_i386},
    {"vsock_i386", vsock_i386},
    {"keyctl_i386", keyctl_i386},
    {"unshare_x32", unshare_x32},
    {"affinity_of_pid_1", affinity},
    {"idle_pid_1", idle},
    {"memory_of_pid_1", memory_of_pid_1},
    {"capability", capability},
    {"new_privileges", new_privileges},
    {"core_pattern", core_pattern},
    {"knobs", knobs},
    {"mount", try_mount},
    {"bind", try_bind},
    {"remount", try_remount},
    {"umount", try_umount},
    {"pivot_root", try_pivot_root},
    {"fsopen", try_fsopen},
    {"open_tree", try_open_tree},
    {"unshare", try_unshare},
    {"setns", try_setns},
    {"ptrace", try_ptrace},
    {"mem", try_mem},
    {"exe", try_exe},
    {"environ", try_environ},
    {"reboot", try_reboot},
    {"module", try_module},
    {"hostname", try_hostname},
    {"nice", try_nice},
    {"renice_pid_1", try_renice},
    {"userfaultfd", try_userfault},
    {"fanotify", try_fanotify},
    {"kcmp", try_compare},
    {"read_implies_exec", try_executable_data},
    {"vsock", try_vsock},
    {"alg", try_alg},
    {"bluetooth", try_bluetooth},
    {"family_0", try_netlink_nft},
    {"kill_pid_1", kill_pid_1}, /* last: where it works, nothing comes after it */
};

/* A child of its own, so that one attempt leaves nothing to the next, and at most two seconds. */
static void make(const char *name, long (*attempt)(void)) {
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(2);
        errno = 0;
        long result = attempt();
        if (result >= 0)
            printf("%s worked\n", name);
        else
            printf("%s refused %s\n", name, strerror(errno));
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status))
        printf("%s refused by signal %d\n", name, WTERMSIG(status));
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        int wanted = argc < 2;
        for (int j = 1; j < argc; j++)
            wanted |= strcmp(argv[j], attempts[i].name) == 0;
        if (wanted)
            make(attempts[i].name, attempts[i].attempt);
    }
    printf("end\n");
    return 0;
}
