"""Tests of fastdiff.serving.http.gate: the key, ids of requests, headers, the log, and faults of the server's own."""

import email.utils
import hmac
import logging
import re

import pytest

from fastdiff.serving.http.settings import Settings
from support.servers import Held, engine, served

KEY = "a key of some length"
ASKED = {"steps": 2, "labels": [0]}
OPEN = ["/health", "/ready", "/docs", "/openapi.json"]
CLOSED = ["/v1/info", "/v1/stats", "/metrics", "/v1/requests/a", "/v1/requests/a/events"]


@pytest.fixture(scope="module")
def client():
    with served(engine(), Settings(api_key=KEY)) as server, server.client() as found:
        yield found


def test_what_needs_the_key(client):
    for path in OPEN:
        assert client.get(path).status_code == 200
    assert client.get("/static/nothing.js").status_code != 401
    for path in CLOSED:
        response = client.get(path)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert response.json()["detail"] == "this server needs its key: Authorization: Bearer KEY"
    assert client.post("/v1/images", json=ASKED).status_code == 401
    assert client.delete("/v1/requests/a").status_code == 401


@pytest.mark.parametrize("given", ["", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", f"Bearer {KEY[:-1]}", KEY])
def test_another_key_is_refused(client, given):
    assert client.get("/v1/info", headers={"Authorization": given.encode()}).status_code == 401
    assert client.get("/v1/info", headers={"Authorization": "Bearer ä".encode()}).status_code == 401


def test_the_key_opens(client):
    headers = {"Authorization": f"bearer {KEY}"}
    assert client.get("/v1/info", headers=headers).status_code == 200
    assert client.post("/v1/images", json=ASKED, headers=headers).status_code == 200


def test_keys_are_compared_in_constant_time(client, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(a), real(a, b))[1])
    client.get("/v1/info", headers={"Authorization": "Bearer x"})
    assert compared == [b"bearer x"]


def test_ids_are_given_back_or_made(client):
    assert client.get("/health", headers={"X-Request-Id": "a-b_c.9"}).headers["X-Request-Id"] == "a-b_c.9"
    assert re.fullmatch(r"[0-9a-f]{32}", client.get("/health").headers["X-Request-Id"])


@pytest.mark.parametrize("id", ["", "a b", "../a", "a" * 65, ".a", "a/b", "{}"])
def test_an_id_of_other_characters_is_refused(client, id):
    response = client.get("/health", headers={"X-Request-Id": id})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("X-Request-Id must be 1 to 64 letters")


def test_every_answer_has_its_headers(client):
    for path in ("/health", "/v1/info", "/nothing"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert email.utils.parsedate_to_datetime(headers["Date"])
    assert client.get("/v1/info").headers["Cache-Control"] == "no-store"
    assert client.get("/").headers["Cache-Control"] == "no-cache"


def test_answers_are_logged_with_ids_and_without_keys(client, caplog):
    with caplog.at_level(logging.INFO, "fastdiff.serving"):
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "logged"}
        client.post("/v1/images?float=0", json=ASKED, headers=headers)
        client.get("/health")
    # One of a test before may be told late.
    (entry,) = [record for record in caplog.records if getattr(record, "request", "") == "logged"]
    assert not any(getattr(record, "path", "") == "/health" for record in caplog.records)
    told = (entry.request, entry.method, entry.path, entry.status, entry.num, entry.sampler, entry.steps)
    assert told == ("logged", "POST", "/v1/images", 200, 1, "ddim", 2)
    assert entry.seconds > 0
    assert KEY not in str([record.__dict__ for record in caplog.records])


def test_a_fault_of_the_servers_own_is_told_without_its_trace(caplog, monkeypatch):
    with served(engine(Held)) as server, server.client() as client:

        def broken():
            raise KeyError("/secret")

        monkeypatch.setattr(server.service, "stats", broken)
        response = client.get("/v1/stats", headers={"X-Request-Id": "fault"})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["id"] == "fault"
        assert client.get("/health").status_code == 200
    assert any(record.exc_info and record.request == "fault" for record in caplog.records)
