# SPDX-License-Identifier: Apache-2.0
"""Scenario `live`: the ways to move a QEMU guest that runs and writes, beside each other."""

import glob
import json
import os
import re
import select
import socket
import subprocess
import sys
import time

import machine
import mount
import qemu
from machine import Failure, Skip
from report import Scenario, plain

CHANNELS = 4
LIMIT_MS = 300
PATIENCE = 20       # seconds that QEMU may take to converge; then its guest may be stopped for as long as it wants
FIRST, BLOCK = 32 << 20, 8 << 20    # of guest.s
REACH = 3 << 30     # guest.s has 32 bits, and of RAM of 3.5 GiB and more the machine puts the rest behind its 4 GiB
RATES = {"idle": "idle", "50": "50 MB/s", "200": "200 MB/s", "max": "all it can"}
# Whether each guest goes over all of its memory afterwards, not just over a part of it.
WHOLE = os.environ.get("BENCH_WHOLE") == "1"


class Monitor:
    """QMP, with the times of events."""

    def __init__(self, path, process):
        self.socket = socket.socket(socket.AF_UNIX)
        machine.wait_until("QEMU listens for QMP", lambda: machine.connects(self.socket, path), process)
        self.buffer = b""
        self.at = {}            # of events and states of a migration
        self.execute("qmp_capabilities")
        self.capabilities("events")

    def _read(self, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.socket], [], [], max(end - time.monotonic(), 0))[0]:
                return None
            got = self.socket.recv(65536)
            if not got:
                raise Failure("QEMU has ended")
            self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            when = message["timestamp"]["seconds"] + message["timestamp"]["microseconds"] / 1e6
            name = message["data"]["status"] if message["event"] == "MIGRATION" else message["event"]
            self.at[name] = when
            if name == "failed":
                raise Failure("QEMU's migration has failed")
        return message

    def execute(self, command, **arguments):
        text = json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        self.socket.sendall(text.encode() + b"\n")
        while True:
            answer = self._read(60)
            if answer is None:
                raise Failure(f"QEMU does not answer {command}")
            if "error" in answer:
                raise Failure(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def capabilities(self, *names):
        self.execute("migrate-set-capabilities", capabilities=[{"capability": n, "state": True} for n in names])

    def until(self, name, seconds=60):
        end = time.monotonic() + seconds
        while name not in self.at:
            if self._read(max(end - time.monotonic(), 0)) is None:
                return False
        return True


def used(size):
    """Where what the guest uses of its RAM ends."""
    return min(size - FIRST, REACH)


class Guest:
    """One QEMU."""

    def __init__(self, which, name, size, ram, *more, start=True, prealloc=False):
        self.blocks = used(size) // BLOCK
        self.name, self.path = name, os.path.join(machine.work, name)
        # The id is that of RAM which nobody has asked for by a backend.
        memory = ["-object", f"memory-backend-file,id=pc.ram,share=on,mem-path={ram},size={size}",
                  "-machine", "pc,memory-backend=pc.ram"] if ram else ["-machine", "pc"]
        if prealloc:
            memory = ["-object", f"memory-backend-ram,id=pc.ram,size={size},prealloc=on", "-machine", "pc,memory-backend=pc.ram"]
        self.argv = which["argv"] + [
            "-accel", "tcg", "-m", f"{size >> 20}M", *memory, "-nodefaults", "-no-user-config", "-display", "none",
            "-name", f"{name},debug-threads=on", "-drive", f"if=floppy,format=raw,readonly=on,file={machine.work}/guest.img",
            "-serial", f"file:{self.path}.serial", "-qmp", f"unix:{self.path}.qmp,server=on,wait=off",
            "-qmp", f"unix:{self.path}.tool,server=on,wait=off", *more]
        self.env = which["env"]
        self.process = self.qmp = None
        if start:
            self.start(machine.spawn(self.argv, log=name + ".log", env=self.env))

    def start(self, process):
        self.process, self.pid = process, process.pid
        self.qmp = Monitor(self.path + ".qmp", process)

    def said(self):
        with open(self.path + ".serial", "rb") as serial:
            text = serial.read()
        if b"WRONG" in text:
            raise Failure(f"the guest has found a wrong word in its memory ({self.name})")
        return text.count(b"good\n")

    def cpu(self):
        """Seconds of its threads that are not the guest."""
        clock = time.clock_gettime((~self.pid << 3) | 2)
        for comm in glob.glob(f"/proc/{self.pid}/task/*/comm"):
            try:
                with open(comm) as name, open(os.path.join(os.path.dirname(comm), "schedstat")) as stat:
                    clock -= int(stat.read().split()[0]) / 1e9 if name.read().startswith("CPU ") else 0
            except OSError:
                pass            # it has ended, and was none of the guest
        return clock

    def end(self):
        try:
            self.qmp.execute("quit")
        except (Failure, OSError):
            pass
        self.qmp.socket.close()
        machine.end(self.process)


def make_guest(size, rate):
    """guest.s for this rate: a name, MB/s, or max."""
    words = ["--defsym", f"LAST={used(size)}"]
    if rate == "idle":
        words += ["--defsym", "CHUNK=4096", "--defsym", "TICKS=65535"]
    elif rate != "max":
        chunk = 65536
        while chunk * 128 < int(rate) * 1000000:
            chunk *= 2
        words += ["--defsym", f"CHUNK={chunk}", "--defsym", f"TICKS={chunk * 1193182 // (int(rate) * 1000000)}"]
    work = machine.work
    subprocess.run(["as", "--32", *words, "-o", f"{work}/guest.o", f"{machine.ROOT}/examples/guest.s"], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", f"{work}/guest.img",
                    f"{work}/guest.o"], check=True)


def boot(which, size, ram):
    guest = Guest(which, "source", size, ram)
    # It has filled its memory when it comes to the first block. An idle one takes minutes for that: so long as its RAM grows.
    resident = [0, time.monotonic()]

    def is_ready():
        now = machine.resident(guest.pid)
        if now > resident[0]:
            resident[:] = now, time.monotonic()
        return guest.said() or time.monotonic() > resident[1] + 2 and now >= used(size) - FIRST
    try:
        machine.wait_until("the guest runs", is_ready, guest.process)
    except Failure:
        guest.end()
        raise
    time.sleep(1)       # no synchronisation: of each second that it runs, it has written as much
    return guest


def figures(begin, source, there, cpu, transferred, rounds, converged):
    there.qmp.until("RESUME")
    source.qmp.until("STOP", 1)
    return {"downtime": (there.qmp.at["RESUME"] - source.qmp.at["STOP"]) * 1e3, "total": there.qmp.at["RESUME"] - begin,
            "cpu": cpu, "bytes": int(transferred), "rounds": int(rounds), "converged": converged}


def by_live_migrate(which, size, ends, zstd, mapped=False):
    """Both ends by examples/live-migrate."""
    ram = None if mapped else os.path.join(machine.work, "ram")
    with mount.Pair() as pair:
        source = boot(which, size, ram)
        ends.append(source)
        there = Guest(which, "there", size, "{ram}" + (",offset={offset}" if mapped else ""), start=False)
        tool = os.path.join(machine.ROOT, "examples", "live-migrate")
        costs, before = pair.cost(), source.cpu()
        begin = time.time()
        receive = machine.spawn([tool, "receive", "--wait", pair.path("dst", "vm"), "--", *there.argv], log="receive.log", env=there.env)
        machine.wait_until("the migration is expected", lambda: os.path.isdir(pair.path("dst", "vm")), receive)
        send = subprocess.Popen([tool, "send", *(["--mapped-ram"] if mapped else []), "--anyway", "--uri", pair.uri, "--channels",
                                 str(CHANNELS), "--downtime-limit", str(LIMIT_MS), *(["--set", "compression=zstd"] if zstd else []), "--qmp", source.path + ".tool",
                                 pair.path("src", "vm")], stdout=subprocess.PIPE, text=True)
        there.start(receive)
        there.pid = int.from_bytes(there.qmp.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
        ends.append(there)
        said = send.communicate()[0]
        if send.returncode:
            raise Failure(f"live-migrate: {said} {machine.last_words('receive.log')}")
        there.qmp.until("RESUME")
        cpu = sum(cost.take()[0] for cost in costs) + source.cpu() - before + there.cpu()
        with open(pair.path("src", "vm", "status")) as lines:
            status = dict(line.rstrip("\n").split(" ", 1) for line in lines)
        rounds = re.search(r": (\d+) rounds and the last one", said)[1]
        result = figures(begin, source, there, cpu, status["transferred"], int(rounds) + 1, "does not converge" not in said)
        goes_on(there)
        for one in (there, source):
            ends.remove(one)
            one.end()
    if ram:
        os.unlink(ram)
    return result


def by_reference(which, size, ends, zstd):
    return by_live_migrate(which, size, ends, zstd)


def in_place(which, size, ends, zstd):
    return by_live_migrate(which, size, ends, zstd, mapped=True)


def mapped_ram(which, size, ends, zstd):
    with mount.Pair() as pair:
        source = boot(which, size, None)
        there = Guest(which, "there", size, None, "-incoming", "defer", prealloc=True)
        ends += [source, there]
        for one in (source, there):
            one.qmp.capabilities("mapped-ram", "multifd")
            one.qmp.execute("migrate-set-parameters", multifd_channels=CHANNELS, max_bandwidth=10 ** 12, downtime_limit=LIMIT_MS)
        costs, before = pair.cost(), source.cpu() + there.cpu()
        begin = time.time()
        os.mkdir(pair.path("dst", "vm"))
        os.mkdir(pair.path("src", "vm"))
        migration = type("Here", (), {"status": lambda side: dict(
            line.rstrip("\n").split(" ", 1) for line in open(pair.path(side, "vm", "status")))})
        for name, value in (("uri", pair.uri), ("channels", CHANNELS), ("compression", "zstd" if zstd else "none"),
                            ("control", "start")):
            with open(pair.path("src", "vm", name), "w") as out:
                out.write(str(value))
        source.qmp.execute("migrate", uri="file:" + pair.path("src", "vm", "ram"))
        converged = finish(source)
        with open(pair.path("src", "vm", "control"), "w") as out:
            out.write("complete")
        with open(pair.path("dst", "vm", "wait")) as wait:
            if wait.read().strip() != "completed":
                raise Failure("it has not completed")
        there.qmp.execute("migrate-incoming", uri="file:" + migration.status("dst")["ram-path"])
        there.qmp.until("RESUME")
        cpu = sum(cost.take()[0] for cost in costs) + source.cpu() + there.cpu() - before
        info = source.qmp.execute("query-migrate")
        result = figures(begin, source, there, cpu, migration.status("src")["transferred"], info["ram"]["dirty-sync-count"], converged)
        goes_on(there)
        for one in (source, there):
            ends.remove(one)
            one.end()
    return result


def finish(source):
    """Until QEMU has completed. False: only when it was allowed to stop the guest for long."""
    if source.qmp.until("completed", PATIENCE):
        return True
    source.qmp.execute("migrate-set-parameters", downtime_limit=200000)
    if not source.qmp.until("completed", 120):
        raise Failure("it does not converge at all")
    return False


def multifd(which, size, ends, zstd):
    source = boot(which, size, None)
    there = Guest(which, "there", size, None, "-incoming", "defer")
    ends += [source, there]
    for one in (source, there):
        one.qmp.capabilities("multifd")
        one.qmp.execute("migrate-set-parameters", multifd_channels=CHANNELS, max_bandwidth=10 ** 12, downtime_limit=LIMIT_MS,
                        multifd_compression="zstd" if zstd else "none")
    uri = f"tcp:127.0.0.1:{machine.free_port()}"
    before = source.cpu() + there.cpu()
    begin = time.time()
    there.qmp.execute("migrate-incoming", uri=uri)
    source.qmp.execute("migrate", uri=uri)
    converged = finish(source)
    there.qmp.until("RESUME")
    cpu = source.cpu() + there.cpu() - before
    info = source.qmp.execute("query-migrate")
    result = figures(begin, source, there, cpu, info["ram"]["transferred"], info["ram"]["dirty-sync-count"], converged)
    goes_on(there)
    for one in (source, there):
        ends.remove(one)
        one.end()
    return result


def goes_on(guest):
    """Over what it has written: a wrong word ends it, and is said()."""
    had = guest.said() if os.path.exists(guest.path + ".serial") else 0
    blocks = guest.blocks if WHOLE else 16
    end = time.monotonic() + (600 if WHOLE else 8)
    while time.monotonic() < end and guest.said() <= had + blocks:
        time.sleep(0.1)
    if WHOLE and guest.said() <= had + blocks:
        raise Failure("the guest does not go over all of its memory")


def move(way, which, size, rate, zstd, row):
    ends = []
    make_guest(size, rate)
    try:
        return {row: way(which, size, ends, zstd)}
    finally:
        for one in ends:
            one.end()
        for left in glob.glob(os.path.join(machine.work, "*.serial")):
            os.unlink(left)


def scenario(found, size):
    """@found: qemu.installed()"""
    s = Scenario("live", f"guests of {size >> 20} MiB that use {used(size) >> 20} of them and write, moved while they run", [
        ("downtime, ms", plain("downtime"), ".0f"), ("total, s", plain("total"), ".2f"), ("rounds", plain("rounds"), ".0f"),
        ("sent, MB", lambda figures: figures["bytes"] / 1e6, ".0f"), ("CPU s", plain("cpu"), ".2f"),
        ("converges", plain("converged"), ".1f")], [
        f"Guests of examples/guest.s in TCG; {CHANNELS} channels over loopback, downtime-limit {LIMIT_MS}. Downtime is from STOP at the "
        "source to RESUME at the destination, QEMU's start apart; CPU that of all processes, without the guest's own.",
        "\"by reference\" is `dirty-tracking compare`; \"mapped-ram, mapped\" maps the file that QEMU has written where it has arrived, "
        "\"mapped-ram, loaded\" loads it into memory that is there. Both are by examples/live-migrate, but for the last.",
        "Where it does not converge, the guest is stopped all the same, and \"converges\" is 0.",
    ], smaller=True)
    which = found.get("10") or next(iter(found.values()), None)
    ways = [("migfs, by reference", by_reference), ("QEMU's multifd", multifd)]
    has_mapped = which and int(which["version"].split(".")[0]) >= 9
    ways[1:1] = [("migfs, mapped-ram, mapped", in_place), ("migfs, mapped-ram, loaded", mapped_ram)] if has_mapped else []
    for rate, text in RATES.items():
        for zstd in ("", ", zstd"):
            for name, way in ways:
                row = f"{text}, {name}{zstd}"

                def run(check, way=way, rate=rate, zstd=zstd, row=row):
                    if not which:
                        raise Skip("there is no QEMU")
                    return move(way, which, size, rate, zstd, row)
                s.add(row, run)
            for name, _ in ways[:-1]:
                s.ratio(f"{text}{zstd}: {name} / QEMU's multifd", f"^{text}, {name}{zstd}$", f"^{text}, QEMU's multifd{zstd}$",
                        "<= 1.0" if "reference" in name else "<= 1.15")
    return s
