"""Looking, for real: at this machine, at stand-in vendors, and at machines made of files."""

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from tests.backends.vllm_standin import REAL_VLLM, why_no_vllm
from tests.hardware.lab import Lab
from xgen_ray import __version__
from xgen_ray.doctor import Finding, Head, Level, Questions, examine, gather
from xgen_ray.doctor.devices import read_device_files, read_pci_gpus
from xgen_ray.doctor.facts import PCIGPU, DeviceFile, Processor
from xgen_ray.doctor.network import ask_hub, read_clock, read_synchronised
from xgen_ray.doctor.programs import try_haproxy, try_program
from xgen_ray.doctor.system import read_disk, read_limits, read_processor, user_name
from xgen_ray.placement.types import Backend

NOBODY = 65534
RTX_4090 = (
    "name=NVIDIA GeForce RTX 4090,memory_mb=24564,used_mb=1000,reserved_mb=500,cc=8.9,bus=00000000:01:00.0"
)
RX_7900 = "name=AMD Radeon RX 7900 XTX,gfx=1100,vram_mb=24576,vram_used_mb=1024,bdf=0000:03:00.0"


@contextmanager
def answering(status: int, date: str | None) -> Iterator[str]:
    """A server that answers every HEAD with ``status`` and says that it is ``date``."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(status)
            if date is not None:
                self.send_header("Date", date)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def questions(tmp_path: Path, env: dict[str, str], root: Path = Path("/")) -> Questions:
    return Questions(
        env=env,
        cache_dir=tmp_path / "cache",
        state_dir=tmp_path / "state",
        temp_dir=tmp_path,
        timeout_s=30,
        root=root,
    )


async def vllm_findings(tmp_path: Path, commands: dict[Backend, tuple[str, ...]]) -> list[Finding]:
    """What is said of vLLM on this machine, where an operator names ``commands``."""
    asked = replace(questions(tmp_path, {"PATH": "/usr/bin:/bin"}), commands=commands)
    return [finding for finding in examine(await gather(asked)) if finding.check == "vllm"]


class TestThisMachine:
    @pytest.mark.engine
    async def test_everything_is_looked_at(self, tmp_path: Path) -> None:
        async def told() -> Head:
            return Head("gpu-1:6379", "0.0.1", platform.python_version())

        facts = await gather(questions(tmp_path, {"PATH": os.environ["PATH"]}), told())
        assert facts.versions.xgen_ray == __version__
        assert facts.versions.python == platform.python_version()
        assert facts.snapshot.host.memory_total_bytes > 0
        assert [disk.problem for disk in facts.disks] == [None] * 4
        assert facts.limits.machine_memory_bytes == psutil.virtual_memory().total
        findings = examine(facts)
        checks = {finding.check for finding in findings}
        assert checks >= {"driver", "devices", "engines", "ray", "haproxy", "cpu", "memory", "disk", "clock"}
        (ray,) = [finding for finding in findings if finding.check == "ray"]
        assert ray.level is Level.PROBLEM
        assert "has Ray 0.0.1" in ray.found

    @pytest.mark.engine
    async def test_a_command_that_is_no_vllm_is_told(self, tmp_path: Path) -> None:
        found = await vllm_findings(tmp_path, {Backend.VLLM_ROCM: ("/bin/true",)})
        assert [finding.level for finding in found] == [Level.PROBLEM]
        assert found[0].found.startswith("vllm-rocm: its command '/bin/true' is neither the Python that has")

    @pytest.mark.engine
    @pytest.mark.timeout(300)
    @pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm() or "it is there")
    async def test_vllms_build_for_the_cpu_named_for_cuda_is_told(self, tmp_path: Path) -> None:
        python = str(REAL_VLLM / "bin" / "python")
        found = await vllm_findings(tmp_path, {Backend.VLLM_CUDA: (python,)})
        assert [finding.level for finding in found] == [Level.PROBLEM]
        assert f"at {python} is built for cpu, not for cuda" in found[0].found
        assert "install vLLM's build for cuda" in (found[0].advice or "")

    async def test_haproxy_really_runs(self) -> None:
        program = await try_haproxy({"PATH": os.environ["PATH"]}, 20)
        assert program.problem is None
        assert program.version is not None
        assert program.version.startswith("HAProxy version ")

    def test_limits(self) -> None:
        limits = read_limits(Path("/"))
        assert limits.open_files is not None
        assert 0 < limits.open_files <= (limits.open_files_hard or 0)

    @pytest.mark.native
    def test_the_kernels_clock_as_c_reads_it(self, tmp_path: Path) -> None:
        source = tmp_path / "clock.c"
        source.write_text(
            "#include <sys/timex.h>\n"
            "int main(void) { struct timex now = {0}; int state = adjtimex(&now);\n"
            "return state < 0 ? 2 : state != TIME_ERROR && !(now.status & STA_UNSYNC); }\n"
        )
        subprocess.run(["cc", "-o", tmp_path / "clock", source], check=True)
        said = subprocess.run([tmp_path / "clock"]).returncode
        assert read_synchronised() is {0: False, 1: True, 2: None}[said]


@pytest.mark.native
class TestStandInVendors:
    async def test_two_vendors_on_the_bus_and_in_their_libraries(
        self, lab: Lab, root: Path, plug: Callable[..., None], tmp_path: Path
    ) -> None:
        plug("0000:01:00.0", "0x10de", "0x030000", "nvidia")
        plug("0000:03:00.0", "0x1002", "0x030000", "amdgpu")
        for name in ("kfd", "nvidiactl", "nvidia0", "nvidia-uvm", "dri/renderD128"):
            (root / "dev" / name).touch()
        env = lab.env(nvidia=RTX_4090, amd=RX_7900)
        facts = await gather(questions(tmp_path, env, root=root))
        findings = examine(facts)
        drivers = [finding.found for finding in findings if finding.check == "driver"]
        assert [finding.level for finding in findings if finding.check in ("driver", "devices")] == [
            Level.OK
        ] * 3
        assert drivers[0].startswith("pynvml sees 1 GPU, driver ")
        assert drivers[1].startswith("amdsmi sees 1 GPU")
        gpus = [finding for finding in findings if finding.check == "gpu"]
        assert len(gpus) == 2, "no engine of a GPU is on the path"
        assert all(finding.level is Level.PROBLEM for finding in gpus)

    async def test_a_card_whose_driver_does_not_answer(
        self, lab: Lab, root: Path, plug: Callable[..., None], tmp_path: Path
    ) -> None:
        plug("0000:01:00.0", "0x10de", "0x030200", "nvidia")
        facts = await gather(questions(tmp_path, lab.env(), root=root))
        problems = [finding for finding in examine(facts) if finding.level is Level.PROBLEM]
        found = [finding.found for finding in problems if finding.check == "driver"]
        assert len(found) == 1
        assert found[0].startswith("1 NVIDIA on the PCI bus, but pynvml sees none: ")
        missing = {finding.found.split()[0] for finding in problems if finding.check == "devices"}
        assert missing == {"/dev/nvidiactl", "/dev/nvidia-uvm"}


class TestTheBus:
    def test_cards_with_and_without_drivers(self, root: Path, plug: Callable[..., None]) -> None:
        plug("0000:00:02.0", "0x8086", "0x030000", "i915")
        plug("0000:01:00.0", "0x10de", "0x030200", "nvidia")
        plug("0000:01:00.1", "0x10de", "0x040300", "snd_hda_intel")
        plug("0000:03:00.0", "0x1002", "0x120000")
        assert read_pci_gpus(root) == (
            PCIGPU("0000:01:00.0", "nvidia", "nvidia"),
            PCIGPU("0000:03:00.0", "amd", None),
        )

    def test_no_bus(self, root: Path) -> None:
        shutil.rmtree(root / "sys/bus")
        assert read_pci_gpus(root) is None


class TestDeviceFiles:
    def test_those_of_compute(self, root: Path) -> None:
        names = ("kfd", "dri/renderD128", "dri/card0", "nvidia0", "nvidiactl", "nvidia-modeset", "null")
        for name in names:
            (root / "dev" / name).touch(mode=0o660)
        found = read_device_files(root)
        assert [file.path for file in found] == [
            "/dev/dri/renderD128",
            "/dev/kfd",
            "/dev/nvidia0",
            "/dev/nvidiactl",
        ]
        assert all(file.usable for file in found)

    @pytest.mark.parametrize(
        ("number", "vendor"), [("0x1002", "amd"), ("0x10de", "nvidia"), ("0x8086", None)]
    )
    def test_whose_a_render_node_is(self, root: Path, number: str, vendor: str | None) -> None:
        (root / "dev/dri/renderD128").touch()
        device = root / "sys/class/drm/renderD128/device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{number}\n")
        assert [file.vendor for file in read_device_files(root)] == [vendor]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_one_of_another_group(self, root: Path) -> None:
        kfd = root / "dev/kfd"
        kfd.touch()
        os.chown(kfd, 0, 4)
        kfd.chmod(0o660)
        os.seteuid(NOBODY)
        try:
            assert read_device_files(root) == (DeviceFile("/dev/kfd", False, "adm", 0o660),)
            assert user_name() == "nobody"
            disk = read_disk("state", root / "state")
            assert disk.problem == f"nobody may not write in {root}"
        finally:
            os.seteuid(0)


class TestDisksAndProcessor:
    def test_a_folder_that_is_not_made_yet(self, tmp_path: Path) -> None:
        disk = read_disk("cache", tmp_path / "a" / "b")
        assert disk.path == str(tmp_path / "a" / "b")
        assert disk.total_bytes == shutil.disk_usage(tmp_path).total
        assert disk.problem is None
        assert not (tmp_path / "a").exists()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        assert read_disk("cache", tmp_path / "cache").problem == f"{tmp_path / 'cache'} is no folder"

    def test_the_governor(self, root: Path) -> None:
        assert read_processor(root) == Processor()
        folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("powersave\n")
        (folder / "scaling_driver").write_text("acpi-cpufreq\n")
        assert read_processor(root) == Processor("powersave", "acpi-cpufreq")


class TestPrograms:
    async def test_one_that_does_not_run(self, tmp_path: Path) -> None:
        broken = tmp_path / "haproxy"
        broken.write_bytes(b"\x7fELF, but not really")
        broken.chmod(0o755)
        program = await try_program(str(broken), ["-v"], {}, 10)
        assert program.version is None
        assert program.problem

    async def test_one_that_hangs(self) -> None:
        program = await try_program("/bin/sleep", ["60"], {}, 0.3)
        assert program.problem is not None
        assert "had not ended after 0.3 s" in program.problem


class TestOthersOverHttp:
    @pytest.mark.parametrize("offset", [0, 3600, -90])
    async def test_skew(self, offset: int) -> None:
        now = time.time()
        with answering(404, formatdate(now - offset, usegmt=True)) as url:
            clock = await read_clock(url, 5)
        assert clock.skew_s is not None
        assert abs(clock.skew_s - offset) <= clock.error_s + 2
        assert clock.problem is None

    async def test_no_date(self) -> None:
        for date in (None, "yesterday"):
            with answering(200, date) as url:
                assert (await read_clock(url, 5)).problem == "its answer has no Date"

    async def test_nobody_there(self) -> None:
        clock = await read_clock("http://127.0.0.1:9", 5)
        assert clock.skew_s is None
        assert clock.problem
        assert (await read_clock("no address", 5)).problem

    async def test_nobody_asked(self) -> None:
        assert (await read_clock(None, 5)).peer is None

    async def test_the_hub(self) -> None:
        with answering(200, None) as url:
            assert (await ask_hub(url, 5)).problem is None
        with answering(502, None) as url:
            assert (await ask_hub(url, 5)).problem == "HTTP 502"
        assert (await ask_hub("http://127.0.0.1:9", 5)).problem
