"""The status page and the status document, as a browser and a script get them."""

import base64
from pathlib import Path

from tests.patience import until
from tests.sources.test_http import Client, client, client_of, event

__all__ = ["client"]  # a fixture


async def test_the_page_is_kept_by_browsers_until_it_changes(client: Client) -> None:
    url = f"http://{client.collector.http_address}/"
    async with client._session.get(url) as answer:
        assert answer.status == 200
        assert "<title>collector</title>" in await answer.text()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        etag = answer.headers["ETag"]
    for known, status in ((etag, 304), (f'"other", W/{etag}', 304), ('"other"', 200)):
        async with client._session.get(url, headers={"If-None-Match": known}) as answer:
            assert answer.status == status
            assert bool(await answer.read()) == (status == 200)
            assert ("Content-Length" in answer.headers) == (status == 200)
    assert client.collector.metrics.registry.get_sample_value("collector_http_connections") == 1, "it was kept open"


async def test_the_status_document_says_what_came_in_and_why_it_waits(tmp_path: Path) -> None:
    async with client_of(tmp_path, flush__linger="0s") as client:
        await client.post("/v1/events", [event(1), event(1), event(2)])
        await until(lambda: client.collector._flusher.outages.failing_since is not None)
        status, said, headers = await client.request("GET", "/status.json")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert said["isRunning"]
    assert (said["totals"]["accepted"], said["totals"]["duplicates"]) == (2, 1)
    assert said["queue"]["waitingEvents"] == 2
    assert said["queue"]["oldestAgeSeconds"] >= 0
    [app] = said["apps"]
    assert (app["appId"], app["state"], app["waitingEvents"]) == ("wiki", "failing", 2)
    assert "127.0.0.1:1" in said["upstream"]["reason"]
    assert said["problems"][0]["severity"] == "error"
    assert {limit["key"] for limit in said["limits"]} > {"queue.max_bytes", "http.max_connections"}
    assert "person@example.com" not in str(said)


async def test_with_tokens_page_and_document_ask_for_one_and_a_browser_can_give_it(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789\n")
    async with client_of(tmp_path, access__tokens_file=str(tokens)) as client:
        headers = {"Authorization": "Basic " + base64.b64encode(b"me:first-token-0123456789").decode()}
        for path in ("/", "/status.json"):
            url = f"http://{client.collector.http_address}{path}"
            async with client._session.get(url) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            async with client._session.get(url, headers=headers) as answer:
                assert answer.status == 200
