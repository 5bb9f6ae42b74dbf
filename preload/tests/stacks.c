/* A child of a process with many threads frees their stacks as it joins its first own: so free is called with the C library's
   list of stacks locked. Whoever needs that list then, to start a thread, waits for ever. */

#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* With more than 40 MiB of stacks none is kept. */
enum { THREADS = 200 };

static void *wait_for_ever(void *argument)
{
	pause();
	return argument;
}

static void *nothing(void *argument)
{
	return argument;
}

int main(void)
{
	pthread_t thread;
	int status = 1;
	pid_t child;

	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, wait_for_ever, NULL) != 0)
			return 1;
	free(malloc(200000));
	child = fork();
	if (child == 0) {
		for (int i = 0; i < 3; i++)
			if (pthread_create(&thread, NULL, nothing, NULL) != 0 || pthread_join(thread, NULL) != 0)
				_exit(1);
		_exit(0);
	}
	for (int i = 0; i < 500 && waitpid(child, &status, WNOHANG) == 0; i++)
		usleep(20000);
	return status != 0;
}
