#define LANES_NAME kPortableLanes
#include "lanes_body.h"
