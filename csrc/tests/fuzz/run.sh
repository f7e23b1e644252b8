#!/usr/bin/env bash
# Fuzzes the engine: every target at once, each for SECONDS.
#
#   csrc/tests/fuzz/run.sh SECONDS    CXX: a clang++ with libFuzzer
#
# Inputs that reach something new are collected in build/fuzz/corpus. One that crashes, hangs or takes half a gigabyte goes to
# build/fuzz/findings: mend the engine, and add it to the committed corpus/ beside this file, which check.sh replays.
set -euo pipefail
cd "$(dirname "$0")/../../.."
seconds=$1 out=$PWD/build/fuzz corpus=$PWD/csrc/tests/fuzz/corpus
targets=(folder model pattern scheduler text tokenizer)
mkdir -p "$out/findings"

command -v "${CXX:=clang++}" >/dev/null || {
  printf 'run.sh: %s is missing; on Debian or Ubuntu: apt-get install clang libclang-rt-14-dev, or set CXX\n' "$CXX" >&2
  exit 1
}
cmake -S csrc -B "$out/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DCMAKE_CXX_COMPILER="$CXX" \
  -DPOTQ_SANITIZE=address,undefined -DPOTQ_TESTS=ON -DPOTQ_FUZZ=ON >/dev/null
cmake --build "$out/build" --target "${targets[@]/#/fuzz_}" # compiling takes some minutes

# a malloc that is never written to costs nothing: only resident memory counts
run() {
  mkdir -p "$out/corpus/$1"
  "$out/build/fuzz_$1" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=65536 \
    -dict=csrc/tests/fuzz/words.dict -artifact_prefix="$out/findings/$1-" -print_final_stats=1 "$out/corpus/$1" "$corpus/$1" \
    >"$out/$1.log" 2>&1
}

failed=0 jobs=()
for target in "${targets[@]}"; do
  run "$target" &
  jobs+=($!)
done
for i in "${!targets[@]}"; do
  wait "${jobs[i]}" || failed=1
  printf '%-10s %s\n' "${targets[i]}" "$(grep -E 'DONE|SUMMARY' "$out/${targets[i]}.log" | tr '\t\n' '  ')"
done
exit $failed
