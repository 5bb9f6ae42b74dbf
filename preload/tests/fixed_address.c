/* A program that is not position-independent, and takes the addresses of malloc and of what goes with it: it has them in its own
   linkage table. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

int main(void)
{
	void *(*volatile allocate)(size_t) = malloc;
	void *(*volatile allocate_zeroed)(size_t, size_t) = calloc;
	void *(*volatile resize)(void *, size_t) = realloc;
	void (*volatile give_back)(void *) = free;
	void (*free_sized)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");

	give_back(resize(allocate_zeroed(10, 10), 1000));
	/* Ends the process, unless the program is taken for one with functions of its own. */
	free_sized(allocate(10), 100000);
	return 0;
}
