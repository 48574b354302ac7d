/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfio-fake: examples/vfio-copy with a device that is none, the descriptor 900.
 *
 *   vfio-fake ARGUMENT...
 *
 * The device is in the current directory: its state is in the file `device.state`, what is in it in
 * `device.data`, and each state that it is told to go to is added to `device.log`. It gives half of its data
 * while it runs. It reads and writes no more than 1000 bytes at a time, and every third time a signal comes
 * instead. $FAULT is what is wrong with it:
 *
 *   no-migration       its driver knows no migration
 *   no-pre-copy        nor this part of it
 *   read, stopped-read EIO, while it runs, or after it was stopped
 *   no-message         it has nothing for now, when it is stopped
 *   stop               it does not stop: EBUSY
 *   stop-error         it does not stop, and has failed
 *   dirty              it becomes dirty as fast as it is read
 *   hang               a read while it runs waits for a signal
 *   write              ENOSPC after some writes
 *   load               what was written is not to its liking
 *   no-reset           it cannot be reset
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int fake_ioctl(int fd, unsigned long request, ...);
static ssize_t fake_read(int fd, void *data, size_t size);
static ssize_t fake_write(int fd, const void *data, size_t size);
#define ioctl fake_ioctl
#define read  fake_read
#define write fake_write
#define main  vfio_copy
#include "../../examples/vfio-copy.c"
#undef ioctl
#undef read
#undef write
#undef main

#define DEVICE 900
#define CHUNK  1000

static char data[16 << 20];
static size_t data_size, data_position;
static uint32_t state;
static int transfer = -1; /* the descriptor of a session */
static unsigned calls;

static bool fault(const char *name)
{
    const char *is = getenv("FAULT");
    return is && strcmp(is, name) == 0;
}

static int fail_with(int error)
{
    errno = error;
    return -1;
}

static bool is_saving(void)
{
    return state == VFIO_DEVICE_STATE_PRE_COPY || state == VFIO_DEVICE_STATE_STOP_COPY;
}

static void keep_state(void)
{
    FILE *stream = fopen("device.state", "w");
    fprintf(stream, "%s\n", state_name(state));
    fclose(stream);
}

static void add_to_log(const char *what)
{
    FILE *stream = fopen("device.log", "a");
    fprintf(stream, "%s\n", what);
    fclose(stream);
}

static void begin_session(int *fd)
{
    transfer = *fd = open("/dev/null", O_RDWR);
    data_position = 0;
}

/* The arcs that the protocol allows, alone or one after another. */
static int go_to(uint32_t new, int *fd)
{
    bool new_saves = new == VFIO_DEVICE_STATE_PRE_COPY || new == VFIO_DEVICE_STATE_STOP_COPY;

    add_to_log(state_name(new));
    if (state == VFIO_DEVICE_STATE_ERROR || new == VFIO_DEVICE_STATE_ERROR || new == state)
        return fail_with(EINVAL);
    if (is_saving() && new_saves && state == VFIO_DEVICE_STATE_STOP_COPY)
        return fail_with(EINVAL);
    if (new == VFIO_DEVICE_STATE_PRE_COPY && (fault("no-pre-copy") || state != VFIO_DEVICE_STATE_RUNNING))
        return fail_with(EINVAL);
    if (new == VFIO_DEVICE_STATE_STOP_COPY && fault("stop"))
        return fail_with(EBUSY);
    if (new == VFIO_DEVICE_STATE_STOP_COPY && fault("stop-error")) {
        state = VFIO_DEVICE_STATE_ERROR;
        return fail_with(EIO);
    }
    if (state == VFIO_DEVICE_STATE_RESUMING) {
        if (fault("load"))
            return fail_with(EINVAL);
        FILE *stream = fopen("device.data", "w");
        fwrite(data, 1, data_size, stream);
        fclose(stream);
    }
    if (new == VFIO_DEVICE_STATE_RESUMING) {
        data_size = 0;
        begin_session(fd);
    } else if (new_saves && !is_saving()) {
        begin_session(fd);
    }
    state = new;
    return 0;
}

static int device_feature(struct vfio_device_feature *request)
{
    struct vfio_device_feature_migration *migration = (void *)request->data;
    struct vfio_device_feature_mig_state *mig_state = (void *)request->data;

    if (request->argsz != sizeof(*request) + 8)
        return fail_with(EINVAL);
    if (fault("no-migration"))
        return fail_with(ENOTTY);
    switch (request->flags) {
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION:
        migration->flags = VFIO_MIGRATION_STOP_COPY | (fault("no-pre-copy") ? 0 : VFIO_MIGRATION_PRE_COPY);
        return 0;
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        mig_state->device_state = state;
        mig_state->data_fd = -1;
        return 0;
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: {
        int fd = -1, status = go_to(mig_state->device_state, &fd), error = errno;
        mig_state->data_fd = fd;
        keep_state();
        errno = error;
        return status;
    }
    }
    return fail_with(ENOTTY);
}

/* What is there now: the first half, until the device has been stopped. */
static size_t available(void)
{
    return (state == VFIO_DEVICE_STATE_PRE_COPY ? data_size / 2 : data_size) - data_position;
}

static int precopy_info(struct vfio_precopy_info *info)
{
    if (state != VFIO_DEVICE_STATE_PRE_COPY || info->argsz < sizeof(*info))
        return fail_with(EINVAL);
    info->initial_bytes = available();
    info->dirty_bytes = fault("dirty") ? 5 << 20 : 0;
    return 0;
}

static int fake_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;

    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (fd == transfer && fd >= 0)
        return request == VFIO_MIG_GET_PRECOPY_INFO ? precopy_info(argument) : fail_with(ENOTTY);
    if (fd != DEVICE)
        return ioctl(fd, request, argument);
    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        return 0;
    case VFIO_DEVICE_FEATURE:
        return device_feature(argument);
    case VFIO_DEVICE_RESET:
        add_to_log("reset");
        if (fault("no-reset"))
            return fail_with(ENOTTY);
        state = VFIO_DEVICE_STATE_RUNNING;
        keep_state();
        return 0;
    }
    return fail_with(ENOTTY);
}

static ssize_t fake_read(int fd, void *to, size_t size)
{
    bool runs = state == VFIO_DEVICE_STATE_PRE_COPY;

    if (fd != transfer || fd < 0)
        return read(fd, to, size);
    if (!is_saving() || !size)
        return fail_with(EINVAL);
    if (++calls % 3 == 0)
        return fail_with(EINTR);
    if (fault(runs ? "read" : "stopped-read"))
        return fail_with(EIO);
    if (!runs && fault("no-message"))
        return fail_with(ENOMSG);
    if (runs && fault("hang"))
        return puts("hangs") < 0 || fflush(stdout) || pause();
    if (size > CHUNK)
        size = CHUNK;
    if (size > available()) {
        if (available() == 0 && runs)
            return fault("dirty") ? CHUNK : fail_with(ENOMSG);
        size = available();
    }
    memcpy(to, data + data_position, size);
    data_position += size;
    return (ssize_t)size;
}

static ssize_t fake_write(int fd, const void *from, size_t size)
{
    if (fd != transfer || fd < 0)
        return write(fd, from, size);
    if (state != VFIO_DEVICE_STATE_RESUMING)
        return fail_with(EINVAL);
    if (++calls % 3 == 0)
        return fail_with(EINTR);
    if (fault("write") && data_size > 5 * CHUNK)
        return fail_with(ENOSPC);
    if (size > CHUNK)
        size = CHUNK;
    memcpy(data + data_size, from, size);
    data_size += size;
    return (ssize_t)size;
}

int main(int argc, char **argv)
{
    FILE *stream = fopen("device.data", "r");
    char word[32] = "running";

    if (stream) {
        data_size = fread(data, 1, sizeof(data), stream);
        fclose(stream);
    }
    stream = fopen("device.state", "r");
    if (stream) {
        if (fscanf(stream, "%31s", word) != 1)
            return 3;
        fclose(stream);
    }
    while (strcmp(state_name(state), word) != 0)
        state++;
    return vfio_copy(argc, argv);
}
