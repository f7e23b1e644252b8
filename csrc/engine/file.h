// Files, read by pread into the reader's own memory.
//
// Rejected: mapping them. A mapped file that somebody truncates kills the process with SIGBUS, which a library cannot prevent
// without taking over the signal; and every byte is repacked anyway, so that a mapping's pages would have to be dropped again.
// pread from the page cache costs a copy (10 ms for 80 MB), and says how much it read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace potq {
namespace engine {

class File {
 public:
  // Throws unless it is a regular file that can be read.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened

  // All of [offset, offset + bytes), or an Error: the file shrank, or the disk failed. Any thread.
  void read(uint64_t offset, void* to, size_t bytes) const;

 private:
  std::string path_;
  uint64_t size_ = 0;
  int descriptor_ = -1;
};

bool exists(const std::string& path);
// A whole file of at most `most` bytes.
std::string read_text(const std::string& path, uint64_t most);

}  // namespace engine
}  // namespace potq
