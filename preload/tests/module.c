/* A library that a program opens: it gives the program blocks, and frees those that the program gives to it. */

#include <stdlib.h>

void *give(size_t size)
{
	return malloc(size);
}

void take(void *block)
{
	free(block);
}
