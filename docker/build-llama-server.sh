#!/bin/sh
# Builds llama-server, and the backends that it loads at run time, from llama.cpp's source in /llama.cpp:
#
#     sh build-llama-server.sh FOLDER [CMAKE OPTIONS]
#
# FOLDER gets the program and its libraries, which find each other wherever the folder is. The CPU backend
# is built once per generation of processors, and the best that runs is taken at start: an image built on
# one machine computes on all. Compilers go through ccache, so the parts that all builds share are built
# once.
set -eu

folder=$1
shift

launcher=$(command -v ccache || true)
for language in C CXX CUDA HIP; do
    set -- "-DCMAKE_${language}_COMPILER_LAUNCHER=$launcher" "$@"
done
# shellcheck disable=SC2016  # the loader is who expands $ORIGIN
cmake -S /llama.cpp -B /tmp/build -G Ninja \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
    -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON \
    -DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_COMMIT="${LLAMA_CPP_COMMIT:-unknown}" \
    "$@"
cmake --build /tmp/build --target llama-server --parallel "${JOBS:-$(nproc)}"

mkdir -p "$folder"
cp -P /tmp/build/bin/llama-server /tmp/build/bin/*.so* "$folder/"
strip --strip-unneeded "$folder"/llama-server "$folder"/*.so
rm -r /tmp/build
# What can be asked without the hardware, while the build's own tools are still there to look closer.
"$folder/llama-server" --version
