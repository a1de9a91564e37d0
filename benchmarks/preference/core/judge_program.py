"""A judge that is a program of the user's own: it reads questions and writes a verdict on each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UsageError

VERDICTS = {"a": 1.0, "b": -1.0, "tie": 0.0}


class Program:
    """Asked as `judge.Judge` is: prompt, one answer, another -> how much better the first one is, here 1, 0 or -1.

    The program is started once for all questions, without a shell. On its standard input each question is a line of
    JSON, {"prompt": ..., "a": ..., "b": ...}, and then its other order; on its standard output each line is the verdict
    on one, `a`, `b` or `tie`. Where the two orders contradict each other it is a tie: a liking for a place cancels out.
    """

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        self.argv = list(argv)
        self.seconds = seconds

    def __call__(self, questions: Sequence[tuple[str, str, str]]) -> list[float]:
        """Raises UsageError: it fails, takes longer than it may, or writes something else than verdicts."""
        orders = [order for prompt, one, other in questions for order in ((prompt, one, other), (prompt, other, one))]
        asked = "".join(json.dumps(dict(zip(("prompt", "a", "b"), order, strict=True))) + "\n" for order in orders)
        lines = self._answer(asked).decode(errors="replace").splitlines()
        if len(lines) != len(orders):
            raise UsageError(f"{self}: {len(lines)} lines on {len(orders)} questions; a verdict on each is wanted")
        for number, line in enumerate(lines, 1):
            if line.strip() not in VERDICTS:
                raise UsageError(f"{self}: line {number} is {line[:40]!r}; allowed: {', '.join(VERDICTS)}")
        scores = [VERDICTS[line.strip()] for line in lines]
        return [(score - turned) / 2 for score, turned in zip(scores[::2], scores[1::2], strict=True)]

    def __str__(self) -> str:
        return f"judge {shlex.join(self.argv)}"

    @property
    def version(self) -> str:
        """What of it can be known: the hash of the files that it names."""
        files = [Path(part).read_bytes() for part in self.argv if Path(part).is_file()]
        return f"sha256 {hashlib.sha256(b''.join(files)).hexdigest()}" if files else "of no known version"

    def _answer(self, asked: str) -> bytes:
        pipe = subprocess.PIPE
        try:
            # a session of its own: what the program starts ends with it
            process = subprocess.Popen(self.argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except OSError as error:
            raise UsageError(f"{self}: it cannot be started: {error.strerror}") from error
        try:
            written, complaint = process.communicate(asked.encode(), self.seconds)
        except subprocess.TimeoutExpired:
            count = asked.count("\n")
            raise UsageError(
                f"{self}: not done with {count} questions within {self.seconds:g} s; raise workload.judge_seconds"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        if process.returncode:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise UsageError(f"{self}: it ended with exit code {process.returncode}{f': {last[:200]}' if last else ''}")
        return written
