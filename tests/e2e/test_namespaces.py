"""Two machines on one, each in a network namespace. What listens where is asked from the other one, as a
stranger there would: without the token.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from yarl import URL

from tests.e2e.nodes import Node, nodes_of
from tests.namespaces import API, HEAD_IP, KEY, NODE_IP, Namespaces, ask, inside, serves
from tests.stack import REPOSITORY, SAMPLE_MODEL, wait_until
from xgen_ray.cli.exits import ExitCode

PORT = 6379

# Calls every method of every service that Ray has, without a token, at HOST PORT...; prints the methods that
# answered and, for each port, the codes of those that did not.
_STRANGER = """
import importlib, json, pkgutil, sys, grpc, httpx
from ray.core import generated
from ray.serve import generated as of_serve
# The object manager's own are not among Python's.
methods = {"/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.ObjectManagerService/Push"}
for package in (generated, of_serve):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR
            services = described.services_by_name.values()
            methods |= {f"/{one.full_name}/{method.name}" for one in services for method in one.methods}
assert len(methods) > 100, methods
answered, refused = [], {}
for port in sys.argv[2:]:
    target = f"{sys.argv[1]}:{port}"
    refused[port] = set()
    with grpc.insecure_channel(target) as channel:
        for method in sorted(methods):
            try:
                channel.unary_unary(method)(b"", timeout=5)
                answered.append(f"{port}{method}")
            except grpc.RpcError as error:
                refused[port].add(error.code().name)
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    break  # it speaks something else
    for path in ("/", "/v1/models", "/api/management/status"):
        try:
            code = httpx.get(f"http://{target}{path}", timeout=5, trust_env=False).status_code
        except httpx.HTTPError:
            break
        refused[port].add(f"HTTP {code}")
print(json.dumps([answered, {port: sorted(codes) for port, codes in refused.items()}]))
"""


@pytest.fixture(scope="module")
def namespaces() -> Iterator[Namespaces]:
    made = Namespaces(str(os.getpid() % 100_000))
    try:
        if (why := made.make()) is not None:
            pytest.skip(f"no network namespaces here: {why}")
        yield made
    finally:
        made.remove()


def serve_config(folder: Path) -> Path:
    """The committed config of a static fleet, with this network's address and this machine's folders."""
    keys = folder / "api-keys.yaml"
    keys.touch(mode=0o600)
    keys.write_text(f"tester: {KEY}\n")
    config = yaml.safe_load((REPOSITORY / "cluster_configs" / "static-fleet.yaml").read_text())
    for application in config["applications"]:
        application["args"]["api_keys_file"] = str(keys)
    control, router = (application["args"] for application in config["applications"])
    router["replicas"] = 1
    control |= {"base_url": API, "model_dirs": [str(SAMPLE_MODEL.parent)], "state_dir": str(folder / "state")}
    path = folder / "static-fleet.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def fleet(namespaces: Namespaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    folder = tmp_path_factory.mktemp("n")
    homes = [folder / name for name in ("h", "n")]
    for home in homes:
        home.mkdir()
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}

    def small(temp: str) -> list[str]:
        return ["--num-cpus", "1", "--temp-dir", str(folder / temp)]

    config = serve_config(folder)
    head = Node(
        homes[0],
        *("--head", "--node-ip-address", HEAD_IP, "--port", str(PORT), "--name", "head", *small("a")),
        *("--config", str(config)),
        environment=environment,
        wrapper=("ip", "netns", "exec", namespaces.head),
    )
    with head:
        # Its own address it finds by itself, on its way to the head.
        node = Node(
            homes[1],
            *("--address", f"{HEAD_IP}:{PORT}", "--name", "node", *small("b")),
            environment=environment,
            wrapper=("ip", "netns", "exec", namespaces.node),
        )
        node.give_token((head.home / ".ray" / "auth_token").read_text())
        with node:
            wait_until(lambda: serves(namespaces.head), 120, "both applications answer")
            yield head, node


def listeners(namespace: str) -> set[tuple[str, int]]:
    """Address and port of everything that listens there; ``*`` for all interfaces."""
    lines = inside(namespace, "ss", "-Hltn").splitlines()
    found = set()
    for line in lines:
        address, port = line.split()[3].rsplit(":", 1)
        address = re.sub(r"^\[?(?:::ffff:)?(.*?)\]?(?:%.*)?$", r"\1", address)
        found.add(("*" if address in ("0.0.0.0", "::", "*") else address, int(port)))
    return found


pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_the_node_shows_up_with_its_tags_and_its_address(fleet: tuple[Node, Node]) -> None:
    head, node = fleet
    known = nodes_of(head)
    assert known["head"]["NodeManagerAddress"] == HEAD_IP
    assert known["node"]["NodeManagerAddress"] == NODE_IP
    assert node.described["node_ip"] == NODE_IP
    for one in fleet:
        name = one.described["name"]
        assert one.described["labels"].items() <= known[name]["Labels"].items()
        assert one.described["resources"].items() <= known[name]["Resources"].items()


@pytest.mark.parametrize("which", [0, 1], ids=["head", "node"])
def test_a_stranger_gets_nothing_without_the_token(
    fleet: tuple[Node, Node], namespaces: Namespaces, which: int
) -> None:
    """Every port that can be reached from the other side is asked, without the token."""
    here, there = (namespaces.head, namespaces.node)[:: 1 - 2 * which]
    address = fleet[which].described["node_ip"]
    found = listeners(here)
    assert {place for place, _ in found} <= {"127.0.0.1", "*", address}
    reachable = sorted({port for place, port in found if place != "127.0.0.1"})
    assert reachable
    stranger = ["env", "RAY_AUTH_MODE=disabled", sys.executable, "-c", _STRANGER]
    answered, refused = json.loads(inside(there, *stranger, address, *map(str, reachable)))
    assert answered == []
    for port, codes in refused.items():
        assert {"UNAUTHENTICATED", "HTTP 401"} & set(codes), (port, codes)
        assert "HTTP 200" not in codes, (port, codes)
    assert set(refused) == {str(port) for port in reachable}


def test_a_model_on_the_other_machine_is_loaded_and_streams(
    fleet: tuple[Node, Node], namespaces: Namespaces
) -> None:
    """Its engine is reached on its node's own address, by the router alone: nobody else has its key."""
    wish = {
        "model": str(SAMPLE_MODEL),
        "name": "far",
        "nodes": ["node"],
        "options": {"context": 512, "slots": 1, "threads": 1},
    }
    status, loaded = ask(namespaces.node, "POST", f"{API}/api/management/load", json=wish)
    assert (status, loaded.get("phase")) == (200, "ready"), loaded
    (replica,) = loaded["replicas"]
    assert replica["node"] == "node"
    engine = URL(replica["url"])
    assert engine.host == NODE_IP
    assert (NODE_IP, engine.port) in listeners(namespaces.node)
    question = {
        "model": "far",
        "stream": True,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    for client in (namespaces.node, namespaces.head):
        status, lines = ask(client, "POST", f"{API}/v1/chat/completions", json=question, stream=True)
        assert (status, lines[-1]) == (200, "data: [DONE]"), lines
        assert len(lines) > 4, "token by token"
        assert ask(client, "POST", f"{engine}/v1/chat/completions", key=None, json=question)[0] == 401
        assert ask(client, "GET", f"{API}/v1/models", key=None)[0] == 401
    _, nodes = ask(namespaces.head, "GET", f"{API}/api/management/nodes")
    assert {node["node"]: node["models"] for node in nodes["nodes"]} == {"head": [], "node": ["far"]}


def test_a_node_that_has_no_route_says_so(namespaces: Namespaces, tmp_path: Path) -> None:
    node = Node(tmp_path, "--address", "10.99.0.1:6379", wrapper=("ip", "netns", "exec", namespaces.node))
    done = node.run("--block")
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.startswith("error: no route to 10.99.0.1:6379 (Network is unreachable)")
    assert len(done.stderr.splitlines()) == 1


def test_a_host_that_is_not_there_says_so(namespaces: Namespaces, tmp_path: Path) -> None:
    """On the same network: the kernel asks for it and gets no answer."""
    node = Node(tmp_path, "--address", "10.211.0.77:6379", wrapper=("ip", "netns", "exec", namespaces.node))
    done = node.run("--block")
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.startswith("error: no route to 10.211.0.77:6379 (No route to host)")


def test_the_node_leaves(fleet: tuple[Node, Node], namespaces: Namespaces) -> None:
    """The last one: nothing listens in its namespace any more, and the head knows."""
    head, node = fleet
    assert node.stop() == ExitCode.OK, node.errors
    node.wait_for_end(1)
    assert listeners(namespaces.node) == set()
    wait_until(lambda: not nodes_of(head)["node"]["Alive"], 20, "the head to see that the node has left")

    def far() -> dict[str, Any]:
        _, report = ask(namespaces.head, "GET", f"{API}/api/management/status")
        (model,) = report["models"]
        return dict(model)

    left = wait_until(
        lambda: status if (status := far())["phase"] == "failed" else None, 60, "the model to have no place"
    )
    assert "no node node" in left["reason"]
    assert "head" in left["reason"], "the nodes that there are"
