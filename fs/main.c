/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: mounts, listens, serves, and takes everything down again.
 *
 * libfuse's loop runs in the main thread and its workers. It cannot end while a
 * worker is blocked in one of our operations, and nothing but the end of a
 * migration unblocks some of them. So the signals that ask the daemon to stop,
 * and the end of the FUSE connection, are watched by a thread of our own
 * ("mig-watch"; made and joined by main): it fails what runs, which lets the
 * workers go, and then ends the loop.
 *
 * Exit status: 0; 1 when something failed; 2 when the command line is wrong.
 */
#include "cleanup.h"
#include "digest.h"
#include "handle.h"
#include "host.h"
#include "listener.h"
#include "log.h"
#include "node.h"
#include "ops.h"
#include "options.h"
#include "polling.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#define WORKERS_MAX  2048 /* a blocked command, reader or writer takes one */
#define WORKERS_IDLE 16
#define KICK_MS      20

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct watch {
    struct host *host;
    struct fuse_session *se;
    pthread_t main_thread, thread;
    int signal_fd, stop_fd;
};

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

static void *mig_watch(void *arg)
{
    struct watch *watch = arg;
    /* Of the connection only its end is of interest, and poll(2) reports that unasked. */
    struct pollfd fds[3] = {
        {.fd = watch->stop_fd, .events = POLLIN},
        {.fd = watch->signal_fd, .events = POLLIN},
        {.fd = fuse_session_fd(watch->se), .events = 0},
    };
    int timeout = -1;

    for (;;) {
        if (poll(fds, 3, timeout) < 0 && errno != EINTR)
            return NULL;
        if (fds[0].revents)
            return NULL;
        if (timeout < 0 && (fds[1].revents || fds[2].revents)) {
            host_shutdown(watch->host);
            fuse_session_exit(watch->se);
            fds[1].fd = fds[2].fd = -1;
            timeout = KICK_MS;
        }
        /* The loop may be about to wait when it is kicked: once is not enough. */
        if (timeout > 0)
            pthread_kill(watch->main_thread, SIGUSR1);
    }
}

static int watch_start(struct watch *watch, struct host *host, struct fuse_session *se)
{
    sigset_t set = stop_signals();

    *watch = (struct watch){.host = host, .se = se, .main_thread = pthread_self()};
    watch->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    watch->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (watch->signal_fd < 0 || watch->stop_fd < 0)
        return -errno;
    int code = pthread_create(&watch->thread, NULL, mig_watch, watch);
    if (code)
        return -code;
    pthread_setname_np(watch->thread, "mig-watch");
    return 0;
}

static void watch_stop(struct watch *watch)
{
    eventfd_write(watch->stop_fd, 1);
    pthread_join(watch->thread, NULL);
    close(watch->stop_fd);
    close(watch->signal_fd);
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

static int serve(struct host *host, struct listener *listener, struct fuse_session *se)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    struct error err = {0};
    struct watch watch;

    if (listener_start(listener, &err) < 0) {
        log_error("%s", err.message);
        fuse_loop_cfg_destroy(config);
        return EXIT_FAILED;
    }
    int ret = watch_start(&watch, host, se);
    if (ret < 0) {
        log_error("cannot watch for signals: %s", strerror(-ret));
        fuse_loop_cfg_destroy(config);
        return EXIT_FAILED;
    }
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, WORKERS_MAX);
    fuse_loop_cfg_set_idle_threads(config, WORKERS_IDLE);
    ret = fuse_session_loop_mt(se, config);
    fuse_loop_cfg_destroy(config);
    watch_stop(&watch);
    if (ret < 0)
        log_error("the FUSE connection: %s", strerror(-ret));
    return ret < 0 ? EXIT_FAILED : 0;
}

/* Between the mount and its end. */
static int run(const struct options *options, struct host *host, struct listener *listener, struct fuse_session *se)
{
    /* Before the mount: who waits for that can then read where the daemon listens. */
    for (unsigned i = 0; listener_address(listener, i); i++)
        log_info("listening at %s", listener_address(listener, i));
    if (fuse_session_mount(se, options->mountpoint) != 0)
        return EXIT_FAILED;
    log_info("mounted at %s", options->mountpoint);
    if (fuse_daemonize(options->foreground) != 0) {
        fuse_session_unmount(se);
        return EXIT_FAILED;
    }
    if (!options->foreground)
        log_to_journal();
    int ret = serve(host, listener, se);
    host_shutdown(host);
    fuse_session_unmount(se);
    return ret;
}

static int start(struct fuse_args *args, const struct options *options)
{
    struct host host;
    struct listener *listener = NULL;
    struct error err = {0};
    int ret = EXIT_FAILED;

    set_up_signals();
    memory_guard_setup();
    raise_descriptor_limit();
    host_init(&host, &options->limits, poll_changed);
    struct fuse_session *se = fuse_session_new(args, &ops_table, sizeof(ops_table), &host);
    if (!se) {
        fprintf(stderr, "migfs: see migfs -h for the options\n");
        ret = EXIT_USAGE;
    } else if (listener_new(&host, options->uris, options->uri_count, &listener, &err) < 0) {
        fprintf(stderr, "migfs: %s\n", err.message);
    } else {
        ret = run(options, &host, listener, se);
    }
    handle_free_all();
    node_forget_all();
    listener_free(listener);
    host_drain(&host);
    host_fini(&host);
    /* Last: until here somebody could be told about a poll. */
    if (se)
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

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    struct options options;
    struct error err = {0};
    int ret = 0;

    if (options_parse(&args, &options, &err) < 0) {
        fprintf(stderr, "migfs: %s\n", err.message);
        ret = EXIT_USAGE;
    } else if (options.help) {
        options_help(argv[0]);
    } else if (options.version) {
        printf("migfs %s, protocol %d, libfuse %s\n", MIGFS_VERSION, WIRE_VERSION, fuse_pkgversion());
    } else if (options.digest) {
        ret = print_digest(options.digest);
    } else if (fuse_opt_add_arg(&args, "-odefault_permissions,subtype=migfs,fsname=migfs") < 0) {
        ret = EXIT_FAILED;
    } else {
        ret = start(&args, &options);
    }
    fuse_opt_free_args(&args);
    options_fini(&options);
    return ret;
}
