/* SPDX-License-Identifier: Apache-2.0
 *
 * The exec of the reaper, or of the command.
 */
#define _GNU_SOURCE
#include "child.h"

#include <fcntl.h>

/* faccessat(2) looks with the real uid, and without capabilities if that is not 0; this does as
 * execve(2) does (Linux 5.8). */
static int is_there(const char *path) {
    return raw(439 /* faccessat2 */, -100 /* AT_FDCWD */, path, 0, 0x200 /* AT_EACCESS */) == 0;
}

/* Runs the first of PATHS that can be run, like execvp(3): if a path does not exist, or may not be
 * run, it tries the next one. Unlike execvp it gives no text file to /bin/sh. Returns only on
 * failure: -errno, and in INDEX the path that failed, or -1. If a fork of another thread still
 * holds the file open for writing, execve fails with ETXTBSY for a moment (golang.org/issue/22315):
 * this waits for it, 500 ms at most. */
static int exec_first(const char *const *paths, int n, const char *const *argv,
                      const char *const *envp, int32_t *index) {
    int result = -ENOENT;
    *index = -1;
    for (int i = 0; i < n; i++) {
        long error = raw(__NR_execve, paths[i], argv, envp);
        for (int tries = 0; error == -ETXTBSY && tries < 50; tries++) {
            struct {
                long seconds, nanoseconds;
            } pause = {0, 10000000};
            raw(__NR_nanosleep, &pause, 0);
            error = raw(__NR_execve, paths[i], argv, envp);
        }
        int gone = error == -ENOENT || error == -ENOTDIR;
        /* ENOENT may also be about the interpreter of a program that exists. */
        if (gone && !is_there(paths[i]))
            continue;
        if (*index < 0 || !gone) {
            *index = i;
            result = (int)error;
        }
        if (!gone && error != -EACCES)
            break;
    }
    return result;
}

/* After a filter is installed that may allow execve(2) only, exec_alone does the same without
 * looking at files. So first_there looks before for the first path that exists, or returns N. */
static int first_there(const char *const *paths, int n) {
    int i = 0;
    while (i < n && !is_there(paths[i]))
        i++;
    return i;
}

static int exec_alone(const char *const *paths, int first, int n, const char *const *argv,
                      const char *const *envp, int32_t *index) {
    int result = -ENOENT;
    *index = -1;
    for (int i = first; i < n; i++) {
        int error = (int)raw(__NR_execve, paths[i], argv, envp);
        int gone = i > first && (error == -ENOENT || error == -ENOTDIR);
        if (!gone) {
            *index = i;
            result = error;
        }
        if (!gone && error != -EACCES)
            break;
    }
    return result;
}

int do_reaper(struct sbx_child *c) {
    if (!c->place->reaper)
        return 0;
    const char *const argv[] = {"sandboxlib-init", NULL};
    int first = c->place->reaper == SBX_RESIDENT ? RESIDENT_FDS
                                                 : REAPER_FDS + c->job->n_passed + !!c->job->tracer;
    long result = raw(RAW_close_range, first, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    if (result >= 0)
        result = raw(__NR_execveat, c->init, "", argv, argv + 1, EMPTY_PATH);
    return (int)result;
}

int do_exec(struct sbx_child *c) {
    const struct sbx_job *job = c->job;
    const char *const *paths = job->vec, *const *argv = paths + job->n_candidates;
    long result = raw(RAW_close_range, 3, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    int from[SBX_MOST_PASSED];
    for (int i = 0; i < job->n_passed; i++) /* the reaper has them one after the other */
        from[i] = IN_REAPER ? REAPER_FDS + i : job->passed_from[i];
    if (result >= 0)
        result = put_descriptors(c, from, job->passed, job->n_passed);
    if (result < 0)
        return (int)result;
    const struct sbx_place *place = c->place;
    if (!place->filter || place->filter_when != SBX_FILTER_LAST)
        return exec_first(paths, job->n_candidates, argv, c->envp, &c->index);
    int first = first_there(paths, job->n_candidates);
    result = sbx_install_filter(place);
    if (result < 0)
        return sbx_fail(c->run, SBX_STEP_SECCOMP, 0, result);
    return exec_alone(paths, first, job->n_candidates, argv, c->envp, &c->index);
}
