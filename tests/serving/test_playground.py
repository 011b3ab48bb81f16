"""The page as files over HTTP: complete, closed to other hosts, cached, open where keys are asked for."""

from __future__ import annotations

import re
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from hatchling.builders.wheel import WheelBuilder

from cat_serve.web import playground

pytestmark = pytest.mark.anyio

FOLDER = resources.files("cat_serve.web").joinpath("playground")
FILES = sorted(entry.name for entry in FOLDER.iterdir())


async def reachable(client: Any, start: str = "http://test/") -> dict[str, Any]:
    """Follow every address that the page, its styles and its modules name; return the answers."""
    found: dict[str, Any] = {}
    waiting = [start]
    while waiting:
        address = waiting.pop()
        if address in found:
            continue
        found[address] = answer = await client.get(address)
        if "text/" in answer.headers["content-type"] and not address.endswith("/docs"):
            named = re.findall(
                r"""(?:src|href)="([^"#]+)"|from "([^"]+)"|\burl\(([^)$]+)\)""", answer.text
            )
            waiting += [
                urljoin(address, name)
                for names in named
                for name in names
                if name and "$" not in name
            ]
    return found


async def test_page_and_all_it_names_are_served_from_here(running: Any) -> None:
    found = await reachable(running.client)
    assert not [address for address, answer in found.items() if answer.status_code != 200]
    assert all(address.startswith("http://test/") for address in found)
    served = {address.rpartition("/")[2] for address in found}
    assert set(FILES) - {"index.html"} <= served, "a file that nothing names"
    assert "http://test/docs" in found


async def test_no_file_names_another_host() -> None:
    for name in FILES:
        text = FOLDER.joinpath(name).read_text()
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org"}, name  # the name space of SVG, which nobody asks for


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/style.css", "/static/icon.svg"])
async def test_policy_lets_nothing_in_but_this_server(running: Any, path: str) -> None:
    headers = (await running.client.get(path)).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy.pop("img-src") == "'self' blob:"
    assert policy.pop("default-src") == "'self'"
    assert set(policy.values()) == {"'none'"}
    assert {"object-src", "base-uri", "form-action", "frame-ancestors"} == set(policy)
    assert headers["x-content-type-options"] == "nosniff"


async def test_page_has_nothing_inline_that_the_policy_forbids() -> None:
    page = FOLDER.joinpath("index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
async def test_browser_that_has_the_file_gets_304(running: Any, path: str) -> None:
    first = await running.client.get(path)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for tag in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await running.client.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    other = await running.client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


async def test_etags_differ_by_content() -> None:
    etags = [file.etag for file in playground.files().values()]
    assert len(set(etags)) == len(FILES)


async def test_head_has_the_headers_alone(running: Any) -> None:
    answer = await running.client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "path", ["/static/", "/static/index.html", "/static/none.js", "/static/..%2Fplayground.py"]
)
async def test_anything_else_is_not_there(running: Any, path: str) -> None:
    answer = await running.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_page_is_open_where_keys_are_asked_for(run_app: Any) -> None:
    async with run_app(api_keys="bob=bobs-own-secret-key") as running:
        assert (await running.client.get("/models")).status_code == 401
        for path in ("/", "/static/app.js", "/static/style.css"):
            assert (await running.client.get(path)).status_code == 200


async def test_wheel_carries_the_page(project_root: Path, tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(project_root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            packed = archive.read(f"cat_serve/web/playground/{name}")
            assert packed == FOLDER.joinpath(name).read_bytes()
