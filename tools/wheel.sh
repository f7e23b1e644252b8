#!/usr/bin/env bash
# Builds potq's packages in dist/ and tries them (make wheel): the sdist, the wheel made of it, and the wheel that results
# where there is no compiler. On Linux auditwheel repairs the wheel: it checks which systems can load it and names the oldest
# in the file's name. Wants a Python with potq's [dev] in PATH (the Makefile sees to it). The wheels of a release are built by
# cibuildwheel in its manylinux images, for older systems; this is the same for the machine at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/build/wheel

title() { printf '\n== %s\n' "$*"; }

# one FILE: that it is the only one there is; an unmatched pattern stands for itself
one() {
  [ $# -eq 1 ] && [ -e "$1" ] || {
    echo "wheel.sh: expected one file, found $*" >&2
    exit 1
  }
}

# try WHEEL OPTION...: in the fresh environment, outside the source tree
try() {
  "$out/fresh/bin/python" -m pip install --quiet --no-deps --force-reinstall "$1"
  (cd "$out" && fresh/bin/python "$OLDPWD/tools/try_wheel.py" "${@:2}")
}

rm -rf "$out" dist
mkdir -p "$out" dist

title "build the sdist, and a wheel of it"
python -m build --outdir "$out/built" .
sdist=("$out"/built/potq-*.tar.gz) wheel=("$out"/built/potq-*-py3-none-*.whl)
one "${sdist[@]}"
one "${wheel[@]}"

if [ "$(uname)" = Linux ]; then
  title "repair the wheel"
  # libgomp stays outside: torch has loaded one by then, and both must share its threads
  auditwheel repair --exclude libgomp.so.1 --wheel-dir dist "${wheel[0]}"
else
  cp "${wheel[0]}" dist
fi
cp "${sdist[0]}" dist
wheel=(dist/potq-*-py3-none-*.whl)
one "${wheel[@]}"

title "try the wheel in a fresh environment"
python -m venv "$out/fresh"
"$out/fresh/bin/python" -m pip install --disable-pip-version-check -c constraints.txt "${wheel[0]}"
try "${wheel[0]}"

title "try the wheel that is built without a compiler"
CXX=/bin/false python -m pip wheel --quiet --no-deps --wheel-dir "$out/pure" "${sdist[0]}"
wheel=("$out"/pure/potq-*-py3-none-any.whl)
one "${wheel[@]}"
try "${wheel[0]}" --without-library

title "passed"
ls -l dist
