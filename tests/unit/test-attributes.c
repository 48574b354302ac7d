/* SPDX-License-Identifier: Apache-2.0 */
/* Owners and modes: what is inherited and when, what a mask leaves, and the backing file, which has those of RAM. */
#include "attributes.h"
#include "check.h"
#include "rig.h"
#include "scratch.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(attributes, .init = scratch_make, .fini = scratch_remove);

static struct attributes at(struct attribute_table *table, enum attribute_place place)
{
    return attributes_get(table, &table->at[place], ATTRIBUTES_DIRECTORY);
}

Test(attributes, what_appears_inherits_once)
{
    struct attribute_table table;

    attribute_table_init(&table, &(struct owner){.uid = 11, .gid = 22});
    cr_expect(eq(uint, at(&table, ATTRIBUTES_DIRECTORY).uid, 11));
    cr_expect(eq(uint, at(&table, ATTRIBUTES_OTHERS).gid, 22));
    table.at[ATTRIBUTES_DIRECTORY].uid = 33;
    table.at[ATTRIBUTES_DIRECTORY].gid = 44;
    cr_expect(eq(uint, at(&table, ATTRIBUTES_OTHERS).uid, 11), "chown changes what it is told to");
    cr_expect(eq(uint, at(&table, ATTRIBUTES_RAM).uid, 33));
    attributes_settle(&table.at[ATTRIBUTES_RAM], &table.at[ATTRIBUTES_DIRECTORY]);
    table.at[ATTRIBUTES_DIRECTORY].uid = 55;
    cr_expect(eq(uint, at(&table, ATTRIBUTES_RAM).uid, 33));
    cr_expect(eq(uint, at(&table, ATTRIBUTES_RAM).gid, 44));
    attribute_table_fini(&table);
}

Test(attributes, a_device_is_its_makers)
{
    struct attribute_table table;
    struct attributes device;

    attribute_table_init(&table, &(struct owner){.uid = 11, .gid = 22});
    attributes_init(&device);
    attributes_claim(&table, &device, 1, 2, 0600);
    attributes_claim(&table, &device, 3, 4, 0400);
    struct attributes got = attributes_get(&table, &device, ATTRIBUTES_DEVICE_STATE);
    cr_expect(eq(uint, got.uid, 1));
    cr_expect(eq(uint, got.gid, 2));
    cr_expect(eq(uint, got.mode, 0600));
    attribute_table_fini(&table);
}

Test(attributes, a_mask_is_for_what_nobody_has_set)
{
    struct attribute_table table, made;

    attribute_table_init(&table, &(struct owner){.masks = true, .mask = 027});
    struct attributes some = at(&table, ATTRIBUTES_RAM);
    cr_expect(eq(uint, attributes_mode(&table, &some, 0600), 0640));
    cr_expect(eq(uint, attributes_mode(&table, &some, 0444), 0440));
    cr_expect(eq(uint, attributes_mode(&table, &some, 0755), 0750));
    some.mode = 0604;
    cr_expect(eq(uint, attributes_mode(&table, &some, 0600), 0604));

    attribute_table_init(&made, &(struct owner){.masks = true, .mask = 0});
    attribute_table_give(&made, 1, 2);
    attribute_table_mkdir(&made, 01770);
    some = at(&made, ATTRIBUTES_RAM);
    cr_expect(eq(uint, attributes_mode(&made, &some, 0600), 0600), "mkdir has made it");
    some = at(&made, ATTRIBUTES_DIRECTORY);
    cr_expect(eq(uint, attributes_mode(&made, &some, 0755), 01770));
    some = at(&made, ATTRIBUTES_DEVICE_STATE);
    cr_expect(eq(uint, attributes_mode(&made, &some, 0755), 0770));

    attribute_table_copy(&made, &table);
    some = at(&made, ATTRIBUTES_RAM);
    cr_expect(eq(uint, attributes_mode(&made, &some, 0600), 0640));
    attribute_table_fini(&made);
    attribute_table_fini(&table);
}

static mode_t backing_mode(void)
{
    char path[160];
    struct stat st = {0};

    snprintf(path, sizeof(path), "%s/vm-1", scratch);
    cr_expect(zero(int, stat(path, &st)));
    return st.st_mode & 07777;
}

Test(attributes, the_backing_file_has_those_of_ram)
{
    struct limits limits = rig_limits();
    struct rig rig;
    struct error err;
    char place[160];

    limits.ram.directory = scratch;
    limits.owner.masks = true;
    limits.owner.mask = 027;
    snprintf(place, sizeof(place), "unix:%s/socket", scratch);
    rig_init(&rig, place, &limits);
    struct migration *m = rig_start(&rig, "vm-1", 2, 1 << 20), *arrived = rig_arrived(&rig, "vm-1");
    struct attributes *ram = &arrived->attributes.at[ATTRIBUTES_RAM];
    cr_expect(eq(uint, backing_mode() & 0777, 0640));

    mode_t rest = backing_mode() & 07000;
    CHECK_OK(migration_change(arrived, ram, ATTRIBUTES_DIRECTORY, ATTRIBUTE_MODE, &(struct attributes){.mode = 0660},
                              &err));
    cr_expect(eq(uint, backing_mode(), 0660 | rest), "only permissions change");
    CHECK_OK(migration_change(arrived, &arrived->attributes.at[ATTRIBUTES_OTHERS], ATTRIBUTES_DIRECTORY, ATTRIBUTE_MODE,
                              &(struct attributes){.mode = 0}, &err));
    cr_expect(eq(uint, backing_mode(), 0660 | rest));
    /* Only root gives files away. */
    uid_t uid = getuid();
    cr_assert(zero(int, seteuid(uid ? uid : 65534)));
    CHECK_FAILS(migration_change(arrived, ram, ATTRIBUTES_DIRECTORY, ATTRIBUTE_UID | ATTRIBUTE_MODE,
                                 &(struct attributes){.uid = 1, .mode = 0}, &err), CAUSE_DENIED);
    cr_assert(zero(int, seteuid(uid)));
    cr_expect(eq(uint, ram->uid, uid), "nothing has changed");
    cr_expect(eq(uint, ram->mode, 0660));
    cr_expect(eq(uint, backing_mode(), 0660 | rest));
    migration_put(m);
    migration_put(arrived);
    rig_fini(&rig);
}
