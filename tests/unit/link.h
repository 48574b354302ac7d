/* SPDX-License-Identifier: Apache-2.0 */
/* Connections for tests, and what goes over them. */
#ifndef MIGFS_TEST_LINK_H
#define MIGFS_TEST_LINK_H

#include "blocked.h"
#include "transport.h"

struct link {
    struct transport_listener *listener; /* NULL for link_pair() */
    struct transport *a; /* the end that connected */
    struct transport *b; /* the end that was accepted */
};

/* A wait that nothing ends but the test's own limit. */
extern const struct transport_wait link_forever;

/* A group; these connections register nothing. */
extern const struct transport_group link_group;

/** link_pair - a connection over a socket pair */
void link_pair(struct link *link);

/**
 * link_listen - listen at a URI; the test fails when that does
 * Return: the listener.
 */
struct transport_listener *link_listen(const char *text);

/** link_connect - connect to where a listener listens; @faults ("faulty:cut=7:", or "") goes in front of its address */
struct transport *link_connect(struct transport_listener *l, const char *faults, unsigned index);

/** link_accept - wait for a connection and accept it */
struct transport *link_accept(struct transport_listener *l);

/** link_open - link_listen(), link_connect() and link_accept() */
void link_open(struct link *link, const char *text, const char *faults);

void link_close(struct link *link);

/** pattern - fill a buffer so that every place in it is recognised */
void pattern(void *buf, size_t len, unsigned seed);

/** link_send - transport_send() of one buffer */
int link_send(struct transport *t, const void *buf, size_t len);

/* A thread that receives until the end of the stream, an error, or @want bytes. */
struct sink {
    struct worker worker;
    struct transport *t;
    char *buf;
    size_t want, have;
    ssize_t last; /* what the last transport_recv() returned */
};
void sink_start(struct sink *sink, struct transport *t, size_t want);
void sink_join(struct sink *sink); /* buf stays */
void sink_free(struct sink *sink);

#endif
