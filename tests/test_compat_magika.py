"""The package magika, written for ONNX Runtime, gives its own answers on Whet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import tarfile
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PYTHON = '''"""Words."""
from __future__ import annotations

import os


def total(values: list[int]) -> int:
    """The sum."""
    return sum(v for v in values if v % 2 == 0)


class Account:
    def __init__(self, owner: str) -> None:
        self.owner = owner

    def path(self) -> str:
        return os.path.join("accounts", self.owner)
'''
C = """#include <stdio.h>
#include <stdlib.h>

static int cube(int x) { return x * x * x; }

int main(int argc, char **argv) {
    for (int i = 0; i < argc; ++i) {
        printf("%s %d\\n", argv[i], cube(i));
    }
    return EXIT_SUCCESS;
}
"""
HTML = """<!DOCTYPE html>
<html lang="en"><head><title>A page</title><style>p { margin: 0; }</style></head>
<body><h1>Heading</h1><p>Some text with a <a href="https://example.org">link</a>.</p></body></html>
"""
SHELL = """#!/bin/bash
set -euo pipefail
for file in "$@"; do
    if [[ -f "$file" ]]; then
        wc -l < "$file" | tr -d ' '
    fi
done
"""
MARKDOWN = "# Title\n\nA paragraph with *stress* and `code`.\n\n- one\n- two\n\n```python\nprint(1)\n```\n" * 4
SQL = "SELECT id, name FROM users WHERE age > 21 ORDER BY name;\nINSERT INTO users (id, name) VALUES (1, 'a');\n" * 5
RUST = (
    'use std::fs;\n\nfn main() {\n    let text = fs::read_to_string("a").unwrap();\n    println!("{}", text);\n}\n' * 3
)
XML = '<?xml version="1.0"?>\n<note><to>A</to><from>B</from><body lang="en">Text</body></note>\n'


def write_files(folder: Path) -> None:
    """Files of many kinds, made here."""
    rng = np.random.default_rng(3)
    texts = {
        "code.py": PYTHON, "code.c": C, "page.html": HTML, "run.sh": SHELL, "read.md": MARKDOWN, "query.sql": SQL,
        "main.rs": RUST, "note.xml": XML, "data.json": json.dumps({"a": [1, 2, {"b": None}], "c": "d"} , indent=2),
        "settings.ini": "[main]\nkey = value\nother = 3\n\n[more]\nflag = true\n", "short.txt": "hi", "empty": "",
        "words.txt": "The quick brown fox jumps over the lazy dog. It was a day like any other day.\n" * 8,
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    table = io.StringIO()
    csv.writer(table).writerows([["id", "name", "score"], *[[i, f"n{i}", i * 1.5] for i in range(60)]])
    (folder / "table.csv").write_text(table.getvalue())
    pixels = rng.integers(0, 255, (40, 30, 3)).astype(np.uint8)
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(pixels).save(folder / f"image.{suffix}")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        # Fixed dates, here and below: the answers depend on every byte.
        archive.writestr(zipfile.ZipInfo("a.txt", (2024, 1, 2, 3, 4, 6)), "text" * 50)
    with tarfile.open(folder / "archive.tar", "w") as tar:
        member = tar.gettarinfo(folder / "code.py", "code.py")
        member.mtime = 0
        with open(folder / "code.py", "rb") as code:
            tar.addfile(member, code)
    (folder / "packed.gz").write_bytes(gzip.compress(PYTHON.encode(), mtime=0))
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(rng.integers(-3000, 3000, 4000).astype("<i2").tobytes())
    (folder / "noise.bin").write_bytes(rng.bytes(5000))


PROGRAM = """
import json
import sys
from pathlib import Path

import magika

tool = magika.Magika()
files = sorted(Path(sys.argv[1]).iterdir())
together = tool.identify_paths(files)
alone = [tool.identify_bytes(f.read_bytes()) for f in files]
answers = {
    f.name: [[str(r.dl.label), str(r.output.label), r.score] for r in pair]
    for f, *pair in zip(files, together, alone, strict=True)
}
import onnxruntime
print(json.dumps({"engine": onnxruntime.InferenceSession.__module__.split(".")[0], "answers": answers}))
"""
SHIM = "import whet; whet.install_as_onnxruntime()\n"


def run(program: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_magika_gives_its_own_answers(tmp_path: Path) -> None:
    write_files(tmp_path)
    theirs, ours = run(PROGRAM, tmp_path), run(SHIM + PROGRAM, tmp_path)
    assert theirs["engine"] == "onnxruntime"
    assert ours["engine"] == "whet"
    assert ours["answers"].keys() == theirs["answers"].keys()
    labels = set()
    for name, answers in theirs["answers"].items():
        for found, right in zip(ours["answers"][name], answers, strict=True):
            assert found[:2] == right[:2], name
            assert found[2] == pytest.approx(right[2], abs=1e-3), name
            labels.add(found[1])
    # Otherwise the network was hardly asked.
    assert len(labels) > 15
    assert {"python", "c", "html", "png"} <= labels
