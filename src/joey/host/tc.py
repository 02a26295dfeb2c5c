"""Bandwidth: a token bucket (tc-tbf(8)) on each end of a sandbox's veth pair.

What leaves our end enters the sandbox; what leaves the inner end leaves the sandbox. The inner end's network
namespace is owned by the host's user namespace, so nobody inside can take the bucket off, and no ifb, mirred or
police action (absent on kernels without NET_ACT_POLICE) is needed.
"""

from __future__ import annotations

import struct

from joey.host.netlink import F_CREATE, F_REPLACE, Message, attribute, nested, text

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT = 0xFFFFFFFF
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_TICKS_PER_US = 15.625  # PSCHED_TICKS2NS(x) is x << 6 (include/net/pkt_sched.h)
_TOP = (1 << 32) - 1


def limit(index: int, rate: int, mtu: int = 1500) -> Message:
    """At most `rate` bytes a second out of link `index`. Bursts of 50 ms, at least one of the largest (GSO) packets;
    queues what fits into 200 ms more, drops the rest.
    """
    burst = min(max(rate // 20, 65536 + mtu), _TOP)
    queue = min(burst + max(rate // 5, 65536), _TOP)
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, _TOP))  # tc_ratespec, linklayer ethernet
    ticks = min(int(burst * 1e6 / rate * _TICKS_PER_US), _TOP)
    parameters = spec + struct.pack("=BBHhHI", 0, 0, 0, 0, 0, 0) + struct.pack("=III", queue, ticks, 0)
    options = attribute(_TBF_PARMS, parameters) + attribute(_TBF_BURST, struct.pack("=I", burst))
    if rate > _TOP:
        options += attribute(_TBF_RATE64, struct.pack("=Q", rate))
    body = _header(index) + text(_KIND, "tbf") + nested(_OPTIONS, options)
    return Message(_NEWQDISC, F_CREATE | F_REPLACE, body, f"bandwidth of link {index}")


def unlimit(index: int) -> Message:
    """Take the bucket off again. ENOENT where there is none."""
    return Message(_DELQDISC, 0, _header(index), f"bandwidth of link {index}")


def _header(index: int) -> bytes:
    return struct.pack("=BxxxiIII", 0, index, 0, _ROOT, 0)
