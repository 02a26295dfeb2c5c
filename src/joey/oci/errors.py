"""What joey-oci fails with. Every failure is one line on standard error and in the log, and exit status 1 (runc's)."""


class OciError(Exception):
    """Cannot be done; the text says what and why."""


class Invalid(OciError):
    """A property of config.json, or of a file like it, is wrong. The path as in the specification."""

    def __init__(self, path, why):
        super().__init__(f"invalid configuration: {path + ': ' if path else ''}{why}")
        self.path = path


class Unsupported(OciError):
    """Asked for, and not to be had here: refused rather than ignored."""
