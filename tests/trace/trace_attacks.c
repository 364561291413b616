/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands that do not want their paths told, or want whoever looks to come to harm, for
 * test_trace_attacks.py: the first argument chooses one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static char *page_end(const char *text, size_t size) {
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + 4096, 4096);
    return memcpy(pages + 4096 - size, text, size);
}

static long open_at(const char *path) { return syscall(SYS_openat, AT_FDCWD, path, O_RDONLY); }

/* Every pointer that is wrong, and every length: only /etc/end is a path. */
static void pointers(void) {
    static char longest[8192];
    open_at(NULL);
    open_at((char *)1);
    open_at((char *)-1);
    open_at((char *)0xffff800000000000);
    open_at((char *)0x00007ffffffff000);
    open_at(page_end("/etc/unfinished", 15));
    open_at(page_end("/etc/end", 9));
    open_at("");
    memset(longest, 'a', sizeof longest - 1);
    longest[0] = '/';
    open_at(longest);
    longest[4096] = 0;
    open_at(longest);
    for (int i = 200; i < 4095; i += 200)
        longest[i] = '/';
    longest[4095] = 0;
    open_at(longest);
    syscall(SYS_openat, -5, "relative", O_RDONLY);
    syscall(SYS_openat, 77, "relative", O_RDONLY);
    syscall(SYS_openat, 0, "relative", O_RDONLY);
    syscall(SYS_openat2, AT_FDCWD, "/etc/how", (void *)1, 24);
    syscall(SYS_execve, "/etc/program", (void *)1, (void *)1);
}

/* More names than a trace holds; the first of them is told. */
static void flood(long n) {
    char name[64];
    for (long i = 0; i < n; i++) {
        snprintf(name, sizeof name, "/etc/%ld", i);
        open_at(name);
    }
}

static char flipping[16];

static void *flip(void *unused) {
    for (;;) {
        memcpy(flipping, "/etc/aa", 8);
        memcpy(flipping, "/tmp/bb", 8);
        memset(flipping, 'c', sizeof flipping);
    }
    return unused;
}

/* The memory changes while it is read: the names are some mixture. */
static void changing(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, flip, NULL);
    for (int i = 0; i < 20000; i++)
        open_at(flipping);
}

/* Processes die while a call of theirs is seen, and their numbers go to others. */
static void dying(void) {
    for (int i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                open_at("/etc/dying");
        if (i % 3 == 0)
            usleep(200);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
}

static void on_signal(int signum) { (void)signum; }

/* Signals with a handler that restarts calls interrupt no call. */
static void interrupted(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 100}, {0, 100}};
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 20000; i++)
        if (open_at("/etc/interrupted") != -1 || errno != ENOENT)
            _exit(9);
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
}

static void *exit_all(void *unused) {
    usleep(1000);
    _exit(0);
    return unused;
}

static void *open_for_ever(void *unused) {
    for (;;)
        open_at("/etc/threads");
    return unused;
}

static void threads(void) {
    pthread_t thread;
    for (int i = 0; i < 30; i++)
        pthread_create(&thread, NULL, i ? open_for_ever : exit_all, NULL);
    pause();
}

/* A FIFO, a device and a socket: nobody may open them to look. */
static void odd_files(void) {
    struct stat before, after;
    mkfifo("/tmp/fifo", 0600);
    stat("/tmp/fifo", &before);
    open("/tmp/fifo", O_RDONLY | O_NONBLOCK);
    if (open("/tmp/fifo", O_WRONLY | O_NONBLOCK) < 0)
        _exit(8);
    stat("/tmp/fifo", &after);
    if (before.st_atime != after.st_atime)
        _exit(9);
}

static void undumpable(void) {
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    open_at("/etc/undumpable");
}

static void gone(void) {
    mkdir("/tmp/gone", 0700);
    int directory = open("/tmp/gone", O_RDONLY | O_DIRECTORY);
    chdir("/tmp/gone");
    rmdir("/tmp/gone");
    open_at("in-gone");
    syscall(SYS_openat, directory, "in-gone", O_RDONLY);
    mkdir("/tmp/x (deleted)", 0700);
    chdir("/tmp/x (deleted)");
    open_at("in-x");
    chdir("/");
    open_at("/etc/after");
}

/* A file system that never answers, and a process that waits for it. */
static void silent(void) {
    int device = open("/dev/fuse", O_RDWR);
    char options[64];
    mkdir("/tmp/silent", 0700);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
    if (device < 0 || mount("silent", "/tmp/silent", "fuse", 0, options) < 0)
        _exit(7);
    if (fork() == 0) {
        open_at("/tmp/silent/a/b");
        _exit(0);
    }
    usleep(100000);
    open_at("/etc/beside");
    write(1, "ok\n", 3);
    pause();
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    static const struct {
        const char *name;
        void (*act)(void);
    } all[] = {{"pointers", pointers},       {"changing", changing},     {"dying", dying},
               {"threads", threads},         {"odd_files", odd_files},   {"gone", gone},
               {"interrupted", interrupted}, {"undumpable", undumpable}, {"silent", silent}};
    if (strcmp(name, "flood") == 0)
        flood(atol(argv[2]));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, all[i].name) == 0)
            all[i].act();
    return 0;
}
