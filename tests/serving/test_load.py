"""Thousands of clients of all kinds, good, bad, slow and gone, and a SIGTERM in the middle.

FASTDIFF_SERVE_REQUESTS says how many; in CI there are few.
"""

import asyncio
import collections
import json
import os
import random
import signal
import time

import psutil
import pytest

from support.command_line import small_model
from support.servers import KEY, Process

NUM = int(os.environ.get("FASTDIFF_SERVE_REQUESTS", "240"))
# Clients at a time.
TOGETHER = 48
MAX_BODY = 2**20
# MiB that a process may grow by after its first requests: allocators keep what they once had, in pieces.
GROWTH = 24


class Lost(Exception):
    """The connection ended without an answer."""


class Clients:
    """Clients of a server, each a connection of its own.

    Attributes:
        answers: How many answers there were, by kind of client and status.
    """

    def __init__(self, port, seed):
        self.port, self.chance, self.answers = port, random.Random(seed), collections.Counter()
        self.kinds = {
            self.good: 10,
            self.later: 4,
            self.leaves: 3,
            self.looks_on: 2,
            self.takes_nothing: 1,
            self.cancels: 2,
            self.sends_nonsense: 2,
            self.asks_for_nonsense: 2,
            self.sends_too_much: 1,
            self.sends_half: 1,
        }

    def asked(self):
        chance, num = self.chance, self.chance.choice([1, 1, 2, 4])
        asked = {"num": num, "steps": chance.randint(2, 8), "seed": chance.randrange(2**64), "labels": [0] * num}
        asked["sampler"] = chance.choice(["ddim", "ddpm", "dpmpp_2m"])
        return asked | ({"previews": 2} if chance.random() < 0.5 else {})

    async def one(self):
        kind = self.chance.choices(list(self.kinds), list(self.kinds.values()))[0]
        self.answers[kind.__name__, await kind()] += 1

    async def opened(self, method, path, body=b"", head=""):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n{head}"
        if method == "POST":
            lines += "Content-Type: application/json\r\n"
            lines += "" if "-Encoding" in head or "-Length" in head else f"Content-Length: {len(body)}\r\n"
        writer.write(f"{lines}\r\n".encode() + body)
        return reader, writer

    async def answered(self, *request, **more):
        """Status and body; the connection was closed by then."""
        reader, writer = await self.opened(*request, **more)
        try:
            text = await asyncio.wait_for(reader.read(), 120)
        finally:
            writer.close()
        head, _, body = text.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            raise Lost
        return int(head.split()[1]), body

    async def good(self, head=""):
        asked = self.asked()
        status, body = await self.answered("POST", "/v1/images", json.dumps(asked).encode(), head=head)
        if status == 200:
            assert len(json.loads(body)["images"]) == asked["num"]
        return status

    async def later(self):
        status, body = await self.answered("POST", "/v1/images?wait=0", json.dumps(self.asked()).encode())
        while status == 202:
            id = json.loads(body)["id"]
            await asyncio.sleep(0.02)
            status, body = await self.answered("GET", f"/v1/requests/{id}")
        return status

    async def leaves(self):
        _, writer = await self.opened("POST", "/v1/images", json.dumps({**self.asked(), "sampler": "ddpm"}).encode())
        await asyncio.sleep(self.chance.random() * 0.05)
        writer.close()

    async def looks_on(self):
        status, body = await self.answered("POST", "/v1/images?wait=0", json.dumps(self.asked()).encode())
        if status != 202:
            return status
        status, body = await self.answered("GET", f"/v1/requests/{json.loads(body)['id']}/events")
        assert body.count(b"event: done") + body.count(b"event: error") == 1
        return status

    async def takes_nothing(self):
        status, body = await self.answered("POST", "/v1/images?wait=0", json.dumps(self.asked()).encode())
        if status == 202:
            _, writer = await self.opened("GET", f"/v1/requests/{json.loads(body)['id']}/events")
            await asyncio.sleep(0.2)
            writer.close()
        return status

    async def cancels(self):
        status, body = await self.answered("POST", "/v1/images?wait=0", json.dumps(self.asked()).encode())
        if status != 202:
            return status
        path = f"/v1/requests/{json.loads(body)['id']}"
        status, _ = await self.answered("DELETE", path)
        assert status == 204
        status, _ = await self.answered("GET", path)
        return status

    async def sends_nonsense(self):
        return (await self.answered("POST", "/v1/images", self.chance.randbytes(100)))[0]

    async def asks_for_nonsense(self):
        wrong = self.chance.choice([{"steps": 9}, {"labels": [7]}, {"sampler": "x"}, {"seed": -1}, {"image": "x"}])
        return (await self.answered("POST", "/v1/images", json.dumps({**self.asked(), **wrong}).encode()))[0]

    async def sends_too_much(self):
        if self.chance.random() < 0.5:
            return (await self.answered("POST", "/v1/images", head=f"Content-Length: {MAX_BODY + 1}\r\n"))[0]
        reader, writer = await self.opened("POST", "/v1/images", head="Transfer-Encoding: chunked\r\n")
        try:
            for _ in range(MAX_BODY // 65536 + 1):
                writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
                await writer.drain()
            return int((await reader.readline()).split()[1])
        except (ConnectionError, IndexError):
            # Reset while it still sends: it may have missed the answer.
            return 413
        finally:
            writer.close()

    async def sends_half(self):
        body = json.dumps(self.asked()).encode()
        _, writer = await self.opened(
            "POST", "/v1/images", body[:20], head="X-Half: 1\r\nTransfer-Encoding: chunked\r\n"
        )
        writer.write(b"5\r\nab")
        writer.close()


ALLOWED = {
    "good": {200, 429},
    "later": {200, 429},
    "leaves": {None},
    "looks_on": {200, 429},
    "takes_nothing": {202, 429},
    "cancels": {404, 410, 429},
    "sends_nonsense": {422},
    "asks_for_nonsense": {422},
    "sends_too_much": {413},
    "sends_half": {None},
}


async def many(clients, num):
    limit = asyncio.Semaphore(TOGETHER)

    async def one():
        async with limit:
            await clients.one()

    await asyncio.gather(*[one() for _ in range(num)])


def quiet(server):
    """Wait until nothing waits or runs, and give the engine's numbers."""
    end = time.monotonic() + 60
    while (stats := server.client.get("v1/stats").json())["requests"]:
        assert time.monotonic() < end, stats
        time.sleep(0.05)
    return stats


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("load") / "tiny", size=8, channels=1, num_classes=3)


def test_every_request_is_answered_and_nothing_stays_behind(model):
    options = ["--max-body", "1", "--max-steps", "8", "--max-queued", "100", "--keep-seconds", "20"]
    with Process(model, *options) as server:
        process, port = psutil.Process(server.process.pid), int(server.url.rstrip("/").rpartition(":")[2])
        clients = Clients(port, 0)
        asyncio.run(many(clients, NUM // 4))
        quiet(server)
        time.sleep(1.5)
        before = process.memory_info().rss, process.num_fds(), process.num_threads()
        asyncio.run(many(clients, NUM - NUM // 4))
        stats = quiet(server)
        time.sleep(1.5)
        after = process.memory_info().rss, process.num_fds(), process.num_threads()
        print(f"{dict(clients.answers)}\n{stats['added']} taken; (rss, descriptors, threads) {before} -> {after}")
        for (kind, status), count in clients.answers.items():
            assert status in ALLOWED[kind], (kind, status, count)
        assert sum(clients.answers.values()) == NUM
        assert (stats["queued_images"], stats["running_images"], stats["failed"]) == (0, 0, 0)
        assert stats["added"] == stats["finished"] + stats["cancelled"]
        assert after[1] <= before[1]
        assert after[2] <= before[2] + 1
        assert after[0] - before[0] < GROWTH * 2**20

        told = {}

        async def until_the_end():
            async def one(number):
                await asyncio.sleep(number * 0.004)
                id = f"last-{number}"
                try:
                    told[id] = await clients.good(f"X-Request-Id: {id}\r\n")
                except (Lost, ConnectionError):
                    told[id] = None

            async def end():
                await asyncio.sleep(0.2)
                server.process.send_signal(signal.SIGTERM)

            await asyncio.gather(end(), *[one(number) for number in range(150)])

        asyncio.run(until_the_end())
        assert server.end() == 0
        print(f"around SIGTERM: {collections.Counter(told.values())}")
        assert set(told.values()) <= {200, 429, 503, None}
        assert 200 in told.values()
        # Of those that the server saw each has its answer; the others came when it listened no more.
        seen = {entry["request"]: entry["status"] for entry in server.log if entry.get("request") in told}
        assert seen == {id: status for id, status in told.items() if status is not None}
        assert [entry["running"] for entry in server.log if entry["message"] == "drained"] == [0]
