/* SPDX-License-Identifier: Apache-2.0 */
/* A destination's memory: a memfd, a file on tmpfs, a file on hugetlbfs. */
#include "memory.h"
#include "check.h"
#include "cleanup.h"
#include "guard.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

TestSuite(memory, .init = scratch_make, .fini = scratch_remove);

#define LIMIT (1ull << 38)

static uint64_t blocks_of(const struct memory *mem)
{
    struct stat st;

    fstat(mem->fd, &st);
    return (uint64_t)st.st_blocks;
}

static uint64_t size_of(const struct memory *mem)
{
    struct stat st;

    fstat(mem->fd, &st);
    return (uint64_t)st.st_size;
}

static bool is_filled(const char *buf, size_t len, char c)
{
    for (size_t i = 0; i < len; i++) {
        if (buf[i] != c)
            return false;
    }
    return true;
}

/* What holds for every kind of memory. @page: the unit in which it is given back. */
static void check_memory(struct memory *mem, size_t page)
{
    char *buf = malloc(4 * page), *got = malloc(5 * page);
    struct error err;

    cr_expect(eq(long, memory_read(mem, 0, got, 10), 0), "it is empty at first");
    memset(buf, 'a', 4 * page);
    CHECK_OK(memory_write(mem, page + 3, buf, page, &err));
    cr_expect(ge(u64, size_of(mem), 2 * page + 3));
    cr_expect(eq(long, memory_read(mem, 0, got, 2 * page), (long)(2 * page)));
    cr_expect(is_filled(got, page + 3, 0), "a gap reads as zeros");
    cr_expect(is_filled(got + page + 3, page - 3, 'a'));

    /* It grows, and rewrites. */
    CHECK_OK(memory_write(mem, 0, buf, 4 * page, &err));
    memset(buf, 'b', page);
    CHECK_OK(memory_write(mem, page, buf, page, &err));
    CHECK_OK(memory_write(mem, 3 * page, buf, 0, &err));
    cr_expect(eq(long, memory_read(mem, 0, got, 4 * page), (long)(4 * page)));
    cr_expect(is_filled(got, page, 'a'));
    cr_expect(is_filled(got + page, page, 'b'));
    cr_expect(is_filled(got + 2 * page, 2 * page, 'a'));

    /* A hole reads as zeros, gives pages back, and keeps the size. */
    uint64_t before = blocks_of(mem), size = size_of(mem);
    CHECK_OK(memory_discard(mem, page, 2 * page, &err));
    cr_expect(lt(u64, blocks_of(mem), before));
    cr_expect(eq(u64, size_of(mem), size));
    memory_read(mem, 0, got, 4 * page);
    cr_expect(is_filled(got, page, 'a'));
    cr_expect(is_filled(got + page, 2 * page, 0));
    cr_expect(is_filled(got + 3 * page, page, 'a'));
    /* Unaligned: only what was asked for. */
    CHECK_OK(memory_discard(mem, page - 7, 4, &err));
    memory_read(mem, 0, got, page);
    cr_expect(is_filled(got, page - 7, 'a'));
    cr_expect(is_filled(got + page - 7, 4, 0));
    cr_expect(is_filled(got + page - 3, 3, 'a'));

    /* Smaller and larger again: what was cut off is gone. */
    CHECK_OK(memory_resize(mem, page, &err));
    cr_expect(eq(u64, size_of(mem), page));
    CHECK_OK(memory_resize(mem, 4 * page, &err));
    cr_expect(eq(u64, size_of(mem), 4 * page));
    memory_read(mem, 0, got, 4 * page);
    cr_expect(is_filled(got + page, 3 * page, 0));
    cr_expect(eq(long, memory_read(mem, 4 * page, got, 1), 0));
    cr_expect(eq(long, memory_read(mem, 3 * page, got, 2 * page), (long)page), "a read ends at the end");

    /* Somebody who maps it sees what is written later, and the other way round. */
    char *map = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd, 0);
    cr_assert(ne(ptr, map, MAP_FAILED));
    CHECK_OK(memory_write(mem, 2 * page + 5, "seen", 4, &err));
    cr_expect(zero(int, memcmp(map + 2 * page + 5, "seen", 4)));
    map[3 * page] = 'm';
    cr_expect(eq(long, memory_read(mem, 3 * page, got, 1), 1));
    cr_expect(eq(chr, got[0], 'm'));
    munmap(map, 4 * page);
    free(buf);
    free(got);
}

Test(memory, memfd)
{
    struct memory mem;
    struct error err;

    CHECK_OK(memory_init(&mem, NULL, "vm-1", LIMIT, &err));
    cr_expect(zero(ptr, mem.path));
    check_memory(&mem, 4096);
    memory_unlink(&mem);
    memory_fini(&mem, false);
}

Test(memory, memfd_with_the_longest_name)
{
    char name[256];
    struct memory mem;
    struct error err;

    memset(name, 'n', 255);
    name[255] = '\0';
    CHECK_OK(memory_init(&mem, NULL, name, LIMIT, &err));
    memory_fini(&mem, false);
}

/* A file system of the test's own, seen by nobody else. False: not allowed here. */
static bool mount_here(const char *type, const char *options)
{
    return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(type, scratch, type, 0, options) == 0;
}

Test(memory, backing_file)
{
    struct memory mem, other;
    struct error err;
    char path[128];
    struct stat st;

    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    snprintf(path, sizeof(path), "%s/vm-1", scratch);
    cr_expect(eq(str, mem.path, path));
    cr_assert(zero(int, stat(path, &st)));
    cr_expect(eq(uint, st.st_mode & 07777, 01600), "guest memory is nobody else's to read");
    CHECK_FAILS(memory_init(&other, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err), CAUSE_STATE);
    cr_expect(not(zero(ptr, strstr(err.message, path))), "it says which: %s", err.message);
    memory_fini(&mem, false);
    cr_expect(lt(int, stat(path, &st), 0), "removed with it");

    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    CHECK_OK(memory_finish(&mem, &err));
    memory_fini(&mem, true);
    cr_assert(zero(int, stat(path, &st)), "unless it is to be kept");
    cr_expect(eq(uint, st.st_mode & 07777, 0600));
    CHECK_FAILS(memory_init(&other, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err), CAUSE_EXISTS);
}

/* What somebody else does to the file. */
Test(memory, checked)
{
    struct memory mem;
    struct error err = {0};
    char path[128];

    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", 1 << 20, &err));
    snprintf(path, sizeof(path), "%s/vm-1", scratch);
    CHECK_OK(memory_check(&mem, &err));
    CHECK_OK(memory_write(&mem, 4096, "abcd", 4, &err));
    CHECK_OK(memory_check(&mem, &err));
    cr_assert(zero(int, truncate(path, 4099)));
    CHECK_FAILS(memory_check(&mem, &err), CAUSE_IO);
    cr_expect(not(zero(ptr, strstr(err.message, path))), "it says which: %s", err.message);
    cr_assert(zero(int, truncate(path, 8192)));
    CHECK_OK(memory_check(&mem, &err));

    /* What was only longer for a while was never ours. */
    cr_assert(zero(int, truncate(path, 4100)));
    CHECK_OK(memory_check(&mem, &err));
    memory_stored(&mem, 4101);
    CHECK_FAILS(memory_check(&mem, &err), CAUSE_IO);
    CHECK_OK(memory_resize(&mem, 100, &err));
    CHECK_OK(memory_check(&mem, &err));

    cr_assert(zero(int, unlink(path)));
    CHECK_FAILS(memory_check(&mem, &err), CAUSE_IO);
    cr_expect(not(zero(ptr, strstr(err.message, path))), "it says which: %s", err.message);
    close(open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
    CHECK_FAILS(memory_check(&mem, &err), CAUSE_IO);
    memory_fini(&mem, false);
    cr_expect(zero(int, access(path, F_OK)), "the file of somebody else is left alone");
}

/* After memory_unlink() the name is free, and memory_fini() does not take away the file of a successor. */
Test(memory, unlink_then_another_of_the_name)
{
    struct memory mem, successor;
    struct error err;
    char path[128], got[5] = "";
    struct stat st;

    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    CHECK_OK(memory_write(&mem, 0, "old", 4, &err));
    memory_unlink(&mem);
    CHECK_OK(memory_init(&successor, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    cr_expect(eq(long, memory_read(&mem, 0, got, 4), 4), "who has it open keeps it");
    cr_expect(eq(str, got, "old"));
    memory_fini(&mem, false);
    snprintf(path, sizeof(path), "%s/vm-1", scratch);
    cr_expect(zero(int, stat(path, &st)));
    memory_fini(&successor, false);
}

Test(memory, no_directory)
{
    char path[128];
    struct memory mem;
    struct error err = {0};

    snprintf(path, sizeof(path), "%s/missing", scratch);
    cr_expect(lt(int, memory_init(&mem, &(struct memory_place){.directory = path}, "vm-1", LIMIT, &err), 0));
    cr_expect(ne(str, err.message, ""));
}

Test(memory, tmpfs)
{
    struct memory mem;
    struct error err;

    if (!mount_here("tmpfs", "size=64m"))
        cr_skip_test("tmpfs cannot be mounted: %s", strerror(errno));
    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    cr_expect(eq(u64, mem.block, 0));
    check_memory(&mem, 4096);
    memory_fini(&mem, false);
    umount(scratch);
}

Test(memory, full_file_system_is_an_error)
{
    struct memory mem;
    struct error err;
    char *buf = calloc(1, 1 << 20);

    if (!mount_here("tmpfs", "size=256k"))
        cr_skip_test("tmpfs cannot be mounted: %s", strerror(errno));
    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    CHECK_FAILS(memory_write(&mem, 0, buf, 1 << 20, &err), CAUSE_NO_SPACE);
    CHECK_OK(memory_discard(&mem, 0, 1 << 20, &err));
    CHECK_OK(memory_write(&mem, 0, buf, 1 << 16, &err));
    memory_fini(&mem, false);
    umount(scratch);
    free(buf);
}

/*
 * The window
 */

Test(memory, window)
{
    struct memory mem, small;
    struct error err;
    char got[8];

    CHECK_OK(memory_init(&mem, NULL, "vm-1", 1 << 20, &err));
    cr_expect(zero(ptr, memory_window(&mem, 0, (1 << 20) + 1)), "not past the limit");
    cr_expect(zero(ptr, memory_window(&mem, 1 << 20, 1)));
    cr_expect(zero(ptr, memory_window(&mem, UINT64_MAX, 1)));
    cr_expect(zero(ptr, memory_window(&mem, 1, SIZE_MAX)));
    CHECK_OK(memory_write(&mem, 8192, "before", 7, &err));
    cr_expect(zero(ptr, memory_window(&mem, 8192, 8)), "not past the end of the file");
    char *window = memory_window(&mem, 8192, 7);
    cr_assert(not(zero(ptr, window)));
    cr_expect(eq(str, window, "before"));
    memcpy(window, "after!", 7);
    cr_expect(eq(long, memory_read(&mem, 8192, got, 7), 7));
    cr_expect(eq(str, got, "after!"));
    CHECK_OK(memory_write(&mem, (1 << 20) - 1, "x", 1, &err));
    cr_expect(eq(ptr, memory_window(&mem, (1 << 20) - 1, 1), (void *)(window - 8192 + (1 << 20) - 1)));
    CHECK_OK(memory_resize(&mem, 8192, &err));
    cr_expect(zero(ptr, memory_window(&mem, 8192, 7)), "cut off");
    CHECK_OK(memory_resize(&mem, 1 << 20, &err));
    cr_expect(eq(ptr, memory_window(&mem, 8192, 7), (void *)window));
    memory_populate(&mem, 0, 1 << 20);
    memory_populate(&mem, 1 << 20, 4096);
    memory_fini(&mem, false);

    CHECK_OK(memory_init(&small, NULL, "vm-1", 0, &err));
    cr_expect(zero(ptr, memory_window(&small, 0, 1)), "there may be none");
    memory_fini(&small, false);
}

static void touch(void *arg)
{
    *(volatile char *)arg = 'x';
}

static long faults(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
}

/* Pages that are there can be written after memory_map() without a fault for each, wherever they begin. */
Test(memory, map)
{
    enum { PAGES = 256 };
    static char pages[PAGES * 4096];
    struct memory mem;
    struct error err;

    for (size_t start = 0; start < sizeof(pages); start += 20 * 4096) {
        CHECK_OK(memory_init(&mem, NULL, "vm-0", 2 * sizeof(pages), &err));
        CHECK_OK(memory_write(&mem, 0, pages, sizeof(pages), &err));
        size_t len = sizeof(pages) - start;
        memory_map(&mem, start, len);
        memory_map(&mem, 2 * sizeof(pages), 4096); /* past the window: nothing */
        /* By the kernel and behind the libraries' back: a sanitizer would have faults of its own. */
        CLEANUP_FD int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
        long before = faults();
        cr_assert(eq(long, syscall(SYS_read, zero, memory_window(&mem, start, len), len), (long)len));
        cr_expect(lt(long, faults() - before, 8), "from %zu", start);
        memory_fini(&mem, false);
    }
}

Test(memory, guard)
{
    struct memory mem;
    struct error err;
    char got;

    guard_setup();
    CHECK_OK(memory_init(&mem, NULL, "vm-1", LIMIT, &err));
    CHECK_OK(memory_write(&mem, 8191, "y", 1, &err));
    char *window = memory_window(&mem, 0, 8192);
    cr_expect(zero(int, guard_call(touch, window + 5)));
    cr_expect(zero(int, guard_call(touch, window + 5)));
    memory_read(&mem, 5, &got, 1);
    cr_expect(eq(chr, got, 'x'));
    CHECK_OK(memory_resize(&mem, 0, &err));
    cr_expect(eq(int, guard_call(touch, window + 5), -EFAULT), "truncated away");
    memory_fini(&mem, false);
}

Test(memory, guard_again_and_again)
{
    struct memory mem;
    struct error err;

    guard_setup();
    CHECK_OK(memory_init(&mem, NULL, "vm-1", LIMIT, &err));
    CHECK_OK(memory_write(&mem, 4095, "y", 1, &err));
    char *window = memory_window(&mem, 0, 4096);
    for (int i = 0; i < 100; i++) {
        cr_expect(zero(int, guard_call(touch, window + 5)));
        cr_expect(eq(int, guard_call(touch, window + 4096), -EFAULT), "past the end of the file");
    }
    memory_fini(&mem, false);
}

/* A SIGBUS that is nobody's guard still kills. */
Test(memory, sigbus_without_a_guard, .signal = SIGBUS)
{
    struct memory mem;
    struct error err;

    guard_setup();
    CHECK_OK(memory_init(&mem, NULL, "vm-1", LIMIT, &err));
    CHECK_OK(memory_write(&mem, 0, "y", 1, &err));
    char *window = memory_window(&mem, 0, 1);
    CHECK_OK(memory_resize(&mem, 0, &err));
    scratch_remove(); /* what is killed has no .fini */
    touch(window);
}

/*
 * hugetlbfs
 */

#define HUGE_PAGES     "/proc/sys/vm/nr_hugepages"
#define HUGE_PAGE_SIZE (2u << 20)

static int read_huge_pages(void)
{
    FILE *f = fopen(HUGE_PAGES, "re");
    int n = -1;

    if (f && fscanf(f, "%d", &n) != 1)
        n = -1;
    if (f)
        fclose(f);
    return n;
}

static void write_huge_pages(int n)
{
    FILE *f = fopen(HUGE_PAGES, "we");

    if (f) {
        fprintf(f, "%d\n", n);
        fclose(f);
    }
}

static int huge_pages_before = -1;

/* Tests run at the same time, and there is one number for all of them. */
static int wait_for_others(void)
{
    int fd = open("/tmp/migfs-test-huge-pages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666);

    if (fd >= 0)
        flock(fd, LOCK_EX);
    return fd;
}

static int others = -1;

static void reserve_huge_pages(void)
{
    scratch_make();
    guard_setup();
    others = wait_for_others();
    huge_pages_before = read_huge_pages();
    if (huge_pages_before >= 0)
        write_huge_pages(huge_pages_before + 8);
}

static void give_back_huge_pages(void)
{
    umount2(scratch, MNT_DETACH);
    if (huge_pages_before >= 0)
        write_huge_pages(huge_pages_before);
    if (others >= 0)
        close(others);
    scratch_remove();
}

static void need_huge_pages(void)
{
    if (huge_pages_before < 0 || read_huge_pages() < huge_pages_before + 8)
        cr_skip_test("8 huge pages cannot be reserved");
    if (!mount_here("hugetlbfs", "pagesize=2M,size=16M"))
        cr_skip_test("hugetlbfs cannot be mounted: %s", strerror(errno));
}

TestSuite(hugetlbfs, .init = reserve_huge_pages, .fini = give_back_huge_pages);

Test(hugetlbfs, memory)
{
    struct memory mem;
    struct error err;

    need_huge_pages();
    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    cr_expect(eq(u64, mem.block, HUGE_PAGE_SIZE));
    cr_expect(zero(ptr, memory_window(&mem, 0, 1)));
    check_memory(&mem, HUGE_PAGE_SIZE);
    memory_fini(&mem, false);
}

Test(hugetlbfs, sizes_are_rounded_up)
{
    struct memory mem;
    struct error err;
    char got[8];

    need_huge_pages();
    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    CHECK_OK(memory_resize(&mem, 1, &err));
    cr_expect(eq(u64, size_of(&mem), HUGE_PAGE_SIZE));
    CHECK_OK(memory_resize(&mem, HUGE_PAGE_SIZE + 1, &err));
    cr_expect(eq(u64, size_of(&mem), 2 * HUGE_PAGE_SIZE));
    CHECK_OK(memory_write(&mem, 2 * HUGE_PAGE_SIZE - 2, "abcd", 4, &err));
    cr_expect(eq(u64, size_of(&mem), 3 * HUGE_PAGE_SIZE));
    cr_expect(eq(long, memory_read(&mem, 2 * HUGE_PAGE_SIZE - 2, got, 4), 4));
    cr_expect(zero(int, memcmp(got, "abcd", 4)));
    memory_fini(&mem, false);
}

Test(hugetlbfs, too_few_pages_are_an_error)
{
    struct memory mem;
    struct error err;

    need_huge_pages();
    CHECK_OK(memory_init(&mem, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    CHECK_FAILS(memory_resize(&mem, 1ull << 40, &err), CAUSE_NO_SPACE);
    CHECK_OK(memory_write(&mem, 0, "still usable", 12, &err));
    CHECK_FAILS(memory_write(&mem, 100ull << 30, "x", 1, &err), CAUSE_NO_SPACE);
    memory_fini(&mem, false);
}

/*
 * Many threads
 */

#define THREADS 4
#define PIECE   10000

static struct memory shared;
static atomic_bool failed;

static void *write_mine(void *arg)
{
    uintptr_t id = (uintptr_t)arg;
    char buf[PIECE];

    memset(buf, (int)('a' + id), sizeof(buf));
    for (uint64_t i = 0; i < 200; i++) {
        if (memory_write(&shared, (i * THREADS + id) * PIECE, buf, PIECE, NULL) < 0)
            atomic_store(&failed, true);
    }
    return NULL;
}

static void check_threads(void)
{
    pthread_t threads[THREADS];
    char buf[PIECE];

    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, write_mine, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cr_expect(not(failed));
    for (uint64_t i = 0; i < 200 * THREADS; i++) {
        cr_assert(eq(long, memory_read(&shared, i * PIECE, buf, PIECE), PIECE));
        cr_assert(is_filled(buf, PIECE, (char)('a' + i % THREADS)));
    }
}

Test(memory, many_writers)
{
    struct error err;

    CHECK_OK(memory_init(&shared, NULL, "vm-1", LIMIT, &err));
    check_threads();
    memory_fini(&shared, false);
}

/* The mapping grows under the writers. */
Test(hugetlbfs, many_writers)
{
    struct error err;

    need_huge_pages();
    CHECK_OK(memory_init(&shared, &(struct memory_place){.directory = scratch}, "vm-1", LIMIT, &err));
    check_threads();
    memory_fini(&shared, false);
}
