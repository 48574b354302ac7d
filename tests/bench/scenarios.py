# SPDX-License-Identifier: Apache-2.0
"""The scenarios: who is compared with whom, doing what."""

import os
import subprocess
import time

import live
import machine
import mount
import peers
import plot
import qemu
from machine import Failure, Skip
from report import CPU, RATE, Scenario, mib, per_gb, plain, wall_rate

QEMU = {}                                       # filled by bench.py: qemu.installed()
WITHOUT = {"checksum": "off", "zero-page-detection": "off"}


def add_qemu(scenario, image_kind, size, channels, label="", congestion=None, **options):
    for name, which in QEMU.items():
        for n in channels:
            def run(check, which=which, n=n, row=f"QEMU {name}, {n} ch{label}"):
                with machine.congestion_control(congestion):
                    return {row: qemu.migrate(which, machine.image(image_kind, size), n, check=check, **options)}
            scenario.add(f"QEMU {name}, {n} ch{label}", run)


def add_migfs(scenario, image_kind, size, channels, label="", settings=None, options=(), passes=("cold", "warm"),
              comparable=True, daemon="", tls=False):
    """One migration, into which the image is pushed twice or three times: into memory that is not there, into memory
    that is, and into memory that has been written over before."""
    for n in channels:
        def run(check, n=n, row=f"migfs, {n} ch{label}"):
            image = machine.image(image_kind, size)
            rows = {}
            with mount.Pair(destination_options=daemon, tls=tls) as pair:
                reference = {"ram-source": image} if {"-p", "-P"} & set(options) else {}
                migration = pair.migration("vm", size, {"channels": n, **reference, **(settings or {})})
                if daemon == "preallocate":
                    machine.wait_until("the memory is there", lambda: machine.held(migration.ram_path()) >= size)
                for which in ("cold", "warm", "again")[:3 if "again" in passes else 2]:
                    wire = machine.loopback_bytes()
                    figures = migration.push(image, *options)
                    figures["wire"] = machine.loopback_bytes() - wire
                    figures["held"] = machine.held(migration.ram_path())
                    if which in passes:
                        rows[f"{row}, {which}"] = figures
                if check and comparable:
                    machine.compare(image, migration.ram_path(), size)
                migration.complete()
            return rows
        scenario.add(f"migfs, {n} ch{label}", run)


def add_limit(scenario, size, channels, cold=None, label="resident", congestion=None):
    for n in channels:
        def run(check, n=n, row=f"send/recv, {n} ch, {label}"):
            with machine.congestion_control(congestion):
                return {row: peers.limit(machine.image("random", size), n, cold, check)}
        scenario.add(f"send/recv, {n} ch, {label}", run)


# ---- rate ----

def rate_scenario(size):
    s = Scenario("rate", f"incompressible image of {size >> 20} MiB, to memory on the other side", [
        RATE, ("by our clock", wall_rate, ".2f"), *CPU,
        ("faults at destination", plain("faults"), ".0f")], [
        "QEMU: image / total-time of query-migrate; \"by our clock\" is from `migrate` to both sides' `completed` event. "
        "\"resident\" is prealloc=on at the destination.",
        "migfs: from the first write to the return of `sync`. Cold is the first pass into a migration, warm the second one, "
        "again the third; the default writer writes 1 MiB at a time from a mapping of the image, \"dd\" reads each block first.",
        "send/recv: bare sockets, a thread each; cold: received through a mapping, or with recv(2) and pwrite(2).",
    ])
    add_qemu(s, "random", size, (1, 2, 4), ", resident", prealloc=True)
    thrice = ("cold", "warm", "again")
    add_migfs(s, "random", size, (1, 2, 4), passes=thrice)
    add_limit(s, size, (1, 2, 4))
    # What migfs chooses within a machine; the others take the machine's default.
    add_qemu(s, "random", size, (2, 4), ", reno, resident", "reno", prealloc=True)
    add_limit(s, size, (2, 4), label="reno, resident", congestion="reno")
    add_qemu(s, "random", size, (1, 2, 4), ", cold", prealloc=False)
    add_migfs(s, "random", size, (1, 2, 4), ", no checksum", {"checksum": "off"})
    add_migfs(s, "random", size, (1, 2, 4), ", no zero detection", {"zero-page-detection": "off"})
    add_migfs(s, "random", size, (1, 2, 4), ", neither", WITHOUT, passes=thrice)
    add_limit(s, size, (2,), "map", "cold, mapped")
    add_limit(s, size, (2,), "write", "cold, written")
    add_qemu(s, "random", size, (1, 2, 4), ", zero-copy, resident", prealloc=True, zero_copy=True)
    add_migfs(s, "random", size, (2, 4), ", dd", options=("-c",))
    add_migfs(s, "random", size, (2, 4), ", dd, neither", WITHOUT, options=("-c",))
    add_migfs(s, "random", size, (2, 4), ", 2 writers, neither", WITHOUT, options=("-j", "2"))
    add_migfs(s, "random", size, (2, 4), ", O_DIRECT 8 MiB, neither", WITHOUT, options=("-d", "-b", "8M"))
    add_migfs(s, "random", size, (2, 4), ", zero-copy auto", {"zero-copy": "auto"})
    add_migfs(s, "random", size, (2, 4), ", zero-copy off", {"zero-copy": "off"})
    add_migfs(s, "random", size, (2, 4), ", by reference", options=("-p",))
    add_migfs(s, "random", size, (2, 4), ", by reference, neither", WITHOUT, options=("-p",))
    add_migfs(s, "random", size, (2, 4), ", preallocated", daemon="preallocate")
    add_migfs(s, "random", size, (2, 4), ", preallocated, neither", WITHOUT, daemon="preallocate")
    add_migfs(s, "random", size, (2, 4), ", by reference, preallocated", options=("-p",), daemon="preallocate")
    for name, peer in (("socat", peers.socat), ("nbdcopy to nbdkit memory", peers.nbdcopy), ("rsync to a daemon", peers.rsync)):
        for temperature in ("resident", "cold"):
            def run(check, peer=peer, row=f"{name}, {temperature}", cold=temperature == "cold"):
                return {row: peer(machine.image("random", size), cold, check)}
            s.add(f"{name}, {temperature}", run)
    file_warm = r"^migfs, [24] ch(?!.*(reference|writers)).*warm$"
    s.ratio("resident, 2 and 4 channels: migfs / QEMU 10", file_warm, r"^QEMU 10, .*resident$", ">= 1")
    s.ratio("the same, migfs with its defaults", r"^migfs, [24] ch, warm$", r"^QEMU 10, .*resident$")
    s.ratio("the same, third pass", file_warm.replace("warm", "again"), r"^QEMU 10, .*resident$")
    s.ratio("migfs, second pass / QEMU 7.2", file_warm, r"^QEMU 7.2, .*resident$", ">= 1.2")
    s.ratio("migfs, second pass / bare send/recv", file_warm, r"^send/recv, .* resident$", ">= 0.75")
    s.ratio("defaults / bare send/recv", r"^migfs, [24] ch, warm$", r"^send/recv, .* resident$")
    s.ratio("cold: migfs / QEMU 10", r"^migfs, [24] ch(?!.*(reference|preallocated)).*cold$", r"^QEMU 10, .*cold$", ">= 1.3")
    s.ratio("cold, by reference: migfs / QEMU 10", r"^migfs, [24] ch(?!.*preallocated).*reference.*cold$",
            r"^QEMU 10, .*cold$", ">= 1.3")
    s.ratio("by reference, resident: migfs / QEMU 10", r"^migfs, .*by reference(?!.*prealloc).*warm$", r"^QEMU 10, .*resident$", ">= 1.1")
    s.ratio("the same, preallocated", r"^migfs, .*by reference, preallocated.*warm$", r"^QEMU 10, .*resident$", ">= 1.1")
    s.ratio("by reference / bare send/recv", r"^migfs, .*by reference.*warm$", r"^send/recv, .* resident$")
    s.ratio("zero-copy auto / off, resident", r"^migfs, .*zero-copy auto, warm$", r"^migfs, .*zero-copy off, warm$", ">= 0.95")
    s.ratio("QEMU 10 / bare send/recv", r"^QEMU 10, .*resident$", r"^send/recv, .* resident$")
    return s


# ---- zero ----

def zero_scenario(size):
    s = Scenario("zero", f"image of {size >> 20} MiB, 7/8 of its pages zero", [
        RATE, ("by our clock", wall_rate, ".2f"), *CPU[:2],
        ("faults at destination", plain("faults"), ".0f"), ("held there, MiB", mib("held"), ".0f")], [
        "Rates are bytes of image, zeros included, by time. \"1/8 pages\": the first page of each 8 has data; \"32/256 pages\": "
        "the first 32 of each 256.",
        "\"dense\" writes everything; \"holes\" writes what SEEK_DATA finds in a sparse file with the same content; \"zeros\" "
        "looks at each page and writes those that are not zero.",
    ])
    for run, text in ((1, "1/8 pages"), (32, "32/256 pages")):
        dense, holes = f"zero-{run}", f"holes-{run}"
        add_qemu(s, dense, size, (2, 4), f", {text}, resident", prealloc=True)
        add_migfs(s, dense, size, (2, 4), f", {text}, dense")
        add_qemu(s, dense, size, (2, 4), f", {text}, cold", prealloc=False)
        add_migfs(s, dense, size, (2, 4), f", {text}, dense, no checksum", {"checksum": "off"})
        add_migfs(s, holes, size, (2, 4), f", {text}, holes", options=("-s", "holes"))
        add_migfs(s, dense, size, (2, 4), f", {text}, zeros", options=("-s", "zeros"))
        add_migfs(s, dense, size, (2, 4), f", {text}, by reference", options=("-p",))
        for temperature, other in (("cold", "cold"), ("warm", "resident")):
            their = rf"^QEMU 10, .*{text}, {other}$"
            s.ratio(f"{text}, {other}: dense / QEMU 10", rf"^migfs, .*{text}, dense.*{temperature}$", their, ">= 0.8")
            s.ratio(f"{text}, {other}: holes / QEMU 10", rf"^migfs, .*{text}, holes, {temperature}$", their, ">= 3")
            s.ratio(f"{text}, {other}: by reference / QEMU 10", rf"^migfs, .*{text}, by ref.*{temperature}$", their, ">= 1.2")
    return s


# ---- zstd ----

def zstd_scenario(size):
    def ratio(figures):
        return figures["bytes"] / figures["wire"] if figures.get("wire") else None

    s = Scenario("zstd", f"compression: {size >> 20} MiB of program binaries, and of incompressible data", [
        RATE, ("image / wire", ratio, ".3f"), *CPU], [
        "Resident destinations. The wire's bytes are those that loopback counted, which treats all alike, and includes "
        "headers and acknowledgements; the network namespace is the benchmark's own.",
    ])
    for kind, text in (("binaries", "binaries"), ("random", "incompressible")):
        for label, compression, level in (("none", None, None), ("zstd 1", "zstd", 1), ("zlib 1", "zlib", 1)):
            if kind == "binaries" or compression != "zlib":
                add_qemu(s, kind, size, (2, 4), f", {text}, {label}", compression=compression, level=level)
        for label, settings in (("none", {}), ("zstd 1", {"compression": "zstd", "zstd-level": 1}),
                                ("zstd -5", {"compression": "zstd", "zstd-level": -5}),
                                ("zstd -20", {"compression": "zstd", "zstd-level": -20})):
            add_migfs(s, kind, size, (2, 4), f", {text}, {label}", settings, passes=("warm",))
        for label, level in (("zstd 1", 1), ("zstd -20", -20)):
            add_migfs(s, kind, size, (2, 4), f", {text}, {label}, by reference",
                      {"compression": "zstd", "zstd-level": level}, options=("-p",), passes=("warm",))
    for n in (2, 4):
        theirs = rf"^QEMU 10, {n} .*binaries, zstd 1$"
        for how in ("", ", by reference"):
            s.ratio(f"binaries, {n} channels, level 1{how}: migfs / QEMU 10", rf"^migfs, {n} .*binaries, zstd 1{how}, warm$",
                    theirs, ">= 1.1")
            s.ratio(f"binaries, {n} channels, a negative level{how} / QEMU 10's level 1",
                    rf"^migfs, {n} .*binaries, zstd -\d+{how}, warm$", theirs, ">= 1.6")
        s.ratio(f"binaries, {n} channels, level 1, image / wire: migfs / QEMU 10",
                rf"^migfs, {n} .*binaries, zstd 1(, by reference)?, warm$", theirs, ">= 1", column=1)
        s.ratio(f"incompressible, {n} channels: zstd 1 / none", rf"^migfs, {n} .*incompressible, zstd 1, warm$",
                rf"^migfs, {n} .*incompressible, none", ">= 0.9")
    return s


# ---- small ----

def small_scenario(size):
    count = min(size // 4096, 1 << 18)

    def thousands(figures):
        return figures["writes"] / figures["seconds"] / 1e3

    s = Scenario("small", f"{count} random writes of 4 KiB each", [
        ("1000/s", thousands, ".1f"), ("CPU s, source", plain("cpu_source"), ".2f"),
        ("CPU s, writer", plain("cpu_writer"), ".2f"), ("destination", plain("cpu_destination"), ".2f")], [
        "migfs: until the return of `sync`. \"discard\" is a FUSE daemon that forgets what is written.",
    ])
    for writers in (1, 4):
        def discard(check, writers=writers, row=f"discard, {writers} writer(s)"):
            image = machine.image("random", size)
            with mount.Discard() as daemon:
                os.truncate(os.path.join(daemon.path, "ram"), size)
                cost = machine.Cost(daemon.process.pid)
                said = machine.helper("push", "-n", "-b", "4K", "-r", count, "-j", writers, image,
                                      os.path.join(daemon.path, "ram"))
                return {row: {**said, "cpu_source": cost.take()[0] + said["cpu"], "cpu_writer": said["cpu"]}}
        s.add(f"discard, {writers} writer(s)", discard)
        for label, settings in (("", {}), (", neither", WITHOUT)):
            for n in (1, 4):
                add_migfs(s, "random", size, (n,), f", {writers} writer(s){label}", settings,
                          options=("-b", "4K", "-r", str(count), "-j", str(writers)), comparable=False)
        s.ratio(f"{writers} writer(s): migfs / discard", rf"^migfs, .*, {writers} writer\(s\)(, neither)?, warm$",
                rf"^discard, {writers} ", ">= 0.8")
        s.ratio(f"{writers} writer(s), defaults, cold: migfs / discard", rf"^migfs, .*, {writers} writer\(s\), cold$",
                rf"^discard, {writers} ")
    return s


def sync_scenario(size):
    s = Scenario("sync", "round trip of `sync` with nothing in flight", [
        ("us", plain("median"), ".1f"), ("mean", plain("mean"), ".1f"), ("99 %", plain("p99"), ".1f")],
        ["The ping-pong is one byte there and back over loopback, between two processes."], smaller=True)
    s.add("TCP ping-pong", lambda check: {"TCP ping-pong": machine.helper("latency", "tcp")})
    for n in (1, 4, 16):
        def run(check, n=n, row=f"migfs sync, {n} ch"):
            with mount.Pair() as pair:
                migration = pair.migration("vm", 1 << 20, {"channels": n})
                result = machine.helper("latency", "sync", migration.file("control"))
                migration.complete()
            return {row: result}
        s.add(f"migfs sync, {n} ch", run)
    s.ratio("sync / ping-pong", r"^migfs sync, 4 ch", r"^TCP", "<= 5")
    return s


# ---- scale ----

def scale_scenario(size):
    s = Scenario("scale", f"{size >> 20} MiB over more channels, and in more migrations at once", [RATE, *CPU], [
        "Migrations at once share one image, 2 channels each; the clock runs from the first write to the return of the last `sync`.",
    ])
    counts = (1, 2, 4, 8, 16)
    add_migfs(s, "random", size, counts)
    add_migfs(s, "random", size, counts, ", neither", WITHOUT)
    for n in (1, 2, 4, 8, 16, 32):
        def run(check, n=n, row=f"migfs, {n} migration(s)"):
            image = machine.image("random", size)
            part = size // n // 4096 * 4096
            rows = {}
            with mount.Pair() as pair:
                migrations = [pair.migration(f"vm{i}", part, {"channels": 2}) for i in range(n)]
                for which in ("cold", "warm"):
                    rows[f"{row}, {which}"] = mount.push(pair, image, migrations)
                if check:
                    check_parts(image, migrations, part)
                for migration in migrations:
                    migration.complete()
            return rows
        s.add(f"migfs, {n} migration(s)", run)
    for label in ("", ", neither"):
        for n in counts:
            s.ratio(f"{n} channels{label} / the best", rf"^migfs, {n} ch{label}, warm$", rf"^migfs, \d+ ch{label}, warm$", ">= 0.85")
    for n in (2, 4, 8, 16, 32):
        s.ratio(f"{n} migrations / one", rf"^migfs, {n} migration\(s\), warm$", r"^migfs, 1 migration\(s\), warm$", ">= 0.8")
    return s


def check_parts(image, migrations, part):
    for i, migration in enumerate(migrations):
        result = subprocess.run(["cmp", "-n", str(part), "-i", f"{i * part}:0", image, migration.ram_path()])
        if result.returncode:
            raise Failure(f"what arrived of part {i} is not the image")


# ---- cpu ----

def cpu_scenario(size):
    s = Scenario("cpu", f"CPU seconds per GB, incompressible image of {size >> 20} MiB, resident destination", [
        ("CPU s/GB source", per_gb("cpu_source"), ".3f"), ("of it the writer", per_gb("cpu_writer"), ".3f"),
        ("destination", per_gb("cpu_destination"), ".3f"), ("machine", per_gb("cpu_machine"), ".3f"), RATE], [
        "The source of migfs is its daemon and the writer. The kernel charges the work of loopback to whoever happens to run: "
        "\"machine\" is all that was not idle, others' load included.",
        "The issue's bound is QEMU's source plus one copy, which is the row \"memcpy\".",
    ], smaller=True)
    add_qemu(s, "random", size, (2, 4), prealloc=True)
    add_migfs(s, "random", size, (2, 4), passes=("warm",))
    add_migfs(s, "random", size, (2, 4), ", no checksum", {"checksum": "off"}, passes=("warm",))
    add_migfs(s, "random", size, (2, 4), ", neither", WITHOUT, passes=("warm",))
    add_migfs(s, "random", size, (2, 4), ", by reference", options=("-p",), passes=("warm",))
    for n in (2, 4):
        def run(check, n=n, row=f"send/recv, {n} ch"):
            return {row: peers.limit(machine.image("random", size), n, None, check)}
        s.add(f"send/recv, {n} ch", run)

    def memcpy(check):
        figures = machine.helper("copy", size)
        return {"memcpy": {**figures, "cpu_source": figures["cpu"]}}
    s.add("memcpy", memcpy)
    s.after.append(cpu_bound)
    return s


def cpu_bound(s):
    lines = []
    for name in QEMU:
        for n in (2, 4):
            theirs, copy = f"QEMU {name}, {n} ch", "memcpy"
            if theirs not in s.rows or copy not in s.rows:
                continue
            bound = s.median(theirs) + s.median(copy)
            for row in s.rows:
                if row.startswith(f"migfs, {n} ch"):
                    lines.append(f"| {row} | {s.median(row):.3f} | {theirs} + memcpy | {bound:.3f} | {s.median(row) / bound:.2f} |")
    if not lines:
        return []
    return ["", "| CPU s/GB at the source | | bound | | part of it (aim: <= 1) |", "|---|---:|---|---:|---:|", *lines, ""]


# ---- faults ----

def faults_scenario(size):
    s = Scenario("faults", f"page faults at the destination: an image of {size >> 20} MiB, 7/8 zero, into fresh memory", [
        ("minor faults", plain("faults"), ".0f"), ("memory after, MiB", mib("held"), ".0f"),
        ("resident, MiB", mib("resident"), ".0f"), ("ms", lambda f: f["seconds"] * 1e3, ".0f"),
        ("faults, all to zeros", plain("second_faults"), ".0f"), ("memory after, MiB", mib("second_held"), ".0f")], [
        "\"model\" rows are tests/bench/faults.c, alone with the daemon's memory and page map: without the map a zero page is "
        "looked at through the mapping (\"check\", QEMU before 9.1) or written (\"write\"); with it, it is left alone. Counts are exact.",
        "The other rows are the receiving process's minor faults (/proc/PID/stat) during the migration; the data pages are "
        f"{size // 8 // 4096}, the image has {size // 4096}.",
        "\"all to zeros\" is a second pass that overwrites the image with zeros.",
    ], smaller=True)
    for run, text in ((1, "1/8 pages"), (32, "32/256 pages")):
        for policy in ("write", "check", "map", "map-write"):
            def model(check, policy=policy, run=run, row=f"model, {policy}, {text}"):
                return {row: machine.helper("faults", policy, "-r", run, size)}
            s.add(f"model, {policy}, {text}", model)
        for name, which in QEMU.items():
            def peer(check, which=which, run=run, row=f"QEMU {name}, {text}"):
                return {row: qemu.migrate(which, machine.image(f"zero-{run}", size), 2, prealloc=False, check=check)}
            s.add(f"QEMU {name}, {text}", peer)
        for detection in ("on", "off"):
            def ours(check, detection=detection, run=run, row=f"migfs, detection {detection}, {text}"):
                with mount.Pair() as pair:
                    migration = pair.migration("vm", size, {"channels": 2, "zero-page-detection": detection})
                    image = machine.image(f"zero-{run}", size)
                    first = migration.push(image)
                    first["held"] = machine.held(migration.ram_path())
                    if check:
                        machine.compare(image, migration.ram_path(), size)
                    second = migration.push(machine.image("zeros", size))
                    first["second_faults"] = second["faults"]
                    first["second_held"] = machine.held(migration.ram_path())
                    migration.complete()
                return {row: first}
            s.add(f"migfs, detection {detection}, {text}", ours)
    s.ratio("model: without the map / with it", r"^model, check, 1/8", r"^model, map, 1/8")
    s.ratio("QEMU 7.2 / migfs", r"^QEMU 7.2, 1/8", r"^migfs, detection on, 1/8")
    s.ratio("QEMU 10 / migfs", r"^QEMU 10, 1/8", r"^migfs, detection on, 1/8")
    return s


# ---- downtime ----

CONFIGURATIONS = ((8, 0), (8, 2), (6, 0), (12, 0))
LOADS = (
    # name, residual RAM, devices, state of each, bytes a second that a device gives (0: no limit)
    ("mostly RAM: 256 MiB, 4 x 16 MiB", 256, 4, 16, 0),
    ("as much of both: 128 MiB, 4 x 32 MiB", 128, 4, 32, 0),
    ("mostly devices: 32 MiB, 4 x 64 MiB", 32, 4, 64, 0),
    ("slow devices: 256 MiB, 4 x 32 MiB at 128 MiB/s", 256, 4, 32, 128),
)
SLOW_GBIT = 8


class SlowLink:
    """Two network namespaces with a pair of virtual devices between them, limited in both directions."""

    names = [f"migfs-bench-{os.getpid()}-{end}" for end in "ab"]

    def __enter__(self):
        a, b = self.names
        try:
            for name in self.names:
                self._run("ip", "netns", "add", name)
            self._run("ip", "link", "add", "bencha", "netns", a, "type", "veth", "peer", "name", "benchb", "netns", b)
            for name, device, address in ((a, "bencha", "10.123.0.1/24"), (b, "benchb", "10.123.0.2/24")):
                self._run("ip", "-n", name, "address", "add", address, "dev", device)
                self._run("ip", "-n", name, "link", "set", device, "up")
                self._run("ip", "-n", name, "link", "set", "lo", "up")
                self._run("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{SLOW_GBIT}gbit",
                          "burst", "2mb", "latency", "20ms")
        except Skip:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)

    @staticmethod
    def _run(*argv):
        try:
            done = subprocess.run(argv, capture_output=True, text=True)
        except OSError as error:
            raise Skip(f"no slowed link: {error}")
        if done.returncode:
            raise Skip(f"no slowed link: {' '.join(argv)}: {done.stderr.strip()}")

    @classmethod
    def prefix(cls, end):
        # Not ip netns exec, which makes a mount namespace too.
        return ("nsenter", f"--net=/run/netns/{cls.names[end]}")


def downtime_scenario(size):
    size = min(size, 1 << 30)
    s = Scenario("downtime", f"the end of a migration of {size >> 20} MiB: residual RAM and the state of devices at once", [
        ("ms", plain("downtime"), ".1f"), ("RAM written", plain("ram"), ".1f"), ("devices closed", plain("devices"), ".1f")], [
        "From `stop` to the return of `complete`. Channels: all / of which for devices alone. Sizes that do not fit the image are scaled to it.",
        f"\"slowed\" is a veth between two namespaces, limited to {SLOW_GBIT} Gbit/s.",
    ], smaller=True)
    scale = min(1, size / (512 << 20))
    for link in ("loopback", "slowed"):
        for load, residual, devices, state, pace in LOADS:
            for channels, dedicated in CONFIGURATIONS:
                row = f"{link}; {load}; {channels}/{dedicated}"

                def run(check, link=link, residual=residual, devices=devices, state=state, pace=pace, channels=channels,
                        dedicated=dedicated, row=row):
                    arguments = ["-r", int(residual * scale) << 20, "-d", devices, "-s", int(state * scale) << 20, "-m", pace << 20]
                    settings = {"channels": channels, "device-channels": dedicated}
                    if link == "loopback":
                        with mount.Pair() as pair:
                            return {row: switch_over(pair, size, settings, arguments)}
                    with SlowLink(), mount.Pair(source_prefix=SlowLink.prefix(0), destination_prefix=SlowLink.prefix(1),
                                                host="10.123.0.2") as pair:
                        return {row: switch_over(pair, size, settings, arguments)}
                s.add(row, run)
    s.after.append(downtime_matrix)
    return s


def switch_over(pair, size, settings, arguments):
    migration = pair.migration("vm", size, settings)
    migration.push(machine.image("random", size))
    figures = machine.helper("switchover", *arguments, pair.path("src", "vm"))
    status = migration.status("dst")
    if status["status"] != "completed":
        raise Failure(f"the destination says {status['status']}")
    return {**figures, "reported": float(migration.status()["downtime"]),
            "barrier_idle": float(status.get("barrier-idle-time", 0))}


def dedicated_says(s, group):
    """Whether two of eight channels for devices alone are better than eight for all, as seed 002 found: only where no
    run of the one is as good as any of the other."""
    if f"{group}; 8/0" not in s.rows or f"{group}; 8/2" not in s.rows:
        return ""
    shared, dedicated = s.values(f"{group}; 8/0"), s.values(f"{group}; 8/2")
    verdict = "wins" if max(dedicated) < min(shared) else "loses" if min(dedicated) > max(shared) else "within the noise"
    if min(len(shared), len(dedicated)) < 3:
        verdict = "too few runs"
    return f"{verdict} ({s.median(f'{group}; 8/2') / s.median(f'{group}; 8/0'):.2f})"


def downtime_matrix(s):
    """The same figures side by side, the best one of a load in bold, and a plot of them."""
    heads = [f"{c}/{d}" for c, d in CONFIGURATIONS]
    lines = ["", "| median ms | " + " | ".join(heads) + " | dedicated? |", "|---|" + "---:|" * len(heads) + "---|"]
    groups = {}
    for row in s.rows:
        group, head = row.rsplit("; ", 1)
        groups.setdefault(group, {})[head] = s.median(row)
    for group, values in groups.items():
        for head in heads[1:]:
            if head in values and heads[0] in values:
                s.facts.append({"group": group, "channels": head, "against": heads[0], "ratio": values[head] / values[heads[0]]})
        best = min(values.values())
        lines.append(f"| {group} | " + " | ".join(
            "" if head not in values else f"**{values[head]:.0f}**" if values[head] == best else f"{values[head]:.0f}"
            for head in heads) + f" | {dedicated_says(s, group)} |")
    if groups:
        lines += ["", f"Plot: {plot.bars('downtime', 'downtime, ms (median)', groups, heads)}"]
    return lines + [""]


# ---- verify ----

def verify_scenario(size):
    """What it costs to have RAM by reference checked: in the end (`verify`), or on its way (`checksum`)."""
    s = Scenario("verify", f"RAM by reference, {size >> 20} MiB, and `complete`", [
        ("complete, ms", milliseconds("complete"), ".1f"), ("all, ms", milliseconds("all"), ".1f"),
        ("CPU s/GB source", per_gb("cpu_source"), ".2f"), ("destination", per_gb("cpu_destination"), ".2f")], [
        "`complete` is timed with nothing left to send. All: the round before it, too.",
    ], smaller=True)
    for n in (2, 4):
        for label, settings in (("verify off", {}), ("verify on", {"verify": "on"}), ("checksum on", {"checksum": "on"})):
            def run(check, n=n, settings=settings, row=f"{n} ch, {label}"):
                image = machine.image("random", size)
                with mount.Pair() as pair:
                    migration = pair.migration("vm", size, {"channels": n, "ram-source": image, **settings})
                    migration.push(image, "-p")         # the memory is there, as a VM's is
                    pushed = migration.push(image, "-p")
                    costs = pair.cost()
                    begin = time.monotonic()
                    migration.command("complete")
                    seconds = time.monotonic() - begin
                    source, destination = (cost.take()[0] for cost in costs)
                    if check:
                        machine.compare(image, migration.ram_path(), size)
                    if "verify" in settings and int(migration.status()["verified-bytes"]) != size:
                        raise Failure(f"only {migration.status()['verified-bytes']} bytes were verified")
                    return {row: {"bytes": size, "complete": seconds, "all": pushed["seconds"] + seconds,
                                  "cpu_source": pushed["cpu_source"] + source,
                                  "cpu_destination": pushed["cpu_destination"] + destination}}
            s.add(f"{n} ch, {label}", run)
        for text, column in (("complete", 0), ("all", 1)):
            for label in ("verify on", "checksum on"):
                s.ratio(f"{n} channels, {text}: {label} / off", rf"^{n} ch, {label}$", rf"^{n} ch, verify off$", column=column)
    return s


# ---- scattered ----

def scattered_scenario(size):
    s = Scenario("scattered", f"image of {size >> 20} MiB, scattered pages of which have data", [
        RATE, *CPU, ("faults at destination", plain("faults"), ".0f")], [
        "QEMU finds the pages by looking at all of them, as in the first round of a migration. migfs, by reference, is asked "
        "for all (\"looking\"), or for those that have data, as in a later round of a VMM that knows what is dirty "
        "(\"by bitmap\"). Rates are bytes of image by time.",
    ])
    for kind, text in (("zero-1", "each 8th"), ("one-in-32", "1/32 at random")):
        add_qemu(s, kind, size, (2, 4), f", {text}, resident", prealloc=True)
        add_qemu(s, kind, size, (2, 4), f", {text}, cold", prealloc=False)
        add_migfs(s, kind, size, (2, 4), f", {text}, looking", options=("-p",))
        add_migfs(s, kind, size, (2, 4), f", {text}, by bitmap", options=("-P",))
        for how in ("looking", "by bitmap"):
            for temperature, other in (("cold", "cold"), ("warm", "resident")):
                s.ratio(f"{text}, {other}: migfs, {how} / QEMU 10", rf"^migfs, .*{text}, {how}, {temperature}$",
                        rf"^QEMU 10, .*{text}, {other}$", ">= 1.2")
    return s


# ---- scan ----

def scan_scenario(size):
    """dirty-tracking compare: a round in which nothing has changed, against a read of the same memory."""
    s = Scenario("scan", f"a look at {size >> 20} MiB that have not changed", [
        RATE, ("CPU s/GB", per_gb("cpu_source"), ".3f")], [
        "\"read\" sums up the words of a mapping whose page table entries are there. migfs: from the bitmap of all pages to the "
        "return of `sync`; of one processor: bound to it.",
    ])
    for n in (1, 2):
        def read(check, n=n):
            said = machine.helper("read", n, machine.image("random", size))
            return {f"read, {n} processor(s)": {**said, "cpu_source": said["cpu"]}}

        def compare(check, n=n):
            image = machine.image("random", size)
            with mount.Pair(source_prefix=("taskset", "-c", ",".join(map(str, range(n))))) as pair:
                migration = pair.migration("vm", size, {"channels": n, "ram-source": image, "dirty-tracking": "compare"})
                migration.push(image, "-p")
                migration.push(image, "-p")             # the page table is ready, as a VM's is after a round
                sent = int(migration.status()["transferred"])
                figures = migration.push(image, "-p")
                sent = int(migration.status()["transferred"]) - sent
                if sent * 100 > size:
                    raise Failure(f"{sent} bytes were sent, and nothing has changed")
                if check:
                    machine.compare(image, migration.ram_path(), size)
                migration.complete()
            return {f"compare, {n} processor(s)": figures}
        s.add(f"read, {n} processor(s)", read)
        s.add(f"compare, {n} processor(s)", compare)
        s.ratio(f"{n} processor(s): compare / read", rf"^compare, {n} ", rf"^read, {n} ", ">= 0.8")
    return s


# ---- tls ----

SOCKETS = 0.25                                  # seconds of a processor that a GB costs over loopback without TLS


def tls_scenario(size):
    s = Scenario("tls", f"TLS 1.3, both sides authenticated: incompressible image of {size >> 20} MiB, resident", [
        RATE, ("by our clock", wall_rate, ".2f"), *CPU], [
        "QEMU: multifd with tls-creds-x509; migfs: -o tls, with the same directories. \"AES-128-GCM\" is `openssl speed` with "
        "records of 16 KiB on one processor, alone.",
        "resident: QEMU with prealloc=on at the destination; migfs preallocated and the first pass (\"cold\" is its name), or without "
        "and the second pass (\"warm\"), in which the pages get their page table entries.",
    ])
    add_qemu(s, "random", size, (2, 4), ", TLS", prealloc=True, tls=True)
    add_migfs(s, "random", size, (2, 4), ", by reference, TLS", options=("-p",), passes=("warm",), tls=True)
    add_migfs(s, "random", size, (2, 4), ", by reference, preallocated, TLS", options=("-p",), passes=("cold",), daemon="preallocate",
              tls=True)
    add_migfs(s, "random", size, (2, 4), ", TLS", passes=("warm",), tls=True)
    add_qemu(s, "random", size, (2, 4), ", plain", prealloc=True)
    add_migfs(s, "random", size, (2, 4), ", by reference, plain", options=("-p",), passes=("warm",))
    s.add("AES-128-GCM", lambda check: {"AES-128-GCM": {"bytes": machine.aes_rate(), "seconds": 1}})
    for n in (2, 4):
        s.ratio(f"{n} channels, by reference: migfs / QEMU 10", rf"^migfs, {n} ch, by reference, TLS, warm$",
                rf"^QEMU 10, {n} ch, TLS$", ">= 2.5")
        s.ratio(f"{n} channels, by reference, preallocated: migfs / QEMU 10",
                rf"^migfs, {n} ch, by reference, preallocated, TLS, cold$", rf"^QEMU 10, {n} ch, TLS$", ">= 2.5")
        s.ratio(f"{n} channels, through the file: migfs / QEMU 10", rf"^migfs, {n} ch, TLS, warm$", rf"^QEMU 10, {n} ch, TLS$")
        s.ratio(f"{n} channels, by reference: TLS / plain", rf"^migfs, {n} ch, by reference, TLS, warm$",
                rf"^migfs, {n} ch, by reference, plain, warm$")
    s.after.append(tls_bound)
    return s


def tls_bound(s):
    """What two processors could do that only encrypt, decrypt and pass bytes on."""
    if "AES-128-GCM" not in s.rows:
        return []
    bound = 2 / (2 / s.median("AES-128-GCM") + SOCKETS)
    return ["", f"| part of the bound 2 / (2 / a + {SOCKETS}) = {bound:.2f} GB/s (aim: >= 0.85) | |", "|---|---:|",
            *(f"| {row} | {s.median(row) / bound:.2f} |" for row in s.rows if "TLS" in row), ""]


def milliseconds(key):
    return lambda figures: figures[key] * 1000


SCENARIOS = {
    "rate": rate_scenario,
    "zero": zero_scenario,
    "zstd": zstd_scenario,
    "small": small_scenario,
    "sync": sync_scenario,
    "scale": scale_scenario,
    "cpu": cpu_scenario,
    "faults": faults_scenario,
    "downtime": downtime_scenario,
    "verify": verify_scenario,
    "scattered": scattered_scenario,
    "scan": scan_scenario,
    "tls": tls_scenario,
    "live": lambda size: live.scenario(QEMU, min(size, 4 << 30)),
}
