/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the caller's process share.
 */
#ifndef SBX_CALLER_H
#define SBX_CALLER_H

#include "../internal.h"
#include "../raw.h"

#include <sys/uio.h>

#define NS 1000000000LL
#define LAST_NS (SBX_LAST_MS * 1000000LL)
#define WAIT_PIDFD 3 /* waitid(2), P_PIDFD */

int64_t sbx_now(void); /* CLOCK_MONOTONIC, in ns */

/* ---- descriptors --------------------------------------------------------------------------- */

/* Moves a descriptor to LOWEST or above. The caller may have closed its own 0, 1 and 2, and a
 * descriptor of ours with such a number would be taken for stdin. */
long move_above(long fd, int lowest);

/* Makes reads from, and writes to, a reaper's socket fail after some seconds: one that does not
 * answer until then is of no use. */
void limit_patience(int socket);

int make_socket(int *ours, int *theirs);

/* Makes the caller's ends of the outputs; STDIO gets the command's ends. */
int make_outputs(const struct sbx_job *job, struct sbx_run *run, int stdio[3]);
/* Fills FDS with the command's stdin, stdout and stderr, to be sent. NULL_FD is opened for this
 * run, if it needs one, so that no other run shares its flags and locks. */
int collect_stdio(struct sbx_run *run, const int stdio[3], int *null_fd, int fds[3]);
/* Closes our copies of the command's ends: it has inherited them, or the spawn failed. */
void close_outputs(const struct sbx_job *job, int stdio[3]);
/* Makes all descriptors of a run: those of the caller, and in C those of the child. */
int make_pipes(const struct sbx_job *job, struct sbx_run *run, struct sbx_child *c);

/* ---- messages ------------------------------------------------------------------------------ */

enum { FIRST_PARTS = 6 };

/* What the reaper of a single run is sent: the place, its filter, and the command. */
struct first_messages {
    struct sbx_order orders[2];
    struct sbx_place place;
    struct iovec parts[FIRST_PARTS];
};
void fill_first_messages(struct first_messages *l, const struct sbx_place *place,
                         const struct sbx_job *job);
struct sbx_order order_of(const struct sbx_job *job, uint32_t run);

/* Sends PARTS, and takes from them what was sent: returns 0, or -errno, and then PARTS has what was
 * not. The descriptors go with the first byte. A message that is longer than the buffer of the
 * socket goes in pieces, which the reaper reads as they come. */
long send_all(int socket, struct iovec *parts, int n, const int *fds, int n_fds, int flags);

/* ---- a run --------------------------------------------------------------------------------- */

void reset_run(struct sbx_run *run, const struct sbx_place *place);
long clone_child(struct sbx_child *c, char *stack);

/* Waits for the reaper's record that the command began, or why it did not. If the reaper is killed
 * first, sbx_pump reports its death. */
void await_command(struct sbx_run *run, int64_t ns);

/* Moves output, and waits, in the call that starts the run: most runs end there, and Python takes
 * its lock once only. */
int pump_at_once(const struct sbx_job *job, struct sbx_run *run);

/* Waits until the process of PIDFD is dead, for as long as the kernel may take since KILLED:
 * returns whether it is. */
int wait_for_end(int pidfd, int64_t killed);
long kill_run(struct sbx_run *run);
void kill_slot(struct sbx_slot *slot);
void reap_orphan(int pidfd);
/* Takes the status of a process that is known to be dead. */
void sbx_reap(struct sbx_run *run);
void sbx_collect(struct sbx_run *run);
/* Bounds the wait for a reaper that has told how its command ended. */
void notice_record(struct sbx_run *run);

#endif
