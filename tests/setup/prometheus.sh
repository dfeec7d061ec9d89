#!/bin/sh
# Sets up, without root, the Prometheus that scrapes a stack in the tests:
#
#     sh prometheus.sh FOLDER
#
#   FOLDER/bin/           prometheus and promtool: the system's or, if it has none, those in Debian's package
#   FOLDER/missing        why this machine cannot have them: the words that the tests are skipped with
#   FOLDER/.done          nothing is left to try
set -eu

folder=$1

do_without() {
    echo "$1" | tee "$folder/missing"
    touch "$folder/.done"
    exit 0
}

rm -rf "$folder"
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

# Of a private copy of the package lists: the system's own may be empty or old, and are root's.
apt() {
    apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt" "$@"
}

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    ln -s "$(command -v prometheus)" "$(command -v promtool)" "$folder/bin"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
    # A source of something else may be out of reach.
    apt update || true
    (cd "$folder/apt" && apt download prometheus) ||
        do_without "prometheus is not installed, and apt-get could not fetch it"
    dpkg-deb --extract "$folder"/apt/prometheus_*.deb "$folder/root"
    mv "$folder"/root/usr/bin/prometheus "$folder"/root/usr/bin/promtool "$folder/bin"
    rm -r "$folder/apt" "$folder/root"
else
    do_without "prometheus and promtool are not installed: install Prometheus and run make test again"
fi
"$folder/bin/promtool" --version >/dev/null 2>&1 || do_without "promtool does not run on this machine"
touch "$folder/.done"
