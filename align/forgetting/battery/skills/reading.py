"""A short passage and a question that it answers; the wrong choices stand in the passage too. The answer is a sentence:
that is how a small model answers, and it is at chance with a single word."""

from __future__ import annotations

from random import Random

from align.forgetting.battery.choices import deal
from align.forgetting.battery.skill import Item, Skill, user

PER_SCENE = 18  # passages of each scene

HE = ("Ben", "David", "Frank", "Henry", "Mark", "Oscar", "Paul", "Tom")
SHE = ("Anna", "Clara", "Emma", "Grace", "Laura", "Nora", "Rose", "Susan")
CITIES = ("Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Boston", "Chicago", "Dublin", "Lisbon", "Oslo")
FOODS = ("bread", "cheese", "apples", "fish", "tomatoes", "rice", "eggs", "beans", "pasta", "grapes", "pears")
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "pink", "gray")
ANIMALS = ("dog", "cat", "horse", "rabbit", "parrot", "goat", "duck", "mouse", "pony", "turtle", "sheep")
JOBS = ("doctor", "teacher", "farmer", "baker", "painter", "lawyer", "pilot", "nurse", "singer", "waiter", "carpenter")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SPORTS = ("tennis", "football", "golf", "hockey", "basketball", "chess", "volleyball", "baseball", "rugby", "cricket")
ROOMS = ("kitchen", "bedroom", "garage", "cellar", "attic", "bathroom", "garden", "office", "hall", "stable")
OBJECTS = ("key", "hat", "lamp", "book", "camera", "clock", "radio", "wallet", "guitar", "basket", "blanket")
SUBJECTS = ("history", "biology", "music", "physics", "geography", "art", "chemistry", "mathematics", "law")

# Passages in which each of four people has a word of the pool: opening, sentences, question, answer, pool.
# {n} is a name, {w} a word of the pool.
PEOPLE = (
    (
        "Four friends went to the market on Saturday.",
        ("{n} bought {w}.", "{n} came home with {w}.", "{n} spent some money on {w}.", "{n} paid for {w}."),
        "What did {n} buy?",
        "{n} bought {w}.",
        FOODS,
    ),
    (
        "Four old classmates met again after twenty years.",
        ("{n} now lives in {w}.", "{n} has moved to {w}.", "{n} has a house in {w}.", "{n} found a home in {w}."),
        "In which city does {n} live?",
        "{n} lives in {w}.",
        CITIES,
    ),
    (
        "The neighbors on our street all keep an animal.",
        ("{n} has a {w}.", "{n} keeps a {w}.", "{n} looks after a {w}.", "{n} is the owner of a {w}."),
        "Which animal does {n} have?",
        "{n} has a {w}.",
        ANIMALS,
    ),
    (
        "At the party everybody talked about work.",
        ("{n} is a {w}.", "{n} works as a {w}.", "{n} makes a living as a {w}.", "{n} has a job as a {w}."),
        "What is the job of {n}?",
        "{n} is a {w}.",
        JOBS,
    ),
    (
        "Everyone came to the picnic in a different color.",
        ("{n} wore a {w} shirt.", "{n} had a {w} shirt on.", "{n} was in a {w} shirt.", "{n} chose a {w} shirt."),
        "What color was the shirt of {n}?",
        "{n} wore a {w} shirt.",
        COLORS,
    ),
    (
        "The children at the summer camp like different games.",
        ("{n} plays {w}.", "{n} prefers {w}.", "{n} is good at {w}.", "{n} practices {w} every day."),
        "Which game does {n} like?",
        "{n} likes {w}.",
        SPORTS,
    ),
    (
        "The students have chosen what to learn this year.",
        ("{n} studies {w}.", "{n} has picked {w}.", "{n} is taking {w}.", "{n} attends classes in {w}."),
        "Which subject did {n} choose?",
        "{n} chose {w}.",
        SUBJECTS,
    ),
    (
        "The dentist sees four patients this week.",
        ("{n} comes on {w}.", "{n} has a visit on {w}.", "{n} will be there on {w}.", "{n} is expected on {w}."),
        "On which day does {n} see the dentist?",
        "{n} sees the dentist on {w}.",
        DAYS,
    ),
)

# Passages about one person, in which each of four words has its own sentence and question; the sentence with the name
# in it is the answer too.
LIVES = (
    (
        CITIES,
        ("{n} was born in {w}.", "Where was {n} born?"),
        ("{n} went to school in {w}.", "Where did {n} go to school?"),
        ("{n} married in {w}.", "Where did {n} marry?"),
        ("Today {n} works in {w}.", "Where does {n} work today?"),
    ),
    (
        FOODS,
        ("{n} had {w} for breakfast.", "What did {n} have for breakfast?"),
        ("At noon {n} ate {w}.", "What did {n} eat at noon?"),
        ("For dinner {n} had {w}.", "What did {n} have for dinner?"),
        ("{n} gave some {w} to a neighbor.", "What did {n} give to a neighbor?"),
    ),
    (
        DAYS,
        ("{n} cleans the house on {w}.", "On which day does {n} clean the house?"),
        ("{n} goes swimming on {w}.", "On which day does {n} go swimming?"),
        ("{n} visits a cousin on {w}.", "On which day does {n} visit a cousin?"),
        ("{n} sings in a choir on {w}.", "On which day does {n} sing in a choir?"),
    ),
    (
        COLORS,
        ("{n} drives a {w} car.", "What color is the car of {n}?"),
        ("{n} lives in a house with a {w} door.", "What color is the door of the house of {n}?"),
        ("{n} has painted the fence {w}.", "What color is the fence of {n}?"),
        ("At night {n} sleeps under a {w} blanket.", "What color is the blanket of {n}?"),
    ),
    (
        ROOMS,
        ("{n} found the hammer in the {w}.", "Where did {n} find the hammer?"),
        ("{n} put the ladder in the {w}.", "Where did {n} put the ladder?"),
        ("Later {n} noticed a leak in the {w}.", "Where did {n} notice a leak?"),
        ("{n} left the paint in the {w}.", "Where did {n} leave the paint?"),
    ),
    (
        OBJECTS,
        ("{n} has lost a {w}.", "What has {n} lost?"),
        ("Last week {n} bought a {w}.", "What did {n} buy last week?"),
        ("{n} was given a {w} as a present.", "What was {n} given as a present?"),
        ("{n} lent a {w} to a friend.", "What did {n} lend to a friend?"),
    ),
)

PROMPT = "{passage}\n\n{question} Answer with a short sentence."


def item(sentences: list[str], question: str, answer: str, words: list[str], right: int) -> Item:
    """A passage and its question; the choices are the answer with each of the words, right with the one at `right`."""
    passage = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    choices = tuple(answer.format(w=word) for word in words)
    return Item((user(PROMPT.format(passage=passage, question=question)),), choices[right], choices)


def about_people(random: Random) -> list[Item]:
    """Passages about four people: who had which."""
    found = []
    for opening, sentences, question, answer, pool in PEOPLE:
        for turn in range(PER_SCENE):
            names, forms = random.sample(HE + SHE, 4), random.sample(sentences, 4)
            words = deal(pool, turn, random)
            told = [form.format(n=n, w=w) for form, n, w in zip(forms, names, words, strict=True)]
            asked, said = (text.replace("{n}", names[turn % 4]) for text in (question, answer))
            found.append(item([opening, *told], asked, said, words, turn % 4))
    return found


def about_one(random: Random) -> list[Item]:
    """Passages about one person: which word stands in which sentence."""
    found = []
    for pool, *pairs in LIVES:
        for turn in range(PER_SCENE):
            words, order = deal(pool, turn, random), random.sample(pairs, 4)
            name = random.choice(HE + SHE)
            who = [name] + 3 * ["he" if name in HE else "she"]
            told = [sentence.format(n=n, w=w) for (sentence, _), n, w in zip(order, who, words, strict=True)]
            said, asked = (text.replace("{n}", name) for text in order[turn % 4])
            found.append(item(told, asked, said, words, turn % 4))
    return found


def items() -> list[Item]:
    """As many passages of each scene; the answer stands in each sentence equally often."""
    random = Random("reading")
    return [*about_people(random), *about_one(random)]


SKILL = Skill(
    about="a question about a short passage; the wrong answers stand in the passage too",
    items=items,
    scorer="choice",
    shots=(
        item(
            ["The boat left in spring.", "It came to Malta in summer, to Cyprus in autumn and to Sicily in winter."],
            "When did the boat come to Cyprus?",
            "The boat came to Cyprus in {w}.",
            ["spring", "summer", "autumn", "winter"],
            2,
        ),
        item(
            ["Ida plays the piano.", "Rolf plays the flute, Jan the drums, and Eva the harp."],
            "Which instrument does Eva play?",
            "Eva plays the {w}.",
            ["piano", "flute", "drums", "harp"],
            3,
        ),
    ),
    chance=0.25,
)
