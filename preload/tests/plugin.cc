// A library in C++ that a program without C++ opens. While it is opened, a thread of its own is the first to call `new`.

#include <cstddef>
#include <new>
#include <pthread.h>

static void *work(void *)
{
	delete new int(3);
	return nullptr;
}

__attribute__((constructor)) static void start()
{
	pthread_t thread;
	pthread_create(&thread, nullptr, work, nullptr);
	pthread_join(thread, nullptr);
}

extern "C" int throws(size_t size)
{
	try {
		char *volatile block = new char[size];
		delete[] block;
		return 0;
	} catch (const std::bad_alloc &) {
		return 1;
	}
}

extern "C" int is_null(size_t size)
{
	char *volatile block = new (std::nothrow) char[size];
	delete[] block;
	return block == nullptr;
}
