/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the reaper's program share. It has one thread; a resident shares its memory
 * with the reaper and the command's process of the run under way.
 */
#ifndef SBX_REAPER_H
#define SBX_REAPER_H

#include "../child/child.h"

/* The same files make four programs: the reaper of one run, which may be a resident, that of a
 * session, that of a run whose CPU time it watches, and the resident whose runs have a root of
 * layers (SBX_STACKS). So the first stays small. */
#ifdef SBX_IN_SESSION
enum { IN_SESSION = 1, WATCHES_CPU = 1 };
#elif defined(SBX_WATCHES_CPU)
enum { IN_SESSION = 0, WATCHES_CPU = 1 };
#else
enum { IN_SESSION = 0, WATCHES_CPU = 0 };
#endif

#define CHILD_SIGNAL ((uint64_t)1 << (SIGCHLD - 1))
#define BELL_SIGNAL ((uint64_t)1 << (RESIDENT_BELL - 1))

enum { MOST_AT_ONCE = 256 }; /* children that are reaped before the next look at the caller */

extern struct sbx_place run_place; /* what is done for each run */
extern uint32_t run_number;        /* the first is 1 */
extern struct sbx_run run;

void exit_reaper(void) __attribute__((noreturn));
/* Tells the caller why there is no command, and exits. */
void fail_and_exit(enum sbx_step step, int index, long error) __attribute__((noreturn));

/* ---- messages ------------------------------------------------------------------------------ */

extern char *contents;       /* what came with the last order, then the pointers to its strings */
extern int is_message_large; /* a resident: it did not fit into the memory for messages */

void use_small_buffer(void);
/* Of a resident: all of it is in memory from now on. */
void use_large_buffer(void);

long get_memory(size_t size);

/* Reads the next message of KIND. Whoever sends it is the caller's core. Returns 0 or -errno:
 * -ECANCELED if the caller hung up, or sent something else. A signal for a run that is over may
 * come first. FDS: room for SBX_MOST_CGROUPS descriptors; NULL: no message of a run alone has any.
 */
long receive_message(uint32_t kind, struct sbx_order *order, int *fds);
/* Fills JOB with what an order asks for: its descriptors, the cwd and the strings lie one after the
 * other. */
void read_job(const struct sbx_order *order, struct sbx_job *job, struct sbx_child *c);
/* Reads the first message, the place of the runs, whose pointers are offsets. */
long read_place(void);

/* ---- a run --------------------------------------------------------------------------------- */

extern volatile int is_rung; /* a resident: the caller says that there is a message */
/* A resident: the reaper of the run under way, and whether it has to kill the run. */
extern long run_reaper;
extern volatile int is_stopped;

void on_signal(int signum);
/* Clones the command's process, as vfork does: if it fails before its exec, that is known when this
 * returns. The command's pid, or < 0. */
long start_command(struct sbx_child *c, uint64_t namespaces);
void write_record(uint32_t magic);
/* Sends on the signals that came for this run; 0: the caller hung up, or says something else. */
int pass_signals(void);
/* Waits for any child (wait4(2)), of which a stop is not the end: returns its pid, 0: none ended
 * (WNOHANG), or -errno. */
long wait_for_child(int *status, int flags);
/* Reaps whatever ends, until it is COMMAND: returns its status, or -errno if the kernel does not
 * tell. */
int reap_until(long command);
/* Kills all that is left in the pid namespace. 0: some that got SIGKILL do not end, as they wait in
 * the kernel for something that does not come. */
int kill_and_reap(void);

/* ---- the processes of a pid namespace ------------------------------------------------------ */

enum { MOST_PIDS = 1 << 22 };

extern int proc; /* a procfs of this pid namespace, or -errno */

void open_proc(void);

struct listing {
    long directory;
    int blocks; /* how many are read at most, of some 128 processes each: in a storm of forks the
                 * list may grow faster than it is read */
    long at, size;
    char entries[4096];
};
/* Returns the next process of a list, which begins with zeros; 0: there is no more. */
int next_process(struct listing *l);
/* The parent of a process; 0: it is not known. */
int parent_of(int pid);

int64_t now(void);

/* From now on is_over_cpu_time() looks, every 10 ms. This comes before the command, which might
 * leave the reaper no descriptor. Returns 0 or -errno. */
long watch_cpu_time(int64_t most);
extern int64_t most_cpu_time; /* 0: it does not look */
/* Whether a process of the run has used as much. */
int is_over_cpu_time(void);

/* ---- a session ----------------------------------------------------------------------------- */

/* The main function of pid 1 of a session. It returns in the reaper of a command, which then has
 * the descriptors of any other reaper. */
void await_command(void);
/* Sends a signal to all descendants of the calling process. */
void signal_descendants(int signum);
/* Kills all descendants, and waits until none is left: returns the wait status of COMMAND. */
int kill_descendants(long command);

/* ---- a command with many words ------------------------------------------------------------- */

/* What bwrap_words.py writes. Strings are offsets from the start of the struct. */
struct sbx_words {
    int32_t error;   /* an errno; 0: the command began; -1: nobody read this */
    int32_t program; /* the descriptor of this program */
    uint64_t n_paths, n_args;
    uint64_t paths[]; /* where the program may be, then the arguments, then a 0 */
};

/* ARGS: this program, the number of the descriptor with the words, their size. */
void exec_words(char **args, char **envp) __attribute__((noreturn));

/* ---- a resident ---------------------------------------------------------------------------- */

/* CGROUPS: what the process of each command writes to, to join. */
void resident_main(const int *cgroups, int n) __attribute__((noreturn));

/* Whether the counters of the namespaces are what they were. FIRST: remembers them. */
int are_counts_same(int first);
int is_ipc_empty(int queues);
void open_keyrings(void);
int are_keyrings_same(void);
long open_queues(void);

/* Looks from now on at the dev that all runs share, at PATH, where MOUNTED lies. Below 0: it
 * does not. MOUNTS: all that lies in the template, some of it in that dev. */
int sbx_watch_dev(const struct sbx_mount *m, const char *path, struct sbx_seen mounted,
                  const struct sbx_seen *mounts, int n_mounts);
/* Whether a run left nothing in it; what was used is replaced. 0: the dev is of no use any more. */
int sbx_renew_dev(void);

#endif
