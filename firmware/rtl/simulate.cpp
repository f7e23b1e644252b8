// Runs a simulated system until it stops: characters go to stdout. +limit=N cycles, 10^10 by default.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "Vsystem.h"
#include "verilated.h"

int main(int count, char** words) {
  std::uint64_t limit = 10'000'000'000;
  for (int i = 1; i < count; i++) {
    if (std::strncmp(words[i], "+limit=", 7) == 0) limit = std::strtoull(words[i] + 7, nullptr, 10);
  }
  Verilated::commandArgs(count, words);
  Vsystem system;
  system.running = 0;
  for (std::uint64_t cycle = 0; cycle < limit; cycle++) {
    if (cycle == 20) system.running = 1;
    system.clock = 0;
    system.eval();
    system.clock = 1;
    system.eval();
    if (system.written) {
      std::putchar(system.character);
      std::fflush(stdout);
    }
    if (system.running && system.stopped) return 0;
  }
  std::fputs("the program did not stop\n", stderr);
  return 1;
}
