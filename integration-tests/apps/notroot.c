/* For LD_PRELOAD: tells a program that refuses to run as root that it does not, but as the user $NOTROOT.
 * CRIU may not look at the limits of another user's process where it has no CAP_SYS_RESOURCE. */

#include <stdlib.h>
#include <sys/types.h>

static uid_t user(void)
{
	const char *number = getenv("NOTROOT");

	return number ? (uid_t)strtoul(number, NULL, 10) : 0;
}

uid_t getuid(void)
{
	return user();
}

uid_t geteuid(void)
{
	return user();
}
