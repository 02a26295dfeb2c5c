"""Kept output: what is written comes back, after tears, rotations and full disks too; tail, since, until, follow."""

import asyncio
import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joey.engine.interface import LogQuery
from joey.engine.logs import Logs, _Tail
from joey.model.views import LogEntry


@pytest.fixture
def logs(tmp_path):
    made = Logs(tmp_path)
    yield made
    made.close()


async def collect(logs, query):
    return [(entry.stream, entry.data) async for entry in logs.read("a", query)]


def read(logs, **query):
    return asyncio.run(collect(logs, LogQuery(**query)))


def text(logs, **query):
    return b"".join(data for _, data in read(logs, **query))


def write(logs, *pieces, stream=1):
    for piece in pieces:
        logs.log("a").write(stream, piece)


# ---- writing and reading


def test_what_is_written_comes_back(logs):
    pieces = [(1, b"hello\n"), (2, b"\xff\x00"), (1, b""), (1, b"1763822107123456789 1 0000d x\n"), (2, b"x" * 65536)]
    before = time.time()
    for stream, data in pieces:
        logs.log("a").write(stream, data)
    logs.log("a").end()
    assert read(logs) == [piece for piece in pieces if piece[1]]
    entries = asyncio.run(collect_entries(logs))
    assert all(before - 1 <= entry.at <= time.time() for entry in entries)


async def collect_entries(logs):
    return [entry async for entry in logs.read("a", LogQuery())]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=300)), max_size=30))
def test_any_bytes_come_back(tmp_path_factory, pieces):
    logs = Logs(tmp_path_factory.mktemp("logs"))
    for stream, data in pieces:
        logs.log("a").write(stream, data)
    logs.close()
    assert read(logs) == pieces


def test_nothing_written_makes_no_file(logs, tmp_path):
    logs.log("a").begin()
    logs.log("a").end()
    assert list(tmp_path.iterdir()) == [] and read(logs) == []


def test_more_than_a_record_holds_is_split(logs):
    write(logs, b"y" * 150_000)
    assert [len(data) for _, data in read(logs)] == [65536, 65536, 18928]


def test_lines_can_be_found_with_grep(logs, tmp_path):
    write(logs, b"first\n", b"needle in it\n", b"last\n")
    found = subprocess.run(["grep", "-ah", "needle", *map(str, tmp_path.iterdir())], capture_output=True, check=True)
    assert found.stdout.endswith(b" 1 0000d needle in it\n")


def test_streams_are_chosen(logs):
    write(logs, b"out\n")
    write(logs, b"err\n", stream=2)
    assert read(logs, stderr=False) == [(1, b"out\n")]
    assert read(logs, stdout=False) == [(2, b"err\n")]


def test_since_and_until(logs, monkeypatch):
    for second in range(10):
        monkeypatch.setattr(time, "time_ns", lambda now=second: now * 10**9)
        write(logs, b"%d" % second)
    assert text(logs, since=3.0) == b"3456789"
    assert text(logs, until=3.0) == b"0123"
    assert text(logs, since=3.5, until=5.5) == b"45"
    assert text(logs, since=3.0, until=7.0, tail=1) == b"34567"


def test_no_more_files_open_than_allowed(tmp_path):
    logs = Logs(tmp_path, max_open=3)
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(3):
        for number in range(10):
            logs.log(str(number)).write(1, b"%d" % turn)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    logs.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(b"".join(e.data for e in asyncio.run(all_of(logs, str(n)))) == b"012" for n in range(10))


def test_the_file_closed_is_the_one_not_written_for_longest(tmp_path):
    logs = Logs(tmp_path, max_open=2)
    for id in "abac":
        logs.log(id).write(1, b"x")
    open_files = {
        os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        for fd in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    assert {"a.log", "c.log"} <= open_files and "b.log" not in open_files
    logs.close()


async def all_of(logs, id):
    return [entry async for entry in logs.read(id, LogQuery())]


def test_remove(logs, tmp_path):
    write(logs, b"gone")
    (tmp_path / "a.log.1").write_bytes(b"")
    late = logs.log("a")
    logs.remove("a")
    logs.remove("a")
    late.write(1, b"held back by a slow client until now")
    assert list(tmp_path.iterdir()) == [] and read(logs) == []


# ---- rotation


def test_rotation_keeps_the_newest_two_files(tmp_path):
    logs = Logs(tmp_path, max_bytes=1000)
    lines = [b"line %03d\n" % number for number in range(100)]
    write(logs, *lines)
    kept = [data for _, data in read(logs)]
    assert kept == lines[-len(kept) :] and 20 < len(kept) < 60
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"a.log", "a.log.1"} and max(sizes.values()) <= 1000
    logs.close()
    assert [data for _, data in read(Logs(tmp_path, max_bytes=1000))] == kept


def test_a_piece_larger_than_the_cap_is_kept_all_the_same(tmp_path):
    logs = Logs(tmp_path, max_bytes=100, files=1)
    write(logs, b"a" * 500, b"b" * 500)
    assert read(logs) == [(1, b"b" * 500)]
    logs.close()


# ---- tears and full disks


@pytest.mark.parametrize("cut", [1, 2, 7, 20, 34])
def test_a_torn_record_is_skipped_and_cut_off(tmp_path, cut):
    logs = Logs(tmp_path)
    write(logs, b"one\n", b"two\n", b"three\n")
    logs.close()
    path = tmp_path / "a.log"
    path.write_bytes(path.read_bytes()[:-cut])
    assert text(logs) == b"one\ntwo\n"
    again = Logs(tmp_path)
    write(again, b"four\n")
    again.close()
    assert text(again) == b"one\ntwo\nfour\n"


def test_zeros_after_a_power_failure_are_cut_off(tmp_path):
    (tmp_path / "a.log").write_bytes(bytes(5000))
    logs = Logs(tmp_path)
    assert read(logs) == []
    write(logs, b"x")
    assert read(logs) == [(1, b"x")]
    logs.close()


def test_a_full_disk_loses_output_but_says_so(logs, monkeypatch, caplog):
    write(logs, b"one\n")
    real = os.writev

    def full(fd, buffers):
        return real(fd, [b"".join(buffers)[:10]])  # a short write, as when the disk fills up

    monkeypatch.setattr(os, "writev", full)
    write(logs, b"lost\n", b"lost too\n")
    monkeypatch.setattr(os, "writev", real)
    write(logs, b"two\n")
    assert read(logs) == [
        (1, b"one\n"), (2, b"joey: 14 bytes of output could not be logged\n"), (1, b"two\n"),
    ]  # fmt: skip
    assert caplog.text.count("output is not logged") == 1


def test_a_disk_that_does_not_even_truncate(logs, monkeypatch):
    write(logs, b"one\n")
    real, truncate = os.writev, os.ftruncate

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [b"".join(buffers)[:10]]))
    monkeypatch.setattr(os, "ftruncate", fail)
    write(logs, b"lost\n")
    monkeypatch.setattr(os, "writev", real)
    monkeypatch.setattr(os, "ftruncate", truncate)
    write(logs, b"two\n")
    assert [data for _, data in read(logs)][::2] == [b"one\n", b"two\n"]


# ---- tail

WHOLE = [b"a\nb", b"c\n", b"d\ne\n", b"f"]  # lines: a, bc, d, e, f


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (0, b""),
        (1, b"f"),
        (2, b"e\nf"),
        (3, b"d\ne\nf"),
        (4, b"bc\nd\ne\nf"),
        (5, b"".join(WHOLE)),
        (99, b"".join(WHOLE)),
    ],
)
def test_tail_counts_lines_not_pieces(logs, tail, expected):
    write(logs, *WHOLE)
    assert text(logs, tail=tail) == expected


@given(st.lists(st.text("ab\n", min_size=1, max_size=8).map(str.encode), max_size=12), st.integers(0, 8))
def test_tail_is_what_splitting_the_text_gives(pieces, count):
    tail = _Tail(count)
    for piece in pieces:
        tail.add(LogEntry(at=0.0, stream=1, data=piece))
    lines = b"".join(pieces).splitlines(keepends=True)
    assert b"".join(entry.data for entry in tail.entries()) == b"".join(lines[-count:] if count else [])


def test_a_tail_holds_no_more_than_it_needs():
    tail = _Tail(3)
    for number in range(1000):
        tail.add(LogEntry(at=0.0, stream=1, data=b"%d\n" % number))
    assert len(tail._kept) <= 4


# ---- follow


class Follower:
    """Reads along in a task."""

    def __init__(self, logs, **query):
        self.got = b""
        self.task = asyncio.ensure_future(self.read(logs, LogQuery(follow=True, **query)))

    async def read(self, logs, query):
        async for entry in logs.read("a", query):
            self.got += entry.data

    async def see(self, expected):
        for _ in range(1000):
            if self.got == expected:
                return
            await asyncio.sleep(0)
        assert self.got == expected


def test_follow_sees_everything_once_and_ends_with_the_run(logs):
    async def follow():
        log = logs.log("a")
        log.begin()
        write(logs, b"before ")
        followers = [Follower(logs), Follower(logs)]
        tail = Follower(logs, tail=0)
        while len(log._followers) < 3:
            await asyncio.sleep(0)
        for number in range(5):
            write(logs, b"%d" % number)
            if number % 2:
                await asyncio.sleep(0)
        await followers[1].see(b"before 01234")
        await tail.see(b"01234")
        write(logs, b" last")
        log.end()
        await asyncio.gather(*(one.task for one in (*followers, tail)))
        assert [one.got for one in followers] == [b"before 01234 last"] * 2
        assert not log._followers

    asyncio.run(follow())


def test_what_comes_while_a_tail_is_being_taken_is_not_missed(logs):
    async def follow():
        log = logs.log("a")
        log.begin()
        write(logs, b"1\n2\n", b"3\n")
        got = b""
        async for entry in logs.read("a", LogQuery(follow=True, tail=2)):
            got += entry.data
            if log.running:
                write(logs, b"late\n")
                log.end()
        assert got == b"2\n3\nlate\n"

    asyncio.run(follow())


def test_a_tail_without_follow_gives_no_more_lines_than_asked_for(logs):
    async def tail():
        write(logs, b"1\n", b"2\n")
        got = b""
        async for entry in logs.read("a", LogQuery(tail=1)):
            got += entry.data
            write(logs, b"late\n")
        assert got == b"2\n"

    asyncio.run(tail())


def test_follow_of_what_does_not_run_ends_at_once(logs):
    write(logs, b"old")
    assert read(logs, follow=True) == [(1, b"old")]


def test_follow_goes_through_rotations(tmp_path):
    logs = Logs(tmp_path, max_bytes=500)

    async def follow():
        logs.log("a").begin()
        follower = Follower(logs)
        expected = b""
        for number in range(100):
            line = b"line %d\n" % number
            write(logs, line)
            expected += line
            if number % 3 == 0:
                await follower.see(expected)
        await follower.see(expected)
        logs.log("a").end()
        await follower.task

    asyncio.run(follow())
    assert logs.log("a").generation > 3


def test_a_follower_left_behind_by_rotations_goes_on_with_what_there_is(tmp_path):
    logs = Logs(tmp_path, max_bytes=500)

    async def follow():
        logs.log("a").begin()
        entries = logs.read("a", LogQuery(follow=True))
        write(logs, b"first\n")
        assert (await anext(entries)).data == b"first\n"
        write(logs, *(b"line %d\n" % number for number in range(100)))
        logs.log("a").end()
        rest = [entry.data async for entry in entries]
        numbers = [int(data.split()[1]) for data in rest]
        assert numbers == sorted(numbers) and numbers[-1] == 99 and len(set(numbers)) == len(numbers)

    asyncio.run(follow())


def test_follow_ends_at_until(logs):
    async def follow():
        logs.log("a").begin()
        write(logs, b"x")
        assert await collect(logs, LogQuery(follow=True, until=time.time() + 0.02)) == [(1, b"x")]
        assert await collect(logs, LogQuery(follow=True, until=time.time() - 100)) == []

    asyncio.run(follow())


def test_follow_ends_when_the_log_is_removed(logs):
    async def follow():
        logs.log("a").begin()
        write(logs, b"x")
        follower = Follower(logs)
        await follower.see(b"x")
        logs.remove("a")
        await follower.task

    asyncio.run(follow())


def test_a_closed_reader_leaves_nothing(logs):
    async def follow():
        logs.log("a").begin()
        write(logs, b"x")
        before = len(os.listdir("/proc/self/fd"))
        entries = logs.read("a", LogQuery(follow=True))
        await anext(entries)
        waiting = asyncio.ensure_future(anext(entries))
        for _ in range(3):
            await asyncio.sleep(0)
        assert logs.log("a")._followers
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await entries.aclose()
        assert not logs.log("a")._followers
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(follow())


def test_a_long_log_is_read_in_turns(logs):
    """Others get their turn every few hundred KiB."""

    async def both():
        write(logs, *[b"z" * 60_000] * 50)
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        await collect(logs, LogQuery(tail=10))
        task.cancel()
        assert turns >= 10

    asyncio.run(both())


def test_a_log_begins_in_memory_and_moves_to_disk_unnoticed(tmp_path: Path) -> None:
    async def main() -> None:
        disk, fast = tmp_path / "disk", tmp_path / "fast"
        disk.mkdir(), fast.mkdir()
        logs = Logs(disk, fast=fast)
        log = logs.log("a")
        log.begin()
        log.write(1, b"first\n")
        assert (fast / "a.log").exists() and not (disk / "a.log").exists()
        got: list[bytes] = []

        async def follow() -> None:
            async for entry in logs.read("a", LogQuery(follow=True)):
                got.append(entry.data)

        follower = asyncio.ensure_future(follow())
        await asyncio.sleep(0)
        for number in range(40):
            log.write(1, b"%04d" % number * 1000)
            await asyncio.sleep(0)
        assert (disk / "a.log").exists() and not (fast / "a.log").exists()
        log.end()
        await follower
        assert b"".join(got) == b"first\n" + b"".join(b"%04d" % number * 1000 for number in range(40))

        again = Logs(disk, fast=fast)  # an engine that has restarted goes on where the last one was
        again.log("a").write(2, b"more")
        assert (disk / "a.log").stat().st_size > 160_000 and not (fast / "a.log").exists()
        again.remove("a")
        assert not list(disk.iterdir()) and not list(fast.iterdir())

    asyncio.run(main())
