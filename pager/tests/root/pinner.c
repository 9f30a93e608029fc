/* pinner KIND: has something of that kind that keeps its memory where it is, says "ready", and says "good" for each
 * line of its input. "missing" when the system does not have it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/if_xdp.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 1 << 20 };
static char *memory;

static int ring(void)
{
	struct io_uring_params parameters = {0};

	return syscall(SYS_io_uring_setup, 8, &parameters);
}

static int ring_mapped_only(void)
{
	int fd = ring();
	void *rings = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);

	return rings == MAP_FAILED ? -1 : close(fd);
}

static int buffers(void)
{
	struct iovec all = {memory, BYTES};
	struct io_uring_rsrc_update ring_itself = {.offset = -1U, .data = ring()};

	/* Without a descriptor or a mapping that shows the ring. */
	if (syscall(SYS_io_uring_register, ring_itself.data, IORING_REGISTER_BUFFERS, &all, 1) ||
	    syscall(SYS_io_uring_register, ring_itself.data, 20 /* ring descriptors */,
		    &ring_itself, 1) != 1)
		return -1;
	int fd = ring_itself.data;
	return close(fd);
}

static int requests(void)
{
	aio_context_t context = 0;

	return syscall(SYS_io_setup, 8, &context);
}

static int packets(void)
{
	struct xdp_umem_reg all = {.addr = (uintptr_t)memory, .len = BYTES, .chunk_size = 4096};
	int count = 64, fd = socket(AF_XDP, SOCK_RAW, 0);

	if (setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &all, sizeof all) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &count, sizeof count))
		return -1;
	void *filled = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			    XDP_UMEM_PGOFF_FILL_RING);
	return filled == MAP_FAILED ? -1 : 0;
}

static int faults(void)
{
	/* Without rights. */
	return syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
}

static int device(void) { return open("/dev/loop-control", O_RDWR | O_CLOEXEC); }

static void *in_a_table_of_its_own(void *result)
{
	int failed = unshare(CLONE_FILES) || ring() < 0;

	*(volatile int *)result = failed ? -1 : 0;
	for (;;)
		pause();
	return 0;
}

static int ring_of_a_thread(void)
{
	static volatile int result = 1;
	pthread_t thread;

	if (pthread_create(&thread, 0, in_a_table_of_its_own, (void *)&result))
		return -1;
	while (result == 1)
		usleep(1000);
	return result;
}

static int tracee(void)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		for (;;)
			pause();
	}
	return waitpid(child, 0, 0) == child ? 0 : -1;
}

static int nothing(void) { return 0; }

static const struct {
	const char *name;
	int (*make)(void);
} kinds[] = {
	{"ring", ring},	      {"mapped-ring", ring_mapped_only}, {"thread-ring", ring_of_a_thread},
	{"buffers", buffers}, {"aio", requests},		 {"xdp", packets},
	{"faults", faults},   {"device", device},		 {"tracee", tracee},
	{"nothing", nothing},
};

int main(int count, char **arguments)
{
	char line[64];

	memory = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 1, BYTES);
	for (size_t i = 0; count == 2 && i < sizeof kinds / sizeof *kinds; i++)
		if (!strcmp(kinds[i].name, arguments[1]))
			printf(kinds[i].make() < 0 ? "missing\n" : "ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int good = 1;

		for (int i = 0; i < BYTES; i++)
			good &= memory[i] == 1;
		printf(good ? "good\n" : "bad\n");
		fflush(stdout);
	}
	return 0;
}
