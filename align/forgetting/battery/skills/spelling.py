"""Spelling: the correct form of a misspelt word, plurals, past tenses, words letter by letter."""

from __future__ import annotations

from align.forgetting.battery.skill import Item, Skill, user

# the word, then three misspellings; the first of these stands in the prompt and is a choice too
MISSPELT = """
believe: beleive belive beleave
friend: freind frend friand
receive: recieve receve receeve
because: becuase becase becouse
beautiful: beatiful beautifull beutiful
definitely: definately definitly definetely
separate: seperate seperete saparate
tomorrow: tommorow tommorrow tomorow
necessary: neccessary necesary neccesary
different: diffrent diferent differant
until: untill untell antil
weird: wierd weerd wiard
business: buisness bussiness busines
calendar: calender calandar calendor
government: goverment govermant goverrnment
environment: enviroment enviromment environmant
immediately: immediatly imediately immedietly
language: langauge languege langage
surprise: suprise surprisse surprice
library: libary librery liberary
February: Febuary Februery Febuarry
Wednesday: Wensday Wedesday Wenesday
beginning: begining beggining beginnning
knowledge: knowlege knowladge nowledge
disappear: dissapear disapear dissappear
occasion: ocassion occassion ocasion
possible: possable posible possibel
successful: succesful successfull sucessful
address: adress addres adres
restaurant: restaraunt resturant restorant
island: iland iseland ilsand
answer: anser answear awnser
daughter: dauther doughter daugther
enough: enouf enogh inough
people: poeple peaple peeple
really: realy raelly reely
truly: truely trully truley
argument: arguement argumant argumment
foreign: foriegn foregn forein
height: hieght heigth hight
science: sience scince sciense
special: speciel spesial speshial
strength: strenght strengh strenth
neighbour: nieghbour neibour neigbour
breakfast: brekfast breakfest brakefast
minute: minite minutte minut
picture: pictre pickture pictuer
question: quesiton qestion quastion
remember: rember remeber rememmber
vegetable: vegtable vegatable vegeteble
"""
# the plural, then three forms that are none
PLURALS = """
child: children childs childes childrens
man: men mans mens manes
woman: women womans womens womanes
foot: feet foots feets footes
tooth: teeth tooths teeths toothes
mouse: mice mouses mices mousies
goose: geese gooses geeses goosies
knife: knives knifes knive knifies
wife: wives wifes wive wifies
leaf: leaves leafs leave leafes
wolf: wolves wolfs wolve wolfes
shelf: shelves shelfs shelve shelfes
half: halves halfs halve halfes
thief: thieves thiefs thieve thiefes
loaf: loaves loafs loave loafes
city: cities citys cityes citis
baby: babies babys babyes babis
story: stories storys storyes storis
lady: ladies ladys ladyes ladis
family: families familys familyes familis
country: countries countrys countryes countris
party: parties partys partyes partis
cherry: cherries cherrys cherryes cherris
berry: berries berrys berryes berris
fly (the insect): flies flys flyes flis
box: boxes boxs boxies boxen
fox: foxes foxs foxies foxen
bus: buses buss busies busen
dish: dishes dishs dishies dishen
church: churches churchs churchies churchen
watch: watches watchs watchies watchen
glass: glasses glasss glassies glassen
brush: brushes brushs brushies brushen
potato: potatoes potatos potati potaties
tomato: tomatoes tomatos tomati tomaties
hero: heroes heros heroi heroies
key: keys keies keyes kies
boy: boys boies boyes bois
day: days daies dayes dayies
toy: toys toies toyes tois
monkey: monkeys monkeies monkeyes monkis
piano: pianos pianose piani pianies
radio: radios radiose radii radioies
roof: roofs roovs roofes rooveses
chief: chiefs chievs chiefes chieveses
person: people persones personen peopel
sheep: sheep sheeps sheepes sheepen
deer: deer deers deeres deeren
ox: oxen oxies oxs oxans
fireman: firemen firemans firemens firemanes
"""
# the past tense, then three forms that are none
PASTS = """
go: went goed wented goned
see: saw seed sawed seened
come: came comed camed comened
take: took taked tooked takened
give: gave gived gaved givened
eat: ate eated ated eatened
drink: drank drinked dranked drunked
sing: sang singed sanged sunged
swim: swam swimmed swammed swummed
run: ran runned ranned runed
write: wrote writed wroted writened
speak: spoke speaked spoked speakened
break: broke breaked broked breakened
choose: chose choosed chosed choosened
drive: drove drived droved drivened
ride: rode rided roded ridened
fly: flew flyed flewed flowned
grow: grew growed grewed grewen
know: knew knowed knewed knewen
throw: threw throwed threwed threwen
draw: drew drawed drewed drewen
buy: bought buyed boughted buyened
bring: brought bringed broughted brunged
think: thought thinked thoughted thoughten
teach: taught teached taughted taughten
catch: caught catched caughted caughten
keep: kept keeped kepted keepted
sleep: slept sleeped slepted sleepted
feel: felt feeled felted feelted
leave: left leaved lefted leavt
build: built buildened builted buildt
send: sent sended sented sendt
lose: lost losed losted loset
find: found finded foundened findt
hold: held holded helded heldt
stand: stood standed stooded standt
tell: told telled tolded tellt
sell: sold selled solded sellt
make: made maked maded maket
hear: heard heared hearded heart
stop: stopped stoped stopened stoppd
plan: planned planend plannened plannd
try: tried tryed trid tryd
cry: cried cryed crid cryd
study: studied studyed studid studyd
carry: carried carryed carrid carryd
play: played plaied playened playd
begin: began beginned beganned begunned
forget: forgot forgetted forgotted forgeted
hide: hid hided hidded hidened
"""
# words of the same length in groups; each is the right answer once
LETTERS = """
coat cost cast colt
lamp lump limp damp
ship shop chip chop
bread break dream cream
house mouse horse nurse
light night right fight
stone store shore score
table cable fable gable
water later wafer cater
plant plane plate place
green greet great treat
chair chain chart charm
sheep sleep steep sweep
brown crown crowd frown
train brain grain drain
share shape shame shade
match march patch watch
spoon spoil sport spore
clock block black slack
"""


def items() -> list[Item]:
    """All four kinds."""
    misspelt = [
        Item((user(f"Correct the spelling of this word: {wrong[0]}"),), word, (word, *wrong))
        for word, wrong in _rows(MISSPELT)
    ]
    plurals = [
        Item((user(f"What is the plural of '{word}'? Answer with one word."),), forms[0], tuple(forms))
        for word, forms in _rows(PLURALS)
    ]
    pasts = [
        Item((user(f"What is the past tense of '{word}'? Answer with one word."),), forms[0], tuple(forms))
        for word, forms in _rows(PASTS)
    ]
    return [*misspelt, *plurals, *pasts, *letters()]


def letters() -> list[Item]:
    """Words with hyphens between their letters."""
    found = []
    for group in LETTERS.strip().splitlines():
        choices = tuple("-".join(word) for word in group.split())
        for word, answer in zip(group.split(), choices, strict=True):
            found.append(Item((user(f"Spell the word '{word}' with hyphens between the letters."),), answer, choices))
    return found


def _rows(table: str) -> list[tuple[str, list[str]]]:
    rows = [line.split(": ") for line in table.strip().splitlines()]
    return [(word, forms.split()) for word, forms in rows]


SKILL = Skill(
    about="spell: correct a word, form a plural or a past tense, spell letter by letter",
    items=items,
    scorer="choice",
    shots=(
        Item((user("Correct the spelling of this word: agian"),), "again"),
        Item((user("What is the plural of 'penny'? Answer with one word."),), "pennies"),
        Item((user("What is the past tense of 'win'? Answer with one word."),), "won"),
        Item((user("Spell the word 'dog' with hyphens between the letters."),), "d-o-g"),
    ),
    chance=0.33,  # of models with random weights: the mean over few tokens strays further
    per_token=True,  # a word that is spelled right has a token or two, one that is not has more
)
