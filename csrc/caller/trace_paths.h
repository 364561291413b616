/* SPDX-License-Identifier: Apache-2.0
 *
 * The paths of a trace: where a process looks them up, whether they are there, what is kept.
 */
#ifndef SBX_TRACE_PATHS_H
#define SBX_TRACE_PATHS_H

#include "caller.h"

enum { LONGEST_PATH = 4096 /* PATH_MAX */, CURRENT = -100 /* AT_FDCWD */ };

/* A path that a call named, as the sandbox names it, and what was seen. */
struct sighting {
    int flags;   /* SBX_ASKED to SBX_MISSING */
    size_t size; /* 0: nothing was seen */
    size_t
        below; /* where in PATH the part begins that its process sees: what is before is its root */
    size_t name_size; /* 0: it has no other name */
    char path[2 * LONGEST_PATH + 2];
    char name[LONGEST_PATH + 2]; /* of the file that it leads to */
};

/* Learns where the root of the run lies. */
long begin_looking(struct sbx_trace *t);

/* What is known of a process; its cwd and root, if it does not look them up where the run began,
 * are asked for when a path needs them. */
struct sbx_where *where_of(struct sbx_trace *t, int tid);
/* Some process changes its directory or its root. */
void forget_places(struct sbx_trace *t);

/* Fills S with the path that TEXT is for a process, relative to a directory of its. -errno: it is
 * not known. 0 without a size: there is nothing to see. */
long find_path(struct sbx_trace *t, struct sbx_where *w, int directory, const char *text,
               size_t size, struct sighting *s);

/* Looks whether the path is there, unless that is known. */
long sight(struct sbx_trace *t, struct sbx_where *w, int what, struct sighting *s);

/* Opens PATH in the root of a process, without its content: a descriptor, or -errno; -EAGAIN: a
 * file system would have to be asked that may wait for the run. */
long open_path(struct sbx_trace *t, const struct sbx_where *w, const char *path, int flags);

/* Reads a file of /proc, as far as there is room: returns how much it is, or -errno. */
long read_whole(const char *name, char *text, size_t size);

/* Cuts off the last component: returns the length that is left, without the slash. */
size_t parent_of(const char *path, size_t size);

/* Before an exec: remembers what the process executes now. */
void expect_program(struct sbx_trace *t, struct sbx_where *w);
/* Records the program that a process executes, of a script the interpreter, and its loader. */
void sight_program(struct sbx_trace *t, struct sbx_where *w);

uint32_t hash_of(const char *path, size_t size);

/* Finds the record of a path, or makes it. NULL: there is none, or no room. */
struct sbx_record_of_path *record_of(struct sbx_trace *t, const char *path, size_t size, int makes);

/* Keeps what was seen, if there is room. */
void record(struct sbx_trace *t, const struct sighting *s);

#endif
