/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: mounts, listens, serves, and takes everything down again.
 *
 * Workers serve the requests; the main thread waits for a signal that asks the
 * daemon to stop, or for the end of the FUSE connection. Some operations block
 * until their migration ends, so it first fails what runs, and then lets the
 * workers finish.
 *
 * Exit status: 0; 1 when something failed; 2 when the command line is wrong; 32
 * when another mount is in the way.
 */
#include "cleanup.h"
#include "daemon.h"
#include "digest.h"
#include "guard.h"
#include "handle.h"
#include "listener.h"
#include "log.h"
#include "loop.h"
#include "mountpoint.h"
#include "node.h"
#include "ops.h"
#include "options.h"
#include "parking.h"
#include "polling.h"
#include "registry.h"
#include "tls.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

/* EXIT_MOUNT is mount(8)'s "mount failure". */
#define DRAIN_MS 10000 /* how long threads of migrations that are over may take to end */

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_MOUNT = 32 };

static void on_kick(int signal)
{
    (void)signal;
}

static sigset_t stop_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return set;
}

static void set_up_signals(void)
{
    sigset_t set = stop_signals();
    struct sigaction kick = {.sa_handler = on_kick};
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sigaction(SIGUSR1, &kick, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    /* A file size limit is an error of write(2), which is handled. */
    sigaction(SIGXFSZ, &ignore, NULL);
}

/* Every connection is a descriptor. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/*
 * How many of them peers may have. The others are for the workers (three each at most), for outgoing
 * migrations, and for connections that have not said what they are.
 */
static void bound_descriptors(struct limits *limits)
{
    struct rlimit limit = {.rlim_cur = 1024};

    getrlimit(RLIMIT_NOFILE, &limit);
    uint64_t all = limit.rlim_cur < UINT32_MAX ? limit.rlim_cur : UINT32_MAX;
    uint64_t reserve = 512 + all / 16 < 16384 ? 512 + all / 16 : 16384;
    if (reserve > all / 2)
        reserve = all / 2;
    limits->max_descriptors = (uint32_t)(all - reserve);
    limits->max_peer_descriptors = (uint32_t)((all - reserve) / 4 * 3);
}

static atomic_flag unmounting = ATOMIC_FLAG_INIT;

static int own_mount; /* constant, once it is mounted */

/* One that somebody else has unmounted: libfuse frees what it knows of a mount only when it unmounts that. */
static struct fuse_session *abandoned;

/*
 * Whether the caller is to take the mount away: it is the first one, and the mount is still there. After
 * umount -l, somebody else can be mounted there, whom we are not to take away.
 */
static bool may_unmount(const char *mountpoint)
{
    return !atomic_flag_test_and_set(&unmounting) &&
           (own_mount < 0 || mountpoint_id(mountpoint) == own_mount);
}

/* Whoever asks a second time does not want to wait: the mount is taken away, and nothing else. */
static void *fuse_hurry(void *arg)
{
    sigset_t set;
    int signal;

    pthread_setname_np(pthread_self(), "fuse-hurry");
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    while (sigwait(&set, &signal) != 0)
        ;
    log_error("told to end for the second time: ending at once");
    /* Not by libfuse, which closes the descriptor that the workers read. */
    if (may_unmount(arg))
        mountpoint_detach(arg);
    _exit(EXIT_FAILED);
}

/* Without the thread one waits for as long as it takes. */
static void watch_for_hurry(char *mountpoint)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_create(&thread, &attr, fuse_hurry, mountpoint);
    pthread_attr_destroy(&attr);
}

/* The files of TLS have changed. What cannot be read changes nothing. */
static void reload(struct tls *tls)
{
    struct error err = {0};

    if (tls_reload(tls, &err) < 0)
        log_error("the old certificates and keys stay: %s", err.message);
    else
        log_info("certificates and keys have been read again");
}

/* Until a signal asks the daemon to stop, or the mount is gone. */
static int await_end(int signal_fd, const struct loop *loop, struct tls *tls)
{
    struct signalfd_siginfo info = {0};
    struct pollfd fds[2] = {
        {.fd = signal_fd, .events = POLLIN},
        {.fd = loop_ended_fd(loop), .events = POLLIN},
    };

    for (;;) {
        if (poll(fds, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        /* It was the first one. */
        if (fds[0].revents && read(signal_fd, &info, sizeof(info)) < 0)
            return -errno;
        if (fds[1].revents || info.ssi_signo != SIGHUP || !tls)
            return 0;
        reload(tls);
    }
}

static int serve(const struct options *options, struct registry *registry, struct listener *listener,
                 struct fuse_session *se)
{
    struct error err = {0};
    struct loop *loop;
    sigset_t set = stop_signals();
    /* Before anything is served: a daemon that answers has all that it needs. */
    CLEANUP_FD int signal_fd = signalfd(-1, &set, SFD_CLOEXEC);

    if (signal_fd < 0) {
        log_error("cannot watch for signals: %s", strerror(errno));
        return EXIT_FAILED;
    }
    if (listener_start(listener, &err) < 0) {
        log_error("%s", err.message);
        return EXIT_FAILED;
    }
    int ret = parking_start();
    if (ret == 0) {
        ret = loop_start(se, &loop);
        if (ret < 0)
            parking_stop();
    }
    if (ret < 0) {
        log_error("cannot serve: %s", strerror(-ret));
        return EXIT_FAILED;
    }
    ret = await_end(signal_fd, loop, registry->host.tls);
    if (ret < 0)
        log_error("cannot watch for signals: %s", strerror(-ret));
    watch_for_hurry(options->mountpoint);
    /* What blocks in an operation fails now, and lets its worker go. */
    registry_shutdown(registry);
    int lost = loop_stop(loop);
    parking_stop();
    if (lost < 0)
        log_error("the FUSE connection: %s", strerror(-lost));
    return ret < 0 || lost < 0 ? EXIT_FAILED : 0;
}

/* Between the mount and its end. */
static int run(const struct options *options, struct registry *registry, struct listener *listener,
               struct fuse_session *se)
{
    /* Before the mount: who waits for that can then read where the daemon listens. */
    for (unsigned i = 0; listener_address(listener, i); i++)
        log_info("listening at %s", listener_address(listener, i));
    if (fuse_session_mount(se, options->mountpoint) != 0)
        return EXIT_FAILED;
    own_mount = mountpoint_id(options->mountpoint);
    log_info("mounted at %s", options->mountpoint);
    if (daemon_ready() < 0) {
        log_error("cannot go into the background: %s", strerror(errno));
        fuse_session_unmount(se);
        return EXIT_FAILED;
    }
    if (!options->foreground)
        log_to_journal();
    int ret = serve(options, registry, listener, se);
    registry_shutdown(registry);
    if (may_unmount(options->mountpoint))
        fuse_session_unmount(se);
    else
        abandoned = se;
    return ret;
}

/* *@out stays NULL when it is not asked for. */
static int start_tls(const struct options *options, struct tls **out, struct error *err)
{
    struct tls_config config = {
        .directory = options->tls_directory,
        .keys = options->tls_keys,
        .lets_in = options->tls_lets_in,
    };

    for (unsigned i = 0; i < options->uri_count; i++)
        config.serves |= options->uris[i].inner != URI_UNIX;
    return config.directory || config.keys ? tls_new(&config, out, err) : 0;
}

static int start(struct fuse_args *args, const struct options *options)
{
    struct limits limits = options->limits;
    struct registry registry;
    struct listener *listener = NULL;
    struct error err = {0};
    int ret = EXIT_FAILED;

    if (!options->foreground && daemon_begin() < 0) {
        fprintf(stderr, "migfs: cannot go into the background: %s\n", strerror(errno));
        return EXIT_FAILED;
    }
    set_up_signals();
    guard_setup();
    raise_descriptor_limit();
    bound_descriptors(&limits);
    registry_init(&registry, &limits, poll_changed);
    registry.host.splices = loop_can_splice();
    struct fuse_session *se = fuse_session_new(args, &ops_table, sizeof(ops_table), &registry);
    if (!se) {
        fprintf(stderr, "migfs: see migfs -h for the options\n");
        ret = EXIT_USAGE;
    } else if (start_tls(options, &registry.host.tls, &err) < 0) {
        fprintf(stderr, "migfs: %s\n", err.message);
    } else if (listener_new(&registry, options->uris, options->uri_count, &listener, &err) < 0) {
        fprintf(stderr, "migfs: %s\n", err.message);
    } else {
        ret = run(options, &registry, listener, se);
    }
    poll_forget_all();
    handle_free_all();
    node_forget_all();
    listener_free(listener);
    if (!registry_drain(&registry, DRAIN_MS)) {
        log_error("not all migrations have ended within %d s: leaving them", DRAIN_MS / 1000);
        _exit(EXIT_FAILED);
    }
    struct tls *tls = registry.host.tls;
    registry_fini(&registry);
    tls_free(tls);
    /* Last: until here somebody could be told about a poll. */
    if (se != abandoned)
        fuse_session_destroy(se);
    return ret;
}

static int print_digest(const char *path)
{
    uint8_t digest[DIGEST_SIZE];
    char text[DIGEST_TEXT];
    int ret = digest_path(path, digest);

    if (ret < 0) {
        fprintf(stderr, "migfs: %s: %s\n", path, strerror(-ret));
        return EXIT_FAILED;
    }
    digest_text(digest, text);
    printf("%s  %s\n", text, path);
    return 0;
}

/* The options that libfuse gets from us. */
static int add_options(struct fuse_args *args, const struct options *options)
{
    CLEANUP_FREE char *text = NULL, *source = NULL;

    if (asprintf(&source, "fsname=%s", options->source && *options->source ? options->source : "migfs") < 0) {
        source = NULL;
        return -ENOMEM;
    }
    if (fuse_opt_add_opt(&text, "default_permissions") < 0 || fuse_opt_add_opt(&text, "subtype=migfs") < 0 ||
        fuse_opt_add_opt_escaped(&text, source) < 0 || fuse_opt_add_arg(args, "-o") < 0)
        return -ENOMEM;
    return fuse_opt_add_arg(args, text) < 0 ? -ENOMEM : 0;
}

/* Says what is wrong with the command line, or with the place. */
static int refuse(const struct error *err)
{
    fprintf(stderr, "migfs: %s\n", err->message);
    return err->cause == CAUSE_STATE || err->cause == CAUSE_UNSUPPORTED ? EXIT_MOUNT : EXIT_USAGE;
}

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    struct options options;
    struct error err = {0};
    char *absolute;
    int ret = 0;

    if (options_parse(&args, &options, &err) < 0) {
        ret = refuse(&err);
    } else if (options.help) {
        options_help(argv[0]);
    } else if (options.version) {
        printf("migfs %s, protocol %d, libfuse %s, %s RDMA, %s TLS\n", MIGFS_VERSION, WIRE_VERSION,
               fuse_pkgversion(), transport_has_rdma ? "with" : "without",
               transport_has_tls ? "with" : "without");
    } else if (options.digest) {
        ret = print_digest(options.digest);
    } else if (mountpoint_claim(options.mountpoint, options.stack, &absolute, &err) < 0) {
        ret = refuse(&err);
    } else if (add_options(&args, &options) < 0) {
        ret = EXIT_FAILED;
    } else {
        free(options.mountpoint);
        options.mountpoint = absolute;
        ret = start(&args, &options);
    }
    fuse_opt_free_args(&args);
    options_fini(&options);
    return ret;
}
