# shellcheck shell=sh
# Packages of Debian and Ubuntu, for the scripts beside this one: they read it in.

# Installs what is named, where that may be done: as root, and with apt-get.
install_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    # A source of something else may be out of reach.
    apt-get -qq update || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@"
}

# apt-get without root, with package lists of its own in the folder $1: the system's may be empty or old.
private_apt() {
    lists=$1
    shift
    mkdir -p "$lists/lists/partial" "$lists/archives/partial"
    apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o Dir::State::lists="$lists/lists" -o Dir::Cache="$lists" "$@"
}
