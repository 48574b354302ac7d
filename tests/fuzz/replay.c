/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a target on files without libFuzzer: replay FILE... With any compiler. */
#include "input.h"

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        fprintf(stderr, "Running: %s\n", argv[i]);
        FILE *file = fopen(argv[i], "rb");
        uint8_t *data = malloc(1 << 20);
        if (!file || !data) {
            perror(argv[i]);
            return 1;
        }
        size_t size = fread(data, 1, 1 << 20, file);
        fclose(file);
        uint8_t *exact = input_copy(data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    return 0;
}
