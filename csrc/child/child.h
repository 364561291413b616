/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the child share. The reaper's program has most of them as well.
 *
 * Constants of the kernel's interface stand here by value, so that old headers can build it; the
 * manual page that a comment names has them.
 */
#ifndef SBX_CHILD_H
#define SBX_CHILD_H

#include "../internal.h"
#include "../raw.h"

/* The same steps are taken in two programs: in the caller's, by the child that it clones, and in
 * the reaper's, by the command's process, after what is done once for the place. */
#ifdef SBX_IN_REAPER
enum { IN_REAPER = 1 };
#else
enum { IN_REAPER = 0 };
#endif

/* The programs that are kept small start no run that is traced: only that of a run whose CPU time
 * is watched does. */
#if defined(SBX_IN_REAPER) && !defined(SBX_WATCHES_CPU)
enum { TRACES = 0 };
#else
enum { TRACES = 1 };
#endif

/* Roots of layers: the resident of a slot has a program of its own for them. */
#if defined(SBX_IN_REAPER) && !defined(SBX_STACKS)
enum { STACKS = 0 };
#else
enum { STACKS = 1 };
#endif

#define O_SEARCH_DIR (O_PATH | O_DIRECTORY | O_CLOEXEC)

enum {
    FROM_EMPTY_PATH = 0x04, /* move_mount(2), MOVE_MOUNT_F_EMPTY_PATH */
    TO_EMPTY_PATH = 0x40,   /* MOVE_MOUNT_T_EMPTY_PATH */
    TREE_CLONE = 1,         /* open_tree(2), OPEN_TREE_CLONE */
    EMPTY_PATH = 0x1000,    /* AT_EMPTY_PATH */
    RECURSIVE = 0x8000,     /* AT_RECURSIVE */
    ATTR_READ_ONLY = 1,     /* mount_setattr(2), MOUNT_ATTR_* */
    ATTR_NOSUID = 2,
    ATTR_NODEV = 4,
    ATTR_NOEXEC = 8,
    ATTR_NOATIME = 0x10,
    DONT_SYNC = 0x4000,  /* statx(2), AT_STATX_DONT_SYNC */
    FORCE_SYNC = 0x2000, /* AT_STATX_FORCE_SYNC */
    WANT_MODE = 2,       /* STATX_* */
    WANT_OWNER = 0x18,
    WANT_INODE = 0x100,
    WANT_MOUNT_ID = 0x1000,
    WANT_UNIQUE_ID = 0x4000,
    IS_MOUNT_ROOT = 0x2000 /* STATX_ATTR_MOUNT_ROOT */
};

/* ---- file systems -------------------------------------------------------------------------- */

/* Mounts nothing: returns a descriptor of a new file system. OPTIONS: names and values by turns,
 * then NULL; an option whose value is NULL is left out. */
long sbx_new_filesystem(const char *type, const char *const *options, int attributes);

/* Adds FLAGS to a mount, and with RECURSIVE to every mount below it (mount_setattr(2)). */
int sbx_add_flags(long tree, uint64_t flags, int recursive);
int clear_read_only(long mount);

/* Fills STATUS with the mode and the mount of FD, as far as they are known without asking a
 * server. */
long status_of(long fd, struct raw_statx *status);

/* Opens what holes show, as step SOURCE does it: for an overlay once it is attached. */
int open_holes(struct sbx_child *c);

/* Raises the soft limit on open files, which do_mounts lowers again. Below 0: it was raised. */
long raise_open_files(struct sbx_child *c);

/* ---- mounts -------------------------------------------------------------------------------- */

/* Tells what is mounted at a path, which is absolute inside the root. */
struct sbx_seen sbx_see_mount(const char *path);

/* Fails if what lies at the targets is not EXPECTED. ONLY: of the mounts with these flags. */
int check_mounts(struct sbx_child *c, const struct sbx_seen *expected, int only);

/* Opens the mount point of mount I, and makes it first where that is allowed. */
long open_target(struct sbx_child *c, int i, long source);
int is_the_root(struct sbx_child *c, const struct raw_statx *target);

/* Makes the missing parts of TARGET for the mount I, and returns it. MODE: that of the last name, a
 * directory, if it is missing, or A_FILE. Only in a file system of the run's own, also where a
 * symbolic link leads there; what is_entry() may be anywhere, see mirror(). -ENOENT: the target
 * lies elsewhere. */
enum { A_FILE = -1 };
long make_target(struct sbx_child *c, int i, const char *target, int mode);

/* Tells whether one of the mounts before I made the file system of a directory for this run. */
int is_of_the_run(struct sbx_child *c, int i, long directory);

/* ---- entries: what the run adds to a root -------------------------------------------------- */

static inline int is_entry(const struct sbx_mount *m) { return STACKS && m->kind >= SBX_DIRECTORY; }
/* Prepares mount I, an entry, before the copy is attached. Returns a mount of it if it is a file.
 */
long make_entry(struct sbx_child *c, int i);
/* Makes a directory or a symbolic link. */
int add_entry(struct sbx_child *c, int i);
/* Hides a directory of the caller's that lacks NAME, for the entry I. Returns the directory that
 * the command sees in its place; -EOPNOTSUPP: the command may write to the caller's. */
long mirror(struct sbx_child *c, int i, long parent, const char *name);
int seal_scratch(struct sbx_child *c);

int cover_proc(long proc, int is_new);
int seal_tree(long tree);
int do_seal(struct sbx_child *c, const struct sbx_mount *m);
int do_seals(struct sbx_child *c);

/* Fills a dev, M, whose root DEV is mounted already. LENDER: a /dev that has the caller's devices,
 * or -1: the caller's own. */
int sbx_fill_dev(const struct sbx_mount *m, long dev, long lender);
long new_shm(const struct sbx_mount *m);
long new_pts(const struct sbx_mount *m);
/* Makes a file system, and mounts it below DEV. */
long mount_part(const struct sbx_mount *m, long dev, const char *name,
                long (*make)(const struct sbx_mount *));

/* ---- descriptors, privilege ---------------------------------------------------------------- */

/* Puts the descriptors FROM at the numbers TO, and clears their close-on-exec flags. */
int put_descriptors(struct sbx_child *c, int *from, const int *to, int n);
int place_stdio(struct sbx_child *c);

/* Takes from the bounding set all capabilities but KEEP, so that no exec can give them back
 * (capabilities(7)). */
int sbx_cut_bounding_set(uint64_t keep);

/* Installs the system call filter of a place for the calling process and all that it starts:
 * returns 0 or -errno. */
int sbx_install_filter(const struct sbx_place *place);

/* Installs a filter whose answer may be to ask a listener: returns the listener's descriptor, or
 * -errno. */
long sbx_listen(const void *filter, size_t length);

/* ---- the steps, of which steps.c has the order --------------------------------------------- */

int do_ids(struct sbx_child *c);
int do_stdio(struct sbx_child *c);
int do_session(struct sbx_child *c);
int do_keyring(struct sbx_child *c);
int do_oom_score(struct sbx_child *c);
int do_loopback(struct sbx_child *c);
int do_watch(struct sbx_child *c);
int do_hostname(struct sbx_child *c);
int do_private(struct sbx_child *c);
int do_root(struct sbx_child *c);
int do_read_only(struct sbx_child *c);
int do_sources(struct sbx_child *c);
int send_upper(struct sbx_child *c);
int do_upper(struct sbx_child *c);
int do_layers(struct sbx_child *c);
int do_overlay(struct sbx_child *c);
int do_attach(struct sbx_child *c);
int do_mounts(struct sbx_child *c);
int do_pivot(struct sbx_child *c);
int do_chroot(struct sbx_child *c);
int do_cwd(struct sbx_child *c);
int do_cgroup(struct sbx_child *c);
int do_limits(struct sbx_child *c);
int do_no_new_privs(struct sbx_child *c);
int do_parent_keyring(struct sbx_child *c);
int do_trace(struct sbx_child *c);
int do_seccomp(struct sbx_child *c);
int do_capabilities(struct sbx_child *c);
int do_parent_death(struct sbx_child *c);
int do_signals(struct sbx_child *c);
int do_reaper(struct sbx_child *c);
int do_user(struct sbx_child *c);
int do_exec(struct sbx_child *c);

#endif
