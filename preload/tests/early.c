/* A library for LD_PRELOAD that is up before others: its constructor registers handlers for forks, more than the C
   library has room for without allocating, and asks the loader for symbols. The handlers allocate. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define HANDLERS 60
/* More than a thread's cache holds. */
#define BLOCKS 2000

static void allocate(void)
{
	static char *blocks[BLOCKS];

	for (size_t i = 0; i < BLOCKS; i++) {
		size_t size = 16 + i % 7 * 100;
		blocks[i] = malloc(size);
		if (!blocks[i])
			abort();
		memset(blocks[i], 1, size);
	}
	for (size_t i = 0; i < BLOCKS; i++)
		free(blocks[i]);
}

__attribute__((constructor)) static void start(void)
{
	for (int i = 0; i < HANDLERS; i++)
		if (pthread_atfork(allocate, allocate, allocate) != 0)
			abort();
	if (!dlsym(RTLD_NEXT, "malloc") || dlsym(RTLD_NEXT, "no_such_function") || !dlerror())
		abort();
	allocate();
}
