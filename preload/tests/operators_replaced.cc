// A program that replaces one pair of operators, and relies on the C++ library's others to call it.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

// Blocks that no other allocator could free: they begin within somebody else's.
static const std::size_t offset = 64;
static std::size_t made, freed;

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
	if (!block)
		return;
	freed++;
	std::free(static_cast<char *>(block) - offset);
}

struct Base {
	virtual ~Base() {}
	int numbers[10];
};

struct Derived : Base {
	std::string text = std::string(100, 'x');
};

int main()
{
	for (int i = 0; i < 1000; i++) {
		std::unique_ptr<Base> one(new Derived);
		std::unique_ptr<Derived[]> many(new Derived[3]);
		delete new (std::nothrow) long(1);
		delete[] new (std::nothrow) long[10];
		std::vector<std::string> words(10, std::string(50, 'y'));
	}
	if (made < 10000 || made != freed) {
		std::fprintf(stderr, "%zu blocks were made and %zu freed by the program's own operators\n", made, freed);
		return 1;
	}
}
