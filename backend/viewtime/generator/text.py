# SPDX-License-Identifier: Apache-2.0
"""Prompts to the text embeddings that Wan's checkpoints take: UMT5 through transformers.

The encoder (10 GB for the real one) is loaded for one call and dropped; nothing is kept of it.
"""

from __future__ import annotations

import gc
import html
from pathlib import Path
from typing import Any

import torch
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
    """Embeddings (B, length, text_dim), float32, zero where a prompt has ended.

    folder: of a checkpoint in diffusers' layout, with text_encoder/ and tokenizer/. Weights become
    bfloat16 on a GPU, float32 on the CPU.

    Raises:
        GeneratorError: when one of the two cannot be read, or has no safetensors.
    """
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
    encoder = encoder.to(device).eval()
    tokens = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask.to(device)
    with torch.no_grad():
        states = encoder(tokens.input_ids.to(device), mask).last_hidden_state  # (B, L, D)
    out = torch.where(mask[..., None] > 0, states.float(), 0.0)
    del encoder, states
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return out
