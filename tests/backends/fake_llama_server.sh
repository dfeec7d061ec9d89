#!/bin/sh
# A llama-server that does what its first argument says; the rest is what the platform passes.
#
#     sh fake_llama_server.sh PYTHON BEHAVIOUR ARGUMENTS...
#
# A shell, because tests start it often. What serves is fake_llama_http.py beside it, run by PYTHON.
here=$(dirname "$0")
python=$1
behaviour=$2
shift 2

case $behaviour in
illegal-instruction) kill -ILL $$ ;;
hangs) exec sleep 600 ;;
missing-library)
    echo "llama-server: error while loading shared libraries: libfoo.so.1: cannot open" >&2
    exit 127
    ;;
esac

case " $* " in
*" --version "*)
    echo "version: 4711 (deadbeef)" >&2
    exit 0
    ;;
*" --help "*) exec cat "$here/samples/help_vulkan_build.txt" ;;
*" --list-devices "*)
    echo "Available devices:"
    case $behaviour in
    vulkan) echo "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24021 MiB free)" ;;
    software) echo "  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)" ;;
    mixed)
        echo "  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)"
        echo "  Vulkan1: NVIDIA H100 80GB HBM3 (81559 MiB, 80000 MiB free)"
        echo "  CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80560 MiB free)"
        ;;
    metal-of-old) echo "  Metal: Apple M2 Max (49152 MiB, 49152 MiB free)" ;;
    *) echo "  (none)" ;;
    esac
    exit 0
    ;;
esac

case $behaviour in
bad-model)
    echo "E gguf_init_from_reader: failed to read magic" >&2
    exit 1
    ;;
every-port-taken)
    echo "E srv start: couldn't bind HTTP server socket" >&2
    exit 1
    ;;
port-taken:*)
    # The first start finds its port taken, the second does not.
    marker=${behaviour#port-taken:}
    if [ ! -e "$marker" ]; then
        echo "$*" >"$marker"
        echo "E srv start: couldn't bind HTTP server socket" >&2
        exit 1
    fi
    ;;
esac
exec "$python" -I -S "$here/fake_llama_http.py" "$behaviour" "$@"
