"""JSON for the command line: the C half of Python's own `json`, without the modules that half drags in.

`import json` costs 7 ms because of `re` and `enum`, which is most of what a `joey run` spends before it has connected.
Where the C half is not there (another Python implementation), the ordinary module does the work.
"""

try:
    from _json import encode_basestring, make_scanner
except ImportError:  # pragma: no cover
    make_scanner = None


class _Context:
    """What `_json.make_scanner` reads its options from (json.decoder.JSONDecoder)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def parse_constant(text):
        raise ValueError(f"{text} is not JSON")


def loads(data):
    """The value of the JSON text `data` (bytes or str). Raises ValueError."""
    text = data.decode() if isinstance(data, (bytes, bytearray)) else data
    if make_scanner is None:  # pragma: no cover
        import json

        return json.loads(text)
    text = text.strip(" \t\n\r")
    try:
        value, end = make_scanner(_Context)(text, 0)
    except StopIteration:
        raise ValueError("no JSON value found") from None
    if end != len(text):
        raise ValueError(f"something follows the JSON value, at character {end}")
    return value


def dumps(value):
    """`value` (dict, list, tuple, str, int, float, bool, None) as compact JSON. Raises TypeError for anything else."""
    if make_scanner is None:  # pragma: no cover
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts: list[str] = []
    _write(value, parts.append)
    return "".join(parts)


def _write(value, put):
    if isinstance(value, str):
        put(encode_basestring(value))
    elif value is None:
        put("null")
    elif value is True or value is False:
        put("true" if value else "false")
    elif isinstance(value, int):
        put(int.__repr__(value))
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} cannot be said in JSON")
        put(float.__repr__(value))
    elif isinstance(value, dict):
        comma = "{"
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"JSON names are text, not {key!r}")
            put(comma + encode_basestring(key) + ":")
            _write(item, put)
            comma = ","
        put("}" if comma == "," else "{}")
    elif isinstance(value, (list, tuple)):
        comma = "["
        for item in value:
            put(comma)
            _write(item, put)
            comma = ","
        put("]" if comma == "," else "[]")
    else:
        raise TypeError(f"{type(value).__name__} cannot be said in JSON")


def pretty(value, indent=0):
    """`value` as JSON for people: two spaces a level."""
    pad = "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{dumps(key)}: {pretty(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * indent + "}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join(pad + pretty(item, indent + 1) for item in value) + "\n" + "  " * indent + "]"
    return dumps(value)
