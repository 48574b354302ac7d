/* SPDX-License-Identifier: Apache-2.0 */
/* URIs; see uri.h. */
#include "uri.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const scheme_names[] = {
    [URI_TCP] = "tcp:",
    [URI_UNIX] = "unix:",
    [URI_RDMA] = "rdma:",
    [URI_FAULTY] = "faulty:",
};

static int scheme_of(const char *text)
{
    for (int i = URI_TCP; i <= URI_FAULTY; i++) {
        if (!strncmp(text, scheme_names[i], strlen(scheme_names[i])))
            return i;
    }
    return -1;
}

bool uri_has_scheme(const char *text)
{
    return scheme_of(text) >= 0;
}

static int parse_host_port(const char *rest, struct uri *uri, struct error *err)
{
    const char *host = rest, *host_end, *port;

    if (*rest == '[') {
        host = rest + 1;
        host_end = strchr(host, ']');
        if (!host_end || host_end[1] != ':')
            return error_set(err, CAUSE_SYNTAX, "'%s': an IPv6 address is written [ADDRESS]:PORT", uri->text);
        port = host_end + 2;
    } else {
        host_end = strchr(rest, ':');
        if (!host_end)
            return error_set(err, CAUSE_SYNTAX, "'%s': expected HOST:PORT", uri->text);
        port = host_end + 1;
        if (strchr(port, ':'))
            return error_set(err, CAUSE_SYNTAX, "'%s': an IPv6 address is written [ADDRESS]:PORT", uri->text);
    }
    if ((size_t)(host_end - host) >= sizeof(uri->host))
        return error_set(err, CAUSE_SYNTAX, "the host name is too long");
    if (!*port || strlen(port) >= sizeof(uri->port))
        return error_set(err, CAUSE_SYNTAX, "'%s': expected a port after the host", uri->text);
    if (!isalnum((unsigned char)*port))
        return error_set(err, CAUSE_SYNTAX, "'%s': '%s' is not a port", uri->text, port);
    for (const char *p = port; *p; p++) {
        if (!isalnum((unsigned char)*p) && *p != '-')
            return error_set(err, CAUSE_SYNTAX, "'%s': '%s' is not a port", uri->text, port);
    }
    if (isdigit((unsigned char)*port)) {
        char *end;
        unsigned long n = strtoul(port, &end, 10);
        if (*end || n > 65535)
            return error_set(err, CAUSE_SYNTAX, "'%s': a port is a number from 0 to 65535", uri->text);
    }
    memcpy(uri->host, host, (size_t)(host_end - host));
    uri->host[host_end - host] = '\0';
    strcpy(uri->port, port);
    return 0;
}

static int parse_path(const char *rest, struct uri *uri, struct error *err)
{
    if (*rest != '/')
        return error_set(err, CAUSE_SYNTAX, "'%s': the path of a socket begins with /", uri->text);
    if (strlen(rest) >= sizeof(uri->path))
        return error_set(err, CAUSE_SYNTAX, "the path of a socket has at most %zu characters",
                         sizeof(uri->path) - 1);
    strcpy(uri->path, rest);
    return 0;
}

static int parse_fault(const char *option, size_t len, struct uri *uri, struct error *err)
{
    static const char *const names[] = {"cut=", "corrupt=", "delay=", "short=", "only="};
    uint64_t value;
    char *end;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t n = strlen(names[i]);
        /* What ends an option is in no name of one. */
        if (strncmp(option, names[i], n) || !isdigit((unsigned char)option[n]))
            continue;
        errno = 0;
        value = strtoull(option + n, &end, 10);
        if (end != option + len || errno || (i >= 2 && value > 1000000))
            break;
        switch (i) {
        case 0:
            uri->faults.cut = value;
            break;
        case 1:
            uri->faults.corrupt = value;
            break;
        case 2:
            uri->faults.delay_ms = (uint32_t)value;
            break;
        case 3:
            uri->faults.slice = (uint32_t)value;
            break;
        default:
            uri->faults.only = (int32_t)value;
        }
        return 0;
    }
    return error_set(err, CAUSE_SYNTAX, "'%.*s' is not a fault: cut=N, corrupt=N, delay=MS, short=N, only=K",
                     (int)len, option);
}

static int parse_address(enum uri_scheme scheme, const char *rest, struct uri *uri, struct error *err)
{
    return scheme == URI_UNIX ? parse_path(rest, uri, err) : parse_host_port(rest, uri, err);
}

static int parse_faulty(const char *rest, struct uri *uri, struct error *err)
{
    const char *colon = strchr(rest, ':');
    int inner = colon ? scheme_of(colon + 1) : -1;

    if (inner < 0 || inner == URI_FAULTY)
        return error_set(err, CAUSE_SYNTAX, "'%s': expected faulty:OPTIONS:URI", uri->text);
    uri->faults.only = -1;
    for (const char *p = rest; p < colon;) {
        const char *end = memchr(p, '+', (size_t)(colon - p));
        if (!end)
            end = colon;
        if (parse_fault(p, (size_t)(end - p), uri, err) < 0)
            return -EINVAL;
        p = end < colon ? end + 1 : colon;
    }
    uri->inner = (enum uri_scheme)inner;
    return parse_address(uri->inner, colon + 1 + strlen(scheme_names[inner]), uri, err);
}

int uri_parse(const char *text, struct uri *out, struct error *err)
{
    struct uri uri = {0};
    int scheme = scheme_of(text);
    int ret;

    if (strlen(text) >= sizeof(uri.text))
        return error_set(err, CAUSE_SYNTAX, "a URI has at most %zu characters", sizeof(uri.text) - 1);
    for (const char *p = text; *p; p++) {
        if ((unsigned char)*p <= ' ' || *p == 0x7f)
            return error_set(err, CAUSE_SYNTAX, "a URI has no white space or control characters");
    }
    if (scheme < 0)
        return error_set(err, CAUSE_SYNTAX,
                         "'%s' is not a URI: expected tcp:HOST:PORT, unix:PATH or rdma:HOST:PORT", text);
    uri.scheme = uri.inner = (enum uri_scheme)scheme;
    strcpy(uri.text, text);
    text += strlen(scheme_names[scheme]);
    if (scheme == URI_FAULTY)
        ret = parse_faulty(text, &uri, err);
    else
        ret = parse_address(uri.scheme, text, &uri, err);
    if (ret < 0)
        return ret;
    *out = uri;
    return 0;
}

int uri_list_parse(const char *text, struct uri_list *out, struct error *err)
{
    struct uri_list list = {0};
    char copy[URI_LIST_MAX], *rest = copy, *word;

    if (strlen(text) >= sizeof(copy))
        return error_set(err, CAUSE_SYNTAX, "URIs have at most %zu characters together", sizeof(copy) - 1);
    strcpy(copy, text);
    while ((word = strsep(&rest, " \t\n"))) {
        if (!*word)
            continue;
        if (list.count == URIS_MAX)
            return error_set(err, CAUSE_SYNTAX, "more than %d URIs", URIS_MAX);
        if (uri_parse(word, &list.uri[list.count], err) < 0)
            return -EIO;
        list.count++;
    }
    if (!list.count)
        return uri_parse("", &list.uri[0], err);
    *out = list;
    return 0;
}

void uri_list_format(const struct uri_list *list, char *out, size_t size)
{
    size_t at = 0;

    *out = '\0';
    for (unsigned i = 0; i < list->count && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, i ? " %s" : "%s", list->uri[i].text);
}

bool uri_without_rdma(const struct uri *uri, struct uri *out)
{
    if (uri->inner != URI_RDMA)
        return false;
    *out = *uri;
    out->inner = URI_TCP;
    if (out->scheme == URI_RDMA) {
        out->scheme = URI_TCP;
        snprintf(out->text, sizeof(out->text), "tcp:%s", uri->text + strlen(scheme_names[URI_RDMA]));
    }
    return true;
}
