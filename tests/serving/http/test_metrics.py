"""Tests of fastdiff.serving.http.metrics: what Prometheus reads, parsed by its own parser."""

from prometheus_client.parser import text_string_to_metric_families

from support.servers import Held, engine, served

ASKED = {"num": 2, "steps": 3, "labels": [0, 1]}


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_and_the_engines_numbers_are_counted():
    of = engine(Held, max_queued=4)
    with served(of) as server, server.client() as client:
        before = samples(client.get("/metrics").text)
        assert before["fastdiff_queued_images",] == 0
        id = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        client.post("/v1/images?wait=0", json={**ASKED, "num": 3, "labels": [0, 1, 2]})
        client.post("/v1/images?wait=0", json={**ASKED, "steps": 0})
        client.post("/v1/images?wait=0", content=b"{}")
        assert samples(client.get("/metrics").text)["fastdiff_queued_images",] == 2
        while of.step():
            pass
        other = client.post("/v1/images?wait=0", json=ASKED).json()["id"]
        client.delete(f"/v1/requests/{other}")
        assert client.get(f"/v1/requests/{id}").status_code == 200
        found = samples(client.get("/metrics").text)
    outcomes = {name[1]: value for name, value in found.items() if name[0] == "fastdiff_requests_total"}
    assert outcomes == {"done": 1, "refused": 1, "invalid": 2, "cancelled": 1}
    assert found["fastdiff_evaluations_total",] == 6
    assert found["fastdiff_batches_total",] == 3
    assert found["fastdiff_images_total",] == 2
    assert found["fastdiff_batch_fill",] == 2 / 16
    assert found["fastdiff_request_seconds_count",] == found["fastdiff_waiting_seconds_count",] == 1
    assert found["fastdiff_http_responses_total", "/v1/images", "429"] == 1
    assert found["fastdiff_http_responses_total", "/v1/images", "422"] == 1
    assert found["fastdiff_http_responses_total", "/v1/images", "415"] == 1
    assert found["fastdiff_network_seconds_total",] > 0
