# SPDX-License-Identifier: Apache-2.0
"""Faults in bulk: small migrations of all kinds, and whatever can go wrong with each of them, from one seed.

    chaos.py FAULTS SEED WORKERS [TLS-DIRECTORY]

Each worker has daemons of its own in the working directory, and takes its part of the faults. A fault is chosen by its
number and the seed alone, so that one can be had again. What must hold after each, whatever it was:

  * no step takes for ever;
  * where the source says `completed`, so does the destination, and it has exactly what was sent;
  * where the destination says `completed`, the source does not say anything else, and it has exactly what was sent;
  * whoever has failed says why;
  * with `resume`, connections that are cut, or that a destination is stopped, end nothing;
  * when all are forgotten, the daemons have no more descriptors and no more threads of migrations than before.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

MIGFS = os.environ["MIGFS"]
PATIENCE = 120          # seconds for one step; what is reached in it is a hang
FINAL = ("completed", "failed", "cancelled")
EVERY = 40              # faults between two looks at what the daemons have


class Wrong(Exception):
    """What must hold does not."""


def until(what, done):
    """@what: a text, or what gives one when it is too late."""
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise Wrong(f"for ever: {what() if callable(what) else what}")
        time.sleep(0.002)


class Daemon:
    def __init__(self, name, *options):
        self.name, self.options, self.process = name, options, None
        self.path = os.path.abspath(name)
        self.log = self.path + ".log"
        os.makedirs(self.path, exist_ok=True)
        self.begin()

    def begin(self):
        argv = [MIGFS, "-f"]
        for option in self.options:
            argv += ["-o", option]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(argv + [self.path], stdout=log, stderr=log)
        until(f"{self.name} is mounted ({self.last_words()})", lambda: self.process.poll() is not None or os.path.ismount(self.path))
        if self.process.poll() is not None:
            raise Wrong(f"{self.name} does not start: {self.last_words()}")
        os.listdir(self.path)               # it answers, and so has all that it needs
        self.before = len(self.descriptors())

    def last_words(self):
        try:
            with open(self.log) as log:
                return " / ".join(log.read().split("\n")[-4:-1])
        except OSError:
            return ""

    def check(self):
        code = self.process.poll()
        if code is not None:
            raise Wrong(f"{self.name} has ended by itself with {code}: {self.last_words()}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def again(self):
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL)
        until(f"{self.name} is unmounted", lambda: not os.path.ismount(self.path))
        self.begin()

    def end(self):
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Wrong(f"for ever: {self.name} ends")
        if code:
            raise Wrong(f"{self.name} ends with {code}: {self.last_words()}")

    def migration_threads(self):
        proc = f"/proc/{self.process.pid}/task"
        names = []
        for task in os.listdir(proc):
            try:
                with open(f"{proc}/{task}/comm") as comm:
                    names.append(comm.read().strip())
            except OSError:
                pass
        return [name for name in names if name.startswith(("mig-recv", "mig-in", "mig-out", "mig-ref", "mig-digest", "mig-pre"))]

    def descriptors(self):
        return os.listdir(f"/proc/{self.process.pid}/fd")

    def possessions(self):
        """For a report."""
        names = []
        for fd in self.descriptors():
            try:
                names.append(os.readlink(f"/proc/{self.process.pid}/fd/{fd}"))
            except OSError:
                pass
        return (f"{self.name} has no more than it had: {len(names)} descriptors, and had {self.before}; "
                f"{' '.join(sorted(names))} {' '.join(self.migration_threads())}; {', '.join(os.listdir(self.path))}")

    def holds_nothing(self):
        return not self.migration_threads() and len(self.descriptors()) <= self.before


class Case:
    """One migration with one fault, by its number."""

    KINDS = (("cut", 50), ("corrupt", 8), ("short", 6), ("delay", 3), ("stop", 3), ("cancel", 8), ("kill-source", 4),
             ("kill-destination", 4), ("full", 5), ("descriptors", 5), ("remove", 2), ("none", 2))

    def __init__(self, seed, number, has_tls):
        self.random = r = random.Random(f"{seed}/{number}")
        self.number = number
        self.kind = r.choices([k for k, _ in self.KINDS], [w for _, w in self.KINDS])[0]
        self.channels = r.choice((1, 2, 2, 3, 5))
        self.size = r.choice((4096, 70000, 300001, 1 << 20, (2 << 20) + 5))
        self.way = r.choice(("pushed", "pushed", "reference", "compare"))
        self.tls = has_tls and r.random() < 0.4
        self.settings = {"channels": self.channels, "timeout": 5}
        if r.random() < 0.3:
            self.settings["compression"] = "zstd"
        if self.channels > 1 and r.random() < 0.2:
            self.settings["device-channels"] = 1
        if self.kind == "corrupt":              # only what is looked at can be found
            self.settings["checksum"] = "on"
        elif self.way != "pushed" and r.random() < 0.3:
            self.settings["verify"] = "on"
        self.devices = [f"dev{i}" for i in range(r.choice((0, 1, 2, 4)))]
        # Pieces of what is there, zeros between them; the same for the same seed.
        block = r.randbytes(65536)
        self.image = bytearray()
        while len(self.image) < self.size:
            self.image += block if r.random() < 0.5 else bytes(r.choice((4096, 65536))) if r.random() < 0.7 else block[:4096]
        del self.image[self.size:]
        self.blobs = {name: r.randbytes(r.choice((1, 5000, 70000, 200000))) for name in self.devices}
        self.after = r.random() * 0.03          # seconds, of what happens by itself
        self.spare = r.randrange(0, 6)          # descriptors that are left
        self.syncs = r.random() < 0.5
        # A connection that is cut sooner never says hello; with TLS, never has a handshake and a whole record.
        self.most = r.choice((700, 3000, 30000, self.size + 20000, 2 * self.size + 100000))
        self.cut = r.randrange(1, self.most)
        self.resumes = self.kind in ("cut", "short", "delay", "stop", "none") and r.random() < 0.5 and self.cut > (40000 if self.tls else 2000)
        if self.resumes:
            self.settings["resume"] = 30

    def faults(self):
        r = self.random
        only = "" if r.random() < 0.3 else f"+only={r.randrange(self.channels + 1)}"
        if self.kind == "cut":
            return f"faulty:cut={self.cut}{only}:"
        if self.kind == "corrupt":
            return f"faulty:corrupt={r.randrange(1, r.choice((700, 30000, self.size + 20000)))}{only}:"
        if self.kind == "short":
            return f"faulty:short={r.choice((1000, 4097, 60000))}{only}:"
        if self.kind == "delay":
            return f"faulty:delay={r.choice((1, 3))}{only}:"
        return ""

    def __str__(self):
        return (f"fault {self.number}: {self.kind}, {self.way}, {self.size} bytes, {len(self.devices)} devices, "
                f"{' '.join(f'{k}={v}' for k, v in self.settings.items())}{', TLS' if self.tls else ''}")


class Worker:
    def __init__(self, index, seed, numbers, tls):
        self.seed, self.numbers, self.tls = seed, numbers, tls
        self.dir = f"worker{index}"
        os.makedirs(self.dir)
        self.small = os.path.abspath(f"{self.dir}/small")
        os.makedirs(self.small)
        self.has_small = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512K", "none", self.small],
                                        stderr=subprocess.DEVNULL).returncode == 0
        self.daemons = {}
        self.states = {}
        self.current = None
        self.failure = None
        self.step = ""

    # ---- Daemons ----

    def listen(self, tls):
        if not tls:
            return "unix:" + os.path.abspath(f"{self.dir}/socket")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return f"tcp:127.0.0.1:{s.getsockname()[1]}"

    def pair(self, kind):
        """Of this kind: plain, tls, or small (whose destination has next to no room)."""
        if kind not in self.daemons:
            uri = self.listen(kind == "tls") + ("2" if kind == "small" else "")
            common = ["timeout=5"]
            more = {"tls": [[f"tls={self.tls}/src"], [f"tls={self.tls}/dst"]], "small": [[], [f"backing={self.small}"]]}
            source, destination = more.get(kind, [[], []])
            self.daemons[kind] = (Daemon(f"{self.dir}/{kind}-src", *common, *source),
                                  Daemon(f"{self.dir}/{kind}-dst", f"listen={uri}", *common, *destination), uri)
        return self.daemons[kind]

    # ---- Steps ----

    def write(self, path, text):
        self.step = f"{text.strip()[:20]} to {path}"
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def read(self, path):
        with open(path) as text:
            return text.read()

    def state(self, directory):
        self.step = f"status of {directory}"
        for line in self.read(directory + "/status").split("\n"):
            if line.startswith("status "):
                return line.split()[1]
        return ""

    def put(self, path, data, flags=0):
        self.step = f"data to {path}"
        fd = os.open(path, os.O_WRONLY | flags, 0o600)
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(fd, data[at:at + 65536], at)
        finally:
            os.close(fd)

    def move(self, case, directory, uri):
        """The writer's part. Any step may fail."""
        self.write(directory + "/uri", case.faults() + uri)
        for key, value in case.settings.items():
            self.write(f"{directory}/{key}", str(value))
        if case.way == "pushed":
            os.truncate(directory + "/ram", case.size)
        else:
            ram = os.path.abspath(f"{self.dir}/ram")
            with open(ram, "wb") as out:
                out.write(case.image)
            if case.way == "compare":
                self.write(directory + "/dirty-tracking", "compare")
            self.write(directory + "/ram-source", ram)
        self.write(directory + "/control", "start")
        if case.way == "pushed":
            self.put(directory + "/ram", bytes(case.image))
        elif case.way == "reference":
            with open(directory + "/dirty", "wb", buffering=0) as dirty:
                dirty.write(b"\xff" * ((case.size + 4096 * 64 - 1) // (4096 * 64) * 8))
        else:
            self.write(directory + "/control", "precopy")
        for name in case.devices:
            self.put(f"{directory}/device-state/{name}", case.blobs[name], os.O_CREAT)
        if case.syncs:
            self.write(directory + "/control", "sync")
        self.write(directory + "/control", "complete")

    def disturb(self, case, source, destination, directory):
        """What happens by itself, after a while, while the writer is at work."""
        time.sleep(case.after)
        if case.kind == "kill-source":
            source.kill()
        elif case.kind == "kill-destination":
            destination.kill()
        elif case.kind == "stop":
            destination.process.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            destination.process.send_signal(signal.SIGCONT)
        elif case.kind == "cancel":
            try:
                self.write(directory + "/control", "cancel")
            except OSError:
                pass
        elif case.kind == "descriptors":
            limit = len(destination.descriptors()) + case.spare
            subprocess.run(["prlimit", "--pid", str(destination.process.pid), f"--nofile={limit}:"])
        elif case.kind == "remove":
            try:
                os.unlink(f"{directory}/device-state/{case.devices[0]}" if case.devices else directory + "/nothing")
            except OSError:
                pass

    # ---- Judgement ----

    def end_of(self, what, directory):
        """The final state, or None: there is nothing of that name."""
        states = []

        def is_final():
            try:
                states.append(self.state(directory))
            except FileNotFoundError:
                states.append(None)
            except (ConnectionError, OSError) as error:
                raise Wrong(f"{what}: its status cannot be read: {error}")
            return states[-1] is None or states[-1] in FINAL or states[-1] == "none"
        until(f"{what} is over ({states[-1:]})", is_final)
        return states[-1]

    def compare(self, case, directory):
        self.step = f"comparing {directory}"
        with open(directory + "/ram", "rb") as ram:
            if ram.read() != case.image:
                raise Wrong("completed, and the RAM is not what was sent")
        for name in case.devices:
            if case.kind == "remove" and name == case.devices[0] and not os.path.exists(f"{directory}/device-state/{name}"):
                continue
            with open(f"{directory}/device-state/{name}", "rb") as blob:
                if blob.read() != case.blobs[name]:
                    raise Wrong(f"completed, and {name} is not what was sent")

    def says_why(self, directory):
        if not self.read(directory + "/error").strip():
            raise Wrong(f"{directory} has failed, and does not say why")

    def forget(self, directory):
        self.step = f"forgetting {directory}"
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass

    def run(self, case):
        kind = "small" if case.kind == "full" and self.has_small else "tls" if case.tls else "plain"
        source, destination, uri = self.pair(kind)
        name = f"vm{case.number}"
        there, here = f"{destination.path}/{name}", f"{source.path}/{name}"
        os.mkdir(here)
        other = threading.Thread(target=self.disturb, args=(case, source, destination, here))
        other.start()
        try:
            self.move(case, here, uri)
            told = None
        except OSError as error:
            told = error
        other.join()
        if case.kind == "descriptors":
            subprocess.run(["prlimit", "--pid", str(destination.process.pid), "--nofile=1024:"])
        if case.kind == "kill-source":
            source.again()
            ours = None
        else:
            source.check()
            ours = self.end_of(f"{name} at the source", here) if told else self.state(here)
        if case.kind == "kill-destination":
            destination.again()
            theirs = None
        else:
            destination.check()
            theirs = self.end_of(f"{name} at the destination", there)
        self.judge(case, told, ours, theirs, here, there)
        for directory, state in ((here, ours), (there, theirs)):
            if state:
                self.forget(directory)
        self.states[ours or "gone"] = self.states.get(ours or "gone", 0) + 1

    def judge(self, case, told, ours, theirs, here, there):
        if ours == "completed" and case.kind != "kill-destination":
            if theirs != "completed":
                raise Wrong(f"the source has completed, and the destination is {theirs}")
        if ours is not None and ours != "completed" and theirs == "completed":
            raise Wrong(f"the destination has completed, and the source is {ours}: {self.read(here + '/error').strip()}")
        if theirs == "completed":
            self.compare(case, there)
        if ours == "completed" and told and case.kind not in ("cancel", "remove"):
            raise Wrong(f"the source has completed, and the writer was told {told}")
        if not told and ours not in (None, "completed"):
            raise Wrong(f"no step has failed, and the source is {ours}")
        if ours == "failed":
            self.says_why(here)
        if theirs == "failed":
            self.says_why(there)
        if (case.kind in ("short", "none") or case.resumes) and ours != "completed":
            raise Wrong(f"nothing is wrong, and the source is {ours}: {told}, {self.read(here + '/error').strip()}")

    def look(self):
        for kind in self.daemons:
            for daemon in self.daemons[kind][:2]:
                until(daemon.possessions, daemon.holds_nothing)

    def work(self):
        try:
            for done, number in enumerate(self.numbers):
                self.current = Case(self.seed, number, bool(self.tls))
                self.run(self.current)
                if done % EVERY == EVERY - 1:
                    self.step = "what is left"
                    self.look()
            self.look()
            for kind in self.daemons:
                for daemon in self.daemons[kind][:2]:
                    daemon.end()
        except Exception as error:
            self.failure = f"{self.current}: {type(error).__name__}: {error} (after: {self.step})"
        finally:
            if self.has_small:
                subprocess.run(["umount", "-l", self.small])


def main():
    faults, seed, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    tls = sys.argv[4] if len(sys.argv) > 4 else None
    numbers = [int(os.environ["MIGFS_FAULT"])] if "MIGFS_FAULT" in os.environ else range(faults)
    workers = [Worker(i, seed, list(numbers)[i::count], tls) for i in range(count)]
    threads = [threading.Thread(target=worker.work, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    # A step that takes for ever is where its worker stands when nothing moves any more.
    last, since = None, time.monotonic()
    while any(thread.is_alive() for thread in threads):
        threads[next(i for i, t in enumerate(threads) if t.is_alive())].join(0.5)
        now = [(w.current and w.current.number, w.step) for w in workers]
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 2 * PATIENCE:
            for worker, thread in zip(workers, threads):
                if thread.is_alive():
                    print(f"FAIL: for ever: {worker.current}: {worker.step}")
            os._exit(1)
    states = {}
    for worker in workers:
        if worker.failure:
            print("FAIL:", worker.failure)
        for state, n in worker.states.items():
            states[state] = states.get(state, 0) + n
    print(f"{sum(states.values())} faults: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items())))
    sys.exit(any(worker.failure for worker in workers))


main()
