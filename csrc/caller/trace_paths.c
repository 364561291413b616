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
    t->dots_size = 0;
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

/* The length of the part that ends with the last ".."; 0: there is none. */
static size_t dots_of(const char *path) {
    size_t size = 0;
    for (const char *at = path; (at = strstr(at, "/..")) != NULL; at += 3)
        if (at[3] == 0 || at[3] == '/')
            size = (size_t)(at + 3 - path);
    return size;
}

/* Puts the name of a directory, and what is left of PATH from REST on, together. */
static void put_name(struct sighting *s, const char *name, size_t size, size_t rest) {
    const char *path = s->path + s->below;
    while (path[rest] == '/')
        rest++;
    size_t left = s->size - s->below - rest;
    if (size + 1 + left > LONGEST_PATH)
        return;
    memmove(s->name, name, size);
    if (size > 1)
        s->name[size++] = '/';
    memcpy(s->name + size, path + rest, left + 1);
    s->name_size = size + left;
}

/* "a/../b" is not b if a is a link. So the name of a missing path with dots begins with that of the
 * last directory that is there, after the dots if they lead to one. A compiler asks for many names
 * after the same dots, so the last ones are remembered. */
static void name_missing(struct sbx_trace *t, const struct sbx_where *w, struct sighting *s) {
    char *path = s->path + s->below;
    size_t dots = dots_of(path), rest = dots;
    int remembers = s->below == 0 && dots <= sizeof t->dots;
    if (remembers && dots == t->dots_size && memcmp(path, t->dots, dots) == 0) {
        put_name(s, t->dots_name, t->dots_name_size, dots);
        return;
    }
    long fd = -ENOENT;
    for (;; rest = parent_of(path, rest)) {
        char after = path[rest];
        path[rest] = 0;
        fd = open_path(t, w, rest ? path : "/", O_DIRECTORY);
        path[rest] = after;
        if (!is_missing(fd) || rest <= 1)
            break;
    }
    if (fd < 0)
        return;
    long n = name_of(t, (int)fd, s->name);
    close_fd(fd);
    if (n > 0 && remembers && rest == dots) {
        memcpy(t->dots, path, dots);
        memcpy(t->dots_name, s->name, (size_t)n);
        t->dots_size = (uint32_t)dots;
        t->dots_name_size = (uint32_t)n;
    }
    if (n > 0)
        put_name(s, s->name, (size_t)n, rest);
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
    if (dots_of(path))
        name_missing(t, w, s);
}

/* ---- sightings ----------------------------------------------------------------------------- */

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
