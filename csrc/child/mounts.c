/* SPDX-License-Identifier: Apache-2.0
 *
 * Mounts what the run asks for: opens every source first, then mounts one after the other.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sys/stat.h>

static int is_device(long fd) {
    struct raw_statx status;
    return status_of(fd, &status) >= 0 && (S_ISCHR(status.mode) || S_ISBLK(status.mode));
}

/* Opens the source of a bind or of a hole. A hole comes from the caller's root, because the copy is
 * read-only by now. */
static long open_source(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    int flags = O_CLOEXEC | TREE_CLONE | (m->flags & SBX_RECURSIVE ? RECURSIVE : 0);
    long hole = m->kind == SBX_HOLE ? sbx_open_in_root(c->root, m->target, O_PATH) : 0;
    if (hole < 0)
        return hole;
    long tree = hole ? raw(RAW_open_tree, hole, "", flags | EMPTY_PATH)
                     : raw(RAW_open_tree, AT_FDCWD, m->source, flags);
    if (hole)
        close_fd(hole);
    if (tree < 0)
        return tree;
    uint64_t attributes = (m->flags & SBX_READ_ONLY ? ATTR_READ_ONLY : 0)
                          | (m->flags & SBX_NO_DEVICES ? ATTR_NODEV : 0);
    long error = 0;
    if (m->flags & SBX_DEVICE && !is_device(tree))
        error = -ENODEV;
    if (error >= 0 && attributes)
        error = sbx_add_flags(tree, attributes, RECURSIVE);
    if (error >= 0)
        return tree;
    close_fd(tree);
    return error;
}

/* Each source takes a descriptor. This limit is the child's own: the caller keeps its limit, and
 * do_mounts gives the command the old one. */
long raise_open_files(struct sbx_child *c) {
    uint64_t *limit = c->open_files;
    if (limit[1])
        return -EMFILE;
    long error = raw(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, limit);
    uint64_t raised[] = {limit[1], limit[1]};
    return error < 0 ? error : raw(__NR_prlimit64, 0, 7, raised, 0);
}

/* Keeps the descriptor that OPEN gives for mount I. */
static int take(struct sbx_child *c, int i, long (*open)(struct sbx_child *, int)) {
    c->run->at.index = c->index = i;
    long tree = open(c, i);
    if (tree == -EMFILE && raise_open_files(c) >= 0)
        tree = open(c, i);
    c->job->sources[i] = (int)tree;
    return (int)tree;
}

static int open_sources(struct sbx_child *c, enum sbx_mount_kind kind) {
    for (int i = 0; i < c->place->n_mounts && !IN_REAPER; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        if (m->kind != kind)
            continue;
        int error = take(c, i, open_source);
        int is_left_out = m->flags & SBX_MAY_LACK && (error == -ENOENT || error == -ENOTDIR);
        if (error < 0 && !is_left_out)
            return error;
    }
    c->index = 0;
    return 0;
}

int open_holes(struct sbx_child *c) { return open_sources(c, SBX_HOLE); }

/* Opens all sources before anything lies over the root. Later, a name with more ".." than there are
 * directories above it, or such a link, would lead there. */
int do_sources(struct sbx_child *c) {
    int error = open_sources(c, SBX_BIND);
    if (error >= 0 && !c->place->overlay)
        error = open_holes(c);
    for (int i = 0; i < c->place->n_mounts && !IN_REAPER && error >= 0; i++)
        if (is_entry(&c->place->mounts[i]))
            error = take(c, i, make_entry);
    if (error >= 0)
        c->index = 0;
    return error < 0 ? error : 0;
}

/* Returns what mount I mounts: a source that was opened before, or a new file system. */
static long take_source(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    if (STACKS && m->flags & SBX_KEPT) /* the resident's template has it */
        return raw(__NR_openat, AT_FDCWD, m->source, O_PATH | O_CLOEXEC);
    const char *none[] = {NULL};
    const char *tmpfs[] = {"size", m->size, "nr_inodes", m->inodes, "mode", m->mode, NULL};
    static const char *const dev[] = {"size", "1048576", "nr_inodes", "1024", "mode", "755", NULL};
    if (m->kind == SBX_TMPFS)
        return sbx_new_filesystem("tmpfs", tmpfs, ATTR_NOSUID | ATTR_NODEV);
    if (m->kind == SBX_PROC)
        return sbx_new_filesystem("proc", none, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
    if (m->kind == SBX_DEV)
        return sbx_new_filesystem("tmpfs", dev, ATTR_NOSUID | ATTR_NOEXEC);
    return IN_REAPER ? -EINVAL : c->job->sources[i]; /* in a slot a run has no source */
}

static int do_mount(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    enum sbx_step *step = &c->run->at.step;
    int optional = m->flags & SBX_OPTIONAL;
    c->run->at.index = i;
    if (m->kind == SBX_SEAL)
        return do_seal(c, m);
    if (is_entry(m) && m->kind != SBX_FILE)
        return add_entry(c, i);
    if (!IN_REAPER && m->flags & SBX_MAY_LACK && c->job->sources[i] < 0)
        return 0;
    *step = SBX_STEP_TARGET;
    long target = optional ? open_target(c, i, -1) : -1;
    if (optional && (target == -ENOENT || target == -ENOTDIR || target == -ESTALE))
        return 0;
    if (optional && target < 0)
        return (int)target;
    *step = SBX_STEP_SOURCE;
    long tree = take_source(c, i);
    if (tree < 0)
        return (int)tree;
    *step = SBX_STEP_TARGET;
    if (!optional)
        target = open_target(c, i, tree);
    if (target < 0)
        return (int)target;
    *step = SBX_STEP_MOUNT;
    long result = raw(RAW_move_mount, tree, "", target, "", FROM_EMPTY_PATH | TO_EMPTY_PATH);
    /* In a slot the resident's /dev lies below it, and lends its devices. */
    if (result >= 0 && m->kind == SBX_DEV && !(STACKS && m->flags & SBX_KEPT))
        result = sbx_fill_dev(m, tree, IN_REAPER ? target : -1);
    if (result >= 0 && m->flags & SBX_COVER)
        result = m->kind == SBX_PROC ? cover_proc(tree, 1) : seal_tree(tree);
    close_fd(target);
    if (m->kind == SBX_DEV && m->flags & SBX_READ_ONLY)
        c->dev = (int)tree;
    else
        close_fd(tree);
    return (int)result;
}

struct sbx_seen sbx_see_mount(const char *path) {
    struct raw_statx there;
    struct sbx_seen seen = {0, 0};
    long error = raw(__NR_statx, AT_FDCWD, path, 0x800 /* AT_NO_AUTOMOUNT */ | DONT_SYNC,
                     WANT_INODE, &there);
    if (error < 0 || !(there.attributes & IS_MOUNT_ROOT))
        return seen;
    seen.device = (uint64_t)there.device[0] << 32 | there.device[1];
    seen.inode = there.inode;
    return seen;
}

/* Another command in the same root may have renamed or removed a target meanwhile, and the mount
 * went along: then the command must not run. */
int check_mounts(struct sbx_child *c, const struct sbx_seen *expected, int only) {
    for (int i = 0; i < c->place->n_mounts; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        if (m->kind == SBX_SEAL || (only && !(m->flags & only)))
            continue;
        struct sbx_seen now = sbx_see_mount(m->target);
        if (now.inode != expected[i].inode || now.device != expected[i].device)
            return sbx_fail(c->run, SBX_STEP_TARGET, i, -ESTALE);
    }
    return 0;
}

/* Does the steps TARGET and MOUNT for one mount after the other, because later ones may lie in
 * earlier ones. */
int do_mounts(struct sbx_child *c) {
    if (c->template_seen && check_mounts(c, c->template_seen, SBX_KEPT) < 0)
        return -1;
    for (int i = 0; i < c->place->n_mounts; i++) {
        int stays = c->place->mounts[i].flags & SBX_KEPT && !(STACKS && c->place->overlay);
        int error = stays ? 0 : do_mount(c, i);
        if (error < 0)
            return sbx_fail(c->run, c->run->at.step, i, error);
    }
    if (STACKS && c->place->overlay
        && c->place->read_only) { /* only now, as mount points were made in it */
        int error = sbx_add_flags(c->tree, ATTR_READ_ONLY, 0);
        if (error < 0)
            return sbx_fail(c->run, SBX_STEP_READ_ONLY, 0, error);
    }
    if (c->dev >= 0) {
        int error = sbx_add_flags(c->dev, ATTR_READ_ONLY, 0);
        close_fd(c->dev);
        if (error < 0)
            return error;
    }
    int error = IN_REAPER ? 0 : seal_scratch(c);
    if (error < 0)
        return error;
    if (c->open_files[1])
        raw(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, c->open_files, 0);
    for (int i = 0; c->run_seen && i < c->place->n_mounts; i++) /* check_mounts leaves out seals */
        c->run_seen[i] = sbx_see_mount(c->place->mounts[i].target);
    return 0;
}
