/* The decode engine: a potq folder to tokens, in C. An engine has one sequence, a scheduler on it many. Each belongs to one
 * caller at a time.
 *
 * Functions that can fail take `message` (of `size` bytes, or NULL) for the reason, which names file, tensor or argument, what
 * was expected, what was found, and what to do.
 */
#ifndef POTQ_ENGINE_H
#define POTQ_ENGINE_H

#include "../potq.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct potq_engine potq_engine;

typedef struct {
  int32_t threads;    /* 0: as many as the machine has */
  int32_t context;    /* tokens of room; 0: the model's own */
  int32_t arithmetic; /* potq_arithmetic */
  int32_t isa;        /* from potq_isa_name; -1: the best */
} potq_engine_options;

typedef struct {
  int32_t vocabulary, layers, context, threads, isa;
  int64_t weight_bytes; /* in memory */
} potq_engine_facts;

typedef struct {
  float temperature;        /* 0: the likeliest token */
  float top_p, min_p;       /* 1 and 0: all */
  float repetition_penalty; /* 1: none */
  int32_t top_k;            /* 0: all */
  uint64_t seed;
} potq_sampling;

/* How a text stands: why it ended, or what its last step brought. */
enum potq_state {
  POTQ_END_ERROR = -1,
  POTQ_END_LENGTH = 0,  /* it has as many tokens as were asked for */
  POTQ_END_TOKEN = 1,   /* the model ended it */
  POTQ_END_STOPPED = 2, /* the caller ended it */
  POTQ_END_CONTEXT = 3, /* the context is full */
  POTQ_STEP_PROMPT = 4, /* a part of the prompt was read */
  POTQ_STEP_TOKEN = 5   /* a new token */
};

/* NULL on error. */
POTQ_API potq_engine* potq_engine_open(const char* folder, const potq_engine_options* options, char* message, size_t size);
POTQ_API void potq_engine_close(potq_engine* engine);
POTQ_API void potq_engine_describe(const potq_engine* engine, potq_engine_facts* facts);

/* Appends tokens to the sequence. logits (or NULL): of the last token, or, if `all`, of each of them (count x vocabulary).
 * Returns 0, or 1 with a message; nothing is appended then. */
POTQ_API int32_t potq_engine_append(potq_engine* engine, const int32_t* ids, int32_t count, float* logits, int32_t all,
                                    char* message, size_t size);
/* Tokens in the sequence, and cutting it to fewer. */
POTQ_API int32_t potq_engine_length(const potq_engine* engine);
POTQ_API int32_t potq_engine_truncate(potq_engine* engine, int32_t length);

/* Begins a text: the sequence keeps what it shares with the prompt, all but the prompt's last token at most; the steps read the
 * rest. The repetition penalty looks at the prompt and what is generated. The text ends with one of `ends` (NULL: those of
 * the folder's). Returns how many tokens were kept, or -1 with a message; nothing is changed then. */
POTQ_API int32_t potq_engine_start(potq_engine* engine, const int32_t* prompt, int32_t count, const potq_sampling* sampling,
                                   const int32_t* ends, int32_t end_count, char* message, size_t size);
/* A step of the text: at most 128 tokens of the prompt, or one new token. Returns POTQ_STEP_..., and the text goes on, or
 * POTQ_END_.... The token that ends a text is not part of it. Appending and truncating end a text, too. */
POTQ_API int32_t potq_engine_next(potq_engine* engine, int32_t* token, char* message, size_t size);

/* Called with every new token; 0 goes on, anything else ends. */
typedef int32_t (*potq_on_token)(void* user, int32_t token);
/* The loop over the steps of a text of up to `most` tokens. Returns POTQ_END_.... */
POTQ_API int32_t potq_engine_generate(potq_engine* engine, const int32_t* prompt, int32_t count, int32_t most,
                                      const potq_sampling* sampling, potq_on_token on_token, void* user, char* message,
                                      size_t size);

/* Many texts at once, on an engine's model. A scheduler belongs to one caller at a time, which may be none of the engine's; the
 * engine is closed after it. */
typedef struct potq_scheduler potq_scheduler;

typedef struct {
  int32_t slots;       /* texts that run at once, 1..64; others wait */
  int32_t chunk;       /* tokens of prompts in a step in which texts go on, 1..128 */
  int64_t cache_bytes; /* for keys and values; 0: all slots' contexts, within a quarter of the machine's memory */
} potq_scheduler_options;

typedef struct {
  const int32_t* prompt;
  const int32_t* ends; /* tokens that end the text; NULL: those of the folder's */
  int32_t count, end_count;
  int32_t most;     /* new tokens, at most; fewer where the context ends */
  int32_t logprobs; /* likeliest tokens beside each token; 0: no logprobs */
  int32_t echo;     /* logprobs of so many of the prompt's last tokens, too */
  potq_sampling sampling;
} potq_request;

typedef struct {
  int32_t token;
  float logprob; /* natural logarithm, of the model's own probability */
} potq_logprob;

enum potq_finish {
  POTQ_FINISH_NONE = 0,      /* the text goes on */
  POTQ_FINISH_STOP = 1,      /* a token ended it */
  POTQ_FINISH_LENGTH = 2,    /* it has as many tokens as were asked for, or the context is full */
  POTQ_FINISH_CANCELLED = 3, /* potq_scheduler_cancel */
  POTQ_FINISH_ERROR = 4      /* of this text alone; see message */
};

typedef struct {
  int64_t request;
  int32_t token;   /* the new one, -1: none */
  int32_t finish;  /* potq_finish */
  int32_t entries; /* a token has so many logprobs: its own, and those of the likeliest */
  int32_t prompt_entries;
  const potq_logprob* logprobs;        /* of the token, or of the one that ended the text; or NULL */
  const potq_logprob* prompt_logprobs; /* with the first event of a text with echo; the prompt's first token has none */
  const char* message;
} potq_event;

typedef struct {
  int32_t running, waiting;
  int64_t pages_used, pages_total, cache_bytes; /* a page holds 64 positions */
  int64_t shared_tokens;                        /* of prompts, that were not computed since another text began alike */
} potq_scheduler_statistics;

/* NULL on error. */
POTQ_API potq_scheduler* potq_scheduler_open(potq_engine* engine, const potq_scheduler_options* options, char* message,
                                             size_t size);
POTQ_API void potq_scheduler_close(potq_scheduler* scheduler);
/* The number of the text, 1 and up; or -1 with a message. */
POTQ_API int64_t potq_scheduler_submit(potq_scheduler* scheduler, const potq_request* request, char* message, size_t size);
/* What the next token of a text may be, until it is said anew: token i where bit i % 8 of byte i / 8 is set. NULL: any. Returns
 * 0, or 1 with a message. Numbers of texts that ended are ignored, here and in cancel. */
POTQ_API int32_t potq_scheduler_allow(potq_scheduler* scheduler, int64_t request, const uint8_t* bits, size_t bytes,
                                      char* message, size_t size);
/* Ends a text and frees what it has of the cache. */
POTQ_API void potq_scheduler_cancel(potq_scheduler* scheduler, int64_t request);
/* One pass. Returns how many events it brought, or -1 with a message. They stay until the next step. */
POTQ_API int32_t potq_scheduler_step(potq_scheduler* scheduler, char* message, size_t size);
POTQ_API void potq_scheduler_event(const potq_scheduler* scheduler, int32_t index, potq_event* event);
POTQ_API void potq_scheduler_describe(const potq_scheduler* scheduler, potq_scheduler_statistics* statistics);

/* BPE from a tokenizer.json, byte-level or with byte fallback. A tokenizer may be used by many threads. */
typedef struct potq_tokenizer potq_tokenizer;
POTQ_API potq_tokenizer* potq_tokenizer_open(const char* file, char* message, size_t size);
POTQ_API void potq_tokenizer_close(potq_tokenizer* tokenizer);
/* Writes up to `room` ids and returns how many there are, or -1 with a message. `special`: with the tokens that begin (and end)
 * a text. */
POTQ_API int64_t potq_tokenizer_encode(const potq_tokenizer* tokenizer, const char* text, size_t bytes, int32_t special,
                                       int32_t* ids, size_t room, char* message, size_t size);
/* The bytes of a token, which are the tokenizer's; none (*bytes = 0) for special tokens and unknown ids. */
POTQ_API const char* potq_tokenizer_bytes(const potq_tokenizer* tokenizer, int32_t id, size_t* bytes);

#ifdef __cplusplus
}
#endif
#endif
