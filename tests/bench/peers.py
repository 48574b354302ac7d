# SPDX-License-Identifier: Apache-2.0
"""The other peers: what people use to get a file into memory on another machine, and the limit."""

import os
import shutil
import time

import machine
from machine import Skip


def need(program):
    if not shutil.which(program):
        raise Skip(f"{program} is not installed")


def limit(image, channels, cold=None, check=False):
    destination = os.path.join(machine.work, "limit-ram")
    try:
        said = machine.helper("limit", "-n", channels, *(["-c", cold] if cold else []), image, destination)
        if check:
            machine.compare(image, destination, os.path.getsize(image))
        return said
    finally:
        if os.path.exists(destination):
            os.unlink(destination)


def _timed(begin, image, **more):
    return {"seconds": time.monotonic() - begin, "bytes": os.path.getsize(image), **more}


def socat(image, cold, check=False):
    need("socat")
    destination = os.path.join(machine.work, "socat-ram")
    port = machine.free_port()
    try:
        if not cold:
            shutil.copyfile(image, destination)
        open_mode = "creat,trunc" if cold else "creat"
        receiver = machine.spawn(["socat", "-u", "-b", "1048576", f"TCP-LISTEN:{port},bind=127.0.0.1",
                                  f"OPEN:{destination},{open_mode}"])
        machine.wait_until("socat listens", lambda: machine.listening(port), receiver)
        begin = time.monotonic()
        sender = machine.spawn(["socat", "-u", "-b", "1048576", f"OPEN:{image},rdonly", f"TCP:127.0.0.1:{port}"])
        machine.wait(sender, "socat")
        machine.wait(receiver, "socat")
        result = _timed(begin, image)
        if check:
            machine.compare(image, destination, os.path.getsize(image))
        return result
    finally:
        if os.path.exists(destination):
            os.unlink(destination)


def nbdcopy(image, cold, check=False, connections=4):
    """To nbdkit's memory plugin. Its memory is resident when the image has been there before."""
    need("nbdcopy")
    need("nbdkit")
    port = machine.free_port()
    size = os.path.getsize(image)
    url = f"nbd://127.0.0.1:{port}"
    server = machine.spawn(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", str(size)])
    argv = ["nbdcopy", f"--connections={connections}", "--requests=64", "--flush", image, url]
    back = os.path.join(machine.work, "nbd-ram")
    try:
        machine.wait_until("nbdkit listens", lambda: machine.listening(port), server)
        if not cold:
            machine.wait(machine.spawn(argv), "nbdcopy")
        begin = time.monotonic()
        machine.wait(machine.spawn(argv), "nbdcopy")
        result = _timed(begin, image)
        if check:
            machine.wait(machine.spawn(["nbdcopy", url, back]), "nbdcopy")
            machine.compare(image, back, size)
        return result
    finally:
        machine.end(server)
        if os.path.exists(back):
            os.unlink(back)


def rsync(image, cold, check=False):
    """To a daemon, whole and in place: what rsync compares and checks is left out as far as it can be."""
    need("rsync")
    directory = os.path.join(machine.work, "rsync")
    os.makedirs(directory, exist_ok=True)
    port = machine.free_port()
    config = os.path.join(machine.work, "rsyncd.conf")
    with open(config, "w") as out:
        out.write(f"use chroot = no\nuid = 0\ngid = 0\naddress = 127.0.0.1\n[ram]\npath = {directory}\nread only = no\n")
    destination = os.path.join(directory, os.path.basename(image))
    try:
        if not cold:
            shutil.copyfile(image, destination)
        server = machine.spawn(["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}"])
        machine.wait_until("rsync listens", lambda: machine.listening(port), server)
        begin = time.monotonic()
        machine.wait(machine.spawn(["rsync", "--whole-file", "--inplace", "--ignore-times", image,
                                    f"rsync://127.0.0.1:{port}/ram/"]), "rsync")
        result = _timed(begin, image)
        machine.end(server)
        if check:
            machine.compare(image, destination, os.path.getsize(image))
        return result
    finally:
        shutil.rmtree(directory, ignore_errors=True)
