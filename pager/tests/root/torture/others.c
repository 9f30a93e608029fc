/* Other processes, shared memory, pipes, and what the kernel tells of. */
#include "torture.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

/* Children: what they see is what their parent had. */
void children(uint64_t *random, struct piece *all, int count)
{
	uint64_t seed = draw(random), *shared = map(64 * page);
	fill(shared, 64 * page, seed);
	pid_t parent = getpid();
	pid_t child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		for (int i = 0; i < count; i++)
			if (all[i].at)
				check("mapping in a child", all[i].at, all[i].bytes, all[i].seed);
		uint64_t there[512];
		struct iovec local = {there, sizeof there}, remote = {shared, sizeof there};
		if (process_vm_readv(parent, &local, 1, &remote, 1, 0) != sizeof there) {
			int error = errno;
			/* A parent that is being killed has no memory before it has no children. */
			for (int i = 0; i < 500 && getppid() == parent; i++)
				usleep(10000);
			if (getppid() != parent)
				_exit(0);
			errno = error;
			must(0, "process_vm_readv");
		}
		check("memory of the parent", there, sizeof there, seed);
		fill(shared, 32 * page, seed + 99);
		madvise(shared + 48 * page / 8, page, MADV_DONTNEED);
		check("own part", shared, 32 * page, seed + 99);
		check("common part", shared + 32 * page / 8, 16 * page, seed + 32 * page / 8);
		zero("given up in a child", shared + 48 * page / 8, page);
		if (seed % 2)
			execl("/proc/self/exe", "torture", "--quick", (char *)0);
		_exit(0);
	}
	check("memory of a parent", shared, 64 * page, seed);
	int status;
	must(waitpid(child, &status, 0) == child, "waitpid");
	ended("exit status of a child", shared, status);
	child = vfork();
	if (child == 0) {
		execl("/proc/self/exe", "torture", "--quick", (char *)0);
		_exit(3);
	}
	must(waitpid(child, &status, 0) == child, "waitpid");
	ended("exit status after vfork", shared, status);
	munmap(shared, 64 * page);
}

/* Each thread of each process counts in a place of its own, and all of them in a common one. */
void shared_counters(uint64_t *random, uint64_t *counters, int own)
{
	static __thread uint64_t mine;
	uint64_t more = draw(random) % 100;

	if (counters[1 + own] != mine)
		wrong("own counter", counters + 1 + own, mine, counters[1 + own]);
	mine += more;
	counters[1 + own] = mine;
	__atomic_add_fetch(counters, more, __ATOMIC_SEQ_CST);
}

static int pipes[2];

void prepare_pipes(void) { must(pipe(pipes) == 0, "pipe"); }

void messages(uint64_t *random)
{
	/* Others write to the pipe too, so the message says what is in it. */
	uint64_t message[64];
	message[0] = draw(random);
	fill(message + 1, sizeof message - 8, message[0]);
	must(write(pipes[1], message, sizeof message) == sizeof message, "write");
	memset(message, 0, sizeof message);
	must(read(pipes[0], message, sizeof message) == sizeof message, "read");
	check("message", message + 1, sizeof message - 8, message[0]);
}

/* Pages that are lent to a pipe and read from it later, not written to meanwhile. */
void lent_pages(uint64_t *random)
{
	static __thread int lent[2];

	if (!lent[1])
		must(pipe2(lent, O_CLOEXEC) == 0, "pipe");
	uint64_t seed = draw(random), *at = map(4 * page), *copy = map(4 * page);
	fill(at, 4 * page, seed);
	struct iovec whole = {at, 4 * page};
	must(vmsplice(lent[1], &whole, 1, 0) == (long)(4 * page), "vmsplice");
	usleep(draw(random) % 3000);
	check("lent", at, 4 * page, seed);
	size_t got = 0;
	while (got < 4 * page) {
		long more = read(lent[0], (char *)copy + got, 4 * page - got);
		must(more > 0, "read what was lent");
		got += more;
	}
	check("read of what was lent", copy, 4 * page, seed);
	munmap(at, 4 * page), munmap(copy, 4 * page);
}

/* What the kernel keeps for a while and hands back: the data of an epoll registration that lives long. */
void events(uint64_t *random)
{
	static __thread int epoll, timer, counter;
	static __thread uint64_t seed;

	if (!epoll) {
		seed = draw(random);
		epoll = epoll_create1(EPOLL_CLOEXEC);
		timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
		counter = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		must(epoll >= 0 && timer >= 0 && counter >= 0, "epoll, timer and counter");
		struct epoll_event on_time = {.events = EPOLLIN, .data.u64 = seed};
		struct epoll_event on_count = {.events = EPOLLIN | EPOLLET, .data.u64 = ~seed};
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &on_time) == 0, "epoll_ctl");
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &on_count) == 0, "epoll_ctl");
	}
	uint64_t count = 1 + draw(random) % 1000, read_back;
	struct itimerspec soon = {.it_value.tv_nsec = 1000000 + draw(random) % 3000000};
	must(timerfd_settime(timer, 0, &soon, 0) == 0, "timerfd_settime");
	must(write(counter, &count, 8) == 8, "write to a counter");
	int timed = 0, counted = 0;
	while (!timed || !counted) {
		struct epoll_event found[4];
		int n = epoll_wait(epoll, found, 4, 60000);
		if (n < 0 && errno == EINTR)
			continue;
		must(n > 0, "epoll_wait");
		for (int i = 0; i < n; i++) {
			int is_timer = found[i].data.u64 == seed;
			if (!is_timer && found[i].data.u64 != ~seed)
				wrong("data of an event", found, seed, found[i].data.u64);
			must(read(is_timer ? timer : counter, &read_back, 8) == 8, "read an event");
			if (read_back != (is_timer ? 1 : count))
				wrong("content of an event", &count, count, read_back);
			*(is_timer ? &timed : &counted) = 1;
		}
	}
}
