/* A disk and a clock that misbehave: loaded into a process by LD_PRELOAD, told by a shared file.
 *
 * The file named by TORTURE_SHIM is mapped; `shim.py` writes into it while the process runs. Of the
 * files that the process writes only regular ones are meant, and not what it has at 0 to 2.
 *
 * Two of SQLite's steps are told from other writes. A checkpoint is what is written to a file
 * beside which there is a `-wal`, synced or cut there, and the first write of a `-wal` that begins
 * anew; TORTURE_CHECKPOINT says behind how many pages there is one. A trim is what a thread writes
 * from a statement that begins as TORTURE_TRIM says, and removes something, to the end of its
 * transaction. Both ask for an SQLite that is a library of its own, as Debian has it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
	int32_t killed;   /* where it was killed, as `where` says; 0 is not at all */
	int32_t no_read;  /* reads at a place fail: EIO */
	int32_t unread;   /* how often that was met */
	int32_t kill_behind; /* SIGKILL behind so manieth sync from now: on disk, and not answered */
	int32_t kill_at[2]; /* SIGKILL in the middle of so manieth call of a checkpoint, of a trim */
	int32_t fail_at[2]; /* calls of a checkpoint, of a trim fail: EIO */
	int32_t met[2];   /* how many such calls there were */
};

/* Where a call is. */
enum where { NOWHERE, WRITING, CHECKPOINT, TRIM, SYNCED };

static __thread int trimming;

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

/* Where a call on a file is; *start* is whether it begins at the file's first byte. */
static enum where place(int fd, int start)
{
	char link[32], path[4096];
	struct stat about;
	ssize_t size;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	size = readlink(link, path, sizeof path - 5);
	if (size <= 0)
		return WRITING;
	path[size] = 0;
	if (size > 4 && !strcmp(path + size - 4, "-wal")) {
		if (start && !fstat(fd, &about) && about.st_size)
			return CHECKPOINT;
		return trimming ? TRIM : WRITING;
	}
	strcpy(path + size, "-wal");
	return stat(path, &about) || !about.st_size ? WRITING : CHECKPOINT;
}

/* Count down; whether it is the last. */
static int counted(int32_t *left)
{
	return __atomic_load_n(left, __ATOMIC_RELAXED) > 0 &&
	       __atomic_sub_fetch(left, 1, __ATOMIC_RELAXED) == 0;
}

/* Count down; whether the process dies in this call. */
static int last(enum where where)
{
	int dies = counted(&control->kill_in);
	if (where == CHECKPOINT || where == TRIM) {
		__atomic_add_fetch(&control->met[where - CHECKPOINT], 1, __ATOMIC_RELAXED);
		dies |= counted(&control->kill_at[where - CHECKPOINT]);
	}
	return dies;
}

/* Whether a call fails because of where it is. */
static int fails(enum where where)
{
	if ((where != CHECKPOINT && where != TRIM) || !control->fail_at[where - CHECKPOINT])
		return 0;
	__atomic_add_fetch(&control->unsynced, 1, __ATOMIC_RELAXED);
	errno = EIO;
	return 1;
}

static void die(enum where where)
{
	control->killed = where;
	kill(getpid(), SIGKILL);
}

/* Count down syncs; die behind the one that was waited for. */
static int synced(int result)
{
	if (counted(&control->kill_behind))
		die(SYNCED);
	return result;
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
		enum where where = place(fd, offset == 0); \
		ssize_t some = allowed(size); \
		if (last(where)) { \
			real(fd, data, size / 2, offset); \
			die(where); \
		} \
		if (some < 0 || fails(where)) \
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
		if (last(WRITING)) {
			real(fd, data, size / 2);
			die(WRITING);
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
	if (meant(fd)) { \
		enum where where = place(fd, 1); \
		if (last(where)) \
			die(where); \
		if (fails(where)) \
			return -1; \
	} \
	return real(fd, size); \
}
GROWING(ftruncate, off_t)
GROWING(ftruncate64, off64_t)

#define SYNCING(name) \
int name(int fd) \
{ \
	REAL(#name, int (int)); \
	if (meant(fd)) { \
		enum where where = place(fd, 0); \
		if (last(where)) \
			die(where); \
		if (fails(where)) \
			return -1; \
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

struct sqlite3;
struct sqlite3_stmt;

/* A function of SQLite's library, which whoever calls us has loaded, for itself alone perhaps. */
static void *of_sqlite(const char *name)
{
	static void *library;
	if (!library)
		library = dlopen("libsqlite3.so.0", RTLD_LAZY | RTLD_NOLOAD);
	return library ? dlsym(library, name) : NULL;
}

#define SQLITE(function, name, type) \
	static __typeof__(type) *function; \
	if (!function) \
		function = (__typeof__(type) *)of_sqlite(name)

int sqlite3_open_v2(const char *path, struct sqlite3 **made, int flags, const char *vfs)
{
	const char *pages = getenv("TORTURE_CHECKPOINT");
	int failed;
	SQLITE(real, "sqlite3_open_v2", int (const char *, struct sqlite3 **, int, const char *));
	SQLITE(checkpoint_behind, "sqlite3_wal_autocheckpoint", int (struct sqlite3 *, int));
	failed = real(path, made, flags, vfs);
	if (!failed && pages)
		checkpoint_behind(*made, atoi(pages));
	return failed;
}

int sqlite3_step(struct sqlite3_stmt *statement)
{
	static const char *trim;
	struct sqlite3 *database;
	const char *text;
	int result;
	SQLITE(real, "sqlite3_step", int (struct sqlite3_stmt *));
	SQLITE(sql, "sqlite3_sql", const char *(struct sqlite3_stmt *));
	SQLITE(owner, "sqlite3_db_handle", struct sqlite3 *(struct sqlite3_stmt *));
	SQLITE(changes, "sqlite3_changes", int (struct sqlite3 *));
	SQLITE(is_over, "sqlite3_get_autocommit", int (struct sqlite3 *));
	if (!trim)
		trim = getenv("TORTURE_TRIM") ? getenv("TORTURE_TRIM") : "";
	database = owner(statement);
	text = sql(statement);
	result = real(statement);
	if (*trim && text && !strncmp(text, trim, strlen(trim)))
		trimming |= changes(database) > 0;
	else if (trimming && is_over(database))
		trimming = 0;
	return result;
}

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
