/* SPDX-License-Identifier: Apache-2.0
 *
 * Slots: opens one, orders a run in it, closes it.
 */
#define _GNU_SOURCE
#include "caller.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_NS (5 * NS) /* how long a resident may take to be ready */

int sbx_open_slot(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
                  char *stack, const char *inside, size_t size, struct sbx_slot *slot) {
    int n_fds = slot->n_cgroups;
    struct sbx_order order = {.kind = SBX_PLACE, .run = 1, .size = (uint32_t)size, .stays = 1};
    order.n_fds = n_fds;
    struct iovec parts[] = {{&order, sizeof order}, {(void *)(uintptr_t)inside, size}};
    if (sbx_spawn(place, job, run, stack) != 0)
        return -1;
    slot->owner = run->owner;
    slot->pidfd =
        (int)move_above(run->pidfd, 3); /* the pidfd stays open, and nobody must find it as stdin */
    slot->control = run->status;
    slot->files[0] = sbx_file_of(slot->pidfd);
    slot->files[1] = sbx_file_of(slot->control);
    slot->killed = slot->stuck = 0;
    slot->runs = slot->signalled = 0;
    run->pidfd = run->status = -1;
    run->owner = 0;
    run->ended = 1;
    limit_patience(slot->control);
    long error = send_all(slot->control, parts, 2, slot->cgroups, n_fds, 0);
    if (error == 0)
        return 0;
    sbx_close_slot(slot);
    return sbx_fail(run, SBX_STEP_REAPER, 0, error);
}

/* Forgets descriptors that the host has closed or replaced: the numbers are not ours any more. The
 * resident ends when its socket is closed. */
static void forget_foreign(struct sbx_slot *slot) {
    if (sbx_file_of(slot->pidfd) != slot->files[0])
        slot->pidfd = -1;
    if (sbx_file_of(slot->control) != slot->files[1])
        slot->control = -1;
}

/* Waits, for MOST_NS at most, until the resident asks for a command. Returns whether it asked for
 * this one, and said nothing else. It does not ask if the run before left something, or if somebody
 * outside killed a process of the slot. */
static int is_ready(const struct sbx_slot *slot, int64_t most_ns) {
    struct sbx_record records[2]; /* one record more than the resident may have sent */
    struct pollfd fds[] = {{slot->control, POLLIN, 0}, {slot->pidfd, POLLIN, 0}};
    struct timespec patience = {most_ns / NS, most_ns % NS};
    long n = raw(__NR_recvfrom, slot->control, records, sizeof records, MSG_DONTWAIT, 0, 0);
    /* A fork of the caller may hold the resident's end open, so this waits for its death as well.
     */
    long waited = n == -EAGAIN ? -EINTR : 0;
    while (waited == -EINTR) /* the kernel counts PATIENCE down by itself */
        waited = raw(__NR_ppoll, fds, 2, &patience, 0, 0);
    if (waited > 0)
        n = raw(__NR_recvfrom, slot->control, records, sizeof records, MSG_DONTWAIT, 0, 0);
    struct timespec at_once = {0, 0}; /* it may have died after it asked */
    return n == sizeof *records && records->magic == SBX_READY_MAGIC
           && records->run == slot->runs + 1 && raw(__NR_ppoll, &fds[1], 1, &at_once, 0, 0) == 0;
}

int sbx_spawn_in_slot(struct sbx_slot *slot, const struct sbx_job *job, struct sbx_run *run) {
    int stdio[] = {SBX_NULL, SBX_NULL, SBX_NULL}, fds[4], null = -1;
    int is_sent = 0;
    reset_run(run, NULL);
    if (job->size > INT32_MAX) { /* too large for an order's size field, and for any exec */
        run->owner = 0;
        return sbx_fail(run, SBX_STEP_EXEC, -1, -E2BIG);
    }
    forget_foreign(slot);
    int64_t patience = job->setup_ns && job->setup_ns < PATIENCE_NS ? job->setup_ns : PATIENCE_NS;
    if (slot->owner != run->owner || !is_ready(slot, patience)) {
        run->owner = 0;
        sbx_close_slot(slot);
        return 1;
    }
    run->slot = slot;
    int error = make_outputs(job, run, stdio);
    if (error == 0)
        error = collect_stdio(run, stdio, &null, fds);
    if (error == 0) {
        struct sbx_order order = order_of(job, ++slot->runs);
        struct iovec parts[] = {{&order, sizeof order},
                                {(void *)(uintptr_t)job->limits, order.limits},
                                {(void *)(uintptr_t)job->cwd, job->size},
                                {(void *)(uintptr_t)job->inputs, job->inputs_size}};
        order.n_fds = job->upper_socket ? 4 : 3;
        fds[3] = job->upper_socket;
        order.n_inputs = job->n_inputs;
        order.inputs = (uint32_t)job->inputs_size;
        order.size += order.inputs;
        is_sent = send_all(slot->control, parts, 4, fds, order.n_fds, 0) == 0;
    }
    close_outputs(job, stdio);
    sbx_close(&null);
    if (error == 0 && is_sent)
        return pump_at_once(job, run);
    /* This closes the slot as well: the resident may have a part of the order, but runs nothing. */
    sbx_end(run);
    return error == 0 ? 1 : -1;
}

/* If a seccomp filter of the host forbids signals, the socket is closed, and then the resident
 * ends. */
void kill_slot(struct sbx_slot *slot) {
    if (!slot->killed || slot->killed > sbx_now())
        slot->killed = sbx_now();
    long error = raw(RAW_pidfd_send_signal, slot->pidfd, SIGKILL, 0, 0);
    if (error < 0 && error != -ESRCH)
        sbx_close(&slot->control);
}

void sbx_close_slot(struct sbx_slot *slot) {
    if (slot->owner == 0)
        return;
    forget_foreign(slot);
    if (slot->owner == getpid() && slot->pidfd >= 0) {
        kill_slot(slot);
        sbx_close(&slot->control);
        if (wait_for_end(slot->pidfd, slot->killed)) {
            reap_orphan(slot->pidfd);
        } else {
            slot->stuck = (int)move_above(slot->pidfd, 3);
            slot->pidfd = -1;
        }
    }
    sbx_close(&slot->pidfd);
    sbx_close(&slot->control);
    slot->owner = 0;
}
