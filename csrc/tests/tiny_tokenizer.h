// A byte-level tokenizer.json of 300 tokens: the bytes, 43 merges, and the special token <end>.
#pragma once

#include <string>

// `pre_tokenizer` is its JSON.
std::string tiny_tokenizer(const std::string& pre_tokenizer);
