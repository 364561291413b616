/* SPDX-License-Identifier: Apache-2.0
 *
 * The processes of a pid namespace, as a procfs lists them, and how much CPU time they have used.
 *
 * RLIMIT_CPU counts whole seconds. For a limit with a fraction the reaper looks every 10 ms at the
 * CPU clock of each process of its run (clock_gettime(2)).
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define LOOK_NS 10000000

int proc;
int64_t most_cpu_time;
static long directory; /* the list of a reaper that watches */
static int64_t next_look;

int64_t now(void) {
    int64_t time[2];
    raw(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, time);
    return time[0] * 1000000000 + time[1];
}

/* In a user namespace the kernel makes no procfs if an uncovered one is not mounted (EPERM). Then
 * the one of the root is used, if it shows this process as pid 1; ENOENT: it does not. */
void open_proc(void) {
    static const char *const none[] = {NULL};
    char self[2] = {0};
    long error = sbx_new_filesystem("proc", none, 0);
    proc = (int)error;
    if (proc < 0)
        proc = (int)raw(__NR_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (raw(__NR_readlinkat, proc, "self", self, 2) == 1 && self[0] == '1')
        return;
    close_fd(proc);
    proc = error < 0 && error != -EPERM ? (int)error : -ENOENT;
}

/* The text of /proc/PID/stat is "PID (NAME) STATE PPID ...", and NAME may have any character. If a
 * command left the reaper no descriptor (prlimit(2)), the session ends, as if it had killed it. */
int parent_of(int pid) {
    char text[256], name[24], *path = name + sizeof name - 6;
    memcpy(path, "/stat", 6);
    for (; pid > 0; pid /= 10)
        *--path = (char)('0' + pid % 10);
    long fd = raw(__NR_openat, proc, path, O_RDONLY | O_CLOEXEC);
    long n = raw(__NR_read, fd, text, sizeof text - 1);
    close_fd(fd);
    if (fd == -EMFILE)
        exit_reaper();
    if (fd < 0 || n <= 0)
        return 0;
    text[n] = 0;
    while (n > 0 && text[n] != ')')
        n--;
    int parent = 0;
    for (char *at = text + n + 4; n > 0 && *at >= '0' && *at <= '9'; at++)
        parent = parent * 10 + *at - '0';
    return parent;
}

int next_process(struct listing *l) {
    for (;;) {
        if (l->at >= l->size) {
            l->at = l->size = 0;
            if (l->blocks-- <= 0)
                return 0;
            l->size = raw(__NR_getdents64, l->directory, l->entries, sizeof l->entries);
            if (l->size <= 0)
                return 0;
        }
        const char *entry = l->entries + l->at, *digit = entry + 19;
        int pid = 0;
        while (*digit >= '0' && *digit <= '9' && pid < MOST_PIDS)
            pid = pid * 10 + *digit++ - '0';
        l->at += *(const uint16_t *)(entry + 16); /* d_reclen */
        if (!*digit && pid > 0 && pid < MOST_PIDS)
            return pid;
    }
}

long watch_cpu_time(int64_t most) {
    if (!IN_SESSION)
        open_proc();
    directory = proc;
    if (proc >= 0) /* not the one of pid 1, as all its copies would share the place in the list */
        directory = raw(__NR_openat, proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    most_cpu_time = most;
    return directory;
}

/* In a session the list has the processes of other commands as well. */
static int is_of_run(int pid) {
    int self = (int)raw(__NR_getpid, 0);
    if (pid == self)
        return 0;
    if (!IN_SESSION)
        return 1;
    while (pid > 1 && pid != self)
        pid = parent_of(pid);
    return pid == self;
}

int is_over_cpu_time(void) {
    struct listing l;
    int pid;
    int64_t time[2];
    if (now() < next_look)
        return 0;
    next_look = now() + LOOK_NS;
    l.directory = directory;
    l.blocks = 512;
    l.at = l.size = 0;
    raw(__NR_lseek, directory, 0, SEEK_SET);
    while ((pid = next_process(&l)) != 0) {
        long clock = ~(long)pid << 3 | 2; /* the CPU time of all threads of a process */
        if (raw(__NR_clock_gettime, clock, time) == 0
            && time[0] * 1000000000 + time[1] >= most_cpu_time && is_of_run(pid))
            return 1;
    }
    return 0;
}
