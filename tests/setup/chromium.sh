#!/bin/sh
# Finds Debian's Chromium for the tests of the page, and installs it where it may:
#
#     sh chromium.sh FOLDER
#
#   FOLDER/missing        why this machine cannot have it: the words that the tests are skipped with
#   FOLDER/.done          nothing is left to try
#
# Playwright's own download comes from no package registry; a system's package is the one to trust.
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1

do_without() {
    echo "$1" | tee "$folder/missing"
    touch "$folder/.done"
    exit 0
}

there() {
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null
}

rm -rf "$folder"
mkdir -p "$folder"
if ! there; then
    command -v apt-get >/dev/null || do_without "no chromium on PATH: install it and run make test again"
    [ "$(id -u)" = 0 ] || do_without "no chromium on PATH: sudo apt-get install chromium, then make test again"
    install_packages chromium >"$folder/log" 2>&1 || true
    there || do_without "no chromium on PATH, and apt-get could not install it: see $folder/log"
fi
touch "$folder/.done"
