/* A program for a system with an operating system: tell PROMPT [TOKENS] */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static int print(void* context, unsigned token, const char* bytes, unsigned length) {
  (void)context;
  (void)token;
  fwrite(bytes, 1, length, stdout);
  fflush(stdout);
  return 0;
}

int main(int count, char** words) {
  int done = potq_generate(count > 1 ? words[1] : "", count > 2 ? (unsigned)atoi(words[2]) : 100u, print, NULL);
  puts("");
  if (done == -1) fputs("the prompt is too long\n", stderr);
  if (done == -2) fputs("the prompt has bytes that the tokenizer does not take\n", stderr);
  return done < 0;
}
