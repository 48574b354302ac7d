/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfio-copy: moves the state of a VFIO device to or from a file of a migfs mount.
 *
 *   vfio-copy save [-w] DEVICE FILE        the device's state to FILE, such as src/vm1/device-state/nic
 *   vfio-copy load [-ns] DEVICE FILE       and from there, such as dst/vm1/device-state/nic
 *   vfio-copy state DEVICE [running|stop]  what the device is doing; or have it do that
 *   vfio-copy reset DEVICE                 out of any state; what was in the device is gone
 *
 * DEVICE is /dev/vfio/GROUP NAME, where NAME is what VFIO calls the device (0000:3b:00.1, or the UUID of a
 * mediated one), or fd:N, a descriptor of the open device. A VMM has its devices open, and nobody else can
 * open their groups: it starts vfio-copy and lets it inherit one. So does whoever wants a device of vfio-pci
 * to keep its state when vfio-copy ends, since the last close resets it.
 *
 * Any driver will do that has version 2 of VFIO's migration protocol, which is described at "enum
 * vfio_device_mig_state" in <linux/vfio.h>; what it says goes over as it is. Two things stay with the
 * VMM: the pages that the device writes into, and several devices that write to each other, which have to be
 * quiet before any of them is stopped.
 *
 * save copies what the driver has while the device runs (pre-copy, where the driver has such a thing), then
 * stops the device and copies the rest. It returns when the destination has all of it, and the device stays
 * stopped; if the migration fails after that, "state DEVICE running" has it go on. When save fails or is
 * interrupted, the device goes on as before, and FILE, which has half a state, is removed.
 *
 *   -w  does not stop the device before standard input has ended: whoever stops the VM closes it then
 *
 * load gives the driver what arrives as it arrives, waits until the migration has completed, since only then
 * nothing is missing, and has the device run. When it fails or is interrupted, the device is reset.
 *
 *   -n  does not wait for the migration: the end of FILE is the end of the state
 *   -s  leaves the device stopped
 *
 * FILE can be any file; then there is no migration to wait for. The size need not be known, and is not told.
 * Drivers have no splice(2) and no mmap(2) for this, so the bytes go through a buffer.
 *
 * Exits with 0, with 1 after a failure, which it explains, or with 2 if it was called wrongly.
 */
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Linux 6.2 has these, and Debian 12's headers are older. */
#ifndef VFIO_MIGRATION_PRE_COPY
#define VFIO_MIGRATION_PRE_COPY        (1 << 2)
#define VFIO_DEVICE_STATE_PRE_COPY     6
#define VFIO_DEVICE_STATE_PRE_COPY_P2P 7
#define VFIO_MIG_GET_PRECOPY_INFO      _IO(VFIO_TYPE, VFIO_BASE + 21)
struct vfio_precopy_info {
    __u32 argsz;
    __u32 flags;
    __aligned_u64 initial_bytes;
    __aligned_u64 dirty_bytes;
};
#endif

#define BUFFER_SIZE (1 << 20)

static const char *const state_names[] = {
    [VFIO_DEVICE_STATE_ERROR] = "error",       [VFIO_DEVICE_STATE_STOP] = "stop",
    [VFIO_DEVICE_STATE_RUNNING] = "running",   [VFIO_DEVICE_STATE_STOP_COPY] = "stop-copy",
    [VFIO_DEVICE_STATE_RESUMING] = "resuming", [VFIO_DEVICE_STATE_RUNNING_P2P] = "running-p2p",
    [VFIO_DEVICE_STATE_PRE_COPY] = "pre-copy", [VFIO_DEVICE_STATE_PRE_COPY_P2P] = "pre-copy-p2p",
};

struct device {
    const char *name; /* for messages */
    int fd;
    uint64_t flags;    /* VFIO_MIGRATION_... */
    uint32_t original; /* the state that it was found in */
};

struct file {
    const char *path;
    int fd;
    char migration[PATH_MAX]; /* the directory of the migration, or empty */
};

static char buffer[BUFFER_SIZE];
static volatile sig_atomic_t interrupted;

/* A signal that comes just before a call that blocks would be lost, so it comes again every second. */
static void interrupt(int signal)
{
    if (signal != SIGALRM)
        interrupted = signal;
    alarm(1);
}

static void handle_signals(void (*handler)(int))
{
    static const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGALRM};
    struct sigaction action = {.sa_handler = handler};

    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
        sigaction(signals[i], &action, NULL);
}

/* Says what has failed, and why: errno, and the sentence of the migration if there is one. Returns -1. */
static int __attribute__((format(printf, 2, 3))) failed(const struct file *file, const char *format, ...)
{
    char path[PATH_MAX + sizeof("/error")], sentence[300] = "";
    int error = errno;
    va_list arguments;

    if (interrupted) {
        warnx("interrupted by a signal (%s)", strsignal(interrupted));
        return -1;
    }
    if (file && file->migration[0]) {
        snprintf(path, sizeof(path), "%s/error", file->migration);
        FILE *stream = fopen(path, "re");
        if (stream) {
            if (fgets(sentence, sizeof(sentence), stream))
                sentence[strcspn(sentence, "\n")] = 0;
            fclose(stream);
        }
    }
    fputs("vfio-copy: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (error)
        fprintf(stderr, ": %s", strerror(error));
    if (sentence[0])
        fprintf(stderr, "; %s says: %s", path, sentence);
    fputc('\n', stderr);
    return -1;
}

/* ---- The device ---- */

static const char *state_name(uint32_t state)
{
    return state < sizeof(state_names) / sizeof(*state_names) ? state_names[state] : "unknown";
}

/* VFIO_DEVICE_FEATURE with its data, which the kernel reads or fills in. Returns 0, or -1 with errno. */
static int feature(int fd, uint32_t flags, void *data, size_t size)
{
    _Alignas(struct vfio_device_feature) char bytes[sizeof(struct vfio_device_feature) + 16];
    struct vfio_device_feature *request = (struct vfio_device_feature *)bytes;

    request->argsz = (uint32_t)(sizeof(*request) + size);
    request->flags = flags;
    memcpy(request->data, data, size);
    if (ioctl(fd, VFIO_DEVICE_FEATURE, request) < 0)
        return -1;
    memcpy(data, request->data, size);
    return 0;
}

static int get_state(const struct device *device, uint32_t *state)
{
    struct vfio_device_feature_mig_state data = {.data_fd = -1};

    if (feature(device->fd, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &data,
                sizeof(data)) < 0)
        return failed(NULL, "%s: its state cannot be read", device->name);
    *state = data.device_state;
    return 0;
}

/* Puts the device into a state. A new session's descriptor goes to *session, if that is not NULL. */
static int set_state(const struct device *device, uint32_t state, int *session)
{
    struct vfio_device_feature_mig_state data = {.device_state = state, .data_fd = -1};
    uint32_t current;
    int error;

    if (feature(device->fd, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &data,
                sizeof(data)) < 0) {
        error = errno;
        if (get_state(device, &current) < 0)
            return -1;
        errno = error;
        return failed(NULL, "%s: %s cannot be reached, it is %s", device->name, state_name(state),
                      state_name(current));
    }
    if (session) {
        errno = 0;
        if (data.data_fd < 0)
            return failed(NULL, "%s: the driver has given no descriptor for its data", device->name);
        *session = data.data_fd;
    }
    return 0;
}

/* What comes now is to put things right again, and nothing interrupts it. */
static void begin_repair(void)
{
    handle_signals(SIG_IGN);
    alarm(0);
    interrupted = 0;
}

/* Puts it into the state that it was found in. */
static int bring_back(const struct device *device)
{
    uint32_t current;

    if (get_state(device, &current) < 0)
        return -1;
    return current == device->original ? 0 : set_state(device, device->original, NULL);
}

static int reset(const struct device *device)
{
    if (ioctl(device->fd, VFIO_DEVICE_RESET) < 0)
        return failed(NULL, "%s cannot be reset", device->name);
    return 0;
}

/* A device of a group that nobody else has open; its memory is nobody's, so nothing is mapped. */
static int open_in_group(const char *path, const char *name)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    int group = open(path, O_RDWR | O_CLOEXEC);
    int container, device;

    if (group < 0)
        return failed(NULL, errno == EBUSY ? "%s is in use; fd:N is for that" : "%s", path);
    if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0)
        return failed(NULL, "%s is no VFIO group", path);
    errno = 0;
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        return failed(NULL, "%s: not all devices of the group are bound to VFIO drivers", path);
    container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    if (container < 0)
        return failed(NULL, "/dev/vfio/vfio");
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0)
        return failed(NULL, "%s cannot be added to a container", path);
    if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
        return failed(NULL, "%s has no IOMMU of type 1", path);
    device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
    if (device < 0)
        return failed(NULL, "%s has no device %s", path, name);
    return device; /* the other two stay open as long as it is */
}

/* Takes the words that name a device off the arguments: returns how many they are, 0 if they name none. */
static int name_device(struct device *device, int argc, char **argv)
{
    char *end;

    if (argc < 1)
        return 0;
    device->name = argv[0];
    device->fd = -1;
    if (strncmp(argv[0], "fd:", 3) == 0) {
        unsigned long fd = strtoul(argv[0] + 3, &end, 10);
        if (!isdigit((unsigned char)argv[0][3]) || *end || fd > INT_MAX)
            return 0;
        device->fd = (int)fd;
        return 1;
    }
    if (argc < 2)
        return 0;
    device->name = argv[1];
    return 2;
}

/* Opens a device that name_device() has named at *argv, and looks at what it can do. */
static int open_device(struct device *device, char **argv)
{
    struct vfio_device_feature_migration migration = {0};
    struct vfio_device_info info = {.argsz = sizeof(info)};

    if (device->fd < 0) {
        device->fd = open_in_group(argv[0], argv[1]);
        if (device->fd < 0)
            return -1;
    }
    if (ioctl(device->fd, VFIO_DEVICE_GET_INFO, &info) < 0)
        return failed(NULL, "%s is no VFIO device", device->name);
    if (feature(device->fd, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION, &migration,
                sizeof(migration)) < 0)
        return failed(NULL, "%s: its driver cannot migrate it", device->name);
    device->flags = migration.flags;
    return get_state(device, &device->original);
}

/* What is to be saved or loaded is in a state to come back to. */
static int is_at_rest(const struct device *device)
{
    errno = 0;
    if (!(device->flags & VFIO_MIGRATION_STOP_COPY))
        return failed(NULL, "%s: its driver cannot migrate it", device->name);
    if (device->original == VFIO_DEVICE_STATE_RUNNING || device->original == VFIO_DEVICE_STATE_STOP)
        return 0;
    return failed(
        NULL, "%s is in the state %s, not running or stop: see \"vfio-copy state\" and \"vfio-copy reset\"",
        device->name, state_name(device->original));
}

/* ---- The file ---- */

static int open_file(struct file *file, int flags)
{
    static const char last[] = "/device-state";
    char copy[PATH_MAX];
    size_t length;

    file->migration[0] = 0;
    snprintf(copy, sizeof(copy), "%s", file->path);
    if (realpath(dirname(copy), file->migration)) {
        length = strlen(file->migration);
        if (length >= sizeof(last) && strcmp(file->migration + length - (sizeof(last) - 1), last) == 0)
            file->migration[length - (sizeof(last) - 1)] = 0;
        else
            file->migration[0] = 0;
    }
    do
        file->fd = open(file->path, flags | O_CLOEXEC, 0600);
    while (file->fd < 0 && errno == EINTR && !interrupted);
    if (file->fd < 0)
        return failed(file, "%s", file->path);
    return 0;
}

/* read(2) of at most a buffer: returns what it does, with EINTR only for signals that end vfio-copy. */
static ssize_t read_some(int fd)
{
    ssize_t n;

    do {
        if (interrupted) {
            errno = EINTR;
            return -1;
        }
        n = read(fd, buffer, sizeof(buffer));
    } while (n < 0 && errno == EINTR);
    return n;
}

/* Writes the first bytes of the buffer. Returns 0, or -1 with errno. */
static int write_all(int fd, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = interrupted ? -1 : write(fd, buffer + done, size - done);
        if (interrupted || (n < 0 && errno != EINTR))
            return -1;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* ---- save ---- */

struct saving {
    struct device *device;
    struct file *file;
    int session;
    uint64_t dirty; /* what was dirty when last looked at */
};

/* Copies a buffer of the device's data: returns how much, or -1. Nothing at all is the end, or while the
   device runs all that there is for now, for which some drivers have ENOMSG. */
static ssize_t copy_some(const struct saving *saving, bool runs)
{
    ssize_t n = read_some(saving->session);

    if (n < 0 && errno == ENOMSG && runs)
        return 0;
    if (n < 0)
        return failed(NULL, "%s: reading its data", saving->device->name);
    if (n > 0 && write_all(saving->file->fd, (size_t)n) < 0)
        return failed(saving->file, "writing %s", saving->file->path);
    return n;
}

/* Whether it pays to copy more while the device runs: until what it had at first has gone, and then for as
   long as there is much that is dirty and it becomes less. */
static bool pays(struct saving *saving)
{
    struct vfio_precopy_info info = {.argsz = sizeof(info)};
    uint64_t before = saving->dirty;

    if (ioctl(saving->session, VFIO_MIG_GET_PRECOPY_INFO, &info) < 0)
        return false;
    if (info.initial_bytes > 0)
        return true;
    saving->dirty = info.dirty_bytes;
    return info.dirty_bytes > BUFFER_SIZE && info.dirty_bytes < before;
}

/* Whether standard input has ended. What comes from it until then means nothing. */
static bool has_input_ended(int timeout_ms)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char bytes[512];

    if (poll(&input, 1, timeout_ms) <= 0)
        return false;
    ssize_t n = read(STDIN_FILENO, bytes, sizeof(bytes));
    return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

/* While the device runs. Returns the number of bytes, or -1. */
static int64_t copy_running(struct saving *saving, bool wait)
{
    int64_t total = 0;
    ssize_t n;

    do {
        n = copy_some(saving, true);
        if (n < 0)
            return -1;
        total += n;
        /* Not every driver can be polled, so an idle one is asked again. */
    } while (wait ? !has_input_ended(n > 0 ? 0 : 100) : n > 0 && pays(saving));
    return total;
}

/* After the device has been stopped. Returns the number of bytes, or -1. */
static int64_t copy_stopped(const struct saving *saving)
{
    int64_t total = 0;
    struct stat is;
    ssize_t n;

    while ((n = copy_some(saving, false)) > 0)
        total += n;
    if (n < 0)
        return -1;
    if (fstat(saving->file->fd, &is) == 0 && S_ISREG(is.st_mode))
        while (fsync(saving->file->fd) < 0)
            if (errno != EINTR || interrupted)
                return failed(saving->file, "%s has not arrived", saving->file->path);
    return total;
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int copy_out(struct saving *saving, bool wait)
{
    struct device *device = saving->device;
    bool pre_copy = device->original == VFIO_DEVICE_STATE_RUNNING && device->flags & VFIO_MIGRATION_PRE_COPY;
    int64_t running = 0, stopped;
    double begin;

    if (pre_copy) {
        if (set_state(device, VFIO_DEVICE_STATE_PRE_COPY, &saving->session) < 0)
            return -1;
        running = copy_running(saving, wait);
        if (running < 0)
            return -1;
    } else if (wait) {
        while (!has_input_ended(-1))
            if (interrupted)
                return failed(NULL, "interrupted");
    }
    begin = now();
    if (set_state(device, VFIO_DEVICE_STATE_STOP_COPY, pre_copy ? NULL : &saving->session) < 0)
        return -1;
    stopped = copy_stopped(saving);
    if (stopped < 0)
        return -1;
    errno = 0;
    if (running + stopped == 0)
        return failed(NULL, "%s: its driver has given no data", device->name);
    if (set_state(device, VFIO_DEVICE_STATE_STOP, NULL) < 0)
        return -1;
    printf("%s: saved %lld bytes, %lld of them while it was running, the rest in %.1f ms\n", device->name,
           (long long)(running + stopped), (long long)running, (now() - begin) * 1e3);
    return 0;
}

/* Half a state is of no use. It is removed while it is open: closed, it would look like a whole one. */
static void remove_file(const struct file *file)
{
    struct stat open, named;

    if (fstat(file->fd, &open) == 0 && S_ISREG(open.st_mode) && stat(file->path, &named) == 0 &&
        open.st_dev == named.st_dev && open.st_ino == named.st_ino)
        unlink(file->path);
}

static int save(struct device *device, struct file *file, bool wait)
{
    struct saving saving = {.device = device, .file = file, .session = -1, .dirty = UINT64_MAX};
    int status;

    if (is_at_rest(device) < 0 || open_file(file, O_WRONLY | O_CREAT | O_TRUNC) < 0)
        return -1;
    status = copy_out(&saving, wait);
    if (status < 0) {
        begin_repair();
        if (bring_back(device) == 0)
            warnx("%s is %s again", device->name, state_name(device->original));
        else
            warnx("%s needs a reset, in which it loses its state", device->name);
        remove_file(file);
    }
    if (saving.session >= 0)
        close(saving.session);
    close(file->fd);
    return status;
}

/* ---- load ---- */

/* A file of a migration ends when it is closed at the source, whatever becomes of the rest. */
static int await_completion(const struct file *file)
{
    static const char word[] = "completed\n";
    char path[PATH_MAX + sizeof("/wait")];
    ssize_t n;

    if (!file->migration[0])
        return 0;
    snprintf(path, sizeof(path), "%s/wait", file->migration);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : failed(file, "%s", path);
    struct pollfd over = {.fd = fd, .events = POLLIN};
    if (poll(&over, 1, 0) == 0)
        warnx("waiting for the migration to complete");
    n = read_some(fd);
    int error = errno;
    close(fd);
    errno = error;
    if (n < 0)
        return failed(file, "%s", path);
    if (n == sizeof(word) - 1 && memcmp(buffer, word, (size_t)n) == 0)
        return 0;
    errno = 0;
    return failed(NULL, "the migration has not completed: %.*s", (int)strcspn(buffer, "\n"), buffer);
}

static int copy_in(const struct device *device, const struct file *file, int session)
{
    int64_t total = 0;
    ssize_t n;

    while ((n = read_some(file->fd)) > 0) {
        if (write_all(session, (size_t)n) < 0)
            return failed(NULL, "%s: writing its data", device->name);
        total += n;
    }
    if (n < 0)
        return failed(file, "reading %s", file->path);
    errno = 0;
    if (total == 0)
        return failed(NULL, "%s is empty", file->path);
    printf("%s: loaded %lld bytes\n", device->name, (long long)total);
    return 0;
}

static int load(struct device *device, struct file *file, bool wait, uint32_t final)
{
    int session = -1, status;

    if (is_at_rest(device) < 0 || open_file(file, O_RDONLY) < 0)
        return -1;
    status = set_state(device, VFIO_DEVICE_STATE_RESUMING, &session);
    if (status == 0)
        status = copy_in(device, file, session);
    if (status == 0 && wait)
        status = await_completion(file);
    /* The driver looks at what it has got when it leaves RESUMING. */
    if (status == 0)
        status = set_state(device, final, NULL);
    if (status < 0) {
        begin_repair();
        if (reset(device) == 0 && bring_back(device) == 0)
            warnx("%s has been reset and is %s", device->name, state_name(device->original));
    }
    if (session >= 0)
        close(session);
    close(file->fd);
    return status;
}

/* ---- The command line ---- */

static const char usage_text[] =
    "usage: vfio-copy save [-w] DEVICE FILE\n"
    "       vfio-copy load [-ns] DEVICE FILE\n"
    "       vfio-copy state DEVICE [running|stop]\n"
    "       vfio-copy reset DEVICE\n"
    "\n"
    "Moves the state of a VFIO device to or from a file, such as MOUNT/VM/device-state/NIC of migfs.\n"
    "\n"
    "DEVICE is one of\n"
    "  /dev/vfio/GROUP NAME  a device that nobody has open: 0000:3b:00.1, or a UUID\n"
    "  fd:N                  a descriptor of a device, inherited from whoever has it open\n"
    "\n"
    "  -w  save: stop the device only when standard input has ended\n"
    "  -n  load: do not wait for the migration to complete\n"
    "  -s  load: leave the device stopped\n"
    "\n"
    "A device that could not be saved goes on as before, one that could not be loaded is reset.\n";

static int __attribute__((noreturn)) usage(void)
{
    fputs(usage_text, stderr);
    exit(2);
}

static int show_or_set_state(const struct device *device, const char *word)
{
    if (!word)
        return puts(state_name(device->original)) < 0 || fflush(stdout) != 0 ? -1 : 0;
    return set_state(device, word[0] == 'r' ? VFIO_DEVICE_STATE_RUNNING : VFIO_DEVICE_STATE_STOP, NULL);
}

enum command { SAVE, LOAD, STATE, RESET, COMMANDS };

static const struct {
    const char *name;
    const char *options;
    int least, most; /* words after DEVICE */
} commands[] = {
    [SAVE] = {"save", "w", 1, 1},
    [LOAD] = {"load", "ns", 1, 1},
    [STATE] = {"state", "", 0, 1},
    [RESET] = {"reset", "", 0, 0},
};

int main(int argc, char **argv)
{
    bool wait_input = false, wait_migration = true;
    uint32_t final = VFIO_DEVICE_STATE_RUNNING;
    struct device device;
    struct file file = {.fd = -1};
    unsigned command = 0;
    int option, words, status = -1;

    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage_text, stdout);
        return 0;
    }
    while (argc > 1 && command < COMMANDS && strcmp(argv[1], commands[command].name) != 0)
        command++;
    if (argc < 2 || command == COMMANDS)
        usage();
    argc--;
    argv++;
    while ((option = getopt(argc, argv, commands[command].options)) != -1) {
        if (option == 'w')
            wait_input = true;
        else if (option == 'n')
            wait_migration = false;
        else if (option == 's')
            final = VFIO_DEVICE_STATE_STOP;
        else
            usage();
    }
    argc -= optind;
    argv += optind;
    words = name_device(&device, argc, argv);
    if (!words || argc - words < commands[command].least || argc - words > commands[command].most)
        usage();
    file.path = argv[words];
    if (command == STATE && file.path && strcmp(file.path, "running") && strcmp(file.path, "stop"))
        usage();

    handle_signals(interrupt);
    signal(SIGPIPE, SIG_IGN);
    if (open_device(&device, argv) < 0)
        return 1;
    if (command == SAVE)
        status = save(&device, &file, wait_input);
    else if (command == LOAD)
        status = load(&device, &file, wait_migration, final);
    else if (command == STATE)
        status = show_or_set_state(&device, file.path);
    else
        status = reset(&device);
    return status == 0 ? 0 : 1;
}
