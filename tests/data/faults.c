/* Preloaded, lets a chosen one of the system calls that write below a directory fail. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char root[PATH_MAX];
static long left;   /* calls until one fails; 0: none will */
static int reason;  /* errno of the failure */
static int goes_on; /* whether all later calls fail too */
static long failed;
static const char* last = "";

/* Let the nth call below the directory fail, and with `stays` all later ones. */
void faults_arm(const char* directory, long nth, int error, int stays) {
  snprintf(root, sizeof root, "%s/", directory);
  left = nth;
  reason = error;
  goes_on = stays;
  failed = 0;
}

/* Let no call fail any more; how many did. */
long faults_disarm(void) {
  left = 0;
  return failed;
}

static int below(const char* path) { return path && strncmp(path, root, strlen(root)) == 0; }

static int below_fd(int fd) {
  char name[64], path[PATH_MAX];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(name, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* The call that failed last. */
const char* faults_last(void) { return last; }

/* Whether this call, which is below the directory, fails. */
static int fails(const char* name) {
  if (left == 0 || (left > 1 && left--)) return 0;
  if (!goes_on) left = 0;
  failed++;
  last = name;
  errno = reason;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void* data, size_t size) {
  int mine = left && below_fd(fd);
  /* The last room on a disk is used before it is full. */
  if (mine && left == 1 && goes_on && size > 1 && !failed++) return REAL(write)(fd, data, size / 2);
  if (mine && fails("write")) return -1;
  return REAL(write)(fd, data, size);
}

int fsync(int fd) { return left && below_fd(fd) && fails("fsync") ? -1 : REAL(fsync)(fd); }

int ftruncate64(int fd, off64_t size) {
  return left && below_fd(fd) && fails("ftruncate64") ? -1 : REAL(ftruncate64)(fd, size);
}

int close(int fd) {
  int flags = left ? fcntl(fd, F_GETFL) : -1;
  int mine = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && below_fd(fd);
  int result = REAL(close)(fd);
  return mine && fails("close") ? -1 : result;
}

int rename(const char* from, const char* to) {
  return left && below(from) && fails("rename") ? -1 : REAL(rename)(from, to);
}

int mkdir(const char* path, mode_t mode) {
  return left && below(path) && fails("mkdir") ? -1 : REAL(mkdir)(path, mode);
}

#define OPEN(name)                                                                          \
  int name(const char* path, int flags, ...) {                                              \
    va_list rest;                                                                           \
    va_start(rest, flags);                                                                  \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                               \
    va_end(rest);                                                                           \
    if (left && (flags & O_ACCMODE) != O_RDONLY && below(path) && fails("open")) return -1; \
    return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode);    \
  }
OPEN(open)
OPEN(open64)
