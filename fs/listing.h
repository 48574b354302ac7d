/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a directory, as the kernel reads it: made at once, and then read piece by piece. */
#ifndef MIGFS_LISTING_H
#define MIGFS_LISTING_H

#include "node.h"

#include <fuse_lowlevel.h>

struct listing;

/** listing_new - an empty one; NULL when memory runs out */
struct listing *listing_new(void);
void listing_free(struct listing *listing);

/** listing_make - of what is there now; 0 or a negative errno */
int listing_make(struct listing *listing, fuse_req_t req, struct registry *registry, const struct node *dir);

/** listing_reply - answer a request with what is at @offset, @size bytes at most */
void listing_reply(const struct listing *listing, fuse_req_t req, size_t size, size_t offset);

#endif
