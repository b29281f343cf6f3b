"""What a system turn fixes: a name, a language, a form, a fact, a persona.

Four items have the same user's turn and the same choices and differ in the system turn alone, so that whoever ignores
it gets a quarter of them right.
"""

from __future__ import annotations

from align.forgetting.battery.skill import Item, Skill, system, user

NAMES = (
    ("Oliver", "Sophie", "Marcus", "Helena"), ("Robin", "Felix", "Nora", "Stella"),
    ("Victor", "Ruby", "Simon", "Alice"), ("Hugo", "Laura", "Martin", "Julia"),
)  # fmt: skip
NAME_QUESTIONS = ("What is your name?", "Hello! What should I call you?")
FACTS = (
    (("The hotel's bar opens at {}.", "When does the bar open?", "The bar opens at {}."),
     ("noon", "two", "five", "eight")),
    (("The shop is closed on {}.", "On which day are you closed?", "We are closed on {}."),
     ("Monday", "Thursday", "Friday", "Sunday")),
    (("A ticket for the museum costs {} dollars.", "How much is a ticket?", "A ticket costs {} dollars."),
     ("five", "eight", "twelve", "twenty")),
    (("The cook of our restaurant comes from {}.", "Where does your cook come from?", "Our cook comes from {}."),
     ("Italy", "Japan", "Mexico", "India")),
    (("The password of the guest network is {}.", "What is the password of the guest network?", "The password is {}."),
     ("sunflower", "blackbird", "waterfall", "snowball")),
    (("The bus to the airport leaves from gate {}.", "From which gate does the bus leave?", "It leaves from gate {}."),
     ("A", "B", "C", "D")),
    (("The manager of the store is {}.", "Who is the manager?", "The manager is {}."),
     ("Mr Brown", "Mrs Green", "Mr Clark", "Mrs Stone")),
    (("The meeting is in the {}.", "Where is the meeting?", "The meeting is in the {}."),
     ("library", "kitchen", "garden", "cellar")),
)  # fmt: skip
# a question, and its answer in English, French, Spanish and German
LANGUAGES = ("English", "French", "Spanish", "German")
ANSWERS = (
    ("What colour is the sky?", "The sky is blue.", "Le ciel est bleu.", "El cielo es azul.", "Der Himmel ist blau."),
    ("What colour is snow?", "Snow is white.", "La neige est blanche.", "La nieve es blanca.", "Schnee ist weiß."),
    ("Are you ready?", "Yes, I am ready.", "Oui, je suis prêt.", "Sí, estoy listo.", "Ja, ich bin bereit."),
    ("Is fire hot?", "Yes, fire is hot.", "Oui, le feu est chaud.", "Sí, el fuego es caliente.",
     "Ja, Feuer ist heiß."),
    ("Hello, how are you?", "I am very well, thank you.", "Je vais très bien, merci.", "Estoy muy bien, gracias.",
     "Mir geht es sehr gut, danke."),
    ("What do cows drink?", "Cows drink water.", "Les vaches boivent de l'eau.", "Las vacas beben agua.",
     "Kühe trinken Wasser."),
    ("What day comes after Sunday?", "The next day is Monday.", "Le jour suivant est lundi.",
     "El día siguiente es lunes.", "Der nächste Tag ist Montag."),
    ("Where is Madrid?", "Madrid is in Spain.", "Madrid est en Espagne.", "Madrid está en España.",
     "Madrid liegt in Spanien."),
)  # fmt: skip
# questions with an answer that takes a frame
PLAIN = (
    ("What is the capital of France?", "the capital is Paris"),
    ("How many legs does a spider have?", "a spider has eight legs"),
    ("What do bees make?", "bees make honey"),
    ("What is two plus two?", "two plus two is four"),
    ("Which planet do we live on?", "we live on the Earth"),
    ("What falls from clouds?", "rain falls from clouds"),
    ("What do we use to cut paper?", "we cut paper with scissors"),
    ("Which animal barks?", "a dog barks"),
)
# the system turn, and an answer that obeys it
FORMS = (
    (("Write only in capital letters.", "{capitals}."), ("Write only in lower-case letters.", "{lower}."),
     ("Put every answer in square brackets.", "[{sentence}.]"),
     ("Put every answer in quotation marks.", '"{sentence}."')),
    (("Begin every answer with the word 'Well'.", "Well, {answer}."),
     ("Begin every answer with the word 'Listen'.", "Listen, {answer}."),
     ("Begin every answer with the word 'Friend'.", "Friend, {answer}."),
     ("Begin every answer with the word 'Frankly'.", "Frankly, {answer}.")),
    (("End every answer with 'Have a nice day!'", "{sentence}. Have a nice day!"),
     ("End every answer with 'See you next time!'", "{sentence}. See you next time!"),
     ("End every answer with 'Thank you for asking!'", "{sentence}. Thank you for asking!"),
     ("End every answer with 'Keep on asking questions!'", "{sentence}. Keep on asking questions!")),
    (("You are a pirate and talk like one.", "Arr, matey, {answer}!"),
     ("You are a robot and talk like one.", "Beep boop. Computing: {answer}."),
     ("You are a cowboy and talk like one.", "Howdy, partner, I reckon {answer}."),
     ("You are a butler and talk like one.", "Certainly, sir: {answer}.")),
)  # fmt: skip


def items() -> list[Item]:
    """All families, four items at a time."""
    return [*names(), *facts(), *languages(), *forms()]


def names() -> list[Item]:
    """The assistant's name."""
    found = []
    for block in NAMES:
        rules = [f"You are {name}, a friendly assistant." for name in block]
        for question in NAME_QUESTIONS:
            found += four(rules, question, [f"My name is {name}." for name in block])
    return found


def facts() -> list[Item]:
    """Something that only the system turn says."""
    found = []
    for (said, question, answer), block in FACTS:
        rules = [f"You talk to guests. {said.format(value)}" for value in block]
        found += four(rules, question, [answer.format(value) for value in block])
    return found


def languages() -> list[Item]:
    """The language of the answer."""
    rules, found = [f"You always answer in {language}." for language in LANGUAGES], []
    for question, *answers in ANSWERS:
        found += four(rules, question, answers)
    return found


def forms() -> list[Item]:
    """The answer's form and its tone."""
    found = []
    for block in FORMS:
        for question, answer in PLAIN:
            sentence = answer[0].upper() + answer[1:]
            said = {"answer": answer, "sentence": sentence, "capitals": answer.upper(), "lower": answer.lower()}
            found += four([rule for rule, _ in block], question, [form.format(**said) for _, form in block])
    return found


def four(rules: list[str], question: str, answers: list[str]) -> list[Item]:
    """One question under four rules, each with its own answer."""
    pairs = zip(rules, answers, strict=True)
    return [Item((system(rule), user(question)), answer, tuple(answers)) for rule, answer in pairs]


SKILL = Skill(
    about="do what the system turn says: a name, a fact, a language, a form, a persona",
    items=items,
    scorer="choice",
    shots=(
        Item((system("Your name is Peter."), user("Who are you?")), "I am Peter."),
        Item((system("The pool is open until nine."), user("How long is the pool open?")), "It is open until nine."),
        Item((system("End every answer with 'Bye!'"), user("What do birds lay?")), "Birds lay eggs. Bye!"),
    ),
    chance=0.25,
)
