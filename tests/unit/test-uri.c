/* SPDX-License-Identifier: Apache-2.0 */
/* What is a URI, and what is not. */
#include "uri.h"
#include "check.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *text;
    enum uri_scheme scheme, inner;
    const char *host, *port, *path;
} good[] = {
    {"tcp:host:4444", URI_TCP, URI_TCP, "host", "4444", ""},
    {"tcp:192.0.2.1:0", URI_TCP, URI_TCP, "192.0.2.1", "0", ""},
    {"tcp:192.0.2.1:65535", URI_TCP, URI_TCP, "192.0.2.1", "65535", ""},
    {"tcp::4444", URI_TCP, URI_TCP, "", "4444", ""},
    {"tcp:[::1]:4444", URI_TCP, URI_TCP, "::1", "4444", ""},
    {"tcp:[fe80::1%eth0]:4444", URI_TCP, URI_TCP, "fe80::1%eth0", "4444", ""},
    {"tcp:[]:4444", URI_TCP, URI_TCP, "", "4444", ""},
    {"tcp:host:http-alt", URI_TCP, URI_TCP, "host", "http-alt", ""},
    {"rdma:host:4444", URI_RDMA, URI_RDMA, "host", "4444", ""},
    {"rdma:[::1]:1", URI_RDMA, URI_RDMA, "::1", "1", ""},
    {"unix:/run/migfs", URI_UNIX, URI_UNIX, "", "", "/run/migfs"},
    {"unix:/a:b", URI_UNIX, URI_UNIX, "", "", "/a:b"},
    {"faulty:cut=1:unix:/x", URI_FAULTY, URI_UNIX, "", "", "/x"},
    {"faulty:cut=1:tcp:[::1]:9", URI_FAULTY, URI_TCP, "::1", "9", ""},
    {"faulty::tcp:h:9", URI_FAULTY, URI_TCP, "h", "9", ""},
};

Test(uri, good)
{
    for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
        struct uri uri;
        struct error err;
        CHECK_OK(uri_parse(good[i].text, &uri, &err));
        cr_expect(eq(int, (int)uri.scheme, (int)good[i].scheme), "%s", good[i].text);
        cr_expect(eq(int, (int)uri.inner, (int)good[i].inner), "%s", good[i].text);
        cr_expect(eq(str, uri.text, (char *)good[i].text));
        cr_expect(eq(str, uri.host, (char *)good[i].host), "%s", good[i].text);
        cr_expect(eq(str, uri.port, (char *)good[i].port), "%s", good[i].text);
        cr_expect(eq(str, uri.path, (char *)good[i].path), "%s", good[i].text);
        cr_expect(uri_has_scheme(good[i].text), "%s", good[i].text);
    }
}

static const char *const bad[] = {
    "",
    "tcp",
    "tcp:",
    "TCP:host:1",
    "host:4444",
    "/a/path",
    "http://host/",
    "tcp:host",
    "tcp:host:",
    "tcp::",
    "tcp:host:65536",
    "tcp:host:99999999999999999999",
    "tcp:host:80x",
    "tcp:host:8 0",
    "tcp:host:-1",
    "tcp:host:80/",
    "tcp:host:0123456789abcdef", /* longer than any port */
    "tcp:::1:4444",
    "tcp:fe80::1",
    "tcp:[::1:4444",
    "tcp:[::1]4444",
    "tcp:[::1]",
    "tcp:[::1]:",
    "unix:",
    "unix:relative",
    "unix:/with space",
    "unix:/tab\there",
    "unix:/newline\n",
    "unix:/del\x7f",
    " tcp:host:1",
    "tcp:host:1\n",
    "rdma:host",
    "faulty:",
    "faulty:cut=1",
    "faulty:cut=1:",
    "faulty:cut=1:nothing",
    "faulty:cut=1:faulty:cut=2:tcp:h:1",
    "faulty:cut:tcp:h:1",
    "faulty:cut=:tcp:h:1",
    "faulty:cut=x:tcp:h:1",
    "faulty:cut=-1:tcp:h:1",
    "faulty:cut=1x:tcp:h:1",
    "faulty:cut=18446744073709551616:tcp:h:1",
    "faulty:delay=1000001:tcp:h:1",
    "faulty:burn=1:tcp:h:1",
    "faulty:cut=1++short=1:tcp:h:1",
    "faulty:cut=1:tcp:h",
};

Test(uri, bad)
{
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
        struct uri uri = {.text = "untouched"};
        struct error err = {0};
        int ret = uri_parse(bad[i], &uri, &err);
        cr_expect(lt(int, ret, 0), "accepted: '%s'", bad[i]);
        cr_expect(eq(int, (int)err.cause, CAUSE_SYNTAX), "'%s'", bad[i]);
        cr_expect(ne(str, err.message, ""), "'%s'", bad[i]);
        cr_expect(eq(str, uri.text, "untouched"), "'%s' wrote to the result", bad[i]);
    }
}

/* Every field is filled up to its last byte, and not beyond. */
Test(uri, lengths)
{
    char text[2 * URI_MAX];
    struct uri uri;
    struct error err;

    memset(text, 0, sizeof(text));
    strcpy(text, "unix:/");
    memset(text + 6, 'p', sizeof(uri.path) - 2);
    CHECK_OK(uri_parse(text, &uri, &err));
    cr_expect(eq(sz, strlen(uri.path), sizeof(uri.path) - 1));
    strcat(text, "p");
    CHECK_FAILS(uri_parse(text, &uri, &err), CAUSE_SYNTAX);

    memset(text, 0, sizeof(text));
    strcpy(text, "tcp:");
    memset(text + 4, 'h', sizeof(uri.host) - 1);
    strcat(text, ":1");
    CHECK_OK(uri_parse(text, &uri, &err));
    cr_expect(eq(sz, strlen(uri.host), sizeof(uri.host) - 1));
    memset(text + 4, 'h', sizeof(uri.host));
    strcpy(text + 4 + sizeof(uri.host), ":1");
    CHECK_FAILS(uri_parse(text, &uri, &err), CAUSE_SYNTAX);

    memset(text, 0, sizeof(text));
    memset(text, 'x', URI_MAX);
    CHECK_FAILS(uri_parse(text, &uri, &err), CAUSE_SYNTAX);
}

Test(uri, faults)
{
    struct uri uri;
    struct error err;

    CHECK_OK(
        uri_parse("faulty:cut=18446744073709551615+corrupt=2+delay=3+short=4+only=5:tcp:h:1", &uri, &err));
    cr_expect(eq(u64, uri.faults.cut, UINT64_MAX));
    cr_expect(eq(u64, uri.faults.corrupt, 2));
    cr_expect(eq(u32, uri.faults.delay_ms, 3));
    cr_expect(eq(u32, uri.faults.slice, 4));
    cr_expect(eq(i32, uri.faults.only, 5));

    CHECK_OK(uri_parse("faulty:short=4:tcp:h:1", &uri, &err));
    cr_expect(eq(u64, uri.faults.cut, 0));
    cr_expect(eq(i32, uri.faults.only, -1), "faults hit every connection unless told otherwise");
    CHECK_OK(uri_parse("faulty:only=0:tcp:h:1", &uri, &err));
    cr_expect(eq(i32, uri.faults.only, 0));
}

Test(uri, has_scheme)
{
    cr_expect(uri_has_scheme("tcp:"));
    cr_expect(uri_has_scheme("faulty:nonsense"));
    cr_expect(not(uri_has_scheme("tcp")));
    cr_expect(not(uri_has_scheme("")));
    cr_expect(not(uri_has_scheme("/tmp/dir")));
}

Test(uri, list)
{
    struct uri_list list;
    struct error err;
    char text[URI_LIST_MAX];

    CHECK_OK(uri_list_parse(" rdma:a:1 \t tcp:[::1]:2  unix:/x\n", &list, &err));
    cr_assert(eq(uint, list.count, 3));
    cr_expect(eq(int, (int)list.uri[0].scheme, URI_RDMA));
    cr_expect(eq(str, list.uri[1].host, "::1"));
    cr_expect(eq(str, list.uri[2].path, "/x"));
    uri_list_format(&list, text, sizeof(text));
    cr_expect(eq(str, text, "rdma:a:1 tcp:[::1]:2 unix:/x"));
    uri_list_format(&list, text, 12);
    cr_expect(eq(str, text, "rdma:a:1 tc"));
    list.count = 0;
    uri_list_format(&list, text, sizeof(text));
    cr_expect(eq(str, text, ""));
}

Test(uri, as_long_as_it_can_be)
{
    char text[URI_MAX + 1];
    struct error err;
    struct uri uri;

    memset(text, 'x', sizeof(text));
    memcpy(text, "unix:/", 6);
    text[URI_MAX] = '\0';
    CHECK_FAILS(uri_parse(text, &uri, &err), CAUSE_SYNTAX);
    char want[64];
    snprintf(want, sizeof(want), "a URI has at most %d characters", URI_MAX - 1);
    cr_expect(eq(str, err.message, want));
}

Test(uri, as_long_as_a_list_can_be)
{
    static struct uri_list list, again;
    static char text[URI_LIST_MAX + URI_MAX], back[URI_LIST_MAX];
    struct error err;
    char *p = text;

    for (unsigned i = 0; i < URIS_MAX; i++) {
        memcpy(p, "tcp:", 4);
        memset(p + 4, 'h', 200);
        p = stpcpy(p + 204, i + 1 < URIS_MAX ? ":1 " : ":1");
    }
    CHECK_OK(uri_list_parse(text, &list, &err));
    cr_expect(eq(uint, list.count, URIS_MAX));
    uri_list_format(&list, back, sizeof(back));
    cr_expect(eq(str, back, text));
    CHECK_OK(uri_list_parse(back, &again, &err));
    strcat(text, " tcp:h:1");
    CHECK_FAILS(uri_list_parse(text, &again, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "more than 8 URIs") != NULL, "%s", err.message);
    memset(text, 'x', URI_LIST_MAX);
    text[URI_LIST_MAX] = '\0';
    CHECK_FAILS(uri_list_parse(text, &again, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "at most 4095 characters") != NULL, "%s", err.message);
    cr_expect(eq(uint, again.count, URIS_MAX));
}

Test(uri, no_list)
{
    struct uri_list list = {.count = 7};
    struct error err;

    CHECK_FAILS(uri_list_parse("", &list, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "'' is not a URI") != NULL, "%s", err.message);
    CHECK_FAILS(uri_list_parse(" \t", &list, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "'' is not a URI") != NULL, "%s", err.message);
    CHECK_FAILS(uri_list_parse("tcp:a:1 nonsense", &list, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "'nonsense' is not a URI") != NULL, "%s", err.message);
    CHECK_FAILS(uri_list_parse("tcp:a:1,tcp:b:2", &list, &err), CAUSE_SYNTAX);
    cr_expect(strstr(err.message, "an IPv6 address is written") != NULL, "%s", err.message);
    cr_expect(eq(uint, list.count, 7));
}

Test(uri, without_rdma)
{
    struct uri uri, tcp;
    struct error err;

    CHECK_OK(uri_parse("rdma:[::1]:44", &uri, &err));
    cr_assert(uri_without_rdma(&uri, &tcp));
    cr_expect(eq(str, tcp.text, "tcp:[::1]:44"));
    cr_expect(eq(int, (int)tcp.scheme, URI_TCP));
    cr_expect(eq(int, (int)tcp.inner, URI_TCP));
    cr_expect(eq(str, tcp.host, "::1"));
    cr_expect(eq(str, tcp.port, "44"));
    CHECK_OK(uri_parse("faulty:cut=9:rdma:h:44", &uri, &err));
    cr_assert(uri_without_rdma(&uri, &tcp));
    cr_expect(eq(int, (int)tcp.scheme, URI_FAULTY));
    cr_expect(eq(int, (int)tcp.inner, URI_TCP));
    cr_expect(eq(u64, tcp.faults.cut, 9));
    CHECK_OK(uri_parse("tcp:h:44", &uri, &err));
    cr_expect(not(uri_without_rdma(&uri, &tcp)));
    CHECK_OK(uri_parse("unix:/x", &uri, &err));
    cr_expect(not(uri_without_rdma(&uri, &tcp)));
}
