/* SPDX-License-Identifier: Apache-2.0
 *
 * What the C files share among themselves. Constants of the kernel's interface stand here by
 * value, so that old headers can build it; the name of the manual page is their source.
 */
#ifndef SBX_INTERNAL_H
#define SBX_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "sandbox.h"

struct raw_statx { /* statx(2); of its 256 bytes only these are read */
    uint32_t before[2];
    uint64_t attributes;
    uint32_t ids[3];
    uint16_t mode, spare;
    uint64_t inode;
    uint64_t between[11];
    uint32_t of_device[2], device[2];
    uint64_t mount_id;
    uint64_t after[13];
};

/* The root of what is mounted somewhere; zeros: nothing is. */
struct sbx_seen {
    uint64_t device, inode;
};

/* What is given to the child. It lives in the parent's frame, in memory that both share. */
struct sbx_child {
    const struct sbx_place *place;
    const struct sbx_job *job;
    struct sbx_run *run;
    int inside; /* started by the reaper: what belongs to the place is done */
    const char *const *envp;
    int stdio[3];                     /* descriptors, or SBX_NULL */
    int status, lifeline;             /* this side's ends */
    int init;                         /* the reaper's program */
    int (*order)(struct sbx_child *); /* waits for the job, where it comes late */
    int cgroups[SBX_MOST_CGROUPS];    /* those of the job, where they are out of the way */
    int root;                         /* the root directory as the caller sees it */
    int tree;                         /* its copy, which becomes the root */
    int dev;                          /* a minimal /dev that is still to become read-only */
    uint64_t own_mount;               /* a mount that the run made for itself; 0: none is known */
    uint64_t open_files[2];           /* RLIMIT_NOFILE, where it was raised */
    int index;                        /* which of several a step was at */
    const struct sbx_seen *kept;      /* inside: what lies at the targets of the template */
    struct sbx_seen *seen;            /* inside: what lay at all targets when all was mounted */
};

/* The whole of the child: the steps, then exec. It never returns to its caller's frames. */
int sbx_child_main(void *child);

/* What a child that looks whether a file system answers is given, and what it found. */
struct sbx_looker {
    const char *root, *path;
    long result;
};
int sbx_look_main(void *looker);

/* Fills job->vec: the paths, argv, NULL, environment, NULL. */
void sbx_point_at_strings(const struct sbx_job *job);

/* What is mounted at a path, which is absolute inside the root. */
struct sbx_seen sbx_see_mount(const char *path);

/* A new filesystem, mounted nowhere yet. OPTIONS: names and values by turns, then NULL; an option
 * whose value is NULL is left out. */
long sbx_new_filesystem(const char *type, const char *const *options, int attributes);

/* openat2(2) constants and the like, by their manual pages. */
enum {
    FROM_EMPTY_PATH = 0x04, /* MOVE_MOUNT_F_EMPTY_PATH */
    TO_EMPTY_PATH = 0x40,   /* MOVE_MOUNT_T_EMPTY_PATH */
    TREE_CLONE = 1,         /* OPEN_TREE_CLONE */
    EMPTY_PATH = 0x1000,    /* AT_EMPTY_PATH */
    RECURSIVE = 0x8000,     /* AT_RECURSIVE */
    ATTR_READ_ONLY = 1,     /* MOUNT_ATTR_* */
    ATTR_NOSUID = 2,
    ATTR_NODEV = 4,
    ATTR_NOEXEC = 8,
    ATTR_NOATIME = 0x10
};

/* mount_setattr(2): adds FLAGS to a mount, and with RECURSIVE to every mount below it. */
int sbx_add_flags(long tree, uint64_t flags, int recursive);

/* Fills a dev, M, whose root DEV is mounted already. LENDER: a /dev that has the caller's devices,
 * or -1: the caller's own. */
int sbx_fill_dev(const struct sbx_mount *m, long dev, long lender);

/* A resident's: looks from now on at the dev that all its runs share, and that lies where MOUNTED
 * says. Below 0: it does not. MOUNTS: all that lies in the template, some of it in that dev. */
int sbx_watch_dev(const struct sbx_mount *m, struct sbx_seen mounted, const struct sbx_seen *mounts,
                  int n_mounts);
/* Whether nothing of it is left of a run; what was used is replaced. 0: it is of no use any more.
 */
int sbx_renew_dev(void);

/* What exec cannot give to the command any more (capabilities(7)): all but KEEP. */
int sbx_cut_bounding_set(uint64_t keep);

/* The system call filter of a place, for who calls it and all that it starts: 0 or -errno. */
int sbx_install_filter(const struct sbx_place *place);

/* Records the first failure; returns -1 for the caller to pass on. */
static inline int sbx_fail(struct sbx_run *run, enum sbx_step step, int index, long error) {
    if (run->failure.step == SBX_STEP_NONE) {
        run->failure.step = step;
        run->failure.index = index;
        run->failure.error = (int)-error;
    }
    return -1;
}

void sbx_close(int *fd);
void sbx_reap(struct sbx_run *run);
void sbx_collect(struct sbx_run *run);
int64_t sbx_now(void); /* CLOCK_MONOTONIC, in ns */

#endif
