/* SPDX-License-Identifier: Apache-2.0
 *
 * What the command may do: capabilities and ids.
 */
#define _GNU_SOURCE
#include "child.h"

#include <linux/capability.h>
#include <sys/prctl.h>

int sbx_cut_bounding_set(uint64_t keep) {
    for (int cap = 0; cap < 64; cap++) {
        if (keep >> cap & 1)
            continue;
        long result = raw(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (result == -EINVAL) /* the kernel knows no more of them */
            break;
        if (result < 0)
            return (int)result;
    }
    return 0;
}

/* If the uid is 0, an exec gives the program all of the bounding set. If it is not, or with
 * SECBIT_NOROOT, the program keeps only what is ambient (capabilities(7)). */
static int keeps_ambient_only(void) {
    return raw(__NR_geteuid, 0) || raw(__NR_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0) & 1 /* NOROOT */;
}

static int raise_ambient(uint64_t capabilities) {
    long result = 0;
    for (int cap = 0; cap < 64 && result >= 0; cap++)
        if (capabilities >> cap & 1)
            result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return (int)result;
}

/* A reaper keeps all capabilities of its caller, so that it has some that its command lacks. It
 * cuts the bounding set later, for its command. A resident keeps every capability: if its uid is
 * not 0, exec would drop them, so they are made ambient as well. Before its exec this process lives
 * in the caller's memory. The kernel compares permitted sets to decide who may read that memory
 * through it (ptrace(2)), so the permitted set stays whole until the exec, and only the other sets
 * decide what the program has. In the reaper's program, whose memory nobody may read, the permitted
 * set is cut as well, because ids and signals come after this step. */
int do_capabilities(struct sbx_child *c) {
    int reaper = c->place->reaper;
    if (!c->place->cut_capabilities && reaper != SBX_RESIDENT)
        return 0;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    long result = raw(__NR_capget, &header, sets);
    if (result < 0)
        return (int)result;
    uint64_t have = sets[0].permitted | (uint64_t)sets[1].permitted << 32;
    uint64_t keep = reaper ? have : c->place->capabilities & have;
    uint64_t must = reaper ? have : c->place->must_capabilities;
    if (must & ~have)
        return -EPERM;
    int more = IN_REAPER && c->place->change_ids; /* for step USER, which drops the rest */
    keep |= more ? have & ((uint64_t)1 << CAP_SETUID | (uint64_t)1 << CAP_SETGID) : 0;
    if (!IN_REAPER)
        result = sbx_cut_bounding_set(keep); /* the exec must not give back more than this */
    if (result >= 0 && !IN_REAPER && !reaper)
        result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (result < 0)
        return (int)result;
    uint64_t ambient = must && !more && keeps_ambient_only() ? must : 0;
    for (int i = 0; i < 2; i++) {
        sets[i].inheritable = (uint32_t)(ambient >> 32 * i);
        if (IN_REAPER)
            sets[i].effective = sets[i].permitted = (uint32_t)(keep >> 32 * i);
    }
    result = raw(__NR_capset, &header, sets);
    return result < 0 ? (int)result : raise_ambient(ambient);
}

int do_no_new_privs(struct sbx_child *c) {
    if (!c->place->no_new_privs || c->place->reaper)
        return 0;
    return (int)raw(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* What a change of ids leaves depends on the securebits (capabilities(7)). uid 0 keeps what it may
 * have. Another uid keeps what was asked for by name, and only what is ambient outlives the exec.
 */
static int cut_after_change(const struct sbx_place *place) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    uint64_t keep = place->cut_capabilities ? place->capabilities : ~(uint64_t)0;
    uint64_t ambient = place->uid || keeps_ambient_only() ? place->must_capabilities : 0;
    long result = raw(__NR_capget, &header, sets);
    if (place->uid)
        keep = place->must_capabilities;
    for (int i = 0; i < 2; i++) {
        sets[i].permitted &= (uint32_t)(keep >> 32 * i);
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = (uint32_t)(ambient >> 32 * i);
    }
    if (result >= 0)
        result = raw(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (result >= 0)
        result = raw(__NR_capset, &header, sets);
    return result < 0 ? (int)result : raise_ambient(ambient);
}

/* Only in the reaper's program: in the caller's memory a change of ids would change who may trace
 * the caller. */
int do_user(struct sbx_child *c) {
    const struct sbx_place *place = c->place;
    if (!IN_REAPER || !place->change_ids)
        return 0;
    long result = 0;
    if (place->must_capabilities) /* the exec clears this flag */
        result = raw(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (result >= 0)
        result = raw(__NR_setgroups, place->n_groups, place->groups);
    if (result >= 0)
        result = raw(__NR_setresgid, place->gid, place->gid, place->gid);
    if (result >= 0)
        result = raw(__NR_setresuid, place->uid, place->uid, place->uid);
    if (result >= 0)
        result = cut_after_change(place);
    if (result >= 0)
        result = raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    return (int)result;
}
