/* SPDX-License-Identifier: Apache-2.0
 *
 * What the library is measured against, in the same process and memory: its own core called in a
 * bare C loop (the same system calls, without Python), and the floor, the least that a chroot and
 * two captured pipes take.
 */
#define _GNU_SOURCE
#include "../csrc/child.c"
#include "../csrc/pump.c"
#include "../csrc/spawn.c"

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* One run through the core; nanoseconds, or -1 where it failed. */
int64_t loop_core(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
                  char *stack, char *out, char *err, size_t size) {
    int64_t start = now_ns();
    enum sbx_pump_result result;
    run->out.buffer = out;
    run->err.buffer = err;
    run->out.size = run->err.size = size;
    if (sbx_spawn(place, job, run, stack) != 0)
        return -1;
    do
        result = sbx_pump(run, 100000000);
    while (result == SBX_PUMP_AGAIN);
    sbx_end(run);
    return result == SBX_PUMP_DONE && run->wait_status == 0 ? now_ns() - start : -1;
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
