#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table of the format's features in engine/README.md: every row names tests that exist, and
every bit and header extension that engine/qcow2.h knows has a row.

The last column of a row is a list of references, separated by semicolons:

    `module`                      tests/unit/test_<module>.c, or a file by its path
    `module`: `name`, "row", all  tests of it by name, rows of its tables, or everything in it;
                                  "beginning …" stands for at least one row that begins so
"""

import re

from cairntest import Case, ROOT, main

README = ROOT / "engine" / "README.md"
REFERENCE = re.compile(r'`([\w/.]+)`(?:: (.+))?')
ITEM = re.compile(r'`(\w+)`|"([^"]+)"|(all)')


def feature_rows():
    """(line number, cells) of the rows of all tables in "Features of the format"."""
    section = None
    for number, line in enumerate(README.read_text().splitlines(), 1):
        if line.startswith("## "):
            section = line[3:]
        if section == "Features of the format" and line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if cells[0] != "feature":
                yield number, cells


class TestFile:
    """What a file of tests holds, by name."""

    def __init__(self, module):
        self.path = ROOT / (module if "/" in module else f"tests/unit/test_{module}.c")
        text = self.path.read_text() if self.path.is_file() else ""
        self.exists = bool(text)
        self.tests = set(re.findall(r"\b(?:cmocka_unit_test\w*|test)\(\s*test_(\w+)", text))
        self.tests |= set(re.findall(r"^    def test_(\w+)", text, re.M))
        for header in re.findall(r'^#include "(\w+\.h)"', text, re.M):
            beside = self.path.parent / header
            text += beside.read_text() if beside.is_file() else ""
        self.rows = set(re.findall(r'^ *\{\s*"((?:[^"\\]|\\.)+)",', text, re.M))

    def lacks(self, name, row):
        """Why an item is not there; None if it is."""
        if name:
            return None if name in self.tests else f"has no test {name}"
        if row:
            begin = row.removesuffix(" …")
            found = any(r.startswith(begin) for r in self.rows) if begin != row \
                else row in self.rows
            return None if found else f'has no row "{row}"'
        return None if self.tests else "has no tests"


def broken_references(text):
    """What is wrong with the test column of one row."""
    for reference in re.split(r';\s+(?=`)', text):
        match = REFERENCE.fullmatch(reference)
        if not match:
            yield f"cannot be understood: {reference!r}"
            continue
        file = TestFile(match[1])
        if not file.exists:
            yield f"no such file: {file.path}"
        for item in re.split(r', (?=[`"])', match[2] or "all"):
            found = ITEM.fullmatch(item)
            why = file.lacks(found[1], found[2]) if found else f"cannot be understood: {item!r}"
            if why:
                yield f"{match[1]}: {why}"


class FeatureTable(Case):
    def test_every_row_names_tests_that_exist(self):
        rows = list(feature_rows())
        self.assertGreater(len(rows), 40)
        for number, cells in rows:
            self.assertEqual(len(cells), 3, f"README.md:{number}")
            wrong = list(broken_references(cells[2]))
            self.assertEqual(wrong, [], f"engine/README.md:{number}: {cells[0]}")

    def test_what_is_not_there_is_found(self):
        for text, why in (("`qcow2_imagine`: all", "no such file"),
                          ("`qcow2_image`: `version_5_header`", "has no test version_5_header"),
                          ('`qcow2_refuse`: "version 5"', 'has no row "version 5"'),
                          ('`qcow2_refuse`: "versions …"', 'has no row "versions …"'),
                          ("`qcow2_image`: most", "cannot be understood"),
                          ("see above", "cannot be understood")):
            self.assertIn(why, "; ".join(broken_references(text)))

    def test_what_the_engine_knows_has_a_row(self):
        constants = (ROOT / "engine" / "qcow2.h").read_text()
        features = "\n".join(cells[0] for _, cells in feature_rows())
        for name, value in re.findall(r"define QCOW2_EXT_(\w+) +UINT32_C\((0x\w+)\)", constants):
            self.assertIn("end" if name == "END" else value, features, name)
        for kind, bits in (("incompatible", "INCOMPAT"), ("compatible", "COMPAT"),
                           ("autoclear", "AUTOCLEAR")):
            known = re.findall(rf"define QCOW2_{bits}_\w+ +\(UINT64_C\(1\) << (\d+)\)", constants)
            self.assertTrue(known, kind)
            for bit in known:
                self.assertRegex(features, rf"(?m)^{kind} {bit}, ")
            self.assertRegex(features, rf"(?m)^{kind}, unknown$")


if __name__ == "__main__":
    main()
