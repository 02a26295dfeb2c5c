"""What a handler gets as `context`: the attributes of AWS Lambda's and of Function Compute's."""

import time


class _Fields:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __repr__(self):
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__.strip('_')}({fields})"


class Function(_Fields):
    """Function Compute's context.function."""


class Service(_Fields):
    """Function Compute's context.service."""


class Identity(_Fields):
    """AWS Lambda's context.identity."""


class ClientContext(_Fields):
    """AWS Lambda's context.client_context."""


class Credentials:
    """Function Compute's context.credentials: there are none to hand out, and a lie would be found out late."""

    def _none(self):
        raise RuntimeError("this node hands out no cloud credentials: put your own into the function's secrets")

    access_key_id = access_key_secret = security_token = property(_none)

    def __repr__(self):
        return "Credentials(none)"


def _whole(seconds):
    """Clouds have timeouts of whole seconds, and handlers that print or compare them."""
    return int(seconds) if seconds == int(seconds) else seconds


class Context:
    """Of one invocation; of an initializer and a pre-stop hook with an empty request."""

    def __init__(self, static, head):
        self._end = time.monotonic() + head.get("t", static["timeout"])
        self._static = static
        self._head = head
        self.aws_request_id = self.request_id = head.get("id", "")
        self.function_name = static["name"]
        self.function_version = static["version"]
        self.invoked_function_arn = head.get("arn") or static["arn"]
        self.memory_limit_in_mb = static["memory_mb"]
        self.log_group_name = static["log_group"]
        self.log_stream_name = static["log_stream"]

    @property
    def client_context(self):
        """What the caller said of itself, None if nothing."""
        given = self._head.get("client_context")
        if not isinstance(given, dict):
            return None
        client = given.get("client")
        return ClientContext(
            client=_Fields(**client) if isinstance(client, dict) else None,
            custom=given.get("custom"),
            env=given.get("env"),
        )

    @property
    def identity(self):
        """Amazon Cognito's, if the caller gave one."""
        given = self._head.get("identity") or {}
        return Identity(
            cognito_identity_id=given.get("cognitoIdentityId"),
            cognito_identity_pool_id=given.get("cognitoIdentityPoolId"),
        )

    @property
    def function(self):
        """Function Compute: of the function."""
        static = self._static
        return Function(
            name=static["name"],
            handler=static["handler"],
            memory=static["memory_mb"],
            timeout=_whole(static["timeout"]),
            version=static["version"],
        )

    @property
    def service(self):
        """Function Compute before 3.0: of the service."""
        version = self._static["version"]
        return Service(name="", log_project="", log_store="", qualifier=version, version_id=version)

    credentials = Credentials()
    tenant_id = None
    retry_count = 0

    @property
    def account_id(self):
        """Of the function's owner."""
        return self._static["account"]

    @property
    def region(self):
        """The node's."""
        return self._static["region"]

    @property
    def trace_id(self):
        """X-Ray's, if the caller gave one."""
        return self._head.get("trace", "")

    def get_remaining_time_in_millis(self):
        """Until the instance is killed."""
        return max(0, int((self._end - time.monotonic()) * 1000))

    def log(self, message):
        """Print it."""
        print(message, end="" if isinstance(message, str) and message.endswith("\n") else "\n")

    def __repr__(self):
        return "Context(request_id={!r}, function_name={!r})".format(self.request_id, self.function_name)
