"""Is the server there, does it let us in, do programs run on it? For people: each answer with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from loopaid.config import CodeBeakerSection, Config
from loopaid.errors import ConfigError, ConnectionLost
from loopaid.model import Check, CheckState, Language
from loopaid.providers.base import StartFailed
from loopaid.providers.codebeaker.endpoint import ConnectFailed, ConnectTrouble, Endpoint, RpcFailed
from loopaid.providers.codebeaker.provider import open_codebeaker_provider, read_token
from loopaid.providers.codebeaker.session import BUILDS
from loopaid.providers.codebeaker.windows import REMOTES
from loopaid.wire.codebeaker import Initialized

STATUS_LINE_BYTES_MAX: Final = 4096
_ALIVE: Final = (200, 307, 308)
"""A server that has HTTPS as well sends everybody there who asks for its health."""
_FIXES: Final = {
    ConnectTrouble.UNREACHABLE: "start the server, or correct [codebeaker] url",
    ConnectTrouble.SILENT: "look at the server's log, and at what is between it and here; or raise connect_timeout_s",
    ConnectTrouble.TLS: "give the server a certificate for this host name that is trusted here (SSL_CERT_FILE names "
    "further authorities), or ws:// in [codebeaker] url if it speaks no TLS",
    ConnectTrouble.TOKEN: "put the bearer token that it wants into the file that [codebeaker] token_file names",
    ConnectTrouble.REFUSED: "the path in [codebeaker] url is /ws/jsonrpc behind whatever a proxy adds, which must let "
    "WebSockets through",
}


async def check_codebeaker(config: Config, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Nothing where neither [codebeaker] nor the default provider is configured. Each answer comes within
    connect_timeout_s. A server that does not work is a failure if batches run there that say nothing else."""
    section, needed = config.codebeaker, config.execution.provider == "codebeaker"
    if section == CodeBeakerSection() and not needed:
        return []
    bad = CheckState.FAIL if needed else CheckState.WARN
    try:
        endpoint = Endpoint(section.url, read_token(section.token_file, environ))
    except ConfigError as error:
        return [Check("codebeaker", bad, str(error), "let the daemon's user read it, and nobody else")]
    async with trio.open_nursery() as nursery:
        server = await _server(nursery, endpoint, section.connect_timeout_s, bad)
        nursery.cancel_scope.cancel()
    if server.state is not CheckState.OK:
        return [server]
    languages = [
        await _language(config, environ, language, bad if language is Language.PYTHON else CheckState.WARN)
        for language in REMOTES
        if language not in BUILDS  # which takes its time
    ]
    return [server, *languages]


async def _server(nursery: trio.Nursery, endpoint: Endpoint, timeout_s: float, bad: CheckState) -> Check:
    from loopaid.providers.codebeaker.connection import connect  # only who has a server pays for WebSockets

    name = "codebeaker"
    try:
        with trio.fail_after(timeout_s):
            health = await health_status(endpoint)
            connection = await connect(nursery, endpoint, timeout_s)
            result = await connection.call("initialize", {}, timeout_s=timeout_s)
            await connection.aclose()
        version = msgspec.json.decode(result, type=Initialized).server_capabilities.protocol_version
    except ConnectFailed as failure:
        return Check(name, bad, f"{endpoint.url}: {failure}", _FIXES[failure.trouble])
    except trio.TooSlowError:
        detail = f"{endpoint.url}: no answer within {timeout_s:g} s"
        return Check(name, bad, detail, _FIXES[ConnectTrouble.SILENT])
    except (ConnectionLost, RpcFailed, msgspec.DecodeError) as error:
        detail = f"{endpoint.url}: it does not answer as a CodeBeaker server does: {error}"
        return Check(name, bad, detail, "correct [codebeaker] url")
    detail = f"{endpoint.url} answers, protocol {version or 'unknown'}"
    if health not in _ALIVE:
        fix = "look at the server's log; behind a proxy, let /health/live through"
        return Check(name, CheckState.WARN, f"{detail}, but {endpoint.health_resource} with HTTP {health}", fix)
    return Check(name, CheckState.OK, f"{detail}, and is healthy")


async def health_status(endpoint: Endpoint) -> int:
    """What the server answers to a question for its health, as a status of HTTP. Raises ConnectFailed."""
    from loopaid.providers.codebeaker.connection import open_stream

    lines = [b"GET %s HTTP/1.1" % endpoint.health_resource.encode(), b"Host: " + endpoint.authority.encode()]
    lines += [name + b": " + value for name, value in endpoint.headers]
    request = b"\r\n".join([*lines, b"Connection: close", b"", b""])
    said = b""
    stream = await open_stream(endpoint)
    try:
        await stream.send_all(request)
        while b"\n" not in said and len(said) < STATUS_LINE_BYTES_MAX:
            part = await stream.receive_some(STATUS_LINE_BYTES_MAX)
            if not part:
                break
            said += part
    except trio.BrokenResourceError as error:
        raise ConnectFailed(f"the connection was lost: {error.__cause__ or error}") from None
    finally:
        await trio.aclose_forcefully(stream)
    protocol, status, *_ = [*said.split(maxsplit=2), b"", b""]
    if not protocol.startswith(b"HTTP/1.") or not status.isdigit():
        raise ConnectFailed("what listens there does not speak HTTP", ConnectTrouble.REFUSED)
    if status in (b"401", b"403", b"407"):
        raise ConnectFailed.by_status("to tell its health", int(status))
    return int(status)


async def _language(config: Config, environ: Mapping[str, str], language: Language, bad: CheckState) -> Check:
    """The provider says hello itself before it gives out a first session."""
    name, timeout_s = f"codebeaker_{language}", config.codebeaker.connect_timeout_s
    runtime = getattr(config.codebeaker.runtime_mapping, language)
    fix = f"install what it needs on the server, or choose another runtime in [codebeaker.runtime_mapping] {language}"
    began = trio.current_time()
    async with open_codebeaker_provider(config, environ=environ) as provider:
        try:
            with trio.fail_after(timeout_s):
                session = await provider.start(language, "hello")
                await session.aclose()
        except StartFailed as failure:
            return Check(name, bad, f"{runtime}: {failure}", fix)
        except trio.TooSlowError:
            return Check(name, bad, f"{runtime}: a program did not say hello within {timeout_s:g} s", fix)
        took_ms = (trio.current_time() - began) * 1000
        version = provider.versions()[language]
    return Check(name, CheckState.OK, f"{language} {version} on {runtime}, says hello after {took_ms:.0f} ms")
