/*
 * Holds the kernel's network lock (rtnl): says "held" on its standard output when it has it, and lets go at the end of its
 * standard input.
 *
 * An ethtool request reads its arguments with the lock held (net/ethtool/ioctl.c). Here the second of them is on a page that
 * is missing until somebody who listens at a userfaultfd brings it.
 */
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void *ask(void *argument)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_data = argument };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	need(fd >= 0, "socket");
	need(!ioctl(fd, SIOCETHTOOL, &request), "SIOCETHTOOL");
	return NULL;
}

int main(void)
{
	size_t page = sysconf(_SC_PAGESIZE);
	char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(pages != MAP_FAILED, "mmap");

	struct ethtool_gfeatures *arguments = (void *)(pages + page - sizeof(arguments->cmd));

	arguments->cmd = ETHTOOL_GFEATURES;

	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_range missing = { .start = (__u64)(pages + page), .len = page };
	struct uffdio_register registered = { .range = missing, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zeros = { .range = missing };
	struct uffd_msg message;
	pthread_t thread;
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	need(uffd >= 0, "userfaultfd");
	need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	need(!ioctl(uffd, UFFDIO_REGISTER, &registered), "UFFDIO_REGISTER");
	need(!pthread_create(&thread, NULL, ask, arguments), "pthread_create");
	need(read(uffd, &message, sizeof(message)) == sizeof(message), "read userfaultfd");
	need(message.event == UFFD_EVENT_PAGEFAULT, "event");
	puts("held");
	fflush(stdout);
	while (getchar() != EOF)
		;
	need(!ioctl(uffd, UFFDIO_ZEROPAGE, &zeros), "UFFDIO_ZEROPAGE");
	need(!pthread_join(thread, NULL), "pthread_join");
	return 0;
}
