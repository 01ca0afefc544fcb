"""The authors' checkpoints (`epoch_N.pth`) as prompts of this package. Nothing is ever unpickled but tensors."""

import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig
from transformers.utils import logging

from .configuration_anomalyclip import (
    CLIP_BOS,
    CLIP_DAMAGED,
    CLIP_EOS,
    CLIP_OBJECT,
    CLIP_PERIOD,
    CLIP_PLACEHOLDER,
    CLIP_VOCAB_SIZE,
    AnomalyCLIPConfig,
    encode_prompts,
)
from .data.files import write_json
from .image_processing_anomalyclip import AnomalyCLIPImageProcessor
from .loading_anomalyclip import commit_of
from .modeling_anomalyclip import AnomalyCLIPModel
from .prompts_anomalyclip import PromptSet, portable_base_name
from .sharing.hub import add_card
from .sharing.writing import add_code, refuse_full_checkpoint, whole_folder, write_checkpoint

logger = logging.get_logger(__name__)

AUTHORS_BACKBONE = "openai/clip-vit-large-patch14-336"
MAX_FILE_BYTES = 1 << 30
MAX_WIDTH = 16384
CLIP_LENGTH = 77
WORDS = {"pos": [CLIP_OBJECT, CLIP_PERIOD], "neg": [CLIP_DAMAGED, CLIP_OBJECT, CLIP_PERIOD]}
SENTENCES = {"pos": "'X X .. X object.'", "neg": "'X X .. X damaged object.'"}
BUFFERS = ("token_prefix", "token_suffix", "tokenized_prompts")
DEEP_KEY = re.compile(r"compound_prompts_text\.(0|[1-9]\d{0,2})")
UNUSED_KEY = re.compile(r"compound_prompt_projections\.\d+\.(weight|bias)")
ROUNDING = "deep prompts rounded to half precision once, as the authors' program does whenever it runs"
# First bytes of files that are often taken for a checkpoint.
LOOKALIKES = {
    b"<": "it is a web page (HTML or XML), not a checkpoint; download the file itself",
    b"version https://git-lfs": "it is a Git LFS pointer, not the file; run `git lfs pull`",
    b"\x1f\x8b": "it is a gzip archive; unpack it first",
    b"{": "it is JSON text, not a checkpoint",
}


@dataclass
class AuthorsPrompts:
    """What an `epoch_N.pth` of the authors holds and this package uses.

    Args:
        context (`Tensor` of shape `(2, E, d)`, float32): learned words; [0] normal, [1] anomalous.
        deep_prompts (`Tensor` of shape `(depth - 1, T, d)`, float32): rounded to half precision once.
        token_ids (`list[list[int]]`): 2 x 77 ids of the two prompts.
        word_embeds (`Tensor` of shape `(2, 77 - E, d)`): the backbone's embeddings of the words that aren't learned.
        sha256 (`str`): of the file.
    """

    context: Tensor
    deep_prompts: Tensor
    token_ids: list[list[int]]
    word_embeds: Tensor
    sha256: str


def read_authors_checkpoint(path: str | os.PathLike) -> AuthorsPrompts:
    """Read and check an `epoch_N.pth` of the authors' program; lengths, depth and width are found in the file.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is anything but such a checkpoint; the reason is named.
    """
    path = Path(path)
    state = _load_tensors(path)
    pair = [_check(path, state, f"ctx_{kind}", (1, 1, None, None))[0, 0] for kind in ("pos", "neg")]
    if pair[0].shape != pair[1].shape:
        raise _refuse(
            path,
            f"ctx_pos has shape {tuple(state['ctx_pos'].shape)} but ctx_neg {tuple(state['ctx_neg'].shape)}; both "
            "prompts need the same number of learned words",
        )
    context = torch.stack(pair)
    _, length, width = context.shape
    deep = _read_deep_prompts(path, state, width)
    token_ids = [_read_token_ids(path, state, kind, length) for kind in ("pos", "neg")]
    words = []
    for kind in ("pos", "neg"):
        prefix = _check(path, state, f"token_prefix_{kind}", (1, 1, 1, width))
        suffix = _check(path, state, f"token_suffix_{kind}", (1, 1, CLIP_LENGTH - 1 - length, width))
        words.append(torch.cat([prefix[0, 0], suffix[0, 0]]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return AuthorsPrompts(context, deep, token_ids, torch.stack(words), digest)


def _refuse(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} can't be converted: {reason}")


def _load_tensors(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise _refuse(path, "it is a folder; give the file epoch_N.pth in it")
    with open(path, "rb") as file:
        head, size = file.read(32), path.stat().st_size
    if not head:
        raise _refuse(path, "it is empty; fetch it again")
    for start, reason in LOOKALIKES.items():
        if head.lstrip().startswith(start):
            raise _refuse(path, reason)
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _refuse(path, f"it is truncated after {size} bytes; fetch it again")
    unpacked = sum(info.file_size for info in zipfile.ZipFile(path).infolist()) if zipfile.is_zipfile(path) else 0
    if max(size, unpacked) > MAX_FILE_BYTES:
        raise _refuse(path, f"it takes {max(size, unpacked)} bytes, more than {MAX_FILE_BYTES}; such files take 25 MB")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly every kind of error on damaged files
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text or "Trying to" in text:
            found = re.search(r"GLOBAL (\S+)", text)
            named = f" ({found[1]})" if found else ""
            reason = f"it holds pickled Python objects{named}, which may run code; only tensors are read"
            raise _refuse(path, reason) from None
        reason = text.partition("WeightsUnpickler error:")[2] or text or type(error).__name__
        reason = reason.strip().splitlines()[0][:200]
        raise _refuse(path, f"it is damaged, truncated or no PyTorch file ({reason})") from error
    return _check_keys(path, content)


def _check_keys(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or "prompt_learner" not in content:
        found = sorted(map(str, content))[:4] if isinstance(content, dict) else type(content).__name__
        raise _refuse(path, f"it holds {found}, expected {{'prompt_learner': ...}}")
    if unknown := sorted(str(key) for key in content if key != "prompt_learner"):
        raise _refuse(path, f"it has unknown keys {unknown[:4]} beside 'prompt_learner'")
    state = content["prompt_learner"]
    if not isinstance(state, dict):
        raise _refuse(path, f"its prompt_learner is a {type(state).__name__}, expected a state dict")
    needed = {f"{name}_{kind}" for name in ("ctx", *BUFFERS) for kind in ("pos", "neg")}
    if missing := sorted(needed - set(state)):
        raise _refuse(path, f"prompt_learner lacks {', '.join(missing)}")
    unknown = [
        str(k)
        for k in state
        if k not in needed and not DEEP_KEY.fullmatch(str(k)) and not UNUSED_KEY.fullmatch(str(k))
    ]
    if unknown:
        raise _refuse(path, f"prompt_learner has unknown keys {sorted(unknown)[:4]}; it is not the authors' program's")
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise _refuse(path, f"{key} is a {type(value).__name__}, expected a plain tensor")
    return state


def _check(path: Path, state: dict[str, Tensor], key: str, shape: tuple[int | None, ...]) -> Tensor:
    """The float32 tensor of that name, if shape (None = any), dtype and values are as they must be."""
    value = state[key]
    wanted = "(" + ", ".join("?" if side is None else str(side) for side in shape) + ")"
    fits = value.ndim == len(shape) and all(w in (None, side) for w, side in zip(shape, value.shape, strict=True))
    if not fits:
        raise _refuse(path, f"{key} has shape {tuple(value.shape)}, expected {wanted}")
    if key.startswith("ctx_") and not (1 <= value.shape[2] <= CLIP_LENGTH - 5 and 1 <= value.shape[3] <= MAX_WIDTH):
        raise _refuse(path, f"{key} has shape {tuple(value.shape)}, expected 1..{CLIP_LENGTH - 5} learned words")
    if value.dtype != torch.float32:
        raise _refuse(path, f"{key} has dtype {value.dtype}, expected torch.float32")
    if not torch.isfinite(value).all():
        raise _refuse(path, f"{key} has NaN or infinite values")
    return value.contiguous()


def _read_deep_prompts(path: Path, state: dict[str, Tensor], width: int) -> Tensor:
    numbers = sorted(int(match[1]) for key in state if (match := DEEP_KEY.fullmatch(key)))
    if numbers != list(range(len(numbers))):
        raise _refuse(path, f"compound_prompts_text has the numbers {numbers}, expected 0..{len(numbers) - 1}")
    if not numbers:
        return torch.zeros(0, 4, width)
    first = state["compound_prompts_text.0"]
    tokens = first.shape[0] if first.ndim == 2 else None
    sets = torch.stack([_check(path, state, f"compound_prompts_text.{i}", (tokens, width)) for i in numbers])
    rounded = sets.half().float()
    if not torch.isfinite(rounded).all():
        raise _refuse(path, f"deep prompts reach {sets.abs().max():g}, beyond half precision")
    return rounded


def _read_token_ids(path: Path, state: dict[str, Tensor], kind: str, length: int) -> list[int]:
    key = f"tokenized_prompts_{kind}"
    value = state[key]
    if tuple(value.shape) != (1, 1, CLIP_LENGTH) or value.dtype not in (torch.int32, torch.int64):
        raise _refuse(
            path,
            f"{key} has shape {tuple(value.shape)} and dtype {value.dtype}, expected (1, 1, {CLIP_LENGTH}) integers",
        )
    found = value[0, 0].tolist()
    expected = encode_prompts((WORDS[kind], []), length, CLIP_BOS, CLIP_PLACEHOLDER, CLIP_EOS)[0]
    if found != expected:
        raise _refuse(
            path,
            f"{key} is {[i for i in found if i]}, expected {SENTENCES[kind]} with {length} placeholders: "
            f"{[i for i in expected if i]}",
        )
    return found


def convert_checkpoint(
    path: str | os.PathLike,
    base_model: str | os.PathLike = AUTHORS_BACKBONE,
    output_dir: str | os.PathLike | None = None,
    *,
    preset: str = "released",
    base_config: CLIPConfig | str | os.PathLike | None = None,
    load_backbone: bool | None = None,
    save_code: bool = False,
    **settings: Any,
) -> AnomalyCLIPModel | Path:
    """Turn an `epoch_N.pth` of the authors' program into prompts of this package (section 3 of the paper).

    Prompt length, depth, deep prompt length and text width are read from the file. Deep prompts are rounded to half
    precision once, because the authors' program does so whenever it runs.

    Args:
        path (`str` or `os.PathLike`): the authors' file; only its tensors are read, nothing is unpickled.
        base_model (`str` or `os.PathLike`): folder or Hub repository of the CLIP that the prompts were learned on.
        output_dir (`str` or `os.PathLike`, *optional*): where to save the prompts alone (about 172 KB).
        preset (`str`, defaults to `"released"`): feature layers, `"released"` or `"paper"`.
        base_config (`CLIPConfig`, `str` or `os.PathLike`, *optional*): sizes of the base model where its files are
            not at hand. Known for ViT-L/14@336.
        load_backbone (`bool`, *optional*): load the base model's weights. Where absent: yes if it is a local folder or
            no `output_dir` is given.
        save_code (`bool`, defaults to `False`): as in [`~AnomalyCLIPModel.save_prompts`].
        **settings: other fields of [`AnomalyCLIPConfig`], such as `feature_layers`, `dpam_layers` or `image_size`.

    Returns:
        [`AnomalyCLIPModel`] with backbone and prompts; or the folder (`Path`) where the backbone was not loaded.

    Raises:
        ValueError: if the file is no such checkpoint, or belongs to another base model; the reason is named.
        OSError: if the file or the base model can't be found.
    """
    prompts = read_authors_checkpoint(path)
    base = os.fspath(base_model)
    if load_backbone is None:
        load_backbone = output_dir is None or os.path.isdir(base)
    if not load_backbone and output_dir is None:
        raise ValueError("load_backbone=False without output_dir leaves nothing to do; give output_dir")
    config = _make_config(path, prompts, base, base_config, {"preset": preset, **settings})
    logger.warning(f"{path}: {ROUNDING}.")

    learned = PromptSet(prompts.context, prompts.deep_prompts, config, source=str(path))
    model = _load_model(path, prompts, learned, base) if load_backbone else None
    if output_dir is not None:
        _save(Path(output_dir), path, prompts, learned, model, save_code)
    return model if model is not None else Path(os.fspath(output_dir))  # type: ignore[arg-type]


def _make_config(path, prompts: AuthorsPrompts, base: str, base_config, settings: dict) -> AnomalyCLIPConfig:
    if base_config is not None and not isinstance(base_config, CLIPConfig):
        base_config = CLIPConfig.from_pretrained(base_config)
    revision = None
    if base_config is None and (os.path.isdir(base) or base != AUTHORS_BACKBONE):
        raw, _ = AnomalyCLIPConfig.get_config_dict(base)
        revision = commit_of(base, {})
        if raw.get("model_type") != "clip":
            raise ValueError(f"base_model={base!r} has model_type={raw.get('model_type')!r}, expected a plain 'clip'")
        base_config = CLIPConfig.from_dict(raw)
    # Without arguments, the configuration is that of the authors' backbone.
    clip = base_config if base_config is not None else AnomalyCLIPConfig()
    _, length, width = prompts.context.shape
    sets, tokens, _ = prompts.deep_prompts.shape
    text = clip.text_config
    if text.hidden_size != width or text.vocab_size != CLIP_VOCAB_SIZE:
        raise ValueError(
            f"{path} holds prompts of width {width} in CLIP's vocabulary of {CLIP_VOCAB_SIZE} tokens, but the text "
            f"tower of base_model={base!r} has width {text.hidden_size} and {text.vocab_size} tokens; give the base "
            "model that they were learned on"
        )
    if sets + 1 > text.num_hidden_layers:
        raise ValueError(
            f"{path} holds {sets} sets of deep prompts, for {sets + 1} text layers, but base_model={base!r} has "
            f"{text.num_hidden_layers}; give the base model that they were learned on"
        )
    fields = {
        "prompt_type": "text",
        "prompt_length": length,
        "deep_prompt_depth": sets + 1,
        "deep_prompt_length": tokens,
        "prompt_token_ids": prompts.token_ids,
        "base_model_name_or_path": portable_base_name(base),
        "base_model_revision": revision,
    }
    if clash := sorted(set(fields) & set(settings)):
        raise ValueError(f"{', '.join(clash)} can't be given: the checkpoint decides")
    towers = {name: getattr(clip, name).to_dict() for name in ("text_config", "vision_config")}
    return AnomalyCLIPConfig(**towers, projection_dim=clip.projection_dim, **fields, **settings)


def _load_model(path, prompts: AuthorsPrompts, learned: PromptSet, base: str) -> AnomalyCLIPModel:
    settings = {
        key: getattr(learned.config, key)
        for key in ("image_size", "dpam_layers", "feature_layers", "base_model_name_or_path")
    }
    model = AnomalyCLIPModel.from_pretrained(base, **settings)
    # The file also keeps the backbone's embeddings of the fixed words: they tell whose prompts these are.
    _, length, _ = prompts.context.shape
    ids = torch.tensor(prompts.token_ids)
    fixed = torch.cat([ids[:, :1], ids[:, 1 + length :]], dim=1)
    ours = model.text_model.embeddings.token_embedding.weight.detach().float().cpu()[fixed]
    used = fixed != 0
    if not torch.allclose(ours[used], prompts.word_embeds[used], rtol=1e-2, atol=1e-4):
        raise ValueError(
            f"{path} was learned on another backbone than base_model={base!r}: the word embeddings differ by up to "
            f"{(ours[used] - prompts.word_embeds[used]).abs().max():g}; give the base model that it was learned on"
        )
    model.load_prompts(learned)
    return model.eval()


def _save(folder: Path, path, prompts: AuthorsPrompts, learned: PromptSet, model, save_code: bool) -> None:
    facts = {
        "source_file": Path(path).name,
        "source_sha256": prompts.sha256,
        "note": ROUNDING,
        "base_model": learned.config.base_model_name_or_path,
    }
    refuse_full_checkpoint(folder)
    learned = model.get_prompts() if model is not None else learned
    side = learned.config.image_size
    processor = AnomalyCLIPImageProcessor(size={"height": side, "width": side})
    with whole_folder(folder) as stage:
        write_checkpoint(stage, learned, processor, AnomalyCLIPModel)
        write_json(stage / "conversion.json", facts)
        if save_code:
            add_code(stage, AnomalyCLIPModel)
        add_card(stage, model, _card(facts))


def prompt_ids_of_tokenizer(name: str, hub: dict[str, Any], prompt_length: int) -> list[list[int]] | None:
    """Ids of both prompts by a checkpoint's own tokenizer, as of `encode_prompts`; None if it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
        texts = ("x", "object.", "damaged object.")
        placeholder, normal, anomalous = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        # Without files, transformers makes up an empty tokenizer that knows no word.
        is_known = not {tokenizer.unk_token_id, bos, eos} & {*placeholder, *normal, *anomalous}
        if placeholder and normal and is_known and normal != anomalous:
            return encode_prompts((normal, anomalous), prompt_length, bos, placeholder[0], eos)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    logger.warning(
        f"{name} has an unusual vocabulary and no tokenizer that knows its words: the prompts are learned words "
        "alone, without 'object.' and 'damaged object.'. Give prompt_token_ids to set them."
    )
    return None


def _card(facts: dict[str, Any]) -> str:
    hub_name = facts["base_model"] if not os.path.isabs(facts["base_model"]) else None
    header = ["---", "library_name: transformers", "tags: [anomaly-detection, zero-shot, anomalyclip]"]
    header += [f"base_model: {hub_name}"] if hub_name else []
    return "\n".join(
        [
            *header,
            "---",
            "# AnomalyCLIP prompts",
            "",
            f"Converted from `{facts['source_file']}` (SHA-256 `{facts['source_sha256']}`) of the authors' program, "
            f"with {facts['note']}. The backbone is `{facts['base_model']}`.",
            "",
        ]
    )


__all__ = ["AuthorsPrompts", "convert_checkpoint", "read_authors_checkpoint"]
