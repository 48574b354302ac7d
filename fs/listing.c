/* SPDX-License-Identifier: Apache-2.0 */
/* Listings of directories; see listing.h. */
#include "listing.h"
#include "cleanup.h"

#include <errno.h>
#include <string.h>

struct listing {
    fuse_req_t req; /* while it is being made */
    char *buf;
    size_t size;
};

struct listing *listing_new(void)
{
    return calloc(1, sizeof(struct listing));
}

void listing_free(struct listing *listing)
{
    free(listing->buf);
    free(listing);
}

static int add_name(void *arg, const char *name, mode_t type)
{
    struct listing *listing = arg;
    struct stat st = {.st_mode = type, .st_ino = 0xffffffff /* unknown */};
    size_t size = listing->size + fuse_add_direntry(listing->req, NULL, 0, name, NULL, 0);
    char *buf = realloc(listing->buf, size);

    if (!buf)
        return -ENOMEM;
    listing->buf = buf;
    fuse_add_direntry(listing->req, buf + listing->size, size - listing->size, name, &st, (off_t)size);
    listing->size = size;
    return 0;
}

int listing_make(struct listing *listing, fuse_req_t req, struct registry *registry, const struct node *dir)
{
    listing->req = req;
    listing->size = 0;
    int ret = add_name(listing, ".", S_IFDIR);
    if (ret == 0)
        ret = add_name(listing, "..", S_IFDIR);
    return ret == 0 ? node_list(registry, dir, add_name, listing) : ret;
}

void listing_reply(const struct listing *listing, fuse_req_t req, size_t size, size_t offset)
{
    size_t left = offset < listing->size ? listing->size - offset : 0;

    if (size > left)
        size = left;
    /* A copy: as soon as the answer is out, the directory can be closed. */
    CLEANUP_FREE char *copy = malloc(size + 1);
    if (!copy) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    if (size)
        memcpy(copy, listing->buf + offset, size);
    fuse_reply_buf(req, copy, size);
}
