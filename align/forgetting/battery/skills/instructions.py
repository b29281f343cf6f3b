"""Instructions that a program can verify: how long the answer is, how it begins and ends, what it contains.

Every answer must also be about what was asked: it names the right answer, or a word that belongs to the subject.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from align.forgetting.battery.answers import bare, bulleted, json_value, mentions, numbered, varied, words
from align.forgetting.battery.skill import Item, Skill, user

# a question with an answer of one word
FACTS = """
What is the capital of France? | paris
What is the opposite of 'hot'? | cold
Which animal barks? | dog dogs
What colour is grass? | green
What is the opposite of 'big'? | small little tiny
Which day comes after Monday? | tuesday
What do cows give us to drink? | milk
What is the capital of Italy? | rome
What colour is snow? | white
Which month comes after June? | july
What is frozen water called? | ice
What is the capital of Spain? | madrid
Which animal says 'meow'? | cat cats
What is the opposite of 'day'? | night
What is the capital of Germany? | berlin
What do bees make? | honey
Which planet do we live on? | earth
What is the opposite of 'old'? | young new
"""
NUMBERS = """
How many legs does a dog have? | 4 four
How many days are in a week? | 7 seven
What is two plus two? | 4 four
How many months are in a year? | 12 twelve
How many legs does a spider have? | 8 eight
What is ten minus five? | 5 five
How many hours are in a day? | 24 twenty-four
How many minutes are in an hour? | 60 sixty
What is three times three? | 9 nine
How many wheels does a bicycle have? | 2 two
How many fingers are on one hand? | 5 five
What is five plus one? | 6 six
How many sides does a triangle have? | 3 three
How many seconds are in a minute? | 60 sixty
What is ten plus ten? | 20 twenty
How many eyes does a cat have? | 2 two
How many legs does an insect have? | 6 six
How many corners does a square have? | 4 four
"""
# a subject | stems of its words | a first word | a last word | a word to use | a word to avoid | an answer
SUBJECTS = """
the sea | sea ocean water wave | The | beach | ship | blue | The sea slowly carried the ship to the beach.
dogs | dog pupp pet | Dogs | friends | bone | loyal | Dogs gladly share a bone with their friends.
the sun | sun light star | Every | sky | morning | bright | Every morning the sun climbs into the sky.
winter | winter snow cold | In | snow | coat | cold | In winter I wear a coat in the snow.
a school | school student class | My | children | teacher | learn | My school has one teacher for twenty children.
coffee | coffee cup drink | Many | morning | cup | hot | Many people drink a cup of coffee every morning.
music | music song sing melod | Music | happy | piano | beautiful | Music from a piano makes me happy.
a garden | garden flower plant | A | flowers | tree | green | A garden needs a tree and some flowers.
trains | train rail station | Trains | station | fast | long | Trains that are fast pass our small station.
books | book read stor | Some | read | library | story | Some books in the library are never read.
the moon | moon night lunar | At | night | stars | white | At last the moon and stars light the night.
cats | cat kitten feline | Cats | sleep | mouse | cute | Cats dream of a mouse when they sleep.
rain | rain water wet umbrella | When | rain | umbrella | water | When I forget my umbrella, there is always rain.
football | football soccer ball game team | People | game | goal | sport | People cheer each goal in a game.
a birthday party | birthday part cake | Yesterday | cake | present | fun | Yesterday she got a present and cake.
mountains | mountain peak hill | High | mountains | valley | tall | High above the valley stood the mountains.
bread | bread loaf bak | Fresh | butter | baker | flour | Fresh bread from the baker tastes good with butter.
a hospital | hospital doctor nurse | The | patients | nurse | sick | The nurse at the hospital cares for her patients.
"""
# things | some of them
CATEGORIES = """
colours | red blue green yellow orange purple black white pink brown grey gray
animals | dog cat lion tiger elephant horse cow bear bird fish wolf sheep pig monkey giraffe zebra fox rabbit deer
fruits | apple banana orange pear grape cherry strawberry mango peach plum lemon pineapple kiwi
vegetables | carrot potato tomato onion broccoli spinach cabbage pea bean lettuce cucumber pepper
countries | france germany spain italy china japan india brazil canada mexico usa russia australia united egypt kenya
drinks | water tea coffee milk juice beer wine lemonade soda
"""
PEOPLE = """
name age | Anna 30
name city | Ben Paris
title year | Dracula 1897
name colour | Rex brown
city country | Rome Italy
product price | pen 2
name job | Carla doctor
animal size | mouse small
fruit colour | banana yellow
name age | Tom 12
day weather | Monday sunny
name score | Lucy 95
planet colour | Mars red
country capital | Japan Tokyo
name sport | Paul tennis
name number | Kate 17
word language | gato Spanish
city number | Oslo 20
"""
PHRASES = """
The cat sat on the mat. / I will be home at six. / Tomorrow is another day.
All good things take time. / She sells fresh bread and milk. / The blue car is very fast.
We met them in the park. / My brother plays the violin. / Please close the door.
The train leaves at noon. / Five birds flew over the lake. / It is cold outside today.
He forgot his keys again. / The soup needs more salt. / Nobody answered the phone.
The children are asleep now. / Our house has a red roof. / Winter came early this year.
"""
COUNTS = (3, 4, 5)
ASK = "Write a short sentence about"


def items() -> list[Item]:
    """Eighteen items of each of the thirteen kinds."""
    return [
        *_short("few words", FACTS, "Answer in one word.", "Answer in at most eight words.", 1, 8),
        *_short("number", NUMBERS, "Answer with a number only.", "Write the number in digits.", 1, 12),
        *_sentences(),
        *_enumerations(),
        *_objects(),
        *_copies(),
    ]


def _short(kind: str, table: str, strict: str, lenient: str, *most: int) -> list[Item]:
    """Every third item with the strict form of the instruction, which only larger models follow."""
    found = []
    for index, (question, right) in enumerate(_rows(table)):
        ask, longest = (lenient, most[1]) if index % 3 else (strict, most[0])
        facts = {"right": right.split(), "most": longest}
        found.append(_item(kind, f"{question} {ask}", right.split()[0].title(), **facts))
    return found


def _sentences() -> list[Item]:
    found = []
    for index, (about, stems, first, last, use, avoid, answer) in enumerate(_rows(SUBJECTS)):
        topic, most = stems.split(), 20 + index % 3 * 5
        ask, lower = f"{ASK} {about}.", "write only in lower-case letters, without any capitals."
        found += [
            _item("at most", f"{ask} Use at most {most} words.", answer, topic=topic, most=most),
            _item("begin", f"{ask} Begin with the word '{first}'.", answer, topic=topic, word=first),
            _item("end", f"{ask} The last word must be '{last}'.", answer, topic=topic, word=last),
            _item("question", f"Write a question about {about}.", f"What do you think of {about}?", topic=topic),
            _item("case", f"{ask} {lower}", answer.lower(), topic=topic, capitals=False)
            if index % 2
            else _item("case", f"{ask} WRITE ONLY IN CAPITAL LETTERS.", answer.upper(), topic=topic, capitals=True),
            _item("contain", f"{ask} Use the word '{use}' in it.", answer, topic=topic, word=use),
            _item("avoid", f"{ask} Do not use the word '{avoid}'.", answer, topic=topic, word=avoid),
        ]
    return found


def _enumerations() -> list[Item]:
    found = []
    for index, (things, some) in enumerate(_rows(CATEGORIES)):
        topic = some.split()
        for count in COUNTS:
            style = "numbered" if (count + index) % 2 else "bulleted"
            signs = [f"{place + 1}." if style == "numbered" else "-" for place in range(count)]
            answer = "\n".join(f"{sign} {thing}" for sign, thing in zip(signs, topic, strict=False))
            ask = f"Name {count} {things} in a {style} list."
            found.append(_item("list", ask, answer, topic=topic, count=count, style=style))
            ask = f"Name {count - 1} {things}. Answer with exactly {count - 1} words and nothing else."
            found.append(_item("exactly", ask, ", ".join(topic[: count - 1]), topic=topic, count=count - 1))
    return found


def _objects() -> list[Item]:
    found = []
    for keys, values in _rows(PEOPLE):
        (a, b), (x, y) = keys.split(), values.split()
        ask = f'Write a JSON object with the keys "{a}" and "{b}". The {a} is {x} and the {b} is {y}.'
        found.append(_item("json", ask, json.dumps({a: x, b: y}), value={a: x, b: y}))
    return found


def _copies() -> list[Item]:
    ask = "Repeat this sentence exactly, and say nothing else:"
    return [
        _item("repeat", f"{ask} {text}", text, text=text)
        for line in PHRASES.strip().splitlines()
        for text in line.split(" / ")
    ]


def _item(kind: str, prompt: str, answer: str, **facts: object) -> Item:
    return Item((user(prompt),), answer, facts={"kind": kind, **facts})


def _rows(table: str) -> list[list[str]]:
    return [line.split(" | ") for line in table.strip().splitlines()]


def check(item: Item, text: str) -> bool:
    """Whether an answer follows the item's instruction and is about its subject."""
    facts = item.facts
    if not varied(text) or _echoes(text) or ("topic" in facts and not mentions(text, facts["topic"])):
        return False
    return CHECKS[facts["kind"]](item, text)


def _echoes(text: str) -> bool:
    return any(ask in text.lower() for ask in (ASK.lower(), "write a question about"))


def _few_words(item: Item, text: str) -> bool:
    found = [word.lower() for word in words(text)]
    return len(found) <= item.facts["most"] and any(word in item.facts["right"] for word in found)


def _number(item: Item, text: str) -> bool:
    found = [word.lower() for word in words(text)]
    if item.facts["most"] == 1:
        return len(found) == 1 and found[0] in item.facts["right"]
    return item.facts["right"][0] in found and len(found) <= item.facts["most"]


def _at_most(item: Item, text: str) -> bool:
    return bool(3 <= len(words(text)) <= item.facts["most"])


def _begins(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and words(text)[0].lower() == item.facts["word"].lower()


def _ends(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and words(text)[-1].lower() == item.facts["word"].lower()


def _case(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and text == (text.upper() if item.facts["capitals"] else text.lower())


def _asks(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and bare(text).endswith("?")


def _contains(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and _has(item.facts["word"], text)


def _avoids(item: Item, text: str) -> bool:
    return len(words(text)) >= 3 and not _has(item.facts["word"], text)


def _has(word: str, text: str) -> bool:
    return re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None


def _exactly(item: Item, text: str) -> bool:
    found = [word.lower() for word in words(text)]
    known = [word for word in found if mentions(word, item.facts["topic"])]
    return len(found) == item.facts["count"] == len(set(found)) and len(known) * 2 >= len(found)


def _list(item: Item, text: str) -> bool:
    listed = numbered(text) if item.facts["style"] == "numbered" else bulleted(text)
    return bool(len({entry.lower() for entry in listed}) == len(listed) == item.facts["count"])


def _json(item: Item, text: str) -> bool:
    value = json_value(text, dict)
    wanted = {key: str(said).lower() for key, said in item.facts["value"].items()}
    return isinstance(value, dict) and {key: str(said).lower() for key, said in value.items()} == wanted


def _repeats(item: Item, text: str) -> bool:
    return bool(bare(text).rstrip(".") == item.facts["text"].rstrip("."))


CHECKS: dict[str, Callable[[Item, str], bool]] = {
    "few words": _few_words,
    "number": _number,
    "at most": _at_most,
    "begin": _begins,
    "end": _ends,
    "question": _asks,
    "case": _case,
    "contain": _contains,
    "avoid": _avoids,
    "exactly": _exactly,
    "list": _list,
    "json": _json,
    "repeat": _repeats,
}
SKILL = Skill(
    about="follow an instruction about the answer's length, words or letters",
    items=items,
    scorer="check",
    shots=(
        Item((user("What colour is blood? Answer in one word."),), "Red"),
        Item((user("Write a short sentence about horses. Begin with the word 'Horses'."),), "Horses run fast."),
        Item((user("Name 3 metals in a bulleted list."),), "- iron\n- gold\n- silver"),
        Item((user("Repeat this sentence exactly, and say nothing else: Birds can fly."),), "Birds can fly."),
    ),
    chance=0.01,  # of the answers of a model with random weights
    check=check,
    tokens=48,
)
