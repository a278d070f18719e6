"""Mixed load on one server: every answer compared, models reloaded and broken, requests cancelled and wrong.

python -m tests.server.soak --minutes 30 [--seed 1] [--control-mode poll]

Half of the time the server follows the disk, the other half it is told of what changed there.

At its end: no good request failed, no answer was wrong, the server's memory is flat, its files, threads and children
are those of before, its log holds no traceback, and its metrics count what the clients counted.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.server import soak_changes, soak_clients, soak_rough
from tests.server.running import RunningServer, free_port
from tests.server.soak_book import Soak
from tests.server.soak_models import make_soak_repository

TOKEN = "soak-token"
MODES = ("poll", "explicit")
WARM = 0.2
"""Part of the run after which memory is looked at first."""
GROWTH_MB = 12.0
FILES_LEFT = 4
THREADS_LEFT = 4


@dataclass(frozen=True)
class Use:
    """What a process holds at a moment."""

    seconds: float
    resident_mb: float
    files: int
    threads: int
    children: int


def use_of(pid: int, began: float) -> Use:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )  # fmt: skip
    children = sum(len(p.read_text().split()) for p in Path(f"/proc/{pid}/task").glob("*/children"))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Use(
        time.monotonic() - began, int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]), children
    )


def growth_mb(found: list[Use]) -> tuple[float, float]:
    """How much more the last tenth holds than the first after warming up (medians), and the slope in MB an hour."""
    warm = [u for u in found if u.seconds >= WARM * found[-1].seconds]
    part = max(len(warm) // 10, 1)
    memory = np.array([u.resident_mb for u in warm])
    slope = float(np.polyfit([u.seconds for u in warm], memory, 1)[0]) * 3600 if len(warm) > 2 else 0.0
    return float(np.median(memory[-part:]) - np.median(memory[:part])), slope


def successes(metrics_port: int) -> Counter[str]:
    """Answered requests by model, as the server counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for model, value in re.findall(r'^nv_inference_request_success\{model="([^"]+)"[^}]*\} (\d+)', text, re.MULTILINE):
        found[model] += int(value)
    return found


class Run:
    """One soak. `problems` says what should not have been; empty for a good run."""

    def __init__(self, seconds: float, seed: int, folder: Path, mode: str, growth: float = GROWTH_MB) -> None:
        self.problems: list[str] = []
        self.uses: list[Use] = []
        self.figures: list[str] = []
        self._seconds = seconds
        self._growth = growth
        self._repository = folder / "models"
        asked = make_soak_repository(self._repository)
        self._admin_port = free_port()
        arguments = {"poll": ("--poll-s", "0.5"), "explicit": ("--load-model", "*")}[mode]
        self.server = RunningServer(
            self._repository, "--control-mode", mode, *arguments, "--cache-bytes", str(1 << 20),
            "--admin-port", str(self._admin_port), "--admin-token", TOKEN, "--body-s", "5",
            # One model is broken from the start.
            "--no-strict-readiness", log=folder / "server.log",
        )  # fmt: skip
        self.soak = Soak(
            self.server.http_port, self.server.grpc_port, self._admin_port, self.server.metrics_port, TOKEN, asked,
            seed, by_request=mode == "explicit",
        )  # fmt: skip
        self.soak.factors.begin(1.0)
        self.soak.onoff.begin("on")

    def run(self, report: bool = False) -> None:
        with self.server:
            self._under_load(report)
        self.problems += [f"exit status {self.server.process.returncode}"] if self._failed_to_end() else []
        log = self.server.log
        if "Traceback" in log or "ERROR" in re.sub(r".*cannot be served.*", "", log):
            lines = [n for n in log.splitlines() if "cannot be served" not in n]
            self.problems.append("the server's log: " + "\n".join(lines[-60:]))

    def _failed_to_end(self) -> bool:
        assert self.server.process is not None
        return self.server.process.returncode != 0

    def _under_load(self, report: bool) -> None:
        soak, server = self.soak, self.server
        assert server.process is not None
        pid = server.process.pid
        clients = (
            ("http-json-1", soak_clients.http_json),
            ("http-json-2", soak_clients.http_json),
            ("http-binary-1", soak_clients.http_binary),
            ("http-binary-2", soak_clients.http_binary),
            ("grpc-unary-1", soak_clients.grpc_unary),
            ("grpc-unary-2", soak_clients.grpc_unary),
            ("grpc-stream-1", soak_clients.grpc_stream),
            ("grpc-stream-2", soak_clients.grpc_stream),
            ("sequences-1", soak_clients.sequences),
            ("sequences-2", soak_clients.sequences),
            ("swap-user", soak_clients.swap_user),
            ("onoff-user", soak_clients.onoff_user),
            ("canceller", soak_rough.canceller),
            ("gone", soak_rough.gone),
            ("too-late", soak_rough.too_late),
            ("wrong-names", soak_rough.wrong_names),
            ("malformed-http", soak_rough.malformed_http),
            ("malformed-grpc", soak_rough.malformed_grpc),
            ("reader", soak_rough.reader),
            ("swapper", soak_changes.swapper(self._repository)),
            ("comers", soak_changes.comers(self._repository)),
            *((("switcher", soak_changes.switcher),) if soak.by_request else ()),
        )
        began = time.monotonic()
        before = use_of(pid, began)
        threads = [soak.start(who, client) for who, client in clients]
        every = max(0.25, min(5.0, self._seconds / 100))
        while (now := time.monotonic() - began) < self._seconds:
            time.sleep(min(every, self._seconds - now))
            if server.process.poll() is not None:
                self.problems.append(f"the server ended with {server.process.returncode}")
                soak.stopped.set()
                return
            self.uses.append(use_of(pid, began))
            if report and len(self.uses) % 24 == 0:
                self._print(self.uses[-1])
        soak.stopped.set()
        self._join(threads)
        self._settle(pid, began, before)
        self._count(server.metrics_port)
        answered = sum(soak.book.answered.values())
        grown, slope = growth_mb(self.uses)
        last = self.uses[-1]
        self.figures += [
            f"{self._seconds / 60:.1f} minutes, {answered} answers compared ({answered / self._seconds:.0f}/s)",
            f"memory {self.uses[int(len(self.uses) * WARM)].resident_mb:.1f} MB after warming up, "
            f"{last.resident_mb:.1f} MB at the end: {grown:+.1f} MB, {slope:+.1f} MB an hour",
            f"files, threads, children: {before.files}, {before.threads}, {before.children} before, "
            f"{self._after.files}, {self._after.threads}, {self._after.children} after",
        ]
        if grown > self._growth:
            self.problems.append(f"memory grew by {grown:.1f} MB")
        self.problems += soak.book.problems
        if soak.book.problem_count > len(soak.book.problems):
            self.problems.append(f"... {soak.book.problem_count} problems in all")

    def _join(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + 90
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.problems.append(f"{thread.name} hangs")

    def _settle(self, pid: int, began: float, before: Use) -> None:
        """Wait until the server holds no more than before: connections close, children end, cancelled runs stop.

        Pools of threads fill while the load begins: theirs is the most of that time.
        """
        warm = [u.threads for u in self.uses[: max(int(len(self.uses) * WARM), 1)]]
        before = replace(before, threads=max(before.threads, *warm))
        end = time.monotonic() + 40
        while True:
            after = self._after = use_of(pid, began)
            over = [
                f"{name} {getattr(after, name)}, before {getattr(before, name)}"
                for name, spare in (("files", FILES_LEFT), ("threads", THREADS_LEFT), ("children", 0))
                if getattr(after, name) > getattr(before, name) + spare
            ]
            if not over:
                return
            if time.monotonic() > end:
                self.problems += over
                return
            time.sleep(0.25)

    def _count(self, metrics_port: int) -> None:
        book, counted = self.soak.book, successes(metrics_port)
        # Answers of an ensemble are answers of its models, too.
        book.answered["first"] += book.answered["pipe"]
        book.answered["scale"] += book.answered["pipe"]
        for name in (*self.soak.asked, "sums", "oldest"):
            least = book.answered[name]
            most = least + book.maybe[name]
            if not least <= counted[name] <= most:
                self.problems.append(
                    f"{name}: the server counts {counted[name]} answers, the clients {least} to {most}"
                )

    def _print(self, use: Use) -> None:
        book = self.soak.book
        print(
            f"{use.seconds:6.0f} s  {sum(book.answered.values()):8d} answers  {use.resident_mb:7.1f} MB  "
            f"{use.files:4d} files  {use.threads:3d} threads  {use.children} children  {book.problem_count} problems",
            flush=True,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control-mode", choices=MODES, help="only this one")
    given = parser.parse_args()
    modes = (given.control_mode,) if given.control_mode else MODES
    found = 0
    for mode in modes:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(given.minutes * 60 / len(modes), given.seed, Path(folder), mode)
            run.run(report=True)
        for (who, what), count in sorted(run.soak.book.counts.items()):
            print(f"{who:16s} {what:32s} {count:9d}")
        print("\n".join(run.figures))
        for problem in run.problems:
            print(f"PROBLEM {problem}")
        print(f"{mode}: {'good' if not run.problems else f'{len(run.problems)} problems'}")
        found += len(run.problems)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
