"""A line on stderr that moves."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

_BAR = 24


class Progress:
    """How far joey.map is. Shown only on a terminal, or on a stream that was given."""

    def __init__(self, total: int, wanted: bool | TextIO = True) -> None:
        self._total, self._done, self.failed = total, 0, 0
        self._stream: TextIO | None = sys.stderr if isinstance(wanted, bool) else wanted
        if wanted is False or self._stream is None or (wanted is True and not self._stream.isatty()):
            self._stream = None
        self._begin = self._shown = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if self._stream is not None and (now - self._shown >= 0.1 or self._done == self._total):
            self._shown = now
            self._show(self._stream)

    def __enter__(self) -> Progress:
        if self._stream is not None:
            self._show(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._show(self._stream)
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, stream: TextIO) -> None:
        seconds = max(time.monotonic() - self._begin, 1e-6)
        filled = round(_BAR * self._done / self._total) if self._total else _BAR
        text = f"map [{'█' * filled}{'·' * (_BAR - filled)}] {self._done:,}/{self._total:,}"
        text += f"  {self._done / seconds:,.0f}/s"
        if self.failed:
            text += f"  {self.failed:,} failed"
        stream.write("\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        stream.flush()
