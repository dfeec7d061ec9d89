"""What of a stack other machines could reach."""

import grpc
import psutil
import pytest

from tests.stack import Stack


def listeners(stack: Stack) -> list[tuple[str, int]]:
    pids = {process.pid for process in stack.processes()}
    found = psutil.net_connections(kind="tcp")
    return [
        (connection.laddr[0], connection.laddr[1])
        for connection in found
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids and connection.laddr
    ]


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


def assert_closed_but_for_the_token(stack: Stack) -> None:
    """Ray Serve's replicas open one port each on all interfaces and cannot be told not to: whoever comes
    there without the cluster's token is refused before anything is read.
    """
    exposed = [port for address, port in listeners(stack) if not is_loopback(address)]
    replicas = {process.pid for process in stack.named("ray::ServeReplica")}
    assert len(exposed) == len(replicas), "one internal port of Ray Serve's for each replica, no more"
    for port in exposed:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
