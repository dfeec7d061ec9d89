"""What the images promise, read from their files: the order of installs, pinned parts, rights at run time."""

import re
import shutil
import subprocess
import sysconfig
import tomllib

import pytest

from tests.docker.dockerfiles import FOLDER, IMAGES, NAMES, REPOSITORY, Dockerfile, read

# Named contexts that docker-bake.hcl brings.
CONTEXTS = {"node", "llama-cpp-python", "llama-source"}
CMAKE = r"build-llama-server\.sh"
HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts"))


def test_every_dockerfile_is_read_here() -> None:
    assert {path.name for path in FOLDER.glob("Dockerfile*")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_is_an_argument_a_stage_or_a_named_context(name: str) -> None:
    file = read(name)
    for stage in file.stages.values():
        argument = re.fullmatch(r"\$\{(\w+)\}", stage.base)
        if argument is not None:
            assert file.arguments[argument[1]], f"{stage.base} has no default"
        else:
            assert stage.base in file.stages or stage.base in CONTEXTS


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_on_is_pinned(name: str) -> None:
    for argument, default in read(name).arguments.items():
        if argument.endswith("BASE"):
            assert default is not None
            assert re.search(r":[^:]*[\d}]", default), f"{argument}={default} has no tag"
        if argument.endswith("_VERSION"):
            assert re.fullmatch(r"\d+(\.\d+)+", str(default)), f"{argument}={default}"
    assert "latest" not in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_is_used_is_declared_in_its_stage(name: str) -> None:
    """Docker gives an argument of the whole file to no stage that does not ask: its value is then empty."""
    file = read(name)
    for stage in file.stages.values():
        declared = {value.partition("=")[0] for value in stage.all("ARG")}
        used = {
            found
            for one in stage.instructions
            if one.name != "ARG"
            for found in re.findall(r"\$\{?(\w+)", one.value)
        }
        assert used & set(file.arguments) <= declared, stage.name


def test_every_image_can_send_traces() -> None:
    """Its environment is the lock's; an `otlp_endpoint` in a Serve config needs the extra."""
    (install,) = [run for run in read("Dockerfile.node").stages["node"].all("RUN") if "serve.txt" in run]
    assert "--require-hashes -r /tmp/serve.txt" in install
    pinned = re.findall(
        r"^([a-z0-9-]+)==", (REPOSITORY / "requirements" / "serve.txt").read_text(), re.MULTILINE
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [re.split(r"[^a-z0-9-]", one)[0] for one in project["optional-dependencies"]["tracing"]]
    assert wanted
    assert set(wanted) <= set(pinned)


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_step_checks_the_image_as_its_user(name: str) -> None:
    last = read(name).last
    assert last.name == "image"
    assert last.instructions[-1].name == "RUN"
    assert f"check-image.sh {name.removeprefix('Dockerfile.')}" in last.instructions[-1].value
    users = last.all("USER")
    assert users[-1] == "10001"
    assert last.index("USER", "^10001") < last.index("RUN", "check-image")


def test_a_node_is_started_by_one_entry_point_and_says_how_it_is() -> None:
    node = read("Dockerfile.node").stages["node"]
    assert node.all("ENTRYPOINT") == ['["tini", "--", "start-node"]']
    assert node.all("CMD") == ['["head"]']
    (check,) = node.all("HEALTHCHECK")
    assert check.endswith('CMD ["node-healthy"]')
    assert node.all("USER") == ["10001"]
    labels = " ".join(node.all("LABEL"))
    for label in ("title", "description", "licenses", "source", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    groups = node.all("RUN")[0]
    assert "--groups video,render" in groups
    for name in IMAGES:
        for changed in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
            assert not read(name).last.all(changed), f"{name} replaces {changed}"


@pytest.mark.parametrize("name", NAMES)
def test_downloads_are_cached_and_leave_nothing_in_the_image(name: str) -> None:
    for stage in read(name).stages.values():
        for run in stage.all("RUN"):
            if "apt-get install" in run:
                # A cache for each stage: buildah keeps a lock until all stages are built.
                for name, target in (("apt", "/var/cache/apt"), ("apt-lists", "/var/lib/apt/lists")):
                    mount = f"--mount=type=cache,id={name}-{stage.name},target={target},sharing=locked"
                    assert mount in run
                assert "--no-install-recommends" in run
            if "build-llama-server.sh" in run:
                assert "--mount=type=cache,target=/root/.cache/ccache" in run
                assert "--mount=type=bind,from=llama-source,target=/llama.cpp" in run
            if (
                re.search(r"(?<!uv )pip install(?! --no-cache-dir --no-index)", run)
                and "--no-build-isolation" not in run
            ):
                assert "--mount=type=cache,target=/root/.cache/pip" in run


def stage_that_builds(file: Dockerfile, folder: str) -> str:
    """The stage that builds llama-server into /opt/llama.cpp/``folder``, as its command."""
    (found,) = [
        run
        for stage in file.stages.values()
        for run in stage.all("RUN")
        if re.search(rf"{CMAKE} /opt/llama\.cpp/{folder}( |$)", run)
    ]
    return found


def test_cuda_architectures_are_explicit_and_an_argument() -> None:
    file = read("Dockerfile.nvidia")
    architectures = str(file.arguments["CUDA_ARCHITECTURES"]).split(";")
    assert len(architectures) > 1
    # "native" and "all" depend on the machine that builds.
    assert all(re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", one) for one in architectures)
    # One that is newer than all of these still runs, from PTX.
    assert any(not one.endswith("-real") for one in architectures)
    assert '-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES"' in stage_that_builds(file, "cuda")


def test_the_stubs_of_cuda_are_linked_while_building_and_gone_after() -> None:
    file = read("Dockerfile.nvidia")
    build = stage_that_builds(file, "cuda")
    linked, built, gone = (build.index(words) for words in ("ln --symbolic", "build-llama-server.sh", "rm "))
    assert linked < built < gone
    assert build[gone:].rstrip() == 'rm "$stubs/libcuda.so.1"'
    # LIBRARY_PATH counts for the one command and is no ENV, which a later stage would inherit.
    assert "LIBRARY_PATH=$stubs sh /docker/build-llama-server.sh" in build
    for stage in file.stages.values():
        assert not [value for value in stage.all("ENV") if "LIBRARY_PATH" in value or "stubs" in value]
    copied = [value for stage in file.lineage(file.last) for value in stage.all("COPY")]
    assert not [value for value in copied if "stubs" in value or value.endswith("/usr/local/cuda")]
    assert file.last.base == "node"
    assert "stubs/libcuda.so" in (FOLDER / "check-image.sh").read_text()


def test_torch_comes_from_the_index_of_cuda_and_with_vllm() -> None:
    vllm = read("Dockerfile.nvidia").stages["vllm"]
    (install,) = vllm.all("RUN")
    assert '--torch-backend "${TORCH_BACKEND}" "vllm==${VLLM_VERSION}"' in install
    assert re.fullmatch(r"cu\d{3}", str(read("Dockerfile.nvidia").arguments["TORCH_BACKEND"]))


@pytest.mark.parametrize("name", ["Dockerfile.nvidia", "Dockerfile.amd"])
def test_vllm_has_an_environment_of_its_own(name: str) -> None:
    file = read(name)
    for stage in file.stages.values():
        for run in stage.all("RUN"):
            if "/opt/uv/bin/uv pip install" in run and "--no-deps" not in run:
                assert "--mount=type=cache,target=/root/.cache/uv" in run
            if re.search(r'install .*"vllm==', run):
                assert "--python /opt/vllm/bin/python" in run
    assert "/opt/vllm /opt/vllm" in " ".join(file.last.all("COPY"))


def amdsmi_before_vllm(file: Dockerfile) -> None:
    """Raises AssertionError unless amdsmi is in vLLM's environment before vLLM, from ROCm's tree first."""
    vllm = next(s for s in file.stages.values() if any('"vllm==' in run for run in s.all("RUN")))
    runs = [run for stage in file.lineage(vllm) for run in stage.all("RUN")]
    (first,) = [place for place, run in enumerate(runs) if re.search(r'install .*"vllm==', run)]
    placed = [
        place
        for place, run in enumerate(runs)
        if re.search(r"pip install.* (/tmp/amd_smi|-r \S*amdsmi)", run)
    ]
    assert placed, "amdsmi is not installed below vLLM"
    assert placed[0] < first, "vLLM is installed before amdsmi"
    install = runs[placed[0]]
    assert "/opt/vllm/bin/python" in install
    assert "/opt/xgen-ray/bin/python" in install
    tree, registry = install.index("/opt/rocm/share/amd_smi"), install.index("amdsmi.txt")
    assert tree < install.index("else") < registry, "the tree of ROCm comes first"


def test_amdsmi_is_there_before_vllm() -> None:
    amdsmi_before_vllm(read("Dockerfile.amd"))


def test_the_check_of_that_order_would_notice() -> None:
    file = read("Dockerfile.amd")
    swapped = Dockerfile(file.arguments, dict(file.stages))
    amdsmi, vllm = file.stages["amdsmi"], file.stages["vllm"]
    swapped.stages["amdsmi"] = type(amdsmi)("vllm", "amdsmi", amdsmi.instructions)
    swapped.stages["vllm"] = type(vllm)("node", "vllm", vllm.instructions)
    with pytest.raises(AssertionError, match="amdsmi is not installed below vLLM"):
        amdsmi_before_vllm(swapped)


def test_amd_has_all_its_engines_and_means_vulkan_by_llama_server() -> None:
    file = read("Dockerfile.amd")
    assert "-DGGML_VULKAN=ON" in stage_that_builds(file, "vulkan")
    assert '"-DGPU_TARGETS=$AMDGPU_TARGETS"' in stage_that_builds(file, "rocm")
    targets = str(file.arguments["AMDGPU_TARGETS"]).split(";")
    assert all(re.fullmatch(r"gfx[0-9a-f]{3,4}", one) for one in targets)
    links = next(run for run in file.last.all("RUN") if "ln --symbolic" in run)
    assert re.search(r"ln --symbolic llama-server-vulkan /usr/local/bin/llama-server( |$)", links)
    assert file.last.index("COPY", "from=llama-vulkan") < file.last.index("RUN", "ln --symbolic")
    # Without its driver Vulkan has no device to list.
    assert any("mesa-vulkan-drivers" in run for run in file.last.all("RUN"))


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_has_the_last_fallback(name: str) -> None:
    installs = [run for run in read(name).last.all("RUN") if "from=llama-cpp-python" in run]
    assert len(installs) == 1


def test_the_bases_stand_on_one_release_of_one_distribution() -> None:
    """Ray's nodes need the same Python, which comes from the distribution."""
    bake = (FOLDER / "docker-bake.hcl").read_text()
    bases = [
        *re.findall(r'variable "\w*BASE" \{ default = "([^"]+)" \}', bake),
        *(default for name in NAMES for key, default in read(name).arguments.items() if key.endswith("BASE")),
    ]
    assert len(bases) > 5
    assert all(re.search(r"ubuntu[:-]?24\.04", str(base)) for base in bases), bases


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_reaches_the_build(name: str) -> None:
    """The context's .dockerignore leaves out all that is not named."""
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    sources = set()
    for stage in read(name).stages.values():
        for value in stage.all("COPY"):
            if "--from=" not in value:
                sources |= {word for word in value.split()[:-1] if not word.startswith("--")}
        for mount in re.findall(r"--mount=(type=bind\S*)", " ".join(stage.all("RUN"))):
            options = dict(option.split("=") for option in mount.split(","))
            if "from" not in options:
                sources |= {options["source"]} if "source" in options else what_the_wheel_is_made_of()
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, source


def what_the_wheel_is_made_of() -> set[str]:
    """All that is wanted of the whole context, where that is what a step sees."""
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = content["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = content["project"]
    texts = {project["readme"], *project["license-files"]}
    return {"pyproject.toml", *texts, *wheel["packages"], *wheel["force-include"]}


@pytest.mark.skipif(HADOLINT is None, reason="hadolint has no program for this machine")
@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name: str) -> None:
    assert HADOLINT is not None
    command = [HADOLINT, "--config", str(REPOSITORY / ".hadolint.yaml"), str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
