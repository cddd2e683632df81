"""Isolation `item`: the warm parent of processes that run one item each. Executed in the globals of python.py.

    down   RUN  `length u32 | JSON: seq count stop_on_error | for each item a RUN as python.py knows it, of one item`
           KILL `seq u32`: this item takes too long; means nothing once it is over
    up     END  says, if the item behind those done ended without a row, with which `exit` code or (negative) signal,
           and whether what it left instead of a row was `garbled`

A child is python.py's harness over again, on two pipes of its own; what it writes becomes the one row that is due or
none. What it must not reach:

- The parent, and through it later items. The parent is undumpable, so nobody reads its memory or opens its
  descriptors, and the program's code runs in children only. An input or output that it once had on its heap would be
  on the heap of every later child, so it reads heads of frames and keeps the rest in memory that is not inherited.
- The next child. There is none while an item runs: one is forked ahead only when nothing is left to run.
- The next item. Whoever outlives an item becomes our child, since we are a subreaper; so waiting for children tells
  whether the item is really over. Survivors are killed and files in /tmp removed before the next fork. What cannot
  be put right, and every survivor, taints the session.
"""

import ast
import ctypes
import gc
import mmap
import signal
from signal import SIGKILL

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
BROKEN = 70
"""Exit code of a child in which the harness itself failed."""
TMP = "/tmp"
TIDY_S = 0.05


class Child:
    """The process of one item, and our ends of its pipes. It may be fed before it is forked, or later."""

    def __init__(self):
        self.pid = None
        self.killed = self.late = self.fed = False
        self.unfed = []
        self.its_input, self.input = os.pipe()
        self.result, self.its_result = os.pipe()
        self.its_input, self.its_result = lifted(self.its_input), lifted(self.its_result)
        os.set_blocking(self.input, False)
        os.set_blocking(self.result, False)

    def began(self, pid):
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        os.close(self.its_input)
        os.close(self.its_result)

    def feed(self, frame):
        """Give it a frame to read, a memoryview, behind those that it was given before."""
        self.unfed.append(frame)
        self.pump()

    def end_input(self):
        """There will be no more."""
        self.fed = True
        self.pump()

    def pump(self):
        """Write what the pipe takes of that."""
        try:
            while self.unfed:
                self.unfed[0] = self.unfed[0][os.write(self.input, self.unfed[0]) :]
                if not self.unfed[0]:
                    del self.unfed[0]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unfed.clear()
        if self.fed:
            self.close_input()

    def close_input(self):
        if self.input is not None:
            os.close(self.input)
            self.input = None

    def has_ended(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self):
        self.killed = True
        os.kill(self.pid, SIGKILL)

    def bury(self):
        """Return its exit code, or minus the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        self.close_input()
        os.close(self.result)
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)


class Zygote:
    def __init__(self, harness, program):
        self.harness = harness
        self.down = harness.down
        self.row = memoryview(uninherited(program["row_bytes_max"] + 1))
        self.filled = 0
        self.ahead = None
        self.stopping = False
        self.prctl = ctypes.CDLL(None).prctl
        self.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.condition = find_condition()
        self.tmp = tmp_state()
        self.program = program

    # --- the daemon

    def serve(self):
        """Answer LOAD, then run windows; never return."""
        try:
            self.make_ready()
        except BaseException as error:  # what is wrong with the program's source
            self.harness.send(LOAD_FAILED, self.harness.load_failure(error))
        else:
            self.load()
        while True:
            kind, length = self.read_head()
            if kind == RUN:
                self.run(length)
            else:
                self.read(length)  # it came behind its window

    def read(self, size):
        data = b""
        while len(data) < size:
            part = os.read(self.down.fd, size - len(data))
            if not part:
                os._exit(0)
            data += part
        return data

    def read_head(self):
        return FRAME.unpack(self.read(FRAME.size))

    def read_uninherited(self, size):
        memory = memoryview(uninherited(size))
        filled = 0
        while filled < size:
            part = os.readv(self.down.fd, [memory[filled:]])
            if not part:
                os._exit(0)
            filled += part
        return memory

    def obey(self, child=None, seq=None):
        kind, length = self.read_head()
        said = self.read(length)
        if kind == STOP:
            self.stopping = True
        elif int.from_bytes(said, "big") == seq:
            child.late = True
            child.kill()

    def make_ready(self):
        """Do once what every child would have to do for itself."""
        source = self.program["source"]
        self.harness.code = compile_program(source)
        import_ahead(source)
        gc.collect()
        gc.freeze()

    def load(self):
        """Try the body of the program's module, with which all children begin, in one that is thrown away."""
        began = time.perf_counter()
        child = self.begin()
        child.end_input()
        self.fork(child, self.try_module)
        self.follow(child, None)
        code = child.bury()
        self.is_clean(child)
        kind, said = self.outcome()
        if kind == LOADED:
            self.harness.send(LOADED, {"took_s": time.perf_counter() - began})
            self.prepare()
        elif code == 0 and kind == LOAD_FAILED:
            write_all(self.harness.up, FRAME.pack(LOAD_FAILED, len(said)) + said)
        else:
            end_like(code)

    def outcome(self):
        """What the child that tried the module says of it: LOADED, or LOAD_FAILED and why, or nothing."""
        return self.frame_at(0)

    def frame_at(self, begin):
        """The kind and the payload of the frame in `row`, whose first byte is at `begin`; 0 when there is none."""
        begin += FRAME.size
        if self.filled < begin:
            return 0, b""
        kind, length = FRAME.unpack_from(self.row, begin - FRAME.size)
        return kind, bytes(self.row[begin : min(begin + length, self.filled)])

    def run(self, length):
        head = self.read(int.from_bytes(self.read(4), "big"))
        items = self.read_uninherited(length - 4 - len(head))
        self.stopping = False
        end = self.run_items(json_loads(head), items)
        if find_condition() != self.condition:
            end["tainted"] = True
        end["rss_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self.harness.send(END, end)
        if end["exit"] is None and not end["tainted"]:  # else what was printed is yet to be read
            self.prepare()

    def run_items(self, window, items):
        position = written = 0
        end = {"done": 0, "tainted": False, "exit": None, "garbled": False}
        for done in range(window["count"]):
            stop = position + FRAME.size + FRAME.unpack_from(items, position)[1]
            seq = (window["seq"] + done) & 0xFFFFFFFF
            child = self.run_item(seq, items[position:stop])
            position = stop
            code = child.bury()
            end["tainted"] = not self.is_clean(child)
            status = self.row_status(seq)
            if status is None:
                if code == -SIGKILL and not child.killed:
                    end_like(code)  # by whom nobody knows: then it is the session that is lost
                end["exit"], end["garbled"] = code, self.filled > 0 and not child.late
                return end
            write_all(self.harness.rows, self.row[: self.filled])
            end["done"] = done + 1
            written += self.filled
            if self.down.is_waiting():
                self.obey()
            failed = window["stop_on_error"] and status != OK
            if end["tainted"] or self.stopping or failed or written > ROWS_BYTES_PER_WINDOW:
                return end
        return end

    # --- one item

    def prepare(self):
        self.ahead = self.begin()
        self.fork(self.ahead, self.execute)

    def run_item(self, seq, frame):
        child, self.ahead = self.ahead, None
        if child is not None and child.has_ended():  # before it had anything to do
            child.bury()
            child = None
        if child is None:
            child = self.begin()
        child.feed(frame)
        child.end_input()
        if child.pid is None:
            self.fork(child, self.execute)
        self.follow(child, seq)
        return child

    def begin(self):
        """A child to be, with what it is to read before its item."""
        return Child()

    def follow(self, child, seq):
        """Move bytes until the child has ended. What it wrote is in `row` then."""
        self.filled = 0
        poll = select.poll()
        for fd in (self.down.fd, child.pidfd, child.result):
            poll.register(fd, select.POLLIN)
        if child.unfed:
            poll.register(child.input, select.POLLOUT)
        ended = False
        while not ended:
            for fd, _ in poll.poll():
                if fd == child.pidfd:
                    ended = True
                elif fd == self.down.fd:
                    self.obey(child, seq)
                elif fd == child.result:
                    if not self.take(child):
                        poll.unregister(fd)
                else:
                    child.pump()
                    if not child.unfed:
                        poll.unregister(fd)
        while self.take(child):
            pass

    def take(self, child):
        """Read of the child's row what is there; False when there is nothing more."""
        if self.filled == len(self.row):
            child.kill()  # longer than any row
            return False
        try:
            size = os.readv(child.result, [self.row[self.filled :]])
        except BlockingIOError:
            return False
        self.filled += size
        return size > 0

    def row_status(self, seq):
        """The status in what the child wrote, None if that is not the row of this item and nothing else."""
        if self.filled < ROW_HEAD.size:
            return None
        array, _, size, _, number, status, _, _, _, _ = ROW_HEAD.unpack_from(self.row)
        return status if (array, size, number) == (0x96, self.filled, seq) else None

    # --- what is left of it

    def is_clean(self, child):
        """Put right what an item that is over has left behind; False if that cannot be, or it may still live."""
        if not self.is_alone():
            for pid in other_processes() if self.harness.sweeps else [-child.pid]:
                try:
                    os.kill(pid, SIGKILL)
                except ProcessLookupError:
                    pass
            return False
        if self.harness.sweeps and tmp_state() != self.tmp:
            self.tidy()
            return tmp_state() == self.tmp
        return True

    def is_alone(self):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        return False

    def tidy(self):
        """Remove all files, in a child: names of files may be what an item worked on."""
        self.harness.private = [self.down.fd, self.harness.up, self.harness.rows]
        pid = os.fork()
        if pid == 0:
            try:
                signal.setitimer(signal.ITIMER_REAL, TIDY_S)  # which ends it
                remove_entries(TMP)
                os.chmod(TMP, self.tmp[0] & 0o7777)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    # --- in the child

    def fork(self, child, work):
        harness = self.harness
        for capture in (harness.stdout, harness.stderr):
            fcntl.fcntl(capture.fd, fcntl.F_SETFL, os.O_APPEND)  # a child may have changed that for all
            capture.forget()
        harness.private = [self.down.fd, harness.up, harness.rows, child.input, child.result]
        pid = os.fork()
        if pid:
            child.began(pid)
            return
        try:
            self.become(child)
            work()
            os._exit(0)
        finally:
            os._exit(BROKEN)

    def become(self, child):
        harness = self.harness
        harness.down, harness.rows, harness.up = Pipe(child.its_input), child.its_result, None
        harness.private = [child.its_input, child.its_result, harness.stdout.fd, harness.stderr.fd]
        if not harness.sweeps:
            os.setpgrp()
            self.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)

    def try_module(self):
        harness = self.harness
        harness.up = harness.rows
        try:
            harness.make_call()
        except BaseException as error:  # the program's own code
            harness.send(LOAD_FAILED, harness.load_failure(error))
        else:
            harness.send(LOADED, {})

    def execute(self):
        harness = self.harness
        try:
            harness.make_call()
        except BaseException as error:  # the program's own code: it did well in the child that tried it
            harness.call = raiser(error)
        _, item = harness.down.read_frame()
        harness.run_window(item)


def raiser(error):
    def fail(input_data):
        raise error

    return fail


def uninherited(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


def find_condition():
    """What a child can change of its parent, and of those that this comes from, without reaching into them."""
    limits = [resource.getrlimit(limit) for limit in LIMITS]
    manners = [
        (os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid), os.sched_getaffinity(pid))
        for pid in (os.getpid(), os.getppid())
    ]
    return limits, manners


def other_processes():
    """All of the sandbox but us and those that we come from."""
    kept = {1, os.getppid(), os.getpid()}
    return {int(name) for name in os.listdir("/proc") if name.isdigit()} - kept


def tmp_state():
    """Of a tmpfs the size tells the entries."""
    status = os.stat(TMP)
    return status.st_mode, status.st_size


def import_ahead(source):
    """Import what the program will. No code of its own runs: modules come from where nobody in here can write."""
    import traceback

    try:
        statements = ast.parse(source).body
    except MemoryError:  # that of a long expression takes many times the memory of its code
        return
    for statement in statements:
        try:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    __import__(alias.name)
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                __import__(statement.module, None, None, [alias.name for alias in statement.names])
            elif isinstance(statement, ast.AsyncFunctionDef):
                import asyncio
        except BaseException:  # the program will be told when it tries
            pass


def remove_entries(directory):
    os.chmod(directory, 0o700)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_entries(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)


def end_like(code):
    """As at isolation `session`, where this would have been our own end."""
    if code < 0:
        if code != -SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


Parent = Zygote
