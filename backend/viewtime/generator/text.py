# SPDX-License-Identifier: Apache-2.0
"""Prompts to the text embeddings that Wan's checkpoints take: UMT5 through transformers.

The encoder (10 GB for the real one) is loaded for one call and dropped; nothing is kept of it.
"""

from __future__ import annotations

import gc
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viewtime.generator.errors import GeneratorError

LENGTH = 512
"""Tokens of a prompt: longer ones are cut, shorter ones filled with zeros (as Wan was trained)."""


def clean_prompt(prompt: str) -> str:
    """The prompt with HTML entities resolved and white space made single."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def encode_prompts(
    folder: Path, prompts: list[str], device: torch.device, *, length: int = LENGTH
) -> Tensor:
    """Embeddings (B, length, text_dim), float32, zero where a prompt has ended: `encode_each`."""
    return filled(encode_each(folder, prompts, device, length=length), length).to(device)


def filled(embeddings: list[Tensor], length: int = LENGTH) -> Tensor:
    """Embeddings (L_i, text_dim) as one tensor (B, length, text_dim), zero where one has ended."""
    return torch.stack([F.pad(x, (0, 0, 0, length - len(x))) for x in embeddings])


def encode_each(
    folder: Path, prompts: Iterable[str], device: torch.device, *, length: int = LENGTH
) -> list[Tensor]:
    """The embedding of each prompt, (L_i, text_dim) with L_i at most length, float32 on the CPU.

    folder: of a checkpoint in diffusers' layout, with text_encoder/ and tokenizer/. Weights become
    bfloat16 on a GPU, float32 on the CPU. The encoder is loaded once for all prompts.

    Raises:
        GeneratorError: when one of the two cannot be read, or has no safetensors.
    """
    tokenizer, encoder = _load(folder, device)
    made = []
    for prompt in prompts:
        tokens = tokenizer(
            [clean_prompt(prompt)], padding="max_length", max_length=length, truncation=True,
            add_special_tokens=True, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        mask = tokens.attention_mask.to(device)
        with torch.no_grad():
            states = encoder(tokens.input_ids.to(device), mask).last_hidden_state  # (1, L, D)
        made.append(states[0, : int(mask.sum())].float().cpu())
        del states
    del encoder
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return made


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and text encoder of a checkpoint."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    options: dict[str, Any] = dict(local_files_only=True)
    if not any((folder / "text_encoder").glob("*.safetensors")):
        raise GeneratorError(
            f"{folder / 'text_encoder'}: no .safetensors weights (other formats are not read)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **options)
        encoder: Any = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", use_safetensors=True, dtype=dtype, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise GeneratorError(f"{folder}: {str(error).splitlines()[0]}") from error
    return tokenizer, encoder.to(device).eval()
