/* SPDX-License-Identifier: Apache-2.0
 *
 * A stand-in for linux-user-chroot, for the tests of sandboxlib and for nothing else.
 *
 * It speaks the command line of the program of that name as it is documented: same parsing, order
 * of work, exit statuses, messages. It is not that program, and was written from a description of
 * its behaviour without reading its source. Do not install it. The test session does, set-user-ID
 * root, inside a mount namespace of its own, which nobody else can reach.
 *
 * It behaves as release 2015.1. -DVERSION_2013 makes it 2013.1: 49 options, no --mount-devapi, no
 * --seccomp-profile-version, no no_new_privs, and no capabilities for a caller that is root.
 * -DFILE_BINDS makes it the fork that binds files as well as directories, and that leaks a
 * descriptor for each. It knowingly differs in three things:
 *   - Making / nosuid is done to the mount of the new namespace. The real one leaves out MS_BIND,
 *     and so reconfigures the filesystem that the whole machine has as its root.
 *   - --seccomp-profile-version 0 installs no filter.
 *   - The texts of --version and --help, and which of the complaints about missing words comes
 *     when, are not documented: the ones here are made up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef VERSION_2013
enum { MAX_OPTIONS = 50 };
#define VERSION "2013.1"
#else
enum { MAX_OPTIONS = 1024 };
#define VERSION "2015.1"
#endif

#define USAGE "usage: linux-user-chroot OPTION* ROOTDIR PROGRAM [ARG...]\n"

enum kind { BIND, READ_ONLY, PROC, DEVAPI };

static struct {
    enum kind kind;
    const char *source, *target;
} mounts[MAX_OPTIONS];
static int n_mounts;
static int namespaces = CLONE_NEWNS;
static const char *directory = "/";
static const char *root;
static uid_t caller;
static gid_t caller_group;

/* A message without the program's name before it; status 1. */
static void fatal(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void fatal(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(1);
}

static void fatal_errno(const char *what) __attribute__((noreturn));
static void fatal_errno(const char *what) { fatal("%s: %s", what, strerror(errno)); }

/* ---- the command line -------------------------------------------------------------------- */

static void add(enum kind kind, const char *source, const char *target) {
    mounts[n_mounts].kind = kind;
    mounts[n_mounts].source = source;
    mounts[n_mounts++].target = target;
}

static void show(const char *text) __attribute__((noreturn));
static void show(const char *text) {
    fputs(text, stdout);
    exit(fflush(stdout) != 0);
}

/* Options that were not there in 2013: the number of words taken, 0: not one of them. */
static int parse_later_option(char **word, int left) {
#ifndef VERSION_2013
    if (strcmp(word[0], "--mount-devapi") == 0 && left > 1) {
        add(DEVAPI, NULL, word[1]);
        return 2;
    }
    if (strcmp(word[0], "--seccomp-profile-version") == 0 && left > 1) {
        if (strcmp(word[1], "-1") != 0 && strcmp(word[1], "0") != 0)
            fatal("Unknown --seccomp-profile-version");
        return 2;
    }
#endif
    (void)word;
    (void)left;
    return 0;
}

/* The number of words that the option takes, itself included; 0: this is no option. What a value
 * looks like does not matter. */
static int parse_option(char **word, int left) {
    static const struct {
        const char *name;
        int flag;
    } unshare[] = {{"--unshare-ipc", CLONE_NEWIPC | CLONE_NEWUTS},
                   {"--unshare-pid", CLONE_NEWPID},
                   {"--unshare-net", CLONE_NEWNET}};
    for (size_t i = 0; i < sizeof unshare / sizeof *unshare; i++) {
        if (strcmp(word[0], unshare[i].name) == 0) {
            namespaces |= unshare[i].flag;
            return 1;
        }
    }
    if (strcmp(word[0], "--help") == 0)
        show(USAGE);
    if (strcmp(word[0], "--version") == 0)
        show("linux-user-chroot " VERSION "\n");
    if (strcmp(word[0], "--mount-bind") == 0 && left > 2) {
        add(BIND, word[1], word[2]);
        return 3;
    }
    if (strcmp(word[0], "--mount-readonly") == 0 && left > 1) {
        add(READ_ONLY, NULL, word[1]);
        return 2;
    }
    if (strcmp(word[0], "--mount-proc") == 0 && left > 1) {
        add(PROC, NULL, word[1]);
        return 2;
    }
    if (strcmp(word[0], "--chdir") == 0 && left > 1) {
        directory = word[1];
        return 2;
    }
    return parse_later_option(word, left);
}

/* The first word that is no option is the root; what follows it, the program's. */
static char **parse(int argc, char **argv) {
    int at = 1;
    for (int count = 0; at < argc; count++) {
        if (count >= MAX_OPTIONS)
            fatal("Too many mounts (maximum of %d)", MAX_OPTIONS);
        int taken = parse_option(argv + at, argc - at);
        if (taken == 0)
            break;
        at += taken;
    }
    if (at >= argc)
        fatal("ROOTDIR argument must be specified");
    root = argv[at++];
    if (at >= argc) {
        fputs(USAGE, stderr);
        exit(1);
    }
    return argv + at;
}

/* ---- mounts ------------------------------------------------------------------------------ */

/* What the caller may not open is not bound: the kernel asks for the fsuid. */
static void enter_as_caller(const char *path, const char *complaint) {
    uid_t before = (uid_t)setfsuid(caller);
    int result = chdir(path);
    int error = errno;
    setfsuid(before);
    errno = error;
    if (result < 0 && complaint)
        fatal("%s", complaint);
    if (result < 0)
        fatal_errno("chdir");
}

#ifdef FILE_BINDS
static const char *open_source(const char *source) {
    static char link[64];
    struct stat status;
    uid_t before = (uid_t)setfsuid(caller);
    int fd = open(source, O_RDONLY | O_NONBLOCK);
    setfsuid(before);
    if (fd < 0)
        fatal("Couldn't open bind mount source");
    if (fstat(fd, &status) < 0)
        fatal("Couldn't fstat bind mount source");
    if (S_ISDIR(status.st_mode)) {
        enter_as_caller(source, "Couldn't chdir to bind mount source");
        return ".";
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return link;
}
#else
static const char *open_source(const char *source) {
    enter_as_caller(source, "Couldn't chdir to bind mount source");
    return ".";
}
#endif

static void make_node(const char *dev, const char *name, int major, int minor) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", dev, name);
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) < 0 || chmod(path, 0666) < 0)
        fatal_errno("setting up devapi");
}

static void make_link(const char *dev, const char *name, const char *leads_to) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", dev, name);
    if (symlink(leads_to, path) < 0)
        fatal_errno("setting up devapi");
}

static void mount_devapi(const char *dev) {
    if (mount("tmpfs", dev, "tmpfs", MS_NOEXEC | MS_NOSUID, "mode=0755") < 0)
        fatal_errno("setting up devapi");
    make_node(dev, "null", 1, 3);
    make_node(dev, "zero", 1, 5);
    make_node(dev, "full", 1, 7);
    make_node(dev, "random", 1, 8);
    make_node(dev, "urandom", 1, 9);
    make_node(dev, "tty", 5, 0);
    make_link(dev, "stdin", "/proc/self/fd/0");
    make_link(dev, "stdout", "/proc/self/fd/1");
    make_link(dev, "stderr", "/proc/self/fd/2");
}

/* The place is the root and the target, one after the other: no slash is put between. */
static void do_mount(int index) {
    char *place;
    if (asprintf(&place, "%s%s", root, mounts[index].target) < 0)
        fatal_errno("asprintf");
    switch (mounts[index].kind) {
    case BIND:
        if (mount(open_source(mounts[index].source), place, NULL, MS_BIND, NULL) < 0)
            fatal_errno("mount (MS_BIND)");
        break;
    case READ_ONLY:
        if (mount(place, place, NULL, MS_BIND, NULL) < 0)
            fatal_errno("mount (MS_BIND)");
        if (mount("none", place, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
            fatal_errno("mount (MS_BIND | MS_RDONLY)");
        break;
    case PROC:
        if (mount("proc", place, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
            fatal_errno("mount (\"proc\")");
        break;
    case DEVAPI:
        mount_devapi(place);
        break;
    }
    free(place);
}

/* ---- the child --------------------------------------------------------------------------- */

static void limit_privilege(void) {
#ifdef VERSION_2013
    /* 2013.1 asks for no_new_privs in a way that has no effect. */
    if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0) < 0)
        fatal_errno("prctl (PR_SET_SECUREBITS)");
#else
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fatal_errno("prctl (PR_SET_NO_NEW_PRIVS)");
#endif
}

static void become_caller(void) {
    if (setgid(caller_group) < 0)
        fatal_errno("setgid");
    if (setuid(caller) < 0)
        fatal_errno("setuid");
}

static void enter_root(void) {
    enter_as_caller(root, NULL);
    if (mount(".", ".", NULL, MS_BIND, NULL) < 0)
        fatal_errno("mount (MS_BIND)");
    if (strcmp(root, "/") == 0)
        return;
    if (mount(root, "/", NULL, MS_MOVE, NULL) < 0)
        fatal_errno("mount (MS_MOVE)");
    if (chroot(".") < 0)
        fatal_errno("chroot");
}

static void child(char **program) __attribute__((noreturn));
static void child(char **program) {
    limit_privilege();
    if (mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) < 0)
        fatal_errno("mount (/, MS_PRIVATE | MS_REC)");
    if (mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_NOSUID, NULL) < 0)
        fatal_errno("mount (/, MS_REMOUNT | MS_NOSUID)");
    for (int i = 0; i < n_mounts; i++)
        do_mount(i);
    enter_root();
    become_caller();
    if (chdir(directory) < 0)
        fatal_errno("chdir");
    execvp(program[0], program);
    fatal_errno("execv");
}

int main(int argc, char **argv) {
    int status;
    caller = getuid();
    caller_group = getgid() == 0 ? (gid_t)caller : getgid();
    char **program = parse(argc, argv);
    long pid = syscall(SYS_clone, SIGCHLD | namespaces, 0, 0, 0, 0);
    if (pid < 0)
        fatal_errno("clone");
    if (pid == 0)
        child(program);
    become_caller();
    while (waitpid((pid_t)pid, &status, 0) < 0)
        if (errno != EINTR)
            fatal_errno("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
