/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the paths of a traced run lead.
 *
 * The kernel does not tell how a call went on, so the tracer looks for itself, before the call: in
 * the root of the process, by O_PATH, which opens nothing. A path is looked up again each time
 * until it is found: one that the run makes itself after asking for it is not missing.
 */
#define _GNU_SOURCE
#include "trace_paths.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* ---- where a process is -------------------------------------------------------------------- */

/* Turns a path of /proc into the one that the sandbox has: returns its length. -ENOENT: it leads
 * elsewhere, or the file has no name any more. */
static long strip(const struct sbx_trace *t, char *path, size_t size) {
    static const char gone[] = " (deleted)";
    size_t skip = t->prefix_size;
    if (path[0] != '/')
        return -ENOENT;
    if (size > sizeof gone && memcmp(path + size - sizeof gone + 1, gone, sizeof gone - 1) == 0)
        return -ENOENT;
    if (skip == 0)
        return (long)size;
    if (size < skip || memcmp(path, t->prefix, skip) != 0 || (size > skip && path[skip] != '/'))
        return -ENOENT;
    if (size == skip) {
        path[0] = '/';
        return 1;
    }
    memmove(path, path + skip, size - skip);
    return (long)(size - skip);
}

static long read_link(const struct sbx_trace *t, const char *link, char *path, size_t room) {
    long n = raw(__NR_readlinkat, AT_FDCWD, link, path, room);
    if (n < 0)
        return n;
    return (size_t)n < room ? strip(t, path, (size_t)n) : -ENOENT;
}

static long read_link_of(const struct sbx_trace *t, int tid, const char *what, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/%s", tid, what);
    return read_link(t, link, path, LONGEST_PATH);
}

static long name_of(const struct sbx_trace *t, int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return read_link(t, link, path, LONGEST_PATH);
}

long begin_looking(struct sbx_trace *t) {
    for (int i = 0; i < SBX_MOST_WHERE; i++)
        t->where[i].root = -1;
    t->prefix_size = 0;
    long n = name_of(t, t->root, t->prefix);
    if (n > 1)
        t->prefix_size = (uint32_t)n;
    return n;
}

struct sbx_where *where_of(struct sbx_trace *t, int tid) {
    struct sbx_where *w = &t->where[(uint32_t)tid % SBX_MOST_WHERE];
    if (w->tid == tid)
        return w;
    sbx_close(&w->root);
    w->tid = tid;
    w->executes = 0;
    w->prefix_size = w->cwd_size = 0;
    return w;
}

void forget_places(struct sbx_trace *t) {
    for (int i = 0; i < SBX_MOST_WHERE; i++) {
        sbx_close(&t->where[i].root);
        t->where[i].prefix_size = t->where[i].cwd_size = 0;
    }
}

/* Once some process has changed its root or its mounts, each is asked for its own. */
static long find_root(struct sbx_trace *t, struct sbx_where *w) {
    char link[64];
    if (!t->sees_mounts || w->root >= 0)
        return 0;
    snprintf(link, sizeof link, "/proc/%d/root", w->tid);
    long fd = raw(__NR_openat, AT_FDCWD, link, O_PATH | O_DIRECTORY | O_CLOEXEC);
    fd = move_above(fd, 3);
    if (fd < 0)
        return fd;
    w->root = (int)fd;
    long n = name_of(t, w->root, w->prefix);
    w->prefix_size = n > 1 ? (uint32_t)n : 0;
    return 0;
}

static long find_directory(struct sbx_trace *t, struct sbx_where *w, int directory, char *path) {
    if (directory != CURRENT) {
        char link[64];
        snprintf(link, sizeof link, "/proc/%d/fd/%d", w->tid, directory);
        long fd = raw(__NR_openat, AT_FDCWD, link, O_PATH | O_DIRECTORY | O_CLOEXEC);
        long n = fd < 0 ? fd : name_of(t, (int)fd, path);
        if (fd >= 0)
            close_fd(fd);
        return n;
    }
    if (!w->cwd_size) {
        long n = read_link_of(t, w->tid, "cwd", w->cwd);
        if (n < 0)
            return n;
        w->cwd_size = (uint32_t)n;
    }
    memcpy(path, w->cwd, w->cwd_size);
    return w->cwd_size;
}

/* What /proc shows depends on who looks, and is no input of a command. */
static int is_of_proc(const char *path) {
    return strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/dev/fd/", 8) == 0
           || strcmp(path, "/proc") == 0;
}

long find_path(struct sbx_trace *t, struct sbx_where *w, int directory, const char *text,
               size_t size, struct sighting *s) {
    long error = find_root(t, w), at = 0;
    s->size = s->name_size = 0;
    if (error < 0)
        return error;
    if (text[0] == '/') {
        memcpy(s->path, w->prefix, w->prefix_size);
        at = w->prefix_size;
    } else {
        at = find_directory(t, w, directory, s->path);
        if (at == -ENOENT || at == -ENOTDIR) /* the call fails, or its directory has no name */
            return 0;
        if (at < 0)
            return at;
        if (at > 1)
            s->path[at++] = '/';
    }
    memcpy(s->path + at, text, size + 1);
    s->size = (size_t)at + size;
    s->below = 0;
    if (w->prefix_size && strncmp(s->path, w->prefix, w->prefix_size) == 0)
        s->below = w->prefix_size;
    if (is_of_proc(s->path + s->below))
        s->size = 0;
    return 0;
}

/* ---- look-ups ------------------------------------------------------------------------------ */

static int is_missing(long error) { return error == -ENOENT || error == -ENOTDIR; }

size_t parent_of(const char *path, size_t size) {
    while (size > 0 && path[size - 1] == '/')
        size--;
    while (size > 0 && path[size - 1] != '/')
        size--;
    while (size > 1 && path[size - 1] == '/')
        size--;
    return size;
}

static int has_dots(const char *path) {
    for (const char *at = path; (at = strstr(at, "/..")) != NULL; at += 3)
        if (at[3] == 0 || at[3] == '/')
            return 1;
    return 0;
}

/* "a/../b" is not b if a is a link. So the name of a missing path with dots begins with that of the
 * last directory that is there. */
static void name_missing(struct sbx_trace *t, const struct sbx_where *w, struct sighting *s) {
    char *path = s->path + s->below;
    size_t size = s->size - s->below, rest = size;
    long fd = -ENOENT;
    while (is_missing(fd) && rest > 1) {
        rest = parent_of(path, rest);
        char after = path[rest];
        path[rest] = 0;
        fd = open_path(t, w, rest ? path : "/", O_DIRECTORY);
        path[rest] = after;
    }
    if (fd < 0)
        return;
    long n = name_of(t, (int)fd, s->name);
    close_fd(fd);
    while (rest < size && path[rest] == '/')
        rest++;
    if (n <= 0 || (size_t)n + 1 + size - rest > LONGEST_PATH)
        return;
    if (n > 1)
        s->name[n++] = '/';
    memcpy(s->name + n, path + rest, size - rest + 1);
    s->name_size = (size_t)n + size - rest;
}

/* /dev/stdin and its like are links into /proc, which lead nowhere for us. */
static int leads_to_proc(struct sbx_trace *t, const struct sbx_where *w, const char *path) {
    char target[8];
    if (strncmp(path, "/dev/", 5) != 0)
        return 0;
    long fd = open_path(t, w, path, O_NOFOLLOW);
    if (fd < 0)
        return 0;
    long n = raw(__NR_readlinkat, fd, "", target, sizeof target);
    close_fd(fd);
    return (n > 5 && memcmp(target, "/proc/", 6) == 0) || (n > 2 && memcmp(target, "fd/", 3) == 0);
}

static void sight_missing(struct sbx_trace *t, struct sbx_where *w, int what, struct sighting *s) {
    char *path = s->path + s->below;
    if (leads_to_proc(t, w, path)) {
        s->size = 0;
        return;
    }
    if (what & SBX_MAKES) {
        size_t rest = parent_of(path, s->size - s->below);
        char after = path[rest];
        path[rest] = 0;
        long fd = open_path(t, w, rest ? path : "/", O_DIRECTORY);
        if (fd >= 0) { /* it is about to be made */
            close_fd(fd);
            path[rest] = after;
            s->flags |= SBX_FOUND;
            return;
        }
        s->size = s->below + rest;
        s->flags = SBX_ASKED;
    }
    s->flags |= SBX_MISSING;
    if (has_dots(path))
        name_missing(t, w, s);
}

/* ---- records ------------------------------------------------------------------------------- */

static uint32_t hash_of(const char *path, size_t size) {
    uint32_t hash = 2166136261U; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)path[i]) * 16777619U;
    return hash;
}

/* Finds the record of a path, or makes it. NULL: there is none, or no room. A command may choose
 * names that take the same place of the table, so it is not searched for long. */
static struct sbx_record_of_path *record_of(struct sbx_trace *t, const char *path, size_t size,
                                            int makes) {
    uint32_t hash = hash_of(path, size), mask = t->table_size - 1;
    for (uint32_t i = 0; i < 128; i++) {
        uint32_t *place = &t->table[(hash + i) & mask];
        struct sbx_record_of_path *r = (void *)(t->room + *place - 1);
        if (*place && r->hash == hash && r->size == size && memcmp(r + 1, path, size) == 0)
            return r;
        if (*place)
            continue;
        uint32_t takes = (uint32_t)(sizeof *r + size + 7) & ~7U;
        if (!makes)
            return NULL;
        if (t->n_records >= t->table_size / 4 * 3 || takes > t->size - t->used)
            break;
        *place = t->used + 1;
        r = (void *)(t->room + t->used);
        *r = (struct sbx_record_of_path){0, (uint32_t)size, 0, hash};
        memcpy(r + 1, path, size);
        t->used += takes;
        t->n_records++;
        return r;
    }
    t->truncated |= makes;
    return NULL;
}

void record(struct sbx_trace *t, const struct sighting *s) {
    struct sbx_record_of_path *r = record_of(t, s->path, s->size, 1), *named = NULL;
    if (!r)
        return;
    if (s->name_size && (s->name_size != s->size || memcmp(s->name, s->path, s->size) != 0)) {
        named = record_of(t, s->name, s->name_size, 1);
        if (!named)
            return;
        r->names = (uint32_t)((char *)named - t->room) + 1;
        r->flags |= SBX_IS_NAMED;
    }
    r->flags |= (uint32_t)s->flags;
    if (r->names) {
        named = (void *)(t->room + r->names - 1);
        named->flags |= (uint32_t)s->flags;
    }
}

/* Whether an exec of it may work, as far as the kernel knows without asking a server. */
static int is_executable(long fd) {
    struct raw_statx status;
    const int flags = AT_EMPTY_PATH | 0x4000 /* AT_STATX_DONT_SYNC */;
    long error = raw(__NR_statx, fd, "", flags, 2 /* STATX_MODE */, &status);
    return error < 0 || status.mode & 0111;
}

long sight(struct sbx_trace *t, struct sbx_where *w, int what, struct sighting *s) {
    const int uses = SBX_OPENED | SBX_EXECED;
    if (!s->size)
        return 0;
    s->flags = what & (SBX_ASKED | uses);
    struct sbx_record_of_path *known = record_of(t, s->path, s->size, 0);
    if (!known && t->truncated) {
        s->size = 0;
        return 0;
    }
    if (known && known->flags & SBX_FOUND && (!(what & uses) || known->flags & (uint32_t)uses))
        return 0;
    long fd = open_path(t, w, s->path + s->below, what & SBX_OF_LINK ? O_NOFOLLOW : 0);
    if (is_missing(fd)) {
        sight_missing(t, w, what, s);
        return 0;
    }
    if (fd < 0)
        return fd == -ENAMETOOLONG || fd == -ELOOP ? 0 : fd;
    s->flags |= SBX_FOUND;
    if (what & SBX_EXECED && !is_executable(fd))
        s->flags = SBX_ASKED | SBX_FOUND;
    if (what & uses) {
        long n = name_of(t, (int)fd, s->name);
        s->name_size = n > 0 ? (size_t)n : 0;
    }
    close_fd(fd);
    return 0;
}

static uint32_t program_of(const struct sbx_trace *t, const struct sbx_where *w) {
    char path[LONGEST_PATH];
    long n = read_link_of(t, w->tid, "exe", path);
    return n > 0 ? hash_of(path, (size_t)n) : 0;
}

void expect_program(struct sbx_trace *t, struct sbx_where *w) {
    w->program = t->n_programs++ ? program_of(t, w) : 0;
    w->executes = 1;
}

/* The kernel opened the program, and its dynamic loader (ld.so(8)), before the first call of the
 * program: they are all the files that are mapped by then. If the program is the same as before,
 * the exec failed, or what it opened is known. A name with a backslash is left out, as it may be an
 * escape (proc(5)). */
void sight_program(struct sbx_trace *t, struct sbx_where *w) {
    struct sighting s = {.flags = SBX_EXECED | SBX_FOUND};
    char name[64], text[LONGEST_PATH];
    snprintf(name, sizeof name, "/proc/%d/maps", w->tid);
    w->executes = 0;
    if (program_of(t, w) == w->program || read_whole(name, text, sizeof text) < 0)
        return;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        const char *path = strchr(line, '/');
        if (!path || strchr(path, '\\'))
            continue;
        s.size = (size_t)(end - path);
        memcpy(s.path, path, s.size + 1);
        long n = strip(t, s.path, s.size);
        s.size = n > 0 ? (size_t)n : 0;
        if (s.size)
            record(t, &s);
    }
}
