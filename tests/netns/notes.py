"""Three machines, each one of its own (machine.py), whose resource has ext4, a floating address and a
small service that makes each line durable, and a client outside that knows the address.
"""

import os
import sys

from cluster import run
from example import ADDRESS, HERE, Items
from trio import Trio

PORT = 7000
FILE_SYSTEM_MIB = 48


class Notes(Trio):
    """Three machines, and the notes that their service keeps."""

    def __init__(self, **more):
        super().__init__(attach="fuse", machines=True, **more)
        self.mount = self.dir / "srv"
        self.mount.mkdir()
        server = f"{sys.executable} -I -S {HERE / 'note_server.py'} {self.mount}/notes {PORT} &"
        self.options = f"""services = [
  {{ filesystem = "{self.mount}", type = "ext4" }},
  {{ address = "{ADDRESS}/24", interface = "link0" }},
  {{ command = "notes", start = "{server}" }},
]"""
        self.write_config()
        self.items = None

    def create(self):
        alpha, beta = self.alpha.disk(), self.beta.disk()
        run("mkfs.ext4", "-q", "-F", alpha, f"{FILE_SYSTEM_MIB}M")
        run("cp", "--sparse=always", alpha, beta)
        return super().create()

    def start(self, watched=False):
        super().start(watched=watched)
        self.begin_writing()
        return self

    def begin_writing(self, **more):
        """The client writes from now on."""
        self.items = Items(self, "note_writer.py", more=(PORT,), **more)

    def answers(self):
        """(began, ended, node/process) of every answer."""
        return [(float(began), float(ended), who)
                for _, _, began, ended, who in self.items.lines("ok")]

    def kept(self, _):
        """The numbers that the service has written down."""
        machine = self.primary().machine
        text = run("nsenter", f"--mount=/proc/{machine.process_one}/ns/mnt", "cat",
                   self.mount / "notes").stdout
        return text.split()

    def interruptions(self):
        """Why each connection of the client ended."""
        return [" ".join(words[2:]) for words in self.items.lines("down")]

    def file_system_errors(self):
        """What ext4 has counted on the primary since the file system was made."""
        device = os.path.basename(os.path.realpath(self.primary().device_dir / "demo"))
        with open(f"/sys/fs/ext4/{device}/errors_count", encoding="ascii") as file:
            return int(file.read())

    def server(self, node):
        """The process of the service on a node, by its number on this machine."""
        inside = os.readlink(f"/proc/{node.machine.process_one}/ns/pid")
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == inside:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        words = file.read().split(b"\0")
                    if any(word.endswith(b"note_server.py") for word in words[:4]):
                        return int(entry)
            except OSError:
                pass  # it has just ended
        return None
