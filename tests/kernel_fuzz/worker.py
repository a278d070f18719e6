"""A process that makes cases: `python -m tests.kernel_fuzz.worker STATE FIRST STEP LAST ENTRIES [ONLY_FAMILY]`.

Results are lines of JSON on standard output. Before each call, its seed, number and variant are written to STATE, a
file that is still there when a kernel ends the process.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
from dataclasses import asdict

from .case import make_case, run_case
from .host import Host

STATE = struct.Struct("<3q")


def main() -> int:
    state, *numbers = sys.argv[1:6]
    family = sys.argv[6] if len(sys.argv) > 6 else None
    first, step, last, entries = map(int, numbers)
    host = Host()
    with open(state, "r+b") as file:
        memory = mmap.mmap(file.fileno(), STATE.size)
        for seed in range(first, last, step):
            STATE.pack_into(memory, 0, seed, -1, 0)

            def note(number: int, variant: int, seed: int = seed) -> None:
                STATE.pack_into(memory, 0, seed, number, variant)

            if family is not None and make_case(seed).family.name != family:
                continue
            result = run_case(host, seed, entries, note)
            print(json.dumps(asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
