"""Tests of fastdiff.serving.http.bodies: bodies counted while they come, and what a client accepts."""

import socket
import time

import pytest
from starlette.requests import Request

from fastdiff.serving.http.bodies import JSON, NPZ, PNG, is_asynchronous, wanted
from fastdiff.serving.http.failures import Refusal
from fastdiff.serving.http.settings import Settings
from support.servers import Held, engine, served

ASKED = {"steps": 2, "labels": [0]}


def request(query="", **headers):
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": listed})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON),
        ("application/*", JSON),
        ("image/*", PNG),
        ("image/png", PNG),
        ("application/x-npz", NPZ),
        ("image/webp, image/png;q=0.5", PNG),
        ("application/json;q=0.5, application/x-npz;q=0.9", NPZ),
        ("text/html, */*;q=0.1", JSON),
        ("IMAGE/PNG", PNG),
        ("image/png;q=x, application/json", JSON),
    ],
)
def test_the_type_is_the_best_that_is_accepted(accept, kind):
    assert wanted(request(accept=accept)) == (kind, False)


def test_nothing_said_is_json():
    assert wanted(request()) == (JSON, False)


def test_floats_are_asked_for_by_query_or_parameter():
    assert wanted(request("float=1", accept=NPZ)) == (NPZ, True)
    assert wanted(request(accept=f"{NPZ};float=1")) == (NPZ, True)
    assert wanted(request("float=0", accept=NPZ)) == (NPZ, False)


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "application/json;q=0", ""])
def test_what_there_is_not_is_refused(accept):
    with pytest.raises(Refusal, match=r"Accept must name application/json, image/png or application/x-npz, got"):
        wanted(request(accept=accept))


def test_asynchronous_by_query_or_header():
    assert is_asynchronous(request("wait=0"))
    assert is_asynchronous(request(prefer="respond-async, wait=10"))
    assert not is_asynchronous(request("wait=1"))


@pytest.fixture(scope="module")
def server():
    with served(engine(Held), Settings(max_body=1000, body_seconds=0.3)) as found:
        yield found


def test_a_body_by_its_length_is_too_large(server):
    with server.client() as client:
        response = client.post("/v1/images", json={**ASKED, "image": "a" * 1000})
        assert (response.status_code, response.json()["detail"]) == (413, "the body must be at most 1000 bytes")


def test_a_body_in_pieces_is_counted(server):
    with server.client() as client:
        response = client.post(
            "/v1/images", content=(b"x" * 100 for _ in range(11)), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413


def test_a_length_that_is_a_lie_does_not_help(server):
    head = (
        b"POST /v1/images HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n"
    )
    with socket.create_connection(server.address, 10) as sender:
        sender.sendall(head)
        assert b" 413 " in sender.recv(4096)


def test_a_body_that_does_not_come_is_given_up(server):
    head = b"POST /v1/images HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    with socket.create_connection(server.address, 10) as sender:
        sender.sendall(head)
        began = time.monotonic()
        assert b" 408 " in sender.recv(4096)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""])
def test_another_type_is_refused(server, kind):
    with server.client() as client:
        response = client.post("/v1/images", content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 415
        assert "Content-Type: application/json" in response.json()["detail"]
