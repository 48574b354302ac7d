/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line; see options.h.
 *
 * `-o listen=URI,URI`: libfuse splits the argument of -o at commas, so an option
 * that begins like a URI belongs to the list. The mount point is the last word;
 * mount(8) puts a source in front of it. That is the name that the mount gets:
 * `mount -a` sees by it what is mounted already.
 */
#include "options.h"
#include "cleanup.h"
#include "mountpoint.h"
#include "setting.h"
#include "tls.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_WRITE_BEHIND   (16ull << 20)
#define DEFAULT_TIMEOUT_MS     30000
#define DEFAULT_MAX_MIGRATIONS 256
#define DEFAULT_MAX_OUTGOING   256
/* A thread and 1.3 MiB each. */
#define DEFAULT_MAX_CHANNELS 1024
/* One peer's share of a small number of migrations is no less than this. */
#define MIN_PEER_MIGRATIONS 16
#define DEFAULT_MAX_DEVICES 1024

struct parser {
    struct options *options;
    struct error *err;
    unsigned words;
};

enum key {
    KEY_UID,
    KEY_GID,
    KEY_UMASK,
    KEY_SOURCE,
    KEY_STACK,
    KEY_REMOUNT,
    KEY_LISTEN,
    KEY_BACKING,
    KEY_HUGE_PAGES,
    KEY_PREALLOCATE,
    KEY_EXPECT,
    KEY_TLS,
    KEY_TLS_KEYS,
    KEY_TLS_LETS_IN,
    KEY_INSECURE,
    KEY_LIMIT,
    KEY_HELP,
    KEY_VERSION,
    KEY_FOREGROUND,
    KEY_DEBUG,
    KEY_DIGEST
};

static const struct fuse_opt templates[] = {
    FUSE_OPT_KEY("listen=", KEY_LISTEN),
    FUSE_OPT_KEY("backing=", KEY_BACKING),
    FUSE_OPT_KEY("uid=", KEY_UID),
    FUSE_OPT_KEY("gid=", KEY_GID),
    FUSE_OPT_KEY("umask=", KEY_UMASK),
    FUSE_OPT_KEY("fsname=", KEY_SOURCE),
    FUSE_OPT_KEY("stack", KEY_STACK),
    FUSE_OPT_KEY("remount", KEY_REMOUNT),
    /* What fstab says to mount(8), which does not always keep it to itself. */
    FUSE_OPT_KEY("defaults", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("auto", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("noauto", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("user", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("user=", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nouser", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("users", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nousers", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("owner", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("noowner", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("group", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nogroup", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("_netdev", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nofail", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("comment=", FUSE_OPT_KEY_DISCARD),
    /* Times mean nothing here, and nothing else of this does; libfuse knows none of them. */
    FUSE_OPT_KEY("relatime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("norelatime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("diratime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nodiratime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("strictatime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nostrictatime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("lazytime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nolazytime", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("silent", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("loud", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("iversion", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("noiversion", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("mand", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("nomand", FUSE_OPT_KEY_DISCARD),
    FUSE_OPT_KEY("hugepages=", KEY_HUGE_PAGES),
    FUSE_OPT_KEY("preallocate", KEY_PREALLOCATE),
    FUSE_OPT_KEY("expect", KEY_EXPECT),
    FUSE_OPT_KEY("tls=", KEY_TLS),
    FUSE_OPT_KEY("tls-psk=", KEY_TLS_KEYS),
    FUSE_OPT_KEY("tls-authz=", KEY_TLS_LETS_IN),
    FUSE_OPT_KEY("insecure", KEY_INSECURE),
    FUSE_OPT_KEY("max-memory=", KEY_LIMIT),
    FUSE_OPT_KEY("max-ram=", KEY_LIMIT),
    FUSE_OPT_KEY("max-device=", KEY_LIMIT),
    FUSE_OPT_KEY("max-devices=", KEY_LIMIT),
    FUSE_OPT_KEY("max-migrations=", KEY_LIMIT),
    FUSE_OPT_KEY("max-outgoing=", KEY_LIMIT),
    FUSE_OPT_KEY("max-channels=", KEY_LIMIT),
    FUSE_OPT_KEY("max-peer-migrations=", KEY_LIMIT),
    FUSE_OPT_KEY("max-peer-channels=", KEY_LIMIT),
    FUSE_OPT_KEY("max-peer-memory=", KEY_LIMIT),
    FUSE_OPT_KEY("max-bandwidth=", KEY_LIMIT),
    FUSE_OPT_KEY("write-behind=", KEY_LIMIT),
    FUSE_OPT_KEY("timeout=", KEY_LIMIT),
    FUSE_OPT_KEY("-h", KEY_HELP),
    FUSE_OPT_KEY("--help", KEY_HELP),
    FUSE_OPT_KEY("-V", KEY_VERSION),
    FUSE_OPT_KEY("--version", KEY_VERSION),
    FUSE_OPT_KEY("-f", KEY_FOREGROUND),
    FUSE_OPT_KEY("--digest=", KEY_DIGEST),
    FUSE_OPT_KEY("-d", KEY_DEBUG),
    FUSE_OPT_END,
};

static int parse_limit(struct parser *parser, const char *arg)
{
    struct limits *limits = &parser->options->limits;
    const char *value = strchr(arg, '=') + 1;
    size_t name = (size_t)(value - arg - 1);
    uint64_t number = 0;

    if (setting_parse_size(value, &number, parser->err) < 0) {
        error_prefix(parser->err, "%.*s", (int)name, arg);
        return -1;
    }
    struct {
        const char *name;
        uint64_t min, max;
        uint64_t *wide;
        uint32_t *narrow;
        uint32_t factor;
    } table[] = {
        {"max-memory", 0, UINT64_MAX, &limits->max_memory, NULL, 1},
        {"max-ram", 0, UINT64_MAX, &limits->max_ram, NULL, 1},
        {"max-device", 0, UINT64_MAX, &limits->max_device, NULL, 1},
        {"max-devices", 0, WIRE_DEVICES_MAX, NULL, &limits->max_devices, 1},
        {"max-migrations", 1, 65536, NULL, &limits->max_migrations, 1},
        {"max-outgoing", 1, 65536, NULL, &limits->max_outgoing, 1},
        {"max-channels", 1, 65536, NULL, &limits->max_channels, 1},
        {"max-peer-migrations", 1, 65536, NULL, &limits->max_peer_migrations, 1},
        {"max-peer-channels", 1, 65536, NULL, &limits->max_peer_channels, 1},
        {"max-peer-memory", 1, UINT64_MAX, &limits->max_peer_memory, NULL, 1},
        {"max-bandwidth", 0, UINT64_MAX, &limits->max_bandwidth, NULL, 1},
        {"write-behind", 0, UINT64_MAX, &limits->write_behind, NULL, 1},
        {"timeout", 1, 3600, NULL, &limits->timeout_ms, 1000},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strlen(table[i].name) != name || strncmp(table[i].name, arg, name))
            continue;
        if (number < table[i].min || number > table[i].max) {
            error_set(parser->err, CAUSE_SYNTAX, "%s is from %llu to %llu", table[i].name,
                      (unsigned long long)table[i].min, (unsigned long long)table[i].max);
            return -1;
        }
        if (table[i].wide)
            *table[i].wide = number;
        else
            *table[i].narrow = (uint32_t)number * table[i].factor;
    }
    return 0;
}

/* A listener's URI; the path of a socket may be relative to where the command is given. */
static int add_uri(struct parser *parser, const char *text)
{
    struct options *options = parser->options;
    char absolute[URI_MAX + PATH_MAX], cwd[PATH_MAX];

    if (!strncmp(text, "unix:", 5) && text[5] != '/' && text[5] && getcwd(cwd, sizeof(cwd))) {
        snprintf(absolute, sizeof(absolute), "unix:%s/%s", cwd, text + 5);
        text = absolute;
    }
    if (options->uri_count == LISTENER_URIS_MAX) {
        error_set(parser->err, CAUSE_SYNTAX, "at most %d listeners are possible", LISTENER_URIS_MAX);
        return -1;
    }
    return uri_parse(text, &options->uris[options->uri_count++], parser->err) < 0 ? -1 : 0;
}

static int set_backing(struct parser *parser, const char *path)
{
    struct options *options = parser->options;
    struct stat st;

    free(options->backing);
    options->backing = realpath(path, NULL);
    if (!options->backing || stat(options->backing, &st) < 0) {
        if (errno == ENOTCONN)
            mountpoint_blame(path, parser->err);
        else
            error_set_errno(parser->err, errno, "%s", path);
        error_prefix(parser->err, "backing");
        return -1;
    }
    if (!S_ISDIR(st.st_mode)) {
        error_set(parser->err, CAUSE_SYNTAX, "backing: %s: not a directory", path);
        return -1;
    }
    return 0;
}

/* A file that TLS reads again later, when the daemon is elsewhere. */
static int set_tls_path(struct parser *parser, const char *arg, char **out)
{
    const char *path = strchr(arg, '=') + 1;

    free(*out);
    *out = realpath(path, NULL);
    if (*out)
        return 0;
    error_set_errno(parser->err, errno, "%.*s: %s", (int)(path - arg - 1), arg, path);
    return -1;
}

/* Given more than once, it lets in whoever is meant by one of them. */
static int add_patterns(struct parser *parser, const char *patterns)
{
    char *old = parser->options->tls_lets_in, *all = NULL;

    if (asprintf(&all, "%s%s%s", old ? old : "", old ? ":" : "", patterns) < 0) {
        error_set(parser->err, CAUSE_NO_MEMORY, "out of memory");
        return -1;
    }
    free(old);
    parser->options->tls_lets_in = all;
    return 0;
}

/* no, yes (transparent ones), or a size of the kernel's pools. */
static int set_huge_pages(struct parser *parser, const char *text)
{
    struct memory_place *ram = &parser->options->limits.ram;
    uint64_t size = 0;

    ram->transparent = !strcmp(text, "yes");
    if (strcmp(text, "no") && strcmp(text, "yes")) {
        if (setting_parse_size(text, &size, parser->err) < 0) {
            error_prefix(parser->err, "hugepages");
            return -1;
        }
        char path[96];
        snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB",
                 (unsigned long long)size >> 10);
        if (size & (size - 1) || access(path, F_OK) < 0) {
            error_set(
                parser->err, CAUSE_SYNTAX,
                "hugepages=%.32s: no, yes, or a size that this kernel has: see /sys/kernel/mm/hugepages",
                text);
            return -1;
        }
    }
    ram->huge_page = size;
    return 0;
}

/* A number for a user or group that may have no name; -1 is no number of one. */
static int parse_id(const char *text, const char *what, id_t *out, struct error *err)
{
    char *end;

    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || value >= (id_t)-1) {
        error_set(err, CAUSE_SYNTAX, "'%.64s' is no %s", text, what);
        return -1;
    }
    *out = (id_t)value;
    return 0;
}

static int set_user(struct parser *parser, const char *text)
{
    const struct passwd *user = getpwnam(text);

    if (!user)
        return parse_id(text, "user", &parser->options->limits.owner.uid, parser->err);
    parser->options->limits.owner.uid = user->pw_uid;
    return 0;
}

static int set_group(struct parser *parser, const char *text)
{
    const struct group *group = getgrnam(text);

    if (!group)
        return parse_id(text, "group", &parser->options->limits.owner.gid, parser->err);
    parser->options->limits.owner.gid = group->gr_gid;
    return 0;
}

static int set_mask(struct parser *parser, const char *text)
{
    struct owner *owner = &parser->options->limits.owner;
    char *end;
    unsigned long value = strtoul(text, &end, 8);

    if (!isdigit((unsigned char)*text) || *end || value > 0777) {
        error_set(parser->err, CAUSE_SYNTAX, "umask=%.32s: an octal number up to 777, such as 027", text);
        return -1;
    }
    owner->masks = true;
    owner->mask = (mode_t)value;
    return 0;
}

static int set_source(struct options *options, char *source)
{
    free(options->source);
    options->source = source;
    return 0;
}

/* The last word is the mount point, and one before it is the source. */
static int add_word(struct parser *parser, const char *word)
{
    struct options *options = parser->options;

    if (++parser->words > 2) {
        error_set(parser->err, CAUSE_SYNTAX, "one mount point, please: '%.64s' is too much", word);
        return -1;
    }
    if (options->mountpoint && !options->source)
        set_source(options, steal_ptr(&options->mountpoint));
    free(options->mountpoint);
    options->mountpoint = strdup(word);
    return 0;
}

static int process(void *data, const char *arg, int key, struct fuse_args *out)
{
    struct parser *parser = data;
    struct options *options = parser->options;

    (void)out;
    switch (key) {
    case KEY_LISTEN:
        return add_uri(parser, arg + strlen("listen="));
    case KEY_BACKING:
        return set_backing(parser, arg + strlen("backing="));
    case KEY_UID:
        return set_user(parser, arg + strlen("uid="));
    case KEY_GID:
        return set_group(parser, arg + strlen("gid="));
    case KEY_UMASK:
        return set_mask(parser, arg + strlen("umask="));
    case KEY_SOURCE:
        return set_source(options, strdup(arg + strlen("fsname=")));
    case KEY_STACK:
        options->stack = true;
        return 0;
    case KEY_REMOUNT:
        error_set(parser->err, CAUSE_UNSUPPORTED,
                  "a mount of migfs cannot be changed: unmount it, and mount it with the new options");
        return -1;
    case KEY_HUGE_PAGES:
        return set_huge_pages(parser, arg + strlen("hugepages="));
    case KEY_PREALLOCATE:
        options->limits.preallocate = true;
        return 0;
    case KEY_EXPECT:
        options->limits.expect = true;
        return 0;
    case KEY_TLS:
        return set_tls_path(parser, arg, &options->tls_directory);
    case KEY_TLS_KEYS:
        return set_tls_path(parser, arg, &options->tls_keys);
    case KEY_TLS_LETS_IN:
        return add_patterns(parser, arg + strlen("tls-authz="));
    case KEY_INSECURE:
        options->limits.insecure = true;
        return 0;
    case KEY_LIMIT:
        return parse_limit(parser, arg);
    case KEY_HELP:
        options->help = true;
        return 0;
    case KEY_VERSION:
        options->version = true;
        return 0;
    case KEY_FOREGROUND:
        options->foreground = true;
        return 0;
    case KEY_DIGEST:
        free(options->digest);
        options->digest = strdup(strchr(arg, '=') + 1);
        return 0;
    case KEY_DEBUG:
        options->debug = options->foreground = true;
        return 1;
    case FUSE_OPT_KEY_NONOPT:
        return add_word(parser, arg);
    default:
        if (!strncasecmp(arg, "x-", 2))
            return 0; /* for whoever reads fstab */
        return uri_has_scheme(arg) ? add_uri(parser, arg) : 1;
    }
}

/*
 * What one peer may have, where nobody has said it: its own migrations, half of the channels, and all memory.
 */
static void fill_shares(struct limits *limits)
{
    uint32_t quarter = limits->max_migrations / 4, half = limits->max_channels / 2;

    if (!limits->max_peer_migrations)
        limits->max_peer_migrations = quarter < MIN_PEER_MIGRATIONS ? MIN_PEER_MIGRATIONS : quarter;
    if (!limits->max_peer_channels)
        limits->max_peer_channels = half < WIRE_CHANNELS_MAX ? WIRE_CHANNELS_MAX : half;
    if (!limits->max_peer_memory || limits->max_peer_memory > limits->max_memory)
        limits->max_peer_memory = limits->max_memory;
}

static int check_tls(const struct options *options, struct error *err)
{
    bool on = options->tls_directory || options->tls_keys;

    if (on && !transport_has_tls)
        return error_set(err, CAUSE_UNSUPPORTED, "this migfs is built without TLS");
    if (options->tls_directory && options->tls_keys)
        return error_set(err, CAUSE_SYNTAX, "tls=DIR and tls-psk=FILE exclude each other");
    if (options->tls_lets_in && !on)
        return error_set(err, CAUSE_SYNTAX, "tls-authz has no effect without tls=DIR or tls-psk=FILE");
    return 0;
}

int options_parse(struct fuse_args *args, struct options *out, struct error *err)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    struct parser parser = {.options = out, .err = err};

    *out = (struct options){
        .limits =
            {
                /* The rest is for everything else, and for page tables and the like. */
                .max_memory = memory / 4 * 3,
                .max_ram = UINT64_MAX,
                .max_device = UINT64_MAX,
                .max_devices = DEFAULT_MAX_DEVICES,
                .max_migrations = DEFAULT_MAX_MIGRATIONS,
                .max_outgoing = DEFAULT_MAX_OUTGOING,
                .max_channels = DEFAULT_MAX_CHANNELS,
                .write_behind = DEFAULT_WRITE_BEHIND,
                .timeout_ms = DEFAULT_TIMEOUT_MS,
                .owner = {.uid = getuid(), .gid = getgid()},
            },
    };
    if (fuse_opt_parse(args, &parser, templates, process) < 0)
        return error_set(err, CAUSE_SYNTAX, "the command line cannot be read");
    if (out->help || out->version || out->digest)
        return 0;
    struct limits *limits = &out->limits;
    if (limits->max_ram > limits->max_memory)
        limits->max_ram = limits->max_memory;
    if (limits->max_device > limits->max_memory)
        limits->max_device = limits->max_memory;
    fill_shares(limits);
    if (limits->max_bandwidth && limits->max_bandwidth < BANDWIDTH_MIN)
        return error_set(err, CAUSE_SYNTAX, "max-bandwidth is 1M bytes a second at least, or 0 for no bound");
    limits->ram.directory = out->backing;
    if (out->backing && limits->ram.huge_page)
        return error_set(err, CAUSE_SYNTAX,
                         "backing=DIR and hugepages=SIZE exclude each other: mount hugetlbfs at DIR");
    if (check_tls(out, err) < 0)
        return -EIO;
    if (!out->mountpoint)
        return error_set(err, CAUSE_SYNTAX, "where should it be mounted? See migfs -h");
    return 0;
}

void options_fini(struct options *options)
{
    free(options->backing);
    free(options->tls_directory);
    free(options->tls_keys);
    free(options->tls_lets_in);
    free(options->mountpoint);
    free(options->source);
    free(options->digest);
}

void options_help(const char *program)
{
    printf(
        "usage: %s [options] MOUNTPOINT\n"
        "\n"
        "    -f                     stay in the foreground, log to stderr\n"
        "    -h, -V                 this text, the version\n"
        "    --digest=FILE          print the digest of a local file, as 'digest' has it of received ones\n"
        "    -o listen=URI[,URI]    where migrations arrive: tcp:HOST:PORT, unix:PATH\n"
        "    -o tls=DIR             prove by certificates who this host is, and ask that of others; see\n"
        "                           migfs(1) for the names of the files\n"
        "    -o tls-psk=FILE        the same by keys that both hosts have: lines of USER:HEXKEY\n"
        "    -o tls-authz=PATTERN[:PATTERN]  of the names of those who may send migrations\n"
        "    -o insecure            listen where others reach it, or read it, without TLS\n"
        "    -o backing=DIR         keep the RAM of incoming migrations in files in DIR\n"
        "                           (tmpfs or hugetlbfs) instead of memfds\n"
        "    -o uid=USER, gid=GROUP who owns the root directory and incoming migrations\n"
        "    -o umask=MODE          what nobody may there, octal; what is left, all may\n"
        "    -o hugepages=WHICH     no; yes: transparent ones, where the kernel allows them for\n"
        "                           shared memory; or a size, such as 2M, of its reserved ones\n"
        "    -o preallocate         make the memory of incoming RAM ready before it arrives\n"
        "    -o expect              refuse migrations that nobody has made a directory for\n"
        "    -o max-memory=SIZE     of all incoming migrations together (default: 3/4 of this machine's)\n"
        "    -o max-ram=SIZE        of one incoming RAM image (default: max-memory)\n"
        "    -o max-device=SIZE     of one incoming device's state (default: max-memory)\n"
        "    -o max-devices=N       per migration (default: %d)\n"
        "    -o max-migrations=N    incoming, in all states (default: %d)\n"
        "    -o max-outgoing=N      made here, in all states (default: %d)\n"
        "    -o max-channels=N      of all incoming migrations together (default: %d)\n"
        "    -o max-peer-migrations=N, max-peer-channels=N, max-peer-memory=SIZE\n"
        "                           the same for those of one peer's address (default: a quarter,\n"
        "                           half, all)\n"
        "    -o max-bandwidth=SIZE  a second that all incoming migrations receive together (default: 0,\n"
        "                           no bound); each has a share by its weight\n"
        "    -o write-behind=SIZE   that a migration has accepted and not yet sent (default: %lluM)\n"
        "    -o timeout=SECONDS     after which a silent peer is given up (default: %d)\n"
        "    -o stack               mount even where migfs is mounted already\n"
        "    -o allow_other, ...    options of FUSE; see mount.fuse3(8)\n"
        "\n"
        "The files of the mount are described in migfs(5).\n",
        program, DEFAULT_MAX_DEVICES, DEFAULT_MAX_MIGRATIONS, DEFAULT_MAX_OUTGOING, DEFAULT_MAX_CHANNELS,
        DEFAULT_WRITE_BEHIND >> 20, DEFAULT_TIMEOUT_MS / 1000);
}
