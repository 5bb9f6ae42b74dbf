// C++'s operators new and delete over the preloaded library.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

static void expect(bool holds, const char *what)
{
	if (!holds) {
		std::fprintf(stderr, "does not hold: %s\n", what);
		std::exit(1);
	}
}

struct alignas(256) Wide {
	char bytes[300];
};

static volatile std::size_t far_too_much = std::numeric_limits<std::ptrdiff_t>::max() - 100;
static int handled;

int main()
{
	bool thrown = false;
	try {
		static_cast<char *>(::operator new(far_too_much))[0] = 1;
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	expect(thrown, "new throws bad_alloc");
	expect(!::operator new(far_too_much, std::nothrow), "new (nothrow) returns null");
	thrown = false;
	try {
		static_cast<char *>(::operator new[](far_too_much, std::align_val_t(512)))[0] = 1;
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	expect(thrown, "new[] with an alignment throws bad_alloc");
	expect(!::operator new(far_too_much, std::align_val_t(512), std::nothrow), "new (alignment, nothrow) returns null");

	std::set_new_handler([] {
		if (++handled == 3)
			std::set_new_handler(nullptr);
	});
	expect(!::operator new(far_too_much, std::nothrow), "new (nothrow) returns null after its handler gave up");
	expect(handled == 3, "the new-handler is called until it gives up");

	std::vector<std::thread> threads;
	for (int number = 0; number < 4; number++)
		threads.emplace_back([] {
			std::vector<std::string> words;
			for (int i = 0; i < 50000; i++)
				words.emplace_back(i % 100, 'x');
			for (int i = 0; i < 1000; i++) {
				Wide *wide = new Wide, *wides = new Wide[3];
				expect(reinterpret_cast<std::uintptr_t>(wide) % 256 == 0, "new aligns");
				expect(reinterpret_cast<std::uintptr_t>(wides) % 256 == 0, "new[] aligns");
				delete wide;
				delete[] wides;
			}
		});
	for (auto &thread : threads)
		thread.join();
}
