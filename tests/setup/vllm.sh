#!/bin/sh
# Sets up, in an environment of its own, the CPU build of vLLM that the tests run:
#
#     sh vllm.sh FOLDER PYTHON REQUIREMENTS
#
#   FOLDER/bin/python     the interpreter that has it; what is there already is kept
#   FOLDER/missing        why this machine cannot have it: the words that the tests are skipped with
#   FOLDER/.done          nothing is left to try
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1
python=$2
requirements=$3

do_without() {
    echo "$1" | tee "$folder/missing"
    exit 0
}

mkdir -p "$folder"
rm -f "$folder/missing" "$folder/.done"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$(uname -s) $(uname -m) $version" != "Linux x86_64 3.11" ]; then
    touch "$folder/.done"
    do_without "vLLM's CPU build is locked for Linux on x86_64 with Python 3.11 only"
fi
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
echo "Installing vLLM's CPU build: about 0.6 GB to fetch, 2 GB on disk, two to six minutes"
# Without its dependencies' own word: torchvision and torchaudio have no CPU build there and break imports,
# and triton is a gigabyte that a CPU does not use.
if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    -r "$requirements"; then
    do_without "vLLM's CPU build could not be installed: torch's CPU build is on PyTorch's own index, \
which pip takes from PIP_EXTRA_INDEX_URL; then run make test again"
fi

has_libnuma() {
    "$folder/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null
}

has_libnuma || install_packages libnuma1 >/dev/null || true
has_libnuma || do_without "vLLM's CPU build needs libnuma.so.1: install libnuma1, then run make test again"
touch "$folder/.done"
