/* The process that holds a pod's namespaces open: it waits until it is told to end. */
#include <signal.h>
#include <unistd.h>

static void end(int number)
{
	_exit(number == 0);
}

int main(void)
{
	signal(SIGINT, end);
	signal(SIGTERM, end);
	for (;;)
		pause();
}
