"""What a CodeBeaker server runs for a window of items: it starts the harness of local sessions and watches over it.

The server offers a process, its standard output, and no time limit to speak of. So this supervisor does there what
the daemon does for a session of its own: it hands the harness a program and a window over pipes, counts every item's
time, ends the harness that takes too long, and tells what became of it. Standard library only, Python 3.9 syntax.

It says nothing but lines of pure ASCII that begin with a tag which nobody else knows:

    TAG row BASE64    one row, as the harness wrote it, as soon as it did
    TAG end BASE64    JSON, once, at last: `how` it ended, and what belongs to that
"""

import binascii
import fcntl
import json
import os
import select
import sys
import time
import zlib

FRAME_HEAD = 5
STOP = b"\x03\0\0\0\0"
LOADED, LOAD_FAILED, END = 2, 3, 4
SIGKILL = 9
HARNESS_FILE = "/harness.py"


class Supervisor:
    def __init__(self, order):
        self.order = order
        self.tag = order["tag"].encode()
        self.report = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 200)
        self.captures = [memory_file() for _ in range(2)]
        self.down = bytearray(order["frames"].encode("latin-1"))
        self.up = bytearray()
        self.rows = bytearray()
        self.done = 0
        self.ended = None
        self.loaded = None
        self.stopped = False
        self.kills = self.kills_for_memory()

    def say(self, kind, payload):
        line = b"%s %s %s" % (self.tag, kind, binascii.b2a_base64(payload))
        while line:
            line = line[os.write(self.report, line) :]

    def spawn(self):
        pipes = [os.pipe() for _ in range(3)]  # down, up, rows: the harness reads the first, writes the others
        (theirs_down, self.down_fd), (self.up_fd, theirs_up), (self.rows_fd, theirs_rows) = pipes
        theirs = [theirs_down, theirs_up, theirs_rows]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for fd in (self.down_fd, self.up_fd, self.rows_fd, self.report):
                    os.close(fd)
                self.become_harness(theirs)
            except BaseException:  # a child has nobody above it to tell
                import traceback

                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(70)
        for fd in theirs:
            os.close(fd)
        for fd in (self.down_fd, self.up_fd, self.rows_fd):
            os.set_blocking(fd, False)

    def become_harness(self, fds):
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((nothing, 0), (self.captures[0], 1), (self.captures[1], 2)):
            os.dup2(fd, target)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
        settings = dict(self.order["settings"], fds=fds, sweep=False, site_packages=[], packages_hint="")
        os.environ["LOOPAID_HARNESS"] = json.dumps(settings)
        sys.argv = ["program.py"]
        harness = self.order["harness"]
        self.order = self.tag = self.down = None
        exec(compile(harness, HARNESS_FILE, "exec"), {"__name__": "__main__", "__file__": HARNESS_FILE})

    def run(self):
        self.spawn()
        poll = select.poll()
        for fd in (self.up_fd, self.rows_fd):
            poll.register(fd, select.POLLIN)
        poll.register(self.down_fd, select.POLLOUT)
        began, limit = time.monotonic(), self.order["load_s"]
        open_ends = {self.up_fd, self.rows_fd}
        while self.ended is None:
            done, due = self.done, began + limit
            if self.loaded and not self.stopped:
                due = min(due, self.loaded + self.order["budget_s"])
            events = poll.poll(max(0.0, due - time.monotonic()) * 1000 + 1)
            for fd, event in events:
                if fd == self.down_fd:
                    self.write_down(poll, event)
                elif not self.read(fd):
                    poll.unregister(fd)
                    open_ends.discard(fd)
            now = time.monotonic()
            loaded_now = self.loaded is None and self.take_frames()
            if loaded_now:
                self.loaded = now
            elif self.loaded is not None:
                self.take_frames()
            if loaded_now or self.done > done:
                began, limit = now, self.order["item_s"]
            if self.ended is not None:
                break
            if not open_ends:
                self.ended = self.how_it_exited()
            elif now >= began + limit:
                self.ended = {"how": "timeout" if self.loaded else "load_timeout", "ran_us": int((now - began) * 1e6)}
            elif self.loaded and not self.stopped and now - self.loaded > self.order["budget_s"]:
                self.stopped = True
                self.down += STOP
                poll.register(self.down_fd, select.POLLOUT)
        self.finish()

    def write_down(self, poll, event):
        try:
            del self.down[: os.write(self.down_fd, self.down)]
        except BlockingIOError:
            return
        except OSError:
            self.down.clear()
        if not self.down:
            poll.unregister(self.down_fd)

    def read(self, fd):
        """Take what is there. False at the end."""
        while True:
            try:
                data = os.read(fd, 1 << 18)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self.ended is not None:
                return True
            if fd == self.up_fd:
                self.up += data
            else:
                self.rows += data
                self.tell_rows()

    def tell_rows(self):
        while len(self.rows) >= 6:
            size = int.from_bytes(self.rows[2:6], "big")
            if not 6 <= size <= self.order["row_bytes_max"] or self.done == self.order["count"]:
                self.ended = {"how": "violation", "why": "rows that the harness does not write"}
                self.rows.clear()
                return
            if len(self.rows) < size:
                return
            self.say(b"row", bytes(self.rows[:size]))
            del self.rows[:size]
            self.done += 1

    def take_frames(self):
        """Act on what the harness said; True when it has loaded the program."""
        loaded = False
        while self.ended is None and len(self.up) >= FRAME_HEAD:
            end = FRAME_HEAD + int.from_bytes(self.up[1:FRAME_HEAD], "big")
            if len(self.up) < end:
                break
            kind, payload = self.up[0], bytes(self.up[FRAME_HEAD:end])
            del self.up[:end]
            if kind == LOADED:
                loaded = True
            elif kind in (LOAD_FAILED, END):
                self.read(self.rows_fd)  # what it wrote before it said so
                how = "end" if kind == END else "load_failed"
                self.ended = self.ended or {"how": how, "said": payload.decode("utf-8", "replace")}
        return loaded

    def how_it_exited(self):
        status = os.waitpid(self.pid, 0)[1]
        self.pid = None
        if os.WIFSIGNALED(status):
            import signal

            number = os.WTERMSIG(status)
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = "signal %d" % number
            how = "killed" if number == SIGKILL else "crashed"
            if self.kills_for_memory() > self.kills:
                how, name = "out_of_memory", "the kernel: the container has no memory left"
            return {"how": how, "why": "killed by " + name}
        return {"how": "crashed", "why": "exit code %d" % os.WEXITSTATUS(status)}

    def kills_for_memory(self):
        """How often the kernel has ended a process of this container, 0 if there is none."""
        for name in ("memory.events", "memory/memory.oom_control"):
            try:
                with open(os.path.join(self.order["cgroup"], name)) as file:
                    counts = dict(line.split()[:2] for line in file)
                return int(counts.get("oom_kill", 0))
            except (OSError, ValueError):
                pass
        return 0

    def finish(self):
        if self.pid is not None:
            for kill, pid in ((os.killpg, self.pid), (os.kill, self.pid)):
                try:
                    kill(pid, SIGKILL)
                except ProcessLookupError:
                    pass
            os.waitpid(self.pid, 0)
        for name, fd in zip(("stdout", "stderr"), self.captures):
            limit = self.order["settings"][name + "_bytes_max"]
            self.ended[name] = os.pread(fd, limit, 0).decode("utf-8", "replace")
            self.ended[name + "_truncated"] = os.fstat(fd).st_size > limit
        self.ended["done"] = self.done
        self.ended["version"] = sys.version.split()[0]
        self.say(b"end", json.dumps(self.ended).encode())


def memory_file():
    """Bounded by RLIMIT_FSIZE; the harness appends to it, looks at it and empties it."""
    try:
        fd = os.memfd_create("output")
    except (AttributeError, OSError):
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def main(payload):
    order = {}
    for part in payload.split("."):
        order.update(json.loads(zlib.decompress(binascii.a2b_base64(part))))
    Supervisor(order).run()
    os._exit(0)  # all is said, and to tidy up would take longer than many a window
