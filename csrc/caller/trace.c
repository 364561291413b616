/* SPDX-License-Identifier: Apache-2.0
 *
 * A trace: a thread of the caller's sees the calls of a run that take paths, one after the other,
 * and lets each go on (seccomp_unotify(2)).
 *
 *     command                     tracer
 *     openat("x")  -->  kernel  -->  reads the path in the memory of the command
 *     (waits)                        looks whether there is such a file in the command's root
 *                  <--  kernel  <--  go on, whatever the answer
 *     openat goes on as if nothing had been
 *
 * It observes, and decides nothing: the command may change the path after it was read. Nothing that
 * a command does may hold up the caller. The tracer opens no file of the run but by O_PATH, which
 * waits for no FIFO and no device; it reads memory by process_vm_readv(2), which waits for no
 * process; what it keeps is bounded. It ends with the last process of the run, or when it is told.
 */
#define _GNU_SOURCE
#include "trace_paths.h"

#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct notification { /* struct seccomp_notif and seccomp_notif_resp, as first published */
    uint64_t id;
    uint32_t pid, flags;
    int32_t number;
    uint32_t arch;
    uint64_t pointer, args[6];
};
struct answer {
    uint64_t id;
    int64_t value;
    int32_t error;
    uint32_t flags;
};

#define RECEIVE _IOWR('!', 0, struct notification) /* SECCOMP_IOCTL_NOTIF_* */
#define ANSWER _IOWR('!', 1, struct answer)
#define SET_FLAGS _IOW('!', 4, uint64_t)
#define X32_BIT 0x40000000

enum { GO_ON = 1, SYNC_WAKE_UP = 1, CREATES = 0100 /* O_CREAT */, NO_FOLLOW = 0x100 /* AT_* */ };

/* The child sends it before its exec. If it fails first, its end of the socket is closed. */
static long receive_listener(struct sbx_trace *t) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(2 * sizeof(int))];
    } control;
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct pollfd fds[] = {{t->socket, POLLIN, 0}, {t->stop, POLLIN, 0}};
    int *both[] = {&t->listener, &t->root};
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    long n = -EINTR;
    while (n == -EINTR)
        n = raw(__NR_ppoll, fds, 2, 0, 0, 0);
    if (n < 0)
        return n;
    if (!(fds[0].revents & POLLIN))
        return -ECANCELED;
    n = raw(__NR_recvmsg, t->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n != 1 || message.msg_controllen < CMSG_LEN(sizeof(int))
        || control.head.cmsg_len != CMSG_LEN(2 * sizeof(int)))
        return n < 0 ? n : -ECANCELED;
    for (int i = 0; i < 2; i++) {
        long fd = move_above(((int *)CMSG_DATA(&control.head))[i], 3);
        if (fd < 0)
            n = fd;
        *both[i] = (int)fd;
    }
    return n < 0 ? n : 0;
}

static long read_memory(uint32_t pid, uint64_t address, void *room, size_t size) {
    struct iovec here = {room, size}, there = {(void *)(uintptr_t)address, size};
    return raw(__NR_process_vm_readv, pid, &here, 1, &there, 1, 0);
}

/* Reads a path as far as it goes, within pages, because the next page may be missing. Returns its
 * length, or -errno. */
static long read_path(uint32_t pid, uint64_t address, char *path) {
    for (size_t got = 0; got < LONGEST_PATH;) {
        size_t most = 4096 - ((address + got) & 4095);
        if (got == 0 && most > 512)
            most = 512; /* most paths are shorter */
        if (most > LONGEST_PATH - got)
            most = LONGEST_PATH - got;
        long n = read_memory(pid, address + got, path + got, most);
        if (n <= 0)
            return n < 0 ? n : -EFAULT;
        const char *end = memchr(path + got, 0, (size_t)n);
        if (end)
            return end - path;
        got += (size_t)n;
    }
    return -ENAMETOOLONG;
}

static const struct sbx_path_call *call_of(const struct sbx_trace *t,
                                           const struct notification *n) {
    uint32_t number = (uint32_t)n->number & ~(uint32_t)X32_BIT;
    int table = n->arch == t->audits[0] ? (n->number & X32_BIT ? 2 : 0) : 1;
    if (number >= SBX_MOST_CALLS || (table == 1 && n->arch != t->audits[1]))
        return NULL;
    return &t->calls[table * SBX_MOST_CALLS + (int)number];
}

static uint64_t argument(const struct notification *n, int number) {
    return number ? n->args[number - 1] : 0;
}

/* What the call does with its first path, as its flags say. */
static int what_it_does(const struct notification *n, const struct sbx_path_call *call) {
    int what = call->what;
    uint64_t flags = argument(n, call->flags);
    if (what & SBX_HOW && read_memory(n->pid, flags, &flags, sizeof flags) != sizeof flags)
        flags = 0;
    if (what & SBX_OPENED && flags & CREATES)
        what |= SBX_MAKES;
    if (!(what & SBX_OPENED) && flags & NO_FOLLOW)
        what |= SBX_OF_LINK;
    return what;
}

/* Looks at one path of a call. A path that cannot be read is the command's own mistake (EFAULT,
 * ENAMETOOLONG), or ours. */
static void look_at(struct sbx_trace *t, const struct notification *n, struct sbx_where *w,
                    int what, int directory, int path, struct sighting *s) {
    s->size = s->name_size = 0;
    s->flags = 0;
    if (!path)
        return;
    char text[LONGEST_PATH];
    long size = read_path(n->pid, argument(n, path), text);
    if (size == 0 || size == -EFAULT || size == -ENAMETOOLONG)
        return;
    long error = size;
    if (size > 0)
        error = find_path(t, w, directory ? (int)argument(n, directory) : CURRENT, text,
                          (size_t)size, s);
    if (error == 0)
        error = sight(t, w, what, s);
    t->n_unknown += error < 0;
}

/* Answers a call: returns 0, or -errno if there is none. If the process died meanwhile, its number
 * may be another process's, and what was read is of no use: the kernel does not take the answer
 * then. */
static long answer_one(struct sbx_trace *t) {
    struct notification n;
    struct sighting seen[2];
    memset(&n, 0, sizeof n);
    long error = raw(__NR_ioctl, t->listener, RECEIVE, &n);
    if (error < 0)
        return error;
    const struct sbx_path_call *call = call_of(t, &n);
    struct sbx_where *w = where_of(t, (int)n.pid);
    seen[0].size = seen[1].size = 0;
    t->n_calls++;
    if (call && n.pid) {
        int what = what_it_does(&n, call);
        if (w->executes)
            sight_program(t, w);
        look_at(t, &n, w, what, call->directory, call->path, &seen[0]);
        look_at(t, &n, w, call->what_second, call->second_directory, call->second_path, &seen[1]);
        if (what & SBX_EXECED)
            expect_program(t, w);
        if (what & SBX_MOVES)
            forget_places(t);
        if (what & SBX_MOUNTS) {
            t->sees_mounts = 1;
            t->n_mounts = 0;
        }
    } else {
        t->n_unknown++;
    }
    struct answer answer = {n.id, 0, 0, GO_ON};
    if (raw(__NR_ioctl, t->listener, ANSWER, &answer) < 0)
        return 0;
    for (int i = 0; i < 2; i++)
        if (seen[i].size)
            record(t, &seen[i]);
    return 0;
}

int sbx_begin_trace(struct sbx_trace *t) {
    uint64_t flags = SYNC_WAKE_UP; /* Linux 6.6: the waking one runs where the other slept */
    long error = receive_listener(t);
    if (error < 0)
        return (int)error;
    raw(__NR_ioctl, t->listener, SET_FLAGS, flags);
    error = begin_looking(t);
    return error < 0 ? (int)error : 0;
}

int sbx_trace(struct sbx_trace *t) {
    long error = 0;
    for (int polls = 1;;) {
        struct pollfd fds[] = {{t->listener, POLLIN, 0}, {t->stop, POLLIN, 0}};
        if (polls)
            error = raw(__NR_ppoll, fds, 2, 0, 0, 0);
        if (polls && error == -EINTR)
            continue;
        if (polls && (error < 0 || fds[1].revents || !(fds[0].revents & POLLIN)))
            break;
        polls = answer_one(t) < 0 || !t->waits;
    }
    for (int i = 0; i < SBX_MOST_WHERE; i++)
        sbx_close(&t->where[i].root);
    return error < 0 ? (int)error : 0;
}

int sbx_may_trace(void) {
    char byte = 1, copy = 0;
    long n = read_memory((uint32_t)raw(__NR_getpid, 0), (uintptr_t)&byte, &copy, 1);
    return n < 0 ? (int)n : 0;
}
