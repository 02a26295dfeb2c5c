"""One guest for all tests of this directory; it boots in some five seconds."""

from collections.abc import Iterator

import pytest

from guest.vm import Guest, Unavailable


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    try:
        machine = Guest()
    except Unavailable as why:
        pytest.skip(str(why))
    with machine:
        yield machine
