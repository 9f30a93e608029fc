/* Has two pieces of memory that were asleep change places in calls of two threads, of which the first takes effect
 * first and is reported last. A line says how the first piece goes:
 *   unmap   it is unmapped, and the second moves to where it was
 *   move    it moves elsewhere, and the second moves to where it was
 * and whether a child is forked in between, before or after the second has moved:
 *   alone, before, after
 * Prints "good", or what is wrong, the child first.
 *
 * What holds the first thread up is a userfaultfd of this program's own: its range is part of the same call, and the
 * kernel reports to one userfaultfd after the other. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 8 };

static size_t bytes;
static int held, begin[2];
/* Where the first piece is, what is before it, and where it goes. */
static char *first, *before, *elsewhere;
static char *second;
static int moves;

static void must(int good, const char *what)
{
	if (good)
		return;
	printf("%s: %s\n", what, strerror(errno));
	fflush(stdout);
	exit(1);
}

static char *map(char *at, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED_NOREPLACE : 0);
	char *mapped = mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0);
	must(mapped != MAP_FAILED && (!at || mapped == at), "mmap");
	return mapped;
}

/* Who unmaps some of this waits until it has been read. */
static void hold(char *range)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_UNMAP};
	struct uffdio_register all = {.range = {.start = (uintptr_t)range, .len = bytes},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};

	held = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	must(held >= 0 && ioctl(held, UFFDIO_API, &api) == 0, "userfaultfd");
	must(ioctl(held, UFFDIO_REGISTER, &all) == 0, "register");
}

static void let_go(void)
{
	struct uffd_msg message;
	must(read(held, &message, sizeof message) == sizeof message, "read");
	must(message.event == UFFD_EVENT_UNMAP, "not an unmapping");
}

static void *unmap(void *none)
{
	char byte;
	must(read(begin[0], &byte, 1) == 1, "read");
	must(munmap(before, 2 * bytes) == 0, "munmap");
	return none;
}

static void *move(void *none)
{
	char byte;
	must(read(begin[0], &byte, 1) == 1, "read");
	char *to = mremap(first, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere);
	must(to == elsewhere, "mremap of the first");
	return none;
}

static int is(const char *at, char what)
{
	for (size_t i = 0; i < bytes; i++)
		if (at[i] != what)
			return 0;
	return 1;
}

static void say(int good)
{
	printf("%s\n", good ? "good" : "bad");
	fflush(stdout);
}

/* Has the second piece where it was when this was forked. */
static pid_t child(char *there)
{
	pid_t pid = fork();
	must(pid >= 0, "fork");
	if (pid == 0) {
		say(is(there, 'B') && (!moves || is(elsewhere, 'A')));
		_exit(0);
	}
	return pid;
}

int main(void)
{
	char line[64], how[16], when[16];
	struct pollfd reported = {.events = POLLIN};
	pthread_t thread;
	pid_t pid;

	bytes = PAGES * sysconf(_SC_PAGESIZE);
	before = map(0, 2 * bytes);
	first = before + bytes;
	must(munmap(before, bytes) == 0, "munmap");
	second = map(0, 3 * bytes) + bytes;
	must(munmap(second - bytes, bytes) == 0 && munmap(second + bytes, bytes) == 0, "munmap");
	memset(first, 'A', bytes);
	memset(second, 'B', bytes);
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin) || sscanf(line, "%15s %15s", how, when) != 2)
		return 2;
	moves = !strcmp(how, "move");
	elsewhere = moves ? map(0, bytes) : map(before, bytes);
	hold(elsewhere);
	must(pipe(begin) == 0, "pipe");
	must(pthread_create(&thread, 0, moves ? move : unmap, 0) == 0, "pthread_create");
	/* What a fork needs is there then: nothing is filled while the thread is held up. */
	if ((pid = fork()) == 0)
		_exit(0);
	must(waitpid(pid, 0, 0) == pid, "waitpid");
	pid = -1;
	must(write(begin[1], "", 1) == 1, "write");
	reported.fd = held;
	must(poll(&reported, 1, 20000) == 1, "poll");
	if (!strcmp(when, "before"))
		pid = child(second);
	/* Nobody is there any more. */
	map(first, bytes);
	memset(first, 'C', bytes);
	char *to = mremap(second, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, first);
	must(to == first, "mremap of the second");
	if (!strcmp(when, "after"))
		pid = child(first);
	let_go();
	must(pthread_join(thread, 0) == 0, "pthread_join");
	if (pid >= 0)
		must(waitpid(pid, 0, 0) == pid, "waitpid");
	say(is(first, 'B') && (!moves || is(elsewhere, 'A')));
	return 0;
}
