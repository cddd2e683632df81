"""Isolation `item` in languages that cannot fork: the parent of zygote.py, whose children are harnesses of another
language, each started anew. Executed in the globals of python.py, behind zygote.py.

`settings["child"]` is the command line of such a harness. It knows of nothing: it gets the LOAD of the program and a
RUN of one item on a pipe that ends there, and it ends with that. What it says beside its row is heard only when the
program is tried. Started ahead of its item, it has run the body of the program's module when the item comes.
"""


class Spawner(Zygote):
    def make_ready(self):
        self.command = self.harness.settings["child"]
        frame = json_bytes({**self.program, "parent": None})
        self.frame = memoryview(FRAME.pack(LOAD, len(frame)) + frame)

    def begin(self):
        child = Child(self.its_input, self.its_result, self.frame)
        child.feed()
        return child

    def overtake(self, child, seq):
        """Never: what is started here has threads, by which nobody sees that an item was alone."""

    def outcome(self):
        """READY comes first."""
        _, said = self.frame_at(0)
        return self.frame_at(FRAME_SIZE + len(said))

    def fork(self, child, work):
        """In a sandbox without a copy of ourselves, which costs as much again as what is started."""
        if not self.harness.sweeps:
            return super().fork(child, work)
        self.harness.stdout.renew()
        self.harness.stderr.renew()
        up = self.open_up(work)
        child.pid = os.posix_spawn(self.command[0], self.command, self.environment(up))
        child.pidfd = os.pidfd_open(child.pid)
        for fd in (self.its_input, self.its_result, up):
            os.close(fd)

    def open_up(self, work):
        """What the child says besides rows is heard when it is tried."""
        return os.dup(self.its_result) if work == self.try_module else os.open(os.devnull, os.O_WRONLY)

    def try_module(self):
        self.become_harness(self.open_up(self.try_module))

    def execute(self):
        self.become_harness(self.open_up(self.execute))

    def become_harness(self, up):
        os.execve(self.command[0], self.command, self.environment(up))

    def environment(self, up):
        fds = [self.its_input, up, self.its_result]
        for fd in fds:
            os.set_inheritable(fd, True)
        settings = {**self.harness.settings, "fds": fds, "sweep": False}
        return {**os.environb, b"LOOPAID_HARNESS": json_bytes(settings)}


Parent = Spawner
