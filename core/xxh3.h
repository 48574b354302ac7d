/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH3, by the fastest code that the processor has: on x86 the library chooses
 * at run time (SSE2, AVX2 or AVX-512), through a header that maps the names.
 */
#ifndef MIGFS_XXH3_H
#define MIGFS_XXH3_H

#include <xxhash.h>
#ifdef MIGFS_XXH3_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#endif
