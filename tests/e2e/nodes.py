"""Real nodes: `xgen-ray node` as child processes, watched from outside as an operator would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.stack import REPOSITORY

START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 30.0

_LIST_NODES = """
import json, sys, ray
ray.init(sys.argv[1], _node_ip_address=sys.argv[2], log_to_driver=False, logging_level="ERROR")
print(json.dumps(ray.nodes()))
"""
_CHANGE_FACTS = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
facts = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))
facts.update(json.loads(sys.argv[2]))
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(facts).encode(), True, b"cluster")
"""


class Node:
    """`xgen-ray node --block` with a home of its own, which is how its processes are found: all of them
    have it in their environment, also those that hang elsewhere in the process tree. ``wrapper`` is a
    command that runs it, in a network namespace for example.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.home = home
        self.arguments = arguments
        self.wrapper = tuple(wrapper)
        self.environment = {**(os.environ if environment is None else environment), "HOME": str(home)}
        self.environment.pop("RAY_AUTH_TOKEN", None)
        self.described: dict[str, Any] = {}
        self.errors: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def command(self, *more: str) -> list[str]:
        return [*self.wrapper, sys.executable, "-P", "-m", "xgen_ray", "node", *self.arguments, *more]

    def give_token(self, token: str) -> None:
        """Where Ray looks for it."""
        folder = self.home / ".ray"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "auth_token").write_text(token)
        (folder / "auth_token").chmod(0o600)

    def start(self) -> None:
        """Returns when it says that it is a node of its cluster; ``described`` has its own words."""
        self._process = subprocess.Popen(
            self.command("--block", "--json"),
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        late = threading.Timer(START_DEADLINE_S, self._process.kill)
        late.start()
        assert self._process.stdout is not None
        text = ""
        for line in self._process.stdout:
            text += line
            if line == "}\n":
                break
        late.cancel()
        if not text:
            self.stop()
            raise AssertionError("the node did not start:\n" + "".join(self.errors))
        self.described = json.loads(text)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal, to the command alone; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(STOP_DEADLINE_S)
        finally:
            self.process.kill()
            if self._reader is not None:
                self._reader.join(STOP_DEADLINE_S)
            assert self.process.stdout is not None
            self.process.stdout.close()
        return code

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The command to its end, for those that end: refusals, dry runs, starts in the background."""
        return subprocess.run(
            self.command(*more),
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_DEADLINE_S,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of it that lives."""
        return [one for one in psutil.process_iter() if _home_of(one) == str(self.home)]

    def wait_for_end(self, seconds: float = STOP_DEADLINE_S) -> None:
        """Until nothing of it is left; the error names what is."""
        deadline = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds:.0f} s there are still: {left}")
            time.sleep(0.1)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            self.errors += self.process.stderr


def nodes_of(head: Node) -> dict[str, dict[str, Any]]:
    """What Ray knows of its nodes, by the name that each was given; asked from the head's own place."""
    address, node_ip = head.described["address"], head.described["node_ip"]
    done = _python(head, _LIST_NODES, address, node_ip)
    nodes: list[dict[str, Any]] = json.loads(done.splitlines()[-1])
    return {node["Labels"].get("xgen-ray/name", node["NodeID"]): node for node in nodes}


def claim_to_be(head: Node, **facts: str) -> None:
    """Make a real head say other versions of itself than it has."""
    _python(head, _CHANGE_FACTS, head.described["address"], json.dumps(facts))


def _python(node: Node, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [*node.wrapper, sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY,
        env={**node.environment, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _home_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return dict(process.environ()).get("HOME")
    return None
