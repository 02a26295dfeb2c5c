"""Requests to registries: where, as whom, and what to do when it does not work the first time.

aiohttp's client does HTTP/1.1, TLS, and proxies; this adds what registries need: authentication by challenge,
redirects that do not carry our credentials to another host, retries with back-off that honour Retry-After, and errors
that say which reference and which step.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
from yarl import URL

from joey._version import __version__
from joey.images import auth
from joey.images.config import Endpoint, RegistriesConfig, ssl_context
from joey.model.errors import ImageError, JoeyError, RegistryDenied, RegistryFailed

RETRIED = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_MAX_WAIT = 60.0
_FIRST_WAIT = 0.25
_MAX_ERROR = 1 << 16
_MAX_TOKEN = 1 << 20
_CONNECT_SECONDS = 15.0


class TryAgain(Exception):
    """It may work the next time. wait: seconds the server wants to be left alone, None if it did not say."""

    def __init__(self, error: JoeyError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class Http:
    """A pool of connections to one endpoint for work on one repository. Close it.

    scope: the token's, such as `repository:library/debian:pull`. known: who we are, else whoever is logged in.
    """

    def __init__(
        self, endpoint: Endpoint, config: RegistriesConfig, scopes: tuple[str, ...],
        known: auth.Credentials | None = None,
    ) -> None:  # fmt: skip
        self.endpoint, self.config, self.scopes = endpoint, config, scopes
        self._host = urlsplit(endpoint.base).netloc
        self._tls = ssl_context(endpoint.config)
        self._session: aiohttp.ClientSession | None = None
        self._authorization = ""
        self._credentials: auth.Credentials | bool | None = known or False
        self._token: auth.Token | None = None
        self._challenge: auth.Challenge | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=min(_CONNECT_SECONDS, self.config.timeout), sock_read=self.config.timeout
            )
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                auto_decompress=False,  # a blob's digest is that of the bytes as they are stored
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=self.config.parallel * 2, ttl_dns_cache=60),
                headers={"User-Agent": f"joey/{__version__}", "Accept-Encoding": "identity"},
                read_bufsize=1 << 20,
            )
        return self._session

    # --- one request -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        where: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        accept: tuple[int, ...] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a status in `accept`; its body has not been read.

        path: below the endpoint, or a whole URL. data: bytes, or a function that gives them anew for each try.
        Raises TryAgain for what may pass, RegistryDenied, ImageError (404), RegistryFailed; each names `where`.
        """
        url = path if "://" in path else self.endpoint.base + path
        try:
            response = await self._authorised(method, url, where, dict(headers or {}), data)
            try:
                if response.status not in accept:
                    await self._refuse(response, where)
                yield response
            finally:
                response.close() if not response.content.at_eof() else response.release()
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            message = f"{self._host} sent nothing for {self.config.timeout:g} s"
            raise TryAgain(RegistryFailed(where, message, "try again, or raise timeout in registries.toml")) from error
        except aiohttp.ClientSSLError as error:
            raise RegistryFailed(
                where, f"{self._host}: {_reason(error)}",
                'give its authority with ca = "…" in registries.toml, or insecure = true if it speaks plain HTTP',
            ) from error  # fmt: skip
        except aiohttp.ClientConnectorDNSError as error:
            raise RegistryFailed(where, f"{self._host}: the name cannot be resolved", "look at the name") from error
        except (aiohttp.ClientError, ConnectionError, OSError) as error:
            raise TryAgain(RegistryFailed(where, f"{self._host}: {_reason(error)}")) from error
        except ValueError as error:
            if isinstance(error, JoeyError):
                raise
            raise RegistryFailed(where, f"{self._host}: {error}") from error

    async def _authorised(
        self, method: str, url: str, where: str, headers: dict[str, str], data: Any
    ) -> aiohttp.ClientResponse:
        """As `_follow`, with a token or password once the registry asks for one."""
        if self._challenge is not None:
            await self._authorise(self._challenge, where)
        sent = self._authorization
        response = await self._follow(method, url, where, headers, data)
        if response.status != 401:
            return response
        asked = auth.challenges(response.headers.getall("WWW-Authenticate", []))
        wanted = next((one for kind in ("bearer", "basic") for one in asked if one.scheme == kind), None)
        if wanted is None or (sent and wanted.scheme == "basic"):
            return response
        response.close()
        if self._authorization == sent:  # else another request has just done it
            self._token = None
        await self._authorise(wanted, where)
        self._challenge = wanted
        return await self._follow(method, url, where, headers, data)

    async def _follow(
        self, method: str, url: str, where: str, headers: dict[str, str], data: Any
    ) -> aiohttp.ClientResponse:
        """The last answer of a chain of redirects. Credentials stay with their own host."""
        origin = _origin(url)
        for _ in range(_MAX_REDIRECTS):
            own = dict(headers)
            if self._authorization and _origin(url) == _origin(self.endpoint.base):
                own["Authorization"] = self._authorization
            response = await self._open().request(
                method,
                URL(url, encoded=True),
                headers=own,
                data=data() if callable(data) else data,
                allow_redirects=False,
                proxy=_proxy(url),
                ssl=self._tls if _origin(url) == _origin(self.endpoint.base) else True,
            )
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            there = urljoin(url, response.headers["Location"])
            response.close()
            if urlsplit(there).scheme not in ("http", "https") or (
                urlsplit(url).scheme == "https" and urlsplit(there).scheme == "http"
            ):
                raise RegistryFailed(where, f"{self._host} redirects from https to {there.partition('?')[0]}")
            url = there
        raise RegistryFailed(where, f"{self._host} redirects more than {_MAX_REDIRECTS} times (from {origin[1]})")

    async def _refuse(self, response: aiohttp.ClientResponse, where: str) -> NoReturn:
        """Raise what a status means."""
        status, said = response.status, await _said(response)
        text = f"{self._host} answers {status}" + (f": {said}" if said else f" {response.reason or ''}".rstrip())
        if status in (401, 403):
            who = "with the credentials it was given" if self._authorization else "without credentials"
            raise RegistryDenied(where, f"{text} ({who})", f"joey login {self.endpoint.auth}, or another account")
        if status == 404:
            raise ImageError(where, f"not found: {text}", "look at the name and the tag")
        error = RegistryFailed(where, text)
        if status in RETRIED:
            raise TryAgain(error, retry_after(response.headers.get("Retry-After", "")))
        raise error

    # --- who we are --------------------------------------------------------------------------------------------------

    async def _authorise(self, challenge: auth.Challenge, where: str) -> None:
        async with self._lock:
            if challenge.scheme == "bearer":
                if self._token is None or not self._token.usable:
                    self._token = await self._fetch_token(challenge, where)
                self._authorization = f"Bearer {self._token.value}"
                return
            known = await self._known()
            if known is None:
                raise RegistryDenied(
                    where, f"{self._host} wants a user name and password", f"joey login {self.endpoint.auth}"
                )
            self._authorization = known.basic()

    async def _known(self) -> auth.Credentials | None:
        if isinstance(self._credentials, bool):
            self._credentials = await auth.credentials(self.endpoint.auth)
        return self._credentials

    async def _fetch_token(self, challenge: auth.Challenge, where: str) -> auth.Token:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        ours = urlsplit(self.endpoint.base)
        if parts.scheme not in ("http", "https") or (parts.scheme == "http" and ours.scheme == "https"):
            raise RegistryFailed(where, f"{self._host} names {realm!r} as its token server")
        scopes = self.scopes or tuple(challenge.parameters.get("scope", "").split())
        service = challenge.parameters.get("service", "")
        known = await self._known()
        headers, form = {}, None
        fields = [("service", service)] if service else []
        if known is not None and known.identity:
            form = dict(
                fields, grant_type="refresh_token", refresh_token=known.identity, client_id="joey",
                scope=" ".join(scopes),
            )  # fmt: skip
        else:
            fields += [("scope", scope) for scope in scopes]
            if known is not None:
                fields.append(("account", known.username))
                headers["Authorization"] = known.basic()
        url = realm if form else f"{realm}{'&' if parts.query else '?'}{urlencode(fields)}"
        tls = self._tls if parts.netloc == ours.netloc or not self.endpoint.config.verify else True
        if self.endpoint.config.ca:
            tls = self._tls  # a private authority usually signs both
        response = await self._open().request(
            "POST" if form else "GET", URL(url, encoded=True), headers=headers, data=form, proxy=_proxy(url), ssl=tls,
            allow_redirects=False,
        )  # fmt: skip
        async with response:
            body = await response.content.read(_MAX_TOKEN)
            if response.status in (401, 403):
                wrong = "refuses the credentials" if known else "gives no token without credentials"
                raise RegistryDenied(where, f"{parts.netloc} {wrong}", f"joey login {self.endpoint.auth}")
            if response.status != 200:
                error = RegistryFailed(where, f"the token server {parts.netloc} answers {response.status}")
                if response.status in RETRIED:
                    raise TryAgain(error, retry_after(response.headers.get("Retry-After", "")))
                raise error
        return auth.token_of(body, f"token server {parts.netloc}")


async def attempts(work: Callable[[], Any], retries: int, progress: Callable[[], Any] | None = None) -> Any:
    """`await work()` until it does not raise TryAgain, at most `retries` more times, with growing pauses.

    progress: a value that changes when a try got further; the count of tries then starts anew. Raises what the last
    TryAgain carries.
    """
    count, before = 0, progress() if progress else None
    while True:
        try:
            return await work()
        except TryAgain as again:
            if progress and (now := progress()) != before:
                count, before = 0, now
            if count >= retries:
                raise again.error from again
            wait = min(_FIRST_WAIT * 2**count, 10.0) * random.uniform(0.5, 1.0)
            if again.wait is not None:
                if again.wait > _MAX_WAIT:
                    error = again.error
                    error.remedy = error.remedy or f"try again in {again.wait:.0f} s"
                    raise error from again
                wait = max(wait, again.wait)
            count += 1
            await asyncio.sleep(wait)


def retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3); None without one."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


async def _said(response: aiohttp.ClientResponse) -> str:
    """The messages of an error answer (distribution-spec, "Error Codes"), at most 300 characters."""
    try:
        value = json.loads(await response.content.read(_MAX_ERROR))
        found = [f"{one.get('code', '')} {one.get('message', '')}".strip() for one in value["errors"]]
        text = "; ".join(found)
    except (ValueError, KeyError, TypeError, AttributeError, aiohttp.ClientError, TimeoutError):
        return ""
    return "".join(char for char in text if char.isprintable())[:300]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, f"{parts.hostname}:{port}"


def _proxy(url: str) -> str | None:
    """The proxy of the environment for `url`: https_proxy, http_proxy, all_proxy, no_proxy; never for loopback."""
    from joey.images.config import is_loopback

    parts = urlsplit(url)
    proxies = getproxies_environment()
    if is_loopback(parts.netloc) or proxy_bypass_environment(parts.hostname or "", proxies):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _reason(error: BaseException) -> str:
    inner = getattr(error, "os_error", None) or error
    number = getattr(inner, "errno", None)
    if isinstance(number, int) and number > 0 and not isinstance(inner, ssl.SSLError):
        return os.strerror(number)  # asyncio says "Connect call failed" instead
    return str(inner) or type(error).__name__
