/* SPDX-License-Identifier: Apache-2.0
 *
 * What the library is measured against, in the same process and memory: its own core called in a
 * bare C loop (the same system calls, without Python); the floor, the least that a chroot and two
 * captured pipes take; and a reader that keeps all that a command writes.
 */
#define _GNU_SOURCE
#include "../csrc/internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Moves the output of a run that was started, and ends it; nanoseconds, or -1 where it failed. */
static int64_t finish(struct sbx_run *run, int64_t start) {
    enum sbx_pump_result result;
    do
        result = sbx_pump(run, 100000000);
    while (result == SBX_PUMP_AGAIN);
    sbx_end(run);
    return result == SBX_PUMP_DONE && run->wait_status == 0 ? now_ns() - start : -1;
}

/* One run through the core, everything fresh. */
int64_t loop_core(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
                  char *stack, char *out, char *err, size_t size) {
    int64_t start = now_ns();
    run->out.buffer = out;
    run->err.buffer = err;
    run->out.size = run->err.size = size;
    return sbx_spawn(place, job, run, stack) == 0 ? finish(run, start) : -1;
}

/* One run in a slot that is kept. */
int64_t loop_slot(struct sbx_slot *slot, const struct sbx_job *job, struct sbx_run *run, char *out,
                  char *err, size_t size) {
    int64_t start = now_ns();
    run->out.buffer = out;
    run->err.buffer = err;
    run->out.size = run->err.size = size;
    return sbx_spawn_in_slot(slot, job, run) == 0 ? finish(run, start) : -1;
}

/* vfork, chroot, exec, two pipes, wait: no error is told, no signal kept out, nothing closed. */
int64_t loop_floor(const char *root, const char *program) {
    int64_t start = now_ns();
    int out[2], err[2], status;
    char buffer[4096];
    char *argv[] = {(char *)program, NULL}, *envp[] = {NULL};
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        return -1;
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(out[1], 1);
        dup2(err[1], 2);
        if (chroot(root) == 0 && chdir("/") == 0)
            execve(program, argv, envp);
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    while (read(out[0], buffer, sizeof buffer) > 0)
        ;
    while (read(err[0], buffer, sizeof buffer) > 0)
        ;
    close(out[0]);
    close(err[0]);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        return -1;
    return now_ns() - start;
}

/* A program whose output goes to a pipe; its pid. */
static pid_t start_writer(const char *program, int out[2]) {
    char *argv[] = {(char *)program, NULL}, *envp[] = {NULL};
    if (pipe2(out, O_CLOEXEC))
        return -1;
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(out[1], 1);
        execve(program, argv, envp);
        _exit(127);
    }
    close(out[1]);
    return pid;
}

/* What a program writes, all of it kept: nanoseconds, or -1. The pipe is enlarged, as in the
 * library, and the memory grows by an eighth. */
int64_t loop_keep(const char *program, size_t expected) {
    int64_t start = now_ns();
    size_t size = 1048576, length = 0;
    char *kept = malloc(size);
    int out[2], status;
    long n;
    pid_t pid = start_writer(program, out);
    if (pid < 0)
        return -1;
    fcntl(out[0], F_SETPIPE_SZ, 1048576);
    while (kept && (n = read(out[0], kept + length, size - length)) > 0) {
        length += (size_t)n;
        if (length == size)
            kept = realloc(kept, size += size / 8 > 1048576 ? size / 8 : 1048576);
    }
    close(out[0]);
    int good = waitpid(pid, &status, 0) == pid && status == 0 && kept && length == expected;
    int64_t spent = now_ns() - start;
    free(kept);
    return good ? spent : -1;
}
