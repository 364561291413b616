/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes read-only what commands the kernel: parts of /proc, sysfs, cgroups and their like.
 *
 * uid 0 may write these without any capability, and without a user namespace of its own the command
 * has the caller's uid 0.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/vfs.h>

/* uid 0 may write to these without any capability, and the kernel obeys (proc(5): core_pattern,
 * sysrq-trigger). Other sandboxes make them read-only as well. */
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

/* Returns a bit for each part that the kernel lacks, or that has nothing in it (/proc/acpi often
 * has not). Every proc has the same parts, and the look-up of a name that does not exist takes as
 * long as a mount. So all that share this memory use the answer for a second; a module that is
 * loaded later may bring a part. */
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

/* A bind mount inherits the flags of the mount that it is made from. So a new proc, which has
 * nothing mounted below it, is made read-only while its parts are bound: then no part needs a
 * mount_setattr of its own. */
int cover_proc(long proc, int is_new) {
    struct raw_mount_attr attr = {.set = ATTR_READ_ONLY};
    /* In the caller's proc something may be mounted over a part, so nothing is left out there. */
    uint32_t absent = is_new ? absent_parts(proc) : 0;
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

/* Tells whether the files of a file system command the kernel, or processes outside the run, and
 * ask for no capability: uid 0 is enough, or the owner of the file, as a user owns the cgroups that
 * are delegated to him. */
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

/* Returns the type of a mounted file system. Unlike statfs(2), statmount(2) (Linux 6.8) does not
 * ask the server of a remote file system, or of one in user space. */
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

/* TREE has to be attached already, because a proc is covered by mounts below it. If only a part of
 * a proc is mounted, it may be /proc/sys, and becomes read-only as a whole. */
int seal_tree(long tree) {
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

int do_seal(struct sbx_child *c, const struct sbx_mount *m) {
    struct raw_statx there;
    c->run->at.step = SBX_STEP_TARGET;
    long target = sbx_open_in_root(c->tree, m->target, O_PATH);
    if (target < 0) /* if we cannot reach it, the command cannot either */
        return target == -ENOENT || target == -ENOTDIR || target == -EACCES ? 0 : (int)target;
    c->run->at.step = SBX_STEP_MOUNT;
    long result = status_of(target, &there);
    if (result >= 0 && there.attributes & IS_MOUNT_ROOT && !is_the_root(c, &there))
        result = seal_tree(target);
    close_fd(target);
    return (int)result;
}

enum { MOST_AT_ONCE = 128, TRIES_OF_A_NAME = 16, NAME_IN_ANSWER = 512 };

struct raw_mount { /* struct statmount, as far as we read it */
    uint64_t mask[2], device, magic, flags, id, parent, old_ids, attributes, between[4];
    uint32_t root, point; /* offsets from NAME_IN_ANSWER */
    uint64_t rest[50];
    char names[4096];
};

static long ask_about_mount(long call, uint64_t mount, uint64_t wanted, void *answer, size_t size) {
    struct {
        uint32_t size, spare;
        uint64_t mount, wanted;
    } request = {24, 0, mount, wanted};
    return raw(call, &request, answer, size, 0);
}

/* Seals the mount that NAME leads to, if it is the mount ID. Returns 1 if it was, or if another
 * mount lies over it; 0 if the name leads elsewhere by now. */
static int seal_by_name(uint64_t id, const char *name) {
    struct raw_mount above;
    struct raw_statx there = {.mount_id = 0}, sys = {.mount_id = 0};
    long fd = sbx_open_in_root(AT_FDCWD, name, O_PATH), result = 0;
    if (fd < 0)
        return 0;
    raw(__NR_statx, fd, "", EMPTY_PATH | DONT_SYNC, WANT_UNIQUE_ID, &there);
    raw(__NR_statx, fd, "sys", DONT_SYNC, WANT_MOUNT_ID, &sys);
    int is_it = there.mount_id == id;
    if (is_it
        && !(sys.attributes & IS_MOUNT_ROOT)) /* a proc with a cover on sys is sealed already */
        result = seal_tree(fd);
    close_fd(fd);
    if (!is_it
        && ask_about_mount(457, there.mount_id, 2 /* STATMOUNT_MNT_BASIC */, &above, sizeof above)
               >= 0)
        is_it = above.parent == id;
    return result < 0 ? (int)result : is_it;
}

/* Since Python looked for the mounts, a command of another run may have renamed a directory on the
 * way to one, and the mount went along. So this asks the kernel what is mounted below the new root
 * (Linux 6.8). A mount that no name leads to lies beneath another mount. */
static int seal_the_rest(int with_proc) {
    uint64_t ids[MOST_AT_ONCE], last = 0;
    struct raw_mount mount;
    long n = MOST_AT_ONCE, result = 0;
    while (n == MOST_AT_ONCE && result >= 0) {
        n = ask_about_mount(458 /* listmount */, ~(uint64_t)0 /* LSMT_ROOT */, last, ids,
                            MOST_AT_ONCE);
        for (long i = 0; i < n && result >= 0; i++) {
            last = ids[i];
            result = 0;
            for (int tries = 0; result == 0 && tries < TRIES_OF_A_NAME; tries++) {
                /* STATMOUNT_SB_BASIC, _MNT_BASIC, _MNT_POINT */
                if (ask_about_mount(457 /* statmount */, last, 0x13, &mount, sizeof mount) < 0
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

/* A mount just below the root stays where it is when the root is a mount: if /sys is the only seal,
 * the kernel need not be asked. */
int do_seals(struct sbx_child *c) {
    int any = 0, with_proc = 1;
    for (int i = 0; i < c->place->n_mounts; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        any |= m->kind == SBX_SEAL && lies_deep(m->target);
        if (m->kind == SBX_PROC && !(m->flags & SBX_COVER)) /* this run may write to all of proc */
            with_proc = 0;
    }
    return any ? seal_the_rest(with_proc) : 0;
}
