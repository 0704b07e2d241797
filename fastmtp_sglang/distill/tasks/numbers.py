"""Tasks with random numbers: arithmetic, word problems, school algebra, in words and in LaTeX."""

from collections.abc import Callable
from math import comb
from random import Random

_NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Elena",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kim",
    "Leila",
    "Marco",
    "Nadia",
    "Omar",
    "Priya",
    "Quinn",
    "Rosa",
    "Sam",
    "Tara",
    "Uma",
    "Victor",
    "Wei",
    "Yara",
    "Zoe",
]
_THINGS = [
    "apples",
    "books",
    "pencils",
    "stickers",
    "marbles",
    "tickets",
    "cookies",
    "stamps",
    "bottles",
    "chairs",
    "coins",
    "flowers",
    "boxes",
    "cards",
    "shells",
]
_PLACES = [
    "school",
    "market",
    "library",
    "farm",
    "office",
    "museum",
    "stadium",
    "bakery",
    "harbour",
    "station",
]
_STYLES = (
    "",
    "",
    " Explain each step.",
    " Show your work.",
    "\nThink step by step and finish with \\boxed{answer}.",
)


def number_task(random: Random) -> str:
    """Return one problem."""
    problem = random.choice(_PROBLEMS)(random)
    return problem + random.choice(_STYLES)


def _sum(random: Random) -> str:
    numbers = [random.randint(2, 10 ** random.randint(1, 4)) for _ in range(random.randint(2, 4))]
    text = str(numbers[0])
    for number in numbers[1:]:
        text += f" {random.choice('+-*')} {number}"
    return random.choice(("What is {}?", "Compute {}.", "Calculate {}", "{} = ?")).format(text)


def _fractions(random: Random) -> str:
    a, c = random.randint(1, 9), random.randint(1, 9)
    b, d = random.randint(2, 12), random.randint(2, 12)
    sign = random.choice(("+", "-", "\\cdot", "\\div"))
    left, right = f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{c}}}{{{d}}}"
    return f"Simplify $ {left} {sign} {right} $ and write it as a common fraction."


def _percent(random: Random) -> str:
    price, share = 5 * random.randint(4, 80), 5 * random.randint(1, 15)
    thing = random.choice(("jacket", "bicycle", "phone", "ticket", "lamp", "watch", "table"))
    return random.choice(
        (
            f"A {thing} costs ${price} and is sold at {share}% off. What does it cost now?",
            f"The price of a {thing} rises from ${price} by {share}%. Find the new price.",
            f"What is {share}% of {price}?",
        )
    )


def _shopping(random: Random) -> str:
    name, thing = random.choice(_NAMES), random.choice(_THINGS)
    count, price, money = random.randint(2, 12), random.randint(1, 9), 10 * random.randint(5, 20)
    return (
        f"{name} buys {count} {thing} at ${price} each and pays with ${money}. "
        f"How much change does {name} get back?"
    )


def _sharing(random: Random) -> str:
    one, other = random.sample(_NAMES, 2)
    thing, start = random.choice(_THINGS), random.randint(20, 90)
    given, bought = random.randint(3, 18), random.randint(5, 40)
    return (
        f"{one} has {start} {thing}. {one} gives {given} of them to {other} and then finds "
        f"{bought} more. How many {thing} does {one} have at the end?"
    )


def _speed(random: Random) -> str:
    name, speed, hours = random.choice(_NAMES), 5 * random.randint(2, 24), random.randint(2, 9)
    place = random.choice(_PLACES)
    return random.choice(
        (
            f"{name} drives to the {place} at {speed} miles per hour for {hours} hours. How far is "
            "it?",
            f"The {place} is {speed * hours} km away. {name} travels at {speed} km per hour. How "
            "long does the trip take?",
            f"{name} walks {speed * hours} meters to the {place} in {hours} minutes. What is the "
            "average speed in meters per second?",
        )
    )


def _linear(random: Random) -> str:
    a, b, x = random.randint(2, 12), random.randint(-20, 20), random.randint(-9, 12)
    return f"Solve for $x$: ${a}x {b:+d} = {a * x + b}$."


def _quadratic(random: Random) -> str:
    p, q = random.randint(-9, 9), random.randint(-9, 9)
    equation = f"x^2 {-(p + q):+d}x {p * q:+d}"
    return random.choice(
        (
            f"Find all real solutions of $ {equation} = 0 $.",
            f"Factor $ {equation} $.",
            f"What is the minimum value of $ {equation} $ over all real $x$?",
        )
    )


def _system(random: Random) -> str:
    x, y = random.randint(-6, 9), random.randint(-6, 9)
    a, b, c, d = (random.randint(1, 7) for _ in range(4))
    return f"If ${a}x + {b}y = {a * x + b * y}$ and ${c}x - {d}y = {c * x - d * y}$, find $x + y$."


def _geometry(random: Random) -> str:
    a, b, c = (random.randint(2, 20) for _ in range(3))
    return random.choice(
        (
            f"A rectangle has sides of {a} cm and {b} cm. Find its area and its perimeter.",
            f"A right triangle has legs of length ${a}$ and ${b}$. How long is the hypotenuse?",
            f"What is the area of a circle with radius ${a}$? Give it in terms of $\\pi$.",
            f"A box measures {a} by {b} by {c} inches. What is its volume in cubic inches?",
            f"Find the distance between the points $({a}, {b})$ and $({c}, {a})$.",
        )
    )


def _chance(random: Random) -> str:
    red, blue = random.randint(2, 9), random.randint(2, 9)
    count = random.randint(4, 9)
    return random.choice(
        (
            f"A bag holds {red} red and {blue} blue marbles. Two are drawn at random. What is the "
            "probability that both are red?",
            f"In how many ways can {min(3, count)} of {count + 2} people be chosen as a team?",
            f"A fair die is rolled {min(3, red)} times. What is the probability that a six never "
            "comes up?",
            f"How many subsets of a set with {count} elements have exactly 2 elements? Is it more "
            f"than {comb(count, 2) + random.choice((-2, 2))}?",
        )
    )


def _integers(random: Random) -> str:
    a, b, m = random.randint(12, 200), random.randint(12, 200), random.randint(3, 13)
    return random.choice(
        (
            f"What is the greatest common divisor of {a} and {b}?",
            f"Find the least common multiple of {a} and {b}.",
            f"What is the remainder when ${a}^{{{random.randint(2, 9)}}}$ is divided by ${m}$?",
            f"List all prime factors of {a * m}.",
            f"Convert the number {a} to base {random.randint(2, 9)}.",
        )
    )


def _functions(random: Random) -> str:
    a, b, c = (random.randint(1, 9) for _ in range(3))
    return random.choice(
        (
            f"Let $f(x) = {a}x^2 - {b}x + {c}$. What is $f({random.randint(-5, 6)})$?",
            f"Let $f(x) = {a}x + {b}$ and $g(x) = x^2 - {c}$. Find $f(g({random.randint(1, 5)}))$.",
            f"What is the derivative of $ {a}x^3 + {b}x^2 - {c}x $?",
            f"Find the sum of the first {a + 10} terms of the arithmetic sequence that begins with "
            f"{b} and has the common difference {c}.",
        )
    )


def _mean(random: Random) -> str:
    numbers = ", ".join(str(random.randint(1, 60)) for _ in range(random.randint(4, 7)))
    asked = random.choice(("mean", "median", "range", "mean and the median"))
    return f"Find the {asked} of these numbers: {numbers}."


_PROBLEMS: tuple[Callable[[Random], str], ...] = (
    _sum,
    _fractions,
    _percent,
    _shopping,
    _sharing,
    _speed,
    _linear,
    _quadratic,
    _system,
    _geometry,
    _chance,
    _integers,
    _functions,
    _mean,
)
