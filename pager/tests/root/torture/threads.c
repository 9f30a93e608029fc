/* Signals, registers, locks and timers. */
#include "torture.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

/* Signals on another stack, while registers hold something. */
static __thread uint64_t *guarded;
static __thread volatile long signals;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	char local[4096];
	memset(local, 7, sizeof local);
	__asm__ volatile("" : : "r"(local) : "memory");
	if (!guarded || (char *)info->si_addr < (char *)guarded ||
	    (char *)info->si_addr >= (char *)guarded + page)
		wrong("address of a fault", info->si_addr, (uint64_t)guarded, 0);
	mprotect(guarded, page, PROT_READ | PROT_WRITE);
	signals++;
}

void on_fault_of_ours(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaction(SIGSEGV, &action, 0);
}

void faults(uint64_t *random)
{
	if (!guarded) {
		stack_t stack = {.ss_sp = map(16 * page), .ss_size = 16 * page};
		must(sigaltstack(&stack, 0) == 0, "sigaltstack");
		guarded = map(page);
	}
	uint64_t seed = draw(random);
	fill(guarded, page, seed);
	long before = signals;
	must(mprotect(guarded, page, PROT_NONE) == 0, "mprotect");
	check("behind a fault", guarded, page, seed);
	if (signals != before + 1)
		wrong("count of faults", guarded, before + 1, signals);
}

void vectors(uint64_t *random)
{
#if defined(__x86_64__)
	if (!__builtin_cpu_supports("avx"))
		return;
	uint64_t in[4] __attribute__((aligned(32))), out[4] __attribute__((aligned(32)));
	for (int i = 0; i < 4; i++)
		in[i] = draw(random);
	__asm__ volatile("vmovdqa %1, %%ymm13\n vmovdqa %1, %%ymm3\n mov $3000000, %%rcx\n"
			 "1: dec %%rcx\n jnz 1b\n vpxor %%xmm1, %%xmm1, %%xmm1\n"
			 "vmovdqa %%ymm13, %0\n vpcmpeqd %%xmm3, %%xmm13, %%xmm1\n"
			 : "=m"(out)
			 : "m"(in)
			 : "rcx", "xmm1", "xmm3", "xmm13", "memory");
	for (int i = 0; i < 4; i++)
		if (in[i] != out[i])
			wrong("vector register", &in[i], in[i], out[i]);
#else
	(void)random;
#endif
}

/* Two threads, a lock between them that one of them sometimes dies with, and a pipe. */
static pthread_mutex_t lock;
static uint64_t *under_lock, lock_seed;

static void *dies(void *unused)
{
	int result = pthread_mutex_lock(&lock);
	if (result == EOWNERDEAD)
		pthread_mutex_consistent(&lock);
	return unused;
}

void prepare_locks(void)
{
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&lock, &robust);
	under_lock = map(8 * page);
	fill(under_lock, 8 * page, lock_seed);
}

void locks(uint64_t *random)
{
	if (draw(random) % 4 == 0) {
		pthread_t thread;
		must(pthread_create(&thread, 0, dies, 0) == 0, "pthread_create");
		pthread_join(thread, 0);
	}
	int result = pthread_mutex_lock(&lock);
	if (result == EOWNERDEAD)
		pthread_mutex_consistent(&lock);
	check("under the lock", under_lock, 8 * page, lock_seed);
	lock_seed = draw(random);
	fill(under_lock, 8 * page, lock_seed);
	pthread_mutex_unlock(&lock);
}

/* A lock in shared memory that its holder is killed with: the kernel looks through the holder's list of locks, at
 * an end at which nobody can wait for a page, and tells the next one. */
void heirs(uint64_t *random)
{
	static struct {
		pthread_mutex_t lock;
		volatile int held;
	} * estate;

	if (!estate) {
		pthread_mutexattr_t attributes;

		estate = mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		must(estate != MAP_FAILED, "mmap shared");
		pthread_mutexattr_init(&attributes);
		pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
		pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
		pthread_mutex_init(&estate->lock, &attributes);
	}
	estate->held = 0;
	pid_t holder = fork();
	must(holder >= 0, "fork");
	if (holder == 0) {
		int result = pthread_mutex_lock(&estate->lock);

		if (result)
			wrong("result of a lock", estate, 0, result);
		estate->held = 1;
		for (;;)
			pause();
	}
	while (!estate->held)
		usleep(1000);
	/* Long enough for a sleep, often. */
	usleep(draw(random) % 200000);
	kill(holder, SIGKILL);
	must(waitpid(holder, 0, 0) == holder, "waitpid");
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	at.tv_sec += 60;
	int result = pthread_mutex_timedlock(&estate->lock, &at);
	if (result != EOWNERDEAD)
		wrong("result of a lock whose holder was killed", estate, EOWNERDEAD, result);
	pthread_mutex_consistent(&estate->lock);
	pthread_mutex_unlock(&estate->lock);
}

/* A timer of each kind, which signal. For a process with one thread. */
static volatile long rung, elapsed;

static void on_alarm(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (number == SIGALRM)
		elapsed++;
	else
		rung += info->si_value.sival_ptr == &rung;
}

void alarms(uint64_t *random)
{
	static timer_t timer;
	static int made;

	if (!made) {
		struct sigaction action = {.sa_sigaction = on_alarm,
					   .sa_flags = SA_SIGINFO | SA_RESTART};
		struct sigevent event = {.sigev_notify = SIGEV_SIGNAL,
					 .sigev_signo = SIGUSR1,
					 .sigev_value.sival_ptr = (void *)&rung};

		sigaction(SIGALRM, &action, 0);
		sigaction(SIGUSR1, &action, 0);
		must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
		made = 1;
	}
	long before = rung, ticks = elapsed, soon = 1000 + draw(random) % 3000;
	struct itimerspec once = {.it_value.tv_nsec = soon * 1000};
	struct itimerval other = {.it_value.tv_usec = soon};
	must(timer_settime(timer, 0, &once, 0) == 0, "timer_settime");
	must(setitimer(ITIMER_REAL, &other, 0) == 0, "setitimer");
	for (int i = 0; i < 60000 && (rung == before || elapsed == ticks); i++)
		usleep(1000);
	if (rung != before + 1 || elapsed != ticks + 1)
		wrong("alarms", &timer, before + ticks + 2, rung + elapsed);
}
