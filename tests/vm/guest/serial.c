/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serial: what a VMM does with the serial port of an mtty, which is a VFIO device.
 *
 *   serial DEVICE WORD...             registers: r7 prints register 7 in hexadecimal, 7=5a writes it
 *   serial DEVICE run FD COMMAND...   leaves the open device to a command as descriptor FD
 *
 * DEVICE is what examples/vfio-copy takes.
 */
#define main vfio_copy
#include "../../../examples/vfio-copy.c"
#undef main

/* Reads or writes a register of port 0, which is in BAR 0. */
static int access_register(const struct device *device, const char *word)
{
    struct vfio_region_info bar = {.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX};
    unsigned index, value;
    uint8_t byte;

    if (ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &bar) < 0)
        return failed(NULL, "%s has no registers", device->name);
    if (sscanf(word, "%u=%x", &index, &value) == 2) {
        byte = (uint8_t)value;
        if (pwrite(device->fd, &byte, 1, (off_t)(bar.offset + index)) != 1)
            return failed(NULL, "%s: %s", device->name, word);
        return 0;
    }
    if (sscanf(word, "r%u", &index) != 1)
        errx(2, "%s is no register", word);
    if (pread(device->fd, &byte, 1, (off_t)(bar.offset + index)) != 1)
        return failed(NULL, "%s: %s", device->name, word);
    printf("%02x\n", byte);
    return 0;
}

int main(int argc, char **argv)
{
    struct device device;
    int words = name_device(&device, argc - 1, argv + 1);

    if (!words || open_device(&device, argv + 1) < 0)
        return 1;
    argv += 1 + words;
    if (argv[0] && argv[1] && argv[2] && strcmp(argv[0], "run") == 0) {
        if (dup2(device.fd, atoi(argv[1])) < 0)
            err(1, "%s", argv[1]);
        execvp(argv[2], argv + 2);
        err(1, "%s", argv[2]);
    }
    for (; *argv; argv++)
        if (access_register(&device, *argv) < 0)
            return 1;
    return argc < 2 ? vfio_copy(argc, argv) : 0; /* the rest of it is not used */
}
