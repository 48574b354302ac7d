/* SPDX-License-Identifier: Apache-2.0 */
/* Names of migrations and devices. */
#include "name.h"
#include "check.h"
#include "wire.h"

#include <string.h>

Test(name, good)
{
    static const char *const names[] = {"a", "vm-1", "with space", "a.b", "a..", "\xc3\xa9", "-", "~", "ram", "x\\y", "\xff"};
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        CHECK_OK(name_check_device(names[i], &err));
}

Test(name, bad)
{
    static const char *const names[] = {"",     ".",     "..",    ".x",     "../x",     "a/b",    "/",
                                        "/abs", "a/",    "a\nb",  "\t",     "\x01",     "del\x7f", "x/../y"};
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        CHECK_FAILS(name_check_migration(names[i], &err), CAUSE_SYNTAX);
}

/* A device's may begin with a dot. */
Test(name, dots)
{
    static const char *const good[] = {".x", "...", ".dev.a8Zk2Q", "..x", ". "}, *const bad[] = {".", "..", "./x", "../x", ".\n"};
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(good); i++)
        CHECK_OK(name_check_device(good[i], &err));
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
        CHECK_FAILS(name_check_device(bad[i], &err), CAUSE_SYNTAX);
}

Test(name, length)
{
    char name[302];
    struct error err;

    memset(name, 'n', sizeof(name));
    name[WIRE_NAME_MAX] = '\0';
    CHECK_OK(name_check_device(name, &err));
    name[WIRE_NAME_MAX] = 'n';
    name[WIRE_NAME_MAX + 1] = '\0';
    CHECK_FAILS(name_check_device(name, &err), CAUSE_NAME_TOO_LONG);
    name[300] = '\0';
    CHECK_FAILS(name_check_device(name, &err), CAUSE_NAME_TOO_LONG);
}

Test(name, sentence_says_of_what)
{
    struct error err = {0};

    name_check_device("", &err);
    cr_expect(not(zero(ptr, strstr(err.message, "device"))), "%s", err.message);
}
