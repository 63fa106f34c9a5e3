"""The words that the demo's rows use, divided into training words and held-out words.

Whether a word is held out depends only on its sha256, so adding words does not change the split of the other words.
"""

import hashlib
from random import Random

NAMES = """
Ada Aino Alba Amir Anna Anton Arne Asha Bela Bruno Carla Carlos Chen Clara Dana Daniel Dario David Diego Dora Edith
Elena Elias Ella Emil Emma Erik Esther Eva Farid Felix Fiona Frida Gita Greta Gustav Hana Hanna Hassan Hector Heidi
Helen Hugo Ida Igor Ines Ingrid Irene Isabel Ivan Jack Jakob James Jana Jonas Jorge Josef Julia Karim Karl Kaya Kemal
Kira Klara Lara Laura Layla Lea Leo Liam Lina Linus Lisa Livia Lucia Luis Luka Magnus Maja Marco Maria Marta Matteo
Max Maya Mei Mila Mina Mira Mohan Nadia Nils Nina Noah Nora Olga Oliver Omar Oscar Otto Paula Pavel Peter Petra Priya
Rafael Rana Ravi Rita Robin Rosa Ruben Ruth Samir Sara Selma Silas Simon Sofia Sonja Stefan Sven Tara Tariq Theo
Thomas Tomas Ulla Vera Victor Viola Walter Wanda Xenia Yara Yusuf Zara Zoe
""".split()

CITIES = """
Accra Aden Agra Amman Ankara Athens Baku Bari Basel Beirut Bergen Berlin Bern Bilbao Bogota Bonn Boston Bremen Brest
Cairo Cali Chicago Cork Cusco Dakar Delhi Denver Doha Dresden Dublin Essen Geneva Genoa Ghent Graz Haifa Hamburg Hanoi
Havana Helsinki Izmir Jaipur Kiel Kobe Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon London Lyon Madrid Malaga Manila
Milan Minsk Mumbai Munich Nairobi Naples Nantes Odessa Osaka Oslo Ottawa Padua Paris Perth Pisa Porto Prague Quito
Riga Rome Sofia Tallinn Tampa Tirana Tokyo Toledo Tunis Turin Utrecht Valencia Vienna Vilnius Warsaw York Zagreb
Zurich
""".split()

NOUNS = """
anchor apple apron arrow badge ball banana banner barrel basin basket bead beaker bell belt bench blanket blade boat
bolt bonnet book boot bottle bowl bracket branch bread brick bridge broom bucket button cabin cable cactus candle
canoe canvas carpet carrot cart castle chain chair chisel clock cloud coat coin comb compass cork cotton crate crayon
cradle cup curtain cushion desk dial diamond door dragon drawer drum eagle engine falcon feather fence ferry fiddle
flag flask flower flute forest fork fountain frame garden gate glove goat guitar hammer harbor harp hat helmet hinge
hook horn hornet island ivory jacket jar jewel jug kettle key kite kitten ladder ladle lamp lantern leaf lemon lens
lever lizard lock locket magnet mango map marble mask meadow melon mill mirror mitten motor mug napkin needle nest
nickel oar olive orange orchid otter oven paddle painting panel parrot pebble pedal pen pencil pepper piano pigeon
pillow pin pipe pitcher plank planet plate pocket pole pot potato puddle pump puppet quilt rabbit racket radish raft
ribbon ring river robe robin rocket roof rope saddle sail sandal saucer saw scarf seed shell shelf shield ship shirt
shovel sled sleeve slipper soap spade spider sponge spoon spring stamp star statue stone stool stove string sweater
table tablet tent thimble thread ticket tiger tile torch towel tower trumpet trunk tulip tunnel turnip valley vase
vest violin wagon wallet walnut wheel whistle willow window wing zipper
""".split()

VERBS = """
answer ask bake bark boil borrow brush call carry carve chew clean climb collect color comb cook count cover crawl
cross dance deliver dig draw dress dust explain fetch fill finish fix float fold follow gather guard guess
hammer help hunt invent jump kick knock laugh launch learn lift listen load look march measure mend mix open order
pack paint park pass peel pick plant play polish pour press print pull push rain reach repair rest roast rock roll row
sail scrub search shout sketch skip smell smile sprint stack start stir stretch sweep tap taste thank tickle
touch train travel trust twist visit wait walk wander wash watch water weigh whisper wink wipe wonder work wrap
""".split()

# The verbs above whose past tense is irregular or has two forms. Tasks about the past tense do not use them.
IRREGULAR = {"dig", "draw", "sweep", "learn", "smell"}
HELD_OUT_SHARE = 5  # one word in five is held out

ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr pl sh sl sp st th tr".split()
VOWELS = "a e i o u ai ea ee oo ou".split()
SYLLABLES = [onset + vowel for onset in ONSETS for vowel in VOWELS]
ENDINGS = ["", "", "n", "r", "l", "t", "m", "s", "ck", "nd", "sh", "y", "x"]


def held_out(word: str) -> bool:
    """Return whether a word is held out, which means that it may appear only in validation rows."""
    return hashlib.sha256(word.lower().encode()).digest()[0] % HELD_OUT_SHARE == 0


def pool(words: list[str], *, held: bool) -> list[str]:
    """Return a list's held-out words or, if `held` is false, all its other words, in the list's order."""
    return [word for word in dict.fromkeys(words) if held_out(word) == held]


def invented(rng: Random) -> str:
    """Return a pronounceable word that is not held out and is usually not a real word."""
    while True:
        word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 2, 2, 3]))) + rng.choice(ENDINGS)
        if len(word) > 2 and not held_out(word):
            return word


def plural(noun: str) -> str:
    """Return the plural of a noun in NOUNS.

    Potato, mango and nouns that end in a sibilant take -es. A final y after a consonant becomes -ies. Leaf, scarf and
    shelf end in -ves in the plural. All other nouns take -s.
    """
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun in {"potato", "mango"}:
        return noun + "es"
    return noun[:-1] + "ves" if noun in {"leaf", "scarf", "shelf"} else noun + "s"


def past(verb: str) -> str:
    """Return the regular past tense of a verb that is in VERBS but not in IRREGULAR."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in {"scrub", "skip", "stir", "tap", "wrap"} else "") + "ed"
