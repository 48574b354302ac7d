# SPDX-License-Identifier: Apache-2.0
"""Runs scenarios; started by tests/bench/run, which has installed and built what they need."""

import argparse
import os
import sys
import time

import machine
import plot
import qemu
import report
import scenarios


def parse_size(text):
    units = {"K": 10, "M": 20, "G": 30}
    value = int(text.rstrip("KMGkmg")) << units.get(text[-1].upper(), 0)
    if value < 64 << 20 or value % (1 << 20):
        raise argparse.ArgumentTypeError("a size is a multiple of 1M, and at least 64M")
    return value


def parse():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Compares migfs with its peers.",
                                     epilog="See tests/bench/README.md.")
    parser.add_argument("-n", metavar="RUNS", dest="runs", type=int, default=5, help="rounds (5)")
    parser.add_argument("-s", metavar="SIZE", dest="size", type=parse_size, default=2 << 30, help="of the image (2G)")
    parser.add_argument("-k", metavar="REGEX", dest="select", help="only variants whose name it matches")
    parser.add_argument("-o", metavar="DIR", dest="out", help="where the results go")
    parser.add_argument("scenario", nargs="*", help=", ".join(scenarios.SCENARIOS) + "; all of them when none is given")
    args = parser.parse_args()
    for name in args.scenario:
        if name not in scenarios.SCENARIOS:
            parser.error(f"there is no scenario '{name}'")
    return args


def main():
    args = parse()
    out = args.out or os.path.join(machine.KEEP, "results", time.strftime("%Y%m%d-%H%M%S"))
    os.makedirs(out, exist_ok=True)
    plot.directory = out
    machine.set_up()
    log = report.Log(os.path.join(out, "results.jsonl"))
    scenarios.QEMU.update(qemu.installed())
    facts = {**machine.describe(), "qemu": {name: which["version"] for name, which in scenarios.QEMU.items()},
             "runs": args.runs, "size": args.size}
    log.write("machine", **facts)
    # The image, what has arrived, and once more while a file is compared or copied.
    if machine.free_memory() < 5 * args.size:
        sys.exit(f"an image of {args.size >> 20} MiB wants {5 * args.size >> 20} MiB of free memory: try a smaller -s")
    text = [f"# migfs {facts['commit']}, {time.strftime('%Y-%m-%d %H:%M')}", "",
            f"{facts['cpu']}, {facts['cores']} cores, {facts['memory'] >> 30} GiB, Linux {facts['kernel']}; "
            f"QEMU {', '.join(facts['qemu'].values()) or 'none'}; load at the start {facts['load']:.2f}; "
            f"medians of {args.runs}.", ""]
    path = os.path.join(out, "results.md")
    print("\n".join(text))
    failed = False
    for name in args.scenario or scenarios.SCENARIOS:
        scenario = scenarios.SCENARIOS[name](args.size)
        scenario.run(args.runs, 4 * args.size, log, args.select)
        table = scenario.table(log)
        text.append(table)
        print(table, flush=True)
        with open(path, "w") as file:
            file.write("\n".join(text))
        machine.drop_images()
        failed |= bool(scenario.failed)
    print(f"{path}, {log.out.name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
