/* SPDX-License-Identifier: Apache-2.0 */
/* Whether payloads are to be sent without a copy, and what has come of it. */
#ifndef MIGFS_ZEROCOPY_MODE_H
#define MIGFS_ZEROCOPY_MODE_H

#include <stdint.h>

enum zerocopy_mode { ZEROCOPY_OFF, ZEROCOPY_AUTO, ZEROCOPY_REQUIRE, ZEROCOPY_MODES /* one past the last */ };

extern const char *const zerocopy_mode_names[ZEROCOPY_MODES];

/* Since the channel was made. What has been sent and is not back is nowhere yet. */
struct zerocopy_counters {
    uint64_t sends, bytes;               /* without a copy */
    uint64_t copied_sends, copied_bytes; /* with one, headers and all */
    /* the part of it that the kernel was to send without */
    uint64_t kernel_copied_sends, kernel_copied_bytes;
    uint64_t refused; /* sends that there was no lockable memory for */
    uint64_t missed;  /* barriers with something large before them, and none of it without a copy */
};

#endif
