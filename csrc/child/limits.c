/* SPDX-License-Identifier: Apache-2.0
 *
 * What limits the command: cgroups, resource limits, priority, CPUs.
 */
#define _GNU_SOURCE
#include "child.h"

#include <sched.h>

/* The root of a cgroup namespace is the cgroup of the process that makes it. The one that was made
 * by the clone shows the caller's cgroup, and below it those of other runs. So another one is made
 * after the child has joined its cgroups. */
int do_cgroup(struct sbx_child *c) {
    int n = c->job->n_cgroups - c->is_in_unified;
    for (c->index = 0; c->index < n; c->index++) {
        long result =
            raw(__NR_write, c->cgroups[c->index], "0", 1); /* "0" means the process that writes */
        if (result < 0)
            return (int)result;
    }
    c->index = 0;
    int has_namespace = IN_REAPER || c->place->namespaces & CLONE_NEWCGROUP;
    return c->job->n_cgroups && has_namespace ? (int)raw(__NR_unshare, CLONE_NEWCGROUP) : 0;
}

/* sched_setaffinity(2) leaves out silently the CPUs that the cpuset, or the machine, lacks. */
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

/* This comes before step CAPABILITIES, because some limits take a capability. All that the process
 * starts inherits them. A reaper sets them for its command, not for itself. */
int do_limits(struct sbx_child *c) {
    const struct sbx_limits *l = c->job->limits ? c->job->limits : &c->place->limits;
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
