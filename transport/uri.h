/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URIs: tcp:HOST:PORT, tcp:[IPV6]:PORT, unix:PATH, rdma:HOST:PORT, and for tests
 * faulty:OPTION+OPTION...:URI.
 */
#ifndef MIGFS_URI_H
#define MIGFS_URI_H

#include "error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define URI_MAX  512
#define URIS_MAX 8 /* in a list */
/* characters of a list: its URIs, and a space after each but the last */
#define URI_LIST_MAX (URIS_MAX * URI_MAX)

enum uri_scheme { URI_TCP, URI_UNIX, URI_RDMA, URI_FAULTY };

/* What the faulty transport does to a connection; 0 is "nothing". */
struct uri_faults {
    uint64_t cut;      /* cut=N: the connection dies when N bytes have been sent and received together */
    uint64_t corrupt;  /* corrupt=N: the Nth byte that is sent arrives with a bit flipped */
    uint32_t delay_ms; /* delay=MS: every send takes that much longer */
    uint32_t slice;    /* short=N: no send or receive moves more than N bytes at a time */
    int32_t only;      /* only=K: faults hit only the Kth connection made (0 is the main one); -1 all */
};

struct uri {
    enum uri_scheme scheme;
    char text[URI_MAX];       /* as it was given; a faulty URI shares this struct with its inner one */
    char host[256];           /* tcp, rdma; empty: any */
    char port[16];            /* tcp, rdma: a number or a service name */
    char path[108];           /* unix */
    struct uri_faults faults; /* faulty */
    enum uri_scheme inner;    /* faulty: the scheme below; host, port and path are its own */
};

/**
 * uri_parse - read a URI
 * @text: the text, without white space around it
 * @out: written on success only
 * @err: what is wrong with it
 */
int uri_parse(const char *text, struct uri *out, struct error *err);

/* The ways to one destination: the main channel takes the first one, the data channels each in turn. */
struct uri_list {
    unsigned count; /* 0: not set */
    struct uri uri[URIS_MAX];
};

/**
 * uri_list_parse - read a list of URIs
 * @text: with white space between them
 * @out: written on success only
 */
int uri_list_parse(const char *text, struct uri_list *out, struct error *err);

/** uri_list_format - as text, with a space between them; @size: URI_LIST_MAX is enough */
void uri_list_format(const struct uri_list *list, char *out, size_t size);

/** uri_without_rdma - the same host and port by TCP; false: @uri does not go by RDMA */
bool uri_without_rdma(const struct uri *uri, struct uri *out);

/** uri_has_scheme - whether @text begins with a scheme that uri_parse() knows */
bool uri_has_scheme(const char *text);

#endif
