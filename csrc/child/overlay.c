/* SPDX-License-Identifier: Apache-2.0
 *
 * A root of layers: an upper directory, and an overlay of the layers below it.
 *
 * All of it is made without being attached, and each part is handed to the kernel as a descriptor,
 * so no name has a length, a comma or a colon that would matter. Before Linux 6.15 a layer has to
 * be attached in the run's own namespace: there the upper's file system is attached over the old
 * root, and has a mount point for each layer, which short names below it lead to.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum {
    FS_SET_FLAG = 0, /* fsconfig(2) */
    FS_SET_STRING = 1,
    FS_SET_FD = 5,
    FS_CREATE = 6,
    BASIC_STATS = 0x7ff, /* statx(2) */
    MOST_OPTIONS = 4096, /* mount(2): what it takes of its data */
    MOST_LAYERS = 500    /* OVL_MAX_STACK of fs/overlayfs/super.c */
};

/* The layers of a run in a slot lie in the resident's template. */
static int n_layers(const struct sbx_child *c) {
    return IN_REAPER ? c->job->n_inputs + c->place->n_lowers : c->job->n_lowers;
}

/* What the child of a resident makes has no layers yet: its runs stack them. */
static int is_stacked(const struct sbx_child *c) { return c->place->overlay & SBX_STACKED; }

static int is_by_name(const struct sbx_child *c) {
    return !IN_REAPER && c->place->overlay & SBX_BY_NAME;
}

/* A file system of its own: of the upper, if that is in memory, and of the mount points of layers.
 */
static long new_memory(const struct sbx_child *c) {
    const char *options[] = {
        "size", c->place->upper_size, "nr_inodes", c->place->upper_inodes, "mode", "700", NULL};
    static const char names[][8] = {"upper", "work", "empty", "l", "root", "disk"};
    int n = is_by_name(c) ? 6 : n_layers(c) ? 2 : 3;
    long fd = sbx_new_filesystem("tmpfs", options, ATTR_NOSUID | ATTR_NODEV), error = 0;
    uint64_t mask = (uint64_t)raw(__NR_umask, 0);
    for (int i = 0; i < n && fd >= 0 && error >= 0; i++)
        error = raw(__NR_mkdirat, fd, names[i], 0755);
    raw(__NR_umask, mask);
    return error < 0 ? error : fd;
}

/* Takes a new mount as the root. */
static int take_root(struct sbx_child *c, long fd) {
    struct raw_statx here;
    if (fd < 0)
        return (int)fd;
    c->root = c->tree = (int)fd;
    if (status_of(fd, &here) >= 0)
        c->own_root = here.mount_id;
    return 0;
}

static int new_template(struct sbx_child *c) {
    static const char *const options[] = {"mode", "755", NULL};
    return take_root(c, sbx_new_filesystem("tmpfs", options, ATTR_NOSUID | ATTR_NODEV));
}

int do_upper(struct sbx_child *c) {
    if (!IN_REAPER && c->place->overlay & SBX_TEMPLATE)
        return new_template(c);
    if (!is_stacked(c))
        return 0;
    long error = 0;
    if (c->job->upper) {
        c->upper = (int)raw(RAW_open_tree, AT_FDCWD, c->job->upper, O_CLOEXEC | TREE_CLONE);
        error = c->upper;
    }
    if (error < 0 || (c->job->upper && !is_by_name(c)))
        return (int)error;
    long memory = new_memory(c);
    if (memory < 0)
        return (int)memory;
    if (!c->job->upper)
        c->upper = (int)memory;
    if (!is_by_name(c))
        return 0;
    error = raw(RAW_move_mount, memory, "", AT_FDCWD, "/", FROM_EMPTY_PATH);
    c->on_the_root++;
    return (int)(error < 0 ? error : raw(__NR_fchdir, memory)); /* where the names are */
}

/* The root of an overlay has the mode, the owner and the time of its upper: so that one gets those
 * of the top layer. An owner that the user namespace does not have is left out. */
static void look_like(long upper, long layer) {
    struct raw_statx top;
    if (raw(__NR_statx, layer, "", EMPTY_PATH, BASIC_STATS, &top) < 0)
        return;
    uint64_t written[] = {top.between[9], (uint32_t)top.between[10]}; /* seconds, nanoseconds */
    uint64_t times[] = {written[0], written[1], written[0], written[1]};
    raw(__NR_fchownat, upper, "upper", top.uid, top.gid, 0);
    raw(__NR_fchmodat, upper, "upper", top.mode & 07777);
    raw(__NR_utimensat, upper, "upper", times, 0);
}

/* Writes a number, and a NUL. Returns the end. */
static char *put_number(char *at, int number) {
    char digits[12];
    int n = 0;
    do
        digits[n++] = (char)('0' + number % 10);
    while (number /= 10);
    while (n)
        *at++ = digits[--n];
    *at = 0;
    return at;
}

static char *put_text(char *at, const char *text) {
    size_t size = strlen(text);
    memcpy(at, text, size + 1);
    return at + size;
}

/* Adds a layer below those that the overlay has. It is a copy of the caller's mount, so that the
 * command finds no path of the caller's in /proc/mounts. The descriptor stays open, as the copy has
 * to be there when the overlay is made; the exec closes it. */
static long add_layer(struct sbx_child *c, const char *path, int number) {
    long tree = raw(RAW_open_tree, AT_FDCWD, path, O_CLOEXEC | TREE_CLONE);
    if (tree == -EMFILE && raise_open_files(c) >= 0)
        tree = raw(RAW_open_tree, AT_FDCWD, path, O_CLOEXEC | TREE_CLONE);
    struct raw_statx there = {.mode = 0};
    if (tree >= 0 && status_of(tree, &there) >= 0 && !S_ISDIR(there.mode))
        return -ENOTDIR;
    if (tree < 0)
        return tree;
    if (number == 0 && !c->job->upper)
        look_like(c->upper, tree);
    if (!is_by_name(c))
        return raw(RAW_fsconfig, c->overlay, FS_SET_FD, "lowerdir+", 0, tree);
    char name[16];
    put_number(put_text(name, "l/"), number);
    long error = raw(__NR_mkdirat, AT_FDCWD, name, 0755);
    if (error >= 0)
        error = raw(RAW_move_mount, tree, "", AT_FDCWD, name, FROM_EMPTY_PATH);
    close_fd(tree);
    return error;
}

/* path: of an input, which lies above the layers that are numbered. */
static long add_kept_layer(struct sbx_child *c, const char *path, int number) {
    char name[16];
    put_number(put_text(name, "/l/"), number - c->job->n_inputs);
    path = number < c->job->n_inputs ? path : name;
    long fd = raw(__NR_openat, AT_FDCWD, path, O_SEARCH_DIR);
    if (fd < 0)
        return fd;
    if (number == 0)
        look_like(c->upper, fd);
    long error = raw(RAW_fsconfig, c->overlay, FS_SET_FD, "lowerdir+", 0, fd);
    close_fd(fd);
    return error;
}

int do_layers(struct sbx_child *c) {
    if (!is_stacked(c))
        return 0;
    if (!is_by_name(c)) {
        c->overlay = (int)raw(RAW_fsopen, "overlay", 1 /* FSOPEN_CLOEXEC */);
        if (c->overlay < 0)
            return sbx_fail(c->run, SBX_STEP_OVERLAY, 0, c->overlay);
    }
    int n = n_layers(c);
    if (n > MOST_LAYERS)
        return -E2BIG;
    int named = IN_REAPER ? c->job->n_inputs : n;
    const char *path = IN_REAPER ? c->job->inputs : c->job->lowers;
    for (int i = 0; i < n; i++) {
        c->index = n - 1 - i;
        c->run->at.index = c->index;
        long error = IN_REAPER ? add_kept_layer(c, path, i) : add_layer(c, path, i);
        if (error < 0)
            return (int)error;
        path += i < named ? strlen(path) + 1 : 0;
    }
    c->index = 0;
    return 0;
}

/* Without an index a mount of the same layers elsewhere is no mistake. */
static const char *const always[] = {"index", "off", "metacopy", "off", "xino", "auto", NULL};

static long set_directory(struct sbx_child *c, const char *option, const char *name) {
    long fd = raw(__NR_openat, c->upper, name, O_SEARCH_DIR);
    if (fd < 0)
        return fd;
    long error = raw(RAW_fsconfig, c->overlay, FS_SET_FD, option, 0, fd);
    close_fd(fd);
    return error;
}

static long overlay_by_descriptors(struct sbx_child *c) {
    int how = c->place->overlay;
    long error = 0;
    for (const char *const *option = always; *option && error >= 0; option += 2)
        error = raw(RAW_fsconfig, c->overlay, FS_SET_STRING, option[0], option[1], 0);
    if (error >= 0 && how & SBX_USER_XATTR)
        error = raw(RAW_fsconfig, c->overlay, FS_SET_FLAG, "userxattr", 0, 0);
    else if (error >= 0) /* so that a directory of a layer can be renamed */
        error = raw(RAW_fsconfig, c->overlay, FS_SET_STRING, "redirect_dir", "on", 0);
    if (error >= 0 && how & SBX_VOLATILE)
        error = raw(RAW_fsconfig, c->overlay, FS_SET_FLAG, "volatile", 0, 0);
    if (error >= 0 && !n_layers(c))
        error = set_directory(c, "lowerdir+", "empty");
    if (error >= 0)
        error = set_directory(c, "upperdir", "upper");
    if (error >= 0)
        error = set_directory(c, "workdir", "work");
    if (error >= 0)
        error = raw(RAW_fsconfig, c->overlay, FS_CREATE, 0, 0, 0);
    if (error >= 0)
        error = raw(RAW_fsmount, c->overlay, 1 /* FSMOUNT_CLOEXEC */,
                    c->place->no_devices ? ATTR_NODEV : 0);
    close_fd(c->overlay);
    return error;
}

/* The names are short, and have no character that mount(2) would take for something else. The
 * upper of the caller's lies over that in memory. */
static long overlay_by_names(struct sbx_child *c) {
    char options[MOST_OPTIONS], *at = options;
    int how = c->place->overlay, n = n_layers(c);
    long error = 0;
    for (const char *const *option = always; *option; option += 2)
        at = put_text(put_text(put_text(put_text(at, option[0]), "="), option[1]), ",");
    at = put_text(at, how & SBX_USER_XATTR ? "userxattr," : "redirect_dir=on,");
    at = put_text(at, how & SBX_VOLATILE ? "volatile," : "");
    at = put_text(at, n ? "lowerdir=" : "lowerdir=empty");
    for (int i = 0; i < n; i++)
        at = put_number(put_text(at, i ? ":l/" : "l/"), i);
    if (c->job->upper) {
        error = raw(RAW_move_mount, c->upper, "", AT_FDCWD, "disk", FROM_EMPTY_PATH);
        put_text(at, ",upperdir=disk/upper,workdir=disk/work");
    } else {
        put_text(at, ",upperdir=upper,workdir=work");
    }
    if (error >= 0)
        error = raw(__NR_mount, "overlay", "root", "overlay", c->place->no_devices ? MS_NODEV : 0,
                    options);
    return error < 0 ? error : raw(RAW_open_tree, AT_FDCWD, "root", O_CLOEXEC);
}

/* Gives the caller the upper: what the run changed is read from this descriptor alone. */
int send_upper(struct sbx_child *c) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    long fd = raw(__NR_openat, c->upper, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return (int)fd;
    memcpy(CMSG_DATA(&control.head), &(int){(int)fd}, sizeof(int));
    long sent = raw(__NR_sendmsg, c->upper_socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    close_fd(fd);
    return sent < 0 ? (int)sent : 0;
}

int do_overlay(struct sbx_child *c) {
    if (!is_stacked(c))
        return 0;
    int error = take_root(c, is_by_name(c) ? overlay_by_names(c) : overlay_by_descriptors(c));
    return error < 0 || !c->upper_socket ? error : send_upper(c);
}
