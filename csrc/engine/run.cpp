// potq-run MODEL_DIR PROMPT [options]: generates from a potq folder, with nothing but the C library of the system.
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "engine.h"
#include "error.h"

namespace {

constexpr const char* kUsage =
    "usage: potq-run MODEL_DIR PROMPT [options]\n"
    "\n"
    "  PROMPT                     text, as it is (- reads standard input, without the line feed at its end)\n"
    "  -n N                       tokens to generate (128)\n"
    "  --temperature T            0 takes the likeliest token (0)\n"
    "  --top-k K --top-p P --min-p P --repetition-penalty R --seed S\n"
    "  --stop TEXT                end where the text appears (may be repeated)\n"
    "  --threads N                0: as many as the machine has (0)\n"
    "  --context N                tokens of room (the model's own)\n"
    "  --float                    do not round activations to int8\n"
    "  --ids                      PROMPT is token ids, 1,2,3; prints ids\n"
    "  --stats                    speed and memory, on standard error\n"
    "\n"
    "A seed, K and P need a temperature. Chats need Python, for the model's template: potq generate --chat\n";

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "potq-run: %s\n", why.c_str());
  std::exit(1);
}

[[noreturn]] void misused(const std::string& why) {
  std::fprintf(stderr, "potq-run: %s\n%s", why.c_str(), kUsage);
  std::exit(2);
}

double number(const char* option, const char* text) {
  char* end;
  errno = 0;
  const double value = std::strtod(text, &end);
  if (end == text || *end || errno) misused(std::string(option) + ": " + "invalid number " + text);
  return value;
}

int32_t integer(const char* option, const char* text) {
  const double value = number(option, text);
  if (!(value >= 0 && value < 2147483647) || value != double(int32_t(value)))
    misused(std::string(option) + ": " + "invalid integer " + text);
  return int32_t(value);
}

struct Settings {
  std::string folder, prompt;
  std::vector<std::string> stops;
  int32_t most = 128;
  bool ids = false, stats = false;
  std::string draws;  // the last option that is of use with a temperature only
  potq_engine_options options = {0, 0, POTQ_INT8, -1};
  potq_sampling sampling = {0, 1, 0, 1, 0, 0};
};

// What POTQ_CPU_ISA says; -1: nothing.
int32_t chosen_isa() {
  const char* chosen = std::getenv("POTQ_CPU_ISA");
  if (!chosen || !*chosen) return -1;
  std::string known, usable;
  bool exists = false;
  for (int32_t isa = 0; const char* name = potq_isa_name(isa); isa++) {
    const bool is_usable = potq_isa_usable(isa) == 1, is_chosen = !std::strcmp(name, chosen);
    if (is_chosen && is_usable) return isa;
    exists = exists || is_chosen;
    known += (known.empty() ? "" : ", ") + std::string(name);
    if (is_usable) usable += (usable.empty() ? "" : ", ") + std::string(name);
  }
  const std::string given = std::string("POTQ_CPU_ISA=") + chosen;
  if (!exists) misused(given + " is unknown; known are " + known);
  misused(given + " cannot be used here; usable are " + usable);
}

Settings parse(int count, char** arguments) {
  Settings s;
  int given = 0;
  for (int i = 1; i < count; i++) {
    const std::string name = arguments[i];
    const auto next = [&] {
      if (i + 1 == count) misused(name + " needs a value");
      return arguments[++i];
    };
    if (name == "--top-k" || name == "--top-p" || name == "--min-p" || name == "--seed") s.draws = name;
    if (name == "-h" || name == "--help")
      std::fputs(kUsage, stdout), std::exit(0);
    else if (name == "-n")
      s.most = integer("-n", next());
    else if (name == "--temperature")
      s.sampling.temperature = float(number("--temperature", next()));
    else if (name == "--top-k")
      s.sampling.top_k = integer("--top-k", next());
    else if (name == "--top-p")
      s.sampling.top_p = float(number("--top-p", next()));
    else if (name == "--min-p")
      s.sampling.min_p = float(number("--min-p", next()));
    else if (name == "--repetition-penalty")
      s.sampling.repetition_penalty = float(number("--repetition-penalty", next()));
    else if (name == "--seed")
      s.sampling.seed = uint64_t(integer("--seed", next()));
    else if (name == "--chat" || name == "--system")
      misused(name + " takes the model's chat template, which needs Python: potq generate --chat");
    else if (name == "--stop")
      s.stops.push_back(next());
    else if (name == "--threads")
      s.options.threads = integer("--threads", next());
    else if (name == "--context")
      s.options.context = integer("--context", next());
    else if (name == "--float")
      s.options.arithmetic = POTQ_FLOAT;
    else if (name == "--ids")
      s.ids = true;
    else if (name == "--stats")
      s.stats = true;
    else if (name.size() > 1 && name[0] == '-' && given < 1)
      misused("unknown option " + name);
    else if (given++ == 0)
      s.folder = name;
    else if (given == 2)
      s.prompt = name;
    else
      misused("unexpected " + name);
  }
  if (given < 2) misused("give a model folder and a prompt");
  s.options.isa = chosen_isa();
  if (s.sampling.temperature == 0 && !s.draws.empty())
    misused(s.draws +
            " has no effect at temperature 0, which takes the likeliest token: give a --temperature, or leave it out");
  return s;
}

std::string read_input() {
  std::string text;
  char buffer[4096];
  size_t count;
  while ((count = std::fread(buffer, 1, sizeof buffer, stdin))) text.append(buffer, count);
  for (const char end : {'\n', '\r'}) {
    if (!text.empty() && text.back() == end) text.pop_back();
  }
  return text;
}

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    ids.push_back(integer("--ids", text.substr(at, end - at).c_str()));
    at = end + 1;
  }
  return ids;
}

// Writes what is generated; holds back what may be the start of a stop text.
struct Writer {
  const Settings& settings;
  const potq_tokenizer* tokenizer;
  std::string held;
  int32_t tokens = 0;
  std::chrono::steady_clock::time_point first = {};

  static void write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  int32_t take(int32_t token) {
    if (tokens++ == 0) first = std::chrono::steady_clock::now();
    if (settings.ids) {
      write((tokens > 1 ? "," : "") + std::to_string(token));
      return std::ferror(stdout);
    }
    size_t bytes;
    const char* text = potq_tokenizer_bytes(tokenizer, token, &bytes);
    held.append(text ? text : "", bytes);
    size_t keep = 0;
    for (const std::string& stop : settings.stops) {
      const size_t found = held.find(stop);
      if (!stop.empty() && found != std::string::npos) {
        write(held.substr(0, found));
        held.clear();
        return 1;
      }
      for (size_t length = std::min(stop.size(), held.size()); length > keep; length--) {
        if (held.compare(held.size() - length, length, stop, 0, length) == 0) keep = length;
      }
    }
    write(held.substr(0, held.size() - keep));
    held.erase(0, held.size() - keep);
    return std::ferror(stdout);  // a closed pipe
  }
};

double seconds(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// From /proc: getrusage would count what the program that started this one had.
std::string peak_memory() {
  long kilobytes = 0;
  if (FILE* status = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, status)) std::sscanf(line, "VmHWM: %ld", &kilobytes);
    std::fclose(status);
  }
  char text[32] = "unknown";
  if (kilobytes) std::snprintf(text, sizeof text, "%.1f MB", double(kilobytes) * 1024 / 1e6);
  return text;
}

}  // namespace

int main(int count, char** arguments) {
  Settings settings = parse(count, arguments);
  const auto start = std::chrono::steady_clock::now();
  char message[2048] = "";
  try {
    potq::engine::refuse_adapter(settings.folder);  // before a word on its tokenizer
  } catch (const std::exception& error) {
    give_up(error.what());
  }
  if (settings.prompt == "-") settings.prompt = read_input();
  potq_tokenizer* tokenizer = nullptr;
  std::vector<int32_t> prompt;
  if (settings.ids) {
    prompt = parse_ids(settings.prompt);
  } else {
    tokenizer = potq_tokenizer_open((settings.folder + "/tokenizer.json").c_str(), message, sizeof message);
    if (!tokenizer) give_up(std::string(message) + " (or give the prompt as token ids, --ids)");
    const std::string& text = settings.prompt;
    int64_t length = int64_t(text.size()) + 64;  // a guess, which a second call may correct
    for (bool whole = false; !whole;) {
      prompt.resize(size_t(length));
      length =
          potq_tokenizer_encode(tokenizer, text.data(), text.size(), 1, prompt.data(), prompt.size(), message, sizeof message);
      if (length < 0) give_up(message);
      whole = size_t(length) <= prompt.size();
    }
    prompt.resize(size_t(length));
    if (prompt.empty()) give_up("the prompt is empty, and this model has no token that begins a text");
  }
  potq_engine* engine = potq_engine_open(settings.folder.c_str(), &settings.options, message, sizeof message);
  if (!engine) give_up(message);
  const auto loaded = std::chrono::steady_clock::now();

  Writer writer{settings, tokenizer, {}};
  const int32_t end = potq_engine_generate(
      engine, prompt.data(), int32_t(prompt.size()), settings.most, &settings.sampling,
      [](void* user, int32_t token) { return static_cast<Writer*>(user)->take(token); }, &writer, message, sizeof message);
  const auto finish = std::chrono::steady_clock::now();
  if (end != POTQ_END_ERROR || writer.tokens) writer.write(writer.held + "\n");
  if (end == POTQ_END_ERROR) give_up(message);
  if (end == POTQ_END_CONTEXT)
    std::fprintf(stderr, "potq-run: the text ends after %d tokens, not %d: the context is full\n", writer.tokens,
                 settings.most);
  if (settings.stats) {
    potq_engine_facts facts;
    potq_engine_describe(engine, &facts);
    std::fprintf(stderr,
                 "load %.1f ms, prompt of %zu tokens %.1f ms, %d tokens at %.1f tokens/s; %d threads (%s), weights %.1f MB, "
                 "peak memory %s\n",
                 1e3 * seconds(start, loaded), prompt.size(), writer.tokens ? 1e3 * seconds(loaded, writer.first) : 0.0,
                 writer.tokens, writer.tokens > 1 ? (writer.tokens - 1) / seconds(writer.first, finish) : 0.0, facts.threads,
                 potq_isa_name(facts.isa), double(facts.weight_bytes) / 1e6, peak_memory().c_str());
  }
  potq_engine_close(engine);
  potq_tokenizer_close(tokenizer);
  return 0;
}
