"""Tests of fastdiff.serving.client against a real server."""

import contextlib
import socket
import threading

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.files.images import to_uint8
from fastdiff.serving import Busy, Client
from fastdiff.serving.http.settings import Settings
from support.servers import Failing, Held, engine, served
from support.serving import pipeline

KEY = "of the client"


@pytest.fixture(scope="module")
def server():
    with served(engine(), Settings(api_key=KEY, name="tiny")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, KEY)


def uint8(images):
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def test_samples_are_the_pipelines(client):
    alone = pipeline().sample(3, sampler="ddpm", steps=4, seed=7, labels=[0, 2, 1])
    found = client.sample(num=3, sampler="ddpm", steps=4, seed=7, labels=np.array([0, 2, 1]))
    assert found.dtype == np.uint8
    assert np.array_equal(found, uint8(alone))
    floats = client.sample_float(num=3, sampler="ddpm", steps=4, seed=7, labels=["zero", "two", "one"])
    assert np.array_equal(floats, alone.numpy())


def test_images_are_varied_and_inpainted(client):
    image = client.sample(labels=[0], steps=3)[0]
    assert np.array_equal(client.sample(image=image, strength=0.0, labels=[0])[0], image)
    mask = np.arange(64).reshape(8, 8) % 2 == 0
    filled = client.sample(image=image[None], mask=mask, labels=[0], steps=3, options={"jump_repeats": 1})[0]
    assert np.array_equal(filled[mask], image[mask])
    assert not np.array_equal(filled, image)


def test_events_end_with_the_images(client):
    *before, last = client.events(num=2, steps=5, labels=[0, 1], seed=3)
    assert last.kind == "done"
    assert np.array_equal(last.images, client.sample(num=2, steps=5, labels=[0, 1], seed=3))
    assert last.samples == range(2)
    kinds = [event.kind for event in before]
    assert set(kinds) <= {"progress", "preview"}
    assert "progress" in kinds
    for event in before:
        if event.kind == "preview":
            assert event.images.shape == (len(event.samples), 8, 8, 1)
            assert event.row is not None


def test_who_stops_reading_cancels():
    of = engine(Held)
    with served(of) as server:
        events = Client(server.url).events(steps=5, labels=[0])
        assert next(events).kind == "progress"
        events.close()
        assert of.stats.cancelled == 1


def test_what_does_not_fit_is_a_value_error_in_the_servers_words(client):
    with pytest.raises(ValueError, match="unknown sampler 'dimm': did you mean 'ddim'"):
        client.sample(sampler="dimm", labels=[0])
    with pytest.raises(ValueError, match="unknown field 'step': did you mean 'steps'"):
        client.sample(step=3)
    with pytest.raises(ValueError, match=r"steps must be .*, got 0"):
        next(client.events(steps=0, labels=[0]))
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, C\] or \[num, H, W, C\], got float64 \[8, 8\]"):
        client.sample(image=np.zeros((8, 8)), strength=0.5)
    with pytest.raises(ValueError, match=r"mask must be \[H, W\], got \[1, 8, 8\]"):
        client.sample(mask=np.zeros((1, 8, 8)))


def test_other_errors_have_types_of_their_own(server):
    with pytest.raises(PermissionError, match="needs its key"):
        Client(server.url).info()
    of = engine(Held, max_queued=2)
    with served(of) as other:
        client = Client(other.url)
        with pytest.raises(Busy, match="more were asked for") as caught:
            client.sample(num=2, labels=[0, 1], steps=2) if of.add(one()) else None
        assert caught.value.retry_after >= 1
        of._evaluate = Failing()
        events = client.events(labels=[0], steps=2, deadline=1e-6)
        next(events)
        of.step()
        with pytest.raises(TimeoutError, match="deadline"):
            list(events)
    with pytest.raises(RuntimeError, match="cannot be reached"):
        Client(other.url).info()
    assert not Client(other.url).health()


def one():
    return fd.serving.Request(labels=[0], steps=2)


def test_a_failed_network_is_a_runtime_error():
    of = engine(Held)
    with served(of) as server:
        of._evaluate = Failing()
        events = Client(server.url).events(labels=[0], steps=2)
        next(events)
        of.step()
        with pytest.raises(RuntimeError, match="the server answered 500: the network failed"):
            list(events)


def test_reports(client, server):
    assert client.health()
    assert client.info()["model"] == "tiny"
    assert client.stats()["finished"] >= 0
    assert repr(client) == f"Client({server.url!r})"


@contextlib.contextmanager
def answering(*answers):
    """A server that gives these bytes to one connection after the other; its URL, and what it was sent."""
    asked = []

    def answer():
        for found in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(found)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked


def test_an_answer_that_breaks_off_is_a_runtime_error():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with answering(head + b"PK") as (url, _), pytest.raises(RuntimeError, match="broke off before the images"):
        Client(url, timeout=20).sample()


def test_a_proxy_that_is_busy_may_name_a_date():
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n"
    with answering(head) as (url, _), pytest.raises(Busy) as caught:
        Client(url, timeout=20).info()
    assert caught.value.retry_after == 1


def test_the_key_goes_to_no_other_server():
    with answering(b"") as (other, asked):
        head = f"HTTP/1.1 302 Found\r\nLocation: {other}/v1/info\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(head) as (url, _), pytest.raises(RuntimeError, match="the server answered 302"):
            Client(url, KEY, timeout=20).info()
        assert asked == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", "ftp://a"])
def test_other_schemes_are_refused(url):
    with pytest.raises(ValueError, match="url must start with http:// or https://, got"):
        Client(url)
