"""The client against servers that are there, that are not, and that are something else."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.cli.fleet import KEY, Fleet, ready
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.schema import LiftRequest, Phase


@pytest.fixture
def nowhere(silent_port: int) -> str:
    """An address at which nobody listens."""
    return f"http://127.0.0.1:{silent_port}"


def test_it_reads_what_the_server_says(fleet: Fleet, url: str) -> None:
    fleet.models["small"] = ready("small")
    for address in (url, f"{url}/", f"{url}/v1"):
        with Server(address, KEY) as server:
            status = server.model_status("small")
            assert status is not None
            assert status.phase is Phase.READY
            assert server.model_status("other") is None
            assert server.model_names() == ["small"]


def test_nobody_there_is_said_with_what_to_do(nowhere: str) -> None:
    with Server(nowhere, None) as server, pytest.raises(CommandError, match="No server answers") as caught:
        server.status()
    assert caught.value.exit_code is ExitCode.UNREACHABLE
    assert "xgen-ray up" in (caught.value.hint or "")


def test_a_proxy_does_not_stand_before_this_machine(
    fleet: Fleet, url: str, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", nowhere)
    with Server(url, KEY) as server:
        assert server.status().models == ()


def test_another_program_at_the_address_is_recognised(url: str) -> None:
    with (
        Server(f"{url}/elsewhere", KEY) as server,
        pytest.raises(CommandError, match="not as xgen-ray does") as caught,
    ):
        server.status()
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_bare_engine_at_the_address_is_recognised(odd_server: tuple[str, dict[str, bytes]]) -> None:
    url, answer = odd_server
    answer["body"] = b'{"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}'
    answer["status"] = b"404"
    with Server(url, None) as server, pytest.raises(CommandError, match="not as xgen-ray does") as caught:
        server.status()
    assert caught.value.exit_code is ExitCode.UNREACHABLE


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_right_key_it_is_not_authorised(url: str, key: str | None) -> None:
    with Server(url, key) as server, pytest.raises(CommandError) as caught:
        server.status()
    assert caught.value.exit_code is ExitCode.UNAUTHORISED
    assert "XGEN_RAY_API_KEY" in (caught.value.hint or "")


@pytest.mark.parametrize("key", ["secret\n", "se cret", "secrét", "secret\x00"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(CommandError) as caught:
        Server("http://127.0.0.1:1", key)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "cret" not in caught.value.message
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:99999", "http://[::1", ""]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(CommandError, match="no address") as caught:
        Server(url, None)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("url", ["http://me:hunter2@host", "http://me:hunter2@host:99999"])
def test_a_password_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(CommandError) as caught:
        Server(url, None)
    assert "hunter2" not in caught.value.message


@pytest.fixture
def odd_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server that answers everything with the same bytes, or falls silent if it has none."""
    answer: dict[str, bytes] = {}
    over = threading.Event()

    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "body" not in answer:
                over.wait(10)
                return
            self.send_response(int(answer.get("status", b"200")))
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answer
        over.set()
        server.shutdown()
        thread.join(5)


def test_a_lift_is_done_only_when_the_server_says_so_as_ours_does(
    odd_server: tuple[str, dict[str, bytes]],
) -> None:
    url, answer = odd_server
    answer["body"] = b'{"fine": true}'
    with Server(url, None) as server, pytest.raises(CommandError, match="not as xgen-ray does") as caught:
        server.lift(LiftRequest(model="small"))
    assert caught.value.exit_code is ExitCode.UNREACHABLE


def test_a_server_of_another_version_is_named_as_such(odd_server: tuple[str, dict[str, bytes]]) -> None:
    url, answer = odd_server
    answer["body"] = json.dumps({"models": [], "version": "9", "moons": 2}).encode()
    with Server(url, None) as server, pytest.raises(CommandError, match=r"moons.*server's version"):
        server.status()


def test_a_silent_server_is_not_waited_for_for_ever(odd_server: tuple[str, dict[str, bytes]]) -> None:
    url, _ = odd_server
    with (
        Server(url, None, timeout_s=0.2) as server,
        pytest.raises(CommandError, match="no answer in time") as caught,
    ):
        server.status()
    assert caught.value.exit_code is ExitCode.TIMED_OUT
