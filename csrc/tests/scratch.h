// Files that tests write for the engine to read. What fails here ends the program.
#pragma once

#include <cstddef>
#include <string>

void write_file(const std::string& path, const void* data, size_t bytes);
void write_file(const std::string& path, const std::string& data);
void remove_file(const std::string& path);

// A folder that is gone when the program ends; in memory where there is /dev/shm.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};
