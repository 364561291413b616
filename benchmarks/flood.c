/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes FLOOD_BYTES (a multiple of its buffer) to its output as fast as somebody reads them.
 */
#include "../csrc/raw.h"

static char chunk[65536];

void _start(void) {
    for (long left = FLOOD_BYTES; left > 0;) {
        long n = raw(__NR_write, 1, chunk, sizeof chunk);
        if (n <= 0)
            raw(__NR_exit_group, 1);
        left -= n;
    }
    for (;;)
        raw(__NR_exit_group, 0);
}
