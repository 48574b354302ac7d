# SPDX-License-Identifier: Apache-2.0
"""The machine: processes that end with us, their CPU time and page faults, images, warm memory."""

import atexit
import contextlib
import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
KEEP = os.environ["BENCH_DIR"]              # run(1) has put the programs there
BIN = os.path.join(KEEP, "bin")
MIGFS = os.environ["BENCH_MIGFS"]

# A peer that hangs ends the variant, not the benchmark. Nothing is judged by it.
PATIENCE = 900


class Skip(Exception):
    """This cannot be had here; the text says why."""


class Failure(Exception):
    """It went wrong."""


# ---- Our own directory, in memory; whatever happens, nothing is left behind ----

work = None
_processes = []


def set_up():
    global work
    work = tempfile.mkdtemp(prefix="migfs-bench.", dir="/dev/shm")
    atexit.register(_clean_up)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, frame: sys.exit(128 + n))


def _clean_up():
    for process in _processes:
        if process.poll() is None:
            process.terminate()
    unmount_below(work)
    for process in _processes:
        end(process)
    unmount_below(work)
    shutil.rmtree(work, ignore_errors=True)


def unmount_below(directory):
    with open("/proc/self/mounts") as mounts:
        paths = [line.split()[1] for line in mounts]
    for path in reversed(paths):
        if path.startswith(directory + "/"):
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def spawn(argv, log=None, **kwargs):
    """A process that ends with us. What it says goes to a log in our directory."""
    out = open(os.path.join(work, log or "log"), "ab")
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=kwargs.pop("stdout", out), stderr=out,
                               preexec_fn=_die_with_parent, **kwargs)
    out.close()
    _processes.append(process)
    return process


def end(process, number=signal.SIGTERM):
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process in _processes:
        _processes.remove(process)


def wait(process, what):
    """Its end, which must be a good one."""
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        end(process, signal.SIGKILL)
        raise Failure(f"{what} hangs")
    _processes.remove(process)
    if status:
        raise Failure(f"{what} exits with {status}: {last_words()}")


def last_words(log="log"):
    try:
        with open(os.path.join(work, log), errors="replace") as lines:
            return " / ".join(line.strip() for line in lines.readlines()[-3:])
    except OSError:
        return ""


def helper(*argv):
    """Runs one of our programs; returns what its line of JSON says."""
    process = spawn([os.path.join(BIN, argv[0]), *map(str, argv[1:])], stdout=subprocess.PIPE)
    text = process.stdout.read()
    wait(process, argv[0])
    return json.loads(text) if text else {}


def wait_until(what, test, process=None):
    limit = time.monotonic() + 60
    while not test():
        if process and process.poll() is not None:
            raise Failure(f"{what}: the process has ended: {last_words()}")
        if time.monotonic() > limit:
            raise Failure(f"waited in vain until {what}: {last_words()}")
        time.sleep(0.002)


def connects(socket, path):
    """Whether somebody listens there; then it is connected."""
    try:
        socket.connect(path)
        return True
    except OSError:
        return False


def free_port():
    """A port that nobody listens on, below those that the kernel hands out."""
    for port in range(21000, 30000):
        if port in free_port.used:
            continue
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        free_port.used.append(port)
        del free_port.used[:-500]
        return port
    raise Failure("no port is free")


free_port.used = []


def listening(port):
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted):
                    return True
    return False


@contextlib.contextmanager
def congestion_control(name):
    """In this network namespace, for connections that are made meanwhile; None: what it is anyway."""
    path = "/proc/sys/net/ipv4/tcp_congestion_control"
    with open(path) as file:
        before = file.read().strip()

    def choose(which):
        with open(path, "w") as file:
            file.write(which)
    choose(name or before)
    try:
        yield
    finally:
        choose(before)


# ---- What a process has cost so far ----

class Cost:
    """CPU seconds (all threads, also those that have ended) and minor faults of a process, since this was made."""

    def __init__(self, pid):
        self.pid = pid
        self.clock = (~pid << 3) | 2         # the process's CPU clock, see clock_getcpuclockid(3)
        self.cpu0, self.faults0 = self._read()

    def _read(self):
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return time.clock_gettime(self.clock), int(fields[7])

    def take(self):
        cpu, faults = self._read()
        return cpu - self.cpu0, faults - self.faults0


def busy_seconds():
    """CPU seconds of the whole machine that were not idle, also those that no process is charged for."""
    with open("/proc/stat") as stat:
        fields = list(map(int, stat.readline().split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def loopback_bytes():
    """What this process's loopback has sent. /sys/class/net shows the network namespace that /sys was mounted in."""
    with open("/proc/self/net/dev") as lines:
        for line in lines:
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                return int(counts.split()[8])
    return 0


def resident(pid):
    with open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
    return 0


# ---- Memory and images ----

def warm(size):
    """Touches so much memory: a host gives it to a VM on first use, which takes longer than all that is measured here."""
    begin = time.monotonic()
    with mmap.mmap(-1, size) as memory:
        memory.madvise(23, 0, size)          # MADV_POPULATE_WRITE
    seconds = time.monotonic() - begin
    return size / seconds / 1e9


def free_memory():
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable"):
                available = int(line.split()[1]) << 10
    st = os.statvfs("/dev/shm")
    return min(available, st.f_bavail * st.f_frsize)


def image(kind, size):
    """The path of an image in tmpfs; made when it is first asked for."""
    path = os.path.join(work, "image-" + kind)
    if os.path.exists(path):
        return path
    if kind == "random":
        helper("image", size, path)
    elif kind == "binaries":
        _concatenate_binaries(path, size)
    elif kind == "zeros":
        with open(path, "wb") as out:
            for _ in range(size >> 20):
                out.write(bytes(1 << 20))
    elif kind.startswith("one-in-"):
        helper("image", "-s", kind.removeprefix("one-in-"), size, path)
    else:                                    # zero-RUN, holes-RUN
        what, run = kind.split("-")
        helper("image", *(["-z"] if what == "holes" else []), "-r", run, size, path)
    return path


def drop_images():
    for name in os.listdir(work):
        if name.startswith("image-"):
            os.unlink(os.path.join(work, name))


def _concatenate_binaries(path, size):
    """ELF files of /usr/bin and /usr/lib in the order of their names, each filled up to a page; again from the start if
    they are too few."""
    files = []
    for top in ("/usr/bin", "/usr/lib"):
        for directory, _, names in os.walk(top):
            files += [os.path.join(directory, name) for name in names]
    done = 0
    with open(path, "wb") as out:
        while done < size:
            before = done
            for name in sorted(files):
                if os.path.islink(name) or not os.path.isfile(name):
                    continue
                with open(name, "rb") as file:
                    if file.read(4) != b"\x7fELF":
                        continue
                    file.seek(0)
                    while done < size and (block := file.read(min(1 << 20, size - done))):
                        out.write(block)
                        done += len(block)
                done = min((done + 4095) // 4096 * 4096, size)
                out.truncate(done)
                out.seek(done)
                if done == size:
                    break
            if done == before:
                raise Skip("there are no ELF files in /usr/bin and /usr/lib")
    # The ends of pages are not to be holes.
    with open(path, "r+b") as out:
        os.posix_fallocate(out.fileno(), 0, size)


def refuses_strangers():
    """Whether this migfs wants to be told that a network is private; an older one does not know the option."""
    return "-o insecure" in subprocess.run([MIGFS, "-h"], capture_output=True, text=True).stdout


def certificates():
    """Two directories for TLS, of a source and of a destination that is reached at the loopback."""
    tool = os.path.join(ROOT, "examples", "make-certificates")
    base = os.path.join(work, "tls")
    directories = [os.path.join(base, side) for side in ("source", "destination")]
    if not os.path.exists(base):
        os.mkdir(base)
        for argv in ([], *([directory, "127.0.0.1"] for directory in directories)):
            done = subprocess.run([tool, os.path.join(base, "ca"), *argv], capture_output=True, text=True)
            if done.returncode:
                raise Skip(f"no certificates: {done.stderr.strip()}")
    return directories


def aes_rate():
    """Bytes a second of AES-128-GCM on one processor, as OpenSSL measures itself, in records of 16 KiB."""
    try:
        said = subprocess.run(["openssl", "speed", "-seconds", "1", "-evp", "aes-128-gcm", "-bytes", "16384"],
                              capture_output=True, text=True)
        return float(said.stdout.split()[-1].rstrip("k")) * 1e3
    except (OSError, IndexError, ValueError) as error:
        raise Skip(f"openssl speed: {error}")


def compare(one, other, size):
    result = subprocess.run(["cmp", "-n", str(size), one, other], capture_output=True, text=True)
    if result.returncode:
        raise Failure(f"what arrived is not the image: {(result.stdout + result.stderr).strip()}")


def held(path):
    """The bytes of memory that a file in tmpfs, or a memfd, takes."""
    return os.stat(path).st_blocks * 512


def describe():
    """The machine, in a dictionary."""
    def first(path, pattern):
        with open(path) as lines:
            for line in lines:
                if found := re.match(pattern, line):
                    return found.group(1)
        return "?"

    def output(*argv):
        try:
            return subprocess.run(argv, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    return {
        "cpu": first("/proc/cpuinfo", r"model name\s*: (.*)"),
        "cores": os.cpu_count(),
        "memory": int(first("/proc/meminfo", r"MemTotal:\s*(\d+)")) << 10,
        "kernel": os.uname().release,
        "load": os.getloadavg()[0],
        "migfs": output(MIGFS, "-V"),
        "commit": output("git", "-C", ROOT, "describe", "--always", "--dirty"),
    }
