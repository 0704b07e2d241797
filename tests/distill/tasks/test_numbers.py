"""Problems with numbers: whole sentences, many of them different."""

from random import Random

from fastmtp_sglang.distill.tasks.numbers import number_task


def test_problems_are_varied_and_well_formed():
    random = Random(0)
    problems = [number_task(random) for _ in range(2000)]
    assert len(set(problems)) > 1500
    for problem in problems:
        assert any(character.isdigit() for character in problem)
        assert problem.count("$") % 2 == 0 or "costs $" in problem or "from $" in problem, problem
        assert problem.count("{") == problem.count("}")
        assert "  " not in problem


def test_the_seed_decides():
    assert number_task(Random(7)) == number_task(Random(7))
