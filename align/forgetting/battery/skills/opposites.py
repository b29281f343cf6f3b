"""Opposites and words of the same meaning."""

from __future__ import annotations

from random import Random

from align.forgetting.battery.choices import parse_pairs, with_wrong_choices
from align.forgetting.battery.skill import Item, Skill, user

# The choices of a question are the answers of its line; opposites are asked in both directions.
OPPOSITES = """
hot: cold; big: small; young: old; happy: sad
tall: short; fast: slow; rich: poor; clean: dirty
full: empty; wet: dry; open: closed; heavy: light
hard: soft; strong: weak; early: late; loud: quiet
dark: bright; thick: thin; cheap: expensive; sharp: blunt
easy: difficult; deep: shallow; wide: narrow; kind: cruel
brave: cowardly; polite: rude; lazy: hardworking; true: false
safe: dangerous; alive: dead; awake: asleep; sweet: bitter
good: bad; rough: smooth; tight: loose; healthy: sick
up: down; in: out; over: under; before: after
always: never; everything: nothing; here: there; now: then
day: night; summer: winter; north: south; east: west
morning: evening; beginning: end; winner: loser; entrance: exit
love: hate; war: peace; heaven: hell; friend: enemy
mother: father; brother: sister; husband: wife; uncle: aunt
boy: girl; king: queen; man: woman; prince: princess
buy: sell; win: lose; push: pull; laugh: cry
come: go; give: take; start: stop; rise: fall
remember: forget; arrive: leave; build: destroy; accept: refuse
increase: decrease; succeed: fail; attack: defend; borrow: lend
near: far; first: last; more: less; yes: no
guilty: innocent; public: private; simple: complicated; major: minor
generous: stingy; proud: humble; ancient: modern; permanent: temporary
"""

SYNONYMS = """
big: large; happy: glad; quick: fast; smart: clever
mad: angry; tired: sleepy; pretty: beautiful; scared: afraid
ill: sick; wealthy: rich; odd: strange; silent: quiet
little: small; correct: right; difficult: hard; simple: easy
brave: courageous; funny: humorous; famous: renowned; unhappy: sad
begin: start; shut: close; speak: talk; shout: yell
finish: end; jump: leap; look: watch; help: assist
purchase: buy; repair: fix; gather: collect; throw: toss
choose: select; respond: reply; hurry: rush; hide: conceal
construct: build; destroy: ruin; permit: allow; own: possess
house: home; car: automobile; road: street; shop: store
kid: child; mom: mother; physician: doctor; instructor: teacher
gift: present; error: mistake; job: work; trip: journey
town: city; woods: forest; ocean: sea; stone: rock
rug: carpet; sofa: couch; cup: mug; pants: trousers
rabbit: bunny; hound: dog; hog: pig; hen: chicken
film: movie; picture: image; story: tale; tune: melody
nearly: almost; often: frequently; maybe: perhaps; quickly: rapidly
fortunate: lucky; courteous: polite; stubborn: obstinate; lazy: idle
huge: enormous; old: ancient; new: recent; empty: vacant
wise: sensible; honest: truthful; cruel: brutal; calm: peaceful
terrible: awful; wonderful: marvelous; delicious: tasty; risky: dangerous
dread: fear; rage: anger; joy: happiness; sorrow: sadness
foe: enemy; pal: friend; chief: boss; thief: robber
inform: tell; obtain: get; keep: retain; show: display
require: need; attempt: try; use: utilize; join: connect
pardon: forgive; respect: admire; detest: hate; adore: love
"""

OPPOSITE = 'What is the opposite of "{}"? Answer with one word.'
SYNONYM = 'What is another word for "{}"? Answer with one word.'


def items() -> list[Item]:
    """An item for each word whose opposite is asked, and for each whose synonym is."""
    random = Random("opposites")
    lines = [(OPPOSITE, parse_pairs(line)) for line in OPPOSITES.strip().splitlines()]
    lines += [(OPPOSITE, {second: first for first, second in pairs.items()}) for _, pairs in lines]
    lines += [(SYNONYM, parse_pairs(line)) for line in SYNONYMS.strip().splitlines()]
    return [
        Item((user(prompt.format(word)),), answer, choices)
        for prompt, pairs in lines
        for word, answer, choices in with_wrong_choices(pairs, random)
    ]


SKILL = Skill(
    about="the opposite of a word, or another word of the same meaning",
    items=items,
    scorer="choice",
    shots=(
        Item((user(OPPOSITE.format("ugly")),), "beautiful", ("famous", "beautiful", "round", "hungry")),
        Item((user(SYNONYM.format("boat")),), "ship", ("train", "desk", "letter", "ship")),
        Item((user(OPPOSITE.format("doubtful")),), "certain", ("certain", "warm", "hungry", "busy")),
    ),
    chance=0.25,
)
