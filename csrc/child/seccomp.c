/* SPDX-License-Identifier: Apache-2.0
 *
 * System call filters.
 */
#define _GNU_SOURCE
#include "child.h"

#include <linux/keyctl.h>

/* seccomp(2), and linux/seccomp.h */
enum { SET_MODE_FILTER = 1, FILTER_SPEC_ALLOW = 4, NEW_LISTENER = 8, WAIT_KILLABLE = 32 };

struct filter_program {
    unsigned short length;
    const void *filter;
};

/* Without SPEC_ALLOW the kernel turns off Speculative Store Bypass on some machines, and with it
 * fast loads. */
static int install_filter(const void *filter, size_t length) {
    struct filter_program program = {(unsigned short)length, filter};
    long result = raw(__NR_seccomp, SET_MODE_FILTER, FILTER_SPEC_ALLOW, &program);
    if (result == -EINVAL)
        result = raw(__NR_seccomp, SET_MODE_FILTER, 0, &program);
    return (int)result;
}

/* With WAIT_KILLABLE (Linux 5.19) only the end of a process interrupts a call that the listener has
 * received; otherwise a signal would, and a call that never fails with EINTR could. */
long sbx_listen(const void *filter, size_t length) {
    struct filter_program program = {(unsigned short)length, filter};
    int flags = NEW_LISTENER | FILTER_SPEC_ALLOW | WAIT_KILLABLE;
    long result = raw(__NR_seccomp, SET_MODE_FILTER, flags, &program);
    if (result == -EINVAL)
        result = raw(__NR_seccomp, SET_MODE_FILTER, flags & ~WAIT_KILLABLE, &program);
    return result;
}

int sbx_install_filter(const struct sbx_place *place) {
    return install_filter(place->filter, (size_t)place->filter_length);
}

/* An operation of keyctl(2) gives the session keyring of a process to its parent. Without a reaper
 * the parent is the caller, so a small filter answers EPERM to this operation, in every ABI of the
 * machine. To install it takes no_new_privs or CAP_SYS_ADMIN (seccomp(2)). */
int do_parent_keyring(struct sbx_child *c) {
#if defined(__x86_64__)
    enum { ARCH = 0xc000003e, KEYCTL = 250, ARCH_32 = 0x40000003, KEYCTL_32 = 288 };
#else
    enum { ARCH = 0xc00000b7, KEYCTL = 219, ARCH_32 = 0x40000028, KEYCTL_32 = 311 };
#endif
    enum { LOAD = 0x20, IF_EQUAL = 0x15, AND = 0x54, RETURN = 0x06 };
    const struct {
        uint16_t code;
        uint8_t yes, no;
        uint32_t k;
    } filter[] = {
        {LOAD, 0, 0, 4}, /* struct seccomp_data: nr, arch, instruction_pointer, args */
        {IF_EQUAL, 0, 3, ARCH},
        {LOAD, 0, 0, 0},
        {AND, 0, 0, ~0x40000000U}, /* the calls of x32 have the same numbers with this bit */
        {IF_EQUAL, 3, 6, KEYCTL},
        {IF_EQUAL, 0, 5, ARCH_32},
        {LOAD, 0, 0, 0},
        {IF_EQUAL, 0, 3, KEYCTL_32},
        {LOAD, 0, 0, 16},
        {IF_EQUAL, 0, 1, KEYCTL_SESSION_TO_PARENT},
        {RETURN, 0, 0, 0x00050000 | EPERM}, /* SECCOMP_RET_ERRNO */
        {RETURN, 0, 0, 0x7fff0000},         /* SECCOMP_RET_ALLOW */
    };
    if (!c->place->guard_keyring || IN_REAPER)
        return 0;
    return install_filter(filter, sizeof filter / sizeof *filter);
}

/* Comes after no_new_privs, and before step CAPABILITIES: without no_new_privs it takes
 * CAP_SYS_ADMIN. */
int do_seccomp(struct sbx_child *c) {
    const struct sbx_place *place = c->place;
    if (!place->filter || place->reaper || place->filter_when != SBX_FILTER_EARLY)
        return 0;
    return sbx_install_filter(place);
}
