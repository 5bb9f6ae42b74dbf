/* A program that has a malloc of its own, and leaves the functions beside it to the C library. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

void cfree(void *block) __attribute__((weak));
void free_sized(void *block, size_t size) __attribute__((weak));

static char pool[1 << 20] __attribute__((aligned(16)));
static size_t used;

void *malloc(size_t size)
{
	size_t bytes = (size + 31) / 16 * 16;
	size_t *head = (size_t *)(pool + used);

	if (used + bytes > sizeof pool)
		return NULL;
	used += bytes;
	*head = size;
	return (char *)head + 16;
}

void free(void *block)
{
	if (block && ((char *)block < pool || (char *)block >= pool + sizeof pool))
		abort();
}

void *calloc(size_t count, size_t size)
{
	return malloc(count * size);
}

void *realloc(void *block, size_t size)
{
	void *moved = malloc(size);

	if (block && moved) {
		size_t old = *(size_t *)((char *)block - 16);
		memcpy(moved, block, old < size ? old : size);
	}
	return moved;
}

int main(void)
{
	int *numbers = reallocarray(NULL, 10, sizeof *numbers);

	numbers[3] = 7;
	numbers = reallocarray(numbers, 100, sizeof *numbers);
	if (numbers[3] != 7)
		return 1;
	free(numbers);
	if (cfree)
		cfree(malloc(10));
	if (free_sized)
		free_sized(malloc(10), 10);
	return 0;
}
