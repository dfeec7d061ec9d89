"""Apple's GPU by the system's own commands: here, stand-in scripts on a search path."""

from pathlib import Path

import pytest

from xgen_ray.hardware import GPUType, Platform
from xgen_ray.hardware.apple import detect_apple

SAMPLES = Path(__file__).parents[1] / "samples" / "hardware"


def command(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def mac(
    folder: Path, *, sample: str = "system_profiler-m2-max.json", memsize: str = "68719476736"
) -> Platform:
    # The scripts insist on the arguments that the real commands need.
    command(
        folder,
        "system_profiler",
        f'[ "$*" = "SPDisplaysDataType -json" ] || exit 64\nexec /bin/cat "{SAMPLES / sample}"',
    )
    command(folder, "sysctl", f'[ "$*" = "-n hw.memsize" ] || exit 64\necho "{memsize}"')
    return Platform("Darwin", "arm64", search_path=str(folder))


def test_an_apple_chip(tmp_path: Path) -> None:
    report = detect_apple(mac(tmp_path))
    assert report.reason is None
    (gpu,) = report.gpus
    assert (gpu.gpu_type, gpu.device_name, gpu.memory_total_bytes) == (
        GPUType.APPLE_MPS,
        "Apple M2 Max",
        64 * 2**30,
    )
    assert gpu.integrated
    assert gpu.unified_memory


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        (Platform("Linux", "x86_64"), "the system is Linux, not macOS"),
        (Platform("Darwin", "x86_64"), "an Intel Mac (x86_64) has no Apple GPU"),
    ],
)
def test_elsewhere_there_is_none(platform: Platform, reason: str) -> None:
    report = detect_apple(platform)
    assert (report.gpus, report.reason) == ((), reason)


def test_another_vendors_card_does_not_count(tmp_path: Path) -> None:
    report = detect_apple(mac(tmp_path, sample="system_profiler-intel.json"))
    assert (report.gpus, report.reason) == ((), "system_profiler lists no Apple GPU")


def test_memory_that_cannot_be_read_loses_that_field_only(tmp_path: Path) -> None:
    report = detect_apple(mac(tmp_path, memsize="unknown oid"))
    assert report.gpus[0].memory_total_bytes is None
    assert report.gpus[0].notes == ("memory: sysctl: hw.memsize is 'unknown oid', not a number of bytes",)
    assert report.reason == report.gpus[0].notes[0]


def test_missing_commands_are_named(tmp_path: Path) -> None:
    report = detect_apple(Platform("Darwin", "arm64", search_path=str(tmp_path)))
    assert report.reason == "system_profiler not found"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo boom >&2; exit 3", "system_profiler: exit code 3: boom"),
        ("echo not json", "system_profiler: answer not understood (JSONDecodeError)"),
        ("echo '{}'", "system_profiler: answer not understood (KeyError)"),
        (
            """echo '{"SPDisplaysDataType": ["x"]}'""",
            "system_profiler: answer not understood (AttributeError)",
        ),
    ],
)
def test_a_command_that_fails_is_explained(tmp_path: Path, script: str, reason: str) -> None:
    platform = mac(tmp_path)
    command(tmp_path, "system_profiler", script)
    assert detect_apple(platform).reason == reason


def test_a_command_that_hangs_is_killed_at_its_deadline(tmp_path: Path) -> None:
    platform = mac(tmp_path)
    command(tmp_path, "system_profiler", "exec /bin/sleep 60")
    assert detect_apple(platform, deadline_s=0.2).reason == "system_profiler: no answer in 0.2 s"
