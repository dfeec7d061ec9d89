"""The page in a real browser, over the real API, placement and state machine; nodes and engines are data.

``test_stack.py`` has the same with real engines.
"""

import contextlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import NARROW, WIDE, overflow, serious, tab
from tests.browser.desk import FOLDER, GGUF, Desk, served
from xgen_ray.api import ApiKeys
from xgen_ray.console import KeyEntry, Role
from xgen_ray.page import FOLDER as PAGE
from xgen_ray.process import free_port
from xgen_ray.schema import LoadRequest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

VIEWS = ("models", "environment", "playground", "live", "events")


@pytest.fixture(scope="module")
def desk() -> Desk:
    """A model that serves, one on its way, and one whose backend died and was left out."""
    desk = Desk()
    load(desk, GGUF, "qwen3", backend="llama-server-vulkan")
    app, where = desk.started[-1]
    for number in (1, 2):
        desk.die(app, where, f"r{number}")
    desk.held = True
    load(desk, FOLDER, "llama")
    desk.held = False
    return desk


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    with served(desk) as address:
        yield address


def load(desk: Desk, model: str, name: str, **options: object) -> None:
    desk.begin(LoadRequest.model_validate({"model": model, "name": name, "options": options}))


def open_deploy(page: Page) -> None:
    page.get_by_role("button", name="Deploy a model").first.click()
    expect(page.get_by_role("combobox", name="On the fleet")).to_be_visible()


def choose(page: Page, model: str) -> None:
    page.get_by_role("combobox", name="On the fleet").select_option(model)
    expect(page.locator(".verdict")).to_be_visible()


def test_every_node_has_its_card_and_its_badge(browser: Browser, url: str) -> None:
    with tab(browser, f"{url}#/environment") as page:
        badges = {
            "cuda-1": ["CUDA GPU"],
            "rocm-1": ["ROCm GPU"],
            "apu-1": ["ROCm GPU"],
            "mixed-1": ["CUDA GPU", "ROCm GPU"],
            "cpu-1": ["CPU only"],
        }
        for name, told in badges.items():
            card = page.get_by_role("article", name=name)
            expect(card.locator(".badge")).to_have_text(told)
        cuda = page.get_by_role("article", name="cuda-1")
        expect(cuda).to_contain_text("[0] NVIDIA GeForce RTX 4090 (cuda, 24GB)")
        expect(cuda.get_by_role("meter").first).to_have_attribute("aria-valuetext", re.compile("24 GB$"))
        cuda.get_by_text("not available, and why").click()
        expect(cuda).to_contain_text("llama-server-vulkan is not on PATH")
        expect(page.get_by_role("article", name="apu-1")).to_contain_text("unified memory")


def test_a_node_is_drained_and_put_back_into_service(browser: Browser, url: str) -> None:
    with tab(browser, f"{url}#/environment") as page:
        card = page.get_by_role("article", name="cpu-1")
        card.get_by_role("button", name="Drain").click()
        asked = page.get_by_role("dialog")
        expect(asked).to_contain_text("cpu-1? It takes nothing new")
        asked.get_by_role("button", name="Cancel").click()
        expect(card).not_to_contain_text("Takes no models")
        card.get_by_role("button", name="Drain").click()
        page.get_by_role("dialog").get_by_role("button", name="Drain").click()
        expect(card).to_contain_text("Takes no models")
        expect(card).to_contain_text("drained by an operator")
        card.get_by_role("button", name="Put back into service").click()
        expect(page.get_by_text("cpu-1 takes models again")).to_be_visible()
        expect(card.get_by_role("button", name="Drain")).to_be_visible()
        expect(card).not_to_contain_text("Takes no models")


def test_the_form_has_the_fields_of_the_backend_and_no_others(browser: Browser, url: str) -> None:
    with tab(browser, url) as page:
        open_deploy(page)
        choose(page, GGUF)
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("Split over GPUs")).to_be_visible()
        expect(dialog.get_by_label("Tensor parallel size")).to_have_count(0)
        device = dialog.get_by_label("Device")
        expect(device.locator("optgroup")).to_have_count(2)
        device.select_option("llama-server-cpu")
        expect(dialog.get_by_label("Split over GPUs")).to_have_count(0)
        expect(dialog.get_by_role("group", name="cuda-1")).to_have_count(0)
        choose(page, FOLDER)
        device.select_option("vllm-cuda")
        expect(dialog.get_by_label("Tensor parallel size")).to_be_visible()
        expect(dialog.get_by_label("GPU memory utilisation")).to_be_visible()
        expect(dialog.get_by_label("Split over GPUs")).to_have_count(0)


def test_the_plan_follows_what_is_typed_and_faults_stand_at_their_fields(browser: Browser, url: str) -> None:
    with tab(browser, url) as page:
        open_deploy(page)
        choose(page, GGUF)
        dialog, verdict = page.get_by_role("dialog"), page.locator(".verdict")
        expect(verdict).to_contain_text("would run on")
        other = "[1] AMD Radeon Graphics: llama-server-cuda is not for amd_rdna GPUs"
        expect(dialog.locator(".verdicts")).to_contain_text(other)
        dialog.get_by_label("Context length").fill("900000")
        expect(page.locator("#fault-context")).to_contain_text("131072 tokens that the model was trained for")
        expect(verdict).to_have_class(re.compile("no"))
        dialog.get_by_label("Context length").fill("many")
        expect(page.locator("#fault-context")).to_have_text("A whole number is needed here.")
        dialog.get_by_label("Context length").fill("4096")
        expect(page.locator("#fault-context")).to_be_empty()
        dialog.get_by_label("Name").fill("not a name!")
        expect(page.locator("#fault-name")).to_contain_text("should match pattern")
        dialog.get_by_label("Name").fill("")
        dialog.get_by_label("[0] AMD Radeon RX 7900 XTX (rocm, 24GB)").check()
        expect(verdict).to_contain_text("would run on rocm-1 by")
        dialog.get_by_text("Path", exact=True).click()
        dialog.get_by_role("textbox", name="Path").fill("/models/nothing.gguf")
        expect(page.locator("#fault-model")).to_contain_text("does not exist")


def test_a_model_is_deployed_where_it_was_asked_for_and_unloaded(browser: Browser, url: str) -> None:
    with tab(browser, url) as page:
        open_deploy(page)
        choose(page, GGUF)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("mine")
        dialog.get_by_label("[1] NVIDIA GeForce RTX 4090 (cuda, 24GB)").check()
        expect(page.locator(".verdict")).to_contain_text("cuda-1")
        dialog.get_by_role("button", name="Load", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("mine")
        expect(page.locator(".lead .pill")).to_have_text("Ready")
        engine = page.get_by_role("row", name=re.compile("cuda-1"))
        expect(engine).to_contain_text("[1] NVIDIA GeForce RTX 4090")
        expect(page.locator("pre.log")).to_contain_text("main: loading model")
        page.get_by_role("button", name="Restart").click()
        page.get_by_role("dialog").get_by_role("button", name="Restart").click()
        expect(page.get_by_text("mine is being loaded again")).to_be_visible()
        page.get_by_role("button", name="Unload").click()
        page.get_by_role("dialog").get_by_role("button", name="Unload").click()
        expect(page.get_by_text("mine is unloaded")).to_be_visible()
        expect(page.get_by_role("link", name="mine")).to_have_count(0)


def test_a_death_is_told_in_plain_words_and_its_backend_can_be_lifted(browser: Browser, url: str) -> None:
    with tab(browser, f"{url}#/models/qwen3") as page:
        failures = page.locator(".failures")
        expect(failures).to_contain_text("The GPU reported a page fault while the model was loading.")
        expect(failures).to_contain_text("Update the driver")
        failures.get_by_text("Last 2 lines").first.click()
        expect(failures).to_contain_text("Aborted (core dumped)")
        page.goto(f"{url}#/events")
        line = page.locator(".events > li.warning").filter(has_text="Demoted")
        expect(line).to_contain_text("llama-server-vulkan is left out on")
        page.get_by_role("button", name="Trouble only").click()
        expect(page.locator(".events > li.info")).to_have_count(0)
        page.goto(f"{url}#/models/qwen3")
        page.get_by_role("button", name="Lift").click()
        expect(page.get_by_text("llama-server-vulkan may be used again")).to_be_visible()
        expect(page.get_by_role("button", name="Lift")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everybody_can_use_every_view(browser: Browser, url: str, dark: bool) -> None:
    """What axe calls serious is nowhere; nothing is wider than a small phone."""
    viewport = NARROW if dark else WIDE
    with tab(browser, url, viewport=viewport, dark=dark) as page:
        for view in (*VIEWS, "models/qwen3", "models/llama"):
            page.goto(f"{url}#/{view}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            assert serious(page) == [], view
            page.set_viewport_size(NARROW)
            assert overflow(page) <= 0, view
            page.set_viewport_size(viewport)
        page.goto(f"{url}#/models")
        open_deploy(page)
        choose(page, GGUF)
        page.get_by_text("More options").click()
        assert serious(page) == []
        page.set_viewport_size(NARROW)
        assert overflow(page) <= 0


def test_the_keyboard_is_enough(browser: Browser, url: str) -> None:
    with tab(browser, f"{url}#/environment") as page:
        expect(page.get_by_role("article").first).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Models", exact=True)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        deploy = page.get_by_role("button", name="Deploy a model")
        deploy.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_an_address_typed_by_hand_may_have_a_percent_sign(browser: Browser, url: str) -> None:
    with tab(browser, f"{url}#/models/50%") as page:
        expect(page.get_by_role("heading", level=1)).to_have_text("50%")


def test_it_speaks_the_readers_language_and_keeps_what_was_chosen(browser: Browser, url: str) -> None:
    with tab(browser, url, language="ko-KR") as page:
        expect(page.get_by_role("heading", level=1)).to_have_text("모델")
        assert page.evaluate("document.documentElement.lang") == "ko"
        page.get_by_label("언어").select_option("en")
        expect(page.get_by_role("heading", level=1)).to_have_text("Models")
        page.get_by_label("Colours").select_option("dark")
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Models")
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_both_languages_have_every_word() -> None:
    words = {
        language: set(re.findall(r'^\s+"?([\w.]+)"?:', (PAGE / f"texts/{language}.js").read_text(), re.M))
        for language in ("en", "ko")
    }
    # English hints come from the server where Korean has its own.
    assert words["en"] - words["ko"] == set()
    assert {word for word in words["ko"] - words["en"] if not word.endswith(".hint")} == set()
    asked = {
        key
        for path in (PAGE / "js").rglob("*.js")
        for key in re.findall(r"\bt\(\"([\w.]+)\"", path.read_text())
    }
    assert asked - words["en"] == set()


def test_a_key_opens_it_and_one_for_using_models_only_looks_on(browser: Browser) -> None:
    keys = ApiKeys([KeyEntry("ops", "sk-ops"), KeyEntry("app", "sk-app", Role.INFER)])
    with served(Desk(), keys) as url, tab(browser, url) as page:
        key = page.get_by_label("API key")
        assert serious(page) == []
        key.fill("sk-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not take this key.")
        key.fill("sk-app")
        page.keyboard.press("Enter")
        expect(page.get_by_text("app · may look on")).to_be_visible()
        expect(page.get_by_role("button", name="Deploy a model")).to_have_count(0)
        page.goto(f"{url}#/environment")
        expect(page.get_by_role("article", name="cpu-1")).to_be_visible()
        expect(page.get_by_role("button", name="Drain")).to_have_count(0)
        page.goto(f"{url}#/models")
        stored = page.evaluate("JSON.stringify([{...localStorage}, document.cookie])")
        assert "sk-app" not in stored
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        key.fill("sk-ops")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Deploy a model")).to_be_visible()
        page.reload()
        expect(page.get_by_text("ops · may manage")).to_be_visible()


def test_a_page_that_was_left_open_comes_back_with_the_server(browser: Browser) -> None:
    port = free_port()
    with contextlib.ExitStack() as undo:
        with served(Desk(), port=port) as url:
            page = undo.enter_context(tab(browser, url))
            expect(page.get_by_text("No model is loaded")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        second = Desk()
        load(second, GGUF, "qwen3")
        undo.enter_context(served(second, port=port))
        expect(page.get_by_role("link", name="qwen3")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        load(second, FOLDER, "llama")
        expect(page.get_by_role("link", name="llama")).to_be_visible()
