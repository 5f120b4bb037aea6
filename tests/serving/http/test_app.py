"""Tests of fastdiff.serving.http.app: every route over a real connection, and the sentence for every bad input."""

import base64
import io
import json
import re

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.files.images import to_uint8
from fastdiff.serving.http import app
from fastdiff.serving.http.settings import Settings
from support.servers import JSON, Failing, Held, engine, served
from support.serving import pipeline

ASKED = {"num": 3, "steps": 4, "seed": 7, "labels": [0, "two", 1]}


@pytest.fixture(scope="module")
def server():
    with served(engine(), Settings(name="tiny")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with server.client() as found:
        yield found


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def grey(seed=0, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def pixels(text):
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture)


def archive(response):
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
        return dict(found)


def uint8(images):
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def test_images_are_those_of_the_pipeline_to_the_bit(client):
    alone = pipeline().sample(3, steps=4, seed=7, labels=[0, "two", 1])
    found = archive(client.post("/v1/images?float=1", json=ASKED, headers={"Accept": "application/x-npz"}))
    assert np.array_equal(found["samples"], alone.numpy())
    found = archive(client.post("/v1/images", json=ASKED, headers={"Accept": "application/x-npz"}))
    assert np.array_equal(found["arr_0"], uint8(alone))
    assert found["arr_1"].tolist() == [0, 2, 1]
    answer = client.post("/v1/images", json=ASKED).json()
    assert np.array_equal([pixels(text) for text in answer["images"]], uint8(alone)[..., 0])
    told = {key: answer[key] for key in ("seed", "sample_ids", "sampler", "steps")}
    assert told == {"seed": 7, "sample_ids": [0, 1, 2], "sampler": "ddim", "steps": 4}


def test_a_picture_is_one_image_or_a_grid(client):
    alone = uint8(pipeline().sample(3, steps=4, seed=7, labels=[0, 2, 1]))[..., 0]
    response = client.post("/v1/images", json=ASKED, headers={"Accept": "image/png"})
    assert response.headers["X-Fastdiff-Grid"] == "2x2"
    sheet = np.asarray(Image.open(io.BytesIO(response.content)))
    blank = np.zeros((8, 8), np.uint8)
    assert np.array_equal(sheet, np.block([[alone[0], alone[1]], [alone[2], blank]]))
    one = {"num": 1, "steps": 4, "seed": 7, "labels": [0]}
    response = client.post("/v1/images", json=one, headers={"Accept": "image/png"})
    assert "X-Fastdiff-Grid" not in response.headers
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), alone[0])


def test_variations_and_inpainting_are_the_pipelines(client):
    x = torch.from_numpy(grey().astype(np.float32))[None, None] * 2
    x = (x - 255) / 255
    given = {"num": 2, "steps": 5, "seed": 3, "labels": [0, 1]}
    two = x.expand(2, -1, -1, -1)
    headers = {"Accept": "application/x-npz"}
    found = archive(
        client.post("/v1/images?float=1", json={**given, "image": png(grey()), "strength": 0.6}, headers=headers)
    )
    alone = pipeline().vary(two, strength=0.6, steps=5, seed=3, labels=[0, 1])
    assert np.array_equal(found["samples"], alone.numpy())
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    asked = {**given, "image": [png(grey()), png(grey())], "mask": png(mask), "options": {"jump_repeats": 2}}
    found = archive(client.post("/v1/images?float=1", json=asked, headers=headers))
    keep = torch.from_numpy(mask > 0)
    alone = pipeline().inpaint(two, keep, steps=5, seed=3, labels=[0, 1], jump_repeats=2)
    assert np.array_equal(found["samples"], alone.numpy())
    assert np.array_equal(found["samples"][:, 0][:, mask > 0], two.numpy()[:, 0][:, mask > 0])


def test_guidance_seeds_and_ids(client):
    asked = {
        "num": 2,
        "steps": 3,
        "labels": ["one", 2],
        "guidance": 2.5,
        "seed": 2**64 - 1,
        "sample_ids": [5, 2**63 - 1],
    }
    found = archive(client.post("/v1/images?float=1", json=asked, headers={"Accept": "application/x-npz"}))
    alone = pipeline().sample(
        2, steps=3, labels=[1, 2], guidance=2.5, seed=2**64 - 1, sample_ids=torch.tensor([5, 2**63 - 1])
    )
    assert np.array_equal(found["samples"], alone.numpy())
    answer = client.post("/v1/images", json=asked).json()
    assert (answer["seed"], answer["sample_ids"]) == (2**64 - 1, [5, 2**63 - 1])


def test_info_says_what_there_is(client):
    info = client.get("/v1/info").json()
    assert info["image_shape"] == [1, 8, 8]
    assert info["classes"][2] == {"number": 2, "name": "two"}
    assert (info["null_label"], info["can_guide"], info["can_condition"]) == (3, True, False)
    assert info["default"] == {"sampler": "ddim", "steps": 40}
    assert info["limits"] == {"num": 16, "steps": 100, "body_bytes": 16 * 2**20}
    assert (info["model"], info["capacity"]) == ("tiny", 16)
    by_name = {sampler["name"]: sampler for sampler in info["samplers"]}
    assert by_name["ddim"] == {"name": "ddim", "stochastic": False, "previews": True, "default_steps": 40}
    assert by_name["ddpm"]["stochastic"]
    assert not by_name["deis"]["previews"]
    assert "ddim_encode" not in by_name


def test_every_sampler_of_info_makes_images(client):
    for sampler in client.get("/v1/info").json()["samplers"]:
        response = client.post("/v1/images", json={"sampler": sampler["name"], "steps": 4, "labels": [0]})
        # A random network's samples may run away.
        assert response.status_code in (200, 500), response.text
        assert response.status_code == 200 or "NaN" in response.json()["detail"]


SMALL = {"steps": 2, "labels": [0]}
WRONG = {
    "sampler": ({"sampler": "dimm"}, "unknown sampler 'dimm': did you mean 'ddim'?"),
    "sampler that is a path": ({"sampler": "/etc/table.json"}, "unknown sampler '/etc/table.json'"),
    "sampler that needs an image": ({"sampler": "ddim_encode"}, "unknown sampler 'ddim_encode'"),
    "steps": ({"steps": 101}, "steps"),
    "no steps": ({"steps": 0}, "steps must be"),
    "steps beyond the process": ({"steps": 41}, "steps must be a whole number from 1 to 40"),
    "num": ({"num": 17, "labels": [0] * 17}, "num must be at most 16, the limit here, got 17"),
    "no images": ({"num": 0, "labels": []}, "num must be a whole number, at least 1, got 0"),
    "num as text": ({"num": "2"}, "num must be a whole number, got '2'"),
    "num as a flag": ({"num": True}, "num must be a whole number, got True"),
    "num as a fraction": ({"num": 1.5}, "num must be a whole number, got 1.5"),
    "label": ({"labels": [4]}, "labels must be in 0..3, got 4"),
    "label's name": ({"labels": ["tow"]}, "no class is called 'tow': did you mean 'two'?"),
    "labels missing": ({"labels": None}, "give labels, one per image"),
    "labels in number": ({"labels": [0, 1]}, "labels must be int64 [1]"),
    "labels of another kind": ({"labels": [0.5]}, "labels must be a list of numbers or names of classes"),
    "ids": ({"sample_ids": [2**63]}, "sample_ids"),
    "negative id": ({"sample_ids": [-1]}, "sample_ids must not be negative, got -1"),
    "ids in number": ({"sample_ids": [1, 2]}, "sample_ids must be 1 whole numbers"),
    "seed": ({"seed": 2**64}, "seed must be"),
    "negative seed": ({"seed": -1}, "seed must be"),
    "guidance": ({"guidance": "much"}, "guidance must be a finite number, got 'much'"),
    "null label": ({"guidance": 2.0, "null_label": 9}, "the null label must be in 0..3, got 9"),
    "option": ({"options": {"etaa": 1}}, "unknown key 'etaa'"),
    "option's type": ({"options": {"eta": "x"}}, "eta of"),
    "nested options": ({"options": {"eta": {"a": 1}}}, "options must be an object of names with numbers"),
    "a table of millions of rows": (
        {"image": png(grey()), "mask": png(grey()), "options": {"jump_repeats": 10**7}},
        "steps times the whole numbers among options must be at most 100000",
    ),
    "image": ({"image": "@@@", "strength": 0.5}, "image must be a PNG in base64, got '@@@'"),
    "image of other bytes": ({"image": base64.b64encode(b"GIF89a").decode(), "strength": 0.5}, "image is no PNG"),
    "half an image": ({"image": png(grey())[:100], "strength": 0.5}, "image is no PNG that can be read"),
    "image's size": ({"image": png(grey(size=9)), "strength": 0.5}, "image must be 8x8 pixels, got 9x9"),
    "images in number": ({"image": [png(grey())] * 2, "strength": 0.5}, "one per image, 1 of them, got 2"),
    "image alone": ({"image": png(grey())}, "image needs either strength, to vary it, or mask"),
    "mask alone": ({"mask": png(grey())}, "mask needs image"),
    "mask's size": ({"image": png(grey()), "mask": png(grey(size=4))}, "mask must be 8x8 pixels, got 4x4"),
    "strength": ({"image": png(grey()), "strength": 1.5}, "strength must be in [0, 1], got 1.5"),
    "strength alone": ({"strength": 0.5}, "strength needs image"),
    "previews": ({"previews": -1}, "previews must be a whole number, at least 0"),
    "deadline": ({"deadline": -1}, "deadline must be a positive number of seconds"),
    "size": ({"size": [8, 8, 8]}, "size must be a side or [height, width]"),
    "field": ({"step": 3}, "unknown field 'step': did you mean 'steps'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named(client, case):
    change, sentence = WRONG[case]
    response = client.post("/v1/images", json={**SMALL, **change})
    assert response.status_code == 422, response.text
    assert sentence in response.json()["detail"]
    assert response.json()["id"] == response.headers["X-Request-Id"]


BODIES = {
    "nothing": (b"", "the body is no JSON"),
    "half": (b'{"num": ', "the body is no JSON"),
    "a list": (b"[1]", "the body must be a JSON object, got [1]"),
    "not a number": (b'{"guidance": NaN, "labels": [0]}', "guidance must be a finite number"),
    "no text": (b"\xff\xfe", "the body is no JSON"),
    "deep": (b"[" * 100_000, "the body is no JSON"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_wrong_body_is_told(client, case):
    content, sentence = BODIES[case]
    response = client.post("/v1/images", content=content, headers=JSON)
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith(sentence)


def test_labels_of_a_model_without_classes():
    with served(engine(classes=False)) as server, server.client() as client:
        info = client.get("/v1/info").json()
        assert (info["classes"], info["can_guide"]) == (None, False)
        assert "leave labels out" in client.post("/v1/images", json={"steps": 2, "labels": [0]}).json()["detail"]
        assert client.post("/v1/images", json={"steps": 2}).status_code == 200


def test_an_asynchronous_request_is_fetched_later_and_forgotten():
    with served(engine(Held)) as server, server.client() as client:
        response = client.post("/v1/images?wait=0", json=ASKED, headers={"X-Request-Id": "mine.1"})
        assert (response.status_code, response.json()) == (202, {"id": "mine.1"})
        assert response.headers["Location"] == "/v1/requests/mine.1"
        again = client.post("/v1/images", json=ASKED, headers={"X-Request-Id": "mine.1"})
        assert (again.status_code, again.json()["detail"]) == (
            409,
            "the request id mine.1 is in use: take another, or none",
        )
        of = server.service.engine
        of.step()
        response = client.get("/v1/requests/mine.1")
        assert (response.status_code, response.json()) == (202, {"id": "mine.1", "done": 3, "total": 12})
        while of.step():
            pass
        response = client.get("/v1/requests/mine.1")
        assert (response.status_code, len(response.json()["images"])) == (200, 3)
        assert archive(client.get("/v1/requests/mine.1", headers={"Accept": "application/x-npz"}))["arr_0"].ndim == 4
        assert client.delete("/v1/requests/mine.1").status_code == 204
        response = client.get("/v1/requests/mine.1")
        assert (response.status_code, response.json()["detail"]) == (
            404,
            "there is no request 'mine.1': results are kept 300 s",
        )
        assert client.get("/v1/requests/mine.1/events").status_code == 404
        assert client.delete("/v1/requests/mine.1").status_code == 404
        id = client.post("/v1/images", json=ASKED, headers={"Prefer": "respond-async"}).json()["id"]
        assert re.fullmatch(r"[0-9a-f]{32}", id)
        assert client.delete(f"/v1/requests/{id}").status_code == 204
        assert of.stats.cancelled == 1
        response = client.get(f"/v1/requests/{id}")
        assert (response.status_code, response.json()["detail"]) == (410, "the request was cancelled")


def test_a_full_queue_says_when_to_come_again():
    with served(engine(Held, max_queued=4)) as server, server.client() as client:
        assert client.post("/v1/images?wait=0", json=ASKED).status_code == 202
        response = client.post("/v1/images?wait=0", json=ASKED)
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert "3 of at most 4 images" in response.json()["detail"]


def test_a_deadline_that_passed_is_told():
    with served(engine(Held)) as server, server.client() as client:
        id = client.post("/v1/images?wait=0", json={**ASKED, "deadline": 1e-6}).json()["id"]
        server.service.engine.step()
        response = client.get(f"/v1/requests/{id}")
        assert response.status_code == 504
        assert "deadline" in response.json()["detail"]


def test_a_network_that_fails_gives_the_id_and_no_trace(caplog):
    of = engine(Held)
    with served(of) as server, server.client() as client:
        of._evaluate = Failing()
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        of.step()
        response = client.get(f"/v1/requests/{id}")
        assert response.status_code == 500
        assert "secret" not in response.text
        assert "server's log" in response.json()["detail"]
        assert any(getattr(record, "request", "") == id and record.exc_info for record in caplog.records)


def test_images_of_two_channels_are_no_pictures(server):
    service = server.service
    service.info["image_shape"][0] = 2
    try:
        with server.client() as client:
            assert client.post("/v1/images", json=SMALL).status_code == 406
            assert client.post("/v1/images", json=SMALL, headers={"Accept": "application/x-npz"}).status_code == 200
    finally:
        service.info["image_shape"][0] = 1


def test_reports(client, server):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    stats = client.get("/v1/stats").json()
    assert stats["finished"] == server.service.engine.stats.finished > 0
    assert len(stats["recent_fill"]) <= 256
    text = client.get("/metrics").text
    assert 'fastdiff_http_responses_total{route="/health",status="200"} 1.0' in text
    assert "fastdiff_evaluations_total" in text


def test_routes_are_described(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]["/v1/requests/{id}"]) == {"get", "delete"}
    fields = described["components"]["schemas"]["ImagesRequest"]["properties"]
    assert {"num", "image", "mask", "deadline"} <= set(fields)
    text = client.get("/docs").text
    assert "POST /v1/images" in text
    assert "<script" not in text
    assert json.dumps(described).count("http://") == 0


def test_the_page_and_its_files_are_served_and_nothing_beside_them(tmp_path, monkeypatch):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>a page")
    (tmp_path / "page" / "app.js").write_text("a script")
    (tmp_path / "secret.py").write_text("a secret")
    monkeypatch.setattr(app, "_PAGE", tmp_path / "page")
    with served(engine(Held)) as server, server.client() as client:
        response = client.get("/")
        assert (response.status_code, response.text) == (200, "<p>a page")
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert client.get("/static/app.js").text == "a script"
        for path in ("../secret.py", "%2e%2e/secret.py", "..%2fsecret.py", "%2fetc%2fpasswd", ""):
            assert client.get(f"/static/{path}").status_code == 404


def test_no_path_is_opened(client, monkeypatch):
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *given, **more: (opened.append(given[0]), real(*given, **more))[1])
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **_: opened.append(path))
    for asked in ({"sampler": "/tmp/a.json"}, {"image": "/etc/passwd", "strength": 0.5}, {"labels": ["/etc/passwd"]}):
        assert client.post("/v1/images", json={**SMALL, **asked}).status_code == 422
    assert not opened


def test_the_app_is_started_and_closed_with_its_server():
    of = engine()
    with served(of) as server:
        assert httpx.get(f"{server.url}/ready", trust_env=False).status_code == 200
    with pytest.raises(RuntimeError, match="closed"):
        of.start()
