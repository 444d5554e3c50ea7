# SPDX-License-Identifier: Apache-2.0
"""What tests/bench/depth found: as a table with the goals below it, and as a plot."""

import math
from xml.sax.saxutils import escape

MIB = 1 << 20

# -- Table ----------------------------------------------------------------------------------------


def get(figures, *path):
    """What is there, or None: not every depth has every contender."""
    for key in path:
        figures = figures.get(key) if figures else None
    return figures


def number(entry, *path, scale=1, digits=0):
    value = get(entry, *path)
    return f"{value / scale:,.{digits}f}" if value is not None else "–"


ROWS = (
    ("attach, ms", None, None),
    ("  cairn, cold", ("cairn", "cold", "attachSeconds"), {"scale": 1e-3}),
    ("  cairn, warm", ("cairn", "warm", "attachSeconds"), {"scale": 1e-3}),
    ("  qemu-nbd", ("qemu", "attachSeconds"), {"scale": 1e-3}),
    ("random 4 KiB reads per second", None, None),
    ("  cairn, cold", ("cairn", "cold", "randomReads"), {}),
    ("  cairn, warm", ("cairn", "warm", "randomReads"), {}),
    ("    of the first column's", ("cairn", "warm", "randomReadsOfShallowest"), {"digits": 3}),
    ("  its cache's files alone", ("files", "randomReads"), {}),
    ("    of the first column's", ("files", "randomReadsOfShallowest"), {"digits": 3}),
    ("  qemu-nbd", ("qemu", "randomReads"), {}),
    ("full read, MiB/s", None, None),
    ("  cairn, cold", ("cairn", "cold", "bytesPerSecond"), {"scale": MIB}),
    ("  cairn, warm", ("cairn", "warm", "bytesPerSecond"), {"scale": MIB}),
    ("    of the first column's", ("cairn", "warm", "bytesPerSecondOfShallowest"), {"digits": 3}),
    ("  its cache's files alone", ("files", "bytesPerSecond"), {"scale": MIB}),
    ("    of the first column's", ("files", "bytesPerSecondOfShallowest"), {"digits": 3}),
    ("  qemu-nbd", ("qemu", "bytesPerSecond"), {"scale": MIB, "digits": 1}),
    ("from the disk while warm, MiB", None, None),
    ("  cairn", ("cairn", "warm", "diskBytes"), {"scale": MIB, "digits": 1}),
    ("  its cache's files alone", ("files", "diskBytes"), {"scale": MIB, "digits": 1}),
    ("resident memory, MiB", None, None),
    ("  cairn, attached", ("cairn", "cold", "attach", "residentBytes"), {"scale": MIB, "digits": 1}),
    ("  cairn, cold, all read", ("cairn", "cold", "full", "residentBytes"),
     {"scale": MIB, "digits": 1}),
    ("  cairn, warm, all read", ("cairn", "warm", "residentBytes"), {"scale": MIB, "digits": 1}),
    ("  qemu-nbd, all read", ("qemu", "residentBytes"), {"scale": MIB, "digits": 1}),
    ("  cairnd, published", ("serverResidentBytes",), {"scale": MIB, "digits": 1}),
    ("  cairnd, cold, all read", ("cairn", "cold", "serverResidentBytes"),
     {"scale": MIB, "digits": 1}),
    ("over HTTP", None, None),
    ("  attach: requests", ("cairn", "cold", "attach", "requests"), {}),
    ("  attach: KiB", ("cairn", "cold", "attach", "bytes"), {"scale": 1024, "digits": 1}),
    ("  full read, cold: requests", ("cairn", "cold", "full", "requests"), {}),
    ("  full read, cold: MiB", ("cairn", "cold", "full", "bytes"), {"scale": MIB, "digits": 1}),
    ("publishing, s", ("publishSeconds",), {"digits": 1}),
)


def print_report(figures):
    entries = figures["depths"]
    print(f"{figures['kind']} chains, disk of {figures['sizeMiB']:,} MiB; random reads "
          f"{figures['rounds']} × {figures['seconds']:g} s at queue depth 16, medians; qemu-nbd on local "
          f"files,\nits full reads ended after {figures['boxSeconds']:g} s\n")
    print(f"{'layers':32}" + "".join(f"{entry['depth']:>12,}" for entry in entries))
    for name, path, how in ROWS:
        cells = "".join(f"{number(entry, *path, **how):>12}" for entry in entries) if path else ""
        print(f"{name:32}{cells}".rstrip())
    traffic = figures["warmTraffic"]
    print(f"\nwarm, all depths and rounds together: {traffic['requests']:,} requests, "
          f"{traffic['bytes']:,} bytes over HTTP")
    print_ways(figures)
    print_goals(figures)


def print_ways(figures):
    """What nbdkit's own plugins reach over the same socket, and how qemu-nbd's single file is beside that."""
    theirs = get(figures["depths"][0], "qemu", "randomReads")
    print("\nthe way itself, without Cairn")
    for plugin, warm in figures["nbdkit"].items():
        beside = f", {warm['randomReads'] / theirs:.2f}× qemu-nbd's first column" if theirs else ""
        print(f"  nbdkit {plugin + ':':10}{warm['randomReads']:>11,.0f} random reads per second{beside}; "
              f"{warm['bytesPerSecond'] / MIB:,.0f} MiB/s")


# -- Goals ----------------------------------------------------------------------------------------

def goals(figures):
    """(what, figure, whether it is reached)"""
    first = figures["depths"][0]
    for entry in figures["depths"]:
        depth, warm = entry["depth"], entry["cairn"]["warm"]
        if depth in (1000, 5000) and first["depth"] == 1:
            least = 0.95 if depth == 1000 else 0.9
            for what in ("randomReads", "bytesPerSecond"):
                ratio = warm[f"{what}OfShallowest"]
                yield f"{depth:,} layers, warm {what}, of 1 layer's ≥ {least}", f"{ratio:.3f}", ratio >= least
        if depth in (1, 1000):
            least = 3 if depth == 1 else 3000
            theirs = entry["qemu"]["randomReads"]
            ratio = warm["randomReads"] / theirs if theirs else math.inf  # it stalled each time
            yield (f"{depth:,} layers, warm random reads, of qemu-nbd's ≥ {least:,}×",
                   f"{ratio:,.2f}", ratio >= least)
        if depth == 1000:
            yield from goals_of_attach(first, entry)


def goals_of_attach(first, entry):
    cold = entry["cairn"]["cold"]
    milliseconds = cold["attachSeconds"] * 1e3
    requests = cold["attach"]["requests"]
    more = (entry["cairn"]["warm"]["residentBytes"]
            - first["cairn"]["warm"]["residentBytes"]) / MIB
    yield "1,000 layers, attach ≤ 50 ms", f"{milliseconds:.1f}", milliseconds <= 50
    yield ("1,000 layers, requests to attach, those of the first column", f"{requests}",
           requests == first["cairn"]["cold"]["attach"]["requests"])
    if first["depth"] == 1:
        yield "1,000 layers, client's memory ≤ 4 MiB more than at 1", f"{more:+.1f}", more <= 4


def print_goals(figures):
    rows = list(goals(figures))
    if rows:
        print("\ngoals")
    for what, figure, reached in rows:
        print(f"  {what:66}{figure:>10}  {'reached' if reached else 'MISSED'}")


# -- Plot -----------------------------------------------------------------------------------------

COLOURS = {"cairn, warm": "#0a7d5a", "cairn, cold": "#4f9bd9", "qemu-nbd": "#c8502d"}
PANELS = (
    ("random 4 KiB reads per second", {
        "cairn, warm": ("cairn", "warm", "randomReads"),
        "cairn, cold": ("cairn", "cold", "randomReads"),
        "qemu-nbd": ("qemu", "randomReads")}, 1),
    ("full read, MiB/s", {
        "cairn, warm": ("cairn", "warm", "bytesPerSecond"),
        "cairn, cold": ("cairn", "cold", "bytesPerSecond"),
        "qemu-nbd": ("qemu", "bytesPerSecond")}, MIB),
    ("attach, ms", {
        "cairn, warm": ("cairn", "warm", "attachSeconds"),
        "cairn, cold": ("cairn", "cold", "attachSeconds"),
        "qemu-nbd": ("qemu", "attachSeconds")}, 1e-3),
    ("resident memory, MiB", {
        "cairn, warm": ("cairn", "warm", "residentBytes"),
        "cairn, cold": ("cairn", "cold", "full", "residentBytes"),
        "qemu-nbd": ("qemu", "residentBytes")}, MIB),
)
WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 260, 64, 34, 44


class Axis:
    """A logarithmic scale over whole decades, from pixel a to pixel b."""

    def __init__(self, values, a, b):
        self.low = self.high = 0
        while 10 ** self.low > min(values):
            self.low -= 1
        while 10 ** (self.low + 1) <= min(values):
            self.low += 1
        self.high = self.low + 1
        while 10 ** self.high < max(values):
            self.high += 1
        self.a, self.b = a, b

    def at(self, value):
        return self.a + (self.b - self.a) * (math.log10(value) - self.low) / (self.high - self.low)

    def decades(self):
        return [10.0 ** exponent for exponent in range(self.low, self.high + 1)]


def decade(value):
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def text(x, y, words, anchor="middle", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def line(points, colour):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def grid(x_axis, y_axis):
    yield from (f'<line x1="{x_axis.a}" x2="{x_axis.b}" y1="{y_axis.at(v):.1f}" y2="{y_axis.at(v):.1f}" '
                f'stroke="#ddd"/>' + text(x_axis.a - 6, y_axis.at(v) + 4, decade(v), "end")
                for v in y_axis.decades())
    yield from (f'<line x1="{x_axis.at(v):.1f}" x2="{x_axis.at(v):.1f}" y1="{y_axis.a}" y2="{y_axis.b}" '
                f'stroke="#eee"/>' + text(x_axis.at(v), y_axis.a + 16, decade(v))
                for v in x_axis.decades())


def panel(figures, title, series, scale, x, y):
    lines = {name: [(entry["depth"], get(entry, *path) / scale) for entry in figures["depths"]
                    if get(entry, *path)] for name, path in series.items()}
    values = [value for points in lines.values() for _, value in points]
    x_axis = Axis([entry["depth"] for entry in figures["depths"]], x + LEFT, x + WIDTH)
    y_axis = Axis(values, y + TOP + HEIGHT, y + TOP)
    yield text(x + LEFT, y + TOP - 12, title, "start", 'font-weight="bold"')
    yield from grid(x_axis, y_axis)
    for name, points in lines.items():
        if points:
            yield line([(x_axis.at(a), y_axis.at(b)) for a, b in points], COLOURS[name])


def legend(y):
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + 130 * i
        yield line([(x, y - 4), (x + 24, y - 4)], colour) + text(x + 32, y, name, "start")


def write_svg(path, figures):
    """Two by two panels over the number of layers, all scales logarithmic."""
    width, height = 2 * (WIDTH + GAP), 2 * (TOP + HEIGHT + GAP) + 50
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>',
             text(LEFT, 22, f"{figures['kind']} chains of {figures['sizeMiB']:,} MiB over their number of "
                  "layers", "start", 'font-size="15" font-weight="bold"')]
    for i, (title, series, scale) in enumerate(PANELS):
        row, column = divmod(i, 2)
        parts += panel(figures, title, series, scale, column * (WIDTH + GAP),
                       30 + row * (TOP + HEIGHT + GAP))
    parts += [*legend(height - 10), "</svg>"]
    path.write_text("\n".join(parts) + "\n")
