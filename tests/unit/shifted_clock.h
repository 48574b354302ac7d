/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock of a test, in the place of libc's clock_gettime(): what the code would wait for long is over at
 * once, and the moment between two looks is as long as a test wants. What the kernel waits for goes by its
 * own.
 */
#ifndef MIGFS_TEST_SHIFTED_CLOCK_H
#define MIGFS_TEST_SHIFTED_CLOCK_H

#include <stdint.h>

/** shifted_clock_add - so much time passes now */
void shifted_clock_add(int64_t ms);

/** shifted_clock_run - so much time passes with each look at the clock; 0: as it does */
void shifted_clock_run(int64_t ms);

/** shifted_clock_stop - no time passes any more but what is added */
void shifted_clock_stop(void);

#endif
