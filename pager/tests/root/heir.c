/* Has a child that holds a robust lock in shared memory. For a line on its input it kills the child, takes the
 * lock, and prints "inherited", or what it got. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	pthread_mutexattr_t attributes;
	pthread_mutex_t *lock = mmap(0, sizeof *lock, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char line[64];
	int locked[2];

	if (lock == MAP_FAILED || pipe(locked))
		return 2;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(lock, &attributes);
	pid_t child = fork();
	if (child == 0) {
		if (pthread_mutex_lock(lock) || write(locked[1], "", 1) != 1)
			return 2;
		for (;;)
			pause();
	}
	if (read(locked[0], line, 1) != 1)
		return 2;
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 2;
	kill(child, SIGKILL);
	waitpid(child, 0, 0);
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	at.tv_sec += 20;
	int result = pthread_mutex_timedlock(lock, &at);
	printf("%s\n", result == EOWNERDEAD ? "inherited" : strerror(result));
	fflush(stdout);
	return 0;
}
