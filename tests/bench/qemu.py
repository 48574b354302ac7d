# SPDX-License-Identifier: Apache-2.0
"""QEMU's multifd as a peer: two stopped QEMUs, whose RAM is a shared file in tmpfs, migrate over loopback."""

import json
import os
import socket
import subprocess
import time

import machine
from machine import Failure, Skip


def installed():
    """The QEMUs that there are: their version and how to call them."""
    found = {}
    for version, root in (("7.2", ""), ("10", os.path.join(machine.KEEP, "qemu-10"))):
        program = root + "/usr/bin/qemu-system-x86_64"
        if not os.path.exists(program):
            continue
        env = dict(os.environ)
        argv = [program]
        if root:
            argv += ["-L", root + "/usr/share/qemu", "-L", root + "/usr/share/seabios"]
            env["LD_LIBRARY_PATH"] = root + "/usr/lib/x86_64-linux-gnu"
            env["QEMU_MODULE_DIR"] = root + "/usr/lib/x86_64-linux-gnu/qemu"
        said = subprocess.run([program, "--version"], env=env, capture_output=True, text=True)
        words = said.stdout.split()
        if said.returncode or len(words) < 4:
            continue
        # The installed one need not be 7.2: it goes by what it says.
        name = version if root else ".".join(words[3].split(".")[:2])
        found[name] = {"argv": argv, "env": env, "version": words[3]}
    return found


class Qemu:
    """One QEMU, and its QMP."""

    def __init__(self, which, name, ram, size, prealloc, incoming=False, tls=None):
        self.name = name
        path = os.path.join(machine.work, name + ".qmp")
        argv = which["argv"] + [
            "-S", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
            "-machine", "none,memory-backend=ram", "-m", f"{size >> 20}M",
            "-object", f"memory-backend-file,id=ram,share=on,mem-path={ram},size={size},"
                       f"prealloc={'on' if prealloc else 'off'},prealloc-threads=2",
            "-qmp", f"unix:{path},server=on,wait=off"]
        if tls:
            argv += ["-object", f"tls-creds-x509,id=tls0,dir={tls},endpoint={'server' if incoming else 'client'},verify-peer=on"]
        if incoming:
            argv += ["-incoming", "defer"]
        self.process = machine.spawn(argv, log=name + ".log", env=which["env"])
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(machine.PATIENCE)
        machine.wait_until(f"QEMU listens for QMP ({machine.last_words(name + '.log')})", lambda: machine.connects(self.socket, path),
                           self.process)
        self.lines = self.socket.makefile("rw")
        self.events = []
        self.execute("qmp_capabilities")

    def _read(self):
        line = self.lines.readline()
        if not line:
            raise Failure(f"QEMU ({self.name}) has ended: {machine.last_words(self.name + '.log')}")
        return json.loads(line)

    def execute(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Failure(f"QEMU, {command}: {answer['error']['desc']}")
            elif "return" in answer:                # anything else is a greeting
                return answer["return"]

    def until_completed(self):
        """Waits for the event that says so."""
        while True:
            event = self.events.pop(0) if self.events else self._read()
            if event.get("event") != "MIGRATION":
                continue
            status = event["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                info = self.execute("query-migrate")
                raise Failure(f"QEMU ({self.name}): the migration has {status}: {info.get('error-desc', '')} "
                              f"{machine.last_words(self.name + '.log')}")

    def close(self):
        self.lines.close()
        self.socket.close()
        machine.end(self.process)


def migrate(which, image, channels, prealloc=True, zero_copy=False, compression=None, level=None, check=False,
            listen="127.0.0.1", parameters=None, tls=False):
    """One migration of an image. Returns its figures: rate by QEMU's own total-time and by our clock."""
    size = os.path.getsize(image)
    ram = os.path.join(machine.work, "qemu-ram")
    port = machine.free_port()
    pair = []
    try:
        # The source's RAM is ready too: so it is in a VM that has run.
        ours, theirs = machine.certificates() if tls else (None, None)
        if tls:
            parameters = {"tls-creds": "tls0", **(parameters or {})}
        pair.append(Qemu(which, "source", image, size, True, tls=ours))
        pair.append(Qemu(which, "destination", ram, size, prealloc, incoming=True, tls=theirs))
        source, destination = pair
        capabilities = ["multifd", "events", "return-path"] + (["zero-copy-send"] if zero_copy else [])
        for qemu in pair:
            wanted = [c for c in capabilities if c != "zero-copy-send" or qemu is source]
            try:
                qemu.execute("migrate-set-capabilities", capabilities=[{"capability": c, "state": True} for c in wanted])
                settings = {"multifd-channels": channels, **(parameters or {})}
                if qemu is source:
                    settings["max-bandwidth"] = 10 ** 12
                if compression:
                    settings["multifd-compression"] = compression
                    if level is not None:
                        settings[f"multifd-{compression}-level"] = level
                qemu.execute("migrate-set-parameters", **settings)
            except Failure as failure:
                if zero_copy or compression:
                    raise Skip(str(failure))
                raise
        destination.execute("migrate-incoming", uri=f"tcp:{listen}:{port}")
        machine.wait_until("QEMU listens", lambda: machine.listening(port))
        costs = [machine.Cost(qemu.process.pid) for qemu in pair]
        busy, wire, begin = machine.busy_seconds(), machine.loopback_bytes(), time.monotonic()
        source.execute("migrate", uri=f"tcp:{listen}:{port}")
        source.until_completed()
        destination.until_completed()
        seconds = time.monotonic() - begin
        busy, wire = machine.busy_seconds() - busy, machine.loopback_bytes() - wire
        (cpu_source, _), (cpu_destination, faults) = (cost.take() for cost in costs)
        if check:
            machine.compare(image, ram, size)
        # The event comes before the figures are complete.
        info = source.execute("query-migrate")
        while not info.get("total-time"):
            info = source.execute("query-migrate")
        return {
            "seconds": info["total-time"] / 1e3, "wall": seconds, "bytes": size,
            "cpu_source": cpu_source, "cpu_destination": cpu_destination, "cpu_machine": busy, "wire": wire,
            "faults": faults, "held": machine.held(ram), "resident": machine.resident(destination.process.pid),
            "transferred": info["ram"]["transferred"], "duplicate": info["ram"].get("duplicate"),
            "downtime": info.get("downtime"),
            "missed_zero_copy": info["ram"].get("dirty-sync-missed-zero-copy"),
        }
    finally:
        for qemu in pair:
            qemu.close()
        if os.path.exists(ram):
            os.unlink(ram)
