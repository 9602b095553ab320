"""Nested build phases become one share of what is done, which never goes back."""

from funnel_export.targets.tensorrt.progress import Phases


def test_an_inner_phase_is_a_part_of_one_step_of_its_outer_one() -> None:
    shown: list[tuple[str, float | None]] = []
    phases = Phases(lambda step, done: shown.append((step, done)))
    phases.start("Build", None, 2)
    phases.start("Tune", "Build", 4)
    phases.step("Tune", 0)
    phases.step("Tune", 1)
    phases.finish("Tune")
    phases.step("Build", 1)
    phases.finish("Build")
    assert shown == [
        ("building: build", 0.0),
        ("building: tune", 0.0),
        ("building: tune", 0.125),
        ("building: tune", 0.25),
        ("building: build", 1.0),
    ]


def test_the_share_never_goes_back_nor_beyond_one() -> None:
    shares: list[float] = []
    phases = Phases(lambda _, done: shares.append(done or 0.0))
    phases.start("Build", None, 1)
    for _ in range(3):  # more phases than steps were announced
        phases.start("Tune", "Build", 2)
        phases.step("Tune", 0)
        phases.step("Tune", 5)
        phases.finish("Tune")
    phases.start("Nothing", "Build", 0)
    phases.finish("Nothing")
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_small_steps_are_not_reported_one_by_one() -> None:
    shown: list[str] = []
    phases = Phases(lambda step, _: shown.append(step))
    phases.start("Build", None, 10_000)
    for step in range(10_000):
        phases.step("Build", step)
    assert len(shown) <= 101
