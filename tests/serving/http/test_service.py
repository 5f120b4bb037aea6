"""Tests of fastdiff.serving.http.service: clients that go, servers that close, and nothing that stays behind."""

import asyncio
import socket
import threading
import time

import httpx
import pytest

from fastdiff.serving.http.failures import Refusal
from fastdiff.serving.http.jobs import Job
from fastdiff.serving.http.service import Service
from fastdiff.serving.http.settings import Settings
from support.servers import Held, engine, served

ASKED = {"num": 2, "steps": 3, "labels": [0, 1]}
BODY = b'{"num": 2, "steps": 3, "labels": [0, 1]}'
HEAD = b"POST /v1/images HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    BODY
)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_client_that_goes_away_cancels_what_it_waits_for():
    of = engine(Held)
    with served(of) as server:
        with socket.create_connection(server.address) as waiting:
            waiting.sendall(HEAD + BODY)
            wait_for(lambda: of.stats.requests == 1)
        wait_for(lambda: of.stats.cancelled == 1)
        wait_for(lambda: len(server.service.kept) == 0)
        assert of.stats.requests == 0
        with server.client() as client:
            assert client.get("/ready").status_code == 200


def test_a_client_that_goes_away_from_an_asynchronous_request_cancels_nothing():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        client.close()
        while of.step():
            pass
        assert httpx.get(f"{server.url}/v1/requests/{id}", trust_env=False).status_code == 200
        assert of.stats.cancelled == 0


def test_a_request_that_the_engine_has_not_taken_yet_is_not_there():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        server.service.kept.add(Job("early", server.service._loop))
        for method, path in [("GET", ""), ("GET", "/events"), ("DELETE", "")]:
            assert client.request(method, f"/v1/requests/early{path}").status_code == 404
        server.service.kept.drop("early")


def test_an_answered_request_is_forgotten_at_once():
    with served(engine()) as server, server.client() as client:
        for _ in range(3):
            response = client.post("/v1/images", json=ASKED, headers={"X-Request-Id": "again"})
            assert (response.status_code, response.headers["X-Request-Id"]) == (200, "again")
            assert len(server.service.kept) == 0


def test_who_waits_while_the_server_closes_is_told():
    of = engine(Held)
    answers = []
    with served(of) as server:

        def ask():
            answers.append(httpx.post(f"{server.url}/v1/images", json=ASKED, trust_env=False, timeout=30))

        waiting = threading.Thread(target=ask)
        waiting.start()
        wait_for(lambda: of.stats.requests == 1)
        server.service.engine.drain = lambda seconds=None: False
    waiting.join(10)
    assert answers[0].status_code == 503
    assert answers[0].json()["detail"] == "the server stops, and the request was not done in time"


def test_results_beyond_their_bounds_are_forgotten():
    with served(engine(), Settings(keep_results=2)) as server, server.client() as client:
        ids = [client.post("/v1/images?wait=0", json=ASKED).json()["id"] for _ in range(4)]
        wait_for(lambda: len(server.service.kept) == 2)
        assert [client.get(f"/v1/requests/{id}").status_code for id in ids] == [404, 404, 200, 200]


def test_a_job_whose_end_is_on_its_way_is_forgotten():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        job = server.service.kept.get(id)

        def finish_and_forget():
            while of.step():
                pass
            assert not job.ended.is_set()
            server.service.forget(job)

        server.in_loop(finish_and_forget)
        assert client.get(f"/v1/requests/{id}").status_code == 404
        assert server.service.kept.num_bytes == 0


def test_a_large_body_is_parsed_beside_the_event_loop():
    with served(engine()) as server, server.client() as client:
        padded = {**ASKED, "options": {}, "sample_ids": None, "sampler": "x" * 5000}
        assert client.post("/v1/images", json=padded).status_code == 422
        assert len(server.service.kept) == 0


def test_a_request_while_the_engine_closes_is_refused_and_close_waits_for_no_one():
    async def main():
        service = Service(engine(Held), Settings())
        await service.open()
        taken = await service.take(BODY, "a", pictures_only=True)
        await service.close()
        assert taken.ended.is_set()
        with pytest.raises(Refusal, match="takes no new requests"):
            await service.take(BODY, "b", pictures_only=True)
        return service

    service = asyncio.run(main())
    assert service.engine.stats.requests == 0
