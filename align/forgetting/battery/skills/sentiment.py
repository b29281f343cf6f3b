"""Whether a short review is positive or negative. The answer is a sentence: a small model's single words lean to one
side, whatever the review says."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from align.forgetting.battery.skill import Item, Skill, user

PER_SUBJECT = 20  # draws for each subject, half of them positive
MIXED = 3  # in one of so many, a sentence of the other kind comes before the verdict


@dataclass(frozen=True)
class Subject:
    """What is reviewed: an opening without an opinion, and opinions on the same points of both kinds."""

    opening: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


SUBJECTS = (
    Subject(
        "We had dinner at this restaurant on Friday.",
        ("The food was delicious.", "Our waiter was friendly and quick.", "The soup was rich and full of flavor.",
         "Every dish arrived hot and fresh.", "The prices were fair for such good food."),
        ("The food was cold and tasteless.", "Our waiter was rude.", "The soup was watery and far too salty.",
         "We waited two hours for a burnt steak.", "The prices were outrageous for such bad food."),
    ),
    Subject(
        "I watched this movie with my sister.",
        ("The story was gripping from the start.", "The actors were brilliant.", "The ending was touching.",
         "The jokes made the whole audience laugh.", "The music was beautiful."),
        ("The story was boring and made no sense.", "The actors were terrible.", "The ending was a disappointment.",
         "The jokes were painful and nobody laughed.", "The music was annoying."),
    ),
    Subject(
        "I read this book on a long train ride.",
        ("I could not put it down.", "The characters felt real.", "The author is witty.",
         "Every chapter taught me something interesting.", "The plot was full of clever surprises."),
        ("I gave up halfway because it was dull.", "The characters were irritating.", "The author is clumsy.",
         "Every chapter repeated the same tired ideas.", "The plot was full of silly mistakes."),
    ),
    Subject(
        "I stayed at this hotel for three nights.",
        ("The room was spotless.", "The staff were kind and helpful.", "The bed was wonderfully comfortable.",
         "Breakfast was excellent.", "The view over the lake was stunning."),
        ("The room was filthy.", "The staff were rude and lazy.", "The bed was hard and full of bugs.",
         "Breakfast was disgusting.", "The view was a wall full of garbage bins."),
    ),
    Subject(
        "I have used this phone for a month.",
        ("The battery lasts two full days.", "The screen is bright and sharp.", "The camera takes gorgeous pictures.",
         "It is fast and never freezes.", "It feels solid and well made."),
        ("The battery dies after an hour.", "The screen cracked on the first day.", "The camera takes ugly pictures.",
         "It is slow and crashes all the time.", "It feels cheap and badly made."),
    ),
    Subject(
        "I ordered this jacket for the winter.",
        ("It keeps me perfectly warm.", "It fits beautifully.", "The fabric is soft and strong.",
         "I get compliments whenever I wear it.", "The zipper works smoothly."),
        ("It does not keep me warm at all.", "It fits horribly.", "The fabric is scratchy and tore at once.",
         "I am embarrassed whenever I wear it.", "The zipper broke within a week."),
    ),
    Subject(
        "We bought this vacuum cleaner in spring.",
        ("It picks up every crumb.", "It is pleasantly quiet.", "It is light and easy to carry.",
         "Cleaning the filter takes no effort.", "It saves me a lot of time."),
        ("It leaves half of the dirt behind.", "It is unbearably loud.", "It is heavy and awkward to carry.",
         "Cleaning the filter is a nightmare.", "It wastes a lot of my time."),
    ),
    Subject(
        "I installed this app last week.",
        ("It is simple and pleasant to use.", "It has helped me a great deal.", "Support was quick.",
         "The new design is lovely.", "Everything works without a hitch."),
        ("It is confusing and unpleasant to use.", "It has lost all of my notes.", "Support never answered.",
         "The new design is hideous.", "Nothing works as promised."),
    ),
    Subject(
        "My parents took us to this concert.",
        ("The band was full of energy.", "The sound was crystal clear.", "The singer has an amazing voice.",
         "The crowd cheered for half an hour.", "Our seats were great."),
        ("The band was dull and tired.", "The sound was a horrible noise.", "The singer was out of tune.",
         "The crowd left early in anger.", "Our seats were awful."),
    ),
    Subject(
        "I took this online course in the evenings.",
        ("The lessons were clear and well structured.", "The teacher was inspiring.", "I learned a great deal.",
         "The exercises were fun and useful.", "It was worth every cent."),
        ("The lessons were a mess.", "The teacher was unprepared and bored.", "I learned nothing at all.",
         "The exercises were pointless and full of errors.", "It was a rip-off."),
    ),
    Subject(
        "We rented a car from this company.",
        ("The car was new and clean.", "Picking it up took five easy minutes.", "The staff were charming.",
         "The price was a pleasant surprise.", "It ran perfectly for the whole trip."),
        ("The car was old and smelled of smoke.", "Picking it up took three hours.", "The staff were nasty.",
         "They charged us hidden fees.", "It broke down on the first day."),
    ),
    Subject(
        "I bought this coffee maker for the office.",
        ("The coffee tastes fantastic.", "It is ready in a minute.", "It is a joy to clean.",
         "Everyone at work loves it.", "It looks elegant on the shelf."),
        ("The coffee tastes like dirty water.", "It takes forever.", "It leaks all over the table.",
         "Everyone at work hates it.", "It looks ugly on the shelf."),
    ),
)  # fmt: skip

VERDICTS = {
    "positive": (
        "I love it.",
        "Highly recommended!",
        "I would gladly do it again.",
        "Five stars from me.",
        "I am very happy.",
    ),
    "negative": (
        "I hate it.",
        "Stay away!",
        "I would never do it again.",
        "One star from me.",
        "I am very disappointed.",
    ),
}
TURNS = {
    "positive": "That hardly matters, though, because all in all it was wonderful.",
    "negative": "That does not help, though, because all in all it was awful.",
}
PROMPT = "{review}\n\nIs this review positive or negative? Answer with a short sentence."


def review(subject: Subject, label: str, mixed: bool, random: Random) -> str:
    """Opening, two opinions and a verdict; a mixed one begins with an opinion of the other kind on another point."""
    same, other = subject.positive, subject.negative
    if label == "negative":
        same, other = other, same
    first, second = random.sample(range(len(same)), 2)
    opinions = (other[first], TURNS[label]) if mixed else (same[first],)
    return " ".join((subject.opening, *opinions, same[second], random.choice(VERDICTS[label])))


def item(text: str, label: str) -> Item:
    """A review and its label."""
    choices = ("This review is positive.", "This review is negative.")
    return Item((user(PROMPT.format(review=text)),), f"This review is {label}.", choices)


def items() -> list[Item]:
    """As many positive as negative reviews of each subject; two draws may be alike, then one is left out."""
    random = Random("sentiment")
    found = {}
    for subject in SUBJECTS:
        for i in range(PER_SUBJECT):
            label = ("positive", "negative")[i % 2]
            text = review(subject, label, i // 2 % MIXED == 0, random)
            found[text] = item(text, label)
    return list(found.values())


SKILL = Skill(
    about="whether a short review is positive or negative",
    items=items,
    scorer="choice",
    shots=(
        item("The shoes are comfortable. I adore them.", "positive"),
        item("The tent let the rain in. Never again.", "negative"),
        item("The tour was too short and the guide was rude.", "negative"),
        item("The lamp is pretty, and it gives a warm light.", "positive"),
    ),
    chance=0.5,
)
