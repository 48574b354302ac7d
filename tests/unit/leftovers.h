/* SPDX-License-Identifier: Apache-2.0 */
/* What a test has made and not unmade yet; see leftovers.c. No test needs to ask. */
#ifndef MIGFS_TEST_LEFTOVERS_H
#define MIGFS_TEST_LEFTOVERS_H

/* Under ThreadSanitizer nothing is counted. */
#if !defined(__SANITIZE_THREAD__)
#define COUNTS_LEFTOVERS
#endif
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#undef COUNTS_LEFTOVERS
#endif
#endif

/** leftovers_count - how much of it there is now, without descriptors and threads that nobody joins */
unsigned leftovers_count(void);

#endif
