/* SPDX-License-Identifier: Apache-2.0
 *
 * The /dev that all runs of a resident share. A run cannot write to the /dev itself. Its shm and
 * its pts it can: so both are looked at after each run, and one that was used gives way to a new
 * one.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

/* All that a run can change in a file system by way of its root directory. */
struct state {
    struct raw_statx directory, ptmx;
    uint64_t free_blocks, free_inodes, inode;
    long entries, attributes;
};

static struct {
    const struct sbx_mount *mount;
    const struct sbx_seen *mounts; /* what the template has mounted */
    int n_mounts;
    int dev, shm, pts; /* -1: another mount hides it */
    struct state shm_then, pts_then;
} kept;

static void take_status(long fd, const char *name, struct raw_statx *status) {
    int flags = name[0] ? AT_SYMLINK_NOFOLLOW : EMPTY_PATH;
    raw(__NR_statx, fd, name, flags, 0xfff /* STATX_BASIC_STATS | STATX_BTIME */, status);
}

/* A file that was made and removed has changed the times of the directory. They are set to 1970
 * before, because the clock of a file system may stand still for some milliseconds. A file without
 * a name has changed the number that the next inode gets. */
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

/* A terminal that is closed has changed times at most; one that is still open has an entry. */
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

/* Closes a part that another mount of the template hides, and returns 1: the mount is the caller's,
 * which we leave alone, and no run can reach what lies beneath it. */
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

static int open_shm(void) {
    static const int64_t times[4]; /* of the last access and of the last change: 0 */
    kept.shm = (int)open_part("shm");
    if (kept.shm >= 0 && is_hidden(&kept.shm))
        return 0;
    if (kept.shm < 0 || raw(__NR_utimensat, kept.shm, 0, times, 0) < 0)
        return -1;
    look_at_shm(&kept.shm_then);
    return 0;
}

static int open_pts(void) {
    kept.pts = (int)open_part("pts");
    if (kept.pts >= 0 && is_hidden(&kept.pts))
        return 0;
    if (kept.pts < 0)
        return -1;
    look_at_pts(&kept.pts_then);
    return 0;
}

int sbx_watch_dev(const struct sbx_mount *m, const char *path, struct sbx_seen mounted,
                  const struct sbx_seen *mounts, int n_mounts) {
    kept.mount = m;
    kept.mounts = mounts;
    kept.n_mounts = n_mounts;
    kept.dev = sbx_open_in_root(AT_FDCWD, path, O_PATH | O_DIRECTORY);
    struct sbx_seen there = seen_at(kept.dev);
    if (there.inode != mounted.inode || there.device != mounted.device)
        return -1;
    return open_shm() < 0 ? -1 : open_pts();
}

/* Replaces it in the template, which the next run gets a copy of. */
static int replace_part(const char *name, int fd, long (*make)(const struct sbx_mount *)) {
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
    kept.shm_then.inode++; /* each look uses up an inode number */
    return is_same(&now, &kept.shm_then)
           || (replace_part("shm", kept.shm, new_shm) >= 0 && open_shm() >= 0);
}

static int renew_pts(void) {
    struct state now = {.inode = 0};
    look_at_pts(&now);
    return is_same(&now, &kept.pts_then)
           || (replace_part("pts", kept.pts, new_pts) >= 0 && open_pts() >= 0);
}

int sbx_renew_dev(void) {
    if (!kept.mount)
        return 1;
    return (kept.shm < 0 || renew_shm()) && (kept.pts < 0 || renew_pts());
}
