// Loops that are compiled for several instruction sets.
#pragma once

// The loader picks the widest vectors that the CPU has; contraction is off, so that all give the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define POTQ_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define POTQ_CLONES
#endif
