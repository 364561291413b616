/* SPDX-License-Identifier: Apache-2.0
 *
 * The minimal /dev: what it has, and how a resident keeps one for all its runs.
 *
 * Filled in the caller's memory or by the reaper, so the rules of child.c hold: raw calls alone.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "raw.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

static void close_fd(long fd) { raw(__NR_close, fd); }

/* A user namespace may make no device, and lends the caller's. Read-only, so that uid 0 changes
 * nothing of a node that is the caller's; it can be opened for writing all the same. */
static long lend_device(long lender, long dev, const char *name) {
    long host =
        lender < 0 ? raw(__NR_openat, AT_FDCWD, "/dev", O_PATH | O_DIRECTORY | O_CLOEXEC) : lender;
    if (host < 0)
        return host;
    long tree = raw(RAW_open_tree, host, name, O_CLOEXEC | TREE_CLONE);
    if (lender < 0)
        close_fd(host);
    if (tree < 0)
        return tree;
    long result = sbx_add_flags(tree, ATTR_READ_ONLY, 0);
    if (result >= 0)
        result = raw(__NR_mknodat, dev, name, S_IFREG | 0666, 0);
    if (result >= 0)
        result = raw(RAW_move_mount, tree, "", dev, name, FROM_EMPTY_PATH);
    close_fd(tree);
    return result;
}

/* What a program may count on in /dev, and no disk, no memory, no console. */
static long make_devices(const struct sbx_mount *m, long dev, long lender) {
    static const struct {
        char name[8];
        unsigned number; /* Documentation/admin-guide/devices.txt: major 1 or 5 */
    } nodes[] = {{"null", 0x103}, {"zero", 0x105},   {"full", 0x107},
                 {"tty", 0x500},  {"random", 0x108}, {"urandom", 0x109}};
    long result = 0;
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes && result >= 0; i++) {
        result = raw(__NR_mknodat, dev, nodes[i].name, S_IFCHR | 0666, nodes[i].number);
        if (result == -EPERM)
            result = lend_device(lender, dev, nodes[i].name);
        if (result == -ENOENT && m->flags & SBX_OPTIONAL) /* the caller has none to lend */
            result = 0;
    }
    return result;
}

static long make_links(long dev) {
    static const char links[][2][16] = {{"/proc/self/fd", "fd"},
                                        {"/proc/self/fd/0", "stdin"},
                                        {"/proc/self/fd/1", "stdout"},
                                        {"/proc/self/fd/2", "stderr"},
                                        {"pts/ptmx", "ptmx"}};
    long result = 0;
    for (size_t i = 0; i < sizeof links / sizeof *links && result >= 0; i++)
        result = raw(__NR_symlinkat, links[i][0], dev, links[i][1]);
    return result;
}

/* Its size is the kernel's default, as programs expect it. What reads it leaves no trace. */
static long new_shm(const struct sbx_mount *m) {
    const char *options[] = {"nr_inodes", m->inodes, "mode", "1777", NULL};
    return sbx_new_filesystem("tmpfs", options, ATTR_NOSUID | ATTR_NODEV | ATTR_NOATIME);
}

static long new_pts(const struct sbx_mount *m) {
    static const char *const options[] = {"ptmxmode", "666", "mode", "620", "max", "1024", NULL};
    (void)m;
    return sbx_new_filesystem("devpts", options, ATTR_NOSUID | ATTR_NOEXEC | ATTR_NOATIME);
}

static long mount_part(const struct sbx_mount *m, long dev, const char *name,
                       long (*make)(const struct sbx_mount *)) {
    long tree = make(m);
    if (tree < 0)
        return tree;
    long result = raw(RAW_move_mount, tree, "", dev, name, FROM_EMPTY_PATH);
    close_fd(tree);
    return result;
}

int sbx_fill_dev(const struct sbx_mount *m, long dev, long lender) {
    long mask = raw(__NR_umask, 0); /* the caller's would take something away from each mode */
    long result = make_devices(m, dev, lender);
    if (result >= 0)
        result = make_links(dev);
    if (result >= 0)
        result = raw(__NR_mkdirat, dev, "shm", 01777);
    if (result >= 0)
        result = raw(__NR_mkdirat, dev, "pts", 0755);
    if (result >= 0)
        result = mount_part(m, dev, "shm", new_shm);
    if (result >= 0)
        result = mount_part(m, dev, "pts", new_pts);
    raw(__NR_umask, mask);
    return (int)result;
}

/* ---- one that is kept ------------------------------------------------------------------------
 *
 * A run cannot write to the /dev itself. Its shm and its pts it can; so both are looked at after
 * each run, and one that was used gives way to a new one. */

/* All that a run could leave in a directory of a file system of its own. */
struct state {
    struct raw_statx directory, ptmx;
    uint64_t free_blocks, free_inodes, inode;
    long entries, attributes;
};

static struct {
    const struct sbx_mount *mount;
    const struct sbx_seen *mounts; /* of the template, where they lie */
    int n_mounts;
    int dev, shm, pts; /* -1: hidden */
    struct state shm_then, pts_then;
} kept;

static void take_status(long fd, const char *name, struct raw_statx *status) {
    int flags = name[0] ? AT_SYMLINK_NOFOLLOW : EMPTY_PATH;
    raw(__NR_statx, fd, name, flags, 0xfff /* STATX_BASIC_STATS | STATX_BTIME */, status);
}

/* A file that was made and is gone leaves the times of the directory (they are of the year 1970 at
 * first, as the clock of a file system may stand still for some milliseconds) or, where it never
 * had a name, the number of the next inode. */
static void look_at_shm(struct state *now) {
    uint64_t usage[16] = {0}; /* struct statfs: two words, blocks, free ones, ..., free inodes */
    take_status(kept.shm, "", &now->directory);
    raw(__NR_fstatfs, kept.shm, usage);
    now->free_blocks = usage[3];
    now->free_inodes = usage[6];
    now->attributes = raw(__NR_flistxattr, kept.shm, 0, 0);
    struct raw_statx nameless = {.inode = 0};
    long fd = raw(__NR_openat, kept.shm, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) {
        take_status(fd, "", &nameless);
        close_fd(fd);
    }
    now->inode = nameless.inode;
}

/* Of a terminal that is closed nothing is left but times, if at all; one that is open somewhere has
 * an entry. */
static void look_at_pts(struct state *now) {
    char entries[256];
    take_status(kept.pts, "", &now->directory);
    take_status(kept.pts, "ptmx", &now->ptmx);
    now->attributes = raw(__NR_flistxattr, kept.pts, 0, 0);
    raw(__NR_lseek, kept.pts, 0, 0);
    now->entries = raw(__NR_getdents64, kept.pts, entries, sizeof entries);
}

static int is_same(const struct state *a, const struct state *b) {
    const char *x = (const char *)a, *y = (const char *)b;
    for (size_t i = 0; i < sizeof *a; i++)
        if (x[i] != y[i])
            return 0;
    return 1;
}

static long open_part(const char *name) {
    return raw(__NR_openat, kept.dev, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static struct sbx_seen seen_at(long fd) {
    struct raw_statx there = {.inode = 0};
    take_status(fd, "", &there);
    return (struct sbx_seen){(uint64_t)there.device[0] << 32 | there.device[1], there.inode};
}

/* Whether another mount of the template lies there: what is the caller's is not ours to look at,
 * and no run gets at what is beneath. Then it is closed. */
static int is_hidden(int *fd) {
    struct sbx_seen here = seen_at(*fd);
    for (int i = 0; i < kept.n_mounts; i++) {
        if (kept.mounts[i].inode != here.inode || kept.mounts[i].device != here.device)
            continue;
        close_fd(*fd);
        *fd = -1;
        return 1;
    }
    return 0;
}

static int begin_shm(void) {
    static const int64_t times[4]; /* of last access and change: 0 */
    kept.shm = (int)open_part("shm");
    if (kept.shm >= 0 && is_hidden(&kept.shm))
        return 0;
    if (kept.shm < 0 || raw(__NR_utimensat, kept.shm, 0, times, 0) < 0)
        return -1;
    look_at_shm(&kept.shm_then);
    return 0;
}

static int begin_pts(void) {
    kept.pts = (int)open_part("pts");
    if (kept.pts >= 0 && is_hidden(&kept.pts))
        return 0;
    if (kept.pts < 0)
        return -1;
    look_at_pts(&kept.pts_then);
    return 0;
}

int sbx_watch_dev(const struct sbx_mount *m, struct sbx_seen mounted, const struct sbx_seen *mounts,
                  int n_mounts) {
    kept.mount = m;
    kept.mounts = mounts;
    kept.n_mounts = n_mounts;
    kept.dev = sbx_open_in_root(AT_FDCWD, m->target, O_PATH | O_DIRECTORY);
    struct sbx_seen there = seen_at(kept.dev);
    if (there.inode != mounted.inode || there.device != mounted.device)
        return -1;
    return begin_shm() < 0 ? -1 : begin_pts();
}

/* Of the template: the next run has a copy of it. */
static int replace(const char *name, int fd, long (*make)(const struct sbx_mount *)) {
    close_fd(fd);
    long result = raw(__NR_fchdir, kept.dev);
    if (result >= 0)
        result = raw(__NR_umount2, name, MNT_DETACH);
    if (result >= 0)
        result = mount_part(kept.mount, kept.dev, name, make);
    raw(__NR_chdir, "/");
    return (int)result;
}

static int renew_shm(void) {
    struct state now = {.inode = 0};
    look_at_shm(&now);
    kept.shm_then.inode++; /* every look takes a number */
    return is_same(&now, &kept.shm_then)
           || (replace("shm", kept.shm, new_shm) >= 0 && begin_shm() >= 0);
}

static int renew_pts(void) {
    struct state now = {.inode = 0};
    look_at_pts(&now);
    return is_same(&now, &kept.pts_then)
           || (replace("pts", kept.pts, new_pts) >= 0 && begin_pts() >= 0);
}

int sbx_renew_dev(void) {
    if (!kept.mount)
        return 1;
    return (kept.shm < 0 || renew_shm()) && (kept.pts < 0 || renew_pts());
}
