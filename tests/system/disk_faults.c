/* Makes writes and syncs of the files in one directory fail, while a control file says so. For LD_PRELOAD; see disk.py.

   DISK_FAULTS_CONTROL names the control file. Its content is "write ERRNO" or "sync ERRNO", ERRNO as a number. A write
   that fails has written nothing, a sync that fails has synced nothing. DISK_FAULTS_UNDER is the directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *what, int descriptor)
{
    const char *control = getenv("DISK_FAULTS_CONTROL"), *under = getenv("DISK_FAULTS_UNDER");
    char word[16], link[64], path[4096];
    int number, words;
    FILE *file;
    ssize_t length;

    if (!control || !under || !(file = fopen(control, "re")))
        return 0;
    words = fscanf(file, "%15s %d", word, &number);
    fclose(file);
    if (words != 2 || strcmp(word, what) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, under, strlen(under)) == 0 ? number : 0;
}

#define INTERPOSE(kind, name, parameters, arguments, what)                                                             \
    kind name parameters                                                                                               \
    {                                                                                                                  \
        static kind (*real) parameters;                                                                                \
        int kept = errno, number = fails(what, descriptor);                                                            \
        if (number) {                                                                                                  \
            errno = number;                                                                                            \
            return -1;                                                                                                 \
        }                                                                                                              \
        if (!real)                                                                                                     \
            real = dlsym(RTLD_NEXT, #name);                                                                            \
        errno = kept;                                                                                                  \
        return real arguments;                                                                                         \
    }

INTERPOSE(ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), "write")
INTERPOSE(ssize_t, pwrite64, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at), "write")
INTERPOSE(int, ftruncate, (int descriptor, off_t size), (descriptor, size), "write")
INTERPOSE(int, ftruncate64, (int descriptor, off64_t size), (descriptor, size), "write")
INTERPOSE(int, fsync, (int descriptor), (descriptor), "sync")
INTERPOSE(int, fdatasync, (int descriptor), (descriptor), "sync")

/* This one returns its error. */
#define INTERPOSE_FALLOCATE(name, offset)                                                                              \
    int name(int descriptor, offset at, offset size)                                                                   \
    {                                                                                                                  \
        static int (*real)(int, offset, offset);                                                                       \
        int number = fails("write", descriptor);                                                                       \
        if (!real)                                                                                                     \
            real = dlsym(RTLD_NEXT, #name);                                                                            \
        return number ? number : real(descriptor, at, size);                                                           \
    }

INTERPOSE_FALLOCATE(posix_fallocate, off_t)
INTERPOSE_FALLOCATE(posix_fallocate64, off64_t)
