#!/bin/sh
# What can be known of an image on a machine without its GPUs; the last step of each build.
#
#     sh check-image.sh node|cpu|nvidia|amd
set -eu

kind=$1
vllm=/opt/vllm/bin/python
# What engines are found out to do on this machine says nothing of those that the image will run on.
XDG_CACHE_HOME=$(mktemp -d)
export XDG_CACHE_HOME
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT

fail() {
    echo "check-image: $*" >&2
    exit 1
}

# A library that is nowhere, other than the driver's own, which comes with the machine.
needs_nothing() {
    for file in "$1"/llama-server "$1"/*.so; do
        missing=$(ldd "$file" | grep 'not found' | grep -v 'libcuda\.so\.1' || true)
        [ -z "$missing" ] || fail "$file lacks: $missing"
    done
}

starts() {
    "$1" --version
    "$1" --help >/dev/null
    needs_nothing "$(dirname "$(readlink -f "$(command -v "$1")")")"
}

leads_to() {
    [ "$(readlink -f "$(command -v llama-server)")" = "/opt/llama.cpp/$1/llama-server" ] ||
        fail "llama-server leads to $(readlink -f "$(command -v llama-server)"), not to the $1 build"
}

# vLLM names its platform by what it finds, here nothing: its reasons must be those and no others.
vllm_imports() {
    said=$(VLLM_LOGGING_LEVEL=DEBUG "$vllm" -c \
        'from vllm.platforms import current_platform as p; print("platform:", type(p).__name__)' 2>&1) ||
        fail "vLLM does not import: $said"
    echo "$said" | grep -i platform
    "$vllm" -c "import torch; assert torch.version.$1, torch.__version__; print('torch', torch.__version__)"
}

[ "$(id -u)" != 0 ] || fail "the image runs as root"
xgen-ray --version
case "$kind" in
node) ;;
cpu)
    starts llama-server-cpu
    leads_to cpu
    ;;
nvidia)
    starts llama-server-cuda
    leads_to cuda
    [ -z "$(find / -xdev -path '*/stubs/libcuda.so*' 2>/dev/null)" ] || fail "a stub of libcuda was left behind"
    vllm_imports cuda
    ;;
amd)
    starts llama-server-vulkan
    starts llama-server-rocm
    leads_to vulkan
    for python in /opt/xgen-ray/bin/python "$vllm"; do
        "$python" -c 'import amdsmi' || fail "amdsmi does not import in $python"
    done
    vllm_imports hip
    ;;
*)
    fail "there is no kind $kind of image"
    ;;
esac
if [ "$kind" != node ]; then
    python -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
fi
# Every detector and every engine with its own words; on a build machine they say why they have nothing.
xgen-ray detect
xgen-ray node --head --dry-run
