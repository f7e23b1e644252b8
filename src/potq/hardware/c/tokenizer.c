/* Byte-pair encoding by the model's own vocabulary.

   POTQ_BYTE_LEVEL: GPT-2's rule cuts a text into words, and a word begins as bytes. Bytes of ASCII alone are cut: letters of
   other scripts would need tables of Unicode. Otherwise (SentencePiece) a text is one word, which begins as characters. */
#include <stddef.h>

#include "arithmetic.h"
#include "model.h"
#include "weights.h"

#define MOST_SYMBOLS (4 * POTQ_CONTEXT)

static uint16_t symbols[MOST_SYMBOLS]; /* of one word */

static int find_symbol(uint32_t character) {
  unsigned low = 0;
  unsigned high = POTQ_SYMBOLS;
  while (low < high) {
    unsigned middle = (low + high) / 2;
    if (potq_symbols[middle] < character)
      low = middle + 1;
    else
      high = middle;
  }
  return potq_symbols[low] == character ? potq_symbol_tokens[low] : -1;
}

static const potq_merge* find_merge(unsigned left, unsigned right) {
  uint32_t wanted = (uint32_t)left << 16 | right;
  unsigned low = 0;
  unsigned high = POTQ_MERGES;
  while (low < high) {
    unsigned middle = (low + high) / 2;
    if (potq_merges[middle].pair < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return potq_merges[low].pair == wanted ? &potq_merges[low] : NULL;
}

/* Merge the pair of lowest rank, again and again. Returns how many symbols are left. */
static unsigned merge_word(unsigned count) {
  for (;;) {
    const potq_merge* best = NULL;
    unsigned place = 0;
    unsigned i;
    for (i = 0; i + 1 < count; i++) {
      const potq_merge* found = find_merge(symbols[i], symbols[i + 1]);
      if (found != NULL && (best == NULL || found->rank < best->rank)) {
        best = found;
        place = i;
      }
    }
    if (best == NULL) return count;
    symbols[place] = best->token;
    count--;
    for (i = place + 1; i < count; i++) symbols[i] = symbols[i + 1];
  }
}

static int append(uint16_t* tokens, unsigned done, unsigned count, unsigned most) {
  unsigned i;
  if (done + count > most) return -1;
  for (i = 0; i < count; i++) tokens[done + i] = symbols[i];
  return (int)(done + count);
}

#if POTQ_BYTE_LEVEL
static int is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static int is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int is_digit(char c) { return c >= '0' && c <= '9'; }
static int is_other(char c) { return c && !is_space(c) && !is_letter(c) && !is_digit(c); }

static unsigned run(const char* text, int (*is_one)(char)) {
  unsigned length = 0;
  while (is_one(text[length])) length++;
  return length;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|spaces without the last that a word follows|spaces */
static unsigned word_length(const char* text) {
  unsigned space = text[0] == ' ';
  unsigned length;
  char next = text[0] == '\'' ? text[1] : 0;
  if (next == 's' || next == 't' || next == 'm' || next == 'd') return 2;
  if (next && ((next == 'l' && text[2] == 'l') || ((next == 'r' || next == 'v') && text[2] == 'e'))) return 3;
  if ((length = run(text + space, is_letter)) || (length = run(text + space, is_digit)) ||
      (length = run(text + space, is_other))) {
    return length + space;
  }
  length = run(text, is_space);
  return text[length] && length > 1 ? length - 1 : length;
}

static int encode_text(const char* text, uint16_t* tokens, unsigned done, unsigned most) {
  while (*text) {
    unsigned length = word_length(text);
    unsigned i;
    int token;
    if (length > MOST_SYMBOLS) return -1;
    for (i = 0; i < length; i++) {
      if ((unsigned char)text[i] > 127 || (token = find_symbol((unsigned char)text[i])) < 0) return -2;
      symbols[i] = (uint16_t)token;
    }
    text += length;
    token = append(tokens, done, merge_word(length), most);
    if (token < 0) return token;
    done = (unsigned)token;
  }
  return (int)done;
}
#else
/* The character at `text` and its length in bytes, 0 if the bytes are none. */
static unsigned character_at(const unsigned char* text, uint32_t* character) {
  unsigned length = text[0] < 0x80 ? 1 : text[0] < 0xc2 ? 0 : text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : text[0] < 0xf5 ? 4 : 0;
  unsigned i;
  *character = length < 2 ? text[0] : text[0] & (0x7fu >> length);
  for (i = 1; i < length; i++) {
    if ((text[i] & 0xc0) != 0x80) return 0;
    *character = *character << 6 | (text[i] & 0x3fu);
  }
  return length;
}

static const unsigned char space_mark[] = {0xe2, 0x96, 0x81}; /* U+2581, SentencePiece's space */

/* What has no symbol becomes its bytes, or an unknown token, which waits in `unknown` for the next symbol: Hugging Face's
   tokenizers do so, and put bytes before it. Returns how many symbols there are; -1: no room. */
static int add_character(const unsigned char* bytes, unsigned length, uint32_t character, unsigned count, int* unknown) {
  int token = find_symbol(character);
  int whole = 1;
  unsigned i;
  if (count + length + 1 >= MOST_SYMBOLS) return -1;
  for (i = 0; i < length; i++) whole = whole && potq_byte_tokens[bytes[i]] != POTQ_NO_TOKEN;
  if (token < 0 && whole) {
    for (i = 0; i < length; i++) symbols[count++] = potq_byte_tokens[bytes[i]];
    return (int)count;
  }
  if (*unknown && (token >= 0 || !POTQ_FUSES_UNKNOWN)) symbols[count++] = POTQ_UNKNOWN;
  *unknown = token < 0 && POTQ_UNKNOWN != POTQ_NO_TOKEN;
  if (token >= 0) symbols[count++] = (uint16_t)token;
  return (int)count;
}

static int encode_text(const char* text, uint16_t* tokens, unsigned done, unsigned most) {
  const unsigned char* bytes = (const unsigned char*)text;
  int count = 0;
  int unknown = 0;
  if (*bytes && (POTQ_PREPENDS_SPACE == 1 || (POTQ_PREPENDS_SPACE == 2 && *bytes != ' ')))
    count = add_character(space_mark, 3, 0x2581, 0, &unknown);
  while (*bytes && count >= 0) {
    uint32_t character;
    unsigned length = character_at(bytes, &character);
    if (length == 0) return -2;
    count = character == ' ' ? add_character(space_mark, 3, 0x2581, (unsigned)count, &unknown)
                             : add_character(bytes, length, character, (unsigned)count, &unknown);
    bytes += length;
  }
  if (count >= 0 && unknown) symbols[count++] = POTQ_UNKNOWN;
  return count < 0 ? count : append(tokens, done, merge_word((unsigned)count), most);
}
#endif

int potq_encode(const char* text, uint16_t* tokens, unsigned most) {
  unsigned i;
  for (i = 0; potq_prefix[i] != POTQ_NO_TOKEN; i++) {
    if (i == most) return -1;
    tokens[i] = potq_prefix[i];
  }
  return encode_text(text, tokens, i, most);
}

const char* potq_token_bytes(unsigned token, unsigned* length) {
  *length = 0;
  if (token >= POTQ_PIECES) return "";
  *length = potq_piece_starts[token + 1] - potq_piece_starts[token];
  return potq_pieces + potq_piece_starts[token];
}

int potq_is_end(unsigned token) {
  unsigned i;
  for (i = 0; potq_ends[i] != POTQ_NO_TOKEN; i++) {
    if (potq_ends[i] == token) return 1;
  }
  return 0;
}
