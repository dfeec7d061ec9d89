"""How Ray is told to behave, as environment variables. They count only before Ray is imported.

Importing this module imports nothing of Ray.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Bytes never go through Ray's object store; the smallest one that Ray accepts is plenty.
OBJECT_STORE_BYTES = 80 * 2**20
# Ray takes one path for HAProxy's binary; see ``deployments.haproxy`` for what is put in its place.
_HAPROXY_SCRIPT = """#!/bin/sh
exec {python} -I -S {program} {ports} {binary} "$@"
"""


# Metrics cost something on every node, and their port answers anybody who reaches it: only when asked for.
NO_METRICS: Final = {"RAY_enable_metrics_collection": "false"}


def metrics_wanted(environ: Mapping[str, str]) -> bool:
    """Whether Ray collects metrics on this node, so that ours get anywhere."""
    return environ.get("RAY_enable_metrics_collection", "true").lower() not in ("false", "0")


@dataclass(frozen=True, slots=True)
class LocalPorts:
    """Ports that Ray Serve takes beside the public one; all on loopback."""

    haproxy_stats: int
    haproxy_metrics: int
    fallback_proxy: int


def serve_environment() -> Mapping[str, str]:
    """What every cluster of ours runs with: HAProxy in front, and a short path for requests.

    The sources of these names are ``ray/serve/_private/constants.py`` and Ray Serve's guide on
    performance tuning.
    """
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # HAProxy takes a replica out within a second; thirty would be the default.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "30",
        # A machine that boots, or has much to do, is slow and not broken: the proxy would be killed after
        # three answers that took five or ten seconds, and with it every stream.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        # A reload of HAProxy must not cut a long answer off; two minutes would be the default.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
        # Every replica and every handle, such as control's of each engine, would wake ten times a second to
        # count its calls.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
        # Which GPUs an engine sees is ours to say, per engine.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "1",
        "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES": "1",
    }


def loopback_environment(run_dir: Path, ports: LocalPorts, haproxy: Path) -> Mapping[str, str]:
    """For a cluster of one machine that nobody else may reach. Writes HAProxy's start script.

    Ray's name for a cluster without a network is historical: on macOS it is the default.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        **NO_METRICS,
        **_haproxy_environment(run_dir, ports, haproxy),
    }


def network_environment(run_dir: Path, ports: LocalPorts, haproxy: Path) -> Mapping[str, str]:
    """For a node that others reach over a network: nobody speaks to it without the cluster's token, and
    what answers without one stays closed. Writes HAProxy's start script.
    """
    return {
        "RAY_AUTH_MODE": "token",
        # These three would answer anybody who asks, on all interfaces: the metrics of a node, and those of
        # the dashboard and of the autoscaler. The latter two take a port and no address; 65536 is none, so
        # that nothing listens. The dashboard says so in its log and goes on.
        **NO_METRICS,
        "DASHBOARD_METRIC_PORT": "65536",
        "AUTOSCALER_METRIC_PORT": "65536",
        # A node that is told to stop stops; that nothing runs there any more is control's to see to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **_haproxy_environment(run_dir, ports, haproxy),
    }


def _haproxy_environment(run_dir: Path, ports: LocalPorts, haproxy: Path) -> Mapping[str, str]:
    script = run_dir / "haproxy"
    program = Path(__file__).with_name("haproxy.py")
    closed = f"{ports.haproxy_stats},{ports.haproxy_metrics}"
    words = {"python": sys.executable, "program": str(program), "ports": closed, "binary": str(haproxy)}
    script.write_text(_HAPROXY_SCRIPT.format_map({key: shlex.quote(word) for key, word in words.items()}))
    script.chmod(0o700)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
    }
