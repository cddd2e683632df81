"""What runs inside a Python session: loads one program and executes it on windows of items.

Standard library only and Python 3.9 syntax: the interpreter is the user's, not the daemon's. Three pipes, whose
numbers come in the environment variable LOOPAID_HARNESS and leave it at once:

    down   LOAD RUN STOP KILL STAND_BACK, each `kind u8 | length u32 | payload`
    up     READY LOADED LOAD_FAILED END, framed alike, payload JSON
    rows   one row per item and nothing else; the format stands at the top of loopaid/wire/rows.py

The payload of RUN is `length u32 | JSON about the window | inputs, joined by newlines`. At isolation `item` LOAD brings
zygote.py along, which takes over here, as if it were the end of this file, and has a RUN of its own and KILL. A harness
in another language is told to STAND_BACK first: it starts this one in its place, which says READY and gets the LOAD,
with spawner.py behind zygote.py.

Each row is written by one write() before the next item starts: a pipe survives its writer, so the daemon knows
exactly what finished whatever happens here. File descriptors 1 and 2 are memory files that the daemon made and can
read after our death; control never travels on them. A program shares this process and can break it; the daemon
believes nothing that comes from here unchecked.
"""

import builtins
import errno
import fcntl
import os
import resource
import select
import struct
import sys
import types
from _json import encode_basestring, encode_basestring_ascii, make_scanner
from _json import make_encoder as make_json_encoder
from resource import RLIMIT_CPU, setrlimit
from time import perf_counter

READY, LOADED, LOAD_FAILED, END = 1, 2, 3, 4
LOAD, RUN, STOP, KILL = 1, 2, 3, 4
FRAME = struct.Struct(">BI")
ROW_HEAD = struct.Struct(">BBIBIBBIBI")
unpack_length = struct.Struct(">I").unpack_from
FRAME_SIZE, ROW_HEAD_SIZE = FRAME.size, ROW_HEAD.size
NO_EXTRA = b"\xc0"
OK, PROGRAM_ERROR, MEMORY_LIMIT, OUTPUT_LIMIT, INVALID_OUTPUT, INVALID_INPUT = 0, 1, 4, 5, 6, 7
STOP_CHECK_S = 0.002
"""A daemon that wants its session back waits at most this long beyond the running item."""
ROWS_BYTES_PER_WINDOW = 4 << 20
"""A window ends early behind this many bytes of rows, so that large outputs cannot pile up in the daemon."""
TRACEBACK_CHARS_MAX = 16384
MESSAGE_CHARS_MAX = 4096
NAME_CHARS_MAX = 200
PROGRAM_FILE = "program.py"
PACKAGES_HINT = ""
CO_COROUTINE = 0x80
"""In co_flags; the module inspect, which knows it too, takes longer to import than all the rest of us."""
CONTROL_FD_MIN = 48
"""Control descriptors live above what careless programs close, below 64: each fork would copy a larger table."""


class NoResult(Exception):
    """A script ended without assigning `result`."""


class Pipe:
    """Frames from the daemon: blocking reads when there is nothing to do, a look in between when there is."""

    def __init__(self, fd, expected=65536):
        self.fd = fd
        self.expected = expected
        self.buffer = b""
        self.poll = None

    def read_frame(self):
        buffer = self.buffer or os.read(self.fd, self.expected) or os._exit(0)
        while True:
            if len(buffer) >= FRAME_SIZE:
                kind, length = FRAME.unpack_from(buffer)
                end = FRAME_SIZE + length
                if len(buffer) >= end:
                    self.buffer = buffer[end:]
                    return kind, buffer[FRAME_SIZE:end]
                parts, missing = [buffer], end - len(buffer)
            else:
                parts, missing = [buffer], 1
            while missing > 0:
                part = os.read(self.fd, max(missing, 65536))
                if not part:
                    os._exit(0)
                parts.append(part)
                missing -= len(part)
            buffer = b"".join(parts)

    def stop_requested(self):
        """Look without waiting. Between RUN and END the daemon sends nothing but STOP."""
        if not self.is_waiting():
            return False
        self.read_frame()
        return True

    def is_waiting(self):
        if self.poll is None:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            self.poll = poll.poll
        return bool(self.buffer or self.poll(0))


class Capture:
    """One of the two memory files behind stdout and stderr."""

    def __init__(self, fd, limit):
        self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, CONTROL_FD_MIN)
        self.limit = limit
        self.flags = fcntl.fcntl(fd, fcntl.F_GETFL)

    def take(self):
        """Return (text, truncated, size) of what was written since the last time, and forget it."""
        size = os.lseek(self.fd, 0, os.SEEK_CUR)
        if not size:
            return "", False, 0
        text = os.pread(self.fd, min(size, self.limit), 0).decode("utf-8", "replace")
        self.forget()
        return text, size > self.limit, size

    def forget(self):
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)

    def renew(self):
        """Make it what it was at first: other processes share its flags, its content and its position."""
        fd = self.fd
        if fcntl.fcntl(fd, fcntl.F_GETFL) != self.flags:
            fcntl.fcntl(fd, fcntl.F_SETFL, self.flags)
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)


class ItemContext(types.ModuleType):
    """The module `loopaid_item`: what a program may know about the item it works on."""

    def __init__(self):
        super().__init__("loopaid_item", "The item being executed: id, attempt, idempotency_key.")
        self.__dict__["_window"] = {}
        self.__dict__["_position"] = 0

    def __getattr__(self, name):
        window = self._window
        if name == "id":
            ids = window["ids"]
            return str(window["first"] + self._position) if ids is None else ids[self._position]
        if name == "attempt":
            return window["attempt"]
        if name == "idempotency_key":
            import hashlib

            text = "\0".join((window["batch"], self.id, window["digest"]))
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        raise AttributeError("module 'loopaid_item' has no attribute %r" % name)


class Decoding:
    """What the package json tells the scanner. We do without it: with all it imports it is a third of our memory."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def make_encoder(encode_text=encode_basestring_ascii):
    """A JSON encoder as a function: value, 0 -> pieces of text, ASCII by default. NaN and cycles raise."""
    return make_json_encoder({}, refuse, encode_text, None, ":", ",", False, False, False)


def refuse(value):
    raise TypeError("a value of type %s is not JSON" % type(value).__name__)


def find_offender(value, path, depth=0, parents=()):
    """Return (path, kind) of the first part of `value` that JSON has no word for, or None."""
    if value is None or isinstance(value, (str, bool, int)):
        return None
    if isinstance(value, float):
        return None if value - value == 0 else (path, repr(value))
    if id(value) in parents:
        return path, "a cycle"
    if depth > 200:
        return path, "nesting too deep"
    parents += (id(value),)
    if isinstance(value, dict):
        for key, part in value.items():
            if not (key is None or isinstance(key, (str, int, float))):
                return path, "a key of type %s" % type(key).__name__
            found = find_offender(part, "%s.%s" % (path, key), depth + 1, parents)
            if found:
                return found
        return None
    if isinstance(value, (list, tuple)):
        for position, part in enumerate(value):
            found = find_offender(part, "%s[%d]" % (path, position), depth + 1, parents)
            if found:
                return found
        return None
    return path, type(value).__name__


def describe_output_failure(value, error):
    try:
        found = find_offender(value, "output")
    except BaseException:  # the value's own methods run here
        found = None
    where = "%s: %s" % found if found else "%s: %s" % (type(error).__name__, text_of(error))
    return {"type": "InvalidOutput", "message": where[:MESSAGE_CHARS_MAX]}


def text_of(error):
    try:
        return str(error)[:MESSAGE_CHARS_MAX]
    except BaseException:  # an exploding __str__ is the program's, too
        return "<no message: its __str__ failed>"


def describe_error(error):
    """The program's exception as {type, message, traceback}, without the harness's own frames."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # formatting calls the program's __str__ and __repr__
        text = ""
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = text[:half] + "\n  ...\n" + text[-half:]
    if isinstance(error, SystemExit):
        message = "the program called exit(%s)" % (text_of(error),)
    else:
        message = text_of(error)
    if isinstance(error, ModuleNotFoundError):
        message += PACKAGES_HINT
    return {"type": type(error).__name__[:NAME_CHARS_MAX], "message": message, "traceback": text}


def add_packages(directories, hint):
    """Make the packages of the configured environment importable, its .pth files and editable installs included."""
    global PACKAGES_HINT
    PACKAGES_HINT = hint
    if directories:
        import site

        for directory in directories:
            site.addsitedir(directory)


class ProgramLoader:
    """Where tracebacks find the lines of the program, when there is one."""

    def __init__(self, source):
        self.source = source

    def get_source(self, name):
        return self.source


def set_limits(limits):
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def lifted(fd):
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, CONTROL_FD_MIN)
    os.close(fd)
    return high


def write_all(fd, data):
    written = os.write(fd, data)
    while written < len(data):
        data = data[written:]
        written = os.write(fd, data)


class Harness:
    def __init__(self, settings):
        down, self.up, self.rows = [lifted(fd) for fd in settings["fds"]]
        self.down = Pipe(down)
        self.stdout = Capture(1, settings["stdout_bytes_max"])
        self.stderr = Capture(2, settings["stderr_bytes_max"])
        self.output_bytes_max = settings["output_bytes_max"]
        self.file_bytes_max = settings["limits"].get("FSIZE", 1 << 62)
        self.sweeps = settings["sweep"] and self.lives_in_a_pid_namespace()
        self.context = ItemContext()
        sys.modules["loopaid_item"] = self.context
        self.settings = settings
        add_packages(settings.get("site_packages", ()), settings.get("packages_hint", ""))
        set_limits(settings["limits"])
        self.pid = os.getpid()

    def let_go(self):
        """A child that the program forked and that returns must not go on in our place: it gets no pipe to do so."""
        for fd in (self.down.fd, self.up, self.rows, self.stdout.fd, self.stderr.fd):
            if fd is not None:
                os.close(fd)

    @staticmethod
    def lives_in_a_pid_namespace():
        """To kill all there is is for a sandbox alone, whose first processes lead the session: that is bubblewrap's."""
        try:
            with open("/proc/1/comm") as file:
                return os.getsid(0) < 3 and file.read().strip() == "bwrap"
        except OSError:
            return False

    def send(self, kind, value):
        payload = json_bytes(value)
        write_all(self.up, FRAME.pack(kind, len(payload)) + payload)

    def serve(self):
        self.send(READY, {"version": sys.version.split()[0]})
        while True:
            kind, payload = self.down.read_frame()
            if kind == RUN:
                self.run(payload)
            elif kind == LOAD:
                self.load(json_loads(payload))

    def load(self, program):
        self.digest = program["digest"]
        self.shape = program["shape"]
        self.loader = ProgramLoader(program["source"])
        if program["parent"] is not None:
            exec(compiled(program["parent"], __file__), globals())
            Parent(self, program).serve()
        try:
            self.code = compile(program["source"], PROGRAM_FILE, "exec", dont_inherit=True)
            if self.call is None:
                os.register_at_fork(after_in_child=self.let_go)
            self.make_call()
        except BaseException as error:  # the program's own code runs at load
            self.send(LOAD_FAILED, self.load_failure(error))
        else:
            self.send(LOADED, {})

    def load_failure(self, error):
        failure = describe_error(error)
        for name, capture in (("stdout", self.stdout), ("stderr", self.stderr)):
            failure[name] = capture.take()[0][:TRACEBACK_CHARS_MAX]
        return failure

    def make_call(self):
        """Run the body of the program's module, and forget what it printed: that is no item's."""
        self.call = self.script_call(self.code) if self.shape == "script" else self.function_call(self.code)
        if os.lseek(self.stdout.fd, 0, 1) or os.lseek(self.stderr.fd, 0, 1):
            self.stdout.forget()
            self.stderr.forget()

    def function_call(self, code):
        module = types.ModuleType("program")
        module.__file__ = PROGRAM_FILE
        module.__loader__ = self.loader
        sys.modules["program"] = module
        exec(code, module.__dict__)
        main = module.__dict__.get("main")
        if not callable(main):
            raise NameError("the program defines no function main(input_data)")
        if type(main) is types.FunctionType and not main.__dict__ and not main.__code__.co_flags & CO_COROUTINE:
            return main
        import inspect

        if not inspect.iscoroutinefunction(main):
            return main
        import asyncio

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)

        def run_async(input_data):
            return loop.run_until_complete(main(input_data))

        return run_async

    def script_call(self, code):
        def run_script(input_data):
            module = types.ModuleType("__main__")
            sys.modules["__main__"] = module
            namespace = module.__dict__
            namespace["__builtins__"] = builtins
            namespace["__loader__"] = self.loader
            namespace["input_data"] = input_data
            exec(code, namespace)
            try:
                return namespace["result"]
            except KeyError:
                raise NoResult("the script ended without assigning `result`") from None

        return run_script

    def run(self, payload):
        """Execute the items of one window, a row each, then END."""
        done, tainted = self.run_window(payload)
        if self.sweeps and self.sweep():
            tainted = True
        rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.send(END, {"done": done, "tainted": tainted, "rss_bytes": rss_bytes})

    def run_window(self, payload):
        meta_end = 4 + unpack_length(payload)[0]
        window = json_loads(payload[4:meta_end])
        window["digest"] = self.digest
        self.context.__dict__["_window"] = window
        if "cpu_s" in window:  # of an item with a process of its own; should nobody else watch it, the kernel does
            try:
                setrlimit(RLIMIT_CPU, (window["cpu_s"], window["cpu_s"] + 1))
            except ValueError:  # there is a lower limit
                pass
        return self.run_items(window, str(payload[meta_end:], "utf-8"))

    def run_items(self, window, text):
        # Everything on the item's path is a local name: this loop is what a trivial item costs.
        call, encode, scan, clock = self.call, self.encode, scan_once, perf_counter
        write, rows, pack, lseek = os.write, self.rows, ROW_HEAD.pack, os.lseek
        out_fd, err_fd, limit = self.stdout.fd, self.stderr.fd, self.output_bytes_max
        stop_on_error, patience = window["stop_on_error"], 0 if window["eager_stop"] else STOP_CHECK_S
        context = self.context.__dict__
        seq, count, position, written, status = window["seq"], window["count"], 0, 0, OK
        looked = clock()
        for done in range(count):
            context["_position"] = done
            error = None
            try:
                value, position = scan(text, position)
            except (StopIteration, ValueError, RecursionError, SystemError) as failure:
                status, encoded, begin, end = INVALID_INPUT, b"", looked, looked
                error = {"type": "InvalidInput", "message": text_of(failure)}
                position += len(text[position:].partition("\n")[0])
            else:
                begin = clock()
                try:
                    value = call(value)
                except BaseException as failure:  # whatever the program raises is its result
                    end = clock()
                    status, encoded, error = self.failure(failure)
                else:
                    end = clock()
                    try:
                        encoded = "".join(encode(value, 0)).encode()
                        status = OK
                        if len(encoded) > limit:
                            raise OverflowError("%d bytes, more than output_bytes_max = %d" % (len(encoded), limit))
                    except BaseException as failure:  # the value's own methods may run here
                        status, encoded = INVALID_OUTPUT, b""
                        error = describe_output_failure(value, failure)
                        encode = self.encode = make_encoder()
            position += 1
            value = None
            extra = NO_EXTRA
            if error is not None or lseek(out_fd, 0, 1) or lseek(err_fd, 0, 1):
                status, encoded, extra = self.extra(status, encoded, error)
            size = ROW_HEAD_SIZE + len(encoded) + len(extra)
            latency = int((end - begin) * 1e6)
            head = pack(0x96, 0xCE, size, 0xCE, (seq + done) & 0xFFFFFFFF, status, 0xCE, latency, 0xC6, len(encoded))
            if write(rows, head + encoded + extra) != size:
                raise OSError(errno.EIO, "short write of a row")
            if status == OUTPUT_LIMIT:
                return done + 1, True
            if stop_on_error and status != OK:
                return done + 1, False
            written += size
            if written > ROWS_BYTES_PER_WINDOW:
                return done + 1, False
            if end - looked > patience:
                looked = end
                if self.down.stop_requested():
                    return done + 1, False
        return count, False

    def failure(self, error):
        """Status, output and description of what the program raised."""
        if isinstance(error, MemoryError):
            return MEMORY_LIMIT, b"", {"type": "MemoryError", "message": text_of(error) or "out of memory"}
        if isinstance(error, NoResult):
            return INVALID_OUTPUT, b"", {"type": "NoResult", "message": text_of(error)}
        return PROGRAM_ERROR, b"", describe_error(error)

    def extra(self, status, encoded, error):
        stdout, stdout_truncated, stdout_size = self.stdout.take()
        stderr, stderr_truncated, stderr_size = self.stderr.take()
        if max(stdout_size, stderr_size) >= self.file_bytes_max:
            status, encoded = OUTPUT_LIMIT, b""
            error = {"type": "OutputLimit", "message": "the program printed more than %d bytes" % self.file_bytes_max}
        value = {
            "error": error,
            "stdout": stdout,
            "stderr": stderr,
            "stdout_truncated": stdout_truncated,
            "stderr_truncated": stderr_truncated,
        }
        payload = json_bytes({name: part for name, part in value.items() if part})
        return status, encoded, b"\xc6" + len(payload).to_bytes(4, "big") + payload

    def sweep(self):
        """Kill what the program left running; True when there was something."""
        try:
            os.kill(-1, 9)
        except ProcessLookupError:
            return False
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            pass
        return True

    encode = None
    call = None
    digest = ""


scan_once = make_scanner(Decoding)
encode_words = make_encoder(encode_basestring)


def json_bytes(value):
    """What we say ourselves; half a surrogate pair in a program's words has no UTF-8 and becomes a `?`."""
    return "".join(encode_words(value, 0)).encode("utf-8", "replace")


def json_loads(data):
    return scan_once(str(data, "utf-8"), 0)[0]


def main():
    settings = json_loads(os.environb.pop(b"LOOPAID_HARNESS"))
    os.environb.pop(b"LD_BIND_NOW", None)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    harness = Harness(settings)
    harness.encode = make_encoder()
    try:
        harness.serve()
    except OSError:
        if os.getpid() != harness.pid:
            os._exit(1)
        raise


if __name__ == "__main__":
    main()
