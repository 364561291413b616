/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a mount goes: finds the mount point below the new root, and makes it where it may.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sys/stat.h>

/* Tells whether one of the mounts before I made the file system of a directory for this run. If
 * several have the same target, the last one hides the others. */
static int is_of_the_run(struct sbx_child *c, int i, long directory) {
    struct raw_statx here, there;
    if (status_of(directory, &here) < 0)
        return 0;
    while (here.mount_id != c->own_mount && i-- > 0) {
        const struct sbx_mount *m = &c->place->mounts[i];
        long fd = sbx_open_in_root(c->tree, m->target, O_PATH);
        if (fd < 0)
            continue;
        long error = status_of(fd, &there);
        close_fd(fd);
        if (error < 0 || there.mount_id != here.mount_id || !(there.attributes & IS_MOUNT_ROOT))
            continue;
        if (m->kind != SBX_TMPFS && m->kind != SBX_DEV)
            return 0;
        c->own_mount = here.mount_id;
    }
    return here.mount_id == c->own_mount;
}

static long make_node(long parent, const char *name, int is_directory) {
    return is_directory ? raw(__NR_mkdirat, parent, name, 0755)
                        : raw(__NR_mknodat, parent, name, S_IFREG | 0644, 0);
}

/* Makes the missing parts of the target of mount I, but only in a file system of the run's own:
 * directories, and at the end a file if the source is one. -ENOENT: the target lies elsewhere. */
static long make_target(struct sbx_child *c, int i, int is_directory) {
    const char *path = c->place->mounts[i].target;
    char prefix[4096];
    long parent = raw(__NR_fcntl, c->tree, F_DUPFD_CLOEXEC, RESIDENT_FDS);
    for (size_t at = 1, start = 1; parent >= 0; at++) {
        if (at >= sizeof prefix)
            return -ENAMETOOLONG;
        prefix[at] = 0;
        if (path[at] && path[at] != '/') {
            prefix[at] = path[at];
            continue;
        }
        prefix[0] = '/';
        long found = sbx_open_in_root(c->tree, prefix, O_PATH);
        if (found == -ENOENT && is_of_the_run(c, i, parent)) {
            long made = make_node(parent, prefix + start, path[at] || is_directory);
            found = made < 0 && made != -EEXIST ? made : sbx_open_in_root(c->tree, prefix, O_PATH);
        }
        close_fd(parent);
        parent = found;
        if (!path[at])
            return parent;
        prefix[at] = '/';
        start = at + 1;
    }
    return parent;
}

/* A mount on the root itself would hide nothing of the root, and mounts below it would not lie in
 * it. */
int is_the_root(struct sbx_child *c, const struct raw_statx *target) {
    struct raw_statx root;
    if (!(target->attributes & IS_MOUNT_ROOT) || status_of(c->tree, &root) < 0)
        return 0;
    return root.mount_id == target->mount_id;
}

int sbx_is_stub(int mode) { return (mode & 05022) == 05000 || (mode & 05277) == 01000; }

/* -ESTALE: the mount point is a stub that another run made, and may remove at any moment. Python
 * then locks it and starts the run again. */
long open_target(struct sbx_child *c, int i, long source) {
    const struct sbx_mount *m = &c->place->mounts[i];
    struct raw_statx there;
    long fd = sbx_open_in_root(c->tree, m->target, m->flags & SBX_OPTIONAL ? O_SEARCH_DIR : O_PATH);
    if (fd == -ENOENT && !(m->flags & SBX_OPTIONAL)) {
        long error = status_of(source, &there);
        uint64_t mask =
            (uint64_t)raw(__NR_umask, 0); /* the caller's umask would keep other users out */
        fd = error < 0 ? error : make_target(c, i, S_ISDIR(there.mode));
        raw(__NR_umask, mask);
    }
    if (fd < 0 || c->job->held[i])
        return fd;
    long error = status_of(fd, &there);
    if (error >= 0 && is_the_root(c, &there))
        error = -EBUSY;
    else if (error >= 0 && sbx_is_stub(there.mode))
        error = -ESTALE;
    if (error >= 0)
        return fd;
    close_fd(fd);
    return error;
}
