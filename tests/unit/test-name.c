/* SPDX-License-Identifier: Apache-2.0 */
/* Names of migrations and devices. */
#include "name.h"
#include "check.h"
#include "wire.h"

#include <string.h>

Test(name, good)
{
    static const char *const names[] = {"a", "vm-1", "with space", "a.b", "a..", "\xc3\xa9", "-", "~", "ram", "x\\y",
                                        "\xf0\x9f\x90\xa7", "\xd7\xa9", "\xe2\x80\x8d"};
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        CHECK_OK(name_check_device(names[i], &err));
}

Test(name, bad)
{
    static const char *const names[] = {"",     ".",     "..",    ".x",     "../x",     "a/b",    "/",
                                        "/abs", "a/",    "a\nb",  "\t",     "\x01",     "del\x7f", "x/../y",
                                        /* not UTF-8 */
                                        "\xff", "a\xc3", "\xc3(", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                        /* C1, separators, directions */
                                        "a\xc2\x9b", "\xe2\x80\xa8", "x\xe2\x80\xa9", "z\xe2\x80\xaez",
                                        "\xe2\x81\xa6", "\xd8\x9c", "\xe2\x80\x8f"};
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        CHECK_FAILS(name_check_migration(names[i], &err), CAUSE_SYNTAX);
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        if (strcmp(names[i], ".x"))
            CHECK_FAILS(name_check_device(names[i], &err), CAUSE_SYNTAX);
    }
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
