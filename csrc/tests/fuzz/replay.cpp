// Runs a fuzz target on the files of the folders that are its arguments: replays a corpus with any compiler.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "parts.h"

int main(int count, char** arguments) {
  int files = 0;
  for (int i = 1; i < count; i++) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(arguments[i])) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    for (const auto& path : paths) {
      std::ifstream file(path, std::ios::binary);
      const std::string input{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
      std::fprintf(stderr, "%s\n", path.c_str());  // the last one printed is the one that crashed
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
      files++;
    }
  }
  std::printf("%d inputs\n", files);
  return files ? 0 : 1;
}
