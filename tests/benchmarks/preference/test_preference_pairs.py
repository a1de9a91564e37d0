"""Ids of a pair join at one place, begin and end once, and what is cut is told; prompts are held out whole."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bench.byte_tokenizer import BOS, EOS, PAD, byte_tokenizer
from bench.conversation import Asked
from bench.errors import Unsupported, UsageError
from bench.models import Source, Sources
from benchmarks.preference.core import judge as judges
from benchmarks.preference.core.pair_file import TextPair, read_pairs
from benchmarks.preference.preference_pairs import OWN, Cuts, PreferencePairs, asked_of, ids_of
from techniques.preference.dpo import Dpo
from techniques.preference.sft_on_chosen import SftOnChosen

SOURCES = Sources(Source("tiny:llama"))
TALK = TextPair((("user", "Hi."),), "", "Hello you.", "No.")
PLAIN = TextPair((), "The sky is", " blue.", " low.")


def text(ids: list[int]) -> str:
    return str(byte_tokenizer().decode(ids, skip_special_tokens=False))


class Beginning:
    """Bytes, with a begin-of-text id before and, if it is told so, an end-of-text id behind every text."""

    bos_token_id, eos_token_id, unk_token_id, chat_template = BOS, EOS, None, ""
    all_special_ids: ClassVar[list[int]] = [BOS, EOS]
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, template: str = "", ends: bool = False, begins: bool = True) -> None:
        self.chat_template, self.ends, self.begins = template, ends, begins
        self.bytes = byte_tokenizer()

    def __call__(self, given: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self.bytes(given, add_special_tokens=False)["input_ids"]
        before = [BOS] * (add_special_tokens and self.begins)
        return {"input_ids": [*before, *ids, *[EOS] * (add_special_tokens and self.ends)]}

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool, tokenize: bool, **options: Any) -> str:
        if turns[0]["role"] == "system":
            raise ValueError("no system role")
        assert not tokenize
        said = "".join(f"[{turn['role']}]{turn['content']}" for turn in turns)
        return "<bos>" + said + ("[assistant]" if add_generation_prompt else "<pad>")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self.bytes.decode(ids, skip_special_tokens=skip_special_tokens))


def model_with(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer)


@pytest.mark.parametrize("ends", [False, True])
def test_a_conversation_goes_through_the_template_and_ends_once(ends: bool):
    prompt, chosen, rejected = ids_of(model_with(Beginning("a template", ends)), TALK, chat=True)
    assert text(prompt) == "<bos>[user]Hi.[assistant]"
    assert prompt.count(BOS) == 1
    # <pad> stands behind a turn, but is not among this tokenizer's special ones
    assert text(chosen) == "Hello you.<eos>"
    assert text(rejected) == "No.<eos>"


@pytest.mark.parametrize("chat", [True, False])
def test_without_a_template_it_is_a_transcript(chat: bool):
    tokenizer = Beginning("" if chat else "a template")
    prompt, chosen, _ = ids_of(model_with(tokenizer), TALK, chat)
    assert text(prompt) == "<bos>\n\nHuman: Hi.\n\nAssistant:"
    assert text(chosen) == " Hello you.<eos>"


@pytest.mark.parametrize("ends", [False, True])
def test_plain_texts_join_where_they_did(ends: bool):
    prompt, chosen, rejected = ids_of(model_with(Beginning(ends=ends)), PLAIN, chat=True)
    assert text(prompt) == "<bos>The sky is"
    assert text(chosen) == " blue.<eos>"
    assert text(rejected) == " low.<eos>"


def test_neither_id_is_written_twice():
    pair = TextPair((), "<bos>The sky is", " blue.<eos>", " low.<eos><eos>")
    prompt, chosen, rejected = ids_of(model_with(Beginning()), pair, chat=True)
    assert text(prompt) == "<bos>The sky is"
    assert text(chosen) == " blue.<eos>"
    assert text(rejected) == " low.<eos>"


def test_what_the_model_cannot_be_asked_is_said():
    system = TextPair((("system", "Be kind."), ("user", "Hi.")), "", "a", "b")
    with pytest.raises(Unsupported, match=r"template refuses .*no system role.*chat=false"):
        ids_of(model_with(Beginning("a template")), system, chat=True)
    with pytest.raises(Unsupported, match="makes no token of a prompt"):
        ids_of(model_with(Beginning(begins=False)), TextPair((), "", "a", "b"), chat=True)


def file_of(path: Path, pairs: list[tuple[str, str, str]]) -> str:
    keys = ("prompt", "chosen", "rejected")
    path.write_text("\n".join(json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs))
    return str(path)


def test_prompts_are_held_out_with_all_their_pairs(tmp_path: Path):
    pairs = [(f"Prompt {n % 10}:", f" answer {n}", f" other {n}") for n in range(40)]
    path = file_of(tmp_path / "own.jsonl", pairs)
    built = PreferencePairs(path=path, items=6).build(SOURCES, 0)
    assert len(built["heldout"]) == 6
    assert len(built["train"]) == 40 - 8  # two prompts of four pairs each
    prompts = [{text(pair["prompt"]) for pair in built[name]} for name in ("train", "heldout")]
    assert not prompts[0] & prompts[1]
    assert len(built["train_reference"]) == 32
    assert built["notes"] == {}
    assert PreferencePairs(path=path, items=6).build(SOURCES, 0) == built
    assert PreferencePairs(path=path, items=6).build(SOURCES, 1) != built
    few = PreferencePairs(path=path, items=6, pairs=5).build(SOURCES, 0)
    assert few["train"] == built["train"][:5]
    assert few["heldout"] == built["heldout"]
    with pytest.raises(UsageError, match=r"own.jsonl: 40 usable pairs over 10 prompts; 40 are held out"):
        PreferencePairs(path=path, items=40).build(SOURCES, 0)


def test_what_is_cut_is_told(tmp_path: Path):
    pairs = [
        ("A prompt of thirty characters:", " short", " brief"),
        ("Prompt:", " an answer that is too long", " brief"),
        ("Other prompt:", " the same beginning, one end", " the same beginning, another"),
        ("Third prompt:", " yes", " no"),
        ("Fourth prompt:", " up", " down"),
    ]
    workload = PreferencePairs(path=file_of(tmp_path / "own.jsonl", pairs), items=1, max_prompt=20, max_completion=12)
    built = workload.build(SOURCES, 0)
    every = {text(p["prompt"]): p for name in ("train", "heldout") for p in built[name]}
    # the end of the prompt is kept, and the beginning of the answer
    assert text(every["f thirty characters:"]["chosen"]) == " short<eos>"
    assert text(every["Prompt:"]["chosen"]) == " an answer t"
    assert text(every["Prompt:"]["rejected"]) == " brief<eos>"
    assert "Other prompt:" not in every
    assert built["notes"] == {
        "prompts that lost their beginning: 1 (line 1), 10 tokens in all": "raise max_prompt=20",
        "answers that lost their end: 3 (lines 2, 3)": "raise max_completion=12",
        "pairs left out, as their answers differ only behind what was kept: 1 (line 3)": "raise max_completion=12",
    }
    quality = workload.quality(Dpo(), Dpo().prepare(SOURCES), built, 0, SOURCES.target, None)
    assert quality.notes == built["notes"]


def test_prompts_that_are_the_same_as_far_as_they_are_kept_are_not_on_both_sides(tmp_path: Path):
    pairs = [(f"{n} Prompt with one end:", f" up {n}", f" down {n}") for n in range(4)]
    pairs += [(f"Prompt {n}:", " up", " down") for n in range(4)]
    workload = PreferencePairs(path=file_of(tmp_path / "own.jsonl", pairs), items=4, max_prompt=9)
    built = workload.build(SOURCES, 0)
    train, heldout = ([text(pair["prompt"]) for pair in built[name]] for name in ("train", "heldout"))
    assert " one end:" in heldout
    assert " one end:" not in train
    left = 4 - heldout.count(" one end:")
    assert left
    assert len(train) == 4 - left
    told = f"pairs left out, as what was kept of their prompts is held out: {left}"
    assert built["notes"][told] == "raise max_prompt=9"


def test_a_pair_that_the_model_cannot_read_is_named_by_its_line(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    said = [{"role": "user", "content": "Hi."}]
    for line, role in enumerate(("user", "system"), 1):
        conversation = [{"role": role, "content": "Be."}, *said] if role == "system" else said
        answers = {side: [*conversation, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        with path.open("a") as file:
            file.write(("\n" if line > 1 else "") + json.dumps(answers) + "\n")
    source = model_with(Beginning("a template"))
    source.config = SOURCES.target.config
    workload = PreferencePairs(path=str(path))
    with pytest.raises(Unsupported, match=r"line 3: the model's chat template refuses"):
        list(workload._pairs(source, workload._file().pairs, Cuts()))


def test_a_pair_beyond_the_models_context_is_refused():
    limit = SOURCES.target.config.max_position_embeddings
    long = TextPair((), "a" * (limit - 3), " yes", " no", line=7)
    workload = PreferencePairs(max_prompt=2 * limit)
    with pytest.raises(Unsupported, match=f"^line 7: {limit + 2} tokens do not fit the model's context of {limit}"):
        list(workload._pairs(SOURCES.target, [long], Cuts()))


def test_an_answer_without_a_token_is_refused():
    class Silent(Beginning):
        eos_token_id = None  # type: ignore[assignment]

        def __call__(self, given: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return super().__call__(given.replace("\u200b", ""), add_special_tokens)

    with pytest.raises(Unsupported, match="makes no token of an answer"):
        ids_of(model_with(Silent()), TextPair((), "Hi", "\u200b", " no"), chat=True)


def test_a_begin_of_text_id_survives_the_cut():
    workload = PreferencePairs(max_prompt=5)
    source = model_with(Beginning())
    source.config = SOURCES.target.config
    ((_, pair),) = workload._pairs(source, [PLAIN], Cuts())
    assert text(pair["prompt"]) == "<bos>y is"


def test_lines_left_out_are_told(tmp_path: Path):
    pairs = [(f"Prompt {n}:", " a", " b") for n in range(5)] + [("Prompt:", " a", " a")]
    path = file_of(tmp_path / "own.jsonl", pairs)
    with pytest.raises(UsageError, match="line 6: 'chosen' and 'rejected' are the same"):
        PreferencePairs(path=path).check()
    workload = PreferencePairs(path=path, skip=True, items=2)
    workload.check()
    notes = workload.build(SOURCES, 0)["notes"]
    assert [note.rpartition(": ")[2] for note in notes] == ["1"]


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", "tiny:qwen3"])
def test_our_own_pairs_can_be_learnt(name: str):
    sources = Sources(Source(name))
    workload = PreferencePairs(steps=6, items=8)
    built = workload.build(sources, 0)
    assert (len(built["train"]), len(built["heldout"])) == (32, 8)
    base = SftOnChosen(learning_rate=1e-3)
    quality = workload.quality(base, base.prepare(sources), built, 0, sources.target, None)
    assert all(gate.passed for gate in quality.gates)
    assert quality.metrics["preference_margin"] == pytest.approx(
        [a - b for a, b in zip(quality.metrics["chosen_gain"], quality.metrics["rejected_gain"], strict=True)],
        abs=1e-3,
    )
    lengths = [(len(pair["chosen"]), len(pair["rejected"])) for pair in built["heldout"]]
    assert quality.counts["chosen_tokens"] == sum(chosen for chosen, _ in lengths) / 8
    assert quality.counts["chosen_longer"] == sum(0.5 + 0.5 * ((a > b) - (a < b)) for a, b in lengths) / 8


def test_a_judge_compares_what_is_answered_with_the_baselines_answers(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Asked, str, str]] = []

    def longer(questions: list[tuple[Asked, str, str]]) -> list[float]:
        asked.extend(questions)
        return [float(len(first) - len(second)) for _, first, second in questions]

    monkeypatch.setattr(judges, "named", lambda name, judged, seconds: (longer, name))
    workload = PreferencePairs(judge="tiny:llama", answer=5, items=4, steps=2, batch_size=2, max_prompt=64)
    built = workload.build(SOURCES, 0)
    baseline = SftOnChosen(learning_rate=1e-9)
    first = workload.quality(baseline, baseline.prepare(SOURCES), built, 0, SOURCES.target, None)
    assert first.metrics["win_rate"] == [0.5] * 4  # against itself
    assert first.outputs == built["before"]  # untrained, with the same random numbers
    assert [len(ids) <= 5 for ids in first.outputs] == [True] * 4
    asked.clear()
    technique = Dpo(learning_rate=3e-2)
    found = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, first)
    decode = byte_tokenizer().decode
    theirs = [decode(ids, skip_special_tokens=True) for ids in first.outputs]
    own = [decode(ids, skip_special_tokens=True) for ids in found.outputs]
    assert own != theirs
    assert [(answer, other) for _, answer, other in asked] == list(zip(own, theirs, strict=True))
    # what is asked, not what the model's template makes of it
    assert {one for one, *_ in asked} <= {asked_of(pair) for pair in read_pairs(OWN, False).pairs}
    for (one, *_), pair in zip(asked, built["heldout"], strict=True):
        said = one.turns[-1][1] if one.turns else one.text
        assert said.strip()[-20:] in decode(pair["prompt"])
    assert found.metrics["win_rate"] == [
        0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in zip(own, theirs, strict=True)
    ]
    assert found.texts[0]["output"] == own[0]
    assert "before training" in found.texts[0]["prompt"]


def test_answers_end_as_they_are_taught_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judges, "named", lambda name, judged, seconds: (lambda questions: [0.0] * len(questions), name))
    said = [[("user", f"Hi {n}."), ("assistant", f"A {n}"), ("assistant", f"B {n}")] for n in range(2)]
    turns = [[[{"role": role, "content": text}] for role, text in one] for one in said]
    pairs = [dict(zip(("prompt", "chosen", "rejected"), one, strict=True)) for one in turns]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    workload = PreferencePairs(judge="tiny:llama", answer=4, items=1, path=str(path))
    sources = Sources(Source("tiny:llama"))
    tokenizer = sources.target.tokenizer
    template = tokenizer.chat_template.replace("['content'] +", "['content'] + '<pad>' +")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    built = workload.build(sources, 0)
    assert built["drawn"]["stop"] == PAD == built["train"][0]["chosen"][-1]
    assert EOS in built["drawn"]["banned"]
    assert PAD not in built["drawn"]["banned"]


def test_conversations_beside_plain_prompts_are_refused_where_they_end_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    talk = {"prompt": [{"role": "user", "content": "Hi."}], "chosen": [{"role": "assistant", "content": "A"}]}
    lines = [{**talk, "rejected": [{"role": "assistant", "content": "B"}]}]
    lines += [{"prompt": f"Prompt {n}:", "chosen": " a", "rejected": " b"} for n in range(2)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    sources = Sources(Source("tiny:llama"))
    tokenizer = sources.target.tokenizer
    workload = PreferencePairs(items=2, path=str(path))
    seed = next(n for n in range(20) if len({bool(t) for t, _ in workload.build(sources, n)["asked"]}) == 2)
    template = tokenizer.chat_template.replace("['content'] +", "['content'] + '<pad>' +")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UsageError, match="give two files, or chat=false"):
        workload.build(sources, seed)
    workload.model_copy(update={"chat": False}).build(sources, seed)


def test_what_the_template_refuses_is_left_out_where_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources = Sources(Source("tiny:llama"))
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    monkeypatch.setattr(sources.target.tokenizer, "chat_template", strict + sources.target.tokenizer.chat_template)
    lines = []
    for n in range(6):
        said = [{"role": "system", "content": "Be kind."}] * (n == 4) + [{"role": "user", "content": f"Hi {n}."}]
        sides = {side: [{"role": "assistant", "content": f"{side} {n}"}] for side in ("chosen", "rejected")}
        lines.append({"prompt": said, **sides})
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(Unsupported, match=r"^line 5: .*no system.*skip=true leaves such lines out"):
        PreferencePairs(items=2, path=str(path)).build(sources, 0)
    built = PreferencePairs(items=2, path=str(path), skip=True).build(sources, 0)
    assert len(built["heldout"]) + len(built["train"]) == 5
    assert any(note.startswith("lines left out") and note.endswith(": 1") for note in built["notes"])


def test_no_prompt_left_to_learn_is_one_line(tmp_path: Path):
    pairs = [(f"{n} and the same end", " a", " b") for n in range(6)]
    workload = PreferencePairs(path=file_of(tmp_path / "own.jsonl", pairs), items=2, max_prompt=8)
    with pytest.raises(UsageError, match="lower items"):
        workload.build(SOURCES, 0)


def test_a_judge_that_cannot_judge_is_named_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch):
    def mute(questions: Any) -> list[float]:
        raise UsageError("judge x: its chat template refuses a conversation")

    monkeypatch.setattr(judges, "named", lambda name, judged, seconds: (mute, name))
    with pytest.raises(UsageError, match="refuses a conversation"):
        PreferencePairs(judge="tiny:llama", answer=4, items=2).build(SOURCES, 0)


def test_a_program_that_judges_is_tried_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    q = json.loads(line)\n"
        "    print('a' if len(q['a']) > len(q['b']) else 'b' if len(q['a']) < len(q['b']) else 'tie')\n"
    )
    name = f"command:{sys.executable} {judge}"
    workload = PreferencePairs(judge=name, answer=5, items=4, steps=1, batch_size=2, max_prompt=64, max_completion=16)
    with pytest.raises(UsageError, match="started only where the command line names it"):
        workload.check()
    monkeypatch.setenv("BENCH_COMMAND", name)
    workload.check()
    built = workload.build(SOURCES, 0)
    technique = SftOnChosen()
    found = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, None)
    assert found.metrics["win_rate"] == [0.5] * 4
    assert re.fullmatch(r"command:.*judge\.py, sha256 [0-9a-f]{64}", found.notes["judge"])
    judge.write_text("print('who knows')")
    with pytest.raises(UsageError, match="1 lines on 2 questions"):
        workload.build(SOURCES, 0)


def test_without_a_judge_a_few_prompts_are_answered_to_be_read():
    small: dict[str, Any] = {"items": 4, "steps": 1, "batch_size": 2, "max_prompt": 64, "max_completion": 16}
    technique = SftOnChosen()
    for answers in (3, 0):
        workload = PreferencePairs(answers=answers, answer=5, **small)
        built = workload.build(SOURCES, 0)
        found = workload.quality(technique, technique.prepare(SOURCES), built, 0, SOURCES.target, None)
        assert "win_rate" not in found.metrics
        assert len(found.outputs or []) == answers
        assert len(found.texts) == min(answers, 2)
        assert len(found.metrics.get("repetition", [])) == answers
        if answers:
            assert 0 < found.counts["output_tokens"] <= 5
            assert {"output_tokens_before", "repetition_before"} <= found.counts.keys()


def test_a_wrong_name_is_seen_before_the_run():
    with pytest.raises(UsageError, match="unknown model 'nobody'"):
        PreferencePairs(judge="nobody").check()
