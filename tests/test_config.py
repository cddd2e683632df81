from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli

from loopaid.config import (
    Config,
    LanguageSection,
    LoadedConfig,
    effective,
    load_config,
)
from loopaid.errors import ConfigError
from loopaid.model import BatchOptions, Isolation

SHIPPED = Path(__file__).parents[1] / "etc" / "loopaid.toml"


def read(tmp_path: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    file = tmp_path / "loopaid.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, environ or {})


def complaint(tmp_path: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> str:
    """What the ConfigError says, with the file's name shortened."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, environ)
    return str(caught.value).replace(str(tmp_path) + "/", "")


# Values and where they come from


def test_without_file_and_environment_everything_is_default(tmp_path: Path) -> None:
    loaded = load_config(None, {}, system_file=tmp_path / "none.toml")
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == set(effective(loaded.config))


def test_a_file_changes_only_the_keys_it_names(tmp_path: Path) -> None:
    loaded = read(tmp_path, "[pool]\nsessions_max = 7\n[pool.python]\nsize_max = 3\n[batch]\nattached_grace_s = 2\n")
    before = effective(Config())
    changed = {key: value for key, value in effective(loaded.config).items() if value != before[key]}
    assert changed == {"pool.sessions_max": 7, "pool.python.size_max": 3, "batch.attached_grace_s": 2.0}
    origins = {key for key, origin in loaded.origins.items() if origin == str(tmp_path / "loopaid.toml")}
    assert origins == set(changed)
    assert loaded.config.pool.python == LanguageSection(size_max=3, warm_min=1)


def test_a_variable_wins_over_the_file_and_says_so(tmp_path: Path) -> None:
    environ = {"LOOPAID_POOL__PYTHON__SIZE_MAX": "4", "LOOPAID_BATCH__ATTACHED_GRACE_S": "0.5"}
    loaded = read(tmp_path, "[pool.python]\nsize_max = 3\n", environ)
    assert loaded.config.pool.python.size_max == 4
    assert loaded.config.batch.attached_grace_s == 0.5
    assert loaded.origins["pool.python.size_max"] == "LOOPAID_POOL__PYTHON__SIZE_MAX"


def test_every_key_can_be_set_by_its_variable() -> None:
    defaults = effective(Config())
    environ = {"LOOPAID_" + key.upper().replace(".", "__"): str(value) for key, value in defaults.items()}
    loaded = load_config(None, environ, system_file=Path("/nowhere/at/all"))
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == set(environ)


def test_variables_without_a_double_underscore_are_not_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "", {"LOOPAID_SOCKET": "/s", "LOOPAID_POOL": "x", "PATH": "/bin"}).config == Config()


def test_values_have_the_types_of_the_model(tmp_path: Path) -> None:
    config = read(tmp_path, '[execution]\nisolation = "item"\n').config
    assert config.execution.isolation is Isolation.ITEM
    assert effective(config)["execution.isolation"] == "item"


def test_defaults_are_acceptable_options_of_a_batch() -> None:
    config = Config()
    options = BatchOptions(
        max_concurrency=config.batch.max_concurrency,
        timeout_ms=config.execution.timeout_ms,
        isolation=config.execution.isolation,
        provider=config.execution.provider,
    )
    options.check()
    assert options == BatchOptions()


# Which file


def test_the_first_file_in_the_order_wins(tmp_path: Path) -> None:
    places = {
        "option": tmp_path / "option.toml",
        "variable": tmp_path / "variable.toml",
        "user": tmp_path / "config" / "loopaid" / "loopaid.toml",
        "home": tmp_path / "home" / ".config" / "loopaid" / "loopaid.toml",
        "system": tmp_path / "system.toml",
    }
    for number, file in enumerate(places.values(), start=1):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"[pool]\nsessions_max = {number}\n")

    def chosen(path: Path | None = None, **environ: str) -> int:
        return load_config(path, environ, system_file=places["system"]).config.pool.sessions_max

    home, xdg = str(tmp_path / "home"), str(tmp_path / "config")
    named = str(places["variable"])
    assert chosen(places["option"], LOOPAID_CONFIG=named, XDG_CONFIG_HOME=xdg, HOME=home) == 1
    assert chosen(LOOPAID_CONFIG=named, XDG_CONFIG_HOME=xdg, HOME=home) == 2
    assert chosen(XDG_CONFIG_HOME=xdg, HOME=home) == 3
    assert chosen(HOME=home) == 4
    assert chosen(XDG_CONFIG_HOME="config", HOME=home) == 4
    assert chosen(HOME=str(tmp_path / "elsewhere")) == 5
    assert chosen() == 5


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    expected = f"{missing}: cannot be read: No such file or directory"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(missing, {})
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(None, {"LOOPAID_CONFIG": str(missing)})


def test_a_file_that_exists_and_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(None, {}, system_file=tmp_path)


# What is refused, and in which words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pool]\nsession_max = 3", "unknown key pool.session_max: did you mean pool.sessions_max?"),
        ("[pools]\n", "unknown key pools: did you mean pool?"),
        ("[pool.pyton]\nsize_max = 3", "unknown key pool.pyton: did you mean pool.python?"),
        (
            "[log]\nzzz = 3",
            "unknown key log.zzz: expected one of log.durability, log.segment_bytes, log.retention_bytes, "
            "log.retention_days, log.reserve_bytes",
        ),
        (
            "[zzz]\n",
            "unknown key zzz: expected one of daemon, socket, log, execution, batch, pool, sandbox, build, limits, "
            "codebeaker",
        ),
        ("pool = 3", "pool must be a table, written [pool], not 3"),
        ('[pool]\nsessions_max = "3"', "pool.sessions_max must be a whole number from 1 to 1000, not '3'"),
        ("[pool]\nsessions_max = 3.0", "pool.sessions_max must be a whole number from 1 to 1000, not 3.0"),
        ("[pool]\nsessions_max = true", "pool.sessions_max must be a whole number from 1 to 1000, not True"),
        ("[pool]\nsessions_max = 0", "pool.sessions_max must be a whole number from 1 to 1000, not 0"),
        ("[batch]\nmax_concurrency = 101", "batch.max_concurrency must be a whole number from 1 to 100, not 101"),
        (
            "[limits]\noutput_bytes_max = 8_388_609",
            "limits.output_bytes_max must be a whole number from 1 to 8388608, not 8388609",
        ),
        ("[daemon]\ndrain_timeout_s = nan", "daemon.drain_timeout_s must be a number from 0 to 86400, not nan"),
        ("[daemon]\ndrain_timeout_s = inf", "daemon.drain_timeout_s must be a number from 0 to 86400, not inf"),
        ("[daemon]\ndrain_timeout_s = -1", "daemon.drain_timeout_s must be a number from 0 to 86400, not -1"),
        ('[log]\ndurability = "none"', "log.durability must be one of 'durable', 'os', not 'none'"),
        (
            '[execution]\nisolation = "Item"',
            "execution.isolation must be one of 'session', 'item', 'process', not 'Item'",
        ),
        (
            "[socket]\nmode = 432",
            'socket.mode must be an octal file mode such as "0660", or "" for the default, not 432',
        ),
        (
            '[socket]\nmode = "0668"',
            'socket.mode must be an octal file mode such as "0660", or "" for the default, not \'0668\'',
        ),
        ("[socket]\nadmin_group = 7", "socket.admin_group must be text in quotes, not 7"),
        (
            '[sandbox]\nbwrap = "bin/bwrap"',
            "sandbox.bwrap must be an absolute path, or \"\" for the default, not 'bin/bwrap'",
        ),
        (
            "[pool.python]\nwarm_min = 21",
            "pool.python.warm_min must not exceed pool.python.size_max (20) and pool.sessions_max (20), not 21",
        ),
    ],
)
def test_a_bad_file_is_refused_with_file_key_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text) == f"loopaid.toml: {message}"


def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    assert complaint(tmp_path, "[pool]\nsessions_max =\n").startswith("loopaid.toml: is not TOML: Invalid value")
    assert "line 2" in complaint(tmp_path, "[pool]\nsessions_max =\n")
    assert complaint(tmp_path, b"\xff\xfe").startswith("loopaid.toml: is not TOML: 'utf-8' codec can't decode")


def test_a_bad_variable_is_refused_by_its_name(tmp_path: Path) -> None:
    assert complaint(tmp_path, "", {"LOOPAID_POOL__SESSIONS_MAX": "many"}) == (
        "LOOPAID_POOL__SESSIONS_MAX: pool.sessions_max must be a whole number from 1 to 1000, not 'many'"
    )
    assert complaint(tmp_path, "", {"LOOPAID_POOL__SESSION_MAX": "3"}) == (
        "LOOPAID_POOL__SESSION_MAX: unknown key pool.session_max: did you mean pool.sessions_max?"
    )
    assert complaint(tmp_path, "", {"LOOPAID_POOL__PYTHON__WARM_MIN": "9", "LOOPAID_POOL__SESSIONS_MAX": "8"}) == (
        "LOOPAID_POOL__PYTHON__WARM_MIN: pool.python.warm_min must not exceed pool.python.size_max (20) "
        "and pool.sessions_max (8), not 9"
    )


# etc/loopaid.toml


def uncommented() -> str:
    """The shipped file with every key in force: `#key = value` is a key, `# words` is prose."""
    return re.sub(r"^#(?=\S)", "", SHIPPED.read_text(), flags=re.MULTILINE)


def test_the_shipped_file_changes_nothing() -> None:
    loaded = load_config(SHIPPED, {})
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}


def test_the_shipped_file_names_every_key_with_its_default(tmp_path: Path) -> None:
    loaded = read(tmp_path, uncommented())
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {str(tmp_path / "loopaid.toml")}


def test_the_shipped_file_keeps_the_order_of_the_code() -> None:
    def keys(table: Mapping[str, object], prefix: str = "") -> list[str]:
        names: list[str] = []
        for name, value in table.items():
            names += keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        return names

    assert keys(tomli.loads(uncommented())) == list(effective(Config()))


def test_the_shipped_file_explains_every_key() -> None:
    """A line of prose above each key, or above the group of keys it stands in."""
    lines = SHIPPED.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#\w", line):
            assert before.startswith("#"), line
