# SPDX-License-Identifier: Apache-2.0
"""A plot of groups of bars, as an SVG file beside the results."""

import html

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#c44e52")
directory = "."


def bars(name, title, groups, heads):
    """@groups: {group: {head: value}}. Returns the file's path."""
    left, bar, gap, width = 340, 14, 12, 900
    largest = max(value for values in groups.values() for value in values.values())
    y, body = 48, []
    for i, head in enumerate(heads):
        body.append(f'<rect x="{left + i * 90}" y="28" width="10" height="10" fill="{COLOURS[i % 6]}"/>'
                    f'<text x="{left + i * 90 + 14}" y="37">{html.escape(head)}</text>')
    for group, values in groups.items():
        middle = y + len(values) * bar / 2 + 4
        body.append(f'<text x="{left - 8}" y="{middle:.0f}" text-anchor="end">{html.escape(group)}</text>')
        for head in heads:
            if head not in values:
                continue
            length = values[head] / largest * (width - left - 60)
            body.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{COLOURS[heads.index(head) % 6]}"/>'
                        f'<text x="{left + length + 4:.1f}" y="{y + bar - 4}">{values[head]:.0f}</text>')
            y += bar
        y += gap
    path = f"{directory}/{name}.svg"
    with open(path, "w") as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="11">\n'
                  f'<rect width="100%" height="100%" fill="white"/>\n'
                  f'<text x="8" y="18" font-size="14">{html.escape(title)}</text>\n' + "\n".join(body) + "\n</svg>\n")
    return path
