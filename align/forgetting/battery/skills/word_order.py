"""Which order of the same words is an English sentence.

The sentences of a pattern have the same parts of speech in the same places, so that an order of the pattern is wrong
for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from align.forgetting.battery.skill import Item, Skill, user


@dataclass(frozen=True)
class Pattern:
    """Sentences of one form, and orders of their words that are no English."""

    wrong: tuple[str, ...]  # places of the words: 1 0 2 is the second, the first, the third
    sentences: str


PATTERNS = (
    Pattern(("0124356", "0123546", "1023456", "0123465"), """
The old man sat on the chair. The little girl ran to the door. The young dog slept under the table.
The tired boy lay on the bed. The black cat jumped over the wall. The tall woman walked through the park.
The happy children played in the garden. The big ship sailed across the ocean.
The small bird flew over the house. The new teacher stood near the window.
The wet dog waited outside the school. The rich man lived near the lake. The brown horse ran across the field.
The loud music came from the kitchen. The heavy box fell from the shelf. The angry man shouted at the driver.
The full moon rose above the hills. The last bus stopped near the church."""),
    Pattern(("0132456", "0123546", "0213456"), """
He gave his sister a red ball. She sent her mother a long letter. He bought his wife a gold ring.
She told her children a short story. He showed his friend a new trick. She made her father a warm soup.
He wrote his brother a funny card. She lent her cousin a good pen. He sold his neighbour an old car.
She taught her students a new word. He offered his guests a cold drink. She bought her son a small drum.
He brought his boss a hot coffee. She read her daughter an old poem. He sent his aunt a nice present.
She showed her doctor a red spot. He gave his dog a big bone. She handed her uncle a clean plate."""),
    Pattern(("021345", "012435", "013245", "031245"), """
I do not like cold coffee. They do not eat raw fish. We do not sell old books. I do not drink strong tea.
They do not wear black shoes. We do not need new chairs. I do not want hot soup. They do not read long books.
We do not keep wild animals. I do not buy expensive clothes. They do not tell bad jokes.
We do not have small children. I do not enjoy loud music. They do not play difficult games.
We do not grow red roses. I do not watch sad films. They do not speak foreign languages.
We do not use plastic bags."""),
    Pattern(("02134567", "01324567", "01235467", "01234657"), """
The book that you gave me is lost. The story that he told us was funny. The letter that she sent me was short.
The picture that they showed us is beautiful. The money that he lent me is gone.
The cake that you made us was delicious. The ring that he bought her was expensive.
The song that she taught us is old. The car that they sold him is broken. The advice that you gave him was good.
The watch that she gave me is slow. The room that they showed us was dirty. The coat that you lent me is warm.
The answer that he gave us was wrong. The present that they sent her was small.
The soup that she brought us was cold. The joke that you told them was silly.
The chair that he made me is strong."""),
    Pattern(("0123645", "0123465", "0126345"), """
Do you know when the film starts? Can you explain how the machine works? Did they say when the train left?
Do you remember where the bus stops? Can you see where the path ends? Did she ask why the baby cried?
Do you know where my brother lives? Can you tell why that man laughed? Did he explain how the game ended?
Do you see where the river begins? Can you remember when the war started? Did they know why the bridge fell?
Do you know when the bank opens? Can you say where the author lives? Did you hear why the teacher left?
Do you understand how the brain works? Can you guess why the dog barked? Did you forget when the shop closes?"""),
    Pattern(("01342", "03142", "01243", "01324"), """
She speaks English very well. He plays chess quite badly. We know London extremely well.
She sings songs very beautifully. He drives cars very carelessly. They speak French rather slowly.
I remember him quite clearly. She cooks fish very slowly. We need help very badly. He reads books very slowly.
They treat animals very kindly. She answers questions very politely. I miss you very much.
He drinks coffee very quickly. They love music very deeply. We trust her quite blindly.
She explains things very simply. He paints walls very carefully."""),
    Pattern(("01324", "02134", "01423"), """
He figured it out again. She picked them up today. We threw it away yesterday. They gave it back later.
I wrote it down carefully. He put them on quickly. She took it off slowly. We worked it out later.
They let us down again. I woke him up early. He handed it in twice. She called me back yesterday.
We filled it up again. They pointed it out politely. I locked them out twice. He paid it back yesterday.
She switched it on again. We brought them up together."""),
    Pattern(("01235467", "01234675", "01234657"), """
The box is not big enough for us. My coat is not warm enough for winter. The soup is not hot enough for me.
Her bag is not large enough for books. The ice is not thick enough for skating.
His car is not fast enough for him. The bed is not long enough for me. Our boat is not safe enough for children.
The water is not deep enough for diving. My brother is not old enough for school.
The light is not bright enough for reading. Your plan is not good enough for us.
The rope is not strong enough for climbing. Their house is not quiet enough for her.
The knife is not sharp enough for meat. This wood is not dry enough for burning.
The test is not easy enough for beginners. That chair is not comfortable enough for grandma."""),
    Pattern(("01243", "02134", "01324"), """
What are you looking for? Who is he talking to? What was she thinking about? Where do they come from?
Who did you dance with? What is he laughing at? Who were they waiting for? What are you listening to?
What did she complain about? Who do you live with? What was he afraid of? Who is she working for?
What did they argue about? Where are you going to? What does it depend on? Who did he shout at?
What are we paying for? Who does she belong to?"""),
    Pattern(("02134", "01342", "03412"), """
How old is your brother? How tall was that tree? How deep is this lake? How far is the airport?
How long was the film? How expensive are those shoes? How heavy is your bag? How big was their house?
How fast is this train? How cold was the water? How high are these mountains? How late is the bus?
How wide was the river? How strong is this rope? How good were her marks? How safe is that ladder?
How full was the glass? How loud are your neighbours?"""),
    Pattern(("01325467", "01235647", "01234657"), """
I had rarely seen such a big dog. We have rarely heard such a sad story. She had rarely told such a good joke.
They have rarely had such a cold winter. He had rarely made such a stupid mistake.
I have rarely met such a kind man. We had rarely found such a nice hotel.
She has rarely worn such a short dress. They had rarely played such a bad game.
He has rarely written such a long letter. I had rarely eaten such a hot soup.
We have rarely seen such a full train. She had rarely painted such a large picture.
They have rarely sung such a slow song. He had rarely driven such a fast car.
I have rarely read such a dull book. We had rarely drunk such a strong coffee.
She has rarely baked such a sweet cake."""),
    Pattern(("014523", "012435", "023145"), """
He plays the piano every day. She waters the garden every morning. We clean the kitchen every Friday.
They visit their grandmother every summer. I read the newspaper every evening. He washes his car every week.
She feeds the birds every winter. We watch the news every night. They change their passwords every month.
I walk the dog every morning. He takes the bus every day. She calls her mother every Sunday.
We eat some fruit every day. They paint their fence every spring. I check my mail every hour.
He bakes a cake every week. She wears this coat every autumn. We cross that bridge every day."""),
    Pattern(("0123564", "0123546", "0132456", "0123465"), """
I did not know what to say. She did not ask where to go. We do not understand how to start.
They did not decide when to leave. He does not know whom to trust. I do not see how to help.
She did not say when to come. We did not remember where to turn. They do not know what to wear.
He did not explain how to cook. I did not know where to sit. She does not understand when to stop.
We do not know whom to ask. They did not learn how to swim. He did not say what to buy.
I do not remember where to look. She did not show how to dance. We did not know what to expect."""),
)  # fmt: skip


def items() -> list[Item]:
    """Every sentence with three wrong orders of its words."""
    random, found = Random("word_order"), []
    for pattern in PATTERNS:
        text = " ".join(pattern.sentences.split())
        for sentence in text.replace(". ", ".\n").replace("? ", "?\n").splitlines():
            found.append(ordered(sentence, tuple(random.sample(pattern.wrong, 3))))
    return found


def ordered(sentence: str, wrong: tuple[str, ...]) -> Item:
    """One sentence, its words in the prompt by the alphabet."""
    end, words = sentence[-1], sentence[:-1].split()
    words[0] = words[0] if words[0] == "I" else words[0].lower()
    orders = [words, *([words[int(place)] for place in order] for order in wrong)]
    choices = tuple(line[0].upper() + line[1:] + end for line in map(" ".join, orders))
    form = "question" if end == "?" else "sentence"
    given = ", ".join(sorted(words, key=str.lower))
    prompt = f"Put these words in the right order to make a correct English {form}: {given}"
    return Item((user(prompt),), choices[0], choices)


SKILL = Skill(
    about="put words in the order of an English sentence",
    items=items,
    scorer="choice",
    shots=(
        ordered("The milk is in the fridge.", ("013245", "102345", "012435")),
        ordered("Does she live here?", ("0213", "0132", "1203")),
        ordered("Nobody knows the answer.", ("1023", "0132", "0213")),
    ),
    chance=0.25,
)
