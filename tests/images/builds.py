"""Building and running images without a Docker engine: buildah, its storage in a folder of its own.

Needs root. Nothing is pulled: the base is made by debootstrap, from the packages of the distribution. That,
and what builds have downloaded and compiled, is kept for the next run; the images are not.
"""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import psutil

from tests.stack import REPOSITORY, command_of

# Debian 12, and the release after it: llama.cpp's Vulkan backend needs the headers of that.
BASE, NEWER_BASE = "localhost/base:bookworm", "localhost/base:trixie"
# Who the images run as.
USER = 10001
KEPT = REPOSITORY / ".cache" / "images"
# What this machine trusts, and how its pip finds packages: so that a build behind a proxy works as well.
CERTIFICATES = Path("/usr/local/share/ca-certificates")
PIP_CONFIG = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def why_not() -> str | None:
    """Why images cannot be built here; None if they can."""
    if os.geteuid() != 0:
        return "images are built as root: debootstrap makes device files"
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        return f"not installed: {' and '.join(missing)} (Debian's packages)"
    # Root in a container may have neither mounts of its own nor a file system that overlays can lie on.
    for command in (["unshare", "--mount", "true"], Builder().command("info")):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            return f"{command[0]}: {done.stderr.strip()[-500:]}"
    return None


class Builder:
    """buildah with all of its storage below ``folder``. Only one at a time has it; the images and containers
    of another, which may have been killed, are gone when the context is entered, and its own when it is left.
    """

    def __init__(self, folder: Path = KEPT) -> None:
        self.folder = folder
        # Caches of a build (pip's, apt's, ccache's) are kept below TMPDIR.
        self.caches = folder / "caches"
        self._lock: TextIO | None = None

    def __enter__(self) -> Self:
        self.caches.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise AssertionError(f"another run builds images in {self.folder}") from None
        self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self.buildah("rm", "--all")
        kept = {self.images().get(name) for name in (BASE, NEWER_BASE)}
        for image in {*self.images().values()} - kept:
            self.buildah("rmi", "--force", image)

    def images(self) -> dict[str, str]:
        """Their ids by their names; one without a name has its id for it."""
        found = json.loads(self.buildah("images", "--all", "--json"))
        return {name: image["id"] for image in found for name in image["names"] or [image["id"]]}

    def command(self, *words: str) -> list[str]:
        storage = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return ["buildah", "--storage-driver", "overlay", *storage, *words]

    def buildah(self, *words: str, timeout: float = 1200) -> str:
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "TMPDIR": str(self.caches)},
        )
        assert done.returncode == 0, f"buildah {' '.join(words[:2])}:\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stdout

    def make_base(self, name: str = BASE) -> None:
        """The least that Debian calls a system, as an image of one layer; the tag is the release."""
        if name in self.images():
            return
        root = self.folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", name.partition(":")[2], str(root)]
        subprocess.run(command, check=True, capture_output=True, timeout=1200)
        trusted = root / CERTIFICATES.relative_to("/")
        trusted.mkdir(parents=True, exist_ok=True)
        for certificate in CERTIFICATES.glob("*.crt"):
            shutil.copy(certificate, trusted)
        (root / "etc" / "pip.conf").write_text(PIP_CONFIG)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, str(root), "/")
        # uv has certificates of its own unless it is told of others.
        self.buildah("config", "--env", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", container)
        self.buildah("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(root)

    def build(
        self,
        dockerfile: str,
        target: str,
        *,
        arguments: Mapping[str, str] | None = None,
        contexts: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        timeout: float = 1200,
    ) -> str:
        """The name of the image made of one stage."""
        name = f"localhost/{target}"
        words = ["--isolation", "chroot", "--pull-never", "--layers=false", "--format", "docker"]
        for key, value in {"BASE": BASE, **(arguments or {})}.items():
            words += ["--build-arg", f"{key}={value}"]
        for key, value in (contexts or {}).items():
            words += ["--build-context", f"{key}={value}"]
        file = str(REPOSITORY / "docker" / dockerfile)
        words += ["--tag", name, "--file", file, "--target", target, *options, str(REPOSITORY)]
        self.buildah("bud", *words, timeout=timeout)
        return name

    def inspect(self, image: str) -> dict[str, Any]:
        """What the image says of itself: entry point, user, labels, health check."""
        config: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", image))["Docker"][
            "config"
        ]
        return config


class Container:
    """An image that runs in the network of ``namespace``; ``mounts`` are folders of ours by their place in
    it. Leaving the context stops and removes it.
    """

    def __init__(self, builder: Builder, image: str, namespace: str, mounts: Mapping[Path, str]) -> None:
        self._builder = builder
        # buildah's own limit of open files, 1024, is too low for HAProxy; Docker's is this machine's.
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = ("--ulimit", f"nofile={files}:{files}")
        self._name = builder.buildah("from", "--pull-never", *limit, image).strip()
        self._config = builder.inspect(image)
        self._prefix = ["ip", "netns", "exec", namespace]
        self._volumes = [
            word for source, place in mounts.items() for word in ("--volume", f"{source}:{place}")
        ]
        self._main: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self.output: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._builder.buildah("rm", self._name)

    def run(self, *words: str, timeout: float = 120) -> str:
        """A command beside the entry point, which must run, as `docker exec` does it; its output."""
        done = self._beside(words, timeout)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def healthy(self) -> bool:
        """What the image's own health check says."""
        (kind, *check) = self._config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self._beside(check, 60).returncode == 0

    def _beside(self, words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        # Not another `buildah run`: it would mount the container's layers a second time, and the two would
        # not see each other's files.
        first = self._first()
        user = str(USER)
        enter = ["nsenter", "--target", str(first.pid), "--mount", "--net", "--root", "--wd"]
        command = [*enter, "--setuid", user, "--setgid", user, *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=first.environ(), check=False
        )

    def _first(self) -> psutil.Process:
        """The image's own first process, below those of buildah."""
        (tini,) = [process for process in self.processes() if _name(process) == "tini"]
        return tini

    def start(self, *arguments: str, until: str, seconds: float = 180) -> None:
        """Start the entry point with these arguments; returns when it has printed ``until``."""
        run = ["run", "--isolation", "chroot", *self._volumes, self._name, "--"]
        self._main = subprocess.Popen(
            [*self._prefix, *self._builder.command(*run), *self._config["Entrypoint"], *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._main, until, said), daemon=True)
        self._reader.start()
        deadline = time.monotonic() + seconds
        while not said.wait(0.2):
            assert self._main.poll() is None, "it ended:\n" + "".join(self.output)
            assert time.monotonic() < deadline, "it did not start:\n" + "".join(self.output)

    def _read(self, main: subprocess.Popen[str], until: str, said: threading.Event) -> None:
        assert main.stdout is not None
        with main.stdout as lines:
            for line in lines:
                self.output.append(line)
                if until in line:
                    said.set()

    def processes(self) -> list[psutil.Process]:
        """All that run below the entry point."""
        if self._main is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._main.pid).children(recursive=True)
        return []

    def stop(self) -> None:
        """TERM to the image's first process, as Docker does. Raises AssertionError if any outlives it."""
        if self._main is None:
            return
        below = self.processes()
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            self._first().send_signal(signal.SIGTERM)
        try:
            self._main.wait(60)
        except subprocess.TimeoutExpired:
            self._main.kill()
            self._main.wait(10)
        self._reader.join(10)
        self._main = None
        _, alive = psutil.wait_procs(below, timeout=10)
        for process in alive:
            process.kill()
        assert not alive, f"left behind: {[command_of(process) for process in alive]}"


def _name(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def folder_of_the_user(folder: Path) -> Path:
    """A folder that the image's user owns, to be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, USER, USER)
    return folder
