/* SPDX-License-Identifier: Apache-2.0
 *
 * What a Sandbox adds to a root: directories, symbolic links, and files with a content of its own.
 *
 * In a file system of the run's own they are simply made. The caller's directories stay as they
 * are: one that lacks a name is hidden by a mirror, a directory of ours that shows the same
 * entries, each as a bind mount, and has room for more.
 *
 * All of that lies in one tmpfs, the scratch, which becomes read-only before the command begins. A
 * bind mount can be made of an attached file system only (before Linux 6.15), so the scratch lies
 * on the old root, beneath the copy, and goes with it.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

enum {
    MOST_ENTRIES = 4096, /* of a mirror: each is a mount */
    NAME_SIZE = 16,
    FS_SET_FLAG = 0, /* fsconfig(2) */
    FS_RECONFIGURE = 7,
    ACCESS_WRITE = 2,              /* faccessat2(2), W_OK */
    ACCESS_BY_EFFECTIVE = 0x200,   /* AT_EACCESS */
    NO_FOLLOW_NO_AUTOMOUNT = 0x900 /* open_tree(2), AT_SYMLINK_NOFOLLOW and AT_NO_AUTOMOUNT */
};

struct entry { /* getdents64(2), struct linux_dirent64 */
    uint64_t inode, offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* ---- the scratch --------------------------------------------------------------------------- */

/* Writes a name into NAME: a letter, and five digits of a number at least. */
static void put_name(char *name, char letter, int number) {
    int digits = number < 100000 ? 5 : 10;
    name[0] = letter;
    name[digits + 1] = 0;
    for (int i = digits; i > 0; i--, number /= 10)
        name[i] = (char)('0' + number % 10);
}

static long make_scratch(struct sbx_child *c) {
    static const char *const options[] = {"mode", "700", NULL};
    struct raw_statx there;
    long fd = sbx_new_filesystem("tmpfs", options, ATTR_NOSUID | ATTR_NODEV);
    if (fd < 0)
        return fd;
    long result = raw(RAW_move_mount, fd, "", AT_FDCWD, "/", FROM_EMPTY_PATH);
    if (result >= 0)
        result = status_of(fd, &there);
    if (result < 0) {
        close_fd(fd);
        return result;
    }
    c->scratch = (int)fd;
    c->on_the_root++;
    memcpy(c->scratch_device, there.device, sizeof there.device);
    return 0;
}

static long write_all(long fd, const char *content, uint64_t left) {
    long n = 1;
    for (; left && n > 0; content += n, left -= (uint64_t)n)
        n = raw(__NR_write, fd, content, left);
    return n < 0 ? n : n == 0 ? -EIO : 0;
}

/* Makes the file of mount I in the scratch. Returns a mount of it. */
static long make_file(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    char name[NAME_SIZE];
    put_name(name, 'f', i);
    long fd = raw(__NR_openat, c->scratch, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return fd;
    long result = write_all(fd, m->content, m->length);
    if (result >= 0)
        result = raw(__NR_fchmod, fd, m->bits);
    close_fd(fd);
    if (result < 0)
        return result;
    long tree = raw(RAW_open_tree, c->scratch, name, O_CLOEXEC | TREE_CLONE);
    result = tree < 0 ? tree : sbx_add_flags(tree, ATTR_READ_ONLY, 0);
    if (result >= 0)
        return tree;
    close_fd(tree);
    return result;
}

long make_entry(struct sbx_child *c, int i) {
    long result = c->scratch < 0 ? make_scratch(c) : 0;
    return result < 0 || c->place->mounts[i].kind != SBX_FILE ? result : make_file(c, i);
}

/* Nothing is written to the scratch once the command runs. Its mounts need no flag for that, and no
 * run in a slot finds what another left there. */
int seal_scratch(struct sbx_child *c) {
    if (c->scratch < 0)
        return 0;
    long context = raw(RAW_fspick, c->scratch, "", 1 | 8 /* FSPICK_CLOEXEC, FSPICK_EMPTY_PATH */);
    if (context < 0)
        return (int)context;
    long result = raw(RAW_fsconfig, context, FS_SET_FLAG, "ro", 0, 0);
    if (result >= 0)
        result = raw(RAW_fsconfig, context, FS_RECONFIGURE, 0, 0, 0);
    close_fd(context);
    return (int)result;
}

/* ---- mirrors ------------------------------------------------------------------------------- */

/* Shows the entry NAME of DIRECTORY in a mirror. Whatever has the name now is opened once, so that
 * nobody can swap it for something else meanwhile. */
static long show_entry(struct sbx_child *c, long directory, const char *name, long mirror) {
    struct raw_statx there, dev = {.mount_id = 0};
    char text[4096];
    long fd = raw(__NR_openat, directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fd == -ENOENT ? 0 : fd; /* it was removed since the listing */
    long tree = -1, result = status_of(fd, &there);
    if (result >= 0 && S_ISLNK(there.mode)) {
        result = raw(__NR_readlinkat, fd, "", text, sizeof text - 1);
        if (result >= 0) {
            text[result] = 0;
            result = raw(__NR_symlinkat, text, mirror, name);
        }
    } else if (result >= 0) {
        int flags = O_CLOEXEC | TREE_CLONE | RECURSIVE | EMPTY_PATH | NO_FOLLOW_NO_AUTOMOUNT;
        result = tree = raw(RAW_open_tree, fd, "", flags);
        if (result >= 0)
            result = S_ISDIR(there.mode) ? raw(__NR_mkdirat, mirror, name, 0700)
                                         : raw(__NR_mknodat, mirror, name, S_IFREG | 0600, 0);
        if (result >= 0)
            result = raw(RAW_move_mount, tree, "", mirror, name, FROM_EMPTY_PATH);
    }
    close_fd(fd);
    if (result >= 0 && tree >= 0 && c->dev >= 0 && status_of(c->dev, &dev) >= 0
        && dev.mount_id == there.mount_id) { /* the minimal /dev, which is not read-only yet */
        close_fd(c->dev);
        c->dev = (int)tree;
    } else if (tree >= 0) {
        close_fd(tree);
    }
    return result;
}

static long show_entries(struct sbx_child *c, long directory, long mirror) {
    char room[4096] __attribute__((aligned(8)));
    long n, result = 0;
    int count = 0;
    while ((n = raw(__NR_getdents64, directory, room, sizeof room)) > 0)
        for (long at = 0; at < n; at += ((struct entry *)(room + at))->size) {
            const char *name = ((struct entry *)(room + at))->name;
            if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                continue;
            result = ++count > MOST_ENTRIES ? -E2BIG : show_entry(c, directory, name, mirror);
            if (result < 0)
                return result;
        }
    return n;
}

/* Makes an empty directory of the scratch like PARENT. Returns a mount of it. */
static long new_mirror(struct sbx_child *c, long parent) {
    char name[NAME_SIZE];
    struct raw_statx there;
    put_name(name, 'm', c->n_mirrors++);
    long result =
        raw(__NR_statx, parent, "", EMPTY_PATH | DONT_SYNC, WANT_MODE | WANT_OWNER, &there);
    if (result >= 0)
        result = raw(__NR_mkdirat, c->scratch, name, 0700);
    if (result < 0)
        return result;
    /* An owner that the user namespace does not have stays the caller. */
    raw(__NR_fchownat, c->scratch, name, there.uid, there.gid, 0);
    result = raw(__NR_fchmodat, c->scratch, name, there.mode & 07777);
    return result < 0 ? result : raw(RAW_open_tree, c->scratch, name, O_CLOEXEC | TREE_CLONE);
}

/* Tells whether a mirror would show less than the directory: the command may make something there,
 * which would be lost, or it is a proc, whose entries come and go. */
static long would_lose(long directory) {
    struct statfs filesystem;
    long result = raw(__NR_fstatfs, directory, &filesystem);
    if (result < 0 || filesystem.f_type == 0x9fa0 /* PROC_SUPER_MAGIC */)
        return result < 0 ? result : 1;
    long error = raw(RAW_faccessat2, directory, "", ACCESS_WRITE, EMPTY_PATH | ACCESS_BY_EFFECTIVE);
    return error == -EROFS || error == -EACCES || error == -EPERM ? 0 : error < 0 ? error : 1;
}

long mirror(struct sbx_child *c, int i, long parent, const char *name) {
    struct raw_statx there;
    char text[1];
    if (IN_REAPER || !is_entry(&c->place->mounts[i])
        || raw(__NR_readlinkat, parent, name, text, 1) > 0)
        return -ENOENT; /* a symbolic link that leads to nothing is followed first */
    long error = would_lose(parent);
    if (error > 0)
        return -EOPNOTSUPP;
    long directory =
        error < 0 ? error : raw(__NR_openat, parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return directory;
    long tree = new_mirror(c, parent);
    error = tree < 0 ? tree : status_of(parent, &there);
    if (error >= 0)
        error = raw(RAW_move_mount, tree, "", parent, "", FROM_EMPTY_PATH | TO_EMPTY_PATH);
    if (error >= 0 && is_the_root(c, &there)) { /* then the mirror becomes the root */
        close_fd(c->tree);
        c->tree = (int)raw(__NR_fcntl, tree, F_DUPFD_CLOEXEC, RESIDENT_FDS);
        c->on_the_root++;
        error = c->tree;
    }
    if (error >= 0)
        error = show_entries(c, directory, tree);
    close_fd(directory);
    if (error >= 0)
        return tree;
    close_fd(tree);
    return error;
}

/* ---- directories and symbolic links -------------------------------------------------------- */

static long add_directory(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    struct raw_statx there;
    long fd = sbx_open_in_root(c->tree, m->target, O_SEARCH_DIR);
    if (fd == -ENOENT)
        return make_target(c, i, m->target, (int)m->bits);
    if (fd < 0 || IN_REAPER || (c->job->held && c->job->held[i]) || status_of(fd, &there) < 0
        || !sbx_is_stub(there.mode) || is_of_the_run(c, i, fd))
        return fd;
    close_fd(fd);
    return -ESTALE; /* it goes with the run that made it, if Python does not hold it */
}

static long add_link(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    char text[4097];
    size_t length = strlen(m->target);
    memcpy(text, m->target, length);
    while (text[--length] != '/')
        ;
    text[length] = 0;
    const char *name = m->target + length + 1;
    long parent = length ? make_target(c, i, text, 0755)
                         : raw(__NR_fcntl, c->tree, F_DUPFD_CLOEXEC, RESIDENT_FDS);
    if (parent < 0)
        return parent;
    long result = raw(__NR_readlinkat, parent, name, text, sizeof text - 1);
    text[result > 0 ? result : 0] = 0;
    if (result > 0 && strcmp(text, m->source) == 0)
        return parent; /* the same link is there already */
    if (result > 0 || result == -EINVAL)
        result = -EEXIST;
    if (result == -ENOENT) {
        long own = is_of_the_run(c, i, parent) ? parent : mirror(c, i, parent, name);
        if (own != parent)
            close_fd(parent);
        parent = own;
        result = parent < 0 ? parent : raw(__NR_symlinkat, m->source, parent, name);
    }
    if (result >= 0)
        return parent;
    close_fd(parent);
    return result;
}

int add_entry(struct sbx_child *c, int i) {
    c->run->at.step = SBX_STEP_TARGET;
    long mask = raw(__NR_umask, 0); /* the caller's umask would take bits away */
    long fd = c->place->mounts[i].kind == SBX_DIRECTORY ? add_directory(c, i) : add_link(c, i);
    raw(__NR_umask, mask);
    if (fd < 0)
        return (int)fd;
    close_fd(fd);
    return 0;
}
