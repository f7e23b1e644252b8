#!/usr/bin/env bash
# The compiled library's own checks:
#
#   csrc/tests/check.sh [native] [program] [sanitize] [tsan] [aarch64] [full]    without words: all of them, 25 minutes on
#                                                                               two cores
#
# native    the short self-tests, of the kernels, of what fits weights and of the engine, and the corpus of its fuzzers; that the
#           kernels for AVX-VNNI hold none of AVX-512's instructions, which the CPUs they are for lack
# program   potq-run, static: its size, that it runs in an empty root, and that the one for aarch64 writes the same under qemu.
#           What cannot be done here is left out with a message. (`make test` runs so far.)
# sanitize  native with AddressSanitizer and UBSan, and the tests that call the library, on that library
# tsan      the engine's self-test with ThreadSanitizer
# aarch64   native, cross-built and run by qemu, on CPUs with matrix products, with dot products alone, and without
# full      the long self-test
#
# All runs of a short self-test must print one hash. Wants cmake, ninja and a Python with potq's [dev] in PATH (the Makefile
# sees to it); beyond native, Linux and GCC.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/build/check
mkdir -p "$out"
export OMP_WAIT_POLICY=passive # threads that wait for each other sleep: one core is enough

title() { printf '\n== %s\n' "$*"; }

die() {
  printf 'check.sh: %s\n' "$*" >&2
  exit 1
}

# need COMMAND PACKAGE: a check that cannot run has failed
need() {
  command -v "$1" >/dev/null || die "$1 is missing; on Debian or Ubuntu: apt-get install $2"
}

# build NAME TARGETS OPTION...: in build/check/NAME
build() {
  local name=$1 targets=$2
  shift 2
  # the generator's path is given anew each time: that of another environment may be in the cache
  cmake -S csrc -B "$out/$name" -G Ninja -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" -DPOTQ_TESTS=ON "$@" >/dev/null
  # shellcheck disable=SC2086 # several targets
  cmake --build "$out/$name" --target $targets
}

# short NAME ISAS BUILD COMMAND...: the short self-tests of a build, run by COMMAND; they must use the instruction sets ISAS (a
# pattern)
short() {
  local name=$1 isas=$2 folder=$out/$3 found
  shift 3
  title "short self-tests, $name"
  { "$@" "$folder/selftest" && "$@" "$folder/fittest"; } | tee "$out/$name.hashes"
  found=$(awk '$3 == "products" { printf "%s ", $1 }' "$out/$name.hashes")
  [[ $found =~ ^($isas)\ $ ]] || die "$name used $found, expected $isas"
  runs+=("$out/$name.hashes")
}

runs=()

# engine NAME BUILD COMMAND...: the engine's self-test, whose tokens must be those of the native one, and the fuzzers' corpus
engine() {
  local name=$1 folder=$out/$2 corpus target
  shift 2
  title "engine, $name"
  "$@" "$folder/engine_test" >"$out/$name.tokens"
  cmp "$out/native.tokens" "$out/$name.tokens" || die "the engine generates other tokens, $name"
  for corpus in csrc/tests/fuzz/corpus/*; do
    target=${corpus##*/}
    printf '%s: ' "$target"
    if ! "$@" "$folder/fuzz_$target" "$corpus" 2>"$out/$name.replay"; then
      tail -n 40 "$out/$name.replay" # the inputs by name, and what the last one did
      die "fuzz_$target failed, $name"
    fi
  done
}

# whether potq-run can be linked statically here
static=OFF
[ ! -e "$("${CXX:-g++}" -print-file-name=libc.a)" ] || static=ON

# The machine that tests these kernels may run them in AVX-512's encoding alone.
avxvnni() {
  local object=$out/native/CMakeFiles/potq_kernels.dir/kernels/isa/avxvnni.cpp.o
  title "instructions of AVX-VNNI"
  if [ ! -e "$object" ]; then
    echo "left out: another processor, or a compiler without -mavxvnni"
    return
  fi
  need objdump binutils
  objdump -d --no-show-raw-insn "$object" >"$out/avxvnni.listing"
  grep -q '{vex} vpdpbusd' "$out/avxvnni.listing" || die "avxvnni.cpp holds no vpdpbusd of AVX-VNNI"
  ! grep -E '\{evex\}|%zmm|%[xy]mm(1[6-9]|2[0-9]|3[01])|%k[0-7]' "$out/avxvnni.listing" || die "avxvnni.cpp holds AVX-512"
  echo "$(grep -c '{vex} vpdpbusd' "$out/avxvnni.listing") times vpdpbusd, and nothing of AVX-512"
}

native() {
  build native all -DPOTQ_STATIC=$static
  short native 'scalar.*' native
  engine native native
  avxvnni
}

# small FILE: a static program of less than 3 MB
small() {
  local bytes
  bytes=$(stat -c %s "$1")
  printf '%s: %s bytes\n' "$1" "$bytes"
  [ "$bytes" -lt 3000000 ] || die "$1 has $bytes bytes, 3 MB are too many"
  need readelf binutils
  ! readelf -l "$1" | grep -q INTERP || die "$1 is linked dynamically"
}

# generate PREFIX... : what a potq-run writes, of the model that is in $out/root
generate() { "$@" 'The cat sat on 12 mats.' -n 40 --temperature 1 --seed 3 --threads 2; }

# enter FOLDER COMMAND...: with the folder as the root
enter() {
  if [ "$(id -u)" -eq 0 ]; then
    chroot "$@"
  else
    unshare --map-root-user --root="$1" "${@:2}"
  fi
}

program() {
  title "potq-run"
  rm -rf "$out/root"
  mkdir -p "$out/root/model"
  "$out/native/engine_test" --write "$out/root/model"
  cp "$out/native/potq-run" "$out/root"
  generate "$out/native/potq-run" "$out/root/model" >"$out/text"
  if [ $static = OFF ]; then
    echo "left out: the static program, which takes a static C library"
    return
  fi
  small "$out/native/potq-run"
  if enter / true 2>/dev/null; then
    generate enter "$out/root" /potq-run /model | cmp - "$out/text" || die "potq-run writes another text in an empty root"
    echo "runs in an empty root"
  else
    echo "left out: an empty root, which takes root's rights or user namespaces"
  fi
  if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
    program_aarch64
  else
    echo "left out: aarch64, which takes aarch64-linux-gnu-g++ and qemu-aarch64"
  fi
}

aarch64_options=(-DPOTQ_STATIC=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)

program_aarch64() {
  build aarch64 potq-run "${aarch64_options[@]}"
  small "$out/aarch64/potq-run"
  for cpu in max neoverse-n1 cortex-a72; do # with matrix products, with dot products, without
    generate qemu-aarch64 -cpu "$cpu" "$out/aarch64/potq-run" "$out/root/model" | cmp - "$out/text" ||
      die "potq-run writes another text on aarch64, $cpu"
    echo "runs on aarch64, $cpu"
  done
}

sanitize() {
  local compiler=${CXX:-g++} preload python
  title "sanitizers (compiling takes 3 minutes)"
  build sanitize all -DPOTQ_SANITIZE=address,undefined,float-cast-overflow -DCMAKE_CXX_COMPILER="$compiler"
  short sanitize 'scalar.*' sanitize
  engine sanitize sanitize
  title "tests of the library, sanitized"
  preload=$("$compiler" -print-file-name=libasan.so)
  [ -e "$preload" ] || die "$compiler has no libasan.so, which Python must load first; set CXX to GCC's g++"
  # libstdc++ too, or the sanitizer finds no __cxa_throw to wrap and ends at torch's first exception. Leaks are Python's own.
  python=(env "LD_PRELOAD=$preload $("$compiler" -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0
    UBSAN_OPTIONS=print_stacktrace=1 "POTQ_LIBRARY=$out/sanitize/libpotq.so" python)
  # without the library these tests would all be skipped
  "${python[@]}" -c 'import sys; from potq.native import missing; sys.exit(missing())'
  # reports go to the file descriptor: pytest must leave it alone, and the signals too
  "${python[@]}" -m pytest -q --capture=sys -p no:faulthandler -p no:cacheprovider tests/test_native.py tests/numerics/test_best_scale.py \
    tests/numerics/test_scale_search.py tests/kernels tests/engine
}

tsan() {
  title "threads (compiling takes 2 minutes)"
  build tsan engine_test -DPOTQ_SANITIZE=thread
  "$out/tsan/engine_test" >"$out/tsan.tokens"
  cmp "$out/native.tokens" "$out/tsan.tokens" || die "the engine generates other tokens with ThreadSanitizer"
}

aarch64() {
  local run=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
  title "aarch64"
  build aarch64 all "${aarch64_options[@]}"
  short aarch64-max 'scalar neon neondot neoni8mm' aarch64 "${run[@]}" -cpu max
  short aarch64-neoverse-n1 'scalar neon neondot' aarch64 "${run[@]}" -cpu neoverse-n1
  short aarch64-cortex-a72 'scalar neon' aarch64 "${run[@]}" -cpu cortex-a72
  for cpu in max neoverse-n1 cortex-a72; do
    engine "aarch64-$cpu" aarch64 "${run[@]}" -cpu "$cpu"
  done
}

full() {
  title "long self-test"
  "$out/native/selftest" --full
}

compare_hashes() {
  local distinct
  distinct=$(awk '{ print $2, $3, $5 }' "${runs[@]}" | sort -u) # how many products or cases, and the hash of their outputs
  [ "$(wc -l <<<"$distinct")" -eq 2 ] || die "outputs differ:"$'\n'"$(grep . "${runs[@]}")"
}

[ $# -gt 0 ] || set -- native program sanitize tsan aarch64 full
for check in "$@"; do
  case $check in
    native | program | full) ;;
    sanitize | tsan) need "${CXX:-g++}" g++ ;;
    aarch64)
      need aarch64-linux-gnu-g++ "g++-aarch64-linux-gnu qemu-user"
      need qemu-aarch64 "g++-aarch64-linux-gnu qemu-user"
      ;;
    *) die "no check is called $check; see the top of this file" ;;
  esac
done
native # always: what the others are compared with
for check in "$@"; do
  [ "$check" = native ] || "$check"
done
compare_hashes
title "passed: $*"
