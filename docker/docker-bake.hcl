# The build matrix: every image, and where the parts of each come from.
#
#     docker buildx bake --file docker/docker-bake.hcl             all images
#     docker buildx bake --file docker/docker-bake.hcl cpu         one of them
#     docker buildx bake --file docker/docker-bake.hcl --print     what would be built
#
# Every variable can be set from the environment; a base may carry its digest: NAME:TAG@sha256:... What has
# its default in a Dockerfile is set there: --set 'amd.args.VLLM_VERSION=0.29.0'.

variable "REGISTRY" { default = "ghcr.io/xgen-ray" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }

# One distribution for all: nodes of a cluster need the same Python, to the patch.
variable "BASE" { default = "ubuntu:24.04" }
variable "CUDA_VERSION" { default = "13.0.2" }
variable "CUDA_BASE" { default = "nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04" }
variable "ROCM_VERSION" { default = "7.2.1" }
variable "ROCM_BASE" { default = "rocm/dev-ubuntu-24.04:${ROCM_VERSION}" }

# b11312, which llama-cpp-python 0.3.36 carries too: both engines know the same models.
variable "LLAMA_CPP_COMMIT" { default = "0c1e57098bba43ac29e6e3b677cdceebdd22334f" }
variable "LLAMA_CPP_SOURCE" { default = "https://github.com/ggml-org/llama.cpp.git#${LLAMA_CPP_COMMIT}" }

group "default" { targets = ["cpu", "nvidia", "amd"] }

target "common" {
  context = "."
  args    = { VERSION = VERSION, REVISION = REVISION }
}

target "llama-cpp-python" {
  inherits   = ["common"]
  dockerfile = "docker/Dockerfile.node"
  target     = "llama-cpp-python"
  args       = { BASE = BASE }
}

target "node" {
  inherits   = ["common"]
  dockerfile = "docker/Dockerfile.node"
  target     = "node"
}

target "node-cpu" {
  inherits = ["node"]
  args     = { BASE = BASE }
}

target "node-nvidia" {
  inherits = ["node"]
  args     = { BASE = CUDA_BASE }
}

target "node-amd" {
  inherits = ["node"]
  args     = { BASE = ROCM_BASE }
}

target "image" {
  inherits = ["common"]
  target   = "image"
  contexts = {
    llama-cpp-python = "target:llama-cpp-python"
    llama-source     = LLAMA_CPP_SOURCE
  }
  args = { LLAMA_CPP_COMMIT = LLAMA_CPP_COMMIT }
}

target "cpu" {
  inherits   = ["image"]
  dockerfile = "docker/Dockerfile.cpu"
  contexts   = { node = "target:node-cpu" }
  args       = { BASE = BASE }
  tags       = ["${REGISTRY}/xgen-ray:${VERSION}-cpu"]
}

target "nvidia" {
  inherits   = ["image"]
  dockerfile = "docker/Dockerfile.nvidia"
  contexts   = { node = "target:node-nvidia" }
  args       = { CUDA_VERSION = CUDA_VERSION }
  tags       = ["${REGISTRY}/xgen-ray:${VERSION}-nvidia"]
}

target "amd" {
  inherits   = ["image"]
  dockerfile = "docker/Dockerfile.amd"
  contexts   = { node = "target:node-amd" }
  args       = { BASE = BASE, ROCM_VERSION = ROCM_VERSION }
  tags       = ["${REGISTRY}/xgen-ray:${VERSION}-amd"]
}
