"""Two machines on one: a network namespace each, joined by a cable, so that addresses are real ones.

Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from typing import Any

from tests.stack import REPOSITORY

HEAD_IP, NODE_IP = "10.211.0.1", "10.211.0.2"
API, KEY = f"http://{HEAD_IP}:8000", "sk-for-the-tests"

# One request, as JSON on the command line; prints [status, body], or the lines of a stream.
_ASK = """
import json, sys, httpx
asked = json.loads(sys.argv[1])
streamed = asked.pop("stream", False)
with httpx.stream(**asked, timeout=200, trust_env=False) as answer:
    lines = [line for line in answer.iter_lines() if line] if streamed else answer.read().decode()
print(json.dumps([answer.status_code, lines]))
"""


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)


class Namespaces:
    """Two of them with a cable between, at HEAD_IP and NODE_IP; nothing else is reached from there."""

    def __init__(self, mark: str) -> None:
        self.head, self.node = f"xr-h{mark}", f"xr-n{mark}"
        self._ends = f"xrh{mark}", f"xrn{mark}"

    def make(self) -> str | None:
        """None when all is there, else why not."""
        if shutil.which("ip") is None or shutil.which("ss") is None:
            return "ip and ss are not installed (Debian: iproute2)"
        ours, theirs = self._ends
        for words in (
            ["netns", "add", self.head],
            ["netns", "add", self.node],
            ["link", "add", ours, "netns", self.head, "type", "veth", "peer", theirs, "netns", self.node],
            ["-n", self.head, "address", "add", f"{HEAD_IP}/24", "dev", ours],
            ["-n", self.node, "address", "add", f"{NODE_IP}/24", "dev", theirs],
            *(["-n", one, "link", "set", "lo", "up"] for one in (self.head, self.node)),
            ["-n", self.head, "link", "set", ours, "up"],
            ["-n", self.node, "link", "set", theirs, "up"],
        ):
            done = ip(*words)
            if done.returncode != 0:
                return f"ip {' '.join(words)}: {done.stderr.strip()}"
        return None

    def remove(self) -> None:
        """Also what was made of them before something was missing."""
        if shutil.which("ip") is not None:
            for name in (self.head, self.node):
                ip("netns", "delete", name)


def inside(namespace: str, *command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *command],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(namespace: str, method: str, url: str, *, key: str | None = KEY, **more: Any) -> tuple[int, Any]:
    """A request from inside a namespace: (status, body); the body is the lines if ``stream`` is given."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asked = {"method": method, "url": url, "headers": headers, **more}
    status, body = json.loads(inside(namespace, sys.executable, "-c", _ASK, json.dumps(asked)))
    return status, body if more.get("stream") else json.loads(body or "null")


def serves(namespace: str) -> bool:
    """Whether both applications answer there: until they do, the proxy says 404 to everybody."""
    with contextlib.suppress(AssertionError, ValueError):
        paths = ("/v1/models", "/api/management/status")
        return all(ask(namespace, "GET", f"{API}{path}")[0] == 200 for path in paths)
    return False
