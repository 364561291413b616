/* SPDX-License-Identifier: Apache-2.0
 *
 * The minimal /dev.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <sys/stat.h>

/* A user namespace cannot make a device, so the caller's node is bound. The bind is read-only, so
 * that uid 0 cannot change the mode or the owner of the caller's node; the device itself can still
 * be opened for writing. */
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

/* Makes the devices that programs expect in /dev; no disk, no memory, no console. */
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

/* Programs expect the kernel's default size. With noatime a reader leaves no trace, so only writers
 * count as use. */
long new_shm(const struct sbx_mount *m) {
    const char *options[] = {"nr_inodes", m->inodes, "mode", "1777", NULL};
    return sbx_new_filesystem("tmpfs", options, ATTR_NOSUID | ATTR_NODEV | ATTR_NOATIME);
}

long new_pts(const struct sbx_mount *m) {
    static const char *const options[] = {"ptmxmode", "666", "mode", "620", "max", "1024", NULL};
    (void)m;
    return sbx_new_filesystem("devpts", options, ATTR_NOSUID | ATTR_NOEXEC | ATTR_NOATIME);
}

long mount_part(const struct sbx_mount *m, long dev, const char *name,
                long (*make)(const struct sbx_mount *)) {
    long tree = make(m);
    if (tree < 0)
        return tree;
    long result = raw(RAW_move_mount, tree, "", dev, name, FROM_EMPTY_PATH);
    close_fd(tree);
    return result;
}

int sbx_fill_dev(const struct sbx_mount *m, long dev, long lender) {
    long mask = raw(__NR_umask, 0); /* the caller's umask would take bits away from each mode */
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
