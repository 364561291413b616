/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract between Python and C. build_ffi.py reads this file and calls.h as the
 * cffi cdef, so they hold declarations only: no #include and no attribute.
 *
 * There are four structs, because their contents live for different times:
 *   sbx_place   the sandbox: compiled once, read by any number of threads at once
 *   sbx_slot    namespaces that are kept, with a resident reaper, for one run at a time
 *   sbx_job     one command in it: argv, environment, cwd, stdio
 *   sbx_run     one run under way: descriptors, buffers, and in the end the status or the error
 *
 * Python owns all of their memory, and all that they point to, and keeps it for the length of each
 * call. A field that is zero asks for nothing: a zeroed place is plain vfork and exec.
 */

/* The order of the steps is the order of execution. The caller does PIPE, LIFELINE and CLONE.
 * A reaper's program does FORK, USER and EXEC. */
enum sbx_step {
    SBX_STEP_NONE,
    SBX_STEP_PIPE,     /* pipes for the output, and the socket to the reaper */
    SBX_STEP_LIFELINE, /* a pidfd of the caller, for the run to see it die */
    SBX_STEP_CLONE,    /* the child and its namespaces */
    SBX_STEP_IDS,      /* uids and gids of a new user namespace; index: which file of /proc/self */
    SBX_STEP_STDIO,    /* descriptors 0, 1, 2; index: which */
    SBX_STEP_SESSION,  /* a session of its own */
    SBX_STEP_KEYRING,  /* a session keyring of its own */
    SBX_STEP_OOM_SCORE,
    SBX_STEP_LOOPBACK, /* lo up */
    SBX_STEP_WATCH,    /* what a resident looks at after each run */
    SBX_STEP_HOSTNAME,
    SBX_STEP_PRIVATE,   /* no mount event leaves the namespace */
    SBX_STEP_ROOT,      /* the root directory, or in a mount namespace a copy of its tree */
    SBX_STEP_READ_ONLY, /* the copy read-only, without devices: recursively, as far as asked for */
    SBX_STEP_SOURCE,    /* what is mounted; index: mount */
    SBX_STEP_UPPER,     /* overlay: where the run's changes go */
    SBX_STEP_LAYER,     /* overlay: the layers; index: which, from the bottom */
    SBX_STEP_OVERLAY,   /* all of them as one file system */
    SBX_STEP_ATTACH,    /* the copy mounted over the old root */
    SBX_STEP_TARGET,    /* where; index: mount */
    SBX_STEP_MOUNT,     /* the mounting itself; index: mount */
    SBX_STEP_PIVOT,     /* into the copy, the old root detached */
    SBX_STEP_CHROOT,    /* without a mount namespace */
    SBX_STEP_ORDER,     /* a resident's: the steps before it are done ahead of the run */
    SBX_STEP_TERMINAL,  /* stdin becomes the terminal of the session */
    SBX_STEP_CWD,
    SBX_STEP_CGROUP, /* index: which; in a slot before ORDER */
    SBX_STEP_TRACE,  /* the filter of a trace: what comes after it uses no path until the exec */
    SBX_STEP_LIMITS, /* index: of rlimit, then of enum sbx_limit */
    SBX_STEP_NO_NEW_PRIVS,
    SBX_STEP_PARENT_KEYRING, /* no reaper: the caller's session keyring stays the caller's */
    SBX_STEP_SECCOMP, /* the system call filter; SBX_FILTER_LAST: after USER, just before EXEC */
    SBX_STEP_CAPABILITIES,
    SBX_STEP_PARENT_DEATH, /* no reaper: the kernel kills the command when the caller dies */
    SBX_STEP_SIGNALS,      /* default dispositions */
    SBX_STEP_REAPER,       /* exec of the reaper */
    SBX_STEP_FORK,         /* the reaper's fork of the command */
    SBX_STEP_USER,         /* the reaper's change of the command's ids */
    SBX_STEP_EXEC,         /* exec of the command; index: path candidate, -1: none exists */
    SBX_STEP_KILL /* the end of what the command left: SIGKILL did not end it in SBX_LAST_MS */
};

/* A seal mounts nothing: if its target is a mount by which uid 0 commands the kernel (sysfs,
 * cgroup, the caller's proc), that mount becomes read-only, like one with SBX_COVER. */
enum sbx_mount_kind {
    SBX_BIND,
    SBX_HOLE,
    SBX_TMPFS,
    SBX_PROC,
    SBX_DEV,
    SBX_SEAL,
    SBX_DIRECTORY, /* is made, where there is none */
    SBX_SYMLINK,   /* is made */
    SBX_FILE       /* a read-only file, with a content of the caller's */
};

enum sbx_mount_flag {
    SBX_RECURSIVE = 1,  /* bind: with the mounts below the source */
    SBX_READ_ONLY = 2,  /* bind: recursively; dev: once it has all that lies in it */
    SBX_OPTIONAL = 4,   /* no such directory: leave it out */
    SBX_NO_DEVICES = 8, /* hole: those of the root do not work */
    SBX_COVER = 16,  /* proc, bind, hole, seal: read-only where uid 0 alone, without capabilities,
                      * commands the kernel */
    SBX_KEPT = 32,   /* of a run in a slot: it is mounted already; in a root of layers `source` says
                      * where, and it is moved to its target */
    SBX_DEVICE = 64, /* bind: the source has to be a device */
    SBX_MAY_LACK = 128 /* hole: it is left out if the root has no such path */
};

struct sbx_mount {
    enum sbx_mount_kind kind;
    int flags;           /* of enum sbx_mount_flag */
    const char *source;  /* bind: a path of the caller's; symlink: where it leads */
    const char *target;  /* absolute, inside the root; a hole's source as well */
    const char *size;    /* tmpfs: bytes in decimal, or NULL for the kernel's default */
    const char *inodes;  /* tmpfs, and the shm of a dev: how many, in decimal */
    const char *mode;    /* tmpfs: octal */
    const void *content; /* file */
    uint64_t length;     /* of the content */
    uint32_t bits;       /* directory, file: the permissions */
};

/* What pid 1 of a pid namespace is. */
enum sbx_reaper {
    SBX_COMMAND, /* the command itself */
    SBX_REAPER,  /* a program of ours, which ends with the command */
    SBX_RESIDENT /* the same, but it stays and runs one command after the other: see sbx_slot */
};

/* Which process installs the filter, and when. */
enum sbx_filter {
    SBX_FILTER_EARLY, /* the command's process, as step SECCOMP: it lets through what comes after */
    SBX_FILTER_LAST,  /* the command's process, with nothing but exec after it */
    SBX_FILTER_RESIDENT /* a resident, once: all its runs inherit it */
};

enum sbx_limit { SBX_NICE, SBX_SCHEDULER, SBX_CPUS, SBX_UMASK, SBX_PERSONALITY };

/* How a root of layers is made. */
enum sbx_overlay {
    SBX_STACKED = 1,    /* the root is an overlay of job.lowers */
    SBX_USER_XATTR = 2, /* in a user namespace: attributes of the overlay are user.overlay.* */
    SBX_VOLATILE = 4,   /* nothing is written back when it is unmounted */
    SBX_TEMPLATE = 16,  /* instead: a new tmpfs, in which a resident keeps the layers, as /l/N, and
                         * what its runs mount */
    SBX_LATE = 32,  /* of a run in a slot: it is made after the order, which names more layers */
    SBX_BY_NAME = 8 /* the kernel takes no layers by descriptor, or not before they are attached:
                     * before Linux 6.15 */
};

struct sbx_limits {
    uint32_t rlimits;       /* bit N: resource N of setrlimit(2) is to be as rlimit[N] */
    uint32_t others;        /* bit N: N of enum sbx_limit is to be as below */
    uint64_t rlimit[16][2]; /* soft and hard */
    int nice;               /* setpriority(2) */
    int scheduler;          /* sched_setscheduler(2); the priority is 0 */
    uint64_t cpus[16];      /* sched_setaffinity(2) */
    uint32_t umask;
    uint32_t personality;      /* personality(2) */
    const char *oom_score_adj; /* proc(5); NULL: unchanged */
};

struct sbx_place {
    uint64_t namespaces; /* CLONE_NEW* */
    const char *uid_map; /* user namespace: as user_namespaces(7) has it; NULL: see job.mapper */
    const char *gid_map;
    const char *root;         /* NULL: the caller's */
    const char *hostname;     /* NULL: unchanged */
    int overlay;              /* of enum sbx_overlay; 0: `root` says what the root is */
    const char *upper_size;   /* as sbx_mount.size, of an upper in memory */
    const char *upper_inodes; /* as sbx_mount.inodes */
    int n_lowers;             /* overlay, of a run in a slot: how many layers the template has */
    const struct sbx_mount *mounts;
    int n_mounts;
    int read_only;
    int no_devices; /* those of the root do not work */
    int session;
    int keyring;
    int guard_keyring; /* no reaper: a filter of its own keeps keyctl(2) from the parent */
    int reaper;        /* of enum sbx_reaper */
    int change_ids;    /* the reaper gives these to the command, and no other group */
    uint32_t uid, gid;
    int n_groups; /* SBX_MOST_GROUPS at most */
    uint32_t groups[32];
    struct sbx_limits limits;
    int no_new_privs;
    const void *filter; /* struct sock_filter[] of seccomp(2); NULL: none */
    int filter_length;  /* how many */
    int filter_when;    /* of enum sbx_filter */
    int cut_capabilities;
    uint64_t capabilities;      /* cut_capabilities: what may stay, where the caller has it */
    uint64_t must_capabilities; /* cut_capabilities: what the caller has to have */
};

/* Values of sbx_job.stdio that are not descriptors. */
enum sbx_stdio { SBX_NULL = -1, SBX_CAPTURE = -2, SBX_STDOUT = -3 };

struct sbx_job {
    const char *strings; /* NUL-ended, one after the other: candidates, argv, environment */
    const char **vec;    /* room for n_candidates + n_args + 1 + n_env + 1 */
    int n_candidates;    /* paths to try for the program; 1 to 9,999 */
    int n_args;
    int n_env;
    const char *cwd; /* inside the root, just before the strings; NULL: unchanged */
    size_t size;     /* of the cwd, with its NUL, and of the strings */
    size_t cwd_size;
    int cwd_or_root; /* 1: where there is no such cwd, it is "/" */
    int stdio[3];
    int init_fd;            /* place.reaper: the reaper's program */
    const int *passed;      /* the numbers of more descriptors that the command gets */
    const int *passed_from; /* the caller's numbers of them: the same, if there is a reaper */
    int n_passed;           /* SBX_MOST_PASSED at most; in a slot none */
    const int *cgroups;     /* the cgroups that it joins: see struct sbx_slot; in a slot none */
    int n_cgroups;          /* SBX_MOST_CGROUPS at most */
    int unified;            /* the directory of the last of them, if it is of v2; 0: it is not */
    int terminal;           /* 1: stdin is a terminal, and to be that of its session */
    int cpu_seconds;        /* RLIMIT_CPU of this job; 0: that of its limits */
    int64_t cpu_ns;         /* its reaper ends it once a process has used so much CPU time; 0: it
                             * does not look, as nobody does in a slot */
    const struct sbx_limits *limits; /* in a slot or session, or NULL: those of the place */
    int announce;                    /* 1: sbx_spawn waits until the command began */
    int64_t pump_ns;                 /* how long sbx_spawn goes on with sbx_pump; 0: not at all */
    int64_t setup_ns;                /* steps that take longer are ended: ETIMEDOUT; 0: never */
    int tracer; /* a socket that holds the filter of a trace; the listener comes back by it; 0:
                 * none. In a slot or session none */
    int mapper; /* user namespace without uid_map: a socket to the thread that writes the maps */
    const unsigned char *held; /* per mount: 1 where the caller holds the stub that is its target */
    int *sources;              /* per mount: room for a descriptor */
    const char *lowers;        /* place.overlay: paths of the caller's, NUL-ended, the top first */
    int n_lowers;
    const char *inputs; /* in a slot with SBX_LATE: paths in the template, as `lowers`, of layers
                         * above those that it has */
    int n_inputs;
    size_t inputs_size; /* bytes */
    const char *upper;  /* a directory of the caller's, with `upper` and `work`; NULL: in memory */
    int upper_socket;   /* where the descriptor of the upper goes; 0: nobody asks for it */
};

enum { SBX_MOST_PASSED = 32, SBX_MOST_CGROUPS = 8, SBX_MOST_GROUPS = 32 };

struct sbx_stream {
    int fd;    /* -1: not captured, or over */
    int eager; /* 1: what comes is handed over at once, not only when the buffer is full */
    char *buffer;
    size_t size;
    size_t length;
    int left;        /* what the pipe still held when the command ended */
    int is_terminal; /* 1: the caller's end of one, which does not tell what it holds */
};

/* How long the kernel may take, in ms, to end a process that got SIGKILL; and how long, of that, a
 * reaper may take to kill a run by itself. */
enum { SBX_LAST_MS = 1900, SBX_ASKED_MS = 900 };

struct sbx_slot {
    int owner;          /* pid of the process that opened it; 0: it is closed */
    int pidfd;          /* of the resident */
    int control;        /* a socket to it */
    uint64_t files[2];  /* of the two: a host may close or replace what is not its own */
    int64_t killed;     /* as in struct sbx_run */
    int stuck;          /* as in struct sbx_run */
    uint32_t runs;      /* how many it was ordered: the number of the last */
    uint32_t signalled; /* the number of the last run that was sent a signal */
    /* The cgroups of all its runs. A process that has one thread joins by writing "0" to each of
     * these descriptors: `tasks` of v1, cgroup.procs of v2. */
    const int *cgroups;
    int n_cgroups; /* SBX_MOST_CGROUPS at most */
};

struct sbx_watch {
    int mountinfo; /* /proc/self/mountinfo; -1: there is none */
    uint64_t file; /* of it: a host may close or replace what is not its own */
};

struct sbx_failure { /* the step that failed */
    enum sbx_step step;
    int index;
    int error; /* errno */
};

/* Why sbx_pump returned. */
enum sbx_pump_result {
    SBX_PUMP_DONE,  /* ended, and everything that it wrote is in the buffers */
    SBX_PUMP_FULL,  /* a buffer is full, or has something eager: make room */
    SBX_PUMP_AGAIN, /* a signal came, or the time was over */
    SBX_PUMP_ERROR  /* failure says which step */
};

struct sbx_run {
    int owner;             /* pid of the process that started it; 0: no run */
    struct sbx_slot *slot; /* the slot that it runs in, or NULL */
    int pid;    /* for people to read: it is never signalled by number while a pidfd can do it */
    int pidfd;  /* -1: over */
    int status; /* the socket to its reaper, -1: there is none */
    int group;  /* 1: no pid namespace: end the process group as well */
    int orphan; /* 1: it is not the caller's child, and somebody else reaps it */
    int in_session; /* 1: its reaper is one of several in the namespaces of a session */
    int stillborn;  /* 1: the kernel killed a child that was born in job.unified, see clone.c */
    int setting_up; /* 1: the child is in the caller's memory; the kernel clears it */
    int64_t killed; /* when SIGKILL was sent, in ns of CLOCK_MONOTONIC; 0: it was not */
    int reported;   /* 1: its record came before anybody killed it; `killed` is when that is late */
    int asked;      /* 1: its reaper was told to kill the rest and to report, see sbx_stop */
    int stuck; /* after sbx_end: a pidfd of what SIGKILL did not end in SBX_LAST_MS, or 0. Python
                * keeps it, and all of this memory, until that process is gone. */
    struct sbx_stream out;
    struct sbx_stream err;
    enum sbx_pump_result
        first; /* the result of the pump of job.pump_ns; DONE: sbx_end was called as well */
    int ended;
    int wait_status;   /* of wait(2), once ended; negative: -errno of the wait for it: -ECHILD means
                          that somebody else took the status, -EOWNERDEAD that the reaper of a
                          command in a session was killed */
    int over_cpu_time; /* 1: its reaper ended it for job.cpu_ns */
    int has_usage;     /* whether there is any, once ended */
    int64_t usage[18]; /* struct rusage of getrusage(2), for all processes of the run that were
                          waited for; a peak memory that is not known is 0 */
    struct sbx_failure failure; /* SBX_STEP_NONE: none did */
    struct sbx_failure at;      /* the step under way: the failure if the time is over */
};

/* A run that goes on while its caller does something else. Any thread may use it at any moment. */
struct sbx_handle {
    int lock;          /* the pid of the process whose thread holds it; 0: none does */
    int user;          /* pid of the process that used it last: the caller, or a fork of it */
    int n_waiting;     /* threads of that process that wait on the pidfd */
    int is_over;       /* 1: the fields of the run do not change any more */
    int stuck;         /* as in struct sbx_run */
    uint64_t files[2]; /* of the pidfd and the socket: a host may close or replace them */
    struct sbx_run run;
};

enum { SBX_STACK_SIZE = 65536, SBX_PEAK = 4 /* ru_maxrss in struct rusage */ };
