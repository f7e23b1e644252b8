// The border that no exception crosses, of the C interface.
#pragma once

#include <cstring>
#include <exception>
#include <new>

namespace potq {
namespace engine {

inline void say(char* message, size_t size, const char* text) {
  if (!message || !size) return;
  std::strncpy(message, text, size - 1);
  message[size - 1] = 0;
}

// Runs `action`; its error becomes the message and `otherwise` the result.
template <class Result, class Action>
Result guarded(char* message, size_t size, Result otherwise, Action action) {
  try {
    return action();
  } catch (const std::bad_alloc&) {
    say(message, size, "no memory");
  } catch (const std::exception& error) {
    say(message, size, error.what());
  }
  return otherwise;
}

}  // namespace engine
}  // namespace potq
