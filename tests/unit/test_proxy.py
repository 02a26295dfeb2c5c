"""The reverse proxy between real sockets of the loopback: passing on, and what clients and sandboxes try against it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from joey.network.proxy import State
from proxy_lab import ID, OTHER, echo, head_of, lab, problem, run, says


def test_one_after_the_other_on_kept_connections() -> None:
    async def main() -> None:
        async with lab(echo) as net:
            reader, writer = await net.open()
            for _ in range(5):
                writer.write(net.request(b"X-Forwarded-For: 9.9.9.9", b"Connection: X-Secret", b"X-Secret: y"))
                assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
                seen = await head_of(reader)
                assert b"Host: " + net.host in seen and b"X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\n" in seen
                assert b"X-Secret" not in seen and b"X-Forwarded-Host: " + net.host in seen
            writer.close()
            assert net.door.made == 1 and net.door.holds == 5 and net.proxy.requests == 5
            await net.until(lambda: not net.proxy.clients)
            assert net.proxy.pool.count == 1 and net.door.held == 0

    run(main())


async def apart(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Head and body by two writes, and the kernel may keep the second back until the first is acknowledged."""
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    while True:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        await asyncio.sleep(0)
        writer.write(b"body")


def test_programs_that_send_head_and_body_apart_do_not_wait_for_delayed_acknowledgements() -> None:
    async def main() -> None:
        async with lab(apart) as net:
            reader, writer = await net.open()
            times = []
            for _ in range(40):
                begun = time.monotonic()
                writer.write(net.request())
                await head_of(reader)
                assert await reader.readexactly(4) == b"body"
                times.append(time.monotonic() - begun)
            writer.close()
            assert sorted(times)[20] < 0.03  # Linux delays them by 40 ms at least

    run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        async with lab(echo) as net:
            paths = [b"/%d" % number for number in range(50)]
            data = b"".join(net.request(first=b"GET %b HTTP/1.1" % path) for path in paths)
            answer = await net.ask(data + b"\r\n" + net.request(b"Connection: close", first=b"GET /end HTTP/1.1"))
            found = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"GET ")]
            assert found == [*paths, b"/end"] and net.door.made == 1

    run(main())


def test_large_bodies_both_ways_at_the_pace_of_the_slower() -> None:
    size = 40 << 20

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert b"Transfer-Encoding: chunked" in head
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            line = await reader.readuntil(b"\r\n")
            data = await reader.readexactly(int(line, 16) + 2)
            writer.write(line + data)
            await writer.drain()
            if line == b"0\r\n":
                return

    async def main() -> None:
        async with lab(mirror) as net:
            reader, writer = await net.open()
            writer.write(net.request(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.1"))

            async def send() -> None:
                for _ in range(size >> 16):
                    writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                    await writer.drain()
                writer.write(b"0\r\n\r\n")

            sending = asyncio.ensure_future(send())
            assert b"chunked" in await head_of(reader)
            await asyncio.sleep(0.05)  # nobody reads: it must not all be held here
            client = next(iter(net.proxy.clients))
            assert client.transport.get_write_buffer_size() < 2 << 20
            assert not sending.done()
            got = 0
            while count := int(await reader.readuntil(b"\r\n"), 16):
                got += len(await reader.readexactly(count + 2)) - 2
            await sending
            assert got == size
            writer.close()

    run(main())


def test_events_are_not_held_back() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for number in range(3):
                writer.write(b"data: %d\n\n" % number)
                await go.wait()
                go.clear()

        async with lab(events) as net:
            reader, writer = await net.open()
            writer.write(net.request())
            assert b"Connection: close" in await head_of(reader)
            for number in range(3):
                assert await reader.readuntil(b"\n\n") == b"data: %d\n\n" % number
                go.set()
            assert await reader.read() == b""
            writer.close()

    run(main())


def test_continue_and_early_hints() -> None:
    async def main() -> None:
        async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert b"Expect: 100-continue" in await head_of(reader)
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(4)
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\n" + body)
            await reader.read()

        async with lab(waits) as net:
            reader, writer = await net.open()
            writer.write(net.request(b"Expect: 100-continue", b"Content-Length: 4", first=b"PUT / HTTP/1.1"))
            assert b"103 Early Hints\r\nLink" in await head_of(reader)
            assert b"100 Continue" in await head_of(reader)
            writer.write(b"body")
            assert b"201 Created" in await head_of(reader)
            assert await reader.readexactly(4) == b"body"
            writer.close()

    run(main())


def test_an_answer_before_the_body_ends_the_connection() -> None:
    async def main() -> None:
        full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
        async with lab(says(full, stay=True)) as net:
            asked = net.request(b"Content-Length: 1000000", first=b"POST / HTTP/1.1")
            answer = await net.ask(asked + bytes(1000) + net.request())
            assert answer.count(b"HTTP/1.1") == 1 and answer.endswith(b"no") and b"Connection: close" in answer

    run(main())


def test_upgrade_is_a_tunnel() -> None:
    async def main() -> None:
        async def socketed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert b"Upgrade: websocket" in await head_of(reader)
            await asyncio.sleep(0.01)
            assert not reader._buffer  # type: ignore[attr-defined]  # nothing before 101
            writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
            while data := await reader.read(1 << 16):
                writer.write(data.upper())
                await writer.drain()
            writer.write(b"bye")

        async with lab(socketed) as net:
            reader, writer = await net.open()
            writer.write(net.request(b"Connection: Upgrade", b"Upgrade: websocket") + b"early")
            assert b"Upgrade: websocket" in await head_of(reader)
            assert await reader.readexactly(7) == b"hiEARLY"
            for _ in range(3):
                writer.write(b"GET /x HTTP/1.1\r\n\r\n")
                assert await reader.readexactly(19) == b"GET /X HTTP/1.1\r\n\r\n"
            assert net.door.held == 1
            writer.write_eof()
            assert await reader.read() == b"bye"
            writer.close()
            await net.until(lambda: net.door.held == 0)
            assert net.proxy.pool.count == 0

    run(main())


def test_old_clients_get_no_chunks() -> None:
    async def main() -> None:
        text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        async with lab(says(text)) as net:
            answer = await net.ask(net.request(first=b"GET / HTTP/1.0"))
            assert answer.endswith(b"\r\n\r\nabcde") and b"chunked" not in answer
            answer = await net.ask(net.request(b"Connection: close"))
            assert answer.endswith((b"5\r\nabcde\r\n0\r\n\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))

    run(main())


def test_where_nothing_answers() -> None:
    async def main() -> None:
        async with lab(echo) as net:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                closed = taken.getsockname()[1]
            answer = await net.ask(net.request(host=f"{closed}-{ID}.localhost".encode()))
            assert problem(answer) == (502, "port-closed")
            answer = await net.ask(net.request(host=f"{net.inner}-{OTHER}.localhost".encode()))
            assert problem(answer) == (404, "not-found")
            assert problem(await net.ask(net.request(host=b"localhost"))) == (404, "no-such-host")
            bare = await net.ask(net.request(first=b"HEAD / HTTP/1.1", host=b"localhost"))
            assert bare.startswith(b"HTTP/1.1 404") and bare.endswith(b"\r\n\r\n")
            assert net.proxy.refused == {"port-closed": 1, "not-found": 1, "no-such-host": 2}

    run(main())


@pytest.mark.parametrize(
    "hidden",
    [
        b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden",
        b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nGET /hidden HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n3;\n\r\nabc\r\nGET /hidden HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: %b\r\nContent-Length: 1\r\nContent-Length: 0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n",
    ],
)
def test_nothing_is_smuggled(hidden: bytes) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                seen.append(data)

        async with lab(record) as net:
            answer = await net.ask(hidden % net.host)
            assert answer.count(b"HTTP/1.1 ") == 1 and problem(answer)[0] == 400
        assert b"hidden" not in b"".join(seen)

    run(main())


def test_a_second_request_goes_where_its_own_head_says() -> None:
    async def main() -> None:
        async with lab(echo) as net:
            other = net.request(b"Connection: close", host=f"{net.inner}-{OTHER}.localhost".encode())
            answer = await net.ask(net.request() + other)
            assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 404" in answer and OTHER.encode() in answer
            assert net.door.holds == 1

    run(main())


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\0" * (40 << 10),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"",
    ],
)
def test_garbage_of_a_sandbox(text: bytes) -> None:
    async def main() -> None:
        async with lab(says(text)) as net:
            answer = await net.ask(net.request(b"Connection: close"))
            while answer.startswith(b"HTTP/1.1 100"):
                answer = answer.partition(b"\r\n\r\n")[2]
            assert problem(answer)[0] == 502

    run(main())


def test_headers_without_end_in_small_pieces() -> None:
    async def main() -> None:
        async with lab(says(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 4000 + b"\r\n"] * 30)) as net:
            assert problem(await net.ask(net.request()))[0] == 502

    run(main())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b"ab"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabZZ", b""),
    ],
)
def test_a_sandbox_that_closes_within_its_answer(text: bytes, kept: bytes) -> None:
    async def main() -> None:
        async with lab(says(text)) as net:
            with contextlib.suppress(ConnectionResetError):
                answer = await net.ask(net.request())
                assert kept in answer and not answer.endswith(b"0\r\n\r\n")
            assert net.proxy.pool.count == 0

    run(main())


def test_what_comes_behind_an_answer_is_nobodys() -> None:
    """Else the next client would get an answer that a sandbox made up for it beforehand."""

    async def main() -> None:
        twice = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        async with lab(says(twice, stay=True)) as net:
            for _ in range(2):
                reader, writer = await net.open()
                writer.write(net.request())
                await head_of(reader)
                assert await reader.readexactly(1) == b"1"
                writer.close()
            assert net.door.made == 2

        late: list[asyncio.StreamWriter] = []

        async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            late.append(writer)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
            await reader.read()

        async with lab(later) as net:
            reader, writer = await net.open()
            writer.write(net.request())
            await head_of(reader)
            await reader.readexactly(1)
            late[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await asyncio.sleep(0.01)
            writer.write(net.request())
            await head_of(reader)
            assert await reader.readexactly(1) == b"1" and net.door.made == 2
            writer.close()

    run(main())


def test_a_kept_connection_that_has_ended_is_not_used() -> None:
    async def main() -> None:
        once = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
        async with lab(says(once)) as net:  # closes after each answer without saying so
            reader, writer = await net.open()
            for _ in range(5):
                writer.write(net.request(b"Content-Length: 0", first=b"POST / HTTP/1.1"))
                assert b"200 OK" in await head_of(reader)
                await reader.readexactly(1)
                await asyncio.sleep(0.01)
            writer.close()
            assert net.door.made == 5

    run(main())


def test_what_can_be_asked_twice_is_asked_again() -> None:
    async def main() -> None:
        count = 0

        async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % count)
            await head_of(reader)  # the second one gets no answer

        async with lab(leaves) as net:
            reader, writer = await net.open()
            for number in (b"1", b"2", b"3"):
                writer.write(net.request())
                assert b"200" in await head_of(reader)
                assert await reader.readexactly(1) == number
            writer.write(net.request(b"Content-Length: 0", first=b"POST / HTTP/1.1"))
            assert problem(await reader.read()) == (502, "no-answer")
            writer.close()

    run(main())


def test_slow_and_large_heads() -> None:
    async def main() -> None:
        async with lab(echo, head_timeout=0.1, idle_timeout=0.1) as net:
            idle, idle_writer = await net.open()
            slow, slow_writer = await net.open()
            slow_writer.write(b"GET / HTTP/1.1\r\n")
            body, body_writer = await net.open()
            body_writer.write(net.request(b"Content-Length: 5", first=b"POST / HTTP/1.1") + b"1")
            for data in (b"GET / HTTP/1.1\r\nX: " + b"y" * (33 << 10), b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000):
                assert problem(await net.ask(data)) == (431, "head-too-large")
            many = net.request(*[b"X: y"] * 200)
            assert problem(await net.ask(many)) == (431, "head-too-large")
            trickle = 0
            with contextlib.suppress(ConnectionError, TimeoutError):
                while not slow.at_eof() and trickle < 3000:
                    slow_writer.write(b"X: y\r\n"[trickle % 6 :][:1])
                    trickle += 1
                    await asyncio.wait_for(slow.read(1), 0.005) if trickle % 3 == 0 else await slow_writer.drain()
            assert await asyncio.wait_for(idle.read(), 5) == b""
            await net.until(lambda: not any(one.state is State.HEAD for one in net.proxy.clients))
            assert b"200 OK" in await head_of(body)  # echo does not wait for bodies
            for writer in (idle_writer, slow_writer, body_writer):
                writer.close()
            await net.until(lambda: not net.proxy.clients)

    run(main())


def test_a_thousand_idle_connections_and_one_too_many() -> None:
    async def main() -> None:
        async with lab(echo, connections=1000) as net:
            socks = []
            try:
                for _ in range(1000):
                    sock = socket.socket()
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", net.port))
                    socks.append(sock)
                await net.until(lambda: len(net.proxy.clients) == 1000)
                answer = await net.ask(net.request(b"Connection: close"))
                assert answer.startswith(b"HTTP/1.1 200")
                assert socks[0].recv(1) == b""  # the one idle for longest made room
                with pytest.raises(BlockingIOError):
                    socks[500].recv(1)
            finally:
                for sock in socks:
                    sock.close()

    run(main())


def test_a_client_that_leaves_is_noticed_inside() -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            assert await reader.read() == b""
            left.set()

        async with lab(silent) as net:
            _, writer = await net.open()
            writer.write(net.request())
            await net.until(lambda: net.door.held == 1)
            writer.close()
            await asyncio.wait_for(left.wait(), 5)
            await net.until(lambda: net.door.held == 0)

    run(main())


def test_tokens_are_wanted_and_not_shown_inside() -> None:
    token = "a-token-of-some-length"

    async def main() -> None:
        async with lab(echo) as net:
            net.door.token = token
            close = b"Connection: close"
            assert problem(await net.ask(net.request(close))) == (401, "access-token")
            assert problem(await net.ask(net.request(close, b"X-Access-Token: x"))) == (401, "access-token")
            hidden = net.request(b"X-Access-Token : " + token.encode())
            assert problem(await net.ask(hidden))[0] == 400
            assert net.door.holds == 0
            # One that was let in opens the door for itself only, on the same connection too.
            answer = await net.ask(net.request(b"X-Access-Token: " + token.encode()) + net.request(close))
            assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 401" in answer and token.encode() not in answer
            link = b"GET /page?access_token=%b HTTP/1.1" % token.encode()
            page = await net.ask(net.request(b"Accept: text/html", first=link))
            assert page.startswith(b"HTTP/1.1 303") and b"Location: /page\r\n" in page and b"HttpOnly" in page
            cookie = page.split(b"Set-Cookie: ")[1].split(b";")[0]
            answer = await net.ask(net.request(close, b"Cookie: " + cookie))
            assert answer.startswith(b"HTTP/1.1 200") and token.encode() not in answer

    run(main())
