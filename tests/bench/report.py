# SPDX-License-Identifier: Apache-2.0
"""What was measured: JSON lines as it comes, Markdown tables of medians and ratios at the end of a scenario."""

import json
import os
import re
import statistics
import sys
import time

import machine


class Scenario:
    """Variants that are measured in turn, round after round.

    A variant is a function of `check` (whether it should compare what arrived) that returns {row: figures}. Columns are
    (heading, function of a row's figures, format); the first one is what ratios are made of, and larger is
    better unless `smaller` says otherwise.
    """

    def __init__(self, name, title, columns, notes=(), smaller=False):
        self.name, self.title, self.columns = name, title, columns
        self.notes, self.smaller = list(notes), smaller
        self.variants, self.ratios, self.after, self.facts = [], [], [], []
        self.loads = []
        self.rows, self.skipped, self.failed = {}, {}, {}

    def add(self, row, function):
        """@row names the variant; its rows begin with that."""
        self.variants.append((row, function))

    def ratio(self, text, numerator, denominator, goal=None, column=0):
        """The better of the rows that match one pattern against the better of those that match another. What is compared
        are the figures of @column; the first column says which is better."""
        self.ratios.append((text, numerator, denominator, goal, column))

    # ---- Measuring ----

    def run(self, runs, warm_size, log, select):
        variants = [v for v in self.variants if not select or re.search(select, v[0])]
        for round_number in range(runs):
            log.write("warm", scenario=self.name, round=round_number, rate=machine.warm(warm_size),
                      load=os.getloadavg()[0])
            self.loads.append(os.getloadavg()[0])
            # In both directions, so that nobody always comes after the same one.
            for row, function in variants if round_number % 2 == 0 else reversed(variants):
                self._measure(row, function, round_number, log)

    def _measure(self, variant, function, round_number, log):
        if variant in self.skipped or variant in self.failed:
            return
        try:
            for row, figures in function(round_number == 0).items():
                self.rows.setdefault(row, []).append(figures)
                log.write("run", scenario=self.name, row=row, round=round_number, **figures)
                log.progress(f"{self.name} {round_number + 1}: {row}: "
                             + ", ".join(f"{heading} {shape(value(figures), form)}"
                                         for heading, value, form in self.columns[:3]))
        except machine.Skip as reason:
            self.skipped[variant] = str(reason)
            log.write("skip", scenario=self.name, row=variant, reason=str(reason))
            log.progress(f"{self.name}: {variant}: skipped: {reason}")
        except (machine.Failure, OSError, KeyError, ValueError, ZeroDivisionError) as reason:
            text = f"{type(reason).__name__}: {reason}" if not isinstance(reason, machine.Failure) else str(reason)
            self.failed[variant] = text
            log.write("failure", scenario=self.name, row=variant, reason=text)
            log.progress(f"{self.name}: {variant}: FAILED: {text}")

    # ---- Reporting ----

    def values(self, row, column=0):
        function = self.columns[column][1]
        return [v for figures in self.rows[row] if (v := function(figures)) is not None]

    def median(self, row, column=0):
        values = self.values(row, column)
        return statistics.median(values) if values else None

    def _ordered(self):
        order = [variant for variant, _ in self.variants]

        def place(row):
            return max((i for i, v in enumerate(order) if row.startswith(v)), key=lambda i: len(order[i]), default=len(order))
        return sorted(self.rows, key=place)

    def best(self, pattern):
        rows = [row for row in self.rows if re.search(pattern, row) and self.values(row)]
        if not rows:
            return None
        return (min if self.smaller else max)(rows, key=self.median)

    def table(self, log):
        out = [f"## {self.name}: {self.title}", ""]
        headings = ["", self.columns[0][0], "from", "to"] + [heading for heading, _, _ in self.columns[1:]]
        out += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
        for row in self._ordered():
            values = self.values(row)
            medians = [self.median(row, i) for i in range(len(self.columns))]
            forms = [form for _, _, form in self.columns]
            if not values:
                continue
            cells = [row, f"**{shape(medians[0], forms[0])}**", shape(min(values), forms[0]), shape(max(values), forms[0])]
            cells += [shape(m, f) for m, f in zip(medians[1:], forms[1:])]
            out.append("| " + " | ".join(cells) + " |")
            log.write("row", scenario=self.name, row=row, runs=len(values), smallest=min(values), largest=max(values),
                      **{heading: m for (heading, _, _), m in zip(self.columns, medians)})
        out += [""] + [f"* {note}" for note in self.notes]
        if self.loads and max(self.loads) > 2 * os.cpu_count():
            out.append(f"* **Somebody else is using this machine: load {min(self.loads):.0f} to {max(self.loads):.0f} at the "
                       "start of the rounds. These figures say little.**")
        out += self._ratio_table(log)
        for function in self.after:
            out += function(self)
        for fact in self.facts:
            log.write("ratio", scenario=self.name, **fact)
        for what, rows in (("Skipped", self.skipped), ("FAILED", self.failed)):
            reasons = {}
            for row, reason in rows.items():
                reasons.setdefault(reason, []).append(row)
            out += [f"* {what}: {', '.join(rows)}: {reason}" for reason, rows in reasons.items()]
        return "\n".join(out) + "\n"

    def _ratio_table(self, log):
        lines = []
        for text, numerator, denominator, goal, column in self.ratios:
            one, other = self.best(numerator), self.best(denominator)
            if not one or not other or not self.values(one, column) or not self.values(other, column):
                continue
            ratio = self.median(one, column) / self.median(other, column)
            pairs = [a / b for a, b in zip(self.values(one, column), self.values(other, column)) if b]
            lines.append(f"| {text} | {one} | {other} | **{ratio:.2f}** | {min(pairs):.2f} to {max(pairs):.2f} | {goal or ''} |")
            log.write("ratio", scenario=self.name, text=text, numerator=one, denominator=other, ratio=ratio,
                      lowest=min(pairs), highest=max(pairs), goal=goal)
        if not lines:
            return []
        return ["", "| ratio of medians | best of the one | best of the other | ratio | round by round | aim |",
                "|---|---|---|---:|---|---|", *lines, ""]


def shape(value, form):
    return "" if value is None else format(value, form)


class Log:
    """JSON lines to a file, progress to stderr."""

    def __init__(self, path):
        self.out = open(path, "a")

    def write(self, kind, **fields):
        self.out.write(json.dumps({"type": kind, "time": round(time.time(), 3), **fields}) + "\n")
        self.out.flush()

    def progress(self, text):
        print(text, file=sys.stderr, flush=True)


# ---- Columns that several scenarios have ----

def rate(figures):
    return figures["bytes"] / figures["seconds"] / 1e9


def wall_rate(figures):
    return figures["bytes"] / figures["wall"] / 1e9 if "wall" in figures else None


def per_gb(key):
    def value(figures):
        return figures[key] / figures["bytes"] * 1e9 if figures.get(key) is not None else None
    return value


def mib(key):
    def value(figures):
        return figures[key] / (1 << 20) if figures.get(key) is not None else None
    return value


def plain(key):
    return lambda figures: figures.get(key)


RATE = ("GB/s", rate, ".2f")
CPU = [("CPU s/GB source", per_gb("cpu_source"), ".2f"), ("destination", per_gb("cpu_destination"), ".2f"),
       ("machine", per_gb("cpu_machine"), ".2f")]
