#!/bin/sh
# Sets up what the tests that build images need, where root runs them on Debian or Ubuntu: buildah, debootstrap
# and, for a network of two machines on one, iproute2. Elsewhere, and without root, those tests are skipped, and
# say what they lack.
#
#     sh buildah.sh FILE
#
# FILE is made when nothing is left to try.
set -eu

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    for program in buildah debootstrap ip:iproute2; do
        command -v "${program%%:*}" >/dev/null || missing="${missing:-} ${program##*:}"
    done
    if [ -n "${missing:-}" ]; then
        echo "Installing$missing, for the tests that build images"
        # A source of something else may be out of reach.
        apt-get -qq update || true
        # Packages, one word each.
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $missing >/dev/null ||
            echo "apt-get could not install$missing: the tests that build images will be skipped"
    fi
fi
mkdir -p "$(dirname "$1")"
touch "$1"
