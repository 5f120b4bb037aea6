"""Tests of fastdiff.serving.http.events: a request as server-sent events, for readers in time, late, slow and gone."""

import base64
import io
import json
import socket
import time

import numpy as np
from PIL import Image

from fastdiff.files.images import to_uint8
from fastdiff.serving.http.events import message
from fastdiff.serving.http.settings import Settings
from support.servers import Failing, Held, engine, served
from support.serving import pipeline

ASKED = {"num": 2, "steps": 4, "labels": [0, 1], "previews": 1}


def events(lines):
    """(name, data) of each event, and ("comment", text)."""
    name = None
    for line in lines:
        if line.startswith(":"):
            yield "comment", line
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def pixels(texts):
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in texts])


def uint8(images):
    return to_uint8(images)[:, 0].numpy()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_message_is_one_event():
    assert message("done", {"id": "a", "images": []}) == b'event: done\ndata: {"id":"a","images":[]}\n\n'


def test_a_reader_in_time_sees_every_step_and_the_images():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.headers["x-accel-buffering"] == "no"
            found = events(stream.iter_lines())
            assert next(found) == ("progress", {"done": 0, "total": 0})
            for step in range(1, 5):
                of.step()
                assert next(found) == ("progress", {"done": 2 * step, "total": 8})
                name, data = next(found)
                assert (name, data["samples"], data["row"]) == ("preview", [0, 2], step - 1)
                assert len(data["images"]) == 2
            name, data = next(found)
            assert (name, data["id"]) == ("done", id)
            assert data["seconds"] > 0
            assert np.array_equal(pixels(data["images"]), uint8(pipeline().sample(2, steps=4, labels=[0, 1])))
            assert list(found) == []


def test_a_late_reader_gets_the_latest_state_and_what_follows():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        of.step()
        of.step()
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            found = events(stream.iter_lines())
            assert next(found) == ("progress", {"done": 4, "total": 8})
            assert next(found)[1]["row"] == 1
            of.step()
            assert next(found)[1]["done"] == 6
        while of.step():
            pass
        job = server.service.kept.get(id)
        wait_for(lambda: not job._readers)
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            assert [name for name, _ in events(stream.iter_lines())] == ["progress", "done"]


def test_previews_are_encoded_for_readers_alone(monkeypatch):
    from fastdiff.serving.http import events as module

    encoded = []
    real = module.pixels
    monkeypatch.setattr(module, "pixels", lambda images: (encoded.append(len(images)), real(images))[1])
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        while of.step():
            pass
        assert client.get(f"/v1/requests/{id}").status_code == 200
        assert not encoded


def test_an_error_is_the_last_event():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        of._evaluate = Failing()
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        of.step()
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            *_, (name, data) = events(stream.iter_lines())
        assert (name, data["status"]) == ("error", 500)
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            found = events(stream.iter_lines())
            next(found)
            client.delete(f"/v1/requests/{id}")
            assert next(found) == ("error", {"status": 410, "detail": "the request was cancelled"})


def test_a_quiet_stream_has_comments():
    of = engine(Held)
    with served(of, Settings(comment_seconds=0.02)) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            found = events(stream.iter_lines())
            assert [next(found)[0] for _ in range(3)] == ["progress", "comment", "comment"]


def test_a_reader_who_goes_leaves_the_request_alone():
    of = engine(Held)
    with served(of) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        job = server.service.kept.get(id)
        with client.stream("GET", f"/v1/requests/{id}/events") as stream:
            found = events(stream.iter_lines())
            next(found)
            assert len(job._readers) == 1
        wait_for(lambda: not job._readers)
        while of.step():
            pass
        assert client.get(f"/v1/requests/{id}").status_code == 200


def test_a_reader_who_takes_nothing_holds_nothing_up():
    of = engine(Held, max_num=16)
    with served(of, Settings(stall_seconds=0.3, comment_seconds=0.001)) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        with socket.create_connection(server.address) as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.sendall(f"GET /v1/requests/{id}/events HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            job = server.service.kept.get(id)
            wait_for(lambda: job._readers)
            # What the loop holds for the connection is filled at once, and not by hours of comments.
            flood = [f": {'x' * 65536}\n\n".encode()] * 4096
            from fastdiff.serving.http import events as module

            comment, module._COMMENT = module._COMMENT, b"".join(flood[:64])
            try:
                wait_for(lambda: not job._readers)
            finally:
                module._COMMENT = comment
        while of.step():
            pass
        assert client.get(f"/v1/requests/{id}").status_code == 200
