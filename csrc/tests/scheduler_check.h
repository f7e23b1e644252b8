// The scheduler on a small model: texts are the same bits, tokens and logprobs, alone and among others, whatever the slots, the
// chunks, the threads, the room in the cache, the order in which they come, and who is cancelled beside them. False: something
// was wrong, and said on stderr.
#pragma once

bool check_scheduler();
