"""`serve run` with a committed config, as Ray's own documentation starts applications.

It sets no more of the environment than the config's comment, so that Ray Serve runs with its defaults: a
Python proxy in front.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.stack import REPOSITORY, Stack

CONFIGS = REPOSITORY / "cluster_configs"
ONE_MACHINE = CONFIGS / "one-machine.yaml"
MIXED_FLEET = CONFIGS / "mixed-fleet.yaml"
KUBERAY = CONFIGS / "kuberay" / "fleet.yaml"


def said_with(config: Path) -> dict[str, str]:
    """The variables that a config's own comment has before `serve run`."""
    line = re.search(r"^# +((?:\w+=\S+ )+)serve run ", config.read_text(), re.MULTILINE)
    return dict(word.split("=") for word in line[1].split()) if line else {}


class ServeRun(Stack):
    """A committed config with a port and folders of its own, on loopback. ``control`` and ``router`` are laid
    over the two applications' arguments.
    """

    announcement = "Submitted deploy config successfully"

    def __init__(
        self,
        home: Path,
        *,
        config: Path = ONE_MACHINE,
        control: Mapping[str, Any] | None = None,
        router: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # A cluster of its own, whatever else runs on this machine.
        own = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
        # Into a pipe it would say only at its end that it has begun.
        own["PYTHONUNBUFFERED"] = "1"
        token = home / "token"
        token.write_text(secrets.token_hex(32))
        own["RAY_AUTH_TOKEN_PATH"] = str(token)
        self.environment = {**own, **said_with(config), **(environment or {})}
        super().__init__(home, environment=self.environment)
        self.content = self.here(yaml.safe_load(config.read_text()))
        first, second = self.content["applications"]
        first["args"] |= control or {}
        second["args"] |= router or {}
        self.config = home / "config.yaml"
        self.write()

    def here(self, content: dict[str, Any]) -> dict[str, Any]:
        """A config for this stack's port and folders, on loopback, so without keys."""
        mine = {
            "base_url": self.url,
            "state_dir": str(self.home / "registry"),
            "cache_dir": str(self.home / "downloads"),
        }
        first, second = content["applications"]
        for application in (first, second):
            application["args"].pop("api_keys_file", None)
        first["args"] |= mine
        content["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        return content

    def command(self) -> list[str]:
        return [str(Path(sys.executable).with_name("serve")), "run", str(self.config)]

    def write(self, models: Sequence[Mapping[str, Any]] | None = None, **arguments: Any) -> None:
        """The file, with these models and further arguments for control."""
        if models is not None:
            arguments["models"] = list(models)
        self.content["applications"][0]["args"] |= arguments
        self.config.write_text(yaml.safe_dump(self.content))

    def apply(self, *more: str) -> subprocess.CompletedProcess[str]:
        """`xgen-ray apply` of the file as it is now."""
        (raylet,) = self.named("raylet/raylet")
        (address,) = (word for word in raylet.cmdline() if word.startswith("--gcs-address="))
        command = [
            sys.executable,
            "-P",
            "-m",
            "xgen_ray",
            "apply",
            str(self.config),
            "--address",
            address.partition("=")[2],
            *more,
        ]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)

    def answers(self) -> bool:
        """Whether both applications answer."""
        try:
            status = self.management("GET", "status")
            health = self._ask("GET", "health", timeout=5)
        except httpx.TransportError:
            return False
        return (status.status_code, health.status_code) == (200, 200)

    def serves(self, *names: str) -> bool:
        """Whether both applications answer and the models are ready."""
        if not self.answers():
            return False
        models = self.management("GET", "status").json()["models"]
        return {model["name"] for model in models if model["phase"] == "ready"} >= set(names)
