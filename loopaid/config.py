"""The configuration: what can be set, within which range, and where each value came from.

One TOML file, the first of: the option, $LOOPAID_CONFIG, $XDG_CONFIG_HOME/loopaid/loopaid.toml,
/etc/loopaid/loopaid.toml. Over it, one environment variable per key: LOOPAID_POOL__SESSIONS_MAX is
`pool.sessions_max`. Everything is checked when it is read; whatever does not fit is a ConfigError that names the
file or variable, the key and what was expected, because a misspelt limit that is silently ignored is no limit.

etc/loopaid.toml explains every key to the person who sets it. Sizes are bytes, times carry their unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import tomli
from msgspec import Meta, inspect

from loopaid.errors import ConfigError
from loopaid.model import MAX_CONCURRENCY, TIMEOUT_MS_MAX, Isolation, Language
from loopaid.places import xdg_home

SYSTEM_FILE: Final = Path("/etc/loopaid/loopaid.toml")

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_DAY_S: Final = 86_400

# Relative paths would depend on where the daemon happened to be started.
AbsolutePath = Annotated[str, Meta(pattern="^(/.*)?$", description='an absolute path, or "" for the default')]
FileMode = Annotated[
    str, Meta(pattern="^(0[0-7]{3})?$", description='an octal file mode such as "0660", or "" for the default')
]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
# One input or output always fits into one frame (16 MiB) beside what the program printed.
ValueBytes = Annotated[int, Meta(ge=1, le=8 * _MIB)]
CaptureBytes = Annotated[int, Meta(ge=0, le=_MIB)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file; its fields are the keys, their types the ranges."""


class DaemonSection(Section, frozen=True):
    state_dir: AbsolutePath = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: Annotated[float, Meta(ge=0, le=_DAY_S)] = 60.0
    recovery: Literal["resume", "hold", "fail"] = "resume"


class SocketSection(Section, frozen=True):
    path: AbsolutePath = ""
    mode: FileMode = ""
    group: str = "loopaid"
    admin_group: str = "loopaid-admin"
    connections_max: Count = 1024
    connections_per_uid_max: Count = 64
    requests_in_flight_max: Count = 256
    stalled_client_timeout_s: Annotated[float, Meta(ge=0.1, le=_DAY_S)] = 30.0


class LogSection(Section, frozen=True):
    durability: Literal["durable", "os"] = "durable"
    segment_bytes: Annotated[int, Meta(ge=_MIB, le=_GIB)] = 64 * _MIB
    retention_bytes: Annotated[int, Meta(ge=_MIB, le=1 << 60)] = 8 * _GIB
    retention_days: Annotated[float, Meta(ge=0.001, le=36_500)] = 30.0
    reserve_bytes: Annotated[int, Meta(ge=0, le=_GIB)] = 16 * _MIB


class ExecutionSection(Section, frozen=True):
    provider: Literal["local", "standard", "codebeaker"] = "local"
    isolation: Isolation = Isolation.SESSION
    timeout_ms: Annotated[int, Meta(ge=1, le=TIMEOUT_MS_MAX)] = 30_000
    attempts_max: Annotated[int, Meta(ge=1, le=100)] = 3


class BatchSection(Section, frozen=True):
    max_concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] = 10
    items_max: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 10_000_000
    queued_max: Count = 1000
    queued_per_uid_max: Count = 500
    bytes_per_uid_max: Annotated[int, Meta(ge=_MIB, le=1024 * _GIB)] = 4 * _GIB
    attached_grace_s: Annotated[float, Meta(ge=0, le=_DAY_S)] = 5.0


class SessionsSection(Section, frozen=True):
    size_max: Annotated[int, Meta(ge=1, le=1000)] = 20
    warm_min: Annotated[int, Meta(ge=0, le=1000)] = 0
    interpreter: AbsolutePath = ""


class LanguageSection(SessionsSection, frozen=True):
    environment: AbsolutePath = ""


class PoolSection(Section, frozen=True):
    sessions_max: Annotated[int, Meta(ge=1, le=1000)] = 20
    idle_timeout_s: Annotated[float, Meta(ge=0, le=30 * _DAY_S)] = 1800.0
    lifetime_max_s: Annotated[float, Meta(ge=1, le=30 * _DAY_S)] = 7200.0
    executions_max: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 1_000_000
    slice_ms: Annotated[int, Meta(ge=1, le=60_000)] = 100
    lease_wait_ms: Annotated[int, Meta(ge=0, le=TIMEOUT_MS_MAX)] = 30_000
    python: LanguageSection = LanguageSection(warm_min=1)
    javascript: LanguageSection = LanguageSection()
    go: SessionsSection = SessionsSection()
    csharp: SessionsSection = SessionsSection()

    def languages(self) -> dict[Language, SessionsSection]:
        sections = {name: getattr(self, name) for name in self.__struct_fields__}
        return {Language(name): each for name, each in sections.items() if isinstance(each, SessionsSection)}


class SandboxSection(Section, frozen=True):
    kind: Literal["bubblewrap", "none"] = "bubblewrap"
    bwrap: AbsolutePath = ""
    memory_bytes: Annotated[int, Meta(ge=16 * _MIB, le=1024 * _GIB)] = 512 * _MIB
    processes_max: Annotated[int, Meta(ge=1, le=32_768)] = 64
    files_max: Annotated[int, Meta(ge=64, le=65_536)] = 256
    tmp_bytes: Annotated[int, Meta(ge=4 * _KIB, le=1024 * _GIB)] = 64 * _MIB


class BuildSection(Section, frozen=True):
    directory: AbsolutePath = ""
    cache_bytes: Annotated[int, Meta(ge=_MIB, le=1024 * _GIB)] = _GIB
    at_once: Annotated[int, Meta(ge=1, le=1000)] = 2
    timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    memory_bytes: Annotated[int, Meta(ge=64 * _MIB, le=1024 * _GIB)] = 2 * _GIB
    tmp_bytes: Annotated[int, Meta(ge=_MIB, le=1024 * _GIB)] = _GIB


RemoteName = Annotated[str, Meta(min_length=1, max_length=100, description="the server's name for it")]


class LanguageMapping(Section, frozen=True):
    python: RemoteName = "python"
    javascript: RemoteName = "javascript"
    go: RemoteName = "go"


class RuntimeMapping(Section, frozen=True):
    python: Literal["Docker", "Python"] = "Docker"
    javascript: Literal["Docker", "Deno", "Bun", "NodeJs"] = "Docker"


class CodeBeakerSection(Section, frozen=True):
    url: Annotated[str, Meta(pattern="^wss?://[^/]+", description='a URL such as "wss://host:443/ws/jsonrpc"')] = (
        "ws://localhost:5000/ws/jsonrpc"
    )
    connect_timeout_s: Annotated[float, Meta(ge=0.1, le=600)] = 10.0
    session_idle_minutes: Annotated[int, Meta(ge=1, le=1440)] = 30
    session_lifetime_minutes: Annotated[int, Meta(ge=1, le=1440)] = 120
    memory_mb: Annotated[int, Meta(ge=16, le=1_048_576)] = 512
    cpu_shares: Annotated[int, Meta(ge=2, le=262_144)] = 1024
    token_file: AbsolutePath = ""
    rerun_uncertain: bool = True
    language_mapping: LanguageMapping = LanguageMapping()
    runtime_mapping: RuntimeMapping = RuntimeMapping()


class LimitsSection(Section, frozen=True):
    input_bytes_max: ValueBytes = _MIB
    output_bytes_max: ValueBytes = _MIB
    stdout_bytes_max: CaptureBytes = 64 * _KIB
    stderr_bytes_max: CaptureBytes = 64 * _KIB
    source_bytes_max: ValueBytes = _MIB


class Config(Section, frozen=True):
    daemon: DaemonSection = DaemonSection()
    socket: SocketSection = SocketSection()
    log: LogSection = LogSection()
    execution: ExecutionSection = ExecutionSection()
    batch: BatchSection = BatchSection()
    pool: PoolSection = PoolSection()
    sandbox: SandboxSection = SandboxSection()
    build: BuildSection = BuildSection()
    limits: LimitsSection = LimitsSection()
    codebeaker: CodeBeakerSection = CodeBeakerSection()


class LoadedConfig(msgspec.Struct, frozen=True):
    """`origins` tells for every key where its value came from: "default", a file, or an environment variable."""

    config: Config
    origins: dict[str, str]


S = TypeVar("S", bound=Section)


def load_config(path: Path | None, environ: Mapping[str, str], *, system_file: Path = SYSTEM_FILE) -> LoadedConfig:
    """Read the first configuration file there is, lay the environment over it and check all of it.

    A file named by `path` or $LOOPAID_CONFIG must exist; the two usual places may be empty. Raises ConfigError.
    """
    values: dict[str, object] = {}
    origins = dict.fromkeys(_KEYS, "default")
    file, text = _read_file(path, environ, system_file)
    for key, value in _flatten(_parse(file, text), file):
        values[key] = _checked(key, value, origin=str(file), strict=True)
        origins[key] = str(file)
    for variable, key in _overrides(environ):
        values[key] = _checked(key, environ[variable], origin=variable, strict=False)
        origins[key] = variable
    config = with_values(Config(), values)
    _check_warm_sessions_fit(config, origins)
    return LoadedConfig(config, origins)


def changes(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, with both."""
    values = {key: value for key, _, value in _leaves(after)}
    return {key: (value, values[key]) for key, _, value in _leaves(before) if value != values[key]}


def effective(config: Config) -> dict[str, object]:
    """Every key with the value in force, as JSON types, in the order of etc/loopaid.toml."""
    return {key: msgspec.to_builtins(value) for key, _, value in _leaves(config)}


# Reading --------------------------------------------------------------------------------------------------------


def _read_file(path: Path | None, environ: Mapping[str, str], system_file: Path) -> tuple[Path, bytes]:
    if path is not None:
        required, places = True, [path]
    elif named := environ.get("LOOPAID_CONFIG"):
        required, places = True, [Path(named)]
    else:
        home = xdg_home(environ, "XDG_CONFIG_HOME", ".config")
        required, places = False, [home / "loopaid" / "loopaid.toml", system_file] if home else [system_file]
    for place in places:
        try:
            return place, place.read_bytes()
        except OSError as error:
            if required or not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise ConfigError(f"{place}: cannot be read: {error.strerror}") from error
    return system_file, b""


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return tomli.loads(text.decode())
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from error


def _flatten(table: dict[str, Any], file: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        key = prefix + name
        if key in _KEYS:
            yield key, value
        elif key not in _SECTIONS:
            raise ConfigError(f"{file}: unknown key {key}: {_suggestion(key)}")
        elif isinstance(value, dict):
            yield from _flatten(value, file, key + ".")
        else:
            raise ConfigError(f"{file}: {key} must be a table, written [{key}], not {value!r}")


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    # Without a double underscore it is not a key: $LOOPAID_CONFIG and $LOOPAID_SOCKET are paths.
    for variable in environ:
        if variable.startswith("LOOPAID_") and "__" in variable:
            key = variable.removeprefix("LOOPAID_").lower().replace("__", ".")
            if key not in _KEYS:
                raise ConfigError(f"{variable}: unknown key {key}: {_suggestion(key)}")
            yield variable, key


def _suggestion(unknown: str) -> str:
    import difflib  # 6 ms that every client would pay, needed only for this message

    known = [name for name in [*_KEYS, *_SECTIONS] if not unknown.startswith(name + ".")]
    if near := difflib.get_close_matches(unknown, known, n=1):
        return f"did you mean {near[0]}?"
    parent = unknown.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    return f"expected one of {', '.join(siblings or _SECTIONS)}"


# Checking -------------------------------------------------------------------------------------------------------


def _checked(key: str, value: object, *, origin: str, strict: bool) -> object:
    """Convert to the key's type. Not strict: a number may be written as text, as in the environment it must."""
    try:
        return msgspec.convert(value, _KEYS[key], strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {key} must be {_expected(_KEYS[key])}, not {value!r}") from error


def _expected(type_: Any) -> str:
    match inspect.type_info(type_):
        case inspect.Metadata(extra_json_schema={"description": str(words)}):
            return words
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(repr, values))
        case inspect.EnumType(cls=members):
            return "one of " + ", ".join(repr(str(member.value)) for member in members)
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number from {low} to {high}"
        case _:
            return "text in quotes"


def _check_warm_sessions_fit(config: Config, origins: Mapping[str, str]) -> None:
    pool = config.pool
    for language, section in pool.languages().items():
        if section.warm_min > min(pool.sessions_max, section.size_max):
            key = f"pool.{language}"
            raise ConfigError(
                f"{origins[f'{key}.warm_min']}: {key}.warm_min must not exceed {key}.size_max "
                f"({section.size_max}) and pool.sessions_max ({pool.sessions_max}), not {section.warm_min}"
            )


# The table of keys, derived from the classes above ---------------------------------------------------------------


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, object]]:
    """Every key below a section: its dotted name, its type, its value."""
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type, value


def with_values(section: S, values: Mapping[str, object], prefix: str = "") -> S:
    """The same section with other values for some keys, which are named from the top."""
    changed: dict[str, Any] = {}
    for name in section.__struct_fields__:
        key, value = prefix + name, getattr(section, name)
        if isinstance(value, Section):
            changed[name] = with_values(value, values, key + ".")
        elif key in values:
            changed[name] = values[key]
    return msgspec.structs.replace(section, **changed)


_KEYS: Final = {key: type_ for key, type_, _ in _leaves(Config())}
_SECTIONS: Final = tuple(dict.fromkeys(key[:end] for key in _KEYS for end, char in enumerate(key) if char == "."))
