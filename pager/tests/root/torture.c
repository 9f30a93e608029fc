/* A program that does to its memory whatever a program can, and notices every wrong byte.
 *
 * torture FILE: works until FILE is gone, then prints "ok ROUNDS" and exits with 0. At the first
 * difference it prints where, and exits with 1. Every thread keeps what it expects in a generator's
 * seed, never in a copy of the memory. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *flag;
static size_t page;
static long rounds;

static void wrong(const char *what, const void *at, uint64_t expected, uint64_t found)
{
	printf("WRONG %s at %p: expected %lx found %lx, pid %d\n", what, at, (long)expected,
	       (long)found, getpid());
	fflush(stdout);
	_exit(1);
}

static void must(int good, const char *what)
{
	if (good)
		return;
	printf("WRONG %s: %s, pid %d\n", what, strerror(errno), getpid());
	fflush(stdout);
	_exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static uint64_t draw(uint64_t *state) { return *state = mix(*state); }

static void fill(void *at, size_t bytes, uint64_t seed)
{
	uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = mix(seed + i);
}

static void check(const char *what, const void *at, size_t bytes, uint64_t seed)
{
	const uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] != mix(seed + i))
			wrong(what, words + i, mix(seed + i), words[i]);
}

static void zero(const char *what, const void *at, size_t bytes)
{
	const uint64_t *words = at;
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i])
			wrong(what, words + i, 0, words[i]);
}

static void *map(size_t bytes)
{
	void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(at != MAP_FAILED, "mmap");
	return at;
}

/* Mappings that live long, each filled from a seed. */
struct piece {
	uint64_t *at;
	size_t bytes;
	uint64_t seed;
};

static void mappings(struct piece *all, int count, uint64_t *random)
{
	struct piece *it = &all[draw(random) % count];
	if (it->at)
		check("mapping", it->at, it->bytes, it->seed);
	switch (it->at ? draw(random) % 8 : 7) {
	case 0: /* grows, perhaps elsewhere */ {
		size_t bytes = it->bytes + (1 + draw(random) % 16) * page;
		char *at = mremap(it->at, it->bytes, bytes, MREMAP_MAYMOVE);
		/* More than one mapping by now. */
		if (at == MAP_FAILED && errno == EFAULT)
			break;
		must(at != MAP_FAILED, "mremap to grow");
		check("grown", at, it->bytes, it->seed);
		zero("behind the grown", at + it->bytes, bytes - it->bytes);
		it->at = (void *)at, it->bytes = bytes;
		fill(it->at, it->bytes, it->seed);
		break;
	}
	case 1: /* moves to a place of our choice */ {
		char *at = map(it->bytes);
		fill(at, it->bytes, it->seed + 5);
		char *to = mremap(it->at, it->bytes, it->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
		if (to == MAP_FAILED && errno == EFAULT) {
			/* More than one mapping: from Linux 6.17 on the first can have moved. */
			munmap(at, it->bytes);
			munmap(it->at, it->bytes);
			it->at = 0;
			break;
		}
		must(to == at, "mremap to move");
		it->at = (void *)at;
		check("moved", it->at, it->bytes, it->seed);
		break;
	}
	case 2: /* shrinks */
		if (it->bytes > 2 * page) {
			must(munmap((char *)it->at + it->bytes - page, page) == 0, "munmap");
			it->bytes -= page;
		}
		check("shrunk", it->at, it->bytes, it->seed);
		break;
	case 3: /* loses its content */ {
		must(madvise(it->at, it->bytes, MADV_DONTNEED) == 0, "madvise");
		zero("given up", it->at, it->bytes);
		fill(it->at, it->bytes, it->seed);
		break;
	}
	case 4: /* may lose its content, page by page */
		must(madvise(it->at, it->bytes, MADV_FREE) == 0, "madvise free");
		for (size_t i = 0; i < it->bytes / page; i++) {
			uint64_t *words = it->at + i * page / 8;
			if (words[0] == 0)
				zero("freed", words, page);
			else
				check("not yet freed", words, page, it->seed + i * page / 8);
		}
		fill(it->at, it->bytes, it->seed);
		break;
	case 5: /* is replaced in the middle */
		if (it->bytes > 3 * page) {
			char *at = (char *)it->at + page;
			must(mmap(at, page, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap over");
			zero("new in the middle", at, page);
			fill(it->at, it->bytes, it->seed);
		}
		break;
	case 6: /* is protected for a while */
		must(mprotect(it->at, it->bytes, PROT_READ) == 0, "mprotect");
		check("protected", it->at, it->bytes, it->seed);
		must(mprotect(it->at, page, PROT_NONE) == 0, "mprotect none");
		must(mprotect(it->at, it->bytes, PROT_READ | PROT_WRITE) == 0, "mprotect back");
		check("unprotected", it->at, it->bytes, it->seed);
		break;
	default:
		if (it->at)
			must(munmap(it->at, it->bytes) == 0, "munmap");
		it->bytes = (1 + draw(random) % 64) * page;
		it->at = map(it->bytes);
		it->seed = draw(random);
		zero("new", it->at, it->bytes);
		if (draw(random) % 4 == 0)
			madvise(it->at, it->bytes, MADV_HUGEPAGE);
		fill(it->at, it->bytes, it->seed);
	}
}

static void deep(int depth, uint64_t seed)
{
	uint64_t local[256];
	fill(local, sizeof local, seed);
	__asm__ volatile("" : : "r"(local) : "memory");
	if (depth)
		deep(depth - 1, mix(seed));
	check("stack", local, sizeof local, seed);
}

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

static void faults(uint64_t *random)
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

static void vectors(uint64_t *random)
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

/* Children: what they see is what their parent had. */
static void children(uint64_t *random, struct piece *all, int count)
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
	if (status)
		wrong("exit status of a child", shared, 0, status);
	child = vfork();
	if (child == 0) {
		execl("/proc/self/exe", "torture", "--quick", (char *)0);
		_exit(3);
	}
	must(waitpid(child, &status, 0) == child, "waitpid");
	if (status)
		wrong("exit status after vfork", shared, 0, status);
	munmap(shared, 64 * page);
}

/* Two threads, a lock between them that one of them sometimes dies with, and a pipe. */
static pthread_mutex_t lock;
static uint64_t *under_lock, lock_seed;
static int pipes[2];

static void *dies(void *unused)
{
	int result = pthread_mutex_lock(&lock);
	if (result == EOWNERDEAD)
		pthread_mutex_consistent(&lock);
	return unused;
}

static void locks(uint64_t *random)
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

static void messages(uint64_t *random)
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

static void timers(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	struct itimerspec soon = {.it_value = {.tv_nsec = 2000000}};
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1234};
	must(epoll >= 0 && timer >= 0, "epoll and timer");
	must(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) == 0, "epoll_ctl");
	must(timerfd_settime(timer, 0, &soon, 0) == 0, "timerfd_settime");
	int found;
	do
		found = epoll_wait(epoll, &event, 1, 20000);
	while (found < 0 && errno == EINTR);
	must(found == 1, "epoll_wait");
	if (event.data.u64 != 0x1234)
		wrong("epoll", &event, 0x1234, event.data.u64);
	close(epoll), close(timer);
}

static void heap(uint64_t *random)
{
	static __thread struct piece blocks[64];
	struct piece *it = &blocks[draw(random) % 64];
	if (it->at) {
		check("heap", it->at, it->bytes, it->seed);
		free(it->at);
	}
	it->bytes = (8 + draw(random) % 4000) * 8;
	it->seed = draw(random);
	it->at = malloc(it->bytes);
	fill(it->at, it->bytes, it->seed);
}

static void locked(uint64_t *random)
{
	uint64_t seed = draw(random), *at = map(4 * page);
	fill(at, 4 * page, seed);
	int result = mlock(at, 2 * page);
	check("locked", at, 4 * page, seed);
	if (result == 0)
		munlock(at, page);
	check("half locked", at, 4 * page, seed);
	munmap(at, 4 * page);
}

static void *worker(void *number)
{
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
		if (draw(&random) % 8 == 0)
			timers();
		if (draw(&random) % 8 == 0)
			children(&random, all, 64);
		__atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
	}
	for (int i = 0; i < 64; i++)
		if (all[i].at)
			check("at the end", all[i].at, all[i].bytes, all[i].seed);
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
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaction(SIGSEGV, &action, 0);
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&lock, &robust);
	under_lock = map(8 * page);
	fill(under_lock, 8 * page, lock_seed);
	must(pipe(pipes) == 0, "pipe");
	/* Three processes: this one, one with a filter, and one that shares pages with both. */
	uint64_t *common = map(256 * page);
	fill(common, 256 * page, 42);
	pid_t filtered = fork();
	if (filtered == 0)
		refuse_userfaultfd();
	pid_t plain = filtered == 0 ? -1 : fork();
	pthread_t threads[3];
	for (long i = 0; i < 3; i++)
		must(pthread_create(&threads[i], 0, worker, (void *)i) == 0, "pthread_create");
	while (access(flag, F_OK) == 0) {
		check("common", common, 256 * page, 42);
		usleep(20000);
	}
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], 0);
	check("common at the end", common, 256 * page, 42);
	if (filtered == 0 || plain == 0)
		return 0;
	for (int i = 0; i < 2; i++) {
		int status = 0;
		must(wait(&status) > 0, "wait");
		if (status)
			wrong("exit status of a process", common, 0, status);
	}
	printf("ok %ld\n", rounds);
	return 0;
}
