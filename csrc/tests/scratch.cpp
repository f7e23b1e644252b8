#include "scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

void write_file(const std::string& path, const void* data, size_t bytes) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0 || ::write(file, data, bytes) != ssize_t(bytes) || close(file)) std::perror(path.c_str()), std::exit(3);
}

void write_file(const std::string& path, const std::string& data) { write_file(path, data.data(), data.size()); }

void remove_file(const std::string& path) {
  if (unlink(path.c_str())) std::perror(path.c_str()), std::exit(3);
}

ScratchFolder::ScratchFolder() {
  // in memory where the system has such a folder
  char path[] = "/dev/shm/potq-XXXXXX", elsewhere[] = "/tmp/potq-XXXXXX";
  path_ = mkdtemp(path) ? path : mkdtemp(elsewhere) ? elsewhere : "";
  if (path_.empty()) std::perror("mkdtemp"), std::exit(3);
}

ScratchFolder::~ScratchFolder() {
  if (DIR* folder = opendir(path_.c_str())) {
    while (const dirent* entry = readdir(folder)) unlink((path_ + "/" + entry->d_name).c_str());
    closedir(folder);
  }
  rmdir(path_.c_str());
}
