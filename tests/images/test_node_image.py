"""The image that all others stand on, built and run: two of it make a fleet and serve a real model."""

from collections.abc import Iterator

import pytest
import ray

from tests.images.builds import USER, Builder
from tests.images.fleet import Fleet, started
from tests.namespaces import Namespaces
from xgen_ray import __version__

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    return builder.build("Dockerfile.node", "node", arguments={"VERSION": __version__})


@pytest.fixture(scope="module")
def fleet(
    builder: Builder, image: str, namespaces: Namespaces, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with started(builder, image, namespaces, tmp_path_factory.mktemp("fleet")) as running:
        yield running


def test_it_says_what_it_is(builder: Builder, image: str) -> None:
    config = builder.inspect(image)
    assert config["User"] == str(USER)
    assert config["Entrypoint"] == ["tini", "--", "start-node"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__


def test_two_of_it_find_each_other_and_themselves(fleet: Fleet) -> None:
    """The head took the first address of its network; both have tagged themselves, and are healthy."""
    assert fleet.head.healthy()
    assert fleet.worker.healthy()
    for node in fleet.nodes().values():
        assert "llama-server-cpu" in node["available_backends"]
    assert "cpu_node: 1" in "".join(fleet.worker.output)


def test_a_model_is_served_from_the_worker(fleet: Fleet) -> None:
    loaded = fleet.load("small", "worker")
    assert loaded["phase"] == "ready"
    assert [replica["node"] for replica in loaded["replicas"]] == ["worker"]
    assert fleet.chat("small")


def test_it_runs_as_its_user_and_a_login_shell_finds_ray(fleet: Fleet) -> None:
    """KubeRay starts its own containers of the image by a login shell, which sets PATH anew."""
    said = fleet.worker.run("bash", "-lc", "id -u; ray --version").splitlines()
    assert said == [str(USER), f"ray, version {ray.__version__}"]


def test_told_to_stop_it_ends_with_all_it_started(fleet: Fleet) -> None:
    assert len(fleet.worker.processes()) > 5
    fleet.worker.stop()
    fleet.head.stop()
