/* SPDX-License-Identifier: Apache-2.0
 *
 * The child's side of a run: one short function a step, then the table that orders them.
 *
 * This code runs in the caller's memory while the calling thread waits for its exec and every other
 * thread goes on (clone with CLONE_VM). So of libc it calls strlen and such alone: a
 * lock may be held by another thread, errno belongs to the caller. A step returns 0 or -errno.
 * Whatever it opens is closed with the process, or by the exec: every descriptor here is
 * close-on-exec.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "raw.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define O_SEARCH_DIR (O_PATH | O_DIRECTORY | O_CLOEXEC)

/* mount_setattr(2), fsopen(2), openat2(2), statx(2), seccomp(2) */
struct raw_mount_attr {
    uint64_t set, clear, propagation, userns_fd;
};
struct raw_open_how {
    uint64_t flags, mode, resolve;
};
enum {
    FS_SET_STRING = 1,
    FS_CREATE = 6,
    MOST_TRIES = 10000,           /* of a path while others rename and mount: some 50 ms */
    FORCE_SYNC = 0x2000,          /* AT_STATX_FORCE_SYNC */
    RESOLVE_INSIDE = 0x10 | 0x02, /* RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS */
    WANT_MODE = 2,
    WANT_INODE = 0x100,
    WANT_MOUNT_ID = 0x1000,
    WANT_UNIQUE_ID = 0x4000,
    DONT_SYNC = 0x4000, /* AT_STATX_DONT_SYNC */
    IS_MOUNT_ROOT = 0x2000,
    SET_MODE_FILTER = 1, /* seccomp(2) */
    FILTER_SPEC_ALLOW = 4
};

int sbx_open_in_root(int directory, const char *path, int flags) {
    struct raw_open_how how = {(uint64_t)flags | O_CLOEXEC, 0, RESOLVE_INSIDE};
    long fd;
    int tries = 0;
    do /* -EAGAIN: something was renamed or mounted meanwhile, and ".." might have led outside */
        fd = raw(RAW_openat2, directory, path, &how, sizeof how);
    while (fd == -EAGAIN && ++tries < MOST_TRIES);
    return (int)fd;
}

static void close_fd(long fd) { raw(__NR_close, fd); }

/* ---- user namespace ---------------------------------------------------------------------- */

static int write_file(const char *path, const char *text) {
    long fd = raw(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return (int)fd;
    long written = raw(__NR_write, fd, text, strlen(text));
    close_fd(fd);
    return (int)written;
}

/* One's own id may be mapped by oneself, once setgroups(2) is given up (user_namespaces(7)); for
 * more, somebody outside has to do it: a thread of the caller's, while this one waits. */
static int do_ids(struct sbx_child *c) {
    static const char *const files[] = {"/proc/self/setgroups", "/proc/self/uid_map",
                                        "/proc/self/gid_map"};
    const char *texts[] = {"deny", c->place->uid_map, c->place->gid_map};
    int32_t answer = 0;
    if (!(c->place->namespaces & CLONE_NEWUSER))
        return 0;
    if (!c->place->uid_map) {
        raw(__NR_write, c->job->mapper, "", 1);
        long n = raw(__NR_read, c->job->mapper, &answer, sizeof answer);
        if (n == -EAGAIN) /* the time that _mapper.py gave the socket is over */
            return -ETIMEDOUT;
        return n == sizeof answer ? -answer : -ECANCELED;
    }
    for (; c->index < 3; c->index++) {
        int error = write_file(files[c->index], texts[c->index]);
        if (error < 0)
            return error;
    }
    c->index = 0;
    return 0;
}

/* ---- descriptors ------------------------------------------------------------------------- */

void sbx_point_at_strings(const struct sbx_job *job) {
    const char **slot = job->vec, *string = job->strings;
    int n_words = job->n_candidates + job->n_args;
    for (int i = 0; i < n_words + job->n_env; i++) {
        if (i == n_words)
            *slot++ = NULL;
        *slot++ = string;
        string += strlen(string) + 1;
    }
    if (job->n_env == 0)
        *slot++ = NULL;
    *slot = NULL;
}

static int is_one_of(long fd, const int *numbers, int n) {
    for (int i = 0; i < n; i++)
        if (numbers[i] == fd)
            return 1;
    return 0;
}

/* A copy of FD that is none of the N numbers. Copies on the way to it stay, until what belongs
 * there takes their place or the exec closes them. */
static long move_away(long fd, const int *numbers, int n) {
    long copy = -1;
    do
        copy = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC, copy + 1);
    while (copy >= 0 && is_one_of(copy, numbers, n));
    return copy == -EINVAL ? -EMFILE : copy; /* fcntl(2): beyond RLIMIT_NOFILE */
}

/* Which of them is still to go elsewhere, and stands where number I belongs; -1: none. */
static int in_the_way(int i, const int *from, const int *to, int n, uint64_t is_put) {
    for (int j = 0; j < n; j++)
        if (j != i && !(is_put >> j & 1) && from[j] == to[i] && from[j] != to[j])
            return j;
    return -1;
}

/* Puts every descriptor where it belongs, open over an exec: first those that replace none which is
 * still to go elsewhere. Where there is no such one they stand in a ring, and one is moved away. */
static int put_descriptors(struct sbx_child *c, int *from, const int *to, int n) {
    uint64_t is_put = 0;
    int in_ring = -1;
    for (c->index = 0; c->index < n; c->index++) {
        int *fd = &from[c->index];
        if (*fd == SBX_NULL)
            *fd = (int)raw(__NR_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
        if (*fd < 0)
            return *fd;
    }
    for (int left = n, before = n + 1; left > 0;) {
        if (left == before) {
            c->index = in_ring;
            from[in_ring] = (int)move_away(from[in_ring], to, n);
            if (from[in_ring] < 0)
                return from[in_ring];
        }
        before = left;
        for (c->index = 0; c->index < n; c->index++) {
            int i = c->index, other = in_the_way(i, from, to, n, is_put);
            if (other >= 0 && !(is_put >> i & 1))
                in_ring = other;
            if (other >= 0 || is_put >> i & 1)
                continue;
            long result = from[i] == to[i] ? raw(__NR_fcntl, to[i], F_SETFD, 0)
                                           : raw(__NR_dup3, from[i], to[i], 0);
            if (result < 0)
                return (int)result;
            is_put |= (uint64_t)1 << i;
            left--;
        }
    }
    c->index = 0;
    return 0;
}

/* 0, 1, 2 and, for the reaper, its two; then what it is to pass on to the command. What else is
 * used later may stand in the way as well: the reaper's program, and cgroups. */
static int place_stdio(struct sbx_child *c) {
    const struct sbx_job *job = c->job;
    int from[REAPER_FDS + SBX_MOST_PASSED], to[REAPER_FDS + SBX_MOST_PASSED], n = 3;
    const int first[REAPER_FDS] = {c->stdio[0], c->stdio[1], c->stdio[2], c->status, c->lifeline};
    if (c->place->reaper)
        n = REAPER_FDS + job->n_passed;
    for (int i = 0; i < n; i++) {
        from[i] = i < REAPER_FDS ? first[i] : job->passed[i - REAPER_FDS];
        to[i] = i;
    }
    for (int i = -1; i < job->n_cgroups; i++) {
        int *fd = i < 0 ? &c->init : &c->cgroups[i];
        if (i >= 0)
            *fd = job->cgroups[i];
        if (!is_one_of(*fd, to, n))
            continue;
        *fd = (int)move_away(*fd, to, n);
        if (*fd < 0)
            return *fd;
    }
    return put_descriptors(c, from, to, n);
}

/* The host's /dev/null is there now only; a reaper's child has it already, or gets what it gets
 * later, with the order. */
static int do_stdio(struct sbx_child *c) { return c->inside ? 0 : place_stdio(c); }

/* ---- session, keyring, network, name ----------------------------------------------------- */

static int do_session(struct sbx_child *c) {
    long session = c->place->session ? raw(__NR_setsid, 0) : 0;
    return session < 0 ? (int)session : 0;
}

static int do_keyring(struct sbx_child *c) {
    if (!c->place->keyring)
        return 0;
    long serial = raw(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    /* A kernel without keyrings has none to share. Where every call is refused, a filter does it,
     * and the command has inherited that as well. */
    if (serial == -ENOSYS || (serial == -EPERM && raw(__NR_keyctl, -1) == -EPERM))
        return 0;
    return serial < 0 ? (int)serial : 0;
}

/* Of a process that shares its memory, and whose parent waits for its exec, the kernel changes this
 * alone (__set_oom_adj in fs/proc/base.c); a resident does it for all its runs. */
static int do_oom_score(struct sbx_child *c) {
    const char *score = c->place->limits.oom_score_adj;
    return score ? write_file("/proc/self/oom_score_adj", score) : 0;
}

static int do_loopback(struct sbx_child *c) {
    if (!(c->place->namespaces & CLONE_NEWNET))
        return 0;
    struct ifreq request = {.ifr_name = "lo"};
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    long fd = raw(__NR_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return (int)fd;
    long result = raw(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    close_fd(fd);
    return (int)result;
}

/* What a resident looks at after each run, put where it expects it. */
static int do_watch(struct sbx_child *c) {
    static const char *const files[] = {
        "/proc/self/net/dev",         "/proc/self/net/sockstat",  "/proc/self/net/ip6_flowlabel",
        "/proc/self/coredump_filter", "/proc/self/oom_score_adj", "/proc/self/projid_map"};
    int from = c->place->namespaces & CLONE_NEWNET ? 0 : RESIDENT_MEMORY_FD - REAPER_FDS;
    if (c->place->reaper != SBX_RESIDENT)
        return 0;
    raw(RAW_close_range, REAPER_FDS, RESIDENT_FDS - 1, 0);
    for (c->index = from; c->index < RESIDENT_FDS - REAPER_FDS; c->index++) {
        int wanted = REAPER_FDS + c->index;
        long fd = raw(__NR_openat, AT_FDCWD, files[c->index], O_RDONLY), result = fd;
        if (fd >= 0 && fd != wanted) {
            result = raw(__NR_dup3, fd, wanted, 0);
            close_fd(fd);
        }
        if (result < 0 && !(result == -ENOENT && wanted == RESIDENT_LABELS_FD)) /* no IPv6 */
            return (int)result;
    }
    c->index = 0;
    return 0;
}

static int do_hostname(struct sbx_child *c) {
    const char *name = c->place->hostname;
    return name ? (int)raw(__NR_sethostname, name, strlen(name)) : 0;
}

/* ---- the root ---------------------------------------------------------------------------- */

static int do_private(struct sbx_child *c) {
    if (!(c->place->namespaces & CLONE_NEWNS))
        return 0;
    return (int)raw(__NR_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
}

static int do_root(struct sbx_child *c) {
    long fd;
    if (c->inside) { /* mounts go below the root that is there already */
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

int sbx_add_flags(long tree, uint64_t flags, int recursive) {
    struct raw_mount_attr attr = {.set = flags};
    return (int)raw(RAW_mount_setattr, tree, "", EMPTY_PATH | recursive, &attr, sizeof attr);
}

static int do_read_only(struct sbx_child *c) {
    uint64_t flags =
        (c->place->read_only ? ATTR_READ_ONLY : 0) | (c->place->no_devices ? ATTR_NODEV : 0);
    return c->tree >= 0 && flags ? sbx_add_flags(c->tree, flags, RECURSIVE) : 0;
}

/* Mounts can be mounted on one that is attached somewhere, and on top of the old root no name leads
 * to the copy but ".." at the root. So all that the caller names is opened before. */
static int do_attach(struct sbx_child *c) {
    if (c->root < 0)
        return 0;
    return (int)raw(RAW_move_mount, c->tree, "", AT_FDCWD, "/", FROM_EMPTY_PATH);
}

/* ---- mounts ------------------------------------------------------------------------------ */

long sbx_new_filesystem(const char *type, const char *const *options, int attributes) {
    long context = raw(RAW_fsopen, type, 1 /* FSOPEN_CLOEXEC */);
    if (context < 0)
        return context;
    long result = 0;
    for (; *options && result >= 0; options += 2)
        if (options[1])
            result = raw(RAW_fsconfig, context, FS_SET_STRING, options[0], options[1], 0);
    if (result >= 0)
        result = raw(RAW_fsconfig, context, FS_CREATE, 0, 0, 0);
    if (result >= 0)
        result = raw(RAW_fsmount, context, 1 /* FSMOUNT_CLOEXEC */, attributes);
    close_fd(context);
    return result;
}

static long status_of(long fd, struct raw_statx *status) {
    return raw(__NR_statx, fd, "", EMPTY_PATH | DONT_SYNC, WANT_MODE | WANT_MOUNT_ID, status);
}

static int is_device(long fd) {
    struct raw_statx status;
    return status_of(fd, &status) >= 0 && (S_ISCHR(status.mode) || S_ISBLK(status.mode));
}

/* A bind, or a hole: of the caller's own root, as the copy is read-only by now. */
static long open_source(struct sbx_child *c, const struct sbx_mount *m) {
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

/* There is a descriptor for each source. The limit is the child's own, and its caller's is not
 * touched; the command gets it back as it was. */
static long raise_open_files(struct sbx_child *c) {
    uint64_t *limit = c->open_files;
    if (limit[1])
        return -EMFILE;
    long error = raw(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, limit);
    uint64_t raised[] = {limit[1], limit[1]};
    return error < 0 ? error : raw(__NR_prlimit64, 0, 7, raised, 0);
}

/* All of them before the copy lies over the root: a name with more ".." than there are directories,
 * or a link of that kind, would lead into the copy afterwards. */
static int do_sources(struct sbx_child *c) {
    for (int i = 0; i < c->place->n_mounts && !c->inside; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        if (m->kind != SBX_BIND && m->kind != SBX_HOLE)
            continue;
        c->run->at.index = c->index = i;
        long tree = open_source(c, m);
        if (tree == -EMFILE && raise_open_files(c) >= 0)
            tree = open_source(c, m);
        if (tree < 0)
            return (int)tree;
        c->job->sources[i] = (int)tree;
    }
    c->index = 0;
    return 0;
}

/* What is mounted: opened before, or a file system of the run's own. */
static long take_source(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    const char *none[] = {NULL};
    const char *tmpfs[] = {"size", m->size, "nr_inodes", m->inodes, "mode", m->mode, NULL};
    static const char *const dev[] = {"size", "1048576", "nr_inodes", "1024", "mode", "755", NULL};
    switch (m->kind) {
    case SBX_BIND:
    case SBX_HOLE:
        return c->job->sources[i];
    case SBX_TMPFS:
        return sbx_new_filesystem("tmpfs", tmpfs, ATTR_NOSUID | ATTR_NODEV);
    case SBX_PROC:
        return sbx_new_filesystem("proc", none, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
    case SBX_DEV:
        return sbx_new_filesystem("tmpfs", dev, ATTR_NOSUID | ATTR_NOEXEC);
    case SBX_SEAL:
        break;
    }
    return -EINVAL;
}

/* Whether a directory lies in a file system that one of the mounts before I made for the run. Of
 * several at the same place the last is the one that is seen. */
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

/* Makes what is missing of the target of mount I where it lies in a file system of the run's own:
 * directories, and in the end a file where the source is one. -ENOENT: it lies elsewhere. */
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

/* What is mounted there would hide nothing of the root, and mounts below it would miss it. */
static int is_the_root(struct sbx_child *c, const struct raw_statx *target) {
    struct raw_statx root;
    if (!(target->attributes & IS_MOUNT_ROOT) || status_of(c->tree, &root) < 0)
        return 0;
    return root.mount_id == target->mount_id;
}

int sbx_is_stub(int mode) { return (mode & 05022) == 05000 || (mode & 05277) == 01000; }

/* The place of mount I below the tree, made if it may be. -ESTALE: it is a stub that another run
 * made and may take away at any moment; Python takes hold of it first and tries again. */
static long open_target(struct sbx_child *c, int i, long source) {
    const struct sbx_mount *m = &c->place->mounts[i];
    struct raw_statx there;
    long fd = sbx_open_in_root(c->tree, m->target, m->flags & SBX_OPTIONAL ? O_SEARCH_DIR : O_PATH);
    if (fd == -ENOENT && !(m->flags & SBX_OPTIONAL)) {
        long error = status_of(source, &there);
        uint64_t mask = (uint64_t)raw(__NR_umask, 0); /* it would keep other users out */
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

/* uid 0 may write these without any capability, and the kernel obeys (proc(5): core_pattern,
 * sysrq-trigger): read-only, as other sandboxes have them. */
static const char covered[][16] = {
    "sys",  "sysrq-trigger", "irq",  "bus",           "fs",
    "acpi", "asound",        "scsi", "dynamic_debug", "latency_stats"};
enum { N_COVERED = sizeof covered / sizeof *covered };
#define ASK_AGAIN_NS 1000000000LL

static int is_absent(long proc, const char *name) {
    char entries[128];
    long fd = raw(__NR_openat, proc, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fd == -ENOENT;
    long n = raw(__NR_getdents64, fd, entries, sizeof entries);
    close_fd(fd);
    return n == 48; /* "." and ".." */
}

/* Which of them the kernel does not have, or has with nothing in it (as /proc/acpi often is), a bit
 * for each. They are the same in every proc, and to look up a name that is not there takes as long
 * as a mount: so the answer serves all that share this memory for a second, in which a module may
 * be loaded that brings one of them. */
static uint32_t absent_parts(long new_proc) {
    static uint32_t absent;
    static int64_t asked;
    struct {
        int64_t seconds, nanoseconds;
    } now = {0, 0};
    raw(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &now);
    int64_t ns = now.seconds * ASK_AGAIN_NS + now.nanoseconds;
    int64_t before = __atomic_load_n(&asked, __ATOMIC_ACQUIRE);
    if (before && ns - before < ASK_AGAIN_NS)
        return __atomic_load_n(&absent, __ATOMIC_RELAXED);
    uint32_t found = 0;
    for (size_t i = 0; i < N_COVERED; i++)
        found |= (uint32_t)is_absent(new_proc, covered[i]) << i;
    __atomic_store_n(&absent, found, __ATOMIC_RELAXED);
    __atomic_store_n(&asked, ns, __ATOMIC_RELEASE);
    return found;
}

static int clear_read_only(long mount) {
    struct raw_mount_attr attr = {.clear = ATTR_READ_ONLY};
    return (int)raw(RAW_mount_setattr, mount, "", EMPTY_PATH, &attr, sizeof attr);
}

/* A bind mount is as read-only as what it is bound from. So a NEW proc, which has nothing mounted
 * below it, is read-only while the covers are made, and needs no mount_setattr for each of them. */
static int cover_proc(long proc, int is_new) {
    struct raw_mount_attr attr = {.set = ATTR_READ_ONLY};
    uint32_t absent = is_new ? absent_parts(proc) : 0; /* the caller may have mounted over some */
    long result = raw(__NR_fchdir, proc);
    if (result >= 0 && is_new)
        result = sbx_add_flags(proc, ATTR_READ_ONLY, 0);
    for (size_t i = 0; i < N_COVERED && result >= 0; i++) {
        if (absent >> i & 1)
            continue;
        result = raw(__NR_mount, covered[i], covered[i], 0, MS_BIND | (is_new ? 0 : MS_REC), 0);
        if (result >= 0 && !is_new)
            result = raw(RAW_mount_setattr, proc, covered[i], RECURSIVE, &attr, sizeof attr);
        result = result == -ENOENT ? 0 : result;
    }
    return (int)(result >= 0 && is_new ? clear_read_only(proc) : result);
}

/* File systems whose files command the kernel, or processes that are not of the run, and ask for no
 * capability: uid 0 is enough, or to own them, as a user owns the cgroups that are handed to him.
 */
static int is_of_the_kernel(long type) {
    static const uint32_t types[] = {
        0x62656572 /* sysfs */,    0x0027e0eb /* cgroup */,      0x63677270 /* cgroup2 */,
        0x64626720 /* debugfs */,  0x74726163 /* tracefs */,     0x73636673 /* securityfs */,
        0x62656570 /* configfs */, 0xde5e81e4 /* efivarfs */,    0x6165676c /* pstore */,
        0xcafe4a11 /* bpf */,      0xf97cff8c /* selinuxfs */,   0x43415d53 /* smackfs */,
        0x65735543 /* fusectl */,  0x42494e4d /* binfmt_misc */, 0x07655821 /* resctrl */,
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if ((uint32_t)type == types[i])
            return 1;
    return 0;
}

/* The type of a mounted file system. statmount(2), Linux 6.8, does not ask the server of one that
 * is remote or in user space; statfs(2) does. */
static long magic_of(long tree) {
    struct raw_statx there = {.mount_id = 0};
    struct statfs filesystem;
    uint64_t answer[64] = {0}; /* struct statmount: the magic is at 24 */
    long result = raw(__NR_statx, tree, "", EMPTY_PATH | DONT_SYNC, WANT_UNIQUE_ID, &there);
    struct {
        uint32_t size, spare;
        uint64_t mount, wanted;
    } request = {24, 0, there.mount_id, 1 /* STATMOUNT_SB_BASIC */};
    if (result >= 0)
        result = raw(457 /* statmount */, &request, answer, sizeof answer, 0);
    if (result >= 0 && answer[1] & 1)
        return (long)answer[3];
    result = raw(__NR_fstatfs, tree, &filesystem);
    return result < 0 ? result : (long)filesystem.f_type;
}

/* TREE is where it belongs already, as proc is covered by mounts below it. A part of a proc, which
 * may be /proc/sys, is read-only as a whole. */
static int seal(long tree) {
    struct raw_statx top = {.inode = 0};
    long magic = magic_of(tree), result = magic < 0 ? magic : 0;
    int is_proc = magic == 0x9fa0;
    if (is_proc)
        result = raw(__NR_statx, tree, "", EMPTY_PATH, WANT_INODE, &top);
    if (result < 0)
        return (int)result;
    if (is_proc && top.inode == 1) /* PROC_ROOT_INO */
        return cover_proc(tree, 0);
    return is_proc || is_of_the_kernel(magic) ? sbx_add_flags(tree, ATTR_READ_ONLY, RECURSIVE) : 0;
}

static int do_seal(struct sbx_child *c, const struct sbx_mount *m) {
    struct raw_statx there;
    c->run->at.step = SBX_STEP_TARGET;
    long target = sbx_open_in_root(c->tree, m->target, O_PATH);
    if (target < 0) /* it is not there, or not to be reached: nor can the command */
        return target == -ENOENT || target == -ENOTDIR || target == -EACCES ? 0 : (int)target;
    c->run->at.step = SBX_STEP_MOUNT;
    long result = status_of(target, &there);
    if (result >= 0 && there.attributes & IS_MOUNT_ROOT && !is_the_root(c, &there))
        result = seal(target);
    close_fd(target);
    return (int)result;
}

static int do_mount(struct sbx_child *c, int i) {
    const struct sbx_mount *m = &c->place->mounts[i];
    enum sbx_step *step = &c->run->at.step;
    int optional = m->flags & SBX_OPTIONAL;
    c->run->at.index = i;
    if (m->kind == SBX_SEAL)
        return do_seal(c, m);
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
    if (result >= 0 && m->kind == SBX_DEV) /* of a run in a slot: the resident's lies beneath */
        result = sbx_fill_dev(m, tree, c->inside ? target : -1);
    if (result >= 0 && m->flags & SBX_COVER)
        result = m->kind == SBX_PROC ? cover_proc(tree, 1) : seal(tree);
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

/* Another command in the same root may have renamed or removed a target meanwhile, and with it what
 * is mounted there: then nothing may run. */
static int check_mounts(struct sbx_child *c, const struct sbx_seen *expected, int only) {
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

/* Steps TARGET and MOUNT, mount by mount: later ones may lie in earlier ones. */
static int do_mounts(struct sbx_child *c) {
    if (c->kept && check_mounts(c, c->kept, SBX_KEPT) < 0)
        return -1;
    for (int i = 0; i < c->place->n_mounts; i++) {
        int error = c->place->mounts[i].flags & SBX_KEPT ? 0 : do_mount(c, i);
        if (error < 0)
            return sbx_fail(c->run, c->run->at.step, i, error);
    }
    if (c->dev >= 0) {
        int error = sbx_add_flags(c->dev, ATTR_READ_ONLY, 0);
        close_fd(c->dev);
        if (error < 0)
            return error;
    }
    if (c->open_files[1])
        raw(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, c->open_files, 0);
    for (int i = 0; c->seen && i < c->place->n_mounts; i++) /* of a seal nobody looks at it */
        c->seen[i] = sbx_see_mount(c->place->mounts[i].target);
    return 0;
}

enum { MOST_AT_ONCE = 128, TRIES_OF_A_NAME = 16, NAME_IN_ANSWER = 512 };

struct raw_mount { /* struct statmount, up to what is read of it */
    uint64_t mask[2], device, magic, flags, id, parent, old_ids, attributes, between[4];
    uint32_t root, point; /* offsets behind NAME_IN_ANSWER */
    uint64_t rest[50];
    char names[4096];
};

static long ask(long call, uint64_t mount, uint64_t wanted, void *answer, size_t size) {
    struct {
        uint32_t size, spare;
        uint64_t mount, wanted;
    } request = {24, 0, mount, wanted};
    return raw(call, &request, answer, size, 0);
}

/* Whether it is clear what a run finds by the name that a mount has now: the mount, which is sealed
 * then, or what is mounted over it. */
static int seal_by_name(uint64_t id, const char *name) {
    struct raw_mount above;
    struct raw_statx there = {.mount_id = 0}, sys = {.mount_id = 0};
    long fd = sbx_open_in_root(AT_FDCWD, name, O_PATH), result = 0;
    if (fd < 0)
        return 0;
    raw(__NR_statx, fd, "", EMPTY_PATH | DONT_SYNC, WANT_UNIQUE_ID, &there);
    raw(__NR_statx, fd, "sys", DONT_SYNC, WANT_MOUNT_ID, &sys);
    int is_it = there.mount_id == id;
    if (is_it && !(sys.attributes & IS_MOUNT_ROOT)) /* of a proc: it is covered */
        result = seal(fd);
    close_fd(fd);
    if (!is_it && ask(457, there.mount_id, 2 /* STATMOUNT_MNT_BASIC */, &above, sizeof above) >= 0)
        is_it = above.parent == id;
    return result < 0 ? (int)result : is_it;
}

/* A command of another run may have renamed a directory on the way to a mount since its name was
 * looked up, and the mount went along. So the kernel is asked what is mounted below the new root
 * (Linux 6.8). What no name leads to lies beneath another mount. */
static int seal_the_rest(int with_proc) {
    uint64_t ids[MOST_AT_ONCE], last = 0;
    struct raw_mount mount;
    long n = MOST_AT_ONCE, result = 0;
    while (n == MOST_AT_ONCE && result >= 0) {
        n = ask(458 /* listmount */, ~(uint64_t)0 /* LSMT_ROOT */, last, ids, MOST_AT_ONCE);
        for (long i = 0; i < n && result >= 0; i++) {
            last = ids[i];
            result = 0;
            for (int tries = 0; result == 0 && tries < TRIES_OF_A_NAME; tries++) {
                /* STATMOUNT_SB_BASIC, _MNT_BASIC, _MNT_POINT */
                if (ask(457 /* statmount */, last, 0x13, &mount, sizeof mount) < 0
                    || (mount.mask[1] & 0x13) != 0x13 || mount.attributes & ATTR_READ_ONLY)
                    break;
                if (!is_of_the_kernel((long)mount.magic) && !(with_proc && mount.magic == 0x9fa0))
                    break;
                result = seal_by_name(last, (char *)&mount + NAME_IN_ANSWER + mount.point);
            }
        }
    }
    return result < 0 ? (int)result : 0;
}

static int lies_deep(const char *path) {
    for (path++; *path && *path != '/'; path++)
        ;
    return *path;
}

/* A mount just below the root cannot be renamed where it is one: for /sys alone nobody is asked. */
static int do_seals(struct sbx_child *c) {
    int any = 0, with_proc = 1;
    for (int i = 0; i < c->place->n_mounts; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        any |= m->kind == SBX_SEAL && lies_deep(m->target);
        if (m->kind == SBX_PROC && !(m->flags & SBX_COVER)) /* is to stay whole */
            with_proc = 0;
    }
    return any ? seal_the_rest(with_proc) : 0;
}

/* pivot_root(2), NOTES: with "." twice the old root ends up on top of the new one, and goes. */
static int do_pivot(struct sbx_child *c) {
    if (c->root < 0)
        return 0;
    long result = raw(__NR_fchdir, c->tree);
    if (result >= 0)
        result = raw(__NR_pivot_root, ".", ".");
    if (result >= 0)
        result = raw(__NR_umount2, ".", MNT_DETACH);
    if (result >= 0)
        result = raw(__NR_chdir, "/");
    return result < 0 ? (int)result : do_seals(c);
}

/* Step ROOT went there. */
static int do_chroot(struct sbx_child *c) {
    return c->place->root && c->tree < 0 ? (int)raw(__NR_chroot, ".") : 0;
}

static int do_order(struct sbx_child *c) {
    if (!c->order)
        return 0;
    int error = c->order(c);
    if (error == 0)
        error = place_stdio(c);
    return error < 0 ? error : check_mounts(c, c->seen, 0);
}

/* The session of the command is its own: a terminal of the caller's is out of its reach. */
static int do_terminal(struct sbx_child *c) {
    if (!c->job->terminal || c->place->reaper)
        return 0;
    return (int)raw(__NR_ioctl, 0, TIOCSCTTY, 0);
}

/* Symbolic links that the root holds stay inside; those of /proc, which could lead anywhere a
 * descriptor does, are not followed at all (CVE-2024-21626). */
static int do_cwd(struct sbx_child *c) {
    const char *cwd = c->job->cwd;
    if (!cwd)
        return 0;
    if (!c->place->root)
        raw(__NR_chdir, "/");
    if (strcmp(cwd, "/") == 0) /* there already */
        return 0;
    long fd = sbx_open_in_root(AT_FDCWD, cwd, O_SEARCH_DIR);
    if (fd < 0)
        return (int)fd;
    long result = raw(__NR_fchdir, fd);
    close_fd(fd);
    return (int)result;
}

/* ---- limits -------------------------------------------------------------------------------- */

/* A cgroup namespace is rooted where its maker is: one that was made with the other namespaces
 * shows the caller's cgroup, and below it those of other runs. So one more is made behind the join.
 */
static int do_cgroup(struct sbx_child *c) {
    for (c->index = 0; c->index < c->job->n_cgroups; c->index++) {
        long result = raw(__NR_write, c->cgroups[c->index], "0", 1); /* whoever writes */
        if (result < 0)
            return (int)result;
    }
    c->index = 0;
    int has_namespace = c->inside || c->place->namespaces & CLONE_NEWCGROUP;
    return c->job->n_cgroups && has_namespace ? (int)raw(__NR_unshare, CLONE_NEWCGROUP) : 0;
}

/* The kernel leaves out what the cpuset, or the machine, does not have. */
static long set_cpus(const uint64_t *cpus, size_t size) {
    uint64_t have[16] = {0};
    long result = raw(__NR_sched_setaffinity, 0, size, cpus);
    if (result >= 0)
        result = raw(__NR_sched_getaffinity, 0, sizeof have, have);
    for (size_t i = 0; i < size / sizeof *cpus && result >= 0; i++)
        if (cpus[i] & ~have[i])
            result = -EINVAL;
    return result;
}

static long set_limit(const struct sbx_limits *l, enum sbx_limit which) {
    int priority = 0; /* struct sched_param */
    switch (which) {
    case SBX_NICE:
        return raw(__NR_setpriority, 0 /* PRIO_PROCESS */, 0, l->nice);
    case SBX_SCHEDULER:
        return raw(__NR_sched_setscheduler, 0, l->scheduler, &priority);
    case SBX_CPUS:
        return set_cpus(l->cpus, sizeof l->cpus);
    case SBX_UMASK:
        return raw(__NR_umask, l->umask);
    case SBX_PERSONALITY:
        return raw(__NR_personality, l->personality);
    }
    return -EINVAL;
}

/* Before the capabilities go that some of them take, and inherited by all that follows. A reaper
 * sets them for its command, and not for itself. */
static int do_limits(struct sbx_child *c) {
    const struct sbx_limits *l = &c->place->limits;
    if (c->place->reaper)
        return 0;
    uint64_t wanted = l->rlimits | (uint64_t)l->others << 16;
    for (c->index = 0; wanted; c->index++, wanted >>= 1) {
        long result = 0;
        if (wanted & 1)
            result = c->index < 16 ? raw(__NR_prlimit64, 0, c->index, l->rlimit[c->index], 0)
                                   : set_limit(l, (enum sbx_limit)(c->index - 16));
        if (result < 0)
            return (int)result;
    }
    c->index = 0;
    uint64_t seconds = (uint64_t)c->job->cpu_seconds, both[] = {seconds, seconds + 1};
    return seconds ? (int)raw(__NR_prlimit64, 0, 0 /* RLIMIT_CPU */, both, 0) : 0;
}

/* ---- privilege --------------------------------------------------------------------------- */

int sbx_cut_bounding_set(uint64_t keep) {
    for (int cap = 0; cap < 64; cap++) {
        if (keep >> cap & 1)
            continue;
        long result = raw(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (result == -EINVAL) /* one more than the kernel knows */
            break;
        if (result < 0)
            return (int)result;
    }
    return 0;
}

/* Of uid 0 exec gives to the program what the bounding set lets through; of another, and of uid 0
 * under SECBIT_NOROOT, only what is ambient (capabilities(7)). */
static int keeps_ambient_only(void) {
    return raw(__NR_geteuid, 0) || raw(__NR_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0) & 1 /* NOROOT */;
}

static int raise_ambient(uint64_t capabilities) {
    long result = 0;
    for (int cap = 0; cap < 64 && result >= 0; cap++)
        if (capabilities >> cap & 1)
            result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return (int)result;
}

/* A reaper keeps all that its caller has, so that its command lacks something that it has, and cuts
 * the bounding set itself, for its command.
 *
 * Before its exec this process lives in the caller's memory. Who may read that through it is told
 * by a comparison of permitted sets (ptrace(2)): so the permitted set stays whole until the exec.
 * What the program has after it is cut by the other sets alone. Behind the exec of a reaper, whose
 * memory nobody may read, the permitted set is cut as well, because ids and signals come after it.
 */
static int do_capabilities(struct sbx_child *c) {
    int reaper = c->place->reaper;
    if (!c->place->cut_capabilities && reaper != SBX_RESIDENT)
        return 0;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    long result = raw(__NR_capget, &header, sets);
    if (result < 0)
        return (int)result;
    uint64_t have = sets[0].permitted | (uint64_t)sets[1].permitted << 32;
    uint64_t keep = reaper ? have : c->place->capabilities & have;
    uint64_t must = reaper ? have : c->place->must_capabilities;
    if (must & ~have)
        return -EPERM;
    int more = c->inside && c->place->change_ids; /* until step USER, which cuts the rest */
    keep |= more ? have & ((uint64_t)1 << CAP_SETUID | (uint64_t)1 << CAP_SETGID) : 0;
    if (!c->inside)
        result = sbx_cut_bounding_set(keep); /* an exec must not give more than the caller has */
    if (result >= 0 && !c->inside && !reaper)
        result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (result < 0)
        return (int)result;
    uint64_t ambient = must && !more && keeps_ambient_only() ? must : 0;
    for (int i = 0; i < 2; i++) {
        sets[i].inheritable = (uint32_t)(ambient >> 32 * i);
        if (c->inside)
            sets[i].effective = sets[i].permitted = (uint32_t)(keep >> 32 * i);
    }
    result = raw(__NR_capset, &header, sets);
    return result < 0 ? (int)result : raise_ambient(ambient);
}

static int do_no_new_privs(struct sbx_child *c) {
    if (!c->place->no_new_privs || c->place->reaper)
        return 0;
    return (int)raw(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* Without SPEC_ALLOW the kernel would turn off what makes loads faster (Speculative Store Bypass)
 * on some machines. */
static int install_filter(const void *filter, size_t length) {
    struct {
        unsigned short length;
        const void *filter;
    } program = {(unsigned short)length, filter};
    long result = raw(__NR_seccomp, SET_MODE_FILTER, FILTER_SPEC_ALLOW, &program);
    if (result == -EINVAL)
        result = raw(__NR_seccomp, SET_MODE_FILTER, 0, &program);
    return (int)result;
}

int sbx_install_filter(const struct sbx_place *place) {
    return install_filter(place->filter, (size_t)place->filter_length);
}

/* keyctl(2) has an operation that puts the session keyring of a process into its parent. Without a
 * reaper that is the caller, so a filter of a few instructions answers EPERM to it, by the numbers
 * of every ABI of the machine (seccomp(2)). It takes no_new_privs or CAP_SYS_ADMIN. */
static int do_parent_keyring(struct sbx_child *c) {
#if defined(__x86_64__)
    enum { ARCH = 0xc000003e, KEYCTL = 250, ARCH_32 = 0x40000003, KEYCTL_32 = 288 };
#else
    enum { ARCH = 0xc00000b7, KEYCTL = 219, ARCH_32 = 0x40000028, KEYCTL_32 = 311 };
#endif
    enum { LOAD = 0x20, IF_EQUAL = 0x15, AND = 0x54, RETURN = 0x06 };
    const struct {
        uint16_t code;
        uint8_t yes, no;
        uint32_t k;
    } filter[] = {
        {LOAD, 0, 0, 4}, /* struct seccomp_data: nr, arch, instruction_pointer, args */
        {IF_EQUAL, 0, 3, ARCH},
        {LOAD, 0, 0, 0},
        {AND, 0, 0, ~0x40000000U}, /* x32 has the same numbers, with this bit */
        {IF_EQUAL, 3, 6, KEYCTL},
        {IF_EQUAL, 0, 5, ARCH_32},
        {LOAD, 0, 0, 0},
        {IF_EQUAL, 0, 3, KEYCTL_32},
        {LOAD, 0, 0, 16},
        {IF_EQUAL, 0, 1, KEYCTL_SESSION_TO_PARENT},
        {RETURN, 0, 0, 0x00050000 | EPERM}, /* SECCOMP_RET_ERRNO */
        {RETURN, 0, 0, 0x7fff0000},         /* SECCOMP_RET_ALLOW */
    };
    if (!c->place->guard_keyring || c->inside)
        return 0;
    return install_filter(filter, sizeof filter / sizeof *filter);
}

/* After no_new_privs, without which it takes CAP_SYS_ADMIN; and before the capabilities go. */
static int do_seccomp(struct sbx_child *c) {
    const struct sbx_place *place = c->place;
    if (!place->filter || place->reaper || place->filter_when != SBX_FILTER_EARLY)
        return 0;
    return sbx_install_filter(place);
}

/* Without a reaper this is what ends the command with its caller. It follows the calling thread,
 * which stays in the call for as long as the run lasts; a change of credentials would clear it.
 * That thread may have died before: the lifeline tells (on Linux < 6.9 of its process only, some
 * threads of which may take their time), and so does a parent that is another one. */
static int do_parent_death(struct sbx_child *c) {
    if (c->inside)
        return 0;
    if (c->place->reaper) /* it has a lifeline, and outlives the thread */
        return (int)raw(__NR_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0);
    long result = raw(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct pollfd caller = {c->lifeline, POLLIN, 0};
    struct {
        long seconds, nanoseconds;
    } at_once = {0, 0};
    long parent = raw(__NR_getppid, 0); /* 0: in another pid namespace */
    if (result >= 0 && parent != 0 && parent != c->run->owner)
        result = -ESRCH;
    if (result >= 0 && raw(__NR_ppoll, &caller, 1, &at_once, 0, 0) == 1)
        result = -ESRCH;
    return (int)result;
}

/* CLONE_CLEAR_SIGHAND, and every exec, leave SIG_IGN as it is (Python ignores SIGPIPE). Both
 * signals that cannot be changed answer EINVAL. */
static int do_signals(struct sbx_child *c) {
    struct raw_sigaction dfl = {0};
    uint64_t none = 0, all = RAW_ALL_SIGNALS;
    struct {
        long seconds, nanoseconds;
    } at_once = {0, 0};
    for (int signum = 1; signum <= 64 && !c->inside; signum++)
        raw(__NR_rt_sigaction, signum, &dfl, 0, RAW_SIGSET_SIZE);
    /* The reaper wants them blocked until it is ready, and unblocks them for the command. */
    if (c->place->reaper)
        return 0;
    /* What was sent to the caller's group before the child had a session of its own was not meant
     * for the command, and would end it now. */
    while (!c->inside && raw(__NR_rt_sigtimedwait, &all, 0, &at_once, RAW_SIGSET_SIZE) > 0)
        ;
    raw(__NR_rt_sigprocmask, SIG_SETMASK, &none, 0, RAW_SIGSET_SIZE);
    return 0;
}

/* ---- exec -------------------------------------------------------------------------------- */

static int do_reaper(struct sbx_child *c) {
    if (!c->place->reaper)
        return 0;
    const char *const argv[] = {"sandboxlib-init", NULL};
    int first = c->place->reaper == SBX_RESIDENT ? RESIDENT_FDS : REAPER_FDS + c->job->n_passed;
    long result = raw(RAW_close_range, first, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    if (result >= 0)
        result = raw(__NR_execveat, c->init, "", argv, argv + 1, EMPTY_PATH);
    return (int)result;
}

/* Whatever the change of ids left, which securebits decide (capabilities(7)): of uid 0 what it may
 * have, of another what was asked for by name, which has to be ambient to outlive the exec. */
static int cut_after_change(const struct sbx_place *place) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    uint64_t keep = place->cut_capabilities ? place->capabilities : ~(uint64_t)0;
    uint64_t ambient = place->uid || keeps_ambient_only() ? place->must_capabilities : 0;
    long result = raw(__NR_capget, &header, sets);
    if (place->uid)
        keep = place->must_capabilities;
    for (int i = 0; i < 2; i++) {
        sets[i].permitted &= (uint32_t)(keep >> 32 * i);
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = (uint32_t)(ambient >> 32 * i);
    }
    if (result >= 0)
        result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (result >= 0)
        result = raw(__NR_capset, &header, sets);
    return result < 0 ? (int)result : raise_ambient(ambient);
}

/* Behind the exec of the reaper, whose memory this is: elsewhere it would change what the caller
 * may be traced by. */
static int do_user(struct sbx_child *c) {
    const struct sbx_place *place = c->place;
    if (!c->inside || !place->change_ids)
        return 0;
    long result = 0;
    if (place->must_capabilities) /* the exec clears that */
        result = raw(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (result >= 0)
        result = raw(__NR_setgroups, place->n_groups, place->groups);
    if (result >= 0)
        result = raw(__NR_setresgid, place->gid, place->gid, place->gid);
    if (result >= 0)
        result = raw(__NR_setresuid, place->uid, place->uid, place->uid);
    if (result >= 0)
        result = cut_after_change(place);
    if (result >= 0)
        result = raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return (int)result;
}

static int do_exec(struct sbx_child *c) {
    const struct sbx_job *job = c->job;
    const char *const *paths = job->vec, *const *argv = paths + job->n_candidates;
    long result = raw(RAW_close_range, 3, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    int from[SBX_MOST_PASSED];
    for (int i = 0; i < job->n_passed; i++) /* the reaper has them in a row */
        from[i] = c->inside ? REAPER_FDS + i : job->passed_from[i];
    if (result >= 0)
        result = put_descriptors(c, from, job->passed, job->n_passed);
    if (result < 0)
        return (int)result;
    const struct sbx_place *place = c->place;
    if (!place->filter || place->filter_when != SBX_FILTER_LAST)
        return exec_first(paths, job->n_candidates, argv, c->envp, &c->index);
    int first = first_there(paths, job->n_candidates);
    result = sbx_install_filter(place);
    if (result < 0)
        return sbx_fail(c->run, SBX_STEP_SECCOMP, 0, result);
    return exec_alone(paths, first, job->n_candidates, argv, c->envp, &c->index);
}

/* Steps that nobody does `inside` are left out of the reaper's program. */
#ifdef SBX_INSIDE
#define OUTSIDE(act) 0
#else
#define OUTSIDE(act) act
#endif

/* The order of work. Sources before the root changes, privilege before exec, signals last. */
static const struct {
    enum sbx_step name;
    int (*act)(struct sbx_child *);
} steps[] = {
    {SBX_STEP_IDS, OUTSIDE(do_ids)},
    {SBX_STEP_STDIO, OUTSIDE(do_stdio)},
    {SBX_STEP_SESSION, do_session},
    {SBX_STEP_KEYRING, do_keyring},
    {SBX_STEP_OOM_SCORE, OUTSIDE(do_oom_score)},
    {SBX_STEP_LOOPBACK, OUTSIDE(do_loopback)},
    {SBX_STEP_WATCH, OUTSIDE(do_watch)},
    {SBX_STEP_HOSTNAME, OUTSIDE(do_hostname)},
    {SBX_STEP_PRIVATE, OUTSIDE(do_private)},
    {SBX_STEP_ROOT, do_root},
    {SBX_STEP_READ_ONLY, OUTSIDE(do_read_only)},
    {SBX_STEP_SOURCE, OUTSIDE(do_sources)},
    {SBX_STEP_ATTACH, OUTSIDE(do_attach)},
    {SBX_STEP_MOUNT, do_mounts},
    {SBX_STEP_PIVOT, OUTSIDE(do_pivot)},
    {SBX_STEP_CHROOT, OUTSIDE(do_chroot)},
    {SBX_STEP_ORDER, do_order},
    {SBX_STEP_TERMINAL, do_terminal},
    {SBX_STEP_CWD, do_cwd},
    {SBX_STEP_CGROUP, do_cgroup},
    {SBX_STEP_LIMITS, do_limits},
    {SBX_STEP_NO_NEW_PRIVS, do_no_new_privs},
    {SBX_STEP_PARENT_KEYRING, OUTSIDE(do_parent_keyring)},
    {SBX_STEP_SECCOMP, do_seccomp},
    {SBX_STEP_CAPABILITIES, do_capabilities},
    {SBX_STEP_PARENT_DEATH, OUTSIDE(do_parent_death)},
    {SBX_STEP_SIGNALS, do_signals},
    {SBX_STEP_REAPER, OUTSIDE(do_reaper)},
    {SBX_STEP_USER, do_user},
    {SBX_STEP_EXEC, do_exec},
};

int sbx_look_main(void *looker) {
    struct sbx_looker *l = looker;
    struct raw_statx there;
    char above[4096];
    size_t length = strlen(l->path);
    while (length && l->path[length - 1] != '/')
        length--;
    raw(RAW_close_range, 0, ~0U, 0); /* one that hangs keeps none of the caller's open */
    l->result = length < sizeof above ? 0 : -ENAMETOOLONG;
    if (l->result < 0)
        return 0;
    memcpy(above, l->path, length);
    above[length] = 0;
    long root = raw(__NR_openat, AT_FDCWD, l->root, O_SEARCH_DIR);
    long fd = root < 0 ? root : sbx_open_in_root((int)root, above, O_PATH);
    l->result = fd;
    if (fd >= 0)
        l->result = raw(__NR_statx, fd, "", EMPTY_PATH | FORCE_SYNC, WANT_MODE, &there);
    return 0;
}

int sbx_child_main(void *child) {
    struct sbx_child *c = child;
    /* A set-up that hangs ends with its caller as well. A resident's parent ends at once. */
    if (!c->inside && c->place->reaper != SBX_RESIDENT)
        raw(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        c->run->at.step = steps[i].name;
        c->run->at.index = 0;
        int error = steps[i].act ? steps[i].act(c) : 0;
        if (error < 0) {
            sbx_fail(c->run, steps[i].name, c->index, error);
            break;
        }
    }
    return 127; /* of the process; nobody reads it */
}
