"""The stand-in native libraries, built once for a test run."""

import pytest

from tests.fakes.native.build import build_amdsmi, build_nvml
from tests.hardware.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    nvml, rocm = tmp_path_factory.mktemp("nvml"), tmp_path_factory.mktemp("rocm")
    build_nvml(nvml)
    build_amdsmi(rocm)
    return Lab(nvml, rocm)
