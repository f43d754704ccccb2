/* ring.cpp with two items at a time. */
#define RING_SEVERAL
#include "ring.cpp"
