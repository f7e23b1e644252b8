/* Rows' totals by a co-processor of potq.hardware.rtl.coprocessor, for matrices whose codes and scales it takes:

   POTQ_UNIT_BITS    of a code: 2, 3, 4 or 8
   POTQ_UNIT_GROUP   weights of a group; all groups are whole
   POTQ_UNIT_SHIFTS  whether scales are powers of two

   A group of activations is loaded once and multiplied with all rows. matrix.c includes this file, whose variables it uses. */
typedef uint32_t __attribute__((may_alias)) unit_word;

#define UNIT_LOAD(place, a, b) __asm__ volatile(".insn r 0x2b, 0, " #place ", x0, %0, %1" ::"r"(a), "r"(b))
#define UNIT_DOT(place, a, b) __asm__ volatile(".insn r 0x2b, 1, " #place ", x0, %0, %1" ::"r"(a), "r"(b))
#define UNIT_EIGHT(place) UNIT_LOAD(place, x[2 * place], x[2 * place + 1])

#if POTQ_UNIT_BITS == 2
#define UNIT_PLACES (POTQ_UNIT_GROUP / 16)
#define UNIT_CODES(place) UNIT_DOT(place, p[place], 0)
#elif POTQ_UNIT_BITS == 3
#define UNIT_PLACES (POTQ_UNIT_GROUP / 16)
#define UNIT_CODES(place) UNIT_DOT(place, p[place / 2 * 3 + place % 2], p[place / 2 * 3 + 2])
#else
#define UNIT_PLACES (POTQ_UNIT_GROUP * POTQ_UNIT_BITS / 64)
#define UNIT_CODES(place) UNIT_DOT(place, p[2 * place], p[2 * place + 1])
#endif
#if POTQ_UNIT_GROUP != 32 && POTQ_UNIT_GROUP != 64
#error "groups of 32 or 64"
#endif

static inline int32_t unit_scaled(uint32_t scale, int32_t total) {
  int32_t result;
  __asm__ volatile(".insn r 0x2b, 2, 0, %0, %1, %2" : "=r"(result) : "r"(scale), "r"(total));
  return result;
}

static void unit_load(const unit_word* x) {
  UNIT_EIGHT(0);
  UNIT_EIGHT(1);
  UNIT_EIGHT(2);
  UNIT_EIGHT(3);
#if POTQ_UNIT_GROUP > 32
  UNIT_EIGHT(4);
  UNIT_EIGHT(5);
  UNIT_EIGHT(6);
  UNIT_EIGHT(7);
#endif
}

static inline void unit_sum(const uint32_t* p) {
  UNIT_CODES(0);
  UNIT_CODES(1);
#if UNIT_PLACES > 2
  UNIT_CODES(2);
  UNIT_CODES(3);
#endif
#if UNIT_PLACES > 4
  UNIT_CODES(4);
  UNIT_CODES(5);
  UNIT_CODES(6);
  UNIT_CODES(7);
#endif
}

#if POTQ_UNIT_SHIFTS
typedef uint8_t unit_scale;
#define UNIT_SCALES shifts
#define UNIT_MORE(more) (more)
#else
typedef uint16_t unit_scale;
#define UNIT_SCALES scales
#define UNIT_MORE(more) ((more) << 16)
#endif

/* one group of all rows, added to their totals; the first group begins them */
static inline void unit_group(const potq_matrix* matrix, const uint8_t* codes, const unit_scale* scale, uint32_t more,
                              int begins, int32_t* totals) {
  const int32_t* end = totals + matrix->rows;
  const uint32_t row_bytes = matrix->row_bytes;
  const uint32_t groups = matrix->groups;
  for (; totals < end; totals++, codes += row_bytes, scale += groups) {
    unit_sum((const uint32_t*)(const void*)codes);
    *totals = unit_scaled(*scale + more, begins ? 0 : *totals);
  }
}

static void potq_totals(const potq_matrix* matrix, int32_t* totals) {
  const uint8_t* codes = (const uint8_t*)matrix->codes;
  const int8_t* x = potq_inputs;
  uint32_t group;
  for (group = 0; group < matrix->groups; group++, codes += matrix->group_bytes, x += POTQ_UNIT_GROUP) {
    uint32_t more = UNIT_MORE((uint32_t)finer[group]);
    unit_load((const unit_word*)(const void*)x);
    if (group == 0) {
      unit_group(matrix, codes, matrix->UNIT_SCALES, more, 1, totals);
    } else {
      unit_group(matrix, codes, matrix->UNIT_SCALES + group, more, 0, totals);
    }
  }
}
