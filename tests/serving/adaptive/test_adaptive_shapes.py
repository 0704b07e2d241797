"""The choice of a shape against a simulated machine, whose best one is known.

Alone: pytest tests/serving/adaptive/test_adaptive_shapes.py
"""

import bisect
import itertools
import random

import pytest

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
from fastmtp_sglang.serving.adaptive.acceptance import Seen
from fastmtp_sglang.serving.adaptive.adaptive_shapes import AdaptiveShapes
from fastmtp_sglang.serving.adaptive.candidate_steps import CandidateSteps
from fastmtp_sglang.serving.adaptive.shapes import candidate_shapes

pytestmark = pytest.mark.heavy

TREE = TreeShape.parse("3x8x16")


class Machine:
    """Runs steps of known duration and acceptance through the policy; time is simulated.

    `seconds(shape, batch)` is a step's time. `accept[i]` are the probabilities that the draft of
    depth i + 1 that is right is the likeliest of its siblings, the next one, ... (a number: the
    likeliest or none); what a tree verifies of them is `ranks`. With `blind` the first drafts after
    plain decoding are wrong, as they are where the requests are the same. Results arrive after the
    next launch, as with overlap scheduling, or at once.
    """

    def __init__(
        self,
        largest,
        seconds,
        accept,
        *,
        overlap=False,
        noise=0.0,
        seed=0,
        spells=(),
        blind=False,
        steps=None,
    ):
        self.now = 0.0
        self.policy = AdaptiveShapes(candidate_shapes(largest), lambda: self.now, steps)
        self.seconds, self.accept, self.overlap, self.noise = seconds, accept, overlap, noise
        self.random = random.Random(seed)
        # The steps at which the machine becomes twice as slow, or as fast as before.
        self.spells = spells
        self.blind = blind
        self.pending = None
        self.tokens = 0
        self.used = []

    def run(self, steps, batch):
        for _ in range(steps):
            shape = self.policy.shape_for_batch(batch)
            drafted = [self._right_ranks() for _ in range(batch)]
            if self.blind and self.used_last() == PLAIN:
                drafted = [[]] * batch
            if shape.top_k > 1:
                self.policy.drafted(Drafted(shape, drafted))
            if self.overlap:
                self._deliver()
            self.pending = shape, drafted
            if not self.overlap:
                self._deliver()
        return self

    def used_last(self):
        """The shape of the step that was launched last."""
        return self.pending[0] if self.pending else self.used[-1] if self.used else None

    def _deliver(self):
        if self.pending is None:
            return
        shape, drafted = self.pending
        self.pending = None
        slow = 1 + bisect.bisect(self.spells, len(self.used)) % 2
        seconds = self.seconds(shape, len(drafted)) * slow
        self.now += seconds * (1 + self.noise * self.random.random())
        correct = [accepted(shape, ranks) for ranks in drafted]
        self.tokens += len(drafted) + sum(correct)
        self.used.append(shape)
        self.policy.learn([(str(i), count) for i, count in enumerate(correct)])

    def _right_ranks(self):
        """The rank of the right draft at each depth, up to one where no draft is right."""
        found = []
        for shares in self.accept:
            shares = (shares,) if isinstance(shares, float) else shares
            coin = self.random.random()
            rank = bisect.bisect(list(itertools.accumulate(shares)), coin)
            if rank == len(shares):
                break
            found.append(rank)
        return found

    def share(self, shapes, last):
        """How many of the last steps used one of these shapes."""
        return sum(shape in shapes for shape in self.used[-last:]) / last

    def speed(self, steps, batch):
        """Tokens per request and second of the next steps."""
        tokens, now = self.tokens, self.now
        self.run(steps, batch)
        return (self.tokens - tokens) / batch / (self.now - now)


class Drafted:
    """What the policy is given of a tree that was verified: ranks of the right drafts."""

    def __init__(self, shape, drafted):
        self.shape, self.drafted = shape, drafted

    def seen(self, emitted, shapes):
        seen = {}
        for shape in shapes:
            assert shape.num_steps <= self.shape.num_steps
            pairs = [
                # A shape is followed as far as the text is known: one token more than accepted.
                (accepted(shape, ranks), accepted(self.shape, ranks) + 1)
                for ranks in self.drafted
            ]
            seen[shape] = Seen(
                [min(pair) for pair in pairs],
                [
                    shape.num_steps if count < end else min(shape.num_steps, end)
                    for count, end in pairs
                ],
            )
        return seen


def ranks(shape):
    """How many siblings are verified at each depth: half of the rows that are left."""
    rows, found = shape.num_rows - 1, []
    for depth in range(shape.num_steps):
        kept = 1 if shape.top_k == 1 else max(1, rows // 2)
        if depth == shape.num_steps - 1:
            kept = max(kept, rows) if shape.top_k > 1 else 1
        found.append(min(kept, shape.top_k))
        rows -= kept
    return found


def accepted(shape, right):
    """Drafts that a shape has accepted if these ranks are right."""
    count = 0
    for rank, kept in zip(right, ranks(shape), strict=False):
        if rank >= kept:
            break
        count += 1
    return count


def expected_tokens(accept, shape):
    """Tokens of a step, from the definition."""
    expected = path = 1.0
    for shares, kept in zip(accept, ranks(shape), strict=False):
        path *= shares if isinstance(shares, float) else sum(shares[:kept])
        expected += path
    return expected


def chain(num_steps):
    return TreeShape.of(num_steps) if num_steps else PLAIN


def linear(per_token):
    """A plain step takes 1 s at any batch, each row more `per_token` times the batch."""
    return lambda shape, batch: 1 + per_token * (shape.num_rows - 1) * batch


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("per_token", "accept", "best"),
    [
        (0.02, (0.9, 0.9, 0.9), 3),
        (0.30, (0.6, 0.1, 0.1), 1),
        (0.60, (0.3, 0.1, 0.1), 0),
        (0.25, (0.8, 0.7, 0.05), 2),
    ],
)
def test_the_k_of_most_tokens_per_second_is_found(per_token, accept, best, overlap):
    machine = Machine(chain(3), linear(per_token), accept, overlap=overlap, noise=0.02)
    machine.run(500, batch=1)
    speed = machine.speed(1000, batch=1)
    assert machine.share({chain(best)}, last=1000) > 0.85
    # Looks at other Ks cost 2 %, the noise 1 %; the rest is the chance of the drafts.
    assert speed > 0.94 * expected_tokens(accept, chain(best)) / linear(per_token)(chain(best), 1)


def test_each_size_of_batch_has_its_own_k():
    machine = Machine(chain(3), linear(0.04), (0.7, 0.6, 0.5), noise=0.02)
    machine.run(600, batch=1).run(600, batch=64)
    assert machine.share({chain(0)}, last=400) > 0.95
    machine.run(100, batch=1)
    assert machine.share({chain(3)}, last=100) > 0.9


def test_each_size_of_batch_drafts_what_it_may():
    """By --speculative-adaptive-config: the best of these steps, and never another number."""
    steps = CandidateSteps({1: frozenset((1, 2)), 64: frozenset((0, 3))})
    machine = Machine(chain(3), linear(0.001), (0.9, 0.9, 0.9), noise=0.02, steps=steps)
    machine.run(400, batch=1)
    assert set(machine.used) == {chain(1), chain(2)}
    assert machine.share({chain(2)}, last=200) > 0.9
    machine.run(400, batch=48)
    assert set(machine.used[400:]) == {PLAIN, chain(3)}
    # 32 is one of 64's too, and 31 one of 1's.
    machine.run(50, batch=31)
    assert set(machine.used[800:]) <= {chain(1), chain(2)}


@pytest.mark.parametrize("steps", [(0, 2), (3,)])
def test_trees_too_draft_as_many_steps_as_they_may(steps):
    allowed = CandidateSteps({1: frozenset(steps)})
    machine = Machine(TREE, linear(0.005), ((0.5, 0.2), (0.5, 0.2), (0.5, 0.2)), steps=allowed)
    machine.run(400, batch=2)
    assert {shape.num_steps for shape in machine.used} <= set(steps)
    assert machine.used[-1].top_k == 8


def test_drafting_that_never_pays_costs_little():
    """A batch of 32 with a poor head: within 3 % of plain decoding, start included."""
    machine = Machine(chain(3), linear(0.03), (0.2, 0.1, 0.1), noise=0.02)
    machine.run(3000, batch=32)
    plain = 32 * 3000 / (3000 * 1.01)  # the noise takes 1 % on average
    assert machine.tokens / machine.now > 0.97 * plain


def test_acceptance_that_rises_is_noticed_at_k_0():
    machine = Machine(chain(2), linear(0.3), (0.1, 0.1))
    machine.run(1500, batch=1)
    assert machine.share({chain(0)}, last=500) > 0.9
    machine.accept = (0.95, 0.95)
    machine.run(1000, batch=1)
    assert machine.share({chain(2)}, last=500) > 0.9


@pytest.mark.parametrize("batch", [1, 8])
def test_a_mixture_of_answers_is_never_slower_than_plain_decoding(batch):
    """Tasks of 400 steps, by turns: drafts that never fit (an unknown language) and good ones."""
    machine = Machine(chain(1), lambda shape, batch: 1 + 0.3 * shape.num_steps, (0.0,), noise=0.02)
    machine.run(400, batch)
    tokens, now = machine.tokens, machine.now
    for accept in (0.7, 0.03) * 6:
        machine.accept = (accept,)
        machine.run(400, batch)
    speed = (machine.tokens - tokens) / (machine.now - now)
    # The better K of each half would give (400 x 1.7 + 400) / (400 x 1.3 + 400) = 1.17.
    assert speed > (1.03 if batch == 1 else 1.13) * batch / 1.01


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("accept", "best"), [(0.0, 0), (0.15, 0), (0.7, 1)])
def test_a_machine_whose_speed_wanders(accept, best, seed):
    """Spells of 5 to 100 steps, every other one at half the speed, cannot hide the better K."""
    lengths = random.Random(seed).choices(range(5, 100), k=400)
    spells = tuple(itertools.accumulate(lengths))
    machine = Machine(
        chain(1),
        lambda shape, batch: 1 + 0.3 * shape.num_steps,
        (accept,),
        noise=0.1,
        seed=seed,
        spells=spells,
    )
    machine.run(6000, batch=8)
    assert machine.share({chain(best)}, last=6000) > 0.93


def test_acceptance_that_falls_is_noticed():
    machine = Machine(chain(3), linear(0.1), (0.95, 0.95, 0.95))
    machine.run(500, batch=1)
    assert machine.share({chain(3)}, last=300) > 0.95
    machine.accept = (0.02, 0.0, 0.0)
    machine.run(600, batch=1)
    assert machine.share({chain(0)}, last=100) > 0.8


def test_steps_beside_a_prefill_are_not_timed():
    machine = Machine(chain(1), linear(0.1), (0.0,))
    machine.run(100, batch=1)
    (load,) = machine.policy._loads.values()
    before = load.best, load.seconds(), load.ratios.copy()
    for _ in range(50):
        machine.policy.disturb()
        machine.now += 100.0
        machine.run(1, batch=1)
    assert (load.best, load.seconds(), load.ratios) == before


def test_a_lost_result_does_not_shift_the_others():
    """Were K=0 taken for K=1 from then on, its time and acceptance would be mistaken."""
    machine = Machine(chain(1), linear(5.0), (0.9,))
    machine.run(100, batch=1)
    machine.policy.shape_for_batch(1)  # no result
    machine.policy.shape_for_batch(1)  # nor here
    machine.run(300, batch=1)
    assert machine.share({chain(0)}, last=200) > 0.9


# --- trees ---

# A poor head, whose second and third choices are often right, and one that is right most times.
OFTEN_NEAR = ((0.34, 0.12, 0.08, 0.05, 0.04, 0.03, 0.02, 0.01),) * 3
MOSTLY_RIGHT = ((0.85, 0.05, 0.02),) * 3


def costs(row, draft):
    """A plain step takes 1 s, each row more `row` times the batch, each draft step `draft`."""
    return lambda shape, batch: 1 + row * (shape.num_rows - 1) * batch + draft * shape.num_steps


def fastest(seconds, accept, batch):
    """The most expected tokens per request and second that a shape gives."""
    return max(
        expected_tokens(accept, shape) / seconds(shape, batch) for shape in candidate_shapes(TREE)
    )


def share_of_fastest(machine, steps, batch):
    """Expected tokens per second of what the next steps use, by those of the best shape.

    Expected ones: what chance gives a few hundred steps differs by more than looks cost.
    """
    begin = len(machine.used)
    machine.run(steps, batch)
    tokens = seconds = 0.0
    for before, shape in itertools.pairwise(machine.used[max(begin - 1, 0) :]):
        is_blind = machine.blind and before == PLAIN
        tokens += 1 if is_blind else expected_tokens(machine.accept, shape)
        seconds += machine.seconds(shape, batch)
    return tokens / seconds / fastest(machine.seconds, machine.accept, batch)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("row", "draft", "batch", "accept", "best"),
    [
        (0.002, 0.01, 1, OFTEN_NEAR, "3x8x16"),
        (0.018, 0.12, 1, OFTEN_NEAR, "2x8x16"),
        (0.05, 0.05, 1, OFTEN_NEAR, "2x8x8"),
        (0.02, 0.01, 8, OFTEN_NEAR, "1x1x2"),
        (0.02, 0.01, 32, OFTEN_NEAR, "0x1x1"),
        (0.03, 0.05, 2, MOSTLY_RIGHT, "3x1x4"),
    ],
)
def test_the_shape_of_most_tokens_per_second_is_found(row, draft, batch, accept, best, seed):
    machine = Machine(TREE, costs(row, draft), accept, noise=0.02, seed=seed, overlap=True)
    shapes = {str(shape): shape for shape in machine.policy.shapes}
    speed = expected_tokens(accept, shapes[best]) / machine.seconds(shapes[best], batch)
    assert speed > 0.99 * fastest(machine.seconds, accept, batch)
    assert share_of_fastest(machine, 600, batch) > 0.9
    # Looks cost 1 %.
    assert share_of_fastest(machine, 1500, batch) > 0.97


def test_each_size_of_batch_has_its_own_shape_of_tree():
    machine = Machine(TREE, costs(0.02, 0.02), OFTEN_NEAR, noise=0.02, blind=True)
    for batch in (1, 6, 40):
        machine.run(600, batch)
    for batch in (1, 6, 40):
        assert share_of_fastest(machine, 400, batch) > 0.97, batch


def test_trees_that_never_pay_cost_little():
    """A batch of 32 with a poor head: within 3 % of plain decoding, start included."""
    machine = Machine(TREE, costs(0.03, 0.02), OFTEN_NEAR, noise=0.02, blind=True)
    machine.run(3000, batch=32)
    plain = 32 / 1.01  # the noise takes 1 % on average
    assert machine.tokens / machine.now > 0.97 * plain


@pytest.mark.parametrize("batch", [1, 8])
def test_a_mixture_of_answers_to_trees_is_never_slower_than_plain_decoding(batch):
    """Tasks of 400 steps, by turns: drafts that never fit and good ones."""
    machine = Machine(TREE, costs(0.02 / batch, 0.05), ((0.0,),), noise=0.02, blind=True)
    machine.run(400, batch)
    tokens, now = machine.tokens, machine.now
    for accept in (MOSTLY_RIGHT, ((0.03,),) * 3) * 6:
        machine.accept = accept
        machine.run(400, batch)
    speed = (machine.tokens - tokens) / batch / (machine.now - now)
    assert speed > 1.2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("row", "draft", "batch"), [(0.01, 0.05, 8), (0.018, 0.12, 1)])
def test_trees_on_a_machine_whose_speed_wanders(row, draft, batch, seed):
    """Spells of 5 to 100 steps, every other one at half the speed, cannot hide the better one."""
    lengths = random.Random(seed).choices(range(5, 100), k=400)
    spells = tuple(itertools.accumulate(lengths))
    machine = Machine(
        *(TREE, costs(row, draft), OFTEN_NEAR),
        noise=0.1,
        seed=seed,
        spells=spells,
        blind=True,
    )
    machine.run(600, batch)
    assert share_of_fastest(machine, 3000, batch) > 0.95


def test_steps_of_a_tree_tell_of_smaller_shapes():
    """Acceptance changes, and a few steps that time the right shape are enough."""
    machine = Machine(TREE, costs(0.02, 0.05), OFTEN_NEAR, noise=0.02)
    machine.run(600, batch=1)
    assert all(shape.top_k > 1 for shape in machine.used[-20:])
    machine.accept = MOSTLY_RIGHT
    machine.run(200, batch=1)
    assert share_of_fastest(machine, 400, batch=1) > 0.97
    assert machine.share({chain(3)}, last=100) > 0.9


# --- steps that cannot be timed ---


def alternating(machine, steps):
    """Two sizes of batch by turns, so that no step follows one of its kind."""
    for batch in itertools.islice(itertools.cycle((7, 9)), steps):
        machine.run(1, batch)


def beside_prefills(machine, steps):
    for _ in range(steps):
        machine.policy.disturb()
        machine.now += 5.0
        machine.run(1, batch=8)


def beside_prefills_after_a_start(machine, steps):
    """Times are known from a few steps alone, and never come again."""
    machine.run(4, batch=8)
    beside_prefills(machine, steps - 4)


def two_sizes_and_a_few_alike(machine, steps):
    """Now and then two steps are alike: too rarely to time a look."""
    for index in range(steps):
        machine.run(1, batch=8 if index % 29 in (0, 1) else (7, 9)[index % 2])


def test_a_tree_is_left_without_times():
    machine = Machine(TREE, costs(0.02, 0.02), ((0.0,),) * 3)
    beside_prefills(machine, 1000)
    assert machine.share({PLAIN}, last=900) > 0.95


UNTIMED = [alternating, beside_prefills, beside_prefills_after_a_start, two_sizes_and_a_few_alike]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("max_steps", [1, 3, 7])
@pytest.mark.parametrize("workload", UNTIMED)
def test_a_head_that_is_never_right_is_left_within_dozens_of_steps(workload, max_steps, overlap):
    """vllm#49548: acceptance is known although hardly a step was ever timed."""
    machine = Machine(chain(max_steps), linear(0.1), (0.0,) * max_steps, overlap=overlap)
    workload(machine, 100)
    assert machine.share({chain(0)}, last=40) >= 0.9
    workload(machine, 3900)
    # Looks cost a hundredth of the tokens, and the first ones have not been paid off yet.
    plain = sum(8 for _ in machine.used[100:])
    drafted = sum(8 * linear(0.1)(shape, 8) for shape in machine.used[100:])
    assert drafted / plain < 1.015


@pytest.mark.parametrize("workload", UNTIMED)
def test_a_good_head_is_kept_without_times(workload):
    machine = Machine(chain(3), linear(0.01), (0.9, 0.8, 0.8))
    workload(machine, 1000)
    assert machine.share({chain(3)}, last=900) > 0.9


@pytest.mark.parametrize("workload", UNTIMED)
def test_acceptance_that_rises_is_noticed_without_times(workload):
    machine = Machine(chain(2), linear(0.02), (0.0, 0.0))
    workload(machine, 400)
    assert machine.share({chain(0)}, last=200) > 0.95
    machine.accept = (0.9, 0.9)
    workload(machine, 1600)
    assert machine.share({chain(2)}, last=200) > 0.9


def test_times_decide_once_there_are_any():
    """Acceptance alone keeps a head that the times of this machine do not pay."""
    machine = Machine(chain(1), linear(0.1), (0.3,))
    alternating(machine, 200)
    assert machine.share({chain(1)}, last=100) > 0.8
    machine.run(400, batch=8)
    assert machine.share({chain(0)}, last=300) > 0.95
