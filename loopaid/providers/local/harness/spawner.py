"""Isolation `item` in languages that cannot fork: the parent of zygote.py, whose children are harnesses of another
language, each started anew. Executed in the globals of python.py, behind zygote.py.

`settings["child"]` is the command line of such a harness. It knows of nothing: it gets the LOAD of the program and a
RUN of one item on a pipe that ends there, and it ends with that. What it says beside its row is heard only when the
program is tried. Started ahead of its item, it has run the body of the program's module when the item comes.
"""


class Spawner(Zygote):
    def make_ready(self):
        frame = json_bytes({**self.program, "parent": None})
        self.frame = memoryview(FRAME.pack(LOAD, len(frame)) + frame)

    def begin(self):
        child = Child(self.its_input, self.its_result, self.frame)
        child.feed()
        return child

    def outcome(self):
        """READY comes first."""
        _, said = self.frame_at(0)
        return self.frame_at(FRAME_SIZE + len(said))

    def try_module(self):
        self.become_harness(os.dup(self.harness.rows))

    def execute(self):
        self.become_harness(os.open(os.devnull, os.O_WRONLY))

    def become_harness(self, up):
        harness = self.harness
        fds = [harness.down.fd, up, harness.rows]
        for fd in fds:
            os.set_inheritable(fd, True)
        command = harness.settings["child"]
        settings = {**harness.settings, "fds": fds, "sweep": False}
        os.execve(command[0], command, {**os.environb, b"LOOPAID_HARNESS": json_bytes(settings)})


Parent = Spawner
