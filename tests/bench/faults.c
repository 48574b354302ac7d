/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What receiving a sparse image costs in page faults, with and without a map of received pages: the table of the
 * patch series "Solve zero page causing multiple page faults" (qemu-devel, April 2024), in small and exact.
 *
 *   faults POLICY [-r RUN] SIZE
 *     write      every page is stored through a mapping, zero or not
 *     check      a zero page is stored only where the mapping does not read as zeros: the patch's "without"
 *     map        a zero page is stored only where the map says that a page is held; the patch's "with"
 *     map-write  as map, and what arrives for the first time is stored with write(2): migfs
 *
 * Of each 8 * RUN pages the first RUN have data. The first pass receives the image, the second one only zeros. Uses
 * the daemon's own memory and page map; no network, one thread. One line of JSON: the process's minor faults in each
 * pass, and the bytes that the memory has after it.
 */
#include "common.h"
#include "memory.h"
#include "page_map.h"

#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

const char program[] = "faults";

static struct memory memory;
static struct page_map map;
static bool use_map, use_write, use_check;
static char data[PAGE];
static const char zeros[PAGE];

static void check(int ret, const struct error *err)
{
    if (ret < 0)
        die("%s", err->message);
}

static void receive_page(uint64_t page, bool zero)
{
    struct error err = {0};
    char *to = memory_window(&memory, page * PAGE, PAGE);

    if (!to)
        die("the memory has no mapping");
    if (use_map) {
        bool held = page_map_test(&map, page);
        if (zero && !held)
            return;
        if (zero && use_write) {
            check(memory_discard(&memory, page * PAGE, PAGE, &err), &err);
            page_map_clear(&map, page, 1);
            return;
        }
        page_map_set(&map, page, 1);
        if (!held && use_write) {
            check(memory_write(&memory, page * PAGE, data, PAGE, &err), &err);
            return;
        }
    }
    if (use_check && zero && !memcmp(to, zeros, PAGE))
        return;
    memcpy(to, zero ? zeros : data, PAGE);
}

static long minor_faults(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

static unsigned long long held_bytes(void)
{
    struct stat st;

    return fstat(memory.fd, &st) < 0 ? 0 : (unsigned long long)st.st_blocks * 512;
}

int main(int argc, char **argv)
{
    struct error err = {0};
    uint64_t run = 1, data_pages = 0;
    int opt;

    while ((opt = getopt(argc, argv, "r:")) != -1) {
        if (opt != 'r')
            return 2;
        run = parse_size(optarg);
    }
    if (argc - optind != 2 || !run)
        die("usage: faults POLICY [-r RUN] SIZE");
    const char *policy = argv[optind];
    uint64_t size = parse_size(argv[optind + 1]), pages = size / PAGE;
    use_map = !strncmp(policy, "map", 3);
    use_write = !strcmp(policy, "map-write");
    use_check = !strcmp(policy, "check");
    if (!use_map && !use_check && strcmp(policy, "write"))
        die("there is no policy '%s'", policy);
    check(memory_init(&memory, NULL, "faults", size, &err), &err);
    check(memory_resize(&memory, size, &err), &err);
    check(page_map_init(&map, size, &err), &err);
    memset(data, 0xa5, sizeof(data));
    long faults[3];
    unsigned long long held[2];
    double begin = now(), seconds[2];
    faults[0] = minor_faults();
    for (uint64_t page = 0; page < pages; page++) {
        bool zero = page / run % 8 != 0;
        data_pages += !zero;
        receive_page(page, zero);
    }
    seconds[0] = now() - begin;
    faults[1] = minor_faults();
    held[0] = held_bytes();
    begin = now();
    for (uint64_t page = 0; page < pages; page++)
        receive_page(page, true);
    seconds[1] = now() - begin;
    faults[2] = minor_faults();
    held[1] = held_bytes();
    printf("{\"pages\": %llu, \"data_pages\": %llu, \"faults\": %ld, \"held\": %llu, \"seconds\": %.6f, "
           "\"second_faults\": %ld, \"second_held\": %llu, \"second_seconds\": %.6f}\n",
           (unsigned long long)pages, (unsigned long long)data_pages, faults[1] - faults[0], held[0], seconds[0],
           faults[2] - faults[1], held[1], seconds[1]);
    page_map_fini(&map);
    memory_fini(&memory, false);
    return 0;
}
