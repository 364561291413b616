/* SPDX-License-Identifier: Apache-2.0
 *
 * Look-ups in the root of a traced run, which never wait for the run.
 *
 * A process of the run may answer for a file system (FUSE). If it is itself seen, it waits for the
 * tracer when it opens a file, while the tracer waits for it. So where there may be such file
 * systems, the tracer takes what the kernel knows by itself (RESOLVE_CACHED), and asks only file
 * systems that need no process.
 */
#define _GNU_SOURCE
#include "trace_paths.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { /* openat2(2), RESOLVE_* */
       NO_CROSSING = 1,
       NO_MAGIC_LINKS = 2,
       NO_LINKS = 4,
       BENEATH = 8,
       IN_ROOT = 0x10,
       CACHED = 0x20
};

enum {
    MOST_LINKS = 40 /* of a path, as in the kernel */,
    MOST_MOUNTINFO = 1 << 20,
    MOST_TRIES = 1000
};

/* An overlay may lie over one of the others, unless it is the root, which the caller chose. */
static const char *const local[] = {
    "ext2",     "ext3",   "ext4",   "xfs",    "btrfs",    "tmpfs",    "proc",  "sysfs",
    "devtmpfs", "devpts", "mqueue", "f2fs",   "bcachefs", "squashfs", "erofs", "iso9660",
    "zfs",      "ramfs",  "rootfs", "cgroup", "cgroup2",  "vfat",     "exfat", NULL};

/* With ".." in the path, EAGAIN also says that somebody on this machine has renamed or mounted
 * something at the same time. */
static long open_beneath(long directory, const char *path, int flags, uint64_t resolve) {
    struct raw_open_how how = {(uint64_t)(O_PATH | O_CLOEXEC | flags), 0, resolve | NO_MAGIC_LINKS};
    long fd = raw(RAW_openat2, directory, path, &how, sizeof how);
    if (fd != -EAGAIN || !strstr(path, ".."))
        return fd;
    int most = resolve & CACHED ? MOST_TRIES / 50 : MOST_TRIES;
    for (int tries = 0; tries < most && fd == -EAGAIN; tries++)
        fd = raw(RAW_openat2, directory, path, &how, sizeof how);
    return fd;
}

long read_whole(const char *name, char *text, size_t size) {
    long fd = raw(__NR_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC), n = 1;
    size_t got = 0;
    if (fd < 0)
        return fd;
    while (n > 0 && got + 1 < size) {
        n = raw(__NR_read, fd, text + got, size - got - 1);
        got += n > 0 ? (size_t)n : 0;
    }
    close_fd(fd);
    text[got] = 0;
    return n < 0 ? n : (long)got;
}

static int mount_of(long fd) {
    char name[64], text[512];
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", (int)fd);
    const char *found = read_whole(name, text, sizeof text) > 0 ? strstr(text, "mnt_id:") : NULL;
    return found ? atoi(found + 7) : -1;
}

/* Whether the file system of a mount is one of those, as the process sees it (proc(5)). */
static int is_type_local(const struct sbx_where *w, int mount, int is_root) {
    char name[64], start[32];
    snprintf(name, sizeof name, "/proc/%d/mountinfo", w->tid);
    snprintf(start, sizeof start, "\n%d ", mount);
    char *text = malloc(MOST_MOUNTINFO);
    int found = 0;
    if (text) {
        text[0] = '\n';
        read_whole(name, text + 1, MOST_MOUNTINFO - 1);
        const char *line = strstr(text, start), *type = line ? strstr(line + 1, " - ") : NULL;
        size_t size = type ? strcspn(type + 3, " ") : 0;
        for (int i = 0; type && local[i]; i++)
            found |= strlen(local[i]) == size && memcmp(type + 3, local[i], size) == 0;
        if (type && is_root)
            found |= size == 7 && memcmp(type + 3, "overlay", 7) == 0;
    }
    free(text);
    return found;
}

/* Whether a look-up in the directory FD waits for no process. Mounts are remembered by their
 * numbers until the run mounts something. */
static int is_local(struct sbx_trace *t, const struct sbx_where *w, long fd) {
    int mount = mount_of(fd);
    if (mount < 0)
        return 0;
    for (int i = 0; i < t->n_mounts; i++)
        if (t->mounts[i] / 2 == mount)
            return t->mounts[i] & 1;
    int answer = is_type_local(w, mount, mount == mount_of(t->root));
    if (t->n_mounts == SBX_MOST_MOUNTS)
        t->n_mounts = 0;
    t->mounts[t->n_mounts++] = mount * 2 + answer;
    return answer;
}

/* Asks the file system of the last directory that the kernel knows, which then knows more. -ELOOP,
 * -EXDEV: a link, or another mount, lies on the way, and the kernel knows it by now. */
static long ask_file_system(struct sbx_trace *t, const struct sbx_where *w, long root,
                            const char *path, int flags) {
    char prefix[2 * LONGEST_PATH + 2];
    size_t rest = strlen(path);
    long directory = -EAGAIN;
    memcpy(prefix, path, rest + 1);
    while (directory == -EAGAIN && rest > 1) {
        rest = parent_of(prefix, rest);
        prefix[rest] = 0;
        directory = open_beneath(root, rest ? prefix : "/", O_DIRECTORY, IN_ROOT | CACHED);
    }
    if (directory < 0)
        return directory;
    while (path[rest] == '/')
        rest++;
    long fd = -EAGAIN;
    if (is_local(t, w, directory))
        fd = open_beneath(directory, path + rest, flags, BENEATH | NO_LINKS | NO_CROSSING);
    close_fd(directory);
    return fd;
}

long open_path(struct sbx_trace *t, const struct sbx_where *w, const char *path, int flags) {
    int root = w->root >= 0 ? w->root : t->root;
    if (!t->may_wait)
        return open_beneath(root, path, flags, IN_ROOT);
    long fd = -ELOOP;
    for (int links = 0; links < MOST_LINKS && (fd == -ELOOP || fd == -EXDEV); links++) {
        fd = open_beneath(root, path, flags, IN_ROOT | CACHED);
        if (fd != -EAGAIN)
            return fd;
        fd = ask_file_system(t, w, root, path, flags);
    }
    return fd;
}
