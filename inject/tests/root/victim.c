// What the tests stop. The first argument says what it does; it prints "ready" once it does it, and then
// one line with what became of it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *shared;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void ready(void) {
    puts("ready");
    fflush(stdout);
}

static void *count(void *slot) {
    volatile uint64_t *mine = shared + 8 * (uintptr_t)slot;
    for (;;)
        ++*mine;
}

// Threads that count in a file that the test maps too.
static int counter(int threads) {
    for (intptr_t n = 0; n < threads; n++) {
        pthread_t thread;
        pthread_create(&thread, NULL, count, (void *)n);
    }
    ready();
    pause();
    return 0;
}

// Sits in one system call and says how it ended and after how long.
static void handler(int signal) { (void)signal; }

static int channel[2], sockets[2];

static void *forward(void *unused) {
    char byte;
    while (read(channel[0], &byte, 1) == 1)
        write(sockets[1], &byte, 1);
    return unused;
}

static int blocked(const char *kind) {
    int fds[2];
    pipe(fds);
    pipe(channel);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sockets);
    pthread_t forwarder;
    if (!strcmp(kind, "recv"))
        pthread_create(&forwarder, NULL, forward, NULL);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event);
    struct timespec part = {0, 700000000}, left = {0, 0}, until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 700000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    struct pollfd wait = {fds[0], POLLIN, 0};
    sigset_t empty, usr1;
    sigemptyset(&empty);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    struct sigaction action = {.sa_handler = handler};
    action.sa_flags = strcmp(kind, "read_restart") == 0 ? SA_RESTART : 0;
    sigaction(SIGUSR1, &action, NULL);
    // The test writes into a pipe through /proc.
    printf("fds %d\n", !strcmp(kind, "recv") ? channel[1] : fds[1]);
    ready();
    char byte = 0;
    uint32_t word = 0;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fds[0], &set);
    struct timeval limit = {0, 700000};
    double start = now();
    long result = -2;
    errno = 0;
    if (strncmp(kind, "read", 4) == 0)
        result = read(fds[0], &byte, 1);
    else if (!strcmp(kind, "recv"))
        result = recv(sockets[0], &byte, 1, 0);
    else if (!strcmp(kind, "epoll"))
        result = epoll_wait(epoll, &event, 1, -1);
    else if (!strcmp(kind, "epoll_pwait"))
        result = epoll_pwait(epoll, &event, 1, -1, &empty);
    else if (!strcmp(kind, "poll"))
        result = poll(&wait, 1, -1);
    else if (!strcmp(kind, "poll_limit"))
        result = poll(&wait, 1, 700);
    else if (!strcmp(kind, "ppoll_limit"))
        result = ppoll(&wait, 1, &part, &empty);
    else if (!strcmp(kind, "select_limit"))
        result = select(fds[0] + 1, &set, NULL, NULL, &limit);
    else if (!strcmp(kind, "nanosleep"))
        result = nanosleep(&part, &left);
    else if (!strcmp(kind, "sleep_until"))
        result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    else if (!strcmp(kind, "futex_limit"))
        result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &part, NULL, 0);
    else if (!strcmp(kind, "sigwait")) {
        sigprocmask(SIG_BLOCK, &usr1, NULL);
        result = sigwaitinfo(&usr1, NULL);
    }
    printf("%ld %d %.3f\n", result, errno, now() - start);
    return 0;
}

// Waits in a handler that runs on a stack of its own.
static char other[65536];
static volatile int inside;
static void on_other_stack(int signal) {
    char here, byte;
    inside = &here > other && &here < other + sizeof other;
    ready();
    while (read(channel[0], &byte, 1) < 0)
        inside = -1;
    (void)signal;
}

static int altstack(void) {
    stack_t stack = {.ss_sp = other, .ss_size = sizeof other};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = on_other_stack, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    pipe(channel);
    printf("fds %d\n", channel[1]);
    raise(SIGUSR1);
    sigaltstack(NULL, &stack);
    printf("%d %d 0\n", inside, stack.ss_flags);
    return 0;
}

// May not make a userfaultfd, nor ask for its pid.
static int filtered(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    pipe(channel);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    printf("fds %d\n", channel[1]);
    ready();
    char byte;
    long result = read(channel[0], &byte, 1);
    printf("%ld %d 0\n", result, errno);
    fflush(stdout);
    read(channel[0], &byte, 1);
    syscall(SYS_getpid);
    puts("not killed");
    return 0;
}

#if defined(__x86_64__)
// Each thread holds values in vector registers and complains when they change.
static void *vectors(void *seed) {
    uint64_t in[4] = {(uintptr_t)seed, 2, 3, 4}, out[4];
    for (;;) {
        __asm__ volatile("movdqu (%0), %%xmm3\n movdqu 16(%0), %%xmm15\n mov $20000, %%ecx\n"
                         "1: pause\n dec %%ecx\n jnz 1b\n"
                         "movdqu %%xmm3, (%1)\n movdqu %%xmm15, 16(%1)\n"
                         :: "r"(in), "r"(out) : "ecx", "xmm3", "xmm15", "memory");
        if (memcmp(in, out, sizeof in))
            shared[0]++;
        shared[8]++;
    }
}

// One sequence that its thread never leaves but by being interrupted.
static void *sequence(void *unused) {
    struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    volatile uint64_t *aborts = shared, *begins = shared + 1;
    __asm__ volatile(
        ".pushsection __rseq_cs, \"aw\"\n .balign 32\n"
        "3: .long 0, 0\n .quad 1f, (2f - 1f), 4f\n .popsection\n"
        "5: incq (%2)\n leaq 3b(%%rip), %%rax\n movq %%rax, (%0)\n"
        "1: pause\n jmp 1b\n"
        "2: .byte 0x0f, 0xb9, 0x3d\n .long %c3\n"
        "4: incq (%1)\n jmp 5b\n"
        :: "r"(&area->rseq_cs), "r"(aborts), "r"(begins), "i"(RSEQ_SIG) : "rax", "memory");
    return unused;
}
#else
static void *vectors(void *seed) { return seed; }
static void *sequence(void *unused) { return unused; }
#endif

static int vforked(void) {
    pipe(channel);
    printf("fds %d\n", channel[1]);
    fflush(stdout);
    pid_t child = vfork();
    if (child == 0) {
        char byte, text[32];
        write(1, text, sprintf(text, "child %d\nready\n", (int)syscall(SYS_getpid)));
        read(channel[0], &byte, 1);
        _exit(3);
    }
    int status;
    waitpid(child, &status, 0);
    printf("%d 0 0\n", WEXITSTATUS(status));
    return 0;
}

// Threads that compute, allocate, and hand a token around a ring of pipes. Each round has the same result.
static int ring[8][2];
static uint64_t work(uint64_t seed) {
    uint64_t sum = seed;
    for (int size = 64; size < 60000; size *= 3) {
        unsigned char *block = malloc(size);
        for (int n = 0; n < size; n++) {
            block[n] = sum >> 56;
            sum = sum * 6364136223846793005u + 1442695040888963407u;
        }
        double mean = 0;
        for (int n = 0; n < size; n++)
            mean += block[n] * 0.5;
        sum ^= (uint64_t)mean;
        free(block);
    }
    return sum;
}

static void *member(void *argument) {
    intptr_t mine = (intptr_t)argument;
    uint64_t expected = work(mine), token;
    for (;;) {
        if (read(ring[mine][0], &token, sizeof token) != sizeof token || work(mine) != expected ||
            (usleep(mine * 20) && errno != 0))
            shared[1]++;
        if (mine == 0)
            shared[0]++;
        token++;
        if (write(ring[(mine + 1) % 8][1], &token, sizeof token) != sizeof token)
            shared[1]++;
        shared[2] = token;
    }
}

static int busy(void) {
    for (intptr_t n = 0; n < 8; n++)
        pipe(ring[n]);
    for (intptr_t n = 0; n < 8; n++) {
        pthread_t thread;
        pthread_create(&thread, NULL, member, (void *)n);
    }
    uint64_t token = 1;
    for (int n = 0; n < 3; n++)
        write(ring[n * 2][1], &token, sizeof token);
    ready();
    pause();
    return 1;
}

static int spin_two(void *(*body)(void *)) {
    for (intptr_t n = 1; n <= 2; n++) {
        pthread_t thread;
        pthread_create(&thread, NULL, body, (void *)n);
        if (body == sequence)
            break;
    }
    ready();
    pause();
    return 1;
}

int main(int count, char **arguments) {
    const char *what = arguments[1];
    int file = open(arguments[2], O_RDWR);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!strcmp(what, "counter"))
        return counter(atoi(arguments[3]));
    if (!strcmp(what, "blocked"))
        return blocked(arguments[3]);
    if (!strcmp(what, "altstack"))
        return altstack();
    if (!strcmp(what, "filtered"))
        return filtered();
    if (!strcmp(what, "vectors"))
        return spin_two(vectors);
    if (!strcmp(what, "sequence")) {
        // The leader itself, which is the one that is made to run system calls.
        ready();
        sequence(NULL);
    }
    if (!strcmp(what, "vforked"))
        return vforked();
    if (!strcmp(what, "busy"))
        return busy();
    return 2 + count;
}
