/* witness MEGABYTES BOOK: holds so much memory, looks at all of it over and over, and each time writes to
 * another sixteenth of it.
 *
 * BOOK is a file of 40 bytes that others read while this is frozen, blocked or dead: how often all memory was
 * right, and the first thing that was not. Shared memory stays where it is in any sleep, so what a page has to
 * contain follows from there: memory of an earlier time would be wrong too. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct book {
	uint64_t passes, wrong, page, expected, found;
};

#define WORDS 512

static uint64_t content(uint64_t page, uint64_t version, uint64_t word)
{
	uint64_t x = (page << 32) + (version << 16) + word + 1;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	return x ^ (x >> 27);
}

/* How often a page has been written to before this pass. */
static uint64_t version_of(uint64_t page, uint64_t pass)
{
	uint64_t first = (16 - page % 16) % 16;

	return pass > first ? (pass - 1 - first) / 16 + 1 : 0;
}

/* Until a moment and not for a time: after a sleep this is over at once, and faults begin. */
static void pause_briefly(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_nsec += 10000000;
	if (at.tv_nsec >= 1000000000)
		at.tv_sec++, at.tv_nsec -= 1000000000;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0))
		;
}

int main(int count, char **arguments)
{
	if (count != 3)
		return 2;
	uint64_t pages = strtoul(arguments[1], 0, 10) * 256;
	int fd = open(arguments[2], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, sizeof(struct book)))
		return 2;
	volatile struct book *book =
		mmap(0, sizeof *book, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint64_t *memory = mmap(0, pages * WORDS * 8, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (book == MAP_FAILED || memory == MAP_FAILED)
		return 2;
	for (uint64_t page = 0; page < pages; page++)
		for (uint64_t i = 0; i < WORDS; i++)
			memory[page * WORDS + i] = content(page, 0, i);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		for (uint64_t page = 0; page < pages; page++) {
			uint64_t *at = memory + page * WORDS;
			uint64_t version = version_of(page, book->passes);

			for (uint64_t i = 0; i < WORDS; i++) {
				uint64_t found = at[i];

				if (found == content(page, version, i))
					continue;
				book->page = page;
				book->expected = content(page, version, i);
				book->found = found;
				book->wrong++;
				return 3;
			}
			if ((page + book->passes) % 16)
				continue;
			for (uint64_t i = 0; i < WORDS; i++)
				at[i] = content(page, version + 1, i);
		}
		book->passes++;
		pause_briefly();
	}
}
