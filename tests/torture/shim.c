/* A disk and a clock that misbehave: loaded into a process by LD_PRELOAD, told by a shared file.
 *
 * The file named by TORTURE_SHIM is mapped; `shim.py` writes into it while the process runs. Of the
 * files that the process writes only regular ones are meant, and not what it has at 0 to 2.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
	int32_t full;     /* writes and growing fail: ENOSPC */
	int32_t no_sync;  /* fsync and fdatasync fail: EIO */
	int32_t shorter;  /* a write takes the half of what it is given */
	int32_t kill_in;  /* SIGKILL in the middle of so manieth call from now; 0 is never */
	int64_t ahead_ns; /* how far the wall clock is ahead */
	int32_t refused, unsynced, shortened; /* how often each was met */
	int32_t killed;   /* whether kill_in has come to its end */
	int32_t no_read;  /* reads at a place fail: EIO */
	int32_t unread;   /* how often that was met */
	int32_t kill_behind; /* SIGKILL behind so manieth sync from now: on disk, and not answered */
};

static struct control *control;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("TORTURE_SHIM");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *at;
	if (fd < 0)
		return;
	at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	syscall(SYS_close, fd);
	if (at != MAP_FAILED)
		control = at;
}

#define REAL(name, type) \
	static __typeof__(type) *real; \
	if (!real) \
		real = (__typeof__(type) *)dlsym(RTLD_NEXT, name)

static int meant(int fd)
{
	struct stat about;
	return control && fd > 2 && !fstat(fd, &about) && S_ISREG(about.st_mode);
}

/* Count down; whether the process dies in this call. */
static int last(void)
{
	return __atomic_load_n(&control->kill_in, __ATOMIC_RELAXED) > 0 &&
	       __atomic_sub_fetch(&control->kill_in, 1, __ATOMIC_RELAXED) == 0;
}

static void die(void);

/* Count down syncs; die behind the one that was waited for. */
static int synced(int result)
{
	if (__atomic_load_n(&control->kill_behind, __ATOMIC_RELAXED) > 0 &&
	    __atomic_sub_fetch(&control->kill_behind, 1, __ATOMIC_RELAXED) == 0)
		die();
	return result;
}

static void die(void)
{
	control->killed = 1;
	kill(getpid(), SIGKILL);
}

/* How much of a write is to be done: -1 is none of it, for want of room. */
static ssize_t allowed(size_t size)
{
	if (control->full) {
		__atomic_add_fetch(&control->refused, 1, __ATOMIC_RELAXED);
		errno = ENOSPC;
		return -1;
	}
	if (control->shorter && size > 1) {
		__atomic_add_fetch(&control->shortened, 1, __ATOMIC_RELAXED);
		return (ssize_t)(size / 2);
	}
	return (ssize_t)size;
}

#define WRITING(name, offset_type) \
ssize_t name(int fd, const void *data, size_t size, offset_type offset) \
{ \
	REAL(#name, ssize_t (int, const void *, size_t, offset_type)); \
	if (meant(fd)) { \
		ssize_t some = allowed(size); \
		if (last()) { \
			real(fd, data, size / 2, offset); \
			die(); \
		} \
		if (some < 0) \
			return -1; \
		size = (size_t)some; \
	} \
	return real(fd, data, size, offset); \
}
WRITING(pwrite, off_t)
WRITING(pwrite64, off64_t)

#define READING(name, offset_type) \
ssize_t name(int fd, void *data, size_t size, offset_type offset) \
{ \
	REAL(#name, ssize_t (int, void *, size_t, offset_type)); \
	if (meant(fd) && control->no_read) { \
		__atomic_add_fetch(&control->unread, 1, __ATOMIC_RELAXED); \
		errno = EIO; \
		return -1; \
	} \
	return real(fd, data, size, offset); \
}
READING(pread, off_t)
READING(pread64, off64_t)

ssize_t write(int fd, const void *data, size_t size)
{
	REAL("write", ssize_t (int, const void *, size_t));
	if (meant(fd)) {
		ssize_t some = allowed(size);
		if (last()) {
			real(fd, data, size / 2);
			die();
		}
		if (some < 0)
			return -1;
		size = (size_t)some;
	}
	return real(fd, data, size);
}

#define GROWING(name, offset_type) \
int name(int fd, offset_type size) \
{ \
	REAL(#name, int (int, offset_type)); \
	if (meant(fd) && last()) \
		die(); \
	return real(fd, size); \
}
GROWING(ftruncate, off_t)
GROWING(ftruncate64, off64_t)

#define SYNCING(name) \
int name(int fd) \
{ \
	REAL(#name, int (int)); \
	if (meant(fd)) { \
		if (last()) \
			die(); \
		if (control->no_sync) { \
			__atomic_add_fetch(&control->unsynced, 1, __ATOMIC_RELAXED); \
			errno = EIO; \
			return -1; \
		} \
		return synced(real(fd)); \
	} \
	return real(fd); \
}
SYNCING(fsync)
SYNCING(fdatasync)

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int failed;
	REAL("clock_gettime", int (clockid_t, struct timespec *));
	failed = real(clock, now);
	if (!failed && control && control->ahead_ns &&
	    (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		int64_t at = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + control->ahead_ns;
		now->tv_sec = at / 1000000000;
		now->tv_nsec = at % 1000000000;
	}
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec at;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &at);
	now->tv_sec = at.tv_sec;
	now->tv_usec = at.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *now)
{
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	if (now)
		*now = at.tv_sec;
	return at.tv_sec;
}
