"""Who may have how much: the ledger, and what the API answers when there is no more."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from joey.api.config import Settings
from joey.client.transport import Connection, Problem
from joey.engine.admission import Admission, described
from joey.model.errors import Busy, Invalid, TooMany
from joey.model.limits import Limits, NodeLimits
from joey.testing.engine import FakeEngine
from joey.testing.serving import Served, serving

MIB = 1 << 20
SLEEP = {"image": "host", "process": {"argv": ["sleep", "100"]}}


def ledger(machine: int = 1000 * MIB, node: NodeLimits | None = None, **limits: int) -> Admission:
    found = Admission(machine)
    found.node = node or NodeLimits()
    found.limits = lambda owner: Limits(**limits)
    return found


@contextmanager
def refused(setting: str) -> Iterator[pytest.ExceptionInfo[Busy]]:
    """By the node, which says what its administrator may change."""
    with pytest.raises(Busy) as caught:
        yield caught
    assert setting in caught.value.remedy and not isinstance(caught.value, TooMany)


def test_a_key_has_so_many_sandboxes_and_no_more():
    one = ledger(sandboxes=2)
    one.enter("a", "key")
    one.enter("b", "key")
    with pytest.raises(TooMany, match="key key may have 2 sandboxes") as caught:
        one.enter("c", "key")
    assert caught.value.where == "sandboxes" and caught.value.status == 429 and caught.value.retry_after > 0
    one.enter("c", "other")
    for number in range(10):
        one.enter(str(number), "")  # the administrator has no limits of his own
    one.leave("a")
    one.leave("a")
    one.enter("d", "key")
    with pytest.raises(TooMany):
        one.enter("e", "key")


def test_the_node_has_so_many_sandboxes():
    one = ledger(node=NodeLimits(sandboxes=1))
    one.enter("a", "")
    with refused("max_sandboxes") as caught:
        one.enter("b", "key")
    assert caught.value.status == 503
    assert one.load().sandboxes == 1


def test_memory_is_promised_up_to_the_limit_of_the_key_and_the_overcommit_of_the_node():
    one = ledger(node=NodeLimits(memory_overcommit=2.0), memory=300 * MIB)
    one.enter("a", "key")
    one.enter("b", "key")
    one.start("a", 200 * MIB)
    with pytest.raises(TooMany, match="memory") as caught:
        one.start("b", 101 * MIB)
    assert caught.value.where == "resources.memory"
    one.start("b", 100 * MIB)
    with pytest.raises(TooMany):
        one.resize("b", 101 * MIB)
    one.resize("b", 50 * MIB)  # less is always allowed
    one.hold("a", 200 * MIB, runs=False)
    one.resize("b", 300 * MIB)
    one.enter("c", "")
    one.start("c", None)  # no limit is a promise of the whole machine
    assert one.load().memory == 1300 * MIB
    one.enter("d", "")
    with refused("memory_overcommit"):
        one.start("d", 701 * MIB)
    one.start("d", 700 * MIB)


def test_no_limit_promises_more_than_the_machine_has():
    one = ledger(node=NodeLimits(memory_overcommit=1.0))
    one.enter("a", "")
    one.start("a", 1 << 60)
    assert one.load().memory == 1000 * MIB


def test_starts_in_flight():
    one = ledger(node=NodeLimits(starts=2), starts=1)
    for name, owner in (("a", "key"), ("b", "key"), ("c", ""), ("d", "")):
        one.enter(name, owner)
    one.start("a", MIB)
    one.start("a", MIB)  # the same one
    with pytest.raises(TooMany) as caught:
        one.start("b", MIB)
    assert caught.value.where == "starts"
    one.start("c", MIB)
    with refused("max_starts"):
        one.start("d", MIB)
    assert one.load().starts == 2
    one.started("a")
    one.started("a")
    one.start("b", MIB)


def test_whatever_happens_the_sums_are_right():
    """Entries in any order, told once or often, refused or not: totals are those of what is there."""
    chance = random.Random(5)
    one = ledger(
        node=NodeLimits(sandboxes=30, memory_overcommit=20.0, starts=9), sandboxes=12, memory=4000 * MIB, starts=4
    )
    there: dict[str, tuple[str, int]] = {}
    for _ in range(5000):
        id = str(chance.randrange(40))
        limit = chance.choice([None, MIB, 400 * MIB, 1 << 50])
        try:
            match chance.randrange(6):
                case 0 if id not in there:
                    owner = chance.choice(["", "x", "y"])
                    one.enter(id, owner)
                    there[id] = (owner, 0)
                case 1 if id in there:
                    one.start(id, limit)
                    there[id] = (there[id][0], one._promise(limit))
                case 2 if id in there:
                    one.resize(id, limit)
                    there[id] = (there[id][0], one._promise(limit))
                case 3:
                    one.started(id)
                case 4:
                    one.hold(id, limit, runs=False)
                    there = {key: (value[0], 0) if key == id else value for key, value in there.items()}
                case 5:
                    one.leave(id)
                    there.pop(id, None)
        except Busy:
            pass
        load = one.load()
        assert (
            load.sandboxes == len(there) <= 30 and load.memory == sum(m for _, m in there.values()) and load.starts <= 9
        )
        for owner in ("x", "y"):
            mine = [memory for other, memory in there.values() if other == owner]
            assert len(mine) <= 12 and sum(mine) <= 4000 * MIB
    for id in list(there):
        one.leave(id)
    assert one.load().sandboxes == one.load().memory == one.load().starts == 0 and one._owners == {}


def test_the_doctor_says_when_it_is_full():
    one = ledger(node=NodeLimits(sandboxes=1, memory_overcommit=2.0))
    found = described(one.load())
    assert found.state == "ok" and "0 of 1 sandboxes" in found.found and "2 times" in found.found
    one.enter("a", "")
    assert described(one.load()).state == "limited"


@pytest.mark.parametrize("name, value", [("max_sandboxes", -1), ("memory_overcommit", 0), ("max_starts", 0)])
def test_settings_are_checked(name: str, value: int):
    with pytest.raises(Invalid) as caught:
        Settings(**{name: value})
    assert caught.value.where == name


def test_settings_say_what_the_node_may_have():
    found = Settings(max_sandboxes=5, memory_overcommit=1.5, max_starts=7).node
    assert found == NodeLimits(sandboxes=5, memory_overcommit=1.5, starts=7) and Settings().node == NodeLimits()


# --- through the API -------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, settings=Settings(max_sandboxes=6)) as server:
        yield server


def call(served: Served, method: str, path: str, value: object = None, key: str = "") -> object:
    with Connection.open(served.path) as connection:
        return connection.request(method, path, value, f"Authorization: Bearer {key}\r\n" if key else "").json()


def test_the_api_says_which_limit_and_when_to_come_back(served: Served):
    limits = {"sandboxes": 2, "memory": 900 * MIB}
    made = call(served, "POST", "/v1/keys", {"name": "small", "limits": limits})
    first = call(served, "POST", "/v1/sandboxes", SLEEP, made["key"])
    with pytest.raises(Problem) as caught:
        call(served, "POST", "/v1/sandboxes", SLEEP, made["key"])  # 2 x 512 MiB
    assert caught.value.status == 429 and made["id"] in str(caught.value) and "memory" in str(caught.value)
    small = SLEEP | {"resources": {"memory": 64 * MIB}}
    second = call(served, "POST", "/v1/sandboxes", small, made["key"])
    with Connection.open(served.path) as connection, pytest.raises(Problem) as caught:
        connection.request("POST", "/v1/sandboxes", small, f"Authorization: Bearer {made['key']}\r\n").json()
    assert caught.value.status == 429 and caught.value.document["field"] == "sandboxes"
    with pytest.raises(Problem) as caught:
        call(served, "PATCH", f"/v1/sandboxes/{second['id']}", {"resources": {"memory": 600 * MIB}}, made["key"])
    assert caught.value.status == 429
    call(served, "DELETE", f"/v1/sandboxes/{first['id']}?force=true", None, made["key"])
    assert call(served, "POST", "/v1/sandboxes", small, made["key"])
    ids = [call(served, "POST", "/v1/sandboxes", small)["id"] for _ in range(4)]
    with pytest.raises(Problem) as caught:
        call(served, "POST", "/v1/sandboxes", small)
    assert caught.value.status == 503 and "max_sandboxes" in str(caught.value.document)
    load = call(served, "GET", "/v1/node")["load"]
    assert load["sandboxes"] == load["sandboxes_limit"] == 6 and load["memory"] == 6 * 64 * MIB
    assert ids


def test_health_answers_while_thousands_wait(tmp_path: Path):
    """10,000 creates that cannot go on, and whoever asks how it does is answered at once."""
    gate = asyncio.Event()

    class Slow(FakeEngine):
        async def run(self, spec, **options):
            await gate.wait()
            raise Busy("test", "over")

    with serving(tmp_path, make=Slow) as served:

        async def main() -> None:
            pipes = [await asyncio.open_unix_connection(served.path) for _ in range(200)]
            body = b'{"image":"host","process":{"argv":["true"]}}'
            head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            batch = b'{"count":5000,"spec":' + body + b"}"
            for _, writer in pipes:
                writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            batches = [await asyncio.open_unix_connection(served.path) for _ in range(2)]
            for _, writer in batches:
                text = head.replace(b"sandboxes", b"sandboxes/batch") + b"Content-Length: %d\r\n\r\n" % len(batch)
                writer.write(text + batch)
            await asyncio.sleep(0.1)
            worst = 0.0
            for _ in range(20):
                begin = time.monotonic()
                reader, writer = await asyncio.open_unix_connection(served.path)
                writer.write(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()
                worst = max(worst, time.monotonic() - begin)
            assert worst < 1.0
            served.loop.call_soon_threadsafe(gate.set)
            for reader, writer in pipes:
                assert (await reader.readline()).startswith(b"HTTP/1.1 503")
                writer.close()
            for _, writer in batches:
                writer.close()

        asyncio.run(main())


def test_a_batch_waits_for_its_turn(served: Served):
    made = call(served, "POST", "/v1/keys", {"limits": {"starts": 1}})
    with Connection.open(served.path) as connection:
        headers = f"Authorization: Bearer {made['key']}\r\n"
        answer = connection.request("POST", "/v1/sandboxes/batch", {"count": 5, "spec": SLEEP}, headers)
        lines = [json.loads(line) for line in answer.body().splitlines()]
    assert sorted(line["index"] for line in lines) == [0, 1, 2, 3, 4] and all("sandbox" in line for line in lines)
    none = call(served, "POST", "/v1/keys", {"limits": {"starts": 0}})
    with pytest.raises(Problem) as caught:
        call(served, "POST", "/v1/sandboxes", SLEEP, none["key"])
    assert caught.value.status == 429


def test_a_key_that_is_gone_leaves_no_pool(served: Served):
    made = call(served, "POST", "/v1/keys", {"name": "pools"})
    call(served, "PUT", "/v1/pools/p?filled=true", {"size": 2, "spec": SLEEP}, made["key"])
    assert [one["owner"] for one in call(served, "GET", "/v1/pools")] == [made["id"]]
    with Connection.open(served.path) as connection:
        connection.request("DELETE", f"/v1/keys/{made['id']}").body()
    assert call(served, "GET", "/v1/pools") == []
