// A library that replaces a pair of operators for itself and for the program that it is linked with.

#include "replaced.hh"

int *number()
{
	return new int(1);
}

int count()
{
	return made == freed ? static_cast<int>(made) : -1;
}
