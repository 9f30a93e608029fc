/*
 * An HTTP server on port 8080 that has memory of every kind, in several processes. A request has all
 * of them look at every page; the answer is "whole", or names the first page that is not what it was.
 * With ALONE in its environment there is one process.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / sizeof(uint64_t))
#define MOST 16
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* Memory whose content follows from its number and its owner's. */
struct area {
	const char *name;
	uint64_t *start;
	size_t pages;
	/* What it is protected with between looks. */
	int protection;
	/* From here to there a touch is a fault. */
	size_t guard, guard_end;
};

static struct area areas[MOST];
static size_t count;
/* Of pages that were written since the fork: this process. */
static unsigned int self;
static size_t cow;
static uint64_t *file_pages;
static char report[256];

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "mosaic: %s: %s\n", what, strerror(errno));
		exit(EXIT_FAILURE);
	}
}

/* Untouched pages, pages of zeros, and pages that differ. */
static uint64_t word(unsigned int owner, size_t area, size_t page)
{
	if (page % 7 == 3 || page % 11 == 5)
		return 0;
	return (owner + 1) * 0x9e3779b97f4a7c15ul ^ (area + 1) * 0xbf58476d1ce4e5b9ul ^ page * 0x94d049bb133111ebul;
}

static unsigned int owner(size_t area, size_t page)
{
	return area > cow || page % 3 == self ? self : 0;
}

static void fill(size_t number, int again)
{
	struct area *area = &areas[number];

	for (size_t page = 0; page < area->pages; page++) {
		uint64_t value = word(owner(number, page), number, page);

		if (page % 7 == 3 || (again && page % 3 != self))
			continue;
		for (size_t at = 0; at < WORDS; at++)
			area->start[page * WORDS + at] = value;
	}
}

static void add(const char *name, void *start, size_t pages, int protection)
{
	check(start != MAP_FAILED && count < MOST, name);
	areas[count] = (struct area){ name, start, pages, protection, 0, 0 };
	fill(count++, 0);
	if (protection != (PROT_READ | PROT_WRITE))
		check(mprotect(start, pages * PAGE, protection) == 0, name);
}

static void *anonymous(size_t pages, void *where, int flags)
{
	return mmap(where, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

static int whole_area(size_t number)
{
	struct area *area = &areas[number];
	int readable = area->protection & PROT_READ;

	if (!readable)
		check(mprotect(area->start, area->pages * PAGE, PROT_READ) == 0, area->name);
	for (size_t page = 0; page < area->pages; page++) {
		uint64_t value = word(owner(number, page), number, page);

		if (page >= area->guard && page < area->guard_end)
			continue;
		for (size_t at = 0; at < WORDS; at++) {
			uint64_t found = area->start[page * WORDS + at];

			if (found != value) {
				snprintf(report, sizeof(report), "process %u: page %zu of %s has %#lx, not %#lx", self, page,
					 area->name, found, value);
				return 0;
			}
		}
	}
	if (!readable)
		check(mprotect(area->start, area->pages * PAGE, area->protection) == 0, area->name);
	return 1;
}

/* Of a private mapping of a file: page 1 was written, page 2 was written with zeros, the rest not. */
static int whole_file(void)
{
	uint64_t content[WORDS];
	int file = open("/proc/self/exe", O_RDONLY);

	for (size_t page = 0; page < 4; page++) {
		check(pread(file, content, PAGE, page * PAGE) == (ssize_t)PAGE, "read the file");
		if (page == 1)
			memset(content, 'w', PAGE);
		if (page == 2)
			memset(content, 0, PAGE);
		if (memcmp(content, file_pages + page * WORDS, PAGE) != 0) {
			snprintf(report, sizeof(report), "process %u: page %zu of the file is another", self, page);
			return 0;
		}
	}
	close(file);
	return 1;
}

static int whole(void)
{
	for (size_t number = 0; number < count; number++)
		if (!whole_area(number))
			return 0;
	return whole_file();
}

static void *wait_forever(void *ready)
{
	static const size_t pages = 8;
	char stack[(pages + 1) * PAGE];
	char *start = (char *)(((uintptr_t)stack + PAGE - 1) / PAGE * PAGE);

	add("a thread's stack", start, pages, PROT_READ | PROT_WRITE);
	check(write(*(int *)ready, "r", 1) == 1, "say that the thread is there");
	for (;;)
		pause();
	return NULL;
}

struct child {
	int ask, answer;
};

/* Looks at its own memory whenever it is asked. */
static struct child start_child(unsigned int number)
{
	int ask[2], answer[2];

	check(pipe(ask) == 0 && pipe(answer) == 0, "make pipes");
	pid_t pid = fork();

	check(pid >= 0, "fork");
	if (pid == 0) {
		char byte;

		self = number;
		fill(cow, 1);
		add("memory of a child", anonymous(500, NULL, 0), 500, PROT_READ | PROT_WRITE);
		close(ask[1]);
		check(write(answer[1], "r", 1) == 1, "say that the child is there");
		while (read(ask[0], &byte, 1) == 1) {
			report[0] = 0;
			whole();
			check(write(answer[1], report, sizeof(report)) == sizeof(report), "answer");
		}
		_exit(0);
	}
	close(ask[0]);
	close(answer[1]);
	check(read(answer[0], report, 1) == 1, "wait for the child");
	return (struct child){ ask[1], answer[0] };
}

/* Up to its blank line: what is not read would make the end of the connection a reset. */
static int read_request(int client)
{
	char request[4096];
	size_t used = 0;

	while (used < sizeof(request) - 1) {
		ssize_t got = read(client, request + used, sizeof(request) - 1 - used);

		if (got <= 0)
			return 0;
		used += got;
		request[used] = 0;
		if (strstr(request, "\r\n\r\n"))
			return 1;
	}
	return 0;
}

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(void)
{
	static const size_t stack_pages = 60;
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(8080) };
	struct sigaction on_end = { .sa_handler = end };
	char stack[(stack_pages + 1) * PAGE];
	int zero = 0, ready[2], others = getenv("ALONE") ? 0 : 2;
	pthread_t thread;

	sigaction(SIGTERM, &on_end, NULL);
	cow = count;
	add("memory shared with children until written", anonymous(600, NULL, 0), 600, PROT_READ | PROT_WRITE);
	file_pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, open("/proc/self/exe", O_RDONLY), 0);
	check(file_pages != MAP_FAILED, "map the file");
	memset(file_pages + WORDS, 'w', PAGE);
	memset(file_pages + 2 * WORDS, 0, PAGE);

	struct child children[2];

	for (int number = 0; number < others; number++)
		children[number] = start_child(number + 1);

	add("anonymous memory", anonymous(3000, NULL, 0), 3000, PROT_READ | PROT_WRITE);
	add("memory to read", anonymous(200, NULL, 0), 200, PROT_READ);
	add("memory not to touch", anonymous(200, NULL, 0), 200, PROT_NONE);
	/* Below the program: where CRIU writes its own instructions to. */
	add("code", anonymous(20, (void *)0x200000, MAP_FIXED_NOREPLACE), 20, PROT_READ | PROT_EXEC);
	add("shared memory",
	    mmap(NULL, 50 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 50, PROT_READ | PROT_WRITE);
	add("the heap", sbrk(100 * PAGE) + (PAGE - (uintptr_t)sbrk(0) % PAGE) % PAGE, 99, PROT_READ | PROT_WRITE);
	add("the stack", (void *)(((uintptr_t)stack + PAGE - 1) / PAGE * PAGE), stack_pages, PROT_READ | PROT_WRITE);

	void *huge = anonymous(2048, NULL, 0);

	madvise(huge, 2048 * PAGE, MADV_HUGEPAGE);
	add("memory of huge pages", huge, 2048, PROT_READ | PROT_WRITE);
	add("memory with guard pages", anonymous(64, NULL, 0), 64, PROT_READ | PROT_WRITE);

	struct area *guarded = &areas[count - 1];

	/* Where the kernel has them. */
	if (madvise(guarded->start + 9 * WORDS, 3 * PAGE, MADV_GUARD_INSTALL) == 0) {
		guarded->guard = 9;
		guarded->guard_end = 12;
	}
	check(pipe(ready) == 0, "make a pipe");
	check(pthread_create(&thread, NULL, wait_forever, &ready[1]) == 0, "make a thread");
	check(read(ready[0], report, 1) == 1, "wait for the thread");

	int listener = socket(AF_INET6, SOCK_STREAM, 0);

	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 16) == 0, "listen");
	check(write(STDOUT_FILENO, "listening\n", 10) == 10, "say so");
	for (;;) {
		char found[512] = "";
		int client = accept(listener, NULL, NULL);

		if (client < 0)
			continue;
		if (read_request(client)) {
			report[0] = 0;
			whole();
			for (int number = 0; number < others && report[0] == 0; number++) {
				check(write(children[number].ask, "l", 1) == 1, "ask a child");
				if (read(children[number].answer, report, sizeof(report)) != sizeof(report))
					snprintf(report, sizeof(report), "process %d is gone", number + 1);
			}
			snprintf(found, sizeof(found), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s",
				 report[0] ? report : "whole");
			check(write(client, found, strlen(found)) > 0, "answer");
		}
		close(client);
	}
}
