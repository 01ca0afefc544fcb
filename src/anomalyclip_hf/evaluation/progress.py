"""Progress of an evaluation on disk, so that a long run can be interrupted."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import atomic_path, safe_name
from ..prompts_anomalyclip import backbone_fingerprint
from .results import restore_nan, without_nan
from .tally import ClassTally

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .baselines import MethodScorer

CLASS_SUFFIX = ".class.json"  # no files but ours end like this, nor like the tallies
_OWN = re.compile(r".*(\.class\.json|\.\d+-of-\d+\.npz)", re.DOTALL)


class Progress:
    """What a run keeps on disk to be taken up again: finished classes, and the tallies of an unfinished one."""

    def __init__(self, folder: Path | None, key: str, accelerator: Accelerator | None):
        self.folder, self.key, self.accelerator = folder, key, accelerator
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.world = accelerator.num_processes if accelerator is not None else 1
        self.is_main = self.rank == 0

    def prepare(self, resume: bool) -> None:
        """Forget the progress of an earlier run unless it is to be taken up."""
        if self.folder is not None and self.is_main:
            for file in self.folder.glob("*") if not resume else ():
                if _OWN.fullmatch(file.name):
                    file.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def load_class(self, class_name: str) -> dict[str, Any] | None:
        """A finished class of the same run, as the main process finds it."""
        found: list[Any] = [None]
        if self.folder is not None and self.is_main:
            try:
                stored = json.loads(self._file(class_name, CLASS_SUFFIX).read_text(encoding="utf-8"))
                found = [restore_nan(stored["part"]) if stored["key"] == self.key else None]
            except (OSError, ValueError, KeyError, TypeError):
                pass
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(found)
        return found[0]

    def save_class(self, class_name: str, part: dict[str, Any]) -> None:
        """Keep a finished class; its tallies are of no more use."""
        if self.folder is None:
            return
        if self.is_main:
            with atomic_path(self._file(class_name, CLASS_SUFFIX)) as temporary:
                content = {"key": self.key, "part": without_nan(part)}
                temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        self._tally_file(class_name).unlink(missing_ok=True)

    def load_tally(self, tally: ClassTally, class_name: str) -> int:
        """Take up an unfinished class; answers the number of batches that this process has done of it."""
        return tally.load(self._tally_file(class_name), self.key) if self.folder is not None else 0

    def save_tally(self, tally: ClassTally, class_name: str, batches: int) -> None:
        """Keep an unfinished class. Whole maps are not kept: an exact run goes on from the last finished class."""
        if self.folder is not None and not tally.exact:
            tally.save(self._tally_file(class_name), self.key, batches)

    def _file(self, class_name: str, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{safe_name(class_name)}{suffix}"

    def _tally_file(self, class_name: str) -> Path:
        return self._file(class_name, f".{self.rank}-of-{self.world}.npz")


def run_key(scorer: MethodScorer, processor: Any, table: dict[str, list], settings: dict[str, Any]) -> str:
    """Digest of all that decides the numbers, so that progress of another run is never taken up."""
    model = scorer.model
    digest = hashlib.sha256()
    facts = [settings, table, list(scorer.methods), processor.to_dict(), str(model.dtype)]
    ignored = ("_name_or_path", "transformers_version", "image_threshold", "pixel_threshold")
    facts.append({key: value for key, value in model.config.to_dict().items() if key not in ignored})
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    fingerprint = backbone_fingerprint(model)
    learned = [] if model.config.vision_only else [p.detach() for p in model.prompt_learner.parameters()]
    for tensor in [*learned, *([] if fingerprint is None else [fingerprint])]:
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
