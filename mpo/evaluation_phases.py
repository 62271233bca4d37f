"""The phases of an evaluation: each has its whole result or none, and between them it stops and goes on."""

import json
from collections.abc import Callable, Mapping, Sequence

from mpo.answers import Answers
from mpo.checkpoints import handed_over
from mpo.errors import StageInterrupted
from mpo.reporter import Reporter, StageTask

STATE_FILE = "state.json"


class Phases:
    """Runs each phase once, keeps what came out, and hands it over in checkpoints.

    Results are JSON values: what a checkpoint gives back is, to the last bit, what was put in.
    """

    def __init__(self, task: StageTask, reporter: Reporter, total: int) -> None:
        self.task, self.reporter, self.total = task, reporter, total
        self.kept: dict[str, list] = {}
        if task.resume:
            self.kept = json.loads((task.resume / STATE_FILE).read_text(encoding="utf-8"))
        self.saved = len(self.kept)

    def numbers(self, phase: str, compute: Callable[[], Sequence[float]]) -> list[float]:
        """The numbers of a phase, computed now or kept from before; their mean is reported as progress."""

        def finished() -> tuple[list[float], Mapping[str, float]]:
            found = list(compute())
            return found, {phase: sum(found) / len(found)}

        return self._run(phase, finished)

    def answers(self, phase: str, compute: Callable[[], Answers]) -> Answers:
        """The answers of a phase, sampled now or kept from before; their length is reported as progress."""

        def finished() -> tuple[list[dict[str, object]], Mapping[str, float]]:
            found = compute()
            return found.to_json(), {"response_tokens": sum(found.tokens) / len(found.tokens)}

        return Answers.of_json(self._run(phase, finished))

    def _run(self, phase: str, compute: Callable[[], tuple[list, Mapping[str, float]]]) -> list:
        if phase not in self.kept:
            self.check()
            self.kept[phase], metrics = compute()
            self.reporter.progress(len(self.kept), self.total, metrics)
            if len(self.kept) < self.total:
                self.check()
        return self.kept[phase]

    def check(self, _index: int = 0) -> bool:
        """False, always; hands over the finished phases where a checkpoint is due or the stage is to stop.

        Raises StageInterrupted where it is to stop: what the running phase has done is dropped.
        """
        stopping = self.reporter.should_stop()
        done = len(self.kept)
        if done and (stopping or (done > self.saved and self.reporter.checkpoint_due())):
            with handed_over(self.task, self.reporter, done) as folder:
                (folder / STATE_FILE).write_text(json.dumps(self.kept), encoding="utf-8")
            self.saved = done
        if stopping:
            raise StageInterrupted(phases=done)
        return False
