/* SPDX-License-Identifier: Apache-2.0
 *
 * What a trace keeps: a record for each path, one after the other, and a table of them by a hash.
 */
#define _GNU_SOURCE
#include "trace_paths.h"

#include <string.h>

uint32_t hash_of(const char *path, size_t size) {
    uint32_t hash = 2166136261U; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)path[i]) * 16777619U;
    return hash;
}

static int is_full(const struct sbx_trace *t) { return t->n_records >= t->table_size / 4 * 3; }

/* A small table lies in few pages. A larger one takes all records anew, in their order. */
static void enlarge_table(struct sbx_trace *t) {
    uint32_t at = 0;
    memset(t->table, 0, t->table_size * sizeof *t->table);
    t->table_size *= 8;
    if (t->table_size > t->most_table)
        t->table_size = t->most_table;
    while (at < t->used) {
        const struct sbx_record_of_path *r = (const void *)(t->room + at);
        uint32_t place = r->hash;
        while (t->table[place & (t->table_size - 1)])
            place++;
        t->table[place & (t->table_size - 1)] = at + 1;
        at += (uint32_t)(sizeof *r + r->size + 7) & ~7U;
    }
}

/* A command may choose names that take the same place of the table, so it is not searched for long.
 */
struct sbx_record_of_path *record_of(struct sbx_trace *t, const char *path, size_t size,
                                     int makes) {
    if (makes && is_full(t) && t->table_size < t->most_table)
        enlarge_table(t);
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
        if (is_full(t) || takes > t->size - t->used)
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
