/*
 * An HTTP server that holds an io_uring instance, which CRIU cannot dump.
 *
 * PORT (8080). GET / answers {"count", "boot"}. Fails at the start where io_uring is forbidden.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

static int fail(const char *what)
{
	fprintf(stderr, "iouring: %s: %s\n", what, strerror(errno));
	return EXIT_FAILURE;
}

/* Reads one request up to its blank line; 0 at the end of the connection. */
static int read_request(int fd)
{
	char buffer[4096];
	size_t used = 0;

	while (used < sizeof(buffer) - 1) {
		ssize_t got = read(fd, buffer + used, sizeof(buffer) - 1 - used);

		if (got <= 0)
			return 0;
		used += got;
		buffer[used] = 0;
		if (strstr(buffer, "\r\n\r\n"))
			return 1;
	}
	return 0;
}

int main(void)
{
	struct io_uring_params params = { 0 };
	struct sigaction on_end = { .sa_handler = end };
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	const char *port = getenv("PORT");
	unsigned long boot;
	unsigned int count = 0;
	int one = 1, zero = 0, listener;

	if (getrandom(&boot, sizeof(boot), 0) != sizeof(boot))
		return fail("getrandom");
	if (syscall(SYS_io_uring_setup, 8, &params) < 0)
		return fail("io_uring_setup");
	sigaction(SIGTERM, &on_end, NULL);
	signal(SIGPIPE, SIG_IGN);

	listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0)
		return fail("socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	address.sin6_port = htons(port ? atoi(port) : 8080);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128))
		return fail("listen");
	puts("listening");
	fflush(stdout);

	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			continue;
		if (read_request(fd)) {
			char body[64], answer[256];
			int size = snprintf(body, sizeof(body), "{\"count\": %u, \"boot\": \"%016lx\"}\n", ++count,
					    boot);

			size = snprintf(answer, sizeof(answer),
					"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
					"Content-Length: %d\r\nConnection: close\r\n\r\n%s",
					size, body);
			if (write(fd, answer, size) != size)
				fail("write");
		}
		close(fd);
	}
}
