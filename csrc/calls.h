/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of the core that Python calls. Like sandbox.h, whose structs they take, this is
 * part of the cdef: declarations only.
 */

/* Tells whether a mount point of this mode is a stub, which was made for a run: it is set-user-ID,
 * sticky, and writable by its owner only; or, while it is being made, sticky, and open to its owner
 * only. */
int sbx_is_stub(int mode);

/* Starts JOB in PLACE. Returns 0, or -1 and run->failure. */
int sbx_spawn(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
              char *stack);

/* Opens a slot for runs in PLACE, whose reaper is SBX_RESIDENT. `inside` says what the resident
 * does for each run: a struct sbx_place without namespaces and root, and all that it points to; its
 * pointers are offsets from its start. Returns 0, or -1 and run->failure. */
int sbx_open_slot(const struct sbx_place *place, const struct sbx_job *job, struct sbx_run *run,
                  char *stack, const char *inside, size_t size, struct sbx_slot *slot);

/* Starts JOB in a slot. Returns 0, or -1 and run->failure. 1: the slot is of no use any more, or
 * the job cannot be sent (ETOOMANYREFS, say): nothing runs there, and the job may be started
 * elsewhere. */
int sbx_spawn_in_slot(struct sbx_slot *slot, const struct sbx_job *job, struct sbx_run *run);

/* Starts JOB in a session: CONTROL is the socket to its pid 1, which is run->status of a run with
 * the session's program as its reaper. Returns 0, or -1 and run->failure: step ORDER if the session
 * is over. */
int sbx_spawn_in_session(int control, const struct sbx_job *job, struct sbx_run *run);

/* Kills all that is in a slot and waits for its end, SBX_LAST_MS at most: see slot->stuck. Does
 * nothing the second time. In a fork of the caller it only closes the descriptors. */
void sbx_close_slot(struct sbx_slot *slot);

/* Moves bytes until the run is over, for WAIT_NS at most. */
enum sbx_pump_result sbx_pump(struct sbx_run *run, int64_t wait_ns);

/* Does the same for N runs, until something is to be done for one of them. Returns for how many,
 * and `results` says what. `room` has room for 4 * N struct pollfd, of 8 bytes each. */
int sbx_pump_any(struct sbx_run **runs, int n, enum sbx_pump_result *results, void *room,
                 int64_t wait_ns);

/* Opens an eventfd in the shape of a run, so that sbx_pump_any can wait for it: another thread
 * wakes the pump by writing to it. Returns 0 or -errno. */
int sbx_open_bell(struct sbx_run *bell);

/* Sends SIGNUM to every process of the run: to its pid namespace, or, without a reaper and a slot,
 * to its process group. Returns 0 or -errno. */
int sbx_signal(struct sbx_run *run, int signum);

/* Kills a run by its reaper, which then reports what the run has used. If that takes longer than
 * SBX_ASKED_MS, or there is no reaper, it is killed as sbx_signal does it. Returns 0 or -errno. */
int sbx_stop(struct sbx_run *run);

/* Kills what is left of a run, waits for its end, SBX_LAST_MS at most, and closes every descriptor
 * but run->stuck. Does nothing the second time. In a fork of the caller it only closes the
 * descriptors. */
void sbx_end(struct sbx_run *run);

/* Makes a handle of a run after its start. RUN is then free for another run. */
void sbx_hand_over(struct sbx_run *run, struct sbx_handle *handle);

/* Waits for the end of the run, for NS at most, or until a signal comes. Returns whether it is
 * over. In a fork of the caller the status stays -ECHILD: it is the caller's. */
int sbx_await_handle(struct sbx_handle *handle, int64_t ns);

/* Does what sbx_signal does. */
int sbx_signal_handle(struct sbx_handle *handle, int signum);

/* Returns a new pidfd of the run's first process, or -errno: -ESRCH if the run is over. */
int sbx_pidfd_of_handle(struct sbx_handle *handle);

/* Does what sbx_end does, once, and leaves the status. */
void sbx_end_handle(struct sbx_handle *handle);

/* Returns handle->stuck, to one of several callers. */
int sbx_take_stuck(struct sbx_handle *handle);

/* Tells whether the process of a pidfd, like that of run->stuck, is gone; reaps it if it is our
 * child. */
int sbx_reap_stuck(int pidfd);

/* Sets PR_SET_DUMPABLE (prctl(2)). Returns what it was. */
int sbx_set_dumpable(int dumpable);

/* Returns a number for the file that FD has open; 0: it is not open. */
uint64_t sbx_file_of(int fd);

/* The programs that may be job.init_fd. */
enum sbx_program {
    SBX_OF_RUN,
    SBX_OF_SESSION,
    SBX_OF_CPU_TIME, /* of a run with job.cpu_ns */
    SBX_OF_LAYERS    /* of a slot whose runs have a root of layers */
};

/* Opens a reaper's program in a sealed memfd. Returns a descriptor, or -errno. */
int sbx_open_init(enum sbx_program which);

/* Returns a stack of SBX_STACK_SIZE with a guard page below it, or NULL if there is no memory. */
char *sbx_new_stack(void);
void sbx_free_stack(char *stack);

/* Watches N paths, one after the other and NUL-ended: sbx_is_watch_same tells whether they name the
 * same files as when the watch was opened, and the caller's namespace has the same mounts. `seen`
 * has room for three numbers each. */
void sbx_open_watch(const char *paths, int n, uint64_t *seen, struct sbx_watch *watch);
int sbx_is_watch_same(const char *paths, int n, uint64_t *seen, const struct sbx_watch *watch);
void sbx_close_watch(struct sbx_watch *watch);

/* Tells whether the file system of PATH's directory, a path inside ROOT, answers: a child looks,
 * for NS at most. Returns 0, or -errno: -ETIMEDOUT. The caller has to call sbx_end(RUN) afterwards.
 */
int sbx_filesystem_answers(struct sbx_run *run, const char *root, const char *path, int64_t ns,
                           char *stack);

/* Tells whether PATH is a directory, as far as the kernel knows without asking a server. */
int sbx_is_directory(const char *path);

/* Reads the beginning of N files into ROOM, one after the other: SIZES[i] bytes each, of which
 * those beyond the end of the file are 0. Returns 0, or the last -errno. */
int sbx_read_files(int n, const int *files, const int *sizes, char *room);

/* Writes mode, uid, gid and number of links of N files to ROOM. Returns as sbx_read_files does. */
int sbx_stat_files(int n, const int *files, uint32_t *room);

/* Returns the magic number of the file system that FD is in (statfs(2)), or -errno. */
long sbx_filesystem_of(int fd);

/* Opens PATH as if DIRECTORY were the root, without magic links (openat2(2)). Returns a descriptor,
 * or -errno. */
int sbx_open_in_root(int directory, const char *path, int flags);

/* Opens PATH as sbx_open_in_root does if IN_ROOT, as openat(2) if not; "" is DIRECTORY itself once
 * more. The descriptor is in *FD before the call returns: so no exception of Python's loses it, if
 * *FD is closed by its own destructor. Returns 0, or -errno. */
int sbx_open_into(int *fd, int directory, const char *path, int flags, int in_root);

/* Waits until a run that is about to begin can be traced: 0; or -errno, -ECANCELED if it does not
 * begin, or TRACE->stop is readable. The caller closes the descriptors in TRACE afterwards. */
int sbx_begin_trace(struct sbx_trace *trace);

/* Answers the path calls of a run until it is over, or TRACE->stop is readable, and records their
 * paths. Returns 0 or -errno. */
int sbx_trace(struct sbx_trace *trace);

/* Tells whether this process may read the memory of another, as a trace has to: 0 or -errno. */
int sbx_may_trace(void);

/* Closes *FD, if it is open, and sets it to -1. */
void sbx_close(int *fd);
