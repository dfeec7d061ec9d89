"""The page over the real stack: Ray, Serve, HAProxy, llama.cpp's server with the real small model."""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import tab
from tests.stack import SAMPLE_MODEL, Stack, wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.cluster,
    pytest.mark.engine,
    pytest.mark.timeout(420),
]

NAME = "small"
# An engine that starts, on two cores that are shared with everything else.
READY_MS = 180_000
# A quick start is over between two looks of the browser's driver.
WATCH_FOR_A_BAR = """() => {
    window.barSeen = false;
    new MutationObserver(() => { window.barSeen ||= document.querySelector(".lead progress") !== null; })
        .observe(document.body, { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("page"), "--models", str(SAMPLE_MODEL.parent)) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """One page for all of it, left open: by the server's bare address it comes to the page."""
    with tab(browser, f"{stack.url}/") as opened:
        yield opened


def state(page: Page) -> Any:
    return page.locator(".lead .pill")


def replica(stack: Stack) -> dict[str, Any]:
    status = stack.status(NAME)
    assert status is not None
    found: dict[str, Any] = status["replicas"][0]
    return found


def test_a_model_is_found_deployed_and_watched_until_it_is_ready(page: Page, stack: Stack) -> None:
    expect(page.get_by_text("No model is loaded")).to_be_visible()
    assert page.url.startswith(f"{stack.url}/api/")
    page.get_by_role("button", name="Deploy a model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox", name="On the fleet").select_option(str(SAMPLE_MODEL), timeout=READY_MS)
    expect(page.locator(".verdict")).to_contain_text("would run by llama-server-cpu", timeout=READY_MS)
    dialog.get_by_label("Name").fill(NAME)
    dialog.get_by_label("Context length").fill("1024")
    dialog.get_by_text("More options").click()
    dialog.get_by_label("Threads").fill("1")
    page.evaluate(WATCH_FOR_A_BAR)
    dialog.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(NAME)
    expect(state(page)).to_have_text("Ready", timeout=READY_MS)
    assert page.evaluate("barSeen"), "what it was doing meanwhile"
    expect(page.locator("pre.log")).to_contain_text("listening")
    expect(page.locator(".bill").first).to_contain_text("weights")


def test_it_is_talked_to_and_stopped_in_the_middle(page: Page) -> None:
    page.get_by_role("button", name="Chat").click()
    message = page.get_by_label("Message")
    message.fill("Name three colours.")
    message.press("Enter")
    answer = page.locator(".message.assistant").last
    expect(answer.locator("[data-figures]")).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=READY_MS)
    expect(answer.locator("[data-figures]")).to_contain_text("first token after")
    assert answer.locator(".text").inner_text().strip()
    page.get_by_label("Longest answer").fill("1000")
    message.fill("Write a very long story about a village by the sea.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".message.assistant")).to_have_count(2)
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(answer.locator("[data-figures]")).to_contain_text("stopped")
    page.get_by_text("The same as a program").click()
    expect(page.get_by_label("curl")).to_contain_text("/v1/chat/completions")
    page.get_by_role("link", name="Live").click()
    tokens = page.locator(".chart").filter(has_text="Tokens per second")
    expect(tokens.locator("path.line")).to_have_attribute("d", re.compile("L"))
    first = re.compile("^Time to the first token.*p50: [0-9]")
    expect(page.get_by_role("img", name=first)).to_be_visible()


def test_the_death_of_an_engine_and_its_return_are_seen(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.url}/api/#/models/{NAME}")
    expect(state(page)).to_have_text("Ready")
    os.kill(replica(stack)["pid"], signal.SIGKILL)
    expect(state(page)).not_to_have_text("Ready")
    expect(page.locator(".failures strong")).to_contain_text("kill")
    expect(state(page)).to_have_text("Ready", timeout=READY_MS)
    page.get_by_role("link", name="Events").click()
    death = page.locator(".events > li.error").first
    expect(death).to_contain_text("Death")
    death.get_by_text("lines").click()
    expect(death.locator("pre")).not_to_be_empty()


def test_a_page_left_open_comes_back_with_control(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.url}/api/#/models")
    # Its card, and what the card says of it, are links.
    expect(page.get_by_role("link", name=NAME).first).to_be_visible()
    (control,) = stack.named("ray::ServeReplica:xgen-control")
    control.kill()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0, timeout=READY_MS)
    wait_until(lambda: stack.status(NAME), 60, "the model known to the new control")
    expect(page.locator(".card.model .pill")).to_have_text("Ready", timeout=READY_MS)
    page.get_by_role("link", name="Events").click()
    expect(page.locator(".events > li").filter(has_text="knowing 1 model").first).to_be_visible()
    # What was before is still known.
    expect(page.locator(".events > li.error").filter(has_text="Death")).to_be_visible()


def test_it_is_unloaded(page: Page, stack: Stack) -> None:
    page.goto(f"{stack.url}/api/#/models/{NAME}")
    page.get_by_role("button", name="Unload").click()
    page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    expect(page.get_by_text("No model is loaded")).to_be_visible(timeout=READY_MS)
    assert stack.status(NAME) is None
