/* What each thread does, and the beginning and the end. */
#include "torture.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { THREADS = 3, PROCESSES = 3 };

static const char *flag;
static uint64_t *counters;
size_t page;
static long rounds;

void wrong(const char *what, const void *at, uint64_t expected, uint64_t found)
{
	printf("WRONG %s at %p: expected %lx found %lx, pid %d\n", what, at, (long)expected,
	       (long)found, getpid());
	fflush(stdout);
	_exit(1);
}

void must(int good, const char *what)
{
	if (good)
		return;
	printf("WRONG %s: %s, pid %d\n", what, strerror(errno), getpid());
	fflush(stdout);
	_exit(1);
}

void ended(const char *what, const void *at, int status)
{
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
		printf("KILLED %s, pid %d\n", what, getpid());
		fflush(stdout);
		_exit(1);
	}
	if (status)
		wrong(what, at, 0, status);
}

uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

uint64_t draw(uint64_t *state) { return *state = mix(*state); }

/* Half of it can be compressed. */
static uint64_t word(uint64_t seed, size_t i)
{
	uint64_t at = seed + i;
	return mix(at & 4096 ? at : at / 16);
}

void fill(void *at, size_t bytes, uint64_t seed)
{
	uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = word(seed, i);
}

void check(const char *what, const void *at, size_t bytes, uint64_t seed)
{
	const uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] != word(seed, i))
			wrong(what, words + i, word(seed, i), words[i]);
}

void zero(const char *what, const void *at, size_t bytes)
{
	const uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i])
			wrong(what, words + i, 0, words[i]);
}

void *map(size_t bytes)
{
	void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(at != MAP_FAILED, "mmap");
	return at;
}

static int number_of_process;

static void *worker(void *number)
{
	int own = number_of_process * THREADS + (int)(long)number;
	uint64_t random = mix((uint64_t)number * 1000 + getpid());
	struct piece *all = calloc(64, sizeof *all);
	while (access(flag, F_OK) == 0) {
		for (int i = 0; i < 40; i++)
			mappings(all, 64, &random);
		for (int i = 0; i < 20; i++)
			heap(&random);
		deep(20 + draw(&random) % 300, draw(&random));
		faults(&random);
		vectors(&random);
		locks(&random);
		messages(&random);
		locked(&random);
		file_mapping(&random);
		lent_pages(&random);
		shared_counters(&random, counters, own);
		if (draw(&random) % 8 == 0)
			events(&random);
		if (draw(&random) % 8 == 0)
			children(&random, all, 64);
		__atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
	}
	for (int i = 0; i < 64; i++)
		if (all[i].at)
			check("at the end", all[i].at, all[i].bytes, all[i].seed);
	return 0;
}

/* A process of its own, with one thread: what is there only once in a process. */
static int alone(void)
{
	uint64_t random = getpid();

	while (access(flag, F_OK) == 0) {
		data_segment(&random);
		alarms(&random);
		vectors(&random);
		heirs(&random);
	}
	return 0;
}

static void refuse_userfaultfd(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socketpair, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

int main(int count, char **arguments)
{
	page = sysconf(_SC_PAGESIZE);
	if (count > 1 && !strcmp(arguments[1], "--quick")) {
		uint64_t *at = map(16 * page);
		fill(at, 16 * page, 3);
		check("quick", at, 16 * page, 3);
		return 0;
	}
	flag = arguments[1];
	on_fault_of_ours();
	prepare_locks();
	prepare_pipes();
	counters = mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(counters != MAP_FAILED, "mmap shared");
	/* This one, one with a filter, one that shares pages with both, and one with one thread. */
	uint64_t *common = map(256 * page);
	fill(common, 256 * page, 42);
	for (int i = 1; i <= PROCESSES && number_of_process == 0; i++) {
		pid_t child = fork();
		must(child >= 0, "fork");
		if (child == 0)
			number_of_process = i;
	}
	if (number_of_process == 1)
		refuse_userfaultfd();
	if (number_of_process == PROCESSES)
		return alone();
	pthread_t threads[THREADS];
	for (long i = 0; i < THREADS; i++)
		must(pthread_create(&threads[i], 0, worker, (void *)i) == 0, "pthread_create");
	while (access(flag, F_OK) == 0) {
		check("common", common, 256 * page, 42);
		usleep(20000);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], 0);
	check("common at the end", common, 256 * page, 42);
	if (number_of_process)
		return 0;
	for (int i = 0; i < PROCESSES; i++) {
		int status = 0;
		must(wait(&status) > 0, "wait");
		ended("exit status of a process", common, status);
	}
	uint64_t sum = 0;
	for (int i = 0; i < PROCESSES * THREADS; i++)
		sum += counters[1 + i];
	if (sum != counters[0])
		wrong("sum of the counters", counters, sum, counters[0]);
	printf("ok %ld\n", rounds);
	return 0;
}
