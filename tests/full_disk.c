/* Preloaded into a process: a disk under one folder that is full, or broken, from the n-th request for space on.

   Counted are the requests that can find a disk full: writes, new files and folders, flushes to the disk. The n-th write
   puts down half of what it was given, as a real disk does; later ones fail. n = 0: never full, only counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char place[PATH_MAX];
static long full_at, requests;
static int number; /* the error, such as ENOSPC */

void full_disk(const char *folder, long n, int error) {
    snprintf(place, sizeof place, "%s", folder);
    full_at = n, requests = 0, number = error;
}
long full_disk_requests(void) { return requests; }

static int inside(const char *path) {
    size_t n = strlen(place);
    return n && strncmp(path, place, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!place[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return inside(path);
}

static int inside_at(int fd, const char *path) {
    return path[0] == '/' || fd == AT_FDCWD ? inside(path) : inside_fd(fd);
}

/* 0: there is space; 1: it ends in the middle of this request; 2: there is none. */
static int full(void) {
    long n = __sync_add_and_fetch(&requests, 1);
    return !full_at || n < full_at ? 0 : n == full_at ? 1 : 2;
}

#define REAL(kind, name, ...) static kind (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define REFUSE do { errno = number; return -1; } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (inside_fd(fd)) { int f = full(); if (f == 2 || (f && size < 2)) REFUSE; if (f) size /= 2; }
    return real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (inside_fd(fd) && full()) REFUSE;
    return real(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (inside_fd(fd) && full()) REFUSE;
    return real(fd, parts, count);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    if (inside_fd(out)) { int f = full(); if (f == 2) REFUSE; if (f) size = (size + 1) / 2; }
    return real(out, in, at, size);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return sendfile64(out, in, at, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if (inside_fd(out) && full()) REFUSE;
    return real(in, from, out, to, size, flags);
}
int fsync(int fd) { REAL(int, "fsync", int); if (inside_fd(fd) && full()) REFUSE; return real(fd); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); if (inside_fd(fd) && full()) REFUSE; return real(fd); }
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (inside(path) && access(path, F_OK) && full()) REFUSE;
    return real(path, mode);
}

#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }
#define NEW(is_inside) if ((flags & O_CREAT) && (is_inside) && full()) REFUSE

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    MODE
    NEW(inside(path) && access(path, F_OK));
    return real(path, flags, mode);
}
int open(const char *path, int flags, ...) { MODE return open64(path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, ...);
    MODE
    NEW(inside_at(fd, path) && faccessat(fd, path, F_OK, 0));
    return real(fd, path, flags, mode);
}
int openat(int fd, const char *path, int flags, ...) { MODE return openat64(fd, path, flags, mode); }
