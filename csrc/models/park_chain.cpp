/* park.cpp with one post of two items, and one wake-up for both. */
#define PARK_CHAIN
#include "park.cpp"
