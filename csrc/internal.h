/* SPDX-License-Identifier: Apache-2.0
 *
 * What the three processes share: the caller, the child, and the reaper. Each has a folder, and a
 * header of its own there.
 */
#ifndef SBX_INTERNAL_H
#define SBX_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "sandbox.h"

#include "trace.h"

#include "calls.h"

struct raw_statx { /* statx(2); of its 256 bytes only these are read */
    uint32_t before[2];
    uint64_t attributes;
    uint32_t n_links, uid, gid;
    uint16_t mode, spare;
    uint64_t inode;
    uint64_t between[11];
    uint32_t of_device[2], device[2];
    uint64_t mount_id;
    uint64_t after[13];
};

/* Names the root of what is mounted somewhere; zeros: nothing is. */
struct sbx_seen {
    uint64_t device, inode;
};

/* What is given to the child. It lives in the parent's frame, in memory that both share. */
struct sbx_child {
    const struct sbx_place *place;
    const struct sbx_job *job;
    struct sbx_run *run;
    const char *const *envp;
    int stdio[3];         /* descriptors, or SBX_NULL */
    int status, lifeline; /* the child's ends */
    int init;             /* the reaper's program */
    /* A resident's: waits for the order, which says what the job is. */
    int (*await_order)(struct sbx_child *);
    int cgroups[SBX_MOST_CGROUPS]; /* those of the job, moved away from what stdio needs */
    int is_in_unified;             /* it was born in the last of them */
    int root;                      /* the root directory as the caller sees it */
    int tree;                      /* its copy, which becomes the root */
    int upper_socket;              /* that of the job, moved likewise */
    int upper;                     /* the directory above an overlay's upper, or -1 */
    int overlay;                   /* the context of a new overlay (fsopen(2)) */
    int dev;                       /* a minimal /dev that is still to become read-only */
    int scratch; /* a tmpfs with the files and directories that the run adds to a root; -1: none */
    uint32_t scratch_device[2]; /* of it */
    int n_mirrors;              /* directories of the root that one of the scratch hides */
    int on_the_root;            /* mounts that lie on the old root after pivot_root(2) */
    uint64_t own_root;          /* the root itself, if the run made it; 0: it did not */
    uint64_t own_mount;         /* another that it made, which was found last; 0: none was */
    uint64_t open_files[2];     /* RLIMIT_NOFILE before it was raised; 0: it was not */
    int index;                  /* which of several things a step was at */
    const struct sbx_seen
        *template_seen;        /* a resident's: what lies at the targets before the run */
    struct sbx_seen *run_seen; /* a resident's: what lies there once all is mounted */
};

/* The child's main function: it does the steps, and the last one is the exec. It never returns to
 * the frames of its caller. */
int sbx_child_main(void *child);

/* The main function of a child that only looks whether the file system of a path answers. It may
 * hang.
 */
struct sbx_looker {
    const char *root, *path;
    long result;
};
int sbx_answers_main(void *looker);

/* Fills job->vec: the paths, argv, NULL, environment, NULL. */
void sbx_point_at_strings(const struct sbx_job *job);

/* Records the first failure; returns -1, which its caller returns as well. */
static inline int sbx_fail(struct sbx_run *run, enum sbx_step step, int index, long error) {
    if (run->failure.step == SBX_STEP_NONE) {
        run->failure.step = step;
        run->failure.index = index;
        run->failure.error = (int)-error;
    }
    return -1;
}

#endif
