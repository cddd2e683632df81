"""loopaid runs one stored program over many inputs: fast, sandboxed, and without losing a result."""

__version__ = "0.1.0"
