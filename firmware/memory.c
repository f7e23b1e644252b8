/* The two functions that a compiler may call, for programs without a C library. */
#include <stddef.h>

void* memcpy(void* to, const void* from, size_t count) {
  char* written = to;
  const char* read = from;
  while (count--) *written++ = *read++;
  return to;
}

void* memset(void* to, int value, size_t count) {
  char* written = to;
  while (count--) *written++ = (char)value;
  return to;
}
