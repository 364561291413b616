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
        if (result == -EINVAL) /* one more than the kernel knows */
            break;
        if (result < 0)
            return (int)result;
    }
    return 0;
}

/* Of uid 0 exec gives to the program what the bounding set lets through; of another, and of uid 0
 * under SECBIT_NOROOT, only what is ambient (capabilities(7)). */
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

/* A reaper keeps all that its caller has, so that its command lacks something that it has, and cuts
 * the bounding set itself, for its command.
 *
 * Before its exec this process lives in the caller's memory. Who may read that through it is told
 * by a comparison of permitted sets (ptrace(2)): so the permitted set stays whole until the exec.
 * What the program has after it is cut by the other sets alone. Behind the exec of a reaper, whose
 * memory nobody may read, the permitted set is cut as well, because ids and signals come after it.
 */
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
    int more = IN_REAPER && c->place->change_ids; /* until step USER, which cuts the rest */
    keep |= more ? have & ((uint64_t)1 << CAP_SETUID | (uint64_t)1 << CAP_SETGID) : 0;
    if (!IN_REAPER)
        result = sbx_cut_bounding_set(keep); /* an exec must not give more than the caller has */
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

/* Whatever the change of ids left, which securebits decide (capabilities(7)): of uid 0 what it may
 * have, of another what was asked for by name, which has to be ambient to outlive the exec. */
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

/* Behind the exec of the reaper, whose memory this is: elsewhere it would change what the caller
 * may be traced by. */
int do_user(struct sbx_child *c) {
    const struct sbx_place *place = c->place;
    if (!IN_REAPER || !place->change_ids)
        return 0;
    long result = 0;
    if (place->must_capabilities) /* the exec clears that */
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
