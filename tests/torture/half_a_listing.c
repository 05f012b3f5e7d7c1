/* Preloaded into a daemon: while the file HALF_IF is there, a listing of the folder HALF_OF ends after HALF_ENTRIES
 * entries with an input/output error, as that of a failing disk does. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_wanted(DIR *listing) {
    char path[64], folder[4096];
    const char *wanted = getenv("HALF_OF"), *condition = getenv("HALF_IF");
    if (!wanted || !condition || access(condition, F_OK) != 0)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", dirfd(listing));
    ssize_t length = readlink(path, folder, sizeof folder - 1);
    if (length < 0)
        return 0;
    folder[length] = 0;
    return strcmp(folder, wanted) == 0;
}

static int fails_after(DIR *listing) {
    static __thread DIR *last;
    static __thread long entries;
    const char *most = getenv("HALF_ENTRIES");
    if (!most || !is_wanted(listing))
        return 0;
    if (listing != last || telldir(listing) == 0) {
        last = listing;
        entries = 0;
    }
    return ++entries > atol(most);
}

struct dirent64 *readdir64(DIR *listing) {
    static struct dirent64 *(*next)(DIR *);
    if (!next)
        next = (struct dirent64 * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir64");
    int before = errno, fails = fails_after(listing);
    errno = fails ? EIO : before; /* at the end of a folder it tells whether that is the end or an error */
    if (fails)
        return NULL;
    return next(listing);
}

struct dirent *readdir(DIR *listing) {
    return (struct dirent *)readdir64((DIR *)listing);
}
