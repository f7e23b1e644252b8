#define LANES_NAME kAvx512Lanes
#include "lanes_body.h"
