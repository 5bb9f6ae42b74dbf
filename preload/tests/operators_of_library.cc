// A library that replaces a pair of operators for itself and for the program that it is linked with.

#include <cstdlib>
#include <new>

// Blocks that no other allocator could free: they begin within somebody else's.
static const std::size_t offset = 64;
static int made;

void *operator new(std::size_t size)
{
	made++;
	char *start = static_cast<char *>(std::malloc(size + offset));
	if (!start)
		throw std::bad_alloc();
	return start + offset;
}

void operator delete(void *block) noexcept
{
	if (block)
		std::free(static_cast<char *>(block) - offset);
}

int *number()
{
	return new int(1);
}

int count()
{
	return made;
}
