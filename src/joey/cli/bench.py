"""`joey bench`: joey.bench has its own options."""


def bench(words):
    """Hand over."""
    from joey.bench import main

    return main(words)


COMMANDS = {
    "bench": {
        "usage": "elastic|density|flat|latency|exec|churn|chaos|soak|pull|service|… [OPTIONS]",
        "summary": "Measure launches, density and latency on this machine",
        "text": "joey bench --help says more.",
        "options": (),
        "raw": True,
        "run": bench,
    }
}
