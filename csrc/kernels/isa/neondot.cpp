#include "neondot.h"

namespace potq {

const Kernels kNeonDot = kernels_of<Neon<DotProduct>>();

}  // namespace potq
