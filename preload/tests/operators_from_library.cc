// A program whose library replaces operators: what one of the two makes, the other frees.

#include <cstdio>
#include <new>

int *number();
int count();

int main()
{
	for (int i = 0; i < 3000; i++) {
		delete number();
		// Not an expression, which compilers may leave out.
		::operator delete(::operator new(sizeof(int)));
	}
	if (count() != 6000) {
		std::fprintf(stderr, "%d blocks were made and freed by the library's operators\n", count());
		return 1;
	}
	return 0;
}
