"""API keys: who is let in, what is refused, budgets, and that no key is ever shown."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from cat_serve import keys
from cat_serve.backends.fake import FakeBackend
from cat_serve.cli import main
from cat_serve.errors import BudgetExceeded, InvalidInput, Overloaded
from cat_serve.keys import Caller, KeyRing, read_keys
from cat_serve.settings import Settings
from cat_serve.web.app import create_app

BOB, EVE = "bobs-own-secret-key", "eves-own-secret-key"
GENERATE = "/generate?class=1&seed=1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {BOB}"},
        {"Authorization": f"bearer  {BOB}"},
        {"X-Api-Key": BOB},
        {"Authorization": "Basic Ym9iOg==", "X-Api-Key": BOB},
    ],
)
async def test_known_key_is_let_in(run_app: Any, headers: dict[str, str]) -> None:
    async with run_app(api_keys=f"eve={EVE},bob={BOB}") as running:
        assert (await running.client.post(GENERATE, headers=headers)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, False),
        ({"Authorization": "Bearer "}, False),
        ({"Authorization": f"Basic {BOB}"}, False),
        ({"X-Api-Key": BOB[:-1]}, True),
        ({"X-Api-Key": BOB + "x"}, True),
        ({"X-Api-Key": BOB.upper()}, True),
        ({"X-Api-Key": "bob"}, True),
        ({"Authorization": "Bearer wrong", "X-Api-Key": BOB}, True),
        ({"X-Api-Key": "schlüssel".encode("latin-1")}, True),
    ],
)
async def test_anything_else_is_a_401_before_any_work(
    run_app: Any, headers: Any, error: bool
) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        before = len(running.engine.batches)
        answer = await running.client.post(GENERATE, headers=headers)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (401, "unauthorized")
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith('Bearer realm="cat-serve"')
        assert ("invalid_token" in challenge) is error
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert BOB not in answer.text
        assert len(running.engine.batches) == before


@pytest.mark.anyio
async def test_health_stays_open_and_the_rest_does_not(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        for path in ("/healthz", "/readyz"):
            assert (await running.client.get(path)).status_code == 200
        assert (await running.client.get("/")).status_code in (200, 307)
        for path in ("/classes", "/models", "/metrics", "/openapi.json", "/docs", "/nothing"):  # fmt: skip
            assert (await running.client.get(path)).status_code == 401, path
            with_key = await running.client.get(path, headers={"X-Api-Key": BOB})
            assert with_key.status_code != 401, path


@pytest.mark.anyio
async def test_openai_clients_are_refused_in_their_own_words(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        answer = await running.client.post("/v1/images/generations", json={"prompt": "1"})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "www-authenticate" in answer.headers
        allowed = await running.client.get("/v1/models", headers={"Authorization": f"Bearer {BOB}"})
        assert allowed.status_code == 200


@pytest.mark.anyio
async def test_openapi_document_says_how_to_send_a_key(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as with_keys, run_app() as without:
        answer = await with_keys.client.get("/openapi.json", headers={"X-Api-Key": BOB})
        document = answer.json()
        assert document["security"] == [{"bearer": []}, {"header": []}]
        assert document["components"]["securitySchemes"]["header"]["name"] == "X-Api-Key"
        assert "security" not in (await without.client.get("/openapi.json")).json()


@pytest.mark.anyio
async def test_page_and_its_files_stay_open(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB}") as running:
        page = (await running.client.get("/")).text
        names = re.findall(r'(?:src|href)="(/?static/[^"]+)"', page)
        assert names
        for name in names:
            assert (await running.client.get(name)).status_code == 200
        assert (await running.client.post("/static/x")).status_code == 405


@pytest.mark.anyio
async def test_without_keys_everything_is_open(running: Any) -> None:
    assert (await running.client.post(GENERATE)).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Module:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(keys, "hmac", Module)
    ring = KeyRing({BOB: Caller("bob"), EVE: Caller("eve"), "x" * 16: Caller("x")})
    for presented, name in ((BOB, "bob"), ("x" * 16, "x"), ("wrong", None)):
        compared.clear()
        found = ring.find(presented)
        assert (found.name if found else None) == name
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}


def test_file_has_keys_and_budgets(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'bob = "{BOB}"\n[eve]\nkey = "{EVE}"\nimages_per_minute = 7\n')
    ring = read_keys(file, "joe=joes-own-secret-key", images_per_minute=5, queued_images=3)
    assert ring is not None
    assert ring.names == ["bob", "eve", "joe"]
    bob, eve = ring.find(BOB), ring.find(EVE)
    assert bob is not None
    assert eve is not None
    assert (bob.images_per_minute, bob.queued_images) == (5, 3)
    assert (eve.images_per_minute, eve.queued_images) == (7, 3)


def test_file_in_the_guide_is_one(tmp_path: Path, project_root: Path) -> None:
    guide = (project_root / "docs" / "serving.md").read_text(encoding="utf-8")
    file = tmp_path / "keys.toml"
    file.write_text(guide.split("```toml\n")[1].split("```")[0])
    ring = read_keys(file, None)
    assert ring is not None
    assert ring.names == ["bob", "alice"]


def test_no_setting_is_no_keys() -> None:
    assert read_keys(None, None) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no key"),
        ("bob", "no TOML"),
        (f'bob = "{BOB}', "no TOML"),
        ('bob = "short"', "16 to 512"),
        (f'bob = "{BOB} "', "16 to 512"),
        ("bob = 1", "16 to 512"),
        (f'bob = "{BOB}"\neve = "{BOB}"', "twice"),
        (f'[bob]\nkey = "{BOB}"\nimages = 5', "unknown fields"),
        (f'[bob]\nkey = "{BOB}"\nimages_per_minute = -1', "whole number"),
        (f'[bob]\nkey = "{BOB}"\nqueued_images = true', "whole number"),
        (f'"{BOB} x" = "{BOB}"', "name"),
    ],
)
def test_bad_file_is_refused_without_showing_it(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(InvalidInput, match=told) as caught:
        read_keys(file, None)
    assert BOB not in str(caught.value)
    wanted = 'lines like: bob = "KEY"' if told == "no TOML" else "secrets.token_urlsafe"
    assert wanted in (caught.value.hint or "")


@pytest.mark.parametrize("variable", [BOB, f"bob={BOB},bob={EVE}", f"bob={BOB},", "bob=", "=x"])
def test_bad_variable_is_refused_without_showing_it(variable: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_keys(None, variable)
    assert BOB not in str(caught.value)


def test_missing_file_is_refused_before_anything_listens(tmp_path: Path, add_model: Any) -> None:
    settings = Settings(api_keys_file=tmp_path / "none")
    with pytest.raises(InvalidInput, match="cannot be read"):
        create_app(settings, {"toy": add_model()}, FakeBackend)


def test_key_as_a_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print-config", "--api-keys", f"bob={BOB}"]) == 2
    error = capsys.readouterr().err
    assert "--api-keys-file" in error
    assert BOB not in error


@pytest.mark.anyio
async def test_no_key_is_logged_or_shown(
    run_app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    async with run_app(api_keys=f"bob={BOB}") as running:
        for headers in ({"X-Api-Key": BOB}, {"Authorization": f"Bearer {EVE}"}):
            await running.client.post(GENERATE, headers=headers)
        metrics = await running.client.get("/metrics", headers={"X-Api-Key": BOB})
        assert 'key="bob"' in metrics.text
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records) + metrics.text
    monkeypatch.setenv("CAT_SERVE_API_KEYS", f"bob={BOB}")
    for form in ([], ["json"]):
        assert main(["serve", "--print-config", *form]) == 0
    told += capsys.readouterr().out
    assert "api_keys" in told
    for key in (BOB, EVE):
        assert key not in told


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def one_second_each(images: int) -> int:
    return images


def spend(caller: Caller, images: int) -> None:
    with caller.admitted(images, one_second_each):
        pass


def test_images_a_minute_come_back_with_time() -> None:
    clock = Clock()
    caller = Caller("bob", images_per_minute=6, clock=clock)
    spend(caller, 6)
    with pytest.raises(BudgetExceeded) as caught:
        spend(caller, 2)
    assert caught.value.details["retry_after_s"] == 20
    clock.now_s += 19.9
    with pytest.raises(BudgetExceeded) as caught:
        spend(caller, 2)
    assert caught.value.details["retry_after_s"] == 1
    clock.now_s += 0.2
    spend(caller, 2)
    clock.now_s += 3600  # a quiet hour saves up no more than a minute's worth
    spend(caller, 6)
    with pytest.raises(BudgetExceeded):
        spend(caller, 1)


def test_request_beyond_the_whole_budget_gets_no_retry_after() -> None:
    for caller in (Caller("bob", images_per_minute=6), Caller("bob", queued_images=6)):
        with pytest.raises(BudgetExceeded) as caught:
            spend(caller, 7)
        assert caught.value.details["retry_after_s"] is None
        assert "fewer" in str(caught.value.hint)


def test_images_in_the_queue_are_limited_until_they_are_made() -> None:
    caller = Caller("bob", queued_images=4)
    with caller.admitted(3, one_second_each):
        with pytest.raises(BudgetExceeded) as caught:
            spend(caller, 3)
        assert caught.value.details["retry_after_s"] == 2
        spend(caller, 1)
    spend(caller, 4)
    with pytest.raises(ZeroDivisionError), caller.admitted(4, one_second_each):
        raise ZeroDivisionError
    assert caller.queued == 0


def test_what_the_queue_refuses_is_not_charged_and_what_failed_later_is() -> None:
    caller = Caller("bob", images_per_minute=4, clock=Clock())
    with pytest.raises(Overloaded), caller.admitted(4, one_second_each):
        raise Overloaded("full")
    with pytest.raises(ZeroDivisionError), caller.admitted(4, one_second_each):
        raise ZeroDivisionError
    with pytest.raises(BudgetExceeded):
        spend(caller, 1)


@pytest.mark.anyio
async def test_budget_is_a_429_with_retry_after_and_others_are_served(run_app: Any) -> None:
    async with run_app(api_keys=f"bob={BOB},eve={EVE}", key_images_per_minute=3) as running:

        async def ask(key: str, n: int) -> Any:
            return await running.client.post(f"{GENERATE}&n={n}", headers={"X-Api-Key": key})

        assert (await ask(BOB, 3)).status_code == 200
        refused = await ask(BOB, 2)
        assert (refused.status_code, refused.json()["code"]) == (429, "budget_exceeded")
        assert 35 <= int(refused.headers["retry-after"]) <= 40
        assert (await ask(EVE, 3)).status_code == 200
        never = await ask(EVE, 4)
        assert never.status_code == 429
        assert "retry-after" not in never.headers


@pytest.mark.anyio
async def test_images_of_one_key_in_the_queue_are_bounded_over_http(
    run_app: Any, steps: Any
) -> None:
    async with run_app(
        api_keys=f"bob={BOB},eve={EVE}", key_queued_images=3, concurrency=1
    ) as running:
        running.engine.before = steps

        def ask(key: str, n: int) -> Any:
            headers = {"Authorization": f"Bearer {key}"}
            return asyncio.create_task(running.client.post(f"{GENERATE}&n={n}", headers=headers))

        kept = ask(BOB, 2)
        await steps.until_entered(1)
        refused = await ask(BOB, 2)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        other = ask(EVE, 3)
        steps.allow(10)
        assert [(await task).status_code for task in (kept, other)] == [200, 200]
        assert (await ask(BOB, 3)).status_code == 200


def test_print_config_names_sources_and_masks_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAT_SERVE_API_KEYS", f"bob={BOB}")
    monkeypatch.setenv("CAT_SERVE_MAX_BATCH", "3")
    monkeypatch.setenv("CAT_SERVE_PORT", "1")
    assert main(["serve", "--port", "9", "--print-config", "json"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["port"] == {"value": 9, "source": "flag"}
    assert settings["max_batch"] == {"value": 3, "source": "environment"}
    assert settings["host"] == {"value": "127.0.0.1", "source": "default"}
    assert settings["api_keys"] == {"value": "**********", "source": "environment"}
    assert main(["serve", "--port", "9", "--print-config"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["port"] == ["9", "flag"]
    assert lines["api_keys"] == ["**********", "environment"]
    assert lines.keys() == settings.keys()
