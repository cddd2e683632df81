"""Which shape a program has, told from its source alone: a script assigns `result`, a function is called `main`."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from typing import Final

from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Language, Shape

PARSED_CHARS_MAX: Final = 16 << 10
"""Parsing blocks everybody: 10 ms for this much ordinary source, 60 for the worst, whose cost grows with the square.
The shape of longer ones is told by their words."""

REGEX_CHARS_MAX: Final = 256
"""Whether a `/` of JavaScript begins a literal is told by its end, and nobody looks further for that than this."""


_MAIN: Final = {Language.GO: "func Main(input T) R", Language.CSHARP: "public static object Main(object input)"}


def detect_shape(source: str, language: Language) -> Shape:
    """A script assigns `result` at top level; a function is called `main`. Raises LoopaidError for neither."""
    shape = _DETECTORS[language](source)
    if shape is None:
        main = _MAIN.get(language, "main(input_data)")
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST,
            f"a program assigns `result` at top level or defines `{main}`, and this one does neither",
            path="source",
        )
    return shape


# Python ----------------------------------------------------------------------------------------------------------


def _python(source: str) -> Shape | None:
    """A source that this Python cannot parse may be one that the interpreter of the sessions can: then the words in
    it decide, and the interpreter has the last one."""
    try:
        return _shape_of(_parse(source)) if len(source) <= PARSED_CHARS_MAX else _shape_by_words(source)
    except SyntaxError as error:
        shape = _shape_by_words(source)
        if shape is None:
            what = f"this is no program that Python can read: {error.msg} (line {error.lineno})"
            raise LoopaidError(ErrorCode.INVALID_REQUEST, what, path="source") from None
        return shape
    except (ValueError, RecursionError, MemoryError):
        return _shape_by_words(source)


def _parse(source: str) -> list[ast.stmt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in somebody's program, in the daemon's log
        return ast.parse(source).body


def _shape_of(body: list[ast.stmt]) -> Shape | None:
    names = {
        node.id
        for statement in body
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if "result" in names:
        return Shape.SCRIPT
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return Shape.FUNCTION if "main" in defined | names else None


def _shape_by_words(source: str) -> Shape | None:
    if re.search(r"(?m)^result\s*[:=]", source):
        return Shape.SCRIPT
    return Shape.FUNCTION if re.search(r"(?m)^(async\s+)?def\s+main\b|^main\s*=", source) else None


# JavaScript ------------------------------------------------------------------------------------------------------

_JS_TOKEN: Final = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<value>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*`?|\d[\w.]*)
    |(?P<word>[A-Za-z_$][\w$]*)
    |(?P<sign>=>|[=!]==?|[<>]=|\?\?=|\|\|=|&&=|.)""",
    re.VERBOSE | re.DOTALL,
)
_JS_REGEX: Final = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/\w*")
_JS_CONTROL: Final = frozenset(("if", "for", "while", "with", "switch", "catch"))
_JS_BLOCK_AFTER: Final = frozenset(("", ";", "{", "}", "else", "try", "finally", "do", "catch"))
_JS_DECLARES: Final = frozenset(("var", "let", "const"))
_JS_ASSIGN: Final = frozenset(("=", "??=", "||=", "&&="))


def _javascript(source: str) -> Shape | None:
    """By its words: a name counts at top level, and in the blocks of statements there."""
    if len(source) > PARSED_CHARS_MAX:
        return _javascript_by_lines(source)
    tokens = ["", "", *_javascript_tokens(source), ""]
    shape = None
    hidden = [False]  # for each bracket that is open: whether names in it are of another scope
    controls = [False]  # and whether it holds the condition of a statement
    closed_control = False
    for before, previous, word, following in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if word in ("(", "[", "{"):
            block = previous in _JS_BLOCK_AFTER or (previous == ")" and closed_control)
            parameters = word == "(" and "function" in (before, previous)
            hidden.append(hidden[-1] or parameters or (word == "{" and not block))
            controls.append(word == "(" and previous in _JS_CONTROL)
        elif word in (")", "]", "}") and len(hidden) > 1:
            hidden.pop()
            closed_control = controls.pop()
        elif hidden[-1] or previous == ".":
            continue
        elif word == "result" and (following in _JS_ASSIGN or (previous in _JS_DECLARES and following == ":")):
            return Shape.SCRIPT
        elif word == "main" and (following == "=" or previous == "function" or previous in _JS_DECLARES):
            shape = Shape.FUNCTION
    return shape


def _javascript_tokens(source: str) -> list[str]:
    """The words and signs; a literal is `0`, whatever it is."""
    tokens = [""]
    position = 0
    while position < len(source):
        operand_ended = tokens[-1] in (")", "]", "}", "0") or (tokens[-1][-1:].isalnum() and tokens[-1] != "return")
        found = None if operand_ended else _JS_REGEX.match(source, position, position + REGEX_CHARS_MAX)
        if found is None or source.startswith(("//", "/*"), position):
            found = _JS_TOKEN.match(source, position)
            assert found is not None  # one character always fits
        position = found.end()
        if found.lastgroup in ("word", "sign"):
            tokens.append(found[0])
        elif found.lastgroup != "skip":
            tokens.append("0")
    return tokens[1:]


def _javascript_by_lines(source: str) -> Shape | None:
    if re.search(r"(?m)^(?:(?:var|let|const)[ \t]+)?result[ \t]*=(?![=>])", source):
        return Shape.SCRIPT
    declared = r"(?m)^(?:export[ \t]+)?(?:(?:default[ \t]+)?(?:async[ \t]+)?function[ \t]+main\b"
    assigned = r"|(?:(?:var|let|const)[ \t]+)?main[ \t]*=(?![=>]))"
    return Shape.FUNCTION if re.search(declared + assigned, source) else None


# Go --------------------------------------------------------------------------------------------------------------

_GO_TOKEN: Final = re.compile(
    r"""(?P<skip>//[^\n]*+|/\*(?s:.*?)(?:\*/|\Z)|"(?:\\.|[^"\\\n])*+"?|`[^`]*+`?|'(?:\\.|[^'\\\n])*+'?)
    |(?P<main>\b(?:func|var)\s++Main\b)
    |(?P<result>(?<![.\w])result\s*+=(?!=))
    |(?P<open>[({])|(?P<close>[)}])""",
    re.VERBOSE,
)


def _go(source: str) -> Shape | None:
    """A declaration of Main makes the function; nothing can be declared like that in the body of one."""
    depth, shape = 0, None
    for found in _GO_TOKEN.finditer(source):
        match found.lastgroup:
            case "open":
                depth += 1
            case "close":
                depth -= 1
            case "main" if depth == 0:
                return Shape.FUNCTION
            case "result":
                shape = Shape.SCRIPT
    return shape


# C# --------------------------------------------------------------------------------------------------------------

_CS_HOLE: Final = r"""\{(?:[^{}"]|"(?:\\.|[^"\\\n])*+")*+\}"""
_CS_TOKEN: Final = re.compile(
    rf"""(?P<skip>//[^\n]*+|/\*(?s:.*?)(?:\*/|\Z)|'(?:\\.|[^'\\\n])*+'
        |(?:\$@|@\$)"(?:[^"{{]|""|\{{\{{|{_CS_HOLE})*+"|@"(?:[^"]|"")*+"
        |\$"(?:\\.|[^"\\{{\n]|\{{\{{|{_CS_HOLE})*+"|"(?:\\.|[^"\\\n])*+")
    |(?P<type>(?<![:,][ ])(?<!@)\b(?:class|struct|interface|enum|namespace)\b)
    |(?P<main>\bMain\s*+\()
    |(?P<declared>(?<![\w.<>\[\]?])(?!(?:else|do|return|await|throw|in|case|goto)\b)\w[\w.<>\[\]?]*+\s++(?=result\b))
    |(?P<result>(?<![.\w@])result\s*+[-+*/|&]?=(?![=>]))
    |(?P<open>[({{])|(?P<close>[)}}])""",
    re.VERBOSE,
)


def _csharp(source: str) -> Shape | None:
    """Types make a function, where no statement can stand beside them."""
    if len(source) > PARSED_CHARS_MAX:
        return _csharp_by_lines(source)
    depth, typed, shape = 0, False, None
    for found in _CS_TOKEN.finditer(source):
        match found.lastgroup:
            case "open":
                depth += 1
            case "close":
                depth -= 1
            case "type" if depth == 0:
                typed = True
            case "main" if typed:
                return Shape.FUNCTION
            case "main":
                depth += 1
            case "result" if not typed:
                shape = Shape.SCRIPT
    return shape


def _csharp_by_lines(source: str) -> Shape | None:
    if re.search(r"(?m)^(?:(?!class|struct|namespace)\w++[ \t]++)*+(?:class|struct|namespace)\b", source) and re.search(
        r"\bMain[ \t]*\(", source
    ):
        return Shape.FUNCTION
    return Shape.SCRIPT if re.search(r"(?m)^(?:[\w.<>\[\]?]++[ \t]++)?result[ \t]*=(?![=>])", source) else None


def declares_result(source: str) -> bool:
    """Whether a script in C# says of what type its result is, instead of assigning what is there."""
    depth = 0
    for found in _CS_TOKEN.finditer(source):
        kind = found.lastgroup
        depth += (kind in ("open", "main")) - (kind == "close")
        if kind == "declared" and depth == 0:
            return True
    return False


_DETECTORS: Final[dict[Language, Callable[[str], Shape | None]]] = {
    Language.PYTHON: _python,
    Language.JAVASCRIPT: _javascript,
    Language.GO: _go,
    Language.CSHARP: _csharp,
}
