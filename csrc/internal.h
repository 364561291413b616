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

/* What the child is given. It lives in the parent's frame, in memory that both share. */
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
    int root;                         /* the root directory as the caller sees it */
    int tree;                         /* its copy, which becomes the root */
    int index;                        /* which of several a step was at */
};

/* The whole of the child: the steps, then exec. It never returns to its caller's frames. */
int sbx_child_main(void *child);

/* vec: the numbers for the reaper (of paths, and uid and gid if they are to change), the paths,
 * argv, NULL, environment, NULL. */
enum { SBX_NUMBERS = 3 * (1 + 10) + 1 };
void sbx_point_at_strings(const struct sbx_place *place, const struct sbx_job *job,
                          char numbers[SBX_NUMBERS]);

/* What exec cannot give to the command any more (capabilities(7)): all but KEEP. */
int sbx_cut_bounding_set(uint64_t keep);

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

#endif
