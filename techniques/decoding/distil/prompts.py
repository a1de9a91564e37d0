"""Prompts for the target to answer: requests of several kinds, made from templates and lists of words.

Another kind, `own`, is no request at all: the target writes the user's turn itself and then answers it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from techniques.decoding.distil.subjects import (
    ACTIONS,
    FOREIGN,
    LANGUAGES,
    NOUNS,
    PEOPLE,
    PLACES,
    SUBJECTS,
    THINGS,
    WHEN,
    WORKERS,
    held_out,
)


@dataclass(frozen=True)
class Prompt:
    """One user turn, or none."""

    kind: str
    subject: str
    """What it is about: all prompts of one subject lie in the same split."""
    text: str


@dataclass(frozen=True)
class Passage:
    """A text to ask about."""

    subject: str
    text: str


CHATS = (
    "Write a short story about {}.",
    "Give me five tips about {}.",
    "I want to learn more about {}. Where should I start?",
    "Write an email to a colleague about {}.",
    "Compare {} with {}.",
    "What are the advantages and disadvantages of {}?",
    "Explain {} to a ten-year-old child.",
    "Write a poem about {}.",
    "Plan a weekend workshop on {}.",
    "I had a bad experience with {}. What should I do now?",
    "Write a blog post about {} and {}.",
    "Play the part of an expert on {} and answer a beginner's first question.",
    "Describe a day in the life of somebody who works with {}.",
    "Write a dialogue between two friends who disagree about {}.",
    "Suggest a title and three headings for an article on {}.",
    "Write a Python function that has to do with {}, and explain it.",
    "List common mistakes people make with {}.",
    "How has {} changed over the last hundred years?",
)
QUESTIONS = (
    "What is {}?",
    "Why is {} important?",
    "How does {} work?",
    "When did people begin with {}?",
    "Who is famous for {}?",
    "Where in the world is {} most common?",
    "What does science say about {}?",
    "Which tools are needed for {}?",
    "How long does it take to understand {}?",
    "What do {} and {} have in common?",
    "Is it true that {} is dangerous?",
    "What is the most surprising fact about {}?",
    "How much does {} cost?",
    "What should everybody know about {}?",
)
SUMS = (
    "{a} has {x} {t}. {b} gives {a} {y} more, and then {a} sells {z}. How many {t} does {a} have now?",
    "A box holds {x} {t}. How many {t} are in {y} boxes, if {z} of the {t} are broken and thrown away?",
    "{a} buys {x} {t} at {y} dollars each and pays with {m} dollars. How much change does {a} get?",
    "{a} walks {x} kilometres in {y} hours. How far does {a} walk in {z} hours at the same speed?",
    "{x} {t} cost {y} dollars. How much do {z} {t} cost?",
    "{a} is {x} years old, and {b} is {y} years older. How old will they be together in {z} years?",
    "A garden is {x} metres long and {y} metres wide. What are its area and its perimeter?",
    "{a}, {b} and a friend share {m} {t} equally. How many does each of them get, and how many are left over?",
    "A shop sells {x} {t} on Monday and twice as many on Tuesday. After {y} came back, how many were sold in all?",
    "Solve for x: {x}x + {y} = {m}. Show each step.",
    "What is {x} percent of {m}? Explain how you found it.",
    "A train leaves {p} at {y} o'clock and travels at {m} kilometres per hour. How far is it after {z} hours?",
)
TRANSLATIONS = (
    "Translate into {l}: {s}",
    "Translate the following sentences into {l}.\n\n{s} {r}",
    "How do you say this in {l}? {s}",
    "Give me a {l} translation of this text, and explain its words: {s} {r}",
    "Please put this into good {l}: {s}",
)
SUMMARIES = (
    "Summarise this text.",
    "What are the main points of the following text?",
    "Write a one-paragraph summary of the text below.",
    "Shorten the following text to two sentences.",
    "Give the following passage a headline and a short abstract.",
    "Explain in your own words what this passage says.",
    "Rewrite this text in simpler language.",
    "Turn the text below into a list of questions with their answers.",
)
RETRIEVALS = (
    "Answer with the help of the text: what does it say about {}?",
    "Using only the passage below, explain what matters about {}.",
    "Which statements about {} can be found in this document? Quote them.",
    "Here is a search result about {}. What should the reader do next?",
    "Based on the context, answer this question: why does {} matter?",
)
FACTS = (
    "What is {}, and what is it good for?",
    "What does {} look like?",
    "Explain in three sentences what {} is.",
    "Where would you find {}?",
    "What is the difference between {} and {}?",
    "Name three facts about {}.",
    "Why would anybody want to know more about {}?",
    "How would you describe {} to somebody who has never seen one?",
    "Who first wrote about {}, and when?",
    "What is {} made of, and how old can it become?",
)
FROM_FOREIGN = (
    "Translate from {l} to English: {s} {r}",
    "Translate this {l} text into English: {s}",
    "What does this {l} sentence mean in English? {s}",
    "Put the following {l} sentences into plain English.\n\n{s} {r}",
)
EXCERPTS = (
    "Translate from English to {}: {}",
    "Translate this passage into {}.\n\n{}",
    "Say the following in {}: {}",
)
SHORTENED = (
    "Summarise the following text in one sentence.\n{}",
    "Summarise the text below in three sentences.\n{}",
    "Summarise this article in two short sentences.\n{}",
    "Summarise this report and say what its writer wants.\n{}",
)
TOGETHER = (
    "Use the passages to answer this question: what is said about {2}?\nPassage 1: {0}\nPassage 2: {1}",
    "Read both passages and say why {2} matters.\nPassage 1: {0}\nPassage 2: {1}",
    "Which of these two documents tells more about {2}, and what?\nDocument 1: {0}\nDocument 2: {1}",
)
OPENINGS = (
    "Translate from German to English:",
    "Summarise the following text in one sentence.\n\n",
    "Answer the question with the help of the text.\n\nText:",
    "Translate this sentence from French to English:",
    "How many",
    "Write",
    "Summarize the article below in two or three sentences.\n\nThe",
    "Which",
    "Translate from Spanish to English:",
    "Read the passage and answer the question.\n\nPassage: The",
    "A farmer has",
    "You are",
    "Translate the following sentence into French:",
    "What is the main point of this text?\n\n",
    "Explain step by step:",
    "Who",
    "Translate to English: La",
    "Use the document to answer.\n\nDocument 1:",
    "What is the",
    "Describe",
    "Translate from English to German: The",
    "Give a short summary of this story.\n\nWhen",
    "If a train",
    "Why do",
    "Translate from Italian to English:",
    "Based on the following passages, answer the question.\n\nPassage 1: In",
    "Calculate",
    "Rewrite",
    "Translate into Spanish: My",
    "Shorten this report to two sentences.\n\nThe",
    "Anna buys",
    "Where",
    "Put this into English: Der",
    "Here is some information:\n\nThe",
    "How does",
    "Imagine ",
)
"""How the target is made to begin a user's turn that it then writes itself."""


def chat(draw: random.Random) -> Prompt:
    return _about("chat", CHATS, draw)


def question(draw: random.Random) -> Prompt:
    return _about("question", QUESTIONS, draw)


def mathematics(draw: random.Random) -> Prompt:
    first, second = draw.sample(PEOPLE, 2)
    thing = draw.choice(THINGS)
    x, y, z = draw.randint(2, 60), draw.randint(2, 12), draw.randint(2, 9)
    text = draw.choice(SUMS).format(
        a=first, b=second, t=thing, p=draw.choice(PLACES), x=x, y=y, z=z, m=draw.randint(6, 40) * 10
    )
    return Prompt("mathematics", f"{first} and {thing}", text)


def translation(draw: random.Random) -> Prompt:
    worker, place = draw.choice(WORKERS), draw.choice(PLACES)
    text = draw.choice(TRANSLATIONS).format(
        l=draw.choice(LANGUAGES), s=_sentence(worker, place, draw), r=_sentence(draw.choice(PEOPLE), place, draw)
    )
    return Prompt("translation", f"{worker} at {place}", text)


def summary(draw: random.Random, passages: Sequence[Passage]) -> Prompt:
    passage = draw.choice(passages)
    return Prompt("summary", passage.subject, f"{draw.choice(SUMMARIES)}\n\n{passage.text}")


def retrieval(draw: random.Random, passages: Sequence[Passage]) -> Prompt:
    passage = draw.choice(passages)
    request = draw.choice(RETRIEVALS).format(passage.subject)
    return Prompt("retrieval", passage.subject, f"{request}\n\n{passage.text}")


def fact(draw: random.Random) -> Prompt:
    noun = draw.choice(NOUNS)
    other = draw.choice([n for n in NOUNS if n != noun and held_out(n) == held_out(noun)])
    return Prompt("fact", noun, draw.choice(FACTS).format(noun, other))


def foreign(draw: random.Random) -> Prompt:
    """One or two sentences; the second may be one that is kept apart as a first, which flatters this kind a little."""
    language = draw.choice(list(FOREIGN))
    who, did, when = (draw.choice(words) for words in FOREIGN[language])
    others = (draw.choice(words) for words in FOREIGN[language])
    text = draw.choice(FROM_FOREIGN).format(l=language, s=f"{who} {did} {when}.", r=f"{' '.join(others)}.")
    return Prompt("foreign", f"{who} {did}", text)


def excerpt(draw: random.Random, passages: Sequence[Passage]) -> Prompt:
    passage = draw.choice(passages)
    words = passage.text.split()
    first = draw.randrange(max(1, len(words) - 40))
    some = " ".join(words[first : first + draw.randint(25, 40)])
    return Prompt("excerpt", passage.subject, draw.choice(EXCERPTS).format(draw.choice(LANGUAGES), some))


def shortened(draw: random.Random, passages: Sequence[Passage]) -> Prompt:
    passage = draw.choice(passages)
    return Prompt("shortened", passage.subject, draw.choice(SHORTENED).format(passage.text))


def together(draw: random.Random, passages: Sequence[Passage]) -> Prompt:
    """A question about one of two passages of the same split."""
    passage = draw.choice(passages)
    other = draw.choice([p for p in passages if held_out(p.subject) == held_out(passage.subject)])
    both = draw.sample((passage.text, other.text), 2)
    return Prompt("together", passage.subject, draw.choice(TOGETHER).format(*both, passage.subject))


Asked = Callable[[random.Random], Prompt]
Grounded = Callable[[random.Random, Sequence[Passage]], Prompt]


@dataclass(frozen=True)
class Series:
    """Texts that are written one after the other."""

    order: tuple[str, ...]
    """Which sort of prompts the shards take in turn."""
    asked: tuple[Asked, ...]
    grounded: tuple[Grounded, ...]
    new: int
    """Tokens written per text, whether or not an answer ends on the way: the loop that drafts serve goes on too."""


SERIES = (
    Series(
        ("begun", "asked", "begun", "own", "begun", "grounded"),
        (chat, question, mathematics, translation),
        (summary, retrieval),
        new=192,
    ),
    Series(
        ("asked", "grounded"),
        (chat, question, fact, mathematics, foreign),
        (excerpt, shortened, together, retrieval),
        new=96,
    ),
)
"""Long texts that the target mostly begins itself, and beginnings of its answers to many requests."""


def _about(kind: str, templates: Sequence[str], draw: random.Random) -> Prompt:
    subject = draw.choice(SUBJECTS)
    other = draw.choice([s for s in SUBJECTS if s != subject and held_out(s) == held_out(subject)])
    return Prompt(kind, subject, draw.choice(templates).format(subject, other))


def _sentence(who: str, place: str, draw: random.Random) -> str:
    who = who if who in PEOPLE else f"The {who}"
    return f"{who} {draw.choice(ACTIONS)} at {place} {draw.choice(WHEN)}."
