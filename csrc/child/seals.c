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

/* A bind mount is as read-only as what it is bound from. So a NEW proc, which has nothing mounted
 * below it, is read-only while the covers are made, and needs no mount_setattr for each of them. */
int cover_proc(long proc, int is_new) {
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
    if (target < 0) /* it is not there, or not to be reached: nor can the command */
        return target == -ENOENT || target == -ENOTDIR || target == -EACCES ? 0 : (int)target;
    c->run->at.step = SBX_STEP_MOUNT;
    long result = status_of(target, &there);
    if (result >= 0 && there.attributes & IS_MOUNT_ROOT && !is_the_root(c, &there))
        result = seal_tree(target);
    close_fd(target);
    return (int)result;
}

enum { MOST_AT_ONCE = 128, TRIES_OF_A_NAME = 16, NAME_IN_ANSWER = 512 };

struct raw_mount { /* struct statmount, up to what is read of it */
    uint64_t mask[2], device, magic, flags, id, parent, old_ids, attributes, between[4];
    uint32_t root, point; /* offsets behind NAME_IN_ANSWER */
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
        result = seal_tree(fd);
    close_fd(fd);
    if (!is_it
        && ask_about_mount(457, there.mount_id, 2 /* STATMOUNT_MNT_BASIC */, &above, sizeof above)
               >= 0)
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

/* A mount just below the root cannot be renamed where it is one: for /sys alone nobody is asked. */
int do_seals(struct sbx_child *c) {
    int any = 0, with_proc = 1;
    for (int i = 0; i < c->place->n_mounts; i++) {
        const struct sbx_mount *m = &c->place->mounts[i];
        any |= m->kind == SBX_SEAL && lies_deep(m->target);
        if (m->kind == SBX_PROC && !(m->flags & SBX_COVER)) /* is to stay whole */
            with_proc = 0;
    }
    return any ? seal_the_rest(with_proc) : 0;
}
