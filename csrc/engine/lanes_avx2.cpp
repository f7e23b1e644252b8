#define LANES_NAME kAvx2Lanes
#include "lanes_body.h"
