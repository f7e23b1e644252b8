#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace potq {
namespace engine {

File::File(const std::string& path) : path_(path) {
  // NONBLOCK: opening a named pipe would wait for its writer
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0 && errno == ENOENT) fail("%s is missing: the folder is incomplete, or no model", path.c_str());
  if (descriptor_ < 0) fail("%s cannot be opened (%s)", path.c_str(), std::strerror(errno));
  struct stat status;
  if (fstat(descriptor_, &status) || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    fail("%s is not a file", path.c_str());
  }
  size_ = uint64_t(status.st_size);
}

File::~File() { close(descriptor_); }

void File::read(uint64_t offset, void* to, size_t bytes) const {
  char* next = static_cast<char*>(to);
  while (bytes) {
    const ssize_t count = pread(descriptor_, next, bytes, off_t(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("%s cannot be read (%s)", path_.c_str(), std::strerror(errno));
    if (count == 0) fail("%s became shorter while it was read; load it when nobody writes to it", path_.c_str());
    next += count, offset += uint64_t(count), bytes -= size_t(count);
  }
}

bool exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

std::string read_text(const std::string& path, uint64_t most) {
  const File file(path);
  if (file.size() > most)
    fail("%s has %llu bytes, more than the %llu that such a file may have; copy it again", path.c_str(),
         static_cast<unsigned long long>(file.size()), static_cast<unsigned long long>(most));
  std::string text(size_t(file.size()), '\0');
  file.read(0, &text[0], text.size());
  return text;
}

}  // namespace engine
}  // namespace potq
