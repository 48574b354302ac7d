/* SPDX-License-Identifier: Apache-2.0 */
/* What has come of placing payloads in the destination's memory (core/source/placing.h). */
#ifndef MIGFS_PLACING_FIGURES_H
#define MIGFS_PLACING_FIGURES_H

#include <stdint.h>

struct placing_figures {
    uint64_t chunks;    /* exposed now */
    uint64_t exposures; /* chunks that were exposed */
    uint64_t evictions; /* chunks that were given back for others */
    uint64_t refusals;  /* requests that the destination could not grant */
};

#endif
