/* SPDX-License-Identifier: Apache-2.0
 *
 * What the caller's process has for all runs: the reaper's program, stacks, looks at paths.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

__asm__(".section .rodata\n"
        ".globl sbx_init_start\n.hidden sbx_init_start\n"
        ".globl sbx_init_end\n.hidden sbx_init_end\n"
        ".globl sbx_session_start\n.hidden sbx_session_start\n"
        ".globl sbx_session_end\n.hidden sbx_session_end\n"
        ".globl sbx_cpu_time_start\n.hidden sbx_cpu_time_start\n"
        ".globl sbx_cpu_time_end\n.hidden sbx_cpu_time_end\n"
        ".globl sbx_layers_start\n.hidden sbx_layers_start\n"
        ".globl sbx_layers_end\n.hidden sbx_layers_end\n"
        "sbx_init_start:\n.incbin \"" SBX_INIT "\"\nsbx_init_end:\n"
        "sbx_session_start:\n.incbin \"" SBX_INIT_SESSION "\"\nsbx_session_end:\n"
        "sbx_cpu_time_start:\n.incbin \"" SBX_INIT_CPU_TIME "\"\nsbx_cpu_time_end:\n"
        "sbx_layers_start:\n.incbin \"" SBX_INIT_LAYERS "\"\nsbx_layers_end:\n.previous\n");
extern const char sbx_init_start[], sbx_init_end[], sbx_session_start[], sbx_session_end[];
extern const char sbx_cpu_time_start[], sbx_cpu_time_end[];
extern const char sbx_layers_start[], sbx_layers_end[];

int sbx_open_init(enum sbx_program which) {
    const char *const starts[] = {sbx_init_start, sbx_session_start, sbx_cpu_time_start,
                                  sbx_layers_start};
    const char *const ends[] = {sbx_init_end, sbx_session_end, sbx_cpu_time_end, sbx_layers_end};
    const char *program = starts[which];
    size_t written = 0;
    size_t size = (size_t)(ends[which] - program);
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    long fd = raw(__NR_memfd_create, "sandboxlib-init", flags | 0x10 /* MFD_EXEC, Linux 6.3 */);
    if (fd == -EINVAL)
        fd = raw(__NR_memfd_create, "sandboxlib-init", flags);
    fd = move_above(fd,
                    RESIDENT_FDS); /* above all numbers that the child gives to other descriptors */
    long result = fd;
    while (result >= 0 && written < size) {
        result = raw(__NR_write, fd, program + written, size - written);
        written += result > 0 ? (size_t)result : 0;
    }
    if (result >= 0)
        result = raw(__NR_fcntl, fd, F_ADD_SEALS,
                     F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    if (result < 0 && fd >= 0)
        raw(__NR_close, fd);
    return (int)(result < 0 ? result : fd);
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

char *sbx_new_stack(void) {
    size_t guard = page_size();
    char *memory = mmap(NULL, guard + SBX_STACK_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, guard, PROT_NONE) != 0) {
        munmap(memory, guard + SBX_STACK_SIZE);
        return NULL;
    }
    return memory + guard;
}

void sbx_free_stack(char *stack) {
    if (stack)
        munmap(stack - page_size(), page_size() + SBX_STACK_SIZE);
}

int sbx_set_dumpable(int dumpable) {
    int before = (int)raw(__NR_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
    raw(__NR_prctl, PR_SET_DUMPABLE, dumpable, 0, 0, 0);
    return before;
}

int sbx_is_directory(const char *path) {
    struct raw_statx there = {.mode = 0};
    raw(__NR_statx, AT_FDCWD, path, 0x4000 /* AT_STATX_DONT_SYNC */, 1 /* STATX_TYPE */, &there);
    return S_ISDIR(there.mode);
}

long sbx_filesystem_of(int fd) {
    struct statfs filesystem;
    long error = raw(__NR_fstatfs, fd, &filesystem);
    return error < 0 ? error : (long)filesystem.f_type;
}

static int compare_files(const char *paths, int n, uint64_t *seen, int keep) {
    int same = 1;
    for (int i = 0; i < n; i++, paths += strlen(paths) + 1) {
        struct raw_statx there = {.mount_id = 0};
        raw(__NR_statx, AT_FDCWD, paths, 0, 0x1100 /* STATX_INO, STATX_MNT_ID */, &there);
        uint64_t device = (uint64_t)there.device[0] << 32 | there.device[1];
        uint64_t now[] = {there.inode, device, there.mount_id};
        same &= memcmp(&seen[i * 3], now, sizeof now) == 0;
        if (keep)
            memcpy(&seen[i * 3], now, sizeof now);
    }
    return same;
}

/* Without a mountinfo the watch does not notice what the host mounts later. */
void sbx_open_watch(const char *paths, int n, uint64_t *seen, struct sbx_watch *watch) {
    int flags = O_RDONLY | O_CLOEXEC;
    watch->mountinfo =
        (int)move_above(raw(__NR_openat, AT_FDCWD, "/proc/self/mountinfo", flags), 3);
    watch->file = sbx_file_of(watch->mountinfo);
    compare_files(paths, n, seen, 1);
}

int sbx_is_watch_same(const char *paths, int n, uint64_t *seen, const struct sbx_watch *watch) {
    struct pollfd changed = {watch->mountinfo, POLLPRI, 0}; /* proc_pid_mounts(5) */
    struct timespec at_once = {0, 0};
    return raw(__NR_ppoll, &changed, 1, &at_once, 0, 0) <= 0 && compare_files(paths, n, seen, 0);
}

void sbx_close_watch(struct sbx_watch *watch) {
    if (watch->file && sbx_file_of(watch->mountinfo) == watch->file)
        sbx_close(&watch->mountinfo);
    watch->file = 0;
}

int sbx_read_files(int n, const int *files, const int *sizes, char *room) {
    long error = 0;
    for (int i = 0; i < n; room += sizes[i++]) {
        long size = raw(__NR_pread64, files[i], room, sizes[i], 0);
        if (size < 0)
            error = size;
        size = size < 0 ? 0 : size;
        memset(room + size, 0, (size_t)(sizes[i] - size));
    }
    return (int)error;
}

int sbx_stat_files(int n, const int *files, uint32_t *room) {
    long error = 0;
    for (int i = 0; i < n; i++, room += 4) {
        struct stat status = {0};
        long result = raw(__NR_fstat, files[i], &status);
        if (result < 0)
            error = result;
        room[0] = status.st_mode;
        room[1] = status.st_uid;
        room[2] = status.st_gid;
        room[3] = (uint32_t)status.st_nlink;
    }
    return (int)error;
}

int sbx_open_into(int *fd, int directory, const char *path, int flags, int in_root) {
    long opened;
    sbx_close(fd);
    if (!*path)
        opened = raw(__NR_fcntl, directory, F_DUPFD_CLOEXEC, 3);
    else if (in_root)
        opened = sbx_open_in_root(directory, path, flags);
    else
        opened = raw(__NR_openat, directory, path, flags | O_CLOEXEC, 0);
    if (opened < 0)
        return (int)opened;
    *fd = (int)opened;
    return 0;
}
