"""Questions about what was said two or more turns earlier; the wrong answers also stand in the conversation."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from align.forgetting.battery.skill import Item, Skill, assistant, user

POOLS = {
    "names": "Anna Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nina Oscar Paul Rose Sam Tom Vera",
    "colours": "red blue green yellow white black brown purple orange pink grey",
    "numbers": "two three four five six seven eight nine ten eleven twelve",
    "cities": "Paris London Rome Madrid Berlin Vienna Lisbon Athens Dublin Prague Oslo Warsaw",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "foods": "pizza soup salad rice pasta fish chicken bread cheese cake",
    "animals": "dog cat horse rabbit parrot hamster goat duck turtle snake",
    "jobs": "teacher doctor farmer baker lawyer pilot painter nurse driver singer",
}
FILLERS = (
    ("What does the word 'tiny' mean?", "It means very small."),
    ("Is ice colder than steam?", "Yes, ice is much colder than steam."),
    ("Tell me something about the moon.", "The moon goes around the earth and reflects the light of the sun."),
    ("Should I drink more water?", "Yes, drinking enough water is good for you."),
    ("Can you recommend a hobby?", "You could try drawing, gardening or playing the guitar."),
    ("What is a dictionary for?", "A dictionary tells you what words mean and how to spell them."),
    ("Why do people sleep?", "Sleep lets the body rest and helps the brain to remember."),
    ("How can I stay warm in winter?", "Wear several layers, a hat and gloves."),
    ("What is a good way to relax?", "A quiet walk or some calm music can help."),
    ("Do plants need light?", "Yes, plants use light to make their food."),
)
DRAWS = 4


@dataclass(frozen=True)
class Scene:
    """A conversation's first turns with four values of one kind, and a question for each of the values."""

    pool: str
    said: tuple[str, ...]  # the user's and the assistant's turns by turns
    asked: tuple[tuple[str, str], ...]  # the questions, and the form of the answer


SCENES = (
    Scene("names", (
        "Hi! My name is {0}. My neighbour is called {1}, my dentist is called {2} and my best friend is called {3}.",
        "Nice to meet you!"), (
        ("What is my name?", "Your name is {}."), ("What is my neighbour called?", "Your neighbour is called {}."),
        ("What is my dentist called?", "Your dentist is called {}."),
        ("What is my best friend called?", "Your best friend is called {}."))),
    Scene("names", (
        "Our cat is called {0} and our dog is called {1}.", "What lovely pets!",
        "We also have a parrot. It is called {2}. And our rabbit is called {3}.", "That is a full house."), (
        ("What is our cat called?", "Your cat is called {}."), ("What is our dog called?", "Your dog is called {}."),
        ("What is our parrot called?", "Your parrot is called {}."),
        ("What is our rabbit called?", "Your rabbit is called {}."))),
    Scene("names", (
        "I am writing a play. The judge is {0}, the spy is {1}, the cook is {2} and the thief is {3}.",
        "That sounds exciting."), (
        ("Who is the judge in my play?", "The judge is {}."), ("Who is the spy in my play?", "The spy is {}."),
        ("Who is the cook in my play?", "The cook is {}."), ("Who is the thief in my play?", "The thief is {}."))),
    Scene("colours", (
        "We have painted our house. The door is {0}, the roof is {1}, the kitchen is {2} and the fence is {3}.",
        "It must look wonderful."), (
        ("What colour is our door?", "The door is {}."), ("What colour is our roof?", "The roof is {}."),
        ("What colour is our kitchen?", "The kitchen is {}."), ("What colour is our fence?", "The fence is {}."))),
    Scene("colours", (
        "My favourite colour is {0}.", "That is a beautiful colour.",
        "My mother likes {1}, my father likes {2} and my sister likes {3}.", "Tastes differ."), (
        ("What is my favourite colour?", "Your favourite colour is {}."),
        ("Which colour does my mother like?", "Your mother likes {}."),
        ("Which colour does my father like?", "Your father likes {}."),
        ("Which colour does my sister like?", "Your sister likes {}."))),
    Scene("numbers", (
        "For the shop I need {0} apples, {1} lemons and {2} onions.", "I have written that down.",
        "I have changed my mind about the lemons: now I need {3} lemons.", "I have changed the list."), (
        ("How many apples do I need?", "You need {} apples."),
        ("How many lemons did I want at first?", "At first you needed {} lemons."),
        ("How many onions do I need?", "You need {} onions."),
        ("How many lemons do I need now?", "Now you need {} lemons."))),
    Scene("numbers", (
        "In my office there are {0} desks, {1} chairs, {2} lamps and {3} plants.", "It sounds like a nice office."), (
        ("How many desks are in my office?", "There are {} desks."),
        ("How many chairs are in my office?", "There are {} chairs."),
        ("How many lamps are in my office?", "There are {} lamps."),
        ("How many plants are in my office?", "There are {} plants."))),
    Scene("cities", (
        "I was born in {0} and I live in {1}.", "Both are interesting cities.",
        "My sister lives in {2} and my parents live in {3}.", "Your family has spread out."), (
        ("Where was I born?", "You were born in {}."), ("Where do I live?", "You live in {}."),
        ("Where does my sister live?", "Your sister lives in {}."),
        ("Where do my parents live?", "Your parents live in {}."))),
    Scene("cities", (
        "I am planning four trips. In spring I will go to {0}, in summer to {1}, in autumn to {2}, in winter to {3}.",
        "What a great plan!"), (
        ("Where will I go in spring?", "In spring you will go to {}."),
        ("Where will I go in summer?", "In summer you will go to {}."),
        ("Where will I go in autumn?", "In autumn you will go to {}."),
        ("Where will I go in winter?", "In winter you will go to {}."))),
    Scene("days", (
        "This is my week: I play chess on {0}, I swim on {1}, I cook on {2} and I clean on {3}.",
        "You have a busy week."), (
        ("On which day do I play chess?", "You play chess on {}."), ("On which day do I swim?", "You swim on {}."),
        ("On which day do I cook?", "You cook on {}."), ("On which day do I clean?", "You clean on {}."))),
    Scene("days", (
        "I will see the dentist on {0}, and the concert is on {1}.", "I will remember that.",
        "The dentist has called: I will now see her on {2} instead. And the party is on {3}.",
        "Thank you for telling me."), (
        ("When was I going to see the dentist at first?", "At first you were going to see the dentist on {}."),
        ("When is the concert?", "The concert is on {}."),
        ("When will I see the dentist now?", "Now you will see the dentist on {}."),
        ("When is the party?", "The party is on {}."))),
    Scene("foods", (
        "Tonight I will have {0}, my wife will have {1}, my son will have {2} and my aunt will have {3}.",
        "Enjoy your meal!"), (
        ("What will I have tonight?", "You will have {}."), ("What will my wife have?", "Your wife will have {}."),
        ("What will my son have?", "Your son will have {}."), ("What will my aunt have?", "Your aunt will have {}."))),
    Scene("animals", (
        "Tom has a {0}, Anna has a {1}, Peter has a {2} and Lucy has a {3}.", "They all have nice pets."), (
        ("Which animal does Tom have?", "Tom has a {}."), ("Which animal does Anna have?", "Anna has a {}."),
        ("Which animal does Peter have?", "Peter has a {}."), ("Which animal does Lucy have?", "Lucy has a {}."))),
    Scene("jobs", (
        "I work as a {0}. My wife works as a {1}.", "Those are important jobs.",
        "My brother works as a {2} and my neighbour works as a {3}.", "I see."), (
        ("What is my job?", "You work as a {}."), ("What is my wife's job?", "Your wife works as a {}."),
        ("What is my brother's job?", "Your brother works as a {}."),
        ("What is my neighbour's job?", "Your neighbour works as a {}."))),
    Scene("jobs", (
        "As a child I wanted to be a {0}. Then I became a {1}.", "Many people change their minds.",
        "My daughter wants to be a {2} and my son wants to be a {3}.", "I wish them luck."), (
        ("What did I want to be as a child?", "As a child you wanted to be a {}."),
        ("What did I become?", "You became a {}."),
        ("What does my daughter want to be?", "Your daughter wants to be a {}."),
        ("What does my son want to be?", "Your son wants to be a {}."))),
)  # fmt: skip


def items() -> list[Item]:
    """Each scene several times with other values; each time all four questions are asked."""
    random, found = Random("multi_turn"), []
    for scene in SCENES:
        for _ in range(DRAWS):
            values = tuple(random.sample(POOLS[scene.pool].split(), 4))
            filler = random.choice(FILLERS)
            found += [conversation(scene, values, filler, place) for place in range(4)]
    return found


def conversation(scene: Scene, values: tuple[str, ...], filler: tuple[str, str], place: int) -> Item:
    """What was said, something else, and the question for one of the values."""
    turns = [text.format(*values) for text in scene.said] + list(filler)
    messages = [(assistant if index % 2 else user)(text) for index, text in enumerate(turns)]
    question, form = scene.asked[place]
    choices = tuple(form.format(value) for value in values)
    return Item((*messages, user(question)), choices[place], choices)


SHOWN = Scene("names", (
    "The baker in our village is called {0}, and the smith is called {1}.", "Good to know.",
    "The teacher is called {2} and the doctor is called {3}.", "Thank you."), (
    ("What is the baker called?", "The baker is called {}."), ("What is the smith called?", "The smith is called {}."),
    ("What is the teacher called?", "The teacher is called {}."),
    ("What is the doctor called?", "The doctor is called {}.")))  # fmt: skip
SKILL = Skill(
    about="remember what was said earlier in the conversation",
    items=items,
    scorer="choice",
    shots=(
        conversation(SHOWN, ("Alice", "Bob", "Carol", "Dan"), FILLERS[0], 1),
        conversation(SHOWN, ("Max", "Eva", "Tim", "Lily"), FILLERS[1], 2),
    ),
    chance=0.25,
)
