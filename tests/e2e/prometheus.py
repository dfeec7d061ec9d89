"""A real Prometheus, started by the committed script against a running stack."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.cluster_configs.monitoring import FOLDER, PROGRAMS
from tests.stack import wait_until
from xgen_ray.process import free_port

SOON_S = 90.0


class Prometheus:
    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=10)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def wait_for(
        self, expression: str, holds: Callable[[list[dict[str, Any]]], bool] = bool
    ) -> list[dict[str, Any]]:
        """What ``expression`` gives once that ``holds``: figures are as old as a report of Ray's agent, ten
        seconds, and a scrape.
        """
        seen: list[dict[str, Any]] = []

        def held() -> bool:
            seen[:] = self.query(expression)
            return holds(seen)

        try:
            wait_until(held, SOON_S, expression)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}") from None
        return seen

    def wait_for_data(self, expressions: Mapping[str, str]) -> None:
        """Until each of these (where it stands: the expression) gives something."""
        for where, expression in expressions.items():
            wait_until(lambda expression=expression: self.query(expression), SOON_S, f"{where}: {expression}")

    def up(self) -> int:
        """How many nodes it has got metrics from."""
        try:
            ready = self._http.get("/status/runtimeinfo").status_code == httpx.codes.OK
        except httpx.TransportError:
            return 0
        return len(self.query('up{job="xgen-ray"} == 1')) if ready else 0


@contextmanager
def scraping(url: str, folder: Path, targets: int = 1) -> Iterator[Prometheus]:
    """Prometheus once it gets metrics from so many nodes of the stack at ``url``."""
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{PROGRAMS / 'bin'}:{os.environ['PATH']}",
        "XGEN_RAY_URL": url,
        "PROMETHEUS_PORT": str(port),
        "SCRAPE_INTERVAL": "1s",
    }
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        ["sh", str(FOLDER / "start.sh"), str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    made = Prometheus(port)
    try:
        wait_until(lambda: made.up() >= targets, SOON_S, f"{targets} targets are up")
        yield made
    finally:
        made.close()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.seek(0)
        print(log.read())
        log.close()
