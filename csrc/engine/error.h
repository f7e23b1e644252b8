// What goes wrong inside the engine is thrown as an Error, whose text is for users: the file, the tensor or key, what was
// expected, what was found, what to do. It never crosses the C interface (engine.cpp catches it).
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace potq {
namespace engine {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Text of a file as it may stand in a message: short, and without bytes that a terminal would act on.
std::string quoted(std::string_view text);

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

}  // namespace engine
}  // namespace potq
