# SPDX-License-Identifier: Apache-2.0
"""migfs: two daemons on this machine, and migrations between them."""

import os
import subprocess

import machine
from machine import Failure, Skip


class Pair:
    """A source and a destination. The image arrives in a file in tmpfs, as a VMM wants it."""

    def __init__(self, options="", destination_options="", source_prefix=(), destination_prefix=(), host="127.0.0.1",
                 tls=False):
        self.port = machine.free_port()
        self.uri = f"tcp:{host}:{self.port}"
        self.backing = os.path.join(machine.work, "received")
        os.makedirs(self.backing, exist_ok=True)
        self.daemons = {}
        self.names = []
        extra = "".join(f",{some}" for some in (options, destination_options) if some)
        ours, theirs = (f"tls={directory}" for directory in machine.certificates()) if tls else ("", "")
        extra += f",{theirs}" if tls else ",insecure" if host != "127.0.0.1" and machine.refuses_strangers() else ""
        self._mount("dst", destination_prefix, f"listen={self.uri},backing={self.backing},max-memory=64G{extra}")
        self._mount("src", source_prefix, ",".join(some for some in (options, ours) if some))

    def _mount(self, name, prefix, options):
        path = self.path(name)
        os.makedirs(path, exist_ok=True)
        argv = [*prefix, machine.MIGFS, "-f", *(["-o", options] if options else []), path]
        self.daemons[name] = process = machine.spawn(argv, log=f"migfs-{name}.log")
        machine.wait_until(f"migfs has mounted {name} ({machine.last_words(f'migfs-{name}.log')})",
                           lambda: os.path.ismount(path), process)

    def path(self, *names):
        return os.path.join(machine.work, *names)

    def cost(self):
        return [machine.Cost(self.daemons[name].pid) for name in ("src", "dst")]

    def migration(self, name, size, settings):
        migration = Migration(self, name, size, settings)
        self.names.append(name)
        return migration

    def close(self):
        for name in ("src", "dst"):
            if name not in self.daemons:
                continue
            process = self.daemons[name]
            machine.end(process)
            if process.returncode and process.returncode > 0:
                raise Failure(f"migfs ({name}) ends with {process.returncode}: {machine.last_words(f'migfs-{name}.log')}")
        machine.unmount_below(machine.work)
        for name in os.listdir(self.backing):
            os.unlink(os.path.join(self.backing, name))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            self.close()
        except Failure:
            if not kind:
                raise


class Migration:
    """An outgoing migration that has been started; settings that this migfs does not have are a reason to skip."""

    def __init__(self, pair, name, size, settings):
        self.pair, self.name, self.size = pair, name, size
        os.mkdir(pair.path("src", name))
        for key, value in {"uri": pair.uri, **settings}.items():
            path = self.file(key)
            if not os.path.exists(path):
                raise Skip(f"this migfs has no setting '{key}'")
            try:
                with open(path, "w") as out:
                    out.write(str(value))
            except OSError as error:
                raise Skip(f"{key} = {value}: {error.strerror}: {self.error()}")
        os.truncate(self.file("ram"), size)
        self.command("start")

    def file(self, name, side="src"):
        return self.pair.path(side, self.name, name)

    def error(self):
        try:
            with open(self.file("error")) as text:
                return text.read().strip()
        except OSError:
            return ""

    def command(self, text):
        try:
            fd = os.open(self.file("control"), os.O_WRONLY)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise Failure(f"{text}: {error.strerror}: {self.error()}")

    def status(self, side="src"):
        with open(self.file("status", side)) as lines:
            return dict(line.rstrip("\n").split(" ", 1) for line in lines)

    def ram_path(self):
        return self.status("dst")["ram-path"]

    def push(self, image, *options):
        """Pushes the image with push(1); its figures and the cost of both sides, the writer's included."""
        return push(self.pair, image, [self], *options)

    def complete(self):
        self.command("complete")
        machine.wait_until("the destination says completed", lambda: self.status("dst")["status"] == "completed")

    def forget(self):
        if self.status()["status"] not in ("completed", "failed", "cancelled"):
            self.command("cancel")
        for side in ("src", "dst"):
            os.rmdir(self.pair.path(side, self.name))


def push(pair, image, migrations, *options):
    costs = pair.cost()
    before = [m.status() for m in migrations]
    try:
        said = machine.helper("push", *options, image, *(m.file("ram") for m in migrations))
    except Failure as failure:
        raise Failure(f"{failure}; {migrations[0].error()}")
    (cpu_source, _), (cpu_destination, faults) = (cost.take() for cost in costs)
    status = [m.status() for m in migrations]

    def grown(key):
        return sum(int(s.get(key, 0)) - int(b.get(key, 0)) for s, b in zip(status, before))

    return {
        **{key: said[key] for key in ("seconds", "written", "writes")},
        "bytes": os.path.getsize(image), "written_bytes": said["bytes"],
        # What it costs to send a byte includes the process that writes it.
        "cpu_source": cpu_source + said["cpu"], "cpu_writer": said["cpu"], "cpu_destination": cpu_destination,
        "cpu_machine": said["busy"], "faults": faults,
        "transferred": grown("transferred"), "duplicate": grown("duplicate"),
        "missed_zero_copy": grown("dirty-sync-missed-zero-copy"),
        "resident": machine.resident(pair.daemons["dst"].pid),
    }


class Discard:
    """The FUSE daemon that forgets what is written."""

    def __init__(self):
        self.path = os.path.join(machine.work, "discard")
        os.makedirs(self.path, exist_ok=True)
        self.process = machine.spawn([os.path.join(machine.BIN, "discard"), self.path])
        machine.wait_until("discard is mounted", lambda: os.path.ismount(self.path), self.process)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        subprocess.run(["umount", self.path])
        machine.end(self.process)
