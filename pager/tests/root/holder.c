/* holder MEGABYTES [USER]: becomes USER, holds so much, and does what it is told in lines:
 *   check      looks at all of it, prints "good" or "bad"
 *   look N     looks at the first N pages, prints "good" or "bad"
 *   touch N    writes to the first N pages, prints "done"
 *   swap N     has the first N pages and the N behind them change places, without a write; prints "done"
 *   share      has another process share its memory, which does nothing; prints "done"
 *   again      begins again, as another program would; prints "ready"
 *   huge       has all of it in huge pages, prints "done" */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t *memory;
static size_t pages, words;
static uint64_t *versions;
/* What is at a place: the number that its page had at first. */
static size_t *numbers;

static int good(size_t place)
{
	uint64_t *at = memory + place * words;
	size_t page = numbers[place];
	for (size_t i = 0; i < words; i++)
		if (at[i] != page * 1000003 + i + versions[page])
			return 0;
	return 1;
}

static void fill(size_t place)
{
	uint64_t *at = memory + place * words;
	size_t page = numbers[place];
	for (size_t i = 0; i < words; i++)
		at[i] = page * 1000003 + i + versions[page];
}

static void move(void *from, void *to, size_t bytes)
{
	if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		abort();
}

static void swap(size_t n)
{
	size_t bytes = n * words * 8;
	char *first = (char *)memory, *second = first + bytes, *third = first - 2 * bytes;
	move(first, third, bytes);
	move(second, first, bytes);
	move(third, second, bytes);
	for (size_t i = 0; i < n; i++) {
		size_t number = numbers[i];
		numbers[i] = numbers[n + i];
		numbers[n + i] = number;
	}
}

static int wait_for_ever(void *unused)
{
	(void)unused;
	while (pause() < 0)
		;
	return 0;
}

int main(int count, char **arguments)
{
	char line[64];
	size_t n;
	if (count < 2 || (count > 2 && setuid(atoi(arguments[2]))))
		return 2;
	words = sysconf(_SC_PAGESIZE) / 8;
	pages = (atol(arguments[1]) << 20) / (words * 8);
	/* Where huge pages can be. */
	memory = mmap((void *)(1UL << 40), pages * words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	versions = calloc(pages, sizeof *versions);
	numbers = calloc(pages, sizeof *numbers);
	for (size_t i = 0; i < pages; i++)
		versions[i] = 1, numbers[i] = i, fill(i);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int all = 1;
		if (sscanf(line, "touch %zu", &n) == 1) {
			for (size_t i = 0; i < n; i++)
				versions[numbers[i]]++, fill(i);
			printf("done\n");
		} else if (sscanf(line, "swap %zu", &n) == 1) {
			swap(n);
			printf("done\n");
		} else if (strcmp(line, "share\n") == 0) {
			static char stack[16384] __attribute__((aligned(16)));
			if (clone(wait_for_ever, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL) < 0)
				abort();
			printf("done\n");
		} else if (strcmp(line, "again\n") == 0) {
			execv("/proc/self/exe", arguments);
			abort();
		} else if (strcmp(line, "huge\n") == 0) {
			/* MADV_COLLAPSE, Linux 6.1. */
			n = pages * words * 8;
			printf(madvise(memory, n, MADV_HUGEPAGE) || madvise(memory, n, 25) ?
				       "cannot\n" : "done\n");
		} else {
			if (sscanf(line, "look %zu", &n) != 1)
				n = pages;
			for (size_t i = 0; i < n; i++)
				all &= good(i);
			printf(all ? "good\n" : "bad\n");
		}
		fflush(stdout);
	}
	return 0;
}
