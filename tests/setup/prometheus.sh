#!/bin/sh
# Sets up, without root, the Prometheus that scrapes a stack in the tests:
#
#     sh prometheus.sh FOLDER
#
#   FOLDER/bin/           prometheus and promtool: the system's or, if it has none, those in Debian's package
#   FOLDER/missing        why this machine cannot have them: the words that the tests are skipped with
#   FOLDER/.done          nothing is left to try
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1

do_without() {
    echo "$1" | tee "$folder/missing"
    touch "$folder/.done"
    exit 0
}

rm -rf "$folder"
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    ln -s "$(command -v prometheus)" "$(command -v promtool)" "$folder/bin"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    # A source of something else may be out of reach.
    private_apt "$folder/apt" update || true
    (cd "$folder/apt" && private_apt "$folder/apt" download prometheus) ||
        do_without "prometheus is not installed, and apt-get could not fetch it"
    dpkg-deb --extract "$folder"/apt/prometheus_*.deb "$folder/root"
    mv "$folder"/root/usr/bin/prometheus "$folder"/root/usr/bin/promtool "$folder/bin"
    rm -r "$folder/apt" "$folder/root"
else
    do_without "prometheus and promtool are not installed: install Prometheus and run make test again"
fi
"$folder/bin/promtool" --version >/dev/null 2>&1 || do_without "promtool does not run on this machine"
touch "$folder/.done"
