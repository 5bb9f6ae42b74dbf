// A program that replaces one pair of operators, and relies on the C++ library's others to call it.

#include "replaced.hh"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

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
