"""The trivial program of every language as a command: what people start once per item, where nothing keeps it warm.

Making one may take some seconds: two languages compile it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from loopaid.bench import instead
from loopaid.bench.workload import FUNCTION
from loopaid.model import Language
from loopaid.providers.local.languages import Runtime

JAVASCRIPT: Final = "function main(input) {\n  return { output: input.value * 2 };\n}\n"
_JAVASCRIPT_ONCE: Final = "console.log(JSON.stringify(main(JSON.parse(process.argv[2]))));\n"

GO: Final = """package main

type Input struct {
	Value int `json:"value"`
}

type Output struct {
	Output int `json:"output"`
}

func Main(input Input) Output { return Output{input.Value * 2} }
"""
_GO_ONCE: Final = """package main

import (
	"encoding/json"
	"os"
)

func main() {
	if len(os.Args) == 1 {
		return
	}
	var input Input
	if err := json.Unmarshal([]byte(os.Args[1]), &input); err != nil {
		panic(err)
	}
	json.NewEncoder(os.Stdout).Encode(Main(input))
}
"""

CSHARP: Final = """using System.Collections.Generic;

public class Program {
    public static object Main(object input) {
        var value = (long)((Dictionary<string, object>)input)["value"];
        return new Dictionary<string, object> { { "output", value * 2 } };
    }
}
"""
_CSHARP_ONCE: Final = """using System;
using System.Collections.Generic;

public class Once {
    public static void Main(string[] args) {
        if (args.Length == 0) return;
        var value = long.Parse(args[0].Trim('{', '}').Split(':')[1]);
        var output = (Dictionary<string, object>)Program.Main(new Dictionary<string, object> { { "value", value } });
        Console.WriteLine("{\\"output\\": " + output["output"] + "}");
    }
}
"""


class Commands(msgspec.Struct, frozen=True):
    """`bare` does nothing; `once` takes an input, as JSON, as one more argument, and prints the output."""

    bare: list[str]
    once: list[str]


def _python(runtime: Runtime, directory: Path) -> Commands:
    return Commands([runtime.executable, "-c", "pass"], instead.command(FUNCTION, directory))


def _javascript(runtime: Runtime, directory: Path) -> Commands:
    path = directory / "program.js"
    path.write_text(JAVASCRIPT + _JAVASCRIPT_ONCE)
    return Commands([runtime.executable, "-e", "0"], [runtime.executable, str(path)])


def _go(runtime: Runtime, directory: Path) -> Commands:
    names = _write(directory, {"program.go": GO, "once.go": _GO_ONCE})
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOCACHE": str(directory / "go-cache")}
    _run([runtime.executable, "build", "-o", "once", *names], directory, settings)
    built = str(directory / "once")
    return Commands([built], [built])


def _csharp(runtime: Runtime, directory: Path) -> Commands:
    names = _write(directory, {"program.cs": CSHARP, "once.cs": _CSHARP_ONCE})
    _run(["mcs", "-main:Once", "-out:once.exe", *names], directory, {})
    built = [runtime.executable, str(directory / "once.exe")]
    return Commands(built, built)


def _write(directory: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (directory / name).write_text(text)
    return list(files)


def _run(argv: list[str], directory: Path, settings: dict[str, str]) -> None:
    subprocess.run(argv, cwd=directory, env=os.environ | settings, check=True)


COMMANDS: Final[dict[Language, Callable[[Runtime, Path], Commands]]] = {
    Language.PYTHON: _python,
    Language.JAVASCRIPT: _javascript,
    Language.GO: _go,
    Language.CSHARP: _csharp,
}
