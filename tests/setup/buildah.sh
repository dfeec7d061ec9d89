#!/bin/sh
# Sets up what the tests that build images need, where root runs them on Debian or Ubuntu: buildah, debootstrap
# and, for a network of two machines on one, iproute2. Elsewhere, and without root, those tests are skipped, and
# say what they lack.
#
#     sh buildah.sh FILE
#
# FILE is made when nothing is left to try.
set -eu
. "$(dirname "$0")/debian.sh"

for program in buildah debootstrap ip:iproute2; do
    command -v "${program%%:*}" >/dev/null || missing="${missing:-} ${program##*:}"
done
if [ -n "${missing:-}" ]; then
    # Packages, one word each.
    # shellcheck disable=SC2086
    install_packages $missing >/dev/null ||
        echo "could not install$missing: the tests that build images will be skipped"
fi
mkdir -p "$(dirname "$1")"
touch "$1"
