/* A program that does to its memory whatever a program can, and notices every wrong byte.
 *
 * torture FILE: works until FILE is gone, then prints "ok ROUNDS" and exits with 0. At the first
 * difference it prints where, and exits with 1. Every thread keeps what it expects in a generator's
 * seed, never in a copy of the memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern size_t page;

/* What ends the program: a difference, and a call that failed. */
void wrong(const char *what, const void *at, uint64_t expected, uint64_t found);
void must(int good, const char *what);
/* How a process of the program has ended: with 0, or because it was wrong. None kills another: SIGKILL came from outside. */
void ended(const char *what, const void *at, int status);

/* Content from a seed. */
uint64_t mix(uint64_t x);
uint64_t draw(uint64_t *state);
void fill(void *at, size_t bytes, uint64_t seed);
void check(const char *what, const void *at, size_t bytes, uint64_t seed);
void zero(const char *what, const void *at, size_t bytes);
void *map(size_t bytes);

/* A mapping that lives long, filled from a seed. */
struct piece {
	uint64_t *at;
	size_t bytes;
	uint64_t seed;
};

/* memory.c */
void mappings(struct piece *all, int count, uint64_t *random);
void heap(uint64_t *random);
void locked(uint64_t *random);
void deep(int depth, uint64_t seed);
void data_segment(uint64_t *random);
void file_mapping(uint64_t *random);

/* threads.c */
void on_fault_of_ours(void);
void faults(uint64_t *random);
void vectors(uint64_t *random);
void prepare_locks(void);
void locks(uint64_t *random);
void heirs(uint64_t *random);
void alarms(uint64_t *random);

/* others.c */
void children(uint64_t *random, struct piece *all, int count);
void shared_counters(uint64_t *random, uint64_t *counters, int own);
void prepare_pipes(void);
void messages(uint64_t *random);
void lent_pages(uint64_t *random);
void events(uint64_t *random);
