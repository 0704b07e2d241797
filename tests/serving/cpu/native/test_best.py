"""The best few of a row against torch's stable sort, and log-sum-exp against float64.

Numbers are random from SEED. Alone: pytest tests/serving/cpu/native/test_best.py
"""

import pytest
import torch

SEED = 20250918
NAN, INF = torch.nan, torch.inf


def scores(rows: int, width: int, *, ties: bool) -> torch.Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(SEED))
    return made.round() if ties else made


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("width", [8, 33, 1000])
def test_the_best_come_first_and_of_equals_the_first(engines, width, k, ties):
    given = scores(13, width, ties=ties)
    expected = given.sort(dim=1, descending=True, stable=True)
    for engine in engines:
        values, places, log_sum = engine.best(given, k, True)
        assert torch.equal(values, expected.values[:, :k])
        assert torch.equal(places, expected.indices[:, :k])
        torch.testing.assert_close(
            log_sum.double(), given.double().logsumexp(1), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    ("row", "values", "places"),
    [
        ([NAN, 1.0, NAN, 2.0, NAN], [2.0, 1.0, -INF], [3, 1, 0]),
        ([-INF, -INF, 5.0, -INF, NAN], [5.0, -INF, -INF], [2, 0, 1]),
        ([NAN] * 5, [-INF] * 3, [0, 0, 0]),
        ([1.0, INF, 0.0, -INF, INF], [INF, INF, 1.0], [1, 4, 0]),
        ([-0.0, 0.0, -1.0, NAN, -2.0], [0.0, 0.0, -1.0], [0, 1, 2]),
        ([300.0, 300.0, 0.0, 0.0, 0.0], [300.0, 300.0, 0.0], [0, 1, 2]),
    ],
    ids=["NaN", "minus infinity", "all NaN", "infinity", "zeros", "no overflow"],
)
def test_odd_scores(engine, row, values, places):
    given = torch.tensor([row])
    got = engine.best(given, 3, True)
    assert got[0].tolist() == [values]
    assert got[1].tolist() == [places]
    log_sum = given.double().nan_to_num(nan=-INF, posinf=INF, neginf=-INF).logsumexp(1)
    assert got[2].item() == pytest.approx(log_sum.item())


def test_fewer_scores_than_are_asked_for(engine):
    values, places, log_sum = engine.best(torch.tensor([[1.0, 2.0]]), 4, False)
    assert (values.tolist(), places.tolist()) == ([[2.0, 1.0, -INF, -INF]], [[1, 0, 0, 0]])
    assert len(log_sum) == 0
