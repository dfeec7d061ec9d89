"""One real stack for the tests that only ask it things; those that break it start their own."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.stack import SAMPLE_MODEL, Stack
from xgen_ray.process import free_port

CHAT = "smollm2"
EMBED = "smollm2-embed"
CONTEXT = 1024
SLOTS = 4


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The sample model twice: as a chat model and as an embedding model. Tests may put further models into
    ``home / "models"``.
    """
    home = tmp_path_factory.mktemp("stack")
    (home / "models").mkdir()
    folders = ("--models", str(SAMPLE_MODEL.parent), "--models", str(home / "models"))
    # Ray's agents would pass metrics on every ten seconds only.
    environment = {"RAY_metrics_report_interval_ms": "3000", "XGEN_RAY_LOG_FORMAT": "json"}
    with Stack(home, *folders, "--metrics-port", str(free_port()), environment=environment) as running:
        options = {"context": CONTEXT, "slots": SLOTS, "threads": 1}
        chat = running.load(SAMPLE_MODEL, name=CHAT, options=options)
        assert chat.status_code == 200, chat.text
        embed = running.load(SAMPLE_MODEL, name=EMBED, options={"task": "embed", "context": 512})
        assert embed.status_code == 200, embed.text
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path
