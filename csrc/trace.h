/* SPDX-License-Identifier: Apache-2.0
 *
 * The structs of a trace, the third part of the cdef: declarations only.
 */

/* What a system call does with its path: bits of sbx_path_call. */
enum sbx_path_what {
    SBX_ASKED = 1,    /* it looks whether there is such a file, or changes it */
    SBX_OPENED = 2,   /* it opens it */
    SBX_EXECED = 4,   /* it executes it */
    SBX_MAKES = 8,    /* there is such a file afterwards */
    SBX_MOVES = 16,   /* the current directory or the root may be another one afterwards */
    SBX_MOUNTS = 32,  /* the process may see other mounts, or another root, afterwards */
    SBX_OF_LINK = 64, /* a link at the end is not followed */
    SBX_HOW = 128     /* its flags are in a struct open_how */
};

/* Which arguments of a system call say what, counted from 1; 0: none does. Eight bytes. */
struct sbx_path_call {
    uint8_t what, directory, path, flags; /* flags: of open(2), or AT_* */
    uint8_t what_second, second_directory, second_path, spare;
};

enum {
    SBX_MOST_CALLS = 600,  /* the length of the table of each ABI */
    SBX_MOST_TRACE = 4096, /* the size of the filter of a trace, in bytes */
    SBX_FOUND = 8,         /* of a record: it was there, or was made, */
    SBX_MISSING = 16,      /* was not there, */
    SBX_IS_NAMED = 32      /* or is the name of another record: that of the file it leads to */
};

/* Where a process looks up its paths. */
struct sbx_where {
    int tid;          /* 0: none */
    int root;         /* -1: that of the trace */
    int executes;     /* 1: its last call was an exec, whose program is not known yet */
    uint32_t program; /* a hash of the name of the program before that; 0: not known */
    uint32_t prefix_size, cwd_size; /* 0: not known */
    char prefix[4096];              /* its root as the sandbox names it; "": the sandbox's own */
    char cwd[4096];                 /* the same of its directory */
};

enum { SBX_MOST_WHERE = 16, SBX_MOST_MOUNTS = 32 };

/* What is known of a path. Records lie one after the other, at multiples of 8. */
struct sbx_record_of_path {
    uint32_t flags, size; /* SBX_ASKED to SBX_IS_NAMED; of the path, which follows */
    uint32_t names;       /* where the record is that it names, plus 1 */
    uint32_t hash;
};

/* A trace under way. */
struct sbx_trace {
    int socket;                        /* the listener comes from here */
    int stop;                          /* an eventfd that ends it */
    int listener;                      /* -1: it has not come */
    int root;                          /* the root directory of the command */
    uint32_t audits[2];                /* AUDIT_ARCH_* of the first two tables */
    const struct sbx_path_call *calls; /* three tables */
    char *room;                        /* the records */
    uint32_t size, used;
    uint32_t *table; /* of the records, by a hash of the path; 0: free, or where it is, plus 1 */
    uint32_t table_size, n_records; /* table_size: a power of two, which grows up to most_table */
    uint32_t most_table;
    int truncated;               /* 1: there was no room for a record */
    uint64_t n_calls, n_unknown; /* how many calls; how many of which the path is not known */
    char prefix[4096];           /* the root as /proc names it */
    uint32_t prefix_size;
    int sees_mounts; /* 1: some process of the run may have a root or mounts of its own */
    int waits;       /* 1: the end of the last process ends a wait for calls (Linux 6.11), so one
                      * system call less is made for each */
    int may_wait;    /* 1: a file system of the run may be one that the run itself answers for */
    char dots[4096], dots_name[4096]; /* the last path to a directory with "..", and its name */
    uint32_t dots_size, dots_name_size;
    uint32_t n_programs; /* how often a process was to execute one */
    int n_mounts;
    int mounts[32]; /* SBX_MOST_MOUNTS; a number, and in bit 0 whether it waits for no process */
    struct sbx_where where[16]; /* SBX_MOST_WHERE */
};
