"""Isolation `item`: the warm parent of processes that run one item each. Executed in the globals of python.py.

    down   RUN  `length u32 | JSON: seq count stop_on_error cpu_s | for each item a RUN as python.py knows it, of one`
           KILL `seq u32`: this item takes too long; means nothing once it is over
    up     END  says, if the item behind those done ended without a row, with which `exit` code or (negative) signal,
           and whether what it left instead of a row was `garbled`

A child is python.py's harness over again, on two pipes of its own; what it writes becomes the one row that is due or
none. What it must not reach:

- The parent, and through it later items. The parent is undumpable, so nobody reads its memory or opens its
  descriptors, and the program's code runs in children only. An input or output that it once had on its heap would be
  on the heap of every later child, so it reads heads of frames and keeps the rest in memory that is not inherited.
- The next child. There is none while an item runs: one is forked ahead only when nothing is left to run, or when the
  item's process is past all it can do and only its memory is yet to be taken down, which takes as long as a fork.
- The next item. Whoever outlives an item becomes our child, since we are a subreaper; so waiting for children tells
  whether the item is really over. Survivors are killed and files in /tmp removed before the next fork. What cannot
  be put right, and every survivor, taints the session.
"""

import gc
import mmap
from os import WNOHANG
from select import PIPE_BUF, POLLIN, POLLOUT
from _ctypes import _SimpleCData, call_cdeclfunction, dlopen, dlsym
from _signal import ITIMER_REAL, SIG_DFL, SIGKILL, SIGXCPU, setitimer, signal

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
WAITPID = dlsym(dlopen(None, 0), "waitpid")
LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
ANY_CHILD = (1 << 32) - 1
"""-1 as a C int; one that is negative costs an exception on the way."""
SMALL = 479
"""Bytes of a frame that is read in one piece: for as many the interpreter has room in its own pools."""
BROKEN = 70
"""Exit code of a child in which the harness itself failed."""
REHEARSALS = 100
"""The interpreter adapts code that has run some ten times, bit by bit."""
TMP = "/tmp"
TIDY_S = 0.05
PIDS_LAST_S = 0.02
"""In so short a time nobody can use up all numbers of processes, to come by the next one again."""
NO_MEMORY = b"0 "
"""What /proc/PID/statm begins with once the first thread of a process has let go of its memory."""
HUGE_PAGE = 2 << 20
FREE_ADDRESS = 1 << 36
"""Between the heap and the libraries. A multiple of 1 << 32: mmap, which returns it, returns a C int here, so 0."""
MAP_FIXED_NOREPLACE, MADV_HUGEPAGE, MADV_COLLAPSE, MREMAP_MAYMOVE, MREMAP_FIXED = 0x100000, 14, 25, 1, 2


class Child:
    """The process of one item, and our ends of its pipes; its own have the same two numbers in all children. It may be
    given what it is to read before it is forked, or later."""

    def __init__(self, its_input, its_result, *unfed):
        self.pid = self.began = None
        self.killed = self.late = self.fed = False
        self.unfed = list(unfed)
        pipe, dup2, close, set_blocking = os.pipe, os.dup2, os.close, os.set_blocking
        theirs, self.input = pipe()
        dup2(theirs, its_input, False)
        close(theirs)
        self.result, theirs = pipe()
        dup2(theirs, its_result, False)
        close(theirs)
        set_blocking(self.input, False)
        set_blocking(self.result, False)

    def feed(self, *last):
        """Write what the pipe takes of the memoryviews in `unfed`, and end it behind the `last` one."""
        unfed = self.unfed
        if last:
            unfed += last
            self.fed = True
        try:
            while unfed:
                unfed[0] = unfed[0][os.write(self.input, unfed[0]) :]
                if not unfed[0]:
                    del unfed[0]
        except BlockingIOError:
            return
        except BrokenPipeError:
            unfed.clear()
        if self.fed:
            os.close(self.input)
            self.input = None

    def has_ended(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_past(self):
        """Whether it runs nothing any more, unless it has threads."""
        statm = os.open("/proc/%d/statm" % self.pid, os.O_RDONLY)
        pages = os.read(statm, len(NO_MEMORY))
        os.close(statm)
        return pages == NO_MEMORY

    def kill(self):
        self.killed = True
        os.kill(self.pid, SIGKILL)

    def bury(self, cpu_s=None):
        """Return its exit code, or minus the signal that ended it: SIGXCPU also if it did not heed that, when it used
        more than `cpu_s`."""
        _, status, used = os.wait4(self.pid, 0)
        self.close()
        code = os.waitstatus_to_exitcode(status)
        if code == -SIGKILL and not self.killed and cpu_s is not None and used.ru_utime + used.ru_stime >= cpu_s:
            return -SIGXCPU
        return code

    def close(self):
        if self.input is not None:
            os.close(self.input)
        os.close(self.result)
        os.close(self.pidfd)


class Zygote:
    def __init__(self, harness, program):
        self.harness = harness
        self.down, self.rows = harness.down, harness.rows
        self.its_input, self.its_result = lifted(os.dup(self.down.fd)), lifted(os.dup(self.rows))
        # for the harness in a child
        harness.down, harness.rows = Pipe(self.its_input, SMALL), self.its_result
        self.let_go = harness.let_go
        self.row = memoryview(uninherited(program["row_bytes_max"] + 1))
        self.filled = 0
        self.ahead = self.last = None
        self.stopping = False
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
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
        return FRAME.unpack(self.read(FRAME_SIZE))

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
        self.rehearse()
        self.harness.code = compiled(self.program["source"], PROGRAM_FILE)
        import_ahead(self.harness.code)
        enlarge_code_pages()
        gc.collect()
        gc.freeze()

    def rehearse(self):
        """Do what a child does, with a program and an item of our own, until the interpreter has adapted to it: what it
        writes down of that is then not for each child to write, into pages that have to be copied first."""
        harness = self.harness
        shape, harness.shape = harness.shape, "function"
        harness.code = compile("def main(value):\n    return value\n", PROGRAM_FILE, "exec")
        meta = json_bytes({"seq": 0, "count": 1, "stop_on_error": False, "eager_stop": False})
        item = len(meta).to_bytes(4, "big") + meta + b'{"a":[1]}'
        for _ in range(REHEARSALS):
            child = self.begin()
            os.write(child.input, FRAME.pack(RUN, len(item)) + item)
            self.execute()
            os.close(child.input)
            os.close(child.result)
        try:
            os.register_at_fork(after_in_child=None)  # is refused, but makes itself ready to be called
        except TypeError:
            pass
        harness.shape = shape
        harness.context.__dict__["_window"] = {}
        harness.call = None
        del sys.modules["program"]

    def load(self):
        """Try the body of the program's module, with which all children begin, in one that is thrown away."""
        began = perf_counter()
        child = self.begin()
        child.feed(b"")
        self.fork(child, self.try_module)
        self.follow(child, None)
        code = child.bury()
        self.is_clean(child)
        kind, said = self.outcome()
        if kind == LOADED:
            self.harness.send(LOADED, {"took_s": perf_counter() - began})
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
        begin += FRAME_SIZE
        if self.filled < begin:
            return 0, b""
        kind, length = FRAME.unpack_from(self.row, begin - FRAME_SIZE)
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
        if self.ahead is None and end["exit"] is None and not end["tainted"]:  # else what was printed is yet to be read
            self.prepare()

    def run_items(self, window, items):
        position = written = 0
        end = {"done": 0, "tainted": False, "exit": None, "garbled": False}
        for done in range(window["count"]):
            stop = position + FRAME_SIZE + FRAME.unpack_from(items, position)[1]
            seq = (window["seq"] + done) & 0xFFFFFFFF
            child = self.run_item(seq, items[position:stop])
            position = stop
            status = self.row_status(seq)
            if status is None:
                code = child.bury(window["cpu_s"])
                end["tainted"] = not self.is_clean(child)
                if code == -SIGKILL and not child.killed:
                    end_like(code)  # by whom nobody knows: then it is the session that is lost
                end["exit"], end["garbled"] = code, self.filled > 0 and not child.late
                return end
            os.waitpid(child.pid, 0)
            child.close()
            end["tainted"] = not (self.is_followed(child) or self.is_clean(child))
            write_all(self.rows, self.row[: self.filled])
            if status == PROGRAM_ERROR:
                import traceback  # which takes ten items' time: it is not to be each child's that fails
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
        """Return the child, which has ended, but is not buried."""
        child, self.ahead = self.ahead, None
        if child is not None and child.has_ended():  # before it had anything to do
            child.bury()
            child = None
        if child is None:
            child = self.begin()
        child.feed(frame)
        if child.pid is None:
            self.fork(child, self.execute)
        self.follow(child, seq)
        return child

    def overtake(self, child, seq):
        """Fork the next child while this one's memory is taken down, if it has left the row that is due and nothing
        else. Whether it was alone is seen later."""
        is_short = perf_counter() - child.began < PIDS_LAST_S
        if is_short and self.harness.sweeps and self.row_status(seq) == OK and child.is_past():
            if tmp_state() == self.tmp:
                self.last = child
                self.prepare()
                self.last = None

    def is_followed(self, child):
        """Whether the next child is there already, and may stay: numbers are given in turn, so that this one, which is
        gone, began neither a process nor a thread. Then it left nothing behind."""
        ahead = self.ahead
        if ahead is None:
            return False
        if ahead.pid == child.pid + 1:
            return True
        self.ahead = None
        ahead.kill()
        ahead.bury()
        return False

    def begin(self):
        """A child to be, with what it is to read before its item."""
        return Child(self.its_input, self.its_result)

    def follow(self, child, seq):
        """Move bytes until the child has ended. What it wrote is in `row` then."""
        row, result, pidfd, down = self.row, child.result, child.pidfd, self.down.fd
        readv, filled, ended = os.readv, 0, False
        poll = select.poll()
        poll.register(down, POLLIN)
        poll.register(pidfd, POLLIN)
        poll.register(result, POLLIN)
        if child.unfed:
            poll.register(child.input, POLLOUT)
        while not ended:
            for fd, _ in poll.poll():
                if fd == pidfd:
                    ended = True
                elif fd == result:
                    size = readv(result, [row[filled:]])
                    filled += size
                    if not size or (filled < PIPE_BUF and seq is not None):  # a row is written at once
                        poll.unregister(result)
                        self.filled = filled
                        self.overtake(child, seq)
                    elif filled == len(row):
                        child.kill()  # longer than any row
                        poll.unregister(result)
                elif fd == down:
                    self.obey(child, seq)
                else:
                    child.feed()
                    if not child.unfed:
                        poll.unregister(fd)
        try:
            while filled < len(row):
                size = readv(result, [row[filled:]])
                if not size:
                    break
                filled += size
        except BlockingIOError:  # somebody else has it, too
            pass
        self.filled = filled

    def row_status(self, seq):
        """The status in what the child wrote, None if that is not the row of this item and nothing else."""
        if self.filled < ROW_HEAD_SIZE:
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
        """Whether no child is left, dead ones aside. Not by os.waitpid, which raises an exception for that."""
        pid = 1
        while pid > 0:
            pid = call_cdeclfunction(WAITPID, (ANY_CHILD, None, WNOHANG))
        return pid < 0

    def tidy(self):
        """Remove all files, in a child: names of files may be what an item worked on."""
        pid = os.fork()
        if pid == 0:
            try:
                setitimer(ITIMER_REAL, TIDY_S)  # which ends it
                remove_entries(TMP)
                os.chmod(TMP, self.tmp[0] & 0o7777)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    # --- in the child

    def fork(self, child, work):
        harness, close = self.harness, os.close
        harness.stdout.renew()
        harness.stderr.renew()
        child.began = perf_counter()
        pid = os.fork()
        if pid:
            child.pid = pid
            child.pidfd = os.pidfd_open(pid)
            close(self.its_input)
            close(self.its_result)
            return
        try:
            close(self.down.fd)
            close(self.rows)
            close(harness.up)
            close(child.result)
            if child.input is not None:
                close(child.input)
            if self.last is not None:
                self.last.close()
            harness.up = None
            os.register_at_fork(after_in_child=self.let_go)
            if not harness.sweeps:
                os.setpgrp()
                prctl(PR_SET_PDEATHSIG, SIGKILL)
            work()
            os._exit(0)
        finally:
            os._exit(BROKEN)

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


def prctl(option, value):
    libc("prctl", option, value, 0, 0, 0)


class Address(_SimpleCData):
    _type_ = "P"


def enlarge_code_pages():
    """Copy the interpreter's code to pages of 2 MiB, and move these to where it was: each child would map it anew, in
    hundreds of small ones, and take them down at its end. Where that cannot be had all stays as it is."""
    begin, end = code_range()
    begin, end = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    if begin >= end or os.uname().machine != "x86_64":  # elsewhere who copies code has caches to flush
        return
    here, there, size = Address(begin), Address(FREE_ADDRESS), Address(end - begin)
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    if libc("mmap", there, size, writable, MAP_FIXED_NOREPLACE | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, Address(0)):
        return
    libc("madvise", there, size, MADV_HUGEPAGE)
    libc("memcpy", there, here, size)
    if libc("madvise", there, size, MADV_COLLAPSE) or libc("mprotect", there, size, mmap.PROT_READ | mmap.PROT_EXEC):
        libc("munmap", there, size)
    else:
        libc("mremap", there, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, here)


def code_range():
    """The addresses of the file that the interpreter is, as far as they are only read."""
    ranges = []
    with open("/proc/self/maps") as lines:
        for line in lines:
            addresses, rights, _, _, inode, *_ = line.split()
            begin, end = (int(address, 16) for address in addresses.split("-"))
            if not rights.startswith("r-"):
                continue
            if ranges and ranges[-1][1:] == [begin, inode]:
                ranges[-1][1] = end
            else:
                ranges.append([begin, end, inode])
    inside = dlsym(dlopen(None, 0), "Py_BytesMain")
    return next(((begin, end) for begin, end, _ in ranges if begin <= inside < end), (0, 0))


def libc(name, *arguments):
    """Like ctypes, without what that brings along."""
    return call_cdeclfunction(dlsym(dlopen(None, 0), name), arguments)


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


def import_ahead(code):
    """Import what the body of a module will. No code of its own runs: modules come from where nobody in here can
    write."""
    for name, part in imports(code):
        try:
            __import__(name, None, None, [part] if part else None)
        except BaseException:  # the program will be told when it tries
            pass


def imports(code):
    """What compiled code imports, as (module, name to be found in it or None)."""
    from opcode import EXTENDED_ARG, opmap

    names = dict(enumerate(code.co_names))
    module, extended = "", 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2]):
        argument |= extended
        extended = argument << 8 if operation == EXTENDED_ARG else 0
        if operation == opmap["IMPORT_NAME"]:
            module = names.get(argument, "")
            yield module, None
        elif operation == opmap["IMPORT_FROM"]:
            yield module, names.get(argument)
    if any(isinstance(part, types.CodeType) and part.co_flags & CO_COROUTINE for part in code.co_consts):
        yield "asyncio", None


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
            signal(-code, SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


Parent = Zygote
