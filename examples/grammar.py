"""A seeded grammar of short customer-service dialogues, and the stated preference between responses.

Prompts have the HH form, "\\n\\nHuman: …\\n\\nAssistant:"; responses start with one space. Responses vary
in quality on purpose: a model that learns these texts can be moved by preferences.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from examples.catalogue import FAULTS, FIXES, NAMES, PRODUCTS
from examples.phrases import OFFERS, REQUESTS, RULES

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
HELD_OUT_ONE_IN = 20

WARMTH_WEIGHT, WARMTH_CAP = 1.0, 2
OFFER_WEIGHT = 1.5
TOPIC_WEIGHT = 0.5
RUDENESS_WEIGHT, RUDENESS_CAP = 1.5, 2
REPETITION_WEIGHT = 3.0

WARM = re.compile(r"\b(sorry|thank|understand|happy to|gladly|lovely|pleasure|we hope|please)\b", re.I)
RUDE = re.compile(
    r"\b(calm down|own fault|not my problem|stop complaining|silly|should have read|such a fuss)\b", re.I
)
OFFER = re.compile(
    r"\bI (?:will|can) (?:send|refund|arrange|replace|call|collect|exchange|cancel|email|book)\b", re.I
)

_INTENTS = {
    "fault": 8, "delivery": 3, "wrong": 2, "billing": 2, "exchange": 2, "advice": 2, "cancel": 2,
}  # fmt: skip
_PLURAL_FORMS = {
    "s": ("s", ""), "has": ("has", "have"), "is": ("is", "are"), "was": ("was", "were"),
    "does": ("does", "do"), "it": ("it", "they"), "them": ("it", "them"), "its": ("its", "their"),
    "this": ("this", "these"),
}  # fmt: skip
# What a response is made of: opening, body and close are drawn apart from each other, so that
# warmth, help and rudeness do not always come together.
_OPENINGS = {"<warm>": 4, "<rude>": 3, "<curt>": 2, "": 4}
_BODIES = {"{offer}": 4, "{fix}": 4, "{fix} {offer}": 2, "<vague>": 4, "<off_topic>": 3, "": 1}
_CLOSES = {"<goodbye>": 3, "<close>": 2, "<rude>": 1, "": 6}
_REPETITION_SHARE = 0.12
_TWO_TURN_SHARE = 0.15


@dataclass(frozen=True)
class Product:
    name: str
    category: str
    plural: bool

    def with_article(self, adjective: str = "") -> str:
        phrase = f"{adjective}{self.name}"
        if self.plural:
            return phrase
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Dialogue:
    """One exchange; `prompt + response` is the whole text."""

    prompt: str
    response: str


def _read_products() -> list[Product]:
    return [
        Product(name.removesuffix("*"), category, plural=name.endswith("*"))
        for category, names in PRODUCTS.items()
        for name in names
    ]


CATALOGUE = _read_products()
# Longest first: "coffee table" is not a table in a sentence about coffee.
_PRODUCT_NAMES = re.compile(
    r"\b("
    + "|".join(re.escape(product.name) for product in sorted(CATALOGUE, key=lambda each: -len(each.name)))
    + r")\b",
    re.I,
)


class Scene:
    """One customer's case: the product, what is wanted, and who asks. Writes prompts and responses."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._product, self._other = rng.sample(CATALOGUE, 2)
        self._intent = _draw(rng, _INTENTS)
        tones = ["polite", "terse"] if self._intent == "advice" else ["polite", "terse", "angry", "worried"]
        self._tone = rng.choice(tones)
        self._name = rng.choice(NAMES)
        self._introduced = False

    def prompt(self) -> str:
        """The whole prompt: one turn, or now and then two."""
        text = f"{HUMAN} {self._request()}{ASSISTANT}"
        if self._rng.random() < _TWO_TURN_SHARE:
            text += f"{self.response()}{HUMAN} {self._write('<follow_up>')}{ASSISTANT}"
        return text

    def response(self) -> str:
        """A response of drawn quality: warm or rude, of help or not, at times repetitive."""
        parts = [_draw(self._rng, choices) for choices in (_OPENINGS, _BODIES, _CLOSES)]
        sentences = [text for part in parts if (text := self._write(part))]
        if not sentences:
            sentences = [self._write("<curt>")]
        if self._rng.random() < _REPETITION_SHARE:
            sentences += [sentences[-1]] * self._rng.randint(1, 2)
        return " " + " ".join(sentences)

    def _request(self) -> str:
        greeting = self._rng.choice(RULES["greeting"])
        self._introduced = "{name}" in greeting
        request = self._rng.choice(REQUESTS[self._intent])
        text = self._write(f"{greeting}{request} <{self._tone}>")
        if greeting == "Hi, ":
            return text if request.startswith("I ") else f"Hi, {text[4].lower()}{text[5:]}"
        return text

    def _write(self, template: str) -> str:
        """Replaces rules and slots until none is left."""
        while match := re.search(r"<(\w+)>|\{(, )?(\w+)\}", template):
            rule, comma, slot = match.groups()
            text = self._rng.choice(RULES[rule]) if rule else self._fill(slot, comma or "")
            template = template[: match.start()] + text + template[match.end() :]
        template = template.strip()
        return re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), template)

    def _fill(self, slot: str, comma: str) -> str:
        product = self._product
        if slot in _PLURAL_FORMS:
            return _PLURAL_FORMS[slot][product.plural]
        if slot == "name":
            return f"{comma}{self._name}" if self._introduced or not comma else ""
        written = {
            "p": product.name,
            "a_p": product.with_article(),
            "a_new_p": product.with_article("new "),
            "other": self._other.name,
            "a_other": self._other.with_article(),
        }
        if slot in written:
            return written[slot]
        by_case = {
            "fault": FAULTS[product.category],
            # Advice on handling the goods answers only who asks about handling them.
            "fix": FIXES[product.category] if self._intent in {"fault", "advice"} else RULES["vague"],
            "offer": OFFERS[self._intent],
        }
        return self._rng.choice(by_case[slot])


def write_dialogues(seed: int) -> Iterator[Dialogue]:
    """Endless dialogues; the same seed gives the same ones."""
    rng = random.Random(seed)  # noqa: S311 - texts, not secrets
    while True:
        scene = Scene(rng)
        yield Dialogue(prompt=scene.prompt(), response=scene.response())


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept from all training: about one in twenty, by its own digest."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0


def gold_reward(prompt: str, response: str) -> float:
    """The stated preference: what a customer would like, as a sum of things that can be pointed at.

    + 1.0 for each different warm word ("sorry", "thank", …), two at most
    + 1.5 for a concrete offer ("I will send …", "I can refund …")
    + 0.5 for naming the product of the prompt, - 0.5 for naming only other products
    - 1.5 for each different rude phrase ("calm down", …), two at most
    - 3.0 times the share of word triples that were there before
    Nothing counts length: neutral text adds nothing, and text said twice loses.
    """
    warmth = min(len({found.lower() for found in WARM.findall(response)}), WARMTH_CAP)
    rudeness = min(len({found.lower() for found in RUDE.findall(response)}), RUDENESS_CAP)
    offer = OFFER.search(response) is not None
    return (
        WARMTH_WEIGHT * warmth
        + OFFER_WEIGHT * offer
        + TOPIC_WEIGHT * _topic_match(prompt, response)
        - RUDENESS_WEIGHT * rudeness
        - REPETITION_WEIGHT * _repeated_share(response)
    )


def _topic_match(prompt: str, response: str) -> int:
    asked = {name.lower() for name in _PRODUCT_NAMES.findall(prompt)}
    named = {name.lower() for name in _PRODUCT_NAMES.findall(response)}
    if not named:
        return 0
    return 1 if asked & named else -1


def _repeated_share(response: str) -> float:
    words = re.findall(r"\w+", response.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _draw(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
