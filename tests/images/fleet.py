"""A head and a worker from images, each in a network of its own, with the committed config of a fleet."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.images.builds import USER, Builder, Container, folder_of_the_user
from tests.namespaces import API, HEAD_IP, KEY, Namespaces, ask
from tests.stack import REPOSITORY, SAMPLE_MODEL, wait_until

ETC, MODELS = "/etc/xgen-ray", "/models"


@dataclass(frozen=True)
class Fleet:
    """Both run; what they are asked comes from the worker's side of the cable."""

    head: Container
    worker: Container
    namespaces: Namespaces

    def ask(self, method: str, path: str, **more: Any) -> Any:
        status, body = ask(self.namespaces.node, method, f"{API}{path}", **more)
        assert status == 200, body
        return body

    def nodes(self) -> dict[str, Any]:
        return {node["node"]: node for node in self.ask("GET", "/api/management/nodes")["nodes"]}

    def load(self, name: str, node: str, **options: Any) -> Any:
        """The sample model on this node; returns when it serves."""
        wish = {
            "model": f"{MODELS}/{SAMPLE_MODEL.name}",
            "name": name,
            "nodes": [node],
            "options": {"context": 512, "slots": 1, "threads": 1, **options},
        }
        return self.ask("POST", "/api/management/load", json=wish)

    def chat(self, name: str) -> str:
        body = {"model": name, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
        answer = self.ask("POST", "/v1/chat/completions", json=body)
        return str(answer["choices"][0]["message"]["content"])


def _private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)
    os.chown(path, USER, USER)


def _configure(folder: Path) -> None:
    _private(folder / "api-keys.yaml", f"tester: {KEY}\n")
    _private(folder / "token", secrets.token_hex(32))
    config = yaml.safe_load((REPOSITORY / "cluster_configs" / "static-fleet.yaml").read_text())
    control, router = (application["args"] for application in config["applications"])
    control |= {"base_url": API, "model_dirs": [MODELS]}
    router["replicas"] = 1
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))


@contextlib.contextmanager
def started(builder: Builder, image: str, namespaces: Namespaces, folder: Path) -> Iterator[Fleet]:
    """A fleet of two, from one image; gone when the context is left."""
    etc, state = folder_of_the_user(folder / "etc"), folder_of_the_user(folder / "state")
    _configure(etc)
    mounts = {SAMPLE_MODEL.parent: MODELS, etc: ETC}
    common = ("--num-cpus", "1", "--token-file", f"{ETC}/token")
    with (
        Container(builder, image, namespaces.head, {**mounts, state: "/var/lib/xgen-ray"}) as head,
        Container(builder, image, namespaces.node, mounts) as worker,
    ):
        head.start(*("head", "--name", "head", "--config", f"{ETC}/serve.yaml", *common), until="is deployed")
        worker.start("worker", f"{HEAD_IP}:6379", "--name", "worker", *common, until="is a node of")
        fleet = Fleet(head, worker, namespaces)
        wait_until(lambda: _both_are_known(fleet), 120, "control knows both nodes")
        yield fleet


def _both_are_known(fleet: Fleet) -> bool:
    # Until the router is there, whatever answers has nothing to say.
    with contextlib.suppress(AssertionError, ValueError):
        return set(fleet.nodes()) == {"head", "worker"}
    return False
