/* SPDX-License-Identifier: Apache-2.0
 *
 * Another use of the session's program: it executes a command with more words than bwrap takes.
 * bwrap runs it as `PROGRAM WORDS SIZE`, inside the sandbox; WORDS is the number of a descriptor
 * that holds a struct sbx_words of SIZE bytes. See sandboxlib/_executors/bwrap_words.py.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <fcntl.h>
#include <sys/mman.h>

#ifdef SBX_IN_SESSION

static unsigned long number_in(const char *digits) {
    unsigned long number = 0;
    for (; *digits; digits++)
        number = number * 10 + (unsigned long)(*digits - '0');
    return number;
}

/* From now on no one can write to the words, except through the mapping that the exec removes; and
 * the exec closes both descriptors. So no process of the sandbox gets at them. */
static long withdraw(unsigned long words, int program) {
    const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | 0x10 /* F_SEAL_FUTURE_WRITE */;
    long result = raw(__NR_fcntl, words, F_ADD_SEALS, seals);
    if (result >= 0)
        result = raw(__NR_fcntl, words, F_SETFD, FD_CLOEXEC);
    if (result >= 0)
        result = raw(__NR_fcntl, program, F_SETFD, FD_CLOEXEC);
    return result;
}

/* Only execve(2) tells of a path, as a filter is installed already. */
static long exec_one_of(char *const *paths, uint64_t n, char *const *argv, char *const *envp) {
    long result = -ENOENT;
    for (uint64_t i = 0; i < n; i++) {
        long error = raw(__NR_execve, paths[i], argv, envp);
        if (error == -ENOENT || error == -ENOTDIR)
            continue;
        result = error;
        if (error != -EACCES)
            break;
    }
    return result;
}

void exec_words(char **args, char **envp) {
    unsigned long fd = number_in(args[1]), size = number_in(args[2]);
    struct sbx_words *words =
        (void *)raw(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if ((unsigned long)words > -4096UL)
        exit_reaper(); /* words->error stays -1 */
    for (uint64_t i = 0; i < words->n_paths; i++)
        words->paths[i] += (uint64_t)words;
    uint64_t *argv = words->paths + words->n_paths;
    for (uint64_t i = 0; i < words->n_args; i++)
        argv[i] += (uint64_t)words;
    long result = withdraw(fd, words->program);
    if (result >= 0) {
        words->error = 0;
        result = exec_one_of((char **)words->paths, words->n_paths, (char **)argv, envp);
        words->error = (int32_t)-result;
    }
    exit_reaper();
}

#endif
