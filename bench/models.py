"""Sources: a name -> weights and tokenizer, from the package, the hub, a folder or shapes alone.

A technique gets sources, not loaded models: `source.layers()` yields one layer's tensors at a time, so that a
model can be built in another form without ever existing in full. The names are those of `model_names`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import embedded, embedded_draft, hub_model, text, weight_files
from bench.errors import ModelError, Unsupported
from bench.model_names import EMBEDDED, kind_of
from bench.shapes import SYNTHETIC, TINY

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Source:
    """Where one model comes from. Nothing is loaded before it is asked for."""

    name: str
    role: str = "target"
    device: str = "cpu"
    dtype: str = "float32"
    log: list[dict[str, Any]] = field(default_factory=list, compare=False, repr=False)
    """Every reading of weights, for the record."""
    commit: str | None = None
    """Of a hub's model: the version that the run has read already. None: whichever the name stands for now."""

    @property
    def kind(self) -> str:
        """`embedded`, `tiny`, `synthetic`, `folder` or `hub`."""
        return kind_of(self.name)

    @property
    def origin(self) -> str:
        """How the weights came to be; it stands beside every quality figure."""
        if self.kind == "embedded":
            return EMBEDDED[self.name].ORIGIN
        return "random weights" if self.is_random else f"{self.kind} weights"

    @property
    def frequent_tokens(self) -> list[int]:
        """Ids that a reduced output head may be cut to, the most frequent first.

        The draft of the embedded model brings those of its target's own texts; of other models they are counted in
        the embedded text.
        """
        if self.name == embedded_draft.NAME:
            return embedded_draft.frequent_tokens()
        counts = Counter(chain.from_iterable(self.tokenizer(list(text.documents("train").values()))["input_ids"]))
        return [token for token, _ in counts.most_common()]

    @property
    def is_random(self) -> bool:
        return self.kind in {"tiny", "synthetic"}

    @property
    def on_4_bit_grid(self) -> bool:
        """Whether the weights were in 4 bits before: what another 4-bit type costs cannot be told from them."""
        return self.name == embedded.NAME

    @cached_property
    def path(self) -> str:
        """Folder or hub id that `transformers` reads."""
        if self.kind == "embedded":
            return str(EMBEDDED[self.name].folder())
        return self._hub.repo if self._hub else self.name

    @cached_property
    def _hub(self) -> hub_model.HubModel | None:
        return hub_model.parse(self.name) if self.kind == "hub" else None

    @cached_property
    def revision(self) -> str | None:
        """The commit that all of a hub's model is read of; None of any other model.

        Raises:
            ModelError: the hub has no such model or revision, or does not answer.
        """
        return self._hub and (self.commit or hub_model.commit(self._hub) or self._hub.revision)

    @property
    def version(self) -> dict[str, Any]:
        """Its name and its `revision`, for the manifest; where that is None, `reason` says why."""
        found = {"name": self.name, "revision": self.revision}
        if self.revision:
            return found
        return {**found, "reason": "not kept by commit in the hub's cache" if self._hub else "not of a hub"}

    @cached_property
    def config(self) -> Any:
        """The `transformers` configuration.

        Raises:
            ModelError: it cannot be found, or the network is needed and not there.
        """
        from transformers import AutoConfig

        if self.is_random:
            kind, _, shape = self.name.partition(":")
            values = dict((TINY if kind == "tiny" else SYNTHETIC)[shape])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        return self._read(AutoConfig)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer; random networks read bytes."""
        if self.is_random:
            from bench.byte_tokenizer import byte_tokenizer

            return byte_tokenizer()
        from transformers import AutoTokenizer

        return self._read(AutoTokenizer)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def model(self, dtype: torch.dtype | None = None, attention: str = "sdpa", **options: Any) -> nn.Module:
        """The whole network on the source's device, in eval mode, without dropout.

        Args:
            dtype: of the weights; the run's if None.
            attention: name of the attention backend, as `transformers` knows it; `eager` is taken for a network that
                does not compute by sdpa (attention sinks, capped logits).
            options: further ones of `from_pretrained`, as `quantization_config`, for a library's own loading.

        Raises:
            ModelError: the weights cannot be read, or are not those of the configuration.
        """
        from transformers import AutoModelForCausalLM

        from bench import networks

        dtype = dtype or self.torch_dtype
        attention = networks.backend(self.config, attention)
        if self.is_random:
            model: Any = networks.random(self.config, attention, dtype, self.device)
            if options:
                options |= {"config": self.config, "state_dict": model.state_dict(), "attn_implementation": attention}
                model = type(model).from_pretrained(None, dtype=dtype, **options)
        else:
            if options:  # a library that quantises what it reads does not look at its shape
                self._refuse_other_shapes()
            options |= {"dtype": dtype, "attn_implementation": attention}
            model = networks.own(self._network(AutoModelForCausalLM, **options).to(self.device))
        self._log("model", sum(p.numel() * p.element_size() for p in model.parameters()))
        return networks.still(model)

    def other_model(self, auto: Any) -> nn.Module:
        """The network of another head, as `AutoModelForSequenceClassification` reads it, in eval mode.

        Raises:
            ModelError: the weights cannot be read, or are not those of the configuration.
        """
        from bench import networks

        model: Any = self._network(auto, dtype=self.torch_dtype).to(self.device)
        self._log("model", sum(p.numel() * p.element_size() for p in model.parameters()))
        return networks.still(model)

    def empty(self, attention: str = "sdpa") -> nn.Module:
        """The network of `model()` with its weights on the meta device, to be filled from `layers()`."""
        from bench import networks

        return networks.still(networks.empty(self.config, networks.backend(self.config, attention), self.torch_dtype))

    def layers(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One group of tensors at a time: `("model.layers.3", {"self_attn.q_proj.weight": ...})`.

        Tensors read lie on the CPU, random ones on the source's device, where they are made. Those outside the layers
        come first, each under its own module. Names are those of the network that `model()` builds; a tied output
        head is left out.

        Raises:
            ModelError: a tensor is missing, or of another shape than the configuration asks for.
        """
        for prefix, names in self._groups().items():
            tensors = {name[len(prefix) + 1 :]: self._tensor(name) for name in names}
            self._log(prefix, sum(t.numel() * t.element_size() for t in tensors.values()))
            yield prefix, tensors

    @cached_property
    def parameters(self) -> int:
        """Number of weights, tied ones once, from the shapes alone."""
        return sum(t.numel() for t in self._skeleton.values())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that names these weights: of the tensors (embedded), the shapes (random) or the files."""
        if self.kind == "embedded":
            return EMBEDDED[self.name].fingerprint()
        if self.is_random:
            from bench.networks import RANDOM_SEED

            text = f"{self.name} {RANDOM_SEED} {sorted((n, tuple(t.shape)) for n, t in self._skeleton.items())}"
            return hashlib.sha256(text.encode()).hexdigest()
        digest = hashlib.sha256()
        for file in self._weight_files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _network(self, auto: Any, **options: Any) -> Any:
        """The network with all its weights: the library would fill in random ones for those that are not there."""
        options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = self._read(auto, **options)
        shapes = {name: (there, wanted) for name, there, wanted in found["mismatched_keys"]}
        weight_files.refuse_unfit(self.name, shapes, found["missing_keys"])
        return model

    def _refuse_other_shapes(self) -> None:
        """Compare the headers of the files with the network, by the names that both know."""
        there = weight_files.shapes(self.name, self._weight_files)
        shapes = {
            name: (there[spelling], tuple(tensor.shape))
            for name, tensor in self._skeleton.items()
            for spelling in weight_files.spellings(name)
            if spelling in there
        }
        weight_files.refuse_unfit(self.name, shapes, ())

    def _read(self, auto: Any, **options: Any) -> Any:
        from safetensors import SafetensorError

        try:
            options |= {"revision": self.revision} if self.revision else {}
            return auto.from_pretrained(self.path, trust_remote_code=False, **options)
        except SafetensorError as error:
            weight_files.check(self.name, self._weight_files)  # names the file
            raise ModelError(f"model {self.name!r}: its weights are damaged: {error}") from error
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"model {self.name!r} cannot be read: {first} "
                f"(allowed: smollm2-135m, tiny:*, synthetic:*, a hub id, a folder with config.json and safetensors)"
            ) from error

    @cached_property
    def _skeleton(self) -> dict[str, Tensor]:
        """The network's tensors on the meta device, tied ones once."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return dict(model.named_parameters())  # tied parameters appear once

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self._skeleton:
            layer = re.match(r"(.*?\.(?:layers|h)\.\d+)\.", name)
            groups.setdefault(layer[1] if layer else name.rpartition(".")[0], []).append(name)
        return groups

    def _tensor(self, name: str) -> Tensor:
        if self.is_random:
            from bench.networks import random_tensor

            kind = self.device.partition(":")[0]
            return random_tensor(name, tuple(self._skeleton[name].shape), kind).to(self.torch_dtype)
        found = weight_files.tensor(self.name, self._weight_files, weight_files.spellings(name))
        weight_files.refuse_unfit(self.name, {name: (found.shape, self._skeleton[name].shape)}, ())
        return found.to(self.torch_dtype)

    @cached_property
    def _weight_files(self) -> list[Path]:
        return weight_files.of(self.name, self.path, self.revision)

    def _log(self, what: str, count: int) -> None:
        self.log.append({"role": self.role, "name": self.name, "read": what, "bytes": count})


@dataclass(frozen=True)
class Sources:
    """The models of a run, by role. Every weight read is on record."""

    target: Source
    others: Mapping[str, Source] = field(default_factory=dict)
    seed: int = 0
    """Of everything random that a technique adds to a model: adapters, projections."""

    def get(self, role: str) -> Source:
        """The source of a helper network.

        Raises:
            Unsupported: the run names none for this role.
        """
        if role not in self.others:
            raise Unsupported(f"needs a {role} model: name one with --{role} ID_OR_PATH")
        return self.others[role]

    def helper(self, role: str) -> Source:
        """The source of a helper network that is given the target's tokens.

        Raises:
            Unsupported: the run names none for this role, or one whose tokens mean different text.
        """
        source = self.get(role)
        if source.tokenizer.get_vocab() != self.target.tokenizer.get_vocab():
            raise Unsupported(
                f"{role} {source.name} has another vocabulary than {self.target.name}, so their tokens mean different "
                "text; name one with the same tokenizer"
            )
        return source

    @property
    def versions(self) -> dict[str, dict[str, Any]]:
        """Role -> name and revision of its model."""
        return {source.role: source.version for source in (self.target, *self.others.values())}

    def at(self, versions: Mapping[str, Mapping[str, Any]]) -> Sources:
        """The same models in the versions that the run has read already.

        Args:
            versions: what `versions` said then; roles may be missing.
        """

        def one(source: Source) -> Source:
            commit = versions.get(source.role, {}).get("revision")
            return replace(source, commit=commit) if commit else source

        return replace(self, target=one(self.target), others={role: one(s) for role, s in self.others.items()})

    @property
    def log(self) -> list[dict[str, Any]]:
        return [*self.target.log, *(entry for source in self.others.values() for entry in source.log)]
