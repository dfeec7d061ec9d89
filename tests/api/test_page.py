"""The page's files: their types, their caching, and that nothing foreign can run in them."""

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.support import NO_TLS, InMemoryControl, serving
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.management import create_management_app
from xgen_ray.api.page import TYPES, PageFiles
from xgen_ray.page import FOLDER

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENT = sorted(path for path in FOLDER.rglob("*") if path.suffix in TYPES)
CONTENT = {path: path.read_bytes() for path in SENT}
MOST_BYTES = 150_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A server with keys: the page is public, what it shows is not."""
    keys = ApiKeys([("ops", "sk-ops")])
    app = Starlette(routes=[Mount("/api", PageFiles(create_management_app(InMemoryControl(), keys)))])
    async with serving(app) as url, httpx.AsyncClient(base_url=url, verify=NO_TLS) as made:
        yield made


async def test_the_page_is_public_and_its_data_is_not(client: httpx.AsyncClient) -> None:
    page = await client.get("/api/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == CONTENT[FOLDER / "index.html"]
    for path in ("status", "session", "stream", "events", "local-models", "options"):
        assert (await client.get(f"/api/management/{path}")).status_code == 401


async def test_without_its_slash_the_address_is_mended(client: httpx.AsyncClient) -> None:
    reply = await client.get("/api")
    assert reply.status_code == 307
    assert str(reply.next_request and reply.next_request.url).endswith("/api/")


@pytest.mark.parametrize("path", SENT, ids=lambda path: str(path.relative_to(FOLDER)))
async def test_every_file_has_its_type_and_its_policy(client: httpx.AsyncClient, path: Path) -> None:
    reply = await client.get(f"/api/{path.relative_to(FOLDER)}")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == TYPES[path.suffix]
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.content == CONTENT[path]


async def test_a_copy_is_kept_for_as_long_as_it_is_the_same(client: httpx.AsyncClient) -> None:
    for accepted in ("gzip", "identity"):
        first = await client.get("/api/app.css", headers={"accept-encoding": accepted})
        assert first.headers["cache-control"] == "no-cache"
        assert first.headers["vary"] == "accept-encoding"
        headers = {"accept-encoding": accepted, "if-none-match": first.headers["etag"]}
        again = await client.get("/api/app.css", headers=headers)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]


async def test_packed_and_plain_are_told_apart(client: httpx.AsyncClient) -> None:
    packed = await client.get("/api/app.css", headers={"accept-encoding": "br, gzip"})
    plain = await client.get("/api/app.css", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.headers["etag"] != plain.headers["etag"]
    assert packed.content == plain.content


async def test_head_tells_the_same_without_the_body(client: httpx.AsyncClient) -> None:
    reply = await client.head("/api/", headers={"accept-encoding": "identity"})
    assert reply.status_code == 200
    assert int(reply.headers["content-length"]) == len(CONTENT[FOLDER / "index.html"])


@pytest.mark.parametrize(
    "path", ["README.md", "__init__.py", "../settings.py", "%2e%2e/settings.py", "vendor/lit-html/LICENSE"]
)
async def test_nothing_but_the_pages_own_files_is_sent(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/api/{path}")).status_code in (401, 404)


async def test_a_page_takes_no_orders(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/", json={})).status_code == 401


async def test_the_whole_page_is_small() -> None:
    assert sum(len(gzip.compress(content, mtime=0)) for content in CONTENT.values()) < MOST_BYTES


async def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """What the policy forbids is not there to be forbidden, and works without a network."""
    for path in SENT:
        text = CONTENT[path].decode()
        if "vendor" not in path.parts:
            foreign = re.findall(r"https?://(?!www\.w3\.org/|127\.0\.0\.1)[\w.-]+", text)
            assert foreign == [], path
    page = CONTENT[FOLDER / "index.html"].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", page)


async def test_every_module_that_is_asked_for_is_there() -> None:
    for path in SENT:
        if path.suffix == ".js":
            for wanted in re.findall(r"(?:from|import)\s*\(?[\"'](\.[^\"']+)[\"']", CONTENT[path].decode()):
                assert (path.parent / wanted).resolve() in CONTENT, f"{path.name} asks for {wanted}"
