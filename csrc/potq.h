/* Products of float activations with packed power-of-two weights: the plain C interface.
 *
 * A weight W (rows x columns) has w[r][k] = scale[r][g(k)] * level[code[r][k]] / 2^reference_log2, where g(k) = k / group. It
 * comes in the canonical layout of the checkpoint (docs/architecture.md) and is repacked once into tiles (kernels/layout.h),
 * which every instruction set reads. Functions over a range of rows use no threads, no globals and no allocation: any thread
 * pool can drive them. potq_linear is the driver that uses OpenMP.
 *
 * Every instruction set and every number of threads gives the same bits; docs/kernels.md states the arithmetic.
 */
#ifndef POTQ_H
#define POTQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define POTQ_API __declspec(dllexport)
#else
#define POTQ_API __attribute__((visibility("default")))
#endif

#define POTQ_ABI 7

enum potq_scale_format { POTQ_SCALE_FLOAT16 = 0, POTQ_SCALE_E8M0 = 1 };
enum potq_dtype { POTQ_FLOAT32 = 0, POTQ_BFLOAT16 = 1 };
/* INT8: activations are rounded to int8, per row and block of at most 64 columns (a block with an outlier to 16 bits).
 * FLOAT: they are not rounded at all. */
enum potq_arithmetic { POTQ_INT8 = 0, POTQ_FLOAT = 1 };

typedef struct {
  int32_t rows, columns;  /* out, in */
  int32_t bits;           /* 2, 3, 4, or 8 (two's complement) */
  int32_t group;          /* columns per scale: a multiple of 16, or >= columns; the last group may be shorter */
  int32_t scale_format;   /* potq_scale_format */
  int32_t scale_rows;     /* rows of the scale tensor: `rows`, or 1 that all rows share */
  int32_t reference_log2; /* the stored scale is worth the level 2^reference_log2; 0..7 */
  int32_t trellis;        /* 1: codes of 2 or 3 bits are those of a trellis (docs/format.md); else 0 */
  int8_t levels[16];      /* level of each code; with a trellis all 2^(bits + 1), ascending; 8 bits need no table */
} potq_format;

/* y = x W^T + bias for m rows of x. x (m x columns), y (m x rows) and bias (rows, or NULL) are row-major, of one dtype. */
typedef struct {
  const potq_format* format;
  const uint8_t* tiles; /* from potq_pack, 64-byte aligned */
  const void *x, *bias;
  void* y;
  int64_t m;
  int32_t dtype;      /* potq_dtype */
  int32_t arithmetic; /* potq_arithmetic */
  int32_t isa;        /* from potq_isa */
} potq_product;

POTQ_API int32_t potq_abi(void);

/* Instruction sets are numbered 0, 1, ...: scalar, avx2, avxvnni, avx512vnni, neon, neondot, neoni8mm. NULL beyond the last. */
POTQ_API const char* potq_isa_name(int32_t isa);
/* 1: compiled in and supported by this CPU. 0: compiled in, not supported by this CPU. -1: not compiled in. */
POTQ_API int32_t potq_isa_usable(int32_t isa);

/* NULL if the kernels handle the format, else the reason (static text). */
POTQ_API const char* potq_unsupported(const potq_format* format);

/* Rows are handled in blocks of 16; a range of rows is a range of blocks. */
POTQ_API int32_t potq_row_blocks(const potq_format* format);
POTQ_API size_t potq_tiles_bytes(const potq_format* format);
/* Repack blocks [first, last) of the canonical codes and scales into tiles. */
POTQ_API void potq_pack(const potq_format* format, const uint8_t* packed, const void* scale, uint8_t* tiles, int32_t first,
                        int32_t last);

/* Activation rows [first, first + rows) of a product are prepared (rounded, and interleaved for the kernel) as one or more
 * panels: potq_panels of them, in potq_panels_bytes of memory, 64-byte aligned. */
POTQ_API int32_t potq_panels(int32_t isa, int32_t arithmetic, int32_t rows);
POTQ_API size_t potq_panels_bytes(const potq_format* format, int32_t isa, int32_t arithmetic, int32_t rows);
/* Prepare one of the panels. */
POTQ_API void potq_prepare(const potq_product* product, int64_t first, int32_t rows, int32_t panel, uint8_t* panels);
/* Outputs of row blocks [first_block, last_block) for those rows, once all panels are prepared. */
POTQ_API void potq_multiply(const potq_product* product, const uint8_t* panels, int64_t first, int32_t rows,
                            int32_t first_block, int32_t last_block);

/* Rows ids[first..last) of the canonical weight, dequantized exactly; row i goes to out[i * columns] (out is the whole result).
 * Ids must be in range. */
POTQ_API void potq_lookup(const potq_format* format, const uint8_t* packed, const void* scale, const int64_t* ids,
                          int64_t first, int64_t last, void* out, int32_t dtype);
/* One row, which must be in range, of a weight in tiles: the same float32 numbers. */
POTQ_API void potq_lookup_tiles(const potq_format* format, const uint8_t* tiles, int64_t row, float* out);

/* Ask for huge pages under memory that was not written yet: reading it needs fewer address translations. Linux; else nothing.
 */
POTQ_API void potq_advise_huge_pages(void* memory, size_t bytes);

/* The OpenMP drivers; without OpenMP they run on the calling thread. potq_linear computes `count` products one after another in
 * one parallel region (a product may read what an earlier one wrote), and returns 0, or 1 if memory for the activations cannot
 * be had. */
POTQ_API int32_t potq_linear(const potq_product* products, int32_t count, int32_t threads);
POTQ_API void potq_pack_all(const potq_format* format, const uint8_t* packed, const void* scale, uint8_t* tiles,
                            int32_t threads);
/* Returns -1, or the position of the first id outside [0, table_rows); nothing is written then. */
POTQ_API int64_t potq_lookup_all(const potq_format* format, const uint8_t* packed, const void* scale, const int64_t* ids,
                                 int64_t count, int64_t table_rows, void* out, int32_t dtype, int32_t threads);
/* The stored scales of least squared error, over all that scale_format has (fit/search.cpp): out[g] (float16 bits, or E8M0
 * bytes) minimizes sum_i importance[g][i] (weights[g][i] - scale level)^2, level being the nearest. `levels` (2..256 of them,
 * ascending, in units of the scale) is the table; weights and importance (NULL: all 1; not negative) are groups x size and
 * finite. With `signed_scales` (float16 only) a scale may be negative, which turns the levels around. Of equally good scales
 * the largest is taken, a positive one first; a group that is zero, or that no scale brings closer than zeros are, gets 0. A
 * group whose importance is zero wherever its weights are not is searched without. Returns 0, or 1 if memory cannot be had
 * (half a megabyte a thread). */
POTQ_API int32_t potq_best_scales(const float* levels, int32_t n_levels, const float* weights, const float* importance,
                                  int64_t groups, int64_t size, int32_t scale_format, int32_t signed_scales, void* out,
                                  int32_t threads);
/* Of the scales tried (groups x candidates, finite float32) the one of least squared error (fit/candidates.cpp): best[g] is the
 * position of the first that minimizes sum_i importance[g][i] (weights[g][i] - scale level / reference)^2, level being the one
 * nearest to weight / scale * reference. The n_levels `levels`, at least 2, ascend; rounding changes at the n_levels - 1
 * `boundaries`; `reference` is a power of two. A scale of 0 makes all weights 0. Weights and importance are as above. */
POTQ_API void potq_best_candidates(const float* levels, const float* boundaries, int32_t n_levels, float reference,
                                   const float* weights, const float* importance, int64_t groups, int64_t size,
                                   const float* scales, int32_t candidates, int64_t* best, int32_t threads);
POTQ_API int32_t potq_has_openmp(void);

/* Columns to be rounded one after another (fit/columns.cpp): `rows` rows of `columns` columns, the matrices of the
 * calls below row-major and contiguous. A column j belongs to group[j]; scale and shift (NULL: all 0) are rows x groups.
 * `levels` are ascending, in units of the scale; rounding changes at the n_levels - 1 `boundaries`. */
typedef struct {
  const float *levels, *boundaries;
  const float *scale, *shift;
  const int32_t* group;
  int64_t rows, groups;
  int32_t columns, n_levels;
} potq_columns;

/* GPTQ: `weights` are rounded to `values`, each error spread over the columns behind it by `factor` (columns x columns, upper
 * triangular); `errors` are what the columns behind the block still have to take. */
POTQ_API void potq_compensate(const potq_columns* block, float* weights, const float* factor, float* values, float* errors,
                              int32_t threads);
/* A sweep of coordinate descent: every one of `values` becomes the best given all others; `gradient` follows, `changes` says by
 * how much.
 */
POTQ_API void potq_descend(const potq_columns* block, float* gradient, const float* hessian, float* values, float* changes,
                           int32_t threads);

/* Trellis codes (fit/trellis.cpp). For every row the path of least sum_t (weights - steps level)^2: `index` (rows x columns, or
 * NULL) gets the positions of its levels among the n_levels `levels`, which ascend and are 8, 16, ... 256; `costs` (rows) that
 * sum. Weights and steps, what a level of 1 is worth, are rows x columns. A path begins in state 0. */
POTQ_API void potq_best_paths(const float* levels, int32_t n_levels, const float* weights, const float* steps, int64_t rows,
                              int64_t columns, uint8_t* index, float* costs, int32_t threads);

typedef struct {
  const float* levels;
  int64_t rows;
  int32_t n_levels, columns;
  int32_t kept; /* of the columns; those behind are looked at only */
} potq_path_columns;

/* GPTQ along paths: `weights` and `steps` (rows x columns) of a block, `factor` as for potq_compensate. A row's path begins in
 * states[row], which becomes the state behind the columns that are kept, and ends in ends[row], if `ends` is not NULL: one that
 * can be reached. `index`, positions of levels, and `errors` are rows x kept. */
POTQ_API void potq_compensate_paths(const potq_path_columns* block, const float* weights, const float* steps,
                                    const float* factor, const uint8_t* ends, uint8_t* states, uint8_t* index, float* errors,
                                    int32_t threads);

/* A learned weight, every entry by itself: `values` (float32, or bfloat16 if `bfloat16`) are the nearest the grid has. */
POTQ_API void potq_round(const potq_columns* weight, const float* latent, void* values, int32_t bfloat16, int32_t threads);
/* Its gradients straight through the rounding, from that of `values`: to `latent` where it is between the grid's
 * `edges`, two levels; to the scales (rows x groups), what `values` change with them. */
POTQ_API void potq_round_backward(const potq_columns* weight, const float* latent, const float* edges, const void* gradient,
                                  int32_t bfloat16, float* latent_gradient, float* scale_gradient, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
