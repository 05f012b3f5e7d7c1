/* Kills its own process at one write or sync of an LMDB file, so that a test can die inside a commit, exactly.

   Built as a shared object and preloaded (LD_PRELOAD). The file that KILL_AT names holds the order, "STAGE MOMENT N",
   and is looked for at each call until it is there: from then on calls of that stage are counted, and the N-th is
   fatal. STAGE is `pages` (the pages of a transaction), `sync`, `meta` (what makes them true), or `any` of these and
   whatever else is written; MOMENT is `before`, `half` (half of its bytes are written) or `after`. What was done is told
   in KILL_AT.done before death. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NAME "/data.mdb"
/* A commit writes a part of one of the two pages at the begin of the file. Whoever writes all of them makes no commit. */
#define META_PAGES_BYTES 8192
#define META_BYTES 4096
#define MOST_PARTS 1024 /* IOV_MAX */

static char stage[16], moment[16];
static long left;

static int is_index(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    ssize_t name = (ssize_t)sizeof NAME - 1;
    return length >= name && !memcmp(path + length - name, NAME, (size_t)name);
}

static void take_order(void) {
    const char *path = getenv("KILL_AT");
    FILE *order = path && !left ? fopen(path, "re") : NULL;
    if (order) {
        if (fscanf(order, "%15s %15s %ld", stage, moment, &left) != 3) abort();
        fclose(order);
    }
}

/* Whether the call of this stage that is about to be made is the fatal one. */
static int fatal(int fd, const char *called) {
    int saved = errno, found = 0;
    if (is_index(fd)) {
        take_order();
        if (left && (!strcmp(stage, "any") || !strcmp(stage, called))) found = --left == 0;
    }
    errno = saved;
    return found;
}

static int now(const char *which) { return !strcmp(moment, which); }

static void die(const char *called, size_t bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s.done", getenv("KILL_AT"));
    FILE *done = fopen(path, "we");
    if (!done) abort();
    fprintf(done, "%s %s %zu\n", called, moment, bytes);
    fclose(done);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    const char *called = at >= META_PAGES_BYTES ? "pages" : bytes < META_BYTES ? "meta" : "head";
    int last = fatal(fd, called);
    if (last && now("before")) die(called, 0);
    if (last && now("half")) die(called, (size_t)syscall(SYS_pwrite64, fd, data, bytes / 2, at));
    ssize_t written = syscall(SYS_pwrite64, fd, data, bytes, at);
    if (last) die(called, (size_t)written);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t at) { return pwrite(fd, data, bytes, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int last = fatal(fd, "pages");
    if (last && now("before")) die("pages", 0);
    if (last && now("half") && count <= MOST_PARTS) {
        struct iovec kept[MOST_PARTS];
        size_t bytes = 0;
        for (int at = 0; at < count; at++) bytes += parts[at].iov_len;
        size_t room = bytes / 2;
        for (int at = 0; at < count; at++) {
            kept[at] = parts[at];
            if (kept[at].iov_len > room) kept[at].iov_len = room;
            room -= kept[at].iov_len;
        }
        die("pages", (size_t)syscall(SYS_writev, fd, kept, count));
    }
    ssize_t written = syscall(SYS_writev, fd, parts, count);
    if (last) die("pages", (size_t)written);
    return written;
}

static int synced(int fd, long number) {
    int last = fatal(fd, "sync");
    if (last && !now("after")) die("sync", 0);
    int result = (int)syscall(number, fd);
    if (last) die("sync", 0);
    return result;
}

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int fsync(int fd) { return synced(fd, SYS_fsync); }
