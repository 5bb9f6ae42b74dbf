/* Threads that allocate and free beside each other, and beside forks, are cancelled at pthread_testcancel() only: neither
   malloc nor free is a cancellation point. Each counts where it ended. So do those that are to be cancelled before their first
   malloc. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 12, ROUNDS = 6 };

static _Thread_local volatile int inside;
static atomic_int ended_inside, ended_at_testcancel;
static atomic_int stop, cancelled;

static void count(void *unused)
{
	(void)unused;
	atomic_fetch_add(inside ? &ended_inside : &ended_at_testcancel, 1);
}

static void *work(void *argument)
{
	unsigned seed = (unsigned)(size_t)argument;
	void *blocks[16] = {0};

	pthread_cleanup_push(count, NULL);
	for (;;) {
		inside = 1;
		for (int i = 0; i < 20000; i++) {
			int at = rand_r(&seed) % 16;
			free(blocks[at]);
			blocks[at] = malloc(40000 + rand_r(&seed) % 400000);
		}
		inside = 0;
		pthread_testcancel();
	}
	pthread_cleanup_pop(0);
	return NULL;
}

static void *begin_cancelled(void *unused)
{
	(void)unused;
	pthread_cleanup_push(count, NULL);
	inside = 1;
	/* To cancel a thread allocates, too. */
	while (!atomic_load(&cancelled))
		;
	void *volatile block = malloc(100);
	free(block);
	inside = 0;
	pthread_testcancel();
	pthread_cleanup_pop(0);
	return NULL;
}

static void *fork_again(void *unused)
{
	while (!atomic_load(&stop)) {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		waitpid(child, NULL, 0);
	}
	return unused;
}

int main(void)
{
	pthread_t forks, threads[THREADS];
	/* So that a fork takes a while. */
	char *held = malloc(200 << 20);

	for (size_t at = 0; at < 200u << 20; at += 4096)
		held[at] = 1;
	pthread_create(&forks, NULL, fork_again, NULL);
	for (int round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < THREADS; i++)
			pthread_create(&threads[i], NULL, work, (void *)(i + 1));
		usleep(3000);
		for (int i = 0; i < THREADS; i++)
			pthread_cancel(threads[i]);
		for (int i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
	}
	atomic_store(&stop, 1);
	pthread_join(forks, NULL);
	for (int i = 0; i < THREADS; i++) {
		atomic_store(&cancelled, 0);
		pthread_create(&threads[0], NULL, begin_cancelled, NULL);
		pthread_cancel(threads[0]);
		atomic_store(&cancelled, 1);
		pthread_join(threads[0], NULL);
	}
	free(held);
	printf("%d inside, %d at pthread_testcancel\n", ended_inside, ended_at_testcancel);
	return ended_inside != 0 || ended_at_testcancel != THREADS * (ROUNDS + 1);
}
