/* SPDX-License-Identifier: Apache-2.0
 *
 * How the child finds and makes file systems.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>

enum {
    FS_SET_STRING = 1, /* fsconfig(2) */
    FS_CREATE = 6,
    RESOLVE_INSIDE = 0x10 | 0x02 /* openat2(2), RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS */
};
#define MOST_TRIES                                                                                 \
    10000 /* how often a look-up is repeated while others rename and mount: some 50 ms */

int sbx_open_in_root(int directory, const char *path, int flags) {
    struct raw_open_how how = {(uint64_t)flags | O_CLOEXEC, 0, RESOLVE_INSIDE};
    long fd;
    int tries = 0;
    /* -EAGAIN: somebody renamed or mounted something meanwhile, and ".." might have led outside. */
    do
        fd = raw(RAW_openat2, directory, path, &how, sizeof how);
    while (fd == -EAGAIN && ++tries < MOST_TRIES);
    return (int)fd;
}

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

int sbx_add_flags(long tree, uint64_t flags, int recursive) {
    struct raw_mount_attr attr = {.set = flags};
    return (int)raw(RAW_mount_setattr, tree, "", EMPTY_PATH | recursive, &attr, sizeof attr);
}

int clear_read_only(long mount) {
    struct raw_mount_attr attr = {.clear = ATTR_READ_ONLY};
    return (int)raw(RAW_mount_setattr, mount, "", EMPTY_PATH, &attr, sizeof attr);
}

long status_of(long fd, struct raw_statx *status) {
    return raw(__NR_statx, fd, "", EMPTY_PATH | DONT_SYNC, WANT_MODE | WANT_MOUNT_ID, status);
}

int sbx_answers_main(void *looker) {
    struct sbx_looker *l = looker;
    struct raw_statx there;
    char above[4096];
    size_t length = strlen(l->path);
    while (length && l->path[length - 1] != '/')
        length--;
    raw(RAW_close_range, 0, ~0U, 0); /* a child that hangs keeps nothing of the caller open */
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
