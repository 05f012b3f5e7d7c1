/* Preloaded into a process by the tests of power cuts and I/O errors (LD_PRELOAD). It writes down, in their order, all
   changes that the process makes to files below $JOURNAL_ROOT, into the file $JOURNAL; and it fails the calls that the
   file $FAULTS tells it to, one a line: `read|write|meta|sync|list ERRNO END-OF-PATH`. disk_model.py reads the journal.

   A record is `struct record`, then the path and the data. Made and written under one lock, so that the order of records is that of the calls. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a commit of LMDB writes of its meta page. */
enum { META_BYTES = 120 };

enum { CREATE, MKDIR, WRITE, TRUNCATE, SYNC, FAILED_SYNC, RENAME, UNLINK };

struct record {
    uint32_t kind, path_bytes;
    uint64_t offset, data_bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...)                                        \
    static type (*real)(__VA_ARGS__);                                \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

/* --- which file ------------------------------------------------------------------------------------------------- */

static int path_of_fd(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static void path_at(int dirfd, const char *name, char *path) {
    path[0] = 0;
    if (name[0] != '/') {
        if (dirfd == AT_FDCWD ? !getcwd(path, PATH_MAX) : !path_of_fd(dirfd, path)) path[0] = 0;
        strncat(path, "/", PATH_MAX - 1 - strlen(path));
    }
    strncat(path, name, PATH_MAX - 1 - strlen(path));
}

static int journaled(const char *path) {
    const char *root = getenv("JOURNAL_ROOT");
    size_t length = root ? strlen(root) : 0;
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* --- what is told, and what is failed --------------------------------------------------------------------------- */

static void tell(uint32_t kind, const char *path, uint64_t offset, const struct iovec *data, int count, size_t bytes) {
    static int journal = -1;
    static char copy[1 << 24];
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC;
    if (journal < 0) journal = syscall(SYS_openat, AT_FDCWD, getenv("JOURNAL"), flags, 0600);
    struct record record = {kind, strlen(path), offset, bytes};
    size_t at = sizeof record + record.path_bytes;
    if (at + bytes > sizeof copy) abort();
    memcpy(copy, &record, sizeof record);
    memcpy(copy + sizeof record, path, record.path_bytes);
    for (int i = 0; i < count && bytes; i++) {
        size_t part = data[i].iov_len < bytes ? data[i].iov_len : bytes;
        memcpy(copy + at, data[i].iov_base, part);
        at += part, bytes -= part;
    }
    if (syscall(SYS_write, journal, copy, at) != (ssize_t)at) abort();
}

/* The error that this call is to fail with, 0 for none; errno stays. */
static int fault(const char *call, const char *path) {
    const char *faults = getenv("FAULTS");
    int before = errno, fd = faults ? syscall(SYS_openat, AT_FDCWD, faults, O_RDONLY | O_CLOEXEC, 0) : -1;
    errno = before;
    if (fd < 0) return 0;
    char text[4096], name[8], end[512], *line, *rest = text;
    ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    errno = before;
    text[length < 0 ? 0 : length] = 0;
    while ((line = strsep(&rest, "\n"))) {
        int number;
        if (sscanf(line, "%7s %d %511s", name, &number, end) == 3 && !strcmp(name, call) &&
            strlen(path) >= strlen(end) && !strcmp(path + strlen(path) - strlen(end), end))
            return number;
    }
    return 0;
}

#define FAIL(call, path)                          \
    do {                                          \
        int number = fault(call, path);           \
        if (number) return errno = number, -1;    \
    } while (0)

/* --- names ------------------------------------------------------------------------------------------------------ */

static int opened(int dirfd, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    path_at(dirfd, name, path);
    int known = (flags & O_CREAT) && journaled(path);
    if (known) pthread_mutex_lock(&lock);
    int fresh = known && faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW);
    int fd = syscall(SYS_openat, dirfd, name, flags, mode);
    if (known) {
        int number = errno;
        if (fd >= 0 && fresh) tell(CREATE, path, 0, NULL, 0, 0);
        pthread_mutex_unlock(&lock);
        errno = number;
    }
    return fd;
}

#define OPEN(name, dirfd)                                  \
    int name {                                                    \
        va_list rest;                                             \
        va_start(rest, flags);                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                             \
        return opened(dirfd, path, flags, mode);                  \
    }
OPEN(open(const char *path, int flags, ...), AT_FDCWD)
OPEN(open64(const char *path, int flags, ...), AT_FDCWD)
OPEN(openat(int dirfd, const char *path, int flags, ...), dirfd)
OPEN(openat64(int dirfd, const char *path, int flags, ...), dirfd)

/* Calls one that changes a name, and tells it when it did. */
#define NAMED(kind, path, other, call)                            \
    if (!journaled(path)) return call;                            \
    struct iovec data = {other, strlen(other)};                   \
    pthread_mutex_lock(&lock);                                    \
    int done = call, number = errno;                              \
    if (!done) tell(kind, path, 0, &data, 1, data.iov_len);       \
    pthread_mutex_unlock(&lock);                                  \
    return errno = number, done

int renameat(int olddirfd, const char *old, int newdirfd, const char *new) {
    char path[PATH_MAX], other[PATH_MAX];
    path_at(olddirfd, old, path), path_at(newdirfd, new, other);
    NAMED(RENAME, path, other, (int)syscall(SYS_renameat2, olddirfd, old, newdirfd, new, 0));
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int dirfd, const char *name, int flags) {
    char path[PATH_MAX];
    path_at(dirfd, name, path);
    NAMED(UNLINK, path, "", (int)syscall(SYS_unlinkat, dirfd, name, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dirfd, const char *name, mode_t mode) {
    char path[PATH_MAX];
    path_at(dirfd, name, path);
    NAMED(MKDIR, path, "", (int)syscall(SYS_mkdirat, dirfd, name, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* --- bytes ------------------------------------------------------------------------------------------------------ */

/* `offset` -1 is where the descriptor stands. */
static ssize_t written(int fd, const struct iovec *data, int count, off_t offset) {
    char path[PATH_MAX];
    int known = path_of_fd(fd, path);
    if (known) FAIL("write", path);
    if (known && count == 1 && data->iov_len == META_BYTES) FAIL("meta", path);
    known = known && journaled(path);
    if (known) pthread_mutex_lock(&lock);
    off_t at = known && offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    ssize_t done = offset < 0 ? syscall(SYS_writev, fd, data, count)
                              : syscall(SYS_pwritev, fd, data, count, offset, 0L);
    if (known) {
        int number = errno;
        if (done > 0) tell(WRITE, path, at, data, count, done);
        pthread_mutex_unlock(&lock);
        errno = number;
    }
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    struct iovec one = {(void *)data, bytes};
    return written(fd, &one, 1, -1);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    struct iovec one = {(void *)data, bytes};
    return written(fd, &one, 1, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) { return pwrite(fd, data, bytes, offset); }

ssize_t writev(int fd, const struct iovec *data, int count) { return written(fd, data, count, -1); }

int ftruncate(int fd, off_t length) {
    char path[PATH_MAX];
    if (!path_of_fd(fd, path)) path[0] = 0;
    if (!journaled(path)) return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_ftruncate, fd, length), number = errno;
    if (!done) tell(TRUNCATE, path, length, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return errno = number, done;
}

int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }

static int synced(int fd, long call) {
    char path[PATH_MAX];
    if (!path_of_fd(fd, path) || !journaled(path)) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    int number = fault("sync", path), done = number ? -1 : syscall(call, fd);
    if (!number) number = errno;
    tell(done ? FAILED_SYNC : SYNC, path, 0, NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return errno = number, done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

ssize_t read(int fd, void *data, size_t bytes) {
    char path[PATH_MAX];
    if (getenv("FAULTS") && path_of_fd(fd, path)) FAIL("read", path);
    return syscall(SYS_read, fd, data, bytes);
}

struct dirent64 *readdir64(DIR *folder) {
    char path[PATH_MAX];
    REAL(struct dirent64 *, readdir64, DIR *);
    if (getenv("FAULTS")) {
        int before = errno, number = path_of_fd(dirfd(folder), path) ? fault("list", path) : 0;
        errno = number ? number : before; /* which tells whether this is the folder's end or an error */
        if (number) return NULL;
    }
    return real(folder);
}
