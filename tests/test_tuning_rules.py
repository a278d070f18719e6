"""Decision rules and the tuner's order of work, on a fake machine whose times are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from whet.codegen.target import PRESETS, host_target
from whet.compiler.tactics.question import Question
from whet.compiler.tactics.rates import rates
from whet.tuning.settings import EFFORTS, Progress, Tuning
from whet.tuning.timing import Measured, Timing, decide, extents_in
from whet.tuning.tuner import MOST_VARIANTS, tune

FULL = Tuning("full", folder=None)


def question(work: str, costs: Mapping[str, float], nodes: Sequence[str] = ("n",), family: str = "conv") -> Question:
    return Question(family, work, tuple(sorted(costs.items(), key=lambda c: c[1])), tuple(nodes))


def timing(**samples: Sequence[int]) -> Timing:
    return Timing("conv", "w", 2, samples={name: tuple(sorted(times)) for name, times in samples.items()})


ASK = question("w", {"a": 1.0, "b": 1.1, "c": 1.2})


@pytest.mark.parametrize(
    ("samples", "chosen"),
    [
        ({"a": [100_000] * 5, "b": [98_000] * 5}, "a"),  # 2% is not enough
        ({"a": [100_000] * 5, "b": [96_000] * 5}, "b"),
        ({"a": [100_000] * 5, "b": [96_000, 101_000, 101_000, 101_000, 101_000]}, "a"),  # faster once, not usually
        ({"a": [99_000, 120_000, 120_000, 120_000, 120_000], "b": [98_500] * 5}, "a"),  # only the others' noise
        (
            {"a": [81_900, 159_700, 161_000, 170_100, 174_000], "b": [74_600, 88_700, 90_000, 162_100, 171_100]},
            "a",
        ),  # a neighbour took a core
        ({"a": [100_000] * 5, "b": [96_000] * 4}, "a"),  # too few
        ({"a": [100_000] * 2, "b": [50_000] * 9}, "a"),  # nothing to compare with
        ({"b": [50_000] * 9}, "a"),
        ({"a": [100_000] * 5, "b": [90_000] * 5, "c": [80_000] * 5}, "c"),
        ({"a": [100_000] * 5, "gone": [10_000] * 5}, "a"),  # no tactic of this version
        ({"a": [400] * 5, "b": [200] * 5}, "a"),  # less than a clock tells
        ({}, "a"),
    ],
)
def test_a_switch_takes_more_than_three_percent_at_both_measures(
    samples: dict[str, list[int]], chosen: str
) -> None:  # fmt: skip
    assert decide(ASK, timing(**samples)) == chosen


def test_choices_are_those_of_the_same_extents_else_of_any() -> None:
    ask = question("Expr(batch) x 3", {"a": 1.0, "b": 1.1})
    slow, fast = {"a": (100_000,) * 5, "b": (50_000,) * 5}, {"a": (50_000,) * 5, "b": (100_000,) * 5}
    small = Timing("conv", ask.work, 2, "batch=1", slow)
    large = Timing("conv", ask.work, 2, "batch=8", fast)
    known = {(t.question, t.extents): t for t in (large, small)}
    assert Measured(known, {"batch": 1}).pick(ask) == "b"
    assert Measured(known, {"batch": 8}).pick(ask) == "a"
    assert Measured(known, {"batch": 4}).pick(ask) == "b"  # the last one
    assert Measured({}, {}).pick(ask) is None
    assert extents_in("Expr(batch) of batches", {"batch": 2, "bat": 3, "h": 4}) == "batch=2"


@dataclass
class FakeVariant:
    asked: Sequence[Question]
    machine: FakeMachine
    picked: Mapping[str, tuple[str, str]]
    """By node: (key, tactic)."""
    warms_up: bool = True

    def time(self, runs: int, watched: frozenset[str]) -> Sequence[Mapping[str, int]]:
        self.machine.log.append(self.picked)
        found = []
        for number in range(runs + 1):
            self.machine.clock_s += self.machine.run_s
            if self.machine.stop_after is not None and len(self.machine.log) > self.machine.stop_after:
                raise KeyboardInterrupt
            if number:
                found.append({n: self.machine.times[picked] for n, picked in self.picked.items() if n in watched})
        return found


@dataclass
class FakeMachine:
    """A program as (question, what it hides unless it is answered "apart") in order."""

    questions: Sequence[Question]
    times: dict[tuple[str, str], int]
    hides: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    run_s: float = 0.01
    stop_after: int | None = None
    clock_s: float = 0.0
    log: list[Mapping[str, tuple[str, str]]] = field(default_factory=list)
    built: int = 0

    def build(self, answers: Mapping[str, str]) -> FakeVariant:
        self.built += 1
        self.clock_s += 0.1
        asked: list[Question] = []
        picked: dict[str, tuple[str, str]] = {}
        for ask in self.questions:
            asked.append(ask)
            tactic = answers.get(ask.key, ask.predicted)
            for label in ask.nodes:
                picked[label] = ask.work, tactic
            for inner in self.hides.get(ask.work, ()) if tactic == "apart" else ():
                asked.append(inner)
                for label in inner.nodes:
                    picked[label] = inner.work, answers.get(inner.key, inner.predicted)
        return FakeVariant(asked, self, picked)

    def tune(
        self, settings: Tuning = FULL, known: Sequence[Timing] = ()
    ) -> tuple[dict[str, Timing], object, list[Timing]]:
        """({work: what is known}, outcome, everything that was published in order)."""
        published: list[Timing] = []
        found = {(t.question, t.extents): t for t in known}
        outcome = tune(self, found, 2, {}, settings, published.extend, lambda: self.clock_s)
        return {t.work: t for t in published}, outcome, published


def test_everything_near_is_timed_and_the_rest_is_not() -> None:
    one = question("one", {"a": 100, "b": 140, "c": 160}, ["n1"])
    two = question("two", {"a": 100, "b": 120}, ["n2"])
    only = question("only", {"a": 100}, ["n3"])
    times = {("one", "a"): 200_000, ("one", "b"): 150_000, ("two", "a"): 90_000, ("two", "b"): 95_000}
    machine = FakeMachine([one, two, only], {**times, ("only", "a"): 1_000})
    known, outcome, _ = machine.tune()
    assert set(known) == {"one", "two"}
    assert set(known["one"].samples) == {"a", "b"}  # c is predicted at 1.6 times the best
    assert machine.built == 2  # both alternatives in one variant
    effort = EFFORTS["full"]
    assert known["one"].count("b") >= effort.runs(150_000) == effort.most_runs
    assert decide(one, known["one"]) == "b"
    assert decide(two, known["two"]) == "a"
    assert outcome.complete  # type: ignore[attr-defined]
    (switch,) = outcome.switches  # type: ignore[attr-defined]
    assert (switch.predicted, switch.chosen, switch.saved_ns) == ("a", "b", 50_000)


def test_variants_take_turns() -> None:
    one = question("one", {"a": 100, "b": 110, "c": 120}, ["n1"])
    machine = FakeMachine([one], {("one", n): 5_000_000 for n in "abc"})
    machine.tune()
    turns = [run["n1"][1] for run in machine.log]
    assert turns[:6] == ["a", "b", "c"] * 2
    assert len(turns) == 3 * 4  # ten runs at least, three a turn


def test_the_same_work_at_several_places_is_one_question_and_counts_its_mean() -> None:
    costs = {"a": 100, "b": 110}
    machine = FakeMachine(
        [question("one", costs, [f"n{i}"]) for i in range(4)], {("one", "a"): 300_000, ("one", "b"): 100_000}
    )
    known, outcome, _ = machine.tune()
    assert machine.built == 2
    assert set(known["one"].samples["a"]) == {300_000}
    assert outcome.switches[0].saved_ns == 800_000  # type: ignore[attr-defined]


def test_a_slow_candidate_is_given_up_soon() -> None:
    one = question("one", {"a": 100, "b": 110, "c": 110}, ["n1"])
    machine = FakeMachine([one], {("one", "a"): 100_000, ("one", "b"): 90_000, ("one", "c"): 900_000})
    known, outcome, _ = machine.tune()
    assert known["one"].given_up == ("c",)
    assert known["one"].count("c") < known["one"].count("b")
    assert outcome.complete  # type: ignore[attr-defined]
    # And not timed again.
    again = FakeMachine([one], machine.times)
    assert again.tune(known=list(known.values()))[0] == {}
    assert again.log == []


def test_what_is_known_is_not_asked_again() -> None:
    one = question("one", {"a": 100, "b": 110}, ["n1"])
    two = question("two", {"a": 100, "b": 110}, ["n2"])
    times = {(w, t): 100_000 for w in ("one", "two") for t in "ab"}
    known, _, _ = FakeMachine([one], times).tune()
    both = FakeMachine([one, two], times)
    new, outcome, _ = both.tune(known=list(known.values()))
    assert set(new) == {"two"}
    assert (outcome.questions, outcome.timed) == (2, 1)  # type: ignore[attr-defined]


def test_an_interrupt_keeps_what_has_been_timed_and_the_next_time_goes_on() -> None:
    one = question("one", {"a": 100, "b": 110}, ["n1"])
    times = {("one", "a"): 2_000_000, ("one", "b"): 1_500_000}
    machine = FakeMachine([one], times, stop_after=5)
    published: list[Timing] = []
    with pytest.raises(KeyboardInterrupt):
        tune(machine, {}, 2, {}, FULL, published.extend, lambda: machine.clock_s)
    last = published[-1]
    assert last.count("a") >= 6
    assert last.count("b") >= 6
    rest = FakeMachine([one], times)
    known, outcome, _ = rest.tune(known=[last])
    assert outcome.complete  # type: ignore[attr-defined]
    assert known["one"].count("b") >= EFFORTS["full"].least_runs
    whole = FakeMachine([one], times)
    whole.tune()
    assert len(rest.log) < len(whole.log)


def test_the_budget_holds() -> None:
    asks = [question(f"w{i}", {"a": 100, "b": 110}, [f"n{i}"]) for i in range(3)]
    times = {(f"w{i}", t): 1_000_000 for i in range(3) for t in "ab"}
    machine = FakeMachine(asks, times, run_s=1.0)
    known, outcome, _ = machine.tune(Tuning("full", budget_s=20.0, folder=None))
    assert machine.clock_s <= 20.0 + 4.0
    assert not outcome.complete  # type: ignore[attr-defined]
    assert known["w0"].count("b") >= 3  # what there was time for counts
    nothing = FakeMachine(asks, times)
    found, outcome, _ = nothing.tune(Tuning("full", budget_s=0.0, folder=None))
    assert found == {}
    assert not outcome.complete  # type: ignore[attr-defined]
    assert nothing.log == []


def test_progress_tells_how_long_it_takes() -> None:
    seen: list[Progress] = []
    one = question("one", {"a": 100, "b": 110}, ["n1"])
    machine = FakeMachine([one], {("one", "a"): 2_000_000, ("one", "b"): 2_000_000}, run_s=1.0)
    machine.tune(Tuning("full", folder=None, report=seen.append))
    timed = [p for p in seen if p.eta_s is not None]
    assert timed[0].eta_s == pytest.approx(machine.clock_s - timed[0].elapsed_s, rel=0.3)
    assert [p.eta_s for p in timed] == sorted((p.eta_s for p in timed), reverse=True)
    assert (seen[-1].done, seen[-1].total) == (2, 2)


def test_a_choice_over_several_nodes_is_timed_beside_what_it_hides() -> None:
    inner = question("inner", {"x": 100, "y": 110}, ["n2"])
    outer = question("outer", {"apart": 100, "joined": 110}, ["n1", "n2", "n3"], "chain")
    times = {
        ("outer", "apart"): 100_000, ("outer", "joined"): 70_000, ("inner", "x"): 80_000, ("inner", "y"): 60_000,
    }  # fmt: skip
    known, outcome, _ = FakeMachine([outer], times, {"outer": [inner]}).tune()
    assert set(known["outer"].samples["joined"]) == {3 * 70_000}
    assert set(known["outer"].samples["apart"]) == {2 * 100_000 + 80_000}
    assert decide(inner, known["inner"]) == "y"
    assert outcome.complete  # type: ignore[attr-defined]


def test_questions_that_only_another_answer_brings_up_are_timed_too() -> None:
    inner = question("inner", {"x": 100, "y": 110}, ["n2"])
    outer = question("outer", {"joined": 100, "apart": 110}, ["n1", "n2"], "chain")
    times = {("outer", "apart"): 50_000, ("outer", "joined"): 70_000, ("inner", "x"): 80_000, ("inner", "y"): 60_000}
    known, _, _ = FakeMachine([outer], times, {"outer": [inner]}).tune()
    assert set(known["inner"].samples) == {"x", "y"}
    assert decide(inner, known["inner"]) == "y"


def test_a_list_of_any_length_ends() -> None:
    many = question("one", {f"t{i:03}": 100.0 for i in range(200)}, ["n1"])
    machine = FakeMachine([many], {("one", name): 5_000_000 for name, _ in many.candidates})
    _, outcome, _ = machine.tune()
    assert machine.built == MOST_VARIANTS
    assert not outcome.complete  # type: ignore[attr-defined]


def test_every_target_has_rates() -> None:
    for target in (*PRESETS.values(), host_target()):
        assert rates(target).cycles_per_ns > 0
        assert rates(target).memory_bytes_per_ns > 0
    assert rates(replace(PRESETS["avx512"], cpu="znver4")) != rates(replace(PRESETS["avx512"], cpu="znver5"))
