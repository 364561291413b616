/* SPDX-License-Identifier: Apache-2.0
 *
 * What the caller sends.
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

static char small_buffer[16384] __attribute__((aligned(16)));
static char large_buffer[131072] __attribute__((aligned(16))); /* of a resident */
static char filter[4096 * 8];                                  /* BPF_MAXINSNS instructions */
static size_t capacity;
char *contents;
int is_message_large;

#define ALIGNED(size) (((size_t)(size) + 7) & ~(size_t)7)

/* A function, and not an initial value: a .data would take one more page of the program. */
void use_small_buffer(void) {
    contents = small_buffer;
    capacity = sizeof small_buffer;
}

/* A command sees in /proc/1/status how much memory a resident has, because its reaper shares it:
 * that must always be the same. So the resident writes to all of it before the first run, and ends
 * after an order that needs more. */
void use_large_buffer(void) {
    volatile char *start = large_buffer;
    for (size_t at = 0; at < sizeof large_buffer; at += 4096)
        start[at] = start[at];
    contents = large_buffer;
    capacity = sizeof large_buffer;
    is_message_large = 0;
}

long get_memory(size_t size) {
    return raw(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static long make_room(size_t size) {
    if (size <= capacity)
        return 0;
    size = (size + 0xffff) & ~(size_t)0xffff;
    long memory = get_memory(size);
    if (memory < 0 && memory > -4096)
        return memory;
    if (contents != small_buffer && contents != large_buffer)
        raw(__NR_munmap, contents, capacity);
    capacity = size;
    contents = (char *)memory;
    is_message_large = 1;
    return 0;
}

long receive_message(uint32_t kind, struct sbx_order *order, int *fds) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(SBX_MOST_CGROUPS * sizeof(int))];
    } control;
    struct iovec part = {order, sizeof *order};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    long n;
    do {
        message.msg_controllen = sizeof control;
        n = raw(__NR_recvmsg, REAPER_STATUS_FD, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    } while (n == sizeof *order && order->kind == SBX_SIGNAL);
    if (n != sizeof *order || order->kind != kind || order->run != run_number)
        return -ECANCELED;
    size_t got = message.msg_controllen >= CMSG_LEN(sizeof(int)) ? control.head.cmsg_len : 0;
    size_t n_fds = (size_t)order->n_fds;
    if (got != (n_fds ? CMSG_LEN(n_fds * sizeof(int)) : 0) || (n_fds && !fds))
        return -ECANCELED;
    for (size_t i = 0; i < n_fds; i++)
        fds[i] = ((int *)CMSG_DATA(&control.head))[i];
    size_t pointers = (size_t)(order->n_candidates + order->n_args + order->n_env) + 3;
    long error = make_room(ALIGNED(order->size) + pointers * sizeof(char *));
    for (size_t at = 0; at < order->size && error == 0; at += (size_t)n) {
        n = raw(__NR_recvfrom, REAPER_STATUS_FD, contents + at, order->size - at, 0, 0, 0);
        if (n <= 0)
            error = -ECANCELED;
    }
    return error;
}

void read_job(const struct sbx_order *order, struct sbx_job *job, struct sbx_child *c) {
    job->cwd_or_root = order->cwd_or_root;
    job->terminal = order->terminal;
    job->cpu_seconds = order->cpu_seconds;
    job->n_candidates = order->n_candidates;
    job->n_args = order->n_args;
    job->n_env = order->n_env;
    job->limits = order->limits ? (const struct sbx_limits *)contents : NULL;
    job->passed = (const int *)(contents + order->limits);
    job->n_passed = order->n_passed;
    if (TRACES && order->traced)
        job->tracer = REAPER_FDS + order->n_passed;
    job->cwd = (const char *)(job->passed + order->n_passed);
    job->strings = job->cwd + order->cwd_size;
    job->vec = (const char **)(contents + ALIGNED(order->size));
    if (STACKS) {
        job->n_inputs = order->n_inputs;
        job->inputs = contents + order->size - order->inputs;
    }
    sbx_point_at_strings(job);
    c->envp = job->vec + job->n_candidates + job->n_args + 1;
    c->job = job;
}

long read_place(void) {
    char *start = contents;
    run_place = *(struct sbx_place *)start;
    if (run_place.n_mounts) { /* they stay where they are */
        contents = small_buffer;
        capacity = start == contents ? 0 : sizeof small_buffer;
    }
    struct sbx_mount *mounts = (struct sbx_mount *)(start + (uintptr_t)run_place.mounts);
    for (int i = 0; i < run_place.n_mounts; i++) {
        const char **strings[] = {&mounts[i].source, &mounts[i].target, &mounts[i].size,
                                  &mounts[i].inodes, &mounts[i].mode};
        for (int j = 0; j < 5; j++)
            if (*strings[j])
                *strings[j] = start + (uintptr_t)*strings[j];
    }
    run_place.mounts = mounts;
    if (STACKS && run_place.upper_size)
        run_place.upper_size = start + (uintptr_t)run_place.upper_size;
    if (STACKS && run_place.upper_inodes)
        run_place.upper_inodes = start + (uintptr_t)run_place.upper_inodes;
    if (run_place.filter) { /* the next message may take its place */
        memcpy(filter, start + (uintptr_t)run_place.filter, (size_t)run_place.filter_length * 8);
        run_place.filter = filter;
    }
    if (!run_place.cut_capabilities)
        return 0;
    raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return sbx_cut_bounding_set(run_place.capabilities);
}
