"""What is on disk after saves, crashes, damage and newer versions."""

import asyncio
import contextlib
import shutil
import sqlite3
import time

import pytest
from msgspec.structs import replace

from joey.engine.record import Phase, Policy, Record, Run
from joey.engine.schema import MIGRATIONS
from joey.engine.store import Row, Store
from joey.model.errors import Broken, Exhausted, Invalid, JoeyError
from joey.model.image import Layer
from joey.model.spec import Restart
from joey.model.views import Exit

FULL = Record(
    policy=Policy(
        remove=True,
        stop_signal=3,
        restart=Restart(policy="on-failure", max_retries=3),
        timeout=5.0,
        idle=6.0,
        on_timeout="pause",
    ),
    phase=Phase.STOPPING,
    run=Run.ALIVE,
    key=7,
    pid=1234,
    held=True,
    files=True,
    started=1.5,
    finished=0.5,
    exit=Exit(code=137, signal=9, oom=True, at=0.5),
    stopping=float("inf"),
    stop_by=11.0,
    restarts=3,
    tries=2,
    again_at=12.0,
    deadline=13.0,
    stopped=True,
    health="unhealthy",
)


def row(number, **changed):
    return Row(id=f"{number:024x}", name=f"n{number}", spec=b'{"image":"host"}', created=float(number), **changed)


@contextlib.asynccontextmanager
async def opened(path, **options):
    store = Store(path, **options)
    try:
        yield store
    finally:
        await store.close()


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def on_disk(path):
    async def load():
        async with opened(path) as store:
            return store.load_all()

    return run(load())


def test_rows_come_back_as_they_were(path):
    rows = (
        row(1, image="host", slot="s4", base=1 << 31, launcher=2, meta=b'{"a":1}', record=FULL),
        row(2, record=Record()),
        replace(row(3), name="", spec='{"hostname":"ä"}'.encode()),
    )

    async def save():
        async with opened(path) as store:
            for one in reversed(rows):
                store.save(one)

    run(save())
    assert on_disk(path).rows == rows


def test_every_field_of_the_record_but_early_is_kept():
    fields = set(Record.__struct_fields__) - {"early"}
    assert {name for name in fields if getattr(FULL, name) != getattr(Record(), name)} == fields


def test_the_last_save_counts_and_deleted_is_gone(path):
    async def save():
        async with opened(path) as store:
            store.save(row(1))
            store.save(row(2))
            await store.flush()
            store.save(row(1, slot="a"))
            store.save(row(1, slot="b"))
            store.delete(row(2).id)
            store.delete("no such")
            store.save(row(3))
            store.delete(row(3).id)
            store.save(row(4))
            await store.flush()
            store.delete(row(4).id)

    run(save())
    assert on_disk(path).rows == (row(1, slot="b"),)


def test_a_database_of_the_first_version_is_migrated(path):
    """With what the first version wrote: no owner, no life, a unique name."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0])
        head = "id, name, image, spec, created, slot, base, launcher, meta, phase, run, key, held, files, exit, policy"
        policy, ended = '{"remove":false,"stop_signal":15}', '{"code":3,"signal":0,"oom":false,"at":2.0,"error":""}'
        values = ("a" * 24, "old", "host", '{"image":"host"}', 1.0, "s1", 65536, 0, "{}", "exited", "none", 7, 0, 1)
        db.execute(f"INSERT INTO sandboxes ({head}) VALUES ({', '.join('?' * 16)})", (*values, ended, policy))
        db.execute("INSERT INTO counters VALUES ('key', 8, 1)")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    (found,) = on_disk(path).rows
    assert (found.name, found.owner, found.slot, found.record.key) == ("old", "", "s1", 7)
    assert found.record.exit == Exit(code=3, at=2.0) and found.record.restarts == 0 and found.record.policy == Policy()

    async def two_owners():
        async with opened(path) as store:
            assert (store.next_number("key"), store.next_number("event")) == (8, 1)
            store.save(replace(row(1), name="old", owner="k"))

    run(two_owners())
    assert {(one.name, one.owner) for one in on_disk(path).rows} == {("old", ""), ("old", "k")}


def test_a_backup_is_a_database_of_its_own_made_under_load(path, tmp_path):
    copy, busy = tmp_path / "copy.db", True

    async def back_up():
        async with opened(path) as store:
            for number in range(500):
                store.save(row(number))

            async def churn():
                number = 1000
                while busy:
                    number += 1
                    store.save(row(number))
                    await asyncio.sleep(0)

            churning = asyncio.ensure_future(churn())
            await store.backup(copy)
            nonlocal_stop()
            await churning
            with pytest.raises(Invalid, match="path"):
                await store.backup(copy)
            with pytest.raises(JoeyError):
                await store.backup(tmp_path / "no" / "where")

    def nonlocal_stop():
        nonlocal busy
        busy = False

    run(back_up())
    assert {f"n{number}" for number in range(500)} <= {one.name for one in on_disk(copy).rows}
    assert copy.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.glob("copy.db?*")] == []


def test_a_lone_flush_waits_for_no_group_and_many_share_one(path):
    async def flush():
        async with opened(path, group_seconds=60.0) as store:
            commits = []
            store._db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
            for number in range(3):
                store.save(row(number))
                await asyncio.wait_for(store.flush(), 5)
            assert len(commits) == 3
            futures = []
            for number in range(200):
                store.save(row(number, slot="s"))
                futures.append(store.flushed())
            assert await asyncio.gather(*futures) == [None] * 200
            assert len(commits) < 20

    run(flush())


def test_layers(path):
    async def save():
        async with opened(path) as store:
            for name in "abc":
                store.save_layer(Layer(name, f"/layers/{name}"))
            store.save_layer(Layer("b", "/elsewhere"))
            store.delete_layer("c")

    run(save())
    assert on_disk(path).layers == {"a": Layer("a", "/layers/a"), "b": Layer("b", "/elsewhere")}


def test_names_may_pass_between_sandboxes_within_a_batch(path):
    async def save():
        async with opened(path) as store:
            store.save(replace(row(1), name="x"))
            store.save(replace(row(2), name="y"))
            await store.flush()
            store.save(replace(row(2), name="tmp"))
            store.save(replace(row(1), name="y"))
            store.save(replace(row(2), name="x"))

    run(save())
    assert [one.name for one in on_disk(path).rows] == ["y", "x"]


def test_the_name_of_one_being_removed_is_free(path):
    async def save():
        async with opened(path) as store:
            store.save(replace(row(1), name="x", record=Record(phase=Phase.REMOVING)))
            store.save(replace(row(2), name="x"))

    run(save())
    assert len(on_disk(path).rows) == 2


def test_a_row_that_cannot_be_written_does_not_keep_others_from_disk(path, caplog):
    async def save():
        async with opened(path) as store:
            store.save(row(1))
            store.save(replace(row(2), name="n1"))  # a name that is taken
            store.save(replace(row(3), spec=b"\xff"))  # no UTF-8
            store.save(row(4))

    run(save())
    assert [one.created for one in on_disk(path).rows] == [1.0, 4.0]
    assert "UNIQUE" in caplog.text and "utf-8" in caplog.text


def test_flush_makes_it_durable_without_waiting_for_the_group(path, tmp_path):
    async def save():
        async with opened(path, group_seconds=30.0) as store:
            store.save(row(1))
            begin = time.monotonic()
            await store.flush()
            await asyncio.gather(store.flush(), store.flush())
            assert time.monotonic() - begin < 5
            for name in ("state.db", "state.db-wal"):  # what a crash of this process would leave
                shutil.copy(tmp_path / name, tmp_path / f"copy-{name}".replace("copy-state", "copy"))

    run(save())
    assert on_disk(tmp_path / "copy.db").rows == (row(1),)


def test_saves_are_committed_without_flush(path):
    async def save():
        async with opened(path) as store:
            store.save(row(1))
            with contextlib.closing(sqlite3.connect(path)) as other:
                for _ in range(500):
                    if other.execute("SELECT count(*) FROM sandboxes").fetchone() == (1,):
                        return True
                    await asyncio.sleep(0.01)

    assert run(save())


def test_a_flush_that_is_cancelled_harms_nobody(path):
    async def save():
        async with opened(path) as store:
            store.save(row(1))
            task = asyncio.ensure_future(store.flush())
            await asyncio.sleep(0)
            task.cancel()
            await store.flush()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(save())


def test_closed_twice_and_flushed_after(path):
    async def close():
        store = Store(path)
        await store.close()
        await store.close()
        with pytest.raises(Broken, match="closed"):
            await store.flush()

    run(close())


# ---- counters


def numbers(path, count, counter="key", *, crash_to=None):
    async def take():
        async with opened(path) as store:
            taken = [store.next_number(counter) for _ in range(count)]
            if crash_to:
                await store.flush()
                for suffix in ("", "-wal"):
                    shutil.copy(f"{path}{suffix}", f"{crash_to}{suffix}")
            return taken

    return run(take())


def test_counters_go_on_after_a_clean_end(path):
    assert numbers(path, 3) == [1, 2, 3]
    assert numbers(path, 2) == [4, 5]
    assert numbers(path, 1, "slot") == [1]


def test_counters_never_repeat_after_a_crash(path, tmp_path):
    left = tmp_path / "left.db"
    taken = numbers(path, 3, crash_to=left)
    after = numbers(left, 1)
    assert after[0] > max(taken) + 1000  # others may have been given after the last commit
    assert numbers(left, 1) == [after[0] + 1]


def test_an_end_before_the_first_commit_counts_as_a_crash(path, tmp_path):
    numbers(path, 3)
    left = tmp_path / "left.db"

    async def crash():
        async with opened(path):
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", f"{left}{suffix}")

    run(crash())
    assert numbers(left, 1)[0] > 1000


# ---- what is wrong with a file


def refused(path, kind=Broken):
    with pytest.raises(kind) as caught:
        Store(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    return str(caught.value)


def test_no_database_at_all(path):
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    assert "damaged" in refused(path)


def test_a_damaged_page(path):
    async def save():
        async with opened(path) as store:
            for number in range(500):
                store.save(row(number))

    run(save())
    data = bytearray(path.read_bytes())
    assert len(data) > 8 * 4096
    data[5 * 4096 : 6 * 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_a_truncated_file(path):
    run(save_many(path))
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged" in refused(path)


async def save_many(path, count=200):
    async with opened(path) as store:
        for number in range(count):
            store.save(row(number))


def test_a_newer_database(path):
    run(save_many(path, 1))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "newer" in refused(path)


def test_a_database_of_something_else(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name)")
    assert "another program" in refused(path)


def test_no_such_directory(tmp_path):
    refused(tmp_path / "missing" / "state.db")


def test_a_row_from_nowhere(path):
    run(save_many(path, 2))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE sandboxes SET phase = 'asleep' WHERE name = 'n1'")
    with pytest.raises(Broken, match=f"sandbox {1:024x}.*asleep") as caught:
        on_disk(path)
    assert caught.value.remedy


def test_a_full_disk_is_reported_and_nothing_is_lost(path, caplog):
    async def fill():
        async with opened(path) as store:
            pages = store._db.execute("PRAGMA page_count").fetchone()[0]
            store._db.execute(f"PRAGMA max_page_count = {pages}")
            for number in range(200):
                store.save(row(number))
            with pytest.raises(Exhausted, match="full") as caught:
                await store.flush()
            assert caught.value.where == str(path) and caught.value.remedy
            store.save(row(0, slot="later"))
            store._db.execute("PRAGMA max_page_count = 1073741823")
            await store.flush()

    run(fill())
    rows = on_disk(path).rows
    assert len(rows) == 200 and rows[0].slot == "later"


def test_close_reports_what_was_not_saved(path, caplog):
    async def fill():
        store = Store(path)
        store._db.execute(f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0]}")
        for number in range(200):
            store.save(row(number))
        with pytest.raises(JoeyError):
            await store.close()
        assert not store._thread.is_alive()

    run(fill())


def test_three_thousand_saves_take_the_event_loop_no_time(path):
    async def save():
        async with opened(path) as store:
            rows = [row(number, record=FULL) for number in range(3000)]
            begin = time.thread_time()
            for one in rows:
                store.save(one)
            spent = time.thread_time() - begin
            await store.flush()
            return spent

    assert run(save()) < 0.1
    assert len(on_disk(path).rows) == 3000
