"""What the documents take from the code is what the code says now, and what they refer to exists."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.core import TyperGroup

from tests.cluster_configs.test_configs import node_options
from xgen_ray.cli.app import app
from xgen_ray.process.types import FailureClass
from xgen_ray.serving.registry import Registry

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
IMAGES = REPOSITORY / "docker" / "README.md"
PAGES = [
    *sorted(DOCS.glob("*.md")),
    REPOSITORY / "README.md",
    REPOSITORY / "README.ko.md",
    IMAGES,
    REPOSITORY / "cluster_configs" / "monitoring" / "README.md",
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"documents_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


def test_what_is_made_from_the_code_is_up_to_date() -> None:
    for path, text in load(DOCS / "generate.py").documents().items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"


def test_every_class_of_failure_that_ends_an_engine_has_its_section() -> None:
    told = anchors(DOCS / "troubleshooting.md")
    # One that was told to stop has not failed.
    assert {failure.value for failure in FailureClass} - told == {"stopped"}


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


def program() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_ours_exist_with_their_options(page: Path) -> None:
    commands = program().commands
    for line in re.findall(r"xgen-ray ([a-z][^`\n]*)", page.read_text()):
        words = re.split(r"\s{2,}|[;|#]", line)[0].split()
        name = words[0].rstrip(".,:")
        if name not in commands:
            # Prose, such as "an xgen-ray cluster".
            assert "--" not in line, line
            continue
        known = {option for one in commands[name].params for option in (*one.opts, *one.secondary_opts)}
        for word in words[1:]:
            option = word.rstrip(".,:)").partition("=")[0]
            if re.fullmatch(r"--[a-z][a-z-]*", option) and option != "--help":
                assert option in known, f"xgen-ray {name} has no {option}"


def test_an_image_is_told_what_its_entry_point_takes() -> None:
    """Each `docker run` of a node: what it needs besides is hardware, or Docker."""
    text = IMAGES.read_text().replace("\\\n", " ")
    told = re.findall(r"IMAGE-(\w+) +(head|worker \S+)(.*)", text)
    assert [(image, word.split()[0]) for image, word, _ in told] == [
        ("cpu", "head"),
        ("nvidia", "worker"),
        ("amd", "worker"),
    ]
    for image, word, more in told:
        assert (REPOSITORY / "docker" / f"Dockerfile.{image}").exists()
        options = node_options(["xgen-ray", "node", *shlex.split(more)])
        assert options["config" if word == "head" else "token_file"] is not None


def shell_blocks(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, with the comment over them: in plain fences, which others are not in."""
    found = re.findall(r"(?:^|\n)(?:<!-- ([^\n]*) -->\n)?```\n(.*?)```", page.read_text(), re.DOTALL)
    ours = re.compile(r"(?:[\w./]*/)?(?:xgen-ray|make|sudo|docker|python3|sh|curl)\b")
    return [(comment, block) for comment, block in found if ours.match(block)]


def commands_in(block: str) -> set[str]:
    """The subcommands of ours that a block of commands has."""
    return set(re.findall(r"xgen-ray ([a-z]+)", block)) & set(program().commands)


def runs(place: Path, command: str) -> bool:
    """Whether a test has the command's word as an argument or at the head of a line of them. A path over HTTP
    or a key is none.
    """
    said = re.compile(rf"""(?<!"POST", )(?<!"GET", )["']{command}(?: |["'](?![\]:]))""")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return any(said.search(file.read_text()) for file in files)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('call("lift", "small")', True),
        ('@pytest.mark.parametrize("command", ["ps", "lift m"])', True),
        ('stack.management("POST", "lift", json={})', False),
        ('answer["lift"]', False),
        ("# lift small", False),
    ],
)
def test_what_counts_as_running_a_command(tmp_path: Path, text: str, found: bool) -> None:
    (tmp_path / "test_it.py").write_text(text)
    assert runs(tmp_path, "lift") is found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.ko.md"], ids=name_of)
def test_every_command_is_run_or_told_by_which_test(page: Path) -> None:
    for comment, block in shell_blocks(page):
        if comment == "run":
            continue
        told = re.fullmatch(r"as in ([^;]+)(; .+)?", comment)
        assert told is not None, f"which test runs this, or what does it need? {block}"
        places = [REPOSITORY / place for place in told[1].split(", ")]
        for place in places:
            assert place.exists(), place
        for command in commands_in(block):
            assert any(runs(place, command) for place in places), f"{command} is run by none of {told[1]}"


def runnable() -> list[str]:
    """The commands of blocks that are marked to be run."""
    blocks = [
        block
        for page in sorted(DOCS.glob("*.md"))
        for block in re.findall(r"<!-- run -->\n```\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [line for block in blocks for line in block.strip().splitlines()]


def marked(line: str) -> object:
    # What a node would be tagged with includes the engines that compute on it.
    return pytest.param(line, marks=pytest.mark.engine) if "--dry-run" in line else line


@pytest.mark.parametrize("line", [marked(line) for line in runnable()])
def test_commands_that_need_nothing_do_what_they_say(line: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models.db")
    try:
        bin_dir = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        registry.close()
    if "backup.db" in line:
        copy = Registry(tmp_path / "backup.db")
        assert copy.records() == ((), ())
        copy.close()


def test_the_korean_readme_has_the_commands_of_the_english_one() -> None:
    english, korean = ((REPOSITORY / name).read_text() for name in ("README.md", "README.ko.md"))
    for block in re.findall(r"```\n(.*?)```", korean, re.DOTALL):
        assert block in english
    for command in re.findall(r"`(xgen-ray [^`]+)`", korean):
        assert command in english, command
