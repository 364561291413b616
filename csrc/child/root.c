/* SPDX-License-Identifier: Apache-2.0
 *
 * The root directory of a run: a copy of its tree, which becomes the root of the mount namespace.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>

int do_private(struct sbx_child *c) {
    if (!(c->place->namespaces & CLONE_NEWNS))
        return 0;
    return (int)raw(__NR_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
}

int do_root(struct sbx_child *c) {
    long fd;
    if (IN_REAPER) { /* the mounts of a run go below the resident's root */
        fd = c->place->n_mounts ? raw(__NR_openat, AT_FDCWD, "/", O_SEARCH_DIR) : -1;
        c->tree = (int)fd;
        return fd < -1 ? (int)fd : 0;
    }
    if (!c->place->root)
        return 0;
    if (!(c->place->namespaces & CLONE_NEWNS))
        return (int)raw(__NR_chdir, c->place->root);
    fd = raw(__NR_openat, AT_FDCWD, c->place->root, O_SEARCH_DIR);
    if (fd < 0)
        return (int)fd;
    c->root = (int)fd;
    fd = raw(RAW_open_tree, c->root, "", O_CLOEXEC | EMPTY_PATH | RECURSIVE | TREE_CLONE);
    if (fd >= 0)
        c->tree = (int)fd;
    return fd < 0 ? (int)fd : 0;
}

int do_read_only(struct sbx_child *c) {
    uint64_t flags =
        (c->place->read_only ? ATTR_READ_ONLY : 0) | (c->place->no_devices ? ATTR_NODEV : 0);
    return c->tree >= 0 && flags ? sbx_add_flags(c->tree, flags, RECURSIVE) : 0;
}

/* Only on an attached mount can others be mounted. The copy is attached on top of the old root,
 * where ".." at the root leads into it: so all that the caller names is opened before. */
int do_attach(struct sbx_child *c) {
    if (c->root < 0)
        return 0;
    int error = (int)raw(RAW_move_mount, c->tree, "", AT_FDCWD, "/", FROM_EMPTY_PATH);
    if (error < 0 || IN_REAPER || !c->place->overlay)
        return error;
    error = open_holes(c);
    return error < 0 ? sbx_fail(c->run, SBX_STEP_SOURCE, c->index, error) : 0;
}

/* pivot_root(".", ".") puts the old root on top of the new one (pivot_root(2), NOTES); then umount2
 * detaches it, after what lies on it: the scratch, and the copy if it got a mirror. */
int do_pivot(struct sbx_child *c) {
    if (c->root < 0)
        return 0;
    long result = raw(__NR_fchdir, c->tree);
    if (result >= 0)
        result = raw(__NR_pivot_root, ".", ".");
    for (int i = 0; i <= c->on_the_root && result >= 0; i++)
        result = raw(__NR_umount2, ".", MNT_DETACH);
    if (result >= 0)
        result = raw(__NR_chdir, "/");
    return result < 0 ? (int)result : do_seals(c);
}

/* Step ROOT has changed to the directory. */
int do_chroot(struct sbx_child *c) {
    return c->place->root && c->tree < 0 ? (int)raw(__NR_chroot, ".") : 0;
}

/* openat2 keeps the root's symbolic links inside the root. It follows no magic link of /proc,
 * because that could lead wherever a descriptor does (CVE-2024-21626). */
int do_cwd(struct sbx_child *c) {
    const char *cwd = c->job->cwd;
    if (!cwd)
        return 0;
    if (!c->place->root)
        raw(__NR_chdir, "/");
    if (strcmp(cwd, "/") == 0) /* the child is there already */
        return 0;
    long fd = sbx_open_in_root(AT_FDCWD, cwd, O_SEARCH_DIR);
    if (c->job->cwd_or_root && (fd == -ENOENT || fd == -ENOTDIR))
        return 0;
    if (fd < 0)
        return (int)fd;
    long result = raw(__NR_fchdir, fd);
    close_fd(fd);
    return (int)result;
}
