/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a mount goes: finds the mount point below the new root, and makes it where it may.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* If several mounts have the same target, the last one hides the others. */
int is_of_the_run(struct sbx_child *c, int i, long directory) {
    struct raw_statx here, there;
    if (status_of(directory, &here) < 0)
        return 0;
    if (!IN_REAPER && c->scratch >= 0 && here.device[0] == c->scratch_device[0]
        && here.device[1] == c->scratch_device[1])
        return 1;
    if (STACKS && here.mount_id == c->own_root)
        return 1;
    while (here.mount_id != c->own_mount && i-- > 0) {
        const struct sbx_mount *m = &c->place->mounts[i];
        if (is_entry(m))
            continue;
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

enum { MOST_LINKS = 40 }; /* as many as the kernel follows, path_resolution(7) */

/* A path that is being made: from BEGIN on TEXT has it. Up to AT it exists, or is to be made next,
 * and the last name of that begins at START. */
struct path {
    size_t begin, start, at;
    char text[4096];
};

/* Makes NEW the path to where the last name of OLD leads, if that is a symbolic link, and behind it
 * the REST of OLD. 0: it is none, or too long. */
static int follow_link(long parent, const struct path *old, const char *rest, struct path *new) {
    size_t size = strlen(rest) + 1, room = sizeof new->text - old->start;
    memcpy(new->text, old->text, old->start);
    long n = raw(__NR_readlinkat, parent, old->text + old->start, new->text + old->start, room);
    if (n <= 0 || (size_t)n + 1 + size > room)
        return 0;
    char *end = new->text + old->start + n;
    *end = '/';
    memcpy(end + (size > 1), rest, size);
    new->begin = new->text[old->start] == '/' ? old->start : old->begin;
    new->start = new->begin + 1;
    new->at = new->begin;
    return 1;
}

/* Opens a path, and makes its last name if it is missing in a file system of the run's own, or in
 * a mirror of the caller's directory. */
static long open_or_make(struct sbx_child *c, int i, long parent, const struct path *path,
                         int mode) {
    const char *text = path->text + path->begin, *name = path->text + path->start;
    long fd = sbx_open_in_root(c->tree, text, O_PATH);
    if (fd != -ENOENT)
        return fd;
    long own = is_of_the_run(c, i, parent) ? parent : IN_REAPER ? fd : mirror(c, i, parent, name);
    if (own < 0)
        return own;
    long made = mode != A_FILE ? raw(__NR_mkdirat, own, name, mode)
                               : raw(__NR_mknodat, own, name, S_IFREG | 0644, 0);
    if (!IN_REAPER && own != parent)
        close_fd(own);
    return made < 0 && made != -EEXIST ? made : sbx_open_in_root(c->tree, text, O_PATH);
}

long make_target(struct sbx_child *c, int i, const char *target, int mode) {
    struct path paths[2], *path = paths;
    memcpy(path->text, target, strlen(target) + 1); /* Python lets no longer one pass */
    path->begin = 0;
    path->start = path->at = 1;
    long parent = raw(__NR_fcntl, c->tree, F_DUPFD_CLOEXEC, RESIDENT_FDS);
    for (int links = 0; parent >= 0; path->at++) {
        char end = path->text[path->at];
        if (end && end != '/')
            continue;
        path->text[path->at] = 0;
        long found = open_or_make(c, i, parent, path, end ? 0755 : mode);
        struct path *other = &paths[path == paths];
        const char *rest = path->text + path->at + (end != 0);
        int is_link =
            found == -ENOENT && links++ < MOST_LINKS && follow_link(parent, path, rest, other);
        close_fd(parent);
        parent = is_link ? raw(__NR_fcntl, c->tree, F_DUPFD_CLOEXEC, RESIDENT_FDS) : found;
        if (!is_link && !end)
            return parent;
        path->text[path->at] = end;
        path->start = path->at + 1;
        path = is_link ? other : path;
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
        fd = error < 0 ? error : make_target(c, i, m->target, S_ISDIR(there.mode) ? 0755 : A_FILE);
        raw(__NR_umask, mask);
    }
    if (fd < 0 || c->job->held[i])
        return fd;
    long error = status_of(fd, &there);
    if (error >= 0 && is_the_root(c, &there))
        error = -EBUSY;
    else if (error >= 0 && sbx_is_stub(there.mode) && (IN_REAPER || !is_of_the_run(c, i, fd)))
        error = -ESTALE;
    if (error >= 0)
        return fd;
    close_fd(fd);
    return error;
}
