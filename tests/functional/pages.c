/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a sparse file whose pages are data or zero by a rule, and where asked
 * the map that `received` shows when only the data has been sent.
 *
 *   pages FILE SIZE DATA EVERY SEED [MAP]
 *
 * Of every EVERY pages the first DATA are random; the others are holes. SIZE is
 * in bytes, and whole pages.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u

int main(int argc, char **argv)
{
    uint64_t words[PAGE / 8], random;

    if (argc < 6)
        return 2;
    uint64_t size = strtoull(argv[2], NULL, 0), data = strtoull(argv[3], NULL, 0), every = strtoull(argv[4], NULL, 0);
    uint64_t pages = size / PAGE, bytes = (pages + 63) / 64 * 8;
    uint8_t *map = calloc(1, bytes + 1);
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    random = strtoull(argv[5], NULL, 0) * 2 + 1;
    if (!map || fd < 0 || size % PAGE || ftruncate(fd, (off_t)size) < 0) {
        perror(argv[1]);
        return 1;
    }
    for (uint64_t page = 0; page < pages; page++) {
        if (page % every >= data)
            continue;
        map[page / 8] |= (uint8_t)(1u << page % 8);
        for (size_t i = 0; i < PAGE / 8; i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            words[i] = random ^ random >> 29;
        }
        if (pwrite(fd, words, PAGE, (off_t)(page * PAGE)) != PAGE) {
            perror(argv[1]);
            return 1;
        }
    }
    if (argc > 6) {
        FILE *out = fopen(argv[6], "w");
        if (!out || fwrite(map, 1, bytes, out) != bytes || fclose(out)) {
            perror(argv[6]);
            return 1;
        }
    }
    return close(fd);
}
