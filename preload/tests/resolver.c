/* A function of the program's own that is chosen when the program is relocated, by one that allocates. */

#include <stdlib.h>
#include <string.h>

static char *kept;

static int chosen(void)
{
	return 1;
}

static int (*resolve(void))(void)
{
	kept = malloc(100);
	if (kept)
		strcpy(kept, "from the resolver");
	return chosen;
}

int function(void) __attribute__((ifunc("resolve")));

int main(void)
{
	int ok = function() == 1 && kept && strcmp(kept, "from the resolver") == 0;

	free(kept);
	return !ok;
}
