"""Records of every kind of step, as small as a report can read them, and folders that hold them."""

import json
from pathlib import Path
from typing import Any

from yayan import lineage
from yayan.evaluate.results import RESULTS_NAME

INTERVAL = {"interval": [2.1, 2.4]}
CHOICES: dict[str, Any] = {
    **{"protocol": "harness", "protocol_version": 1, "prompt": "base", "shots": 0, "split": "val"},
    **{"chance": 0.25, "right": 7, "not_extracted": 1, "missing_subjects": ["law"]},
    **{"asked": 24, "too_long": 2, "examples_dropped": 3, "accuracy": 7 / 24, "interval": [0.15, 0.49]},
}
GROUP = {"asked": 24, "too_long": 2, "examples_dropped": 3, "accuracy": 7 / 24, "interval": [0.15, 0.49]}
COMPARED: dict[str, Any] = {
    "compared": {"task": "ceval", "protocol": "harness"},
    **{"asked": 24, "accuracy_before": 0.25, "accuracy_after": 7 / 24, "difference": 1 / 24},
    **{"interval": [-0.1, 0.2], "p_value": 0.5},
}
BITS: dict[str, Any] = {
    **{"documents": 1, "bytes": 900, "characters": 300, "tokens": 280, "unknown_tokens": 1},
    **{"bits_per_byte": 2.3, "interval": None, "bits_per_character": 6.9, "tokens_per_character": 0.93},
    **{"perplexity_per_token": 166.2, "complete": False},
    "by_position": [
        {"from_byte": 0, "to_byte": 450, "bits_per_byte": 2.4} | INTERVAL,
        {"from_byte": 450, "to_byte": 900, "bits_per_byte": 2.2} | INTERVAL,
    ],
}
CUT = {
    **{"tokens_per_character": 0.93, "bytes_per_token": 3.2, "byte_fallback_share": 0.01},
    **{"unknown_tokens": 0, "round_trip_failures": 1},
}
TASK = {"score": 12.34, "interval": [10.0, 15.0], "items": 200, "truncated": 17, "metric": "f1_zh"}
COLUMNS = ("single-document QA", "multi-document QA", "summary", "few-shot", "synthetic", "code")
CELL = {"found": 1, "asked": 3}
TYPE: dict[str, Any] = {
    **{"engine": "llama.cpp, float32 cache", "bytes": 8_000_000, "bits_per_weight": 16.01},
    **{"choices": {"accuracy": 0.3}, "prompt_ms_per_token": 1.2, "answer_ms_per_token": 3.4},
    "texts": {
        "zh": {
            **{"documents": 2, "tokens": 300, "positions_compared": 298, "bits_per_byte": 2.3},
            **{"kl_mean": 0.01, "kl_999": 0.2, "top1_agreement": 0.97, **INTERVAL},
        }
    },
}
SPEED = {
    **{"engine": "llama.cpp", "device": "cpu", "threads": 1, "anonymous_bytes": None, "mapped_bytes": 10**7},
    **{"prompt_ms_per_token": 1.2, "answer_ms_per_token": 3.4},
    **{"prompt_tokens_per_second": 833.0, "answer_tokens_per_second": 294.0},
}
DRAFT = {
    **{"threads": 2, "accepted": 30, "proposed": 40, "acceptance": 0.75, "ms_per_token": 2.0},
    **{"ms_per_token_without": 3.4, "speed_up": 1.7, "draft_ms_per_token": 0.5},
    **{"same_answers": 4, "answers": 4},
}
TRAINED: dict[str, Any] = {
    **{"tokens": 30720, "loss_first": 7.9, "loss_last": 2.31},
    **{"bits_per_byte_before": {"zh": 9.7}, "bits_per_byte_after": {"zh": 2.3}},
}
METRICS: dict[str, dict[str, Any]] = {
    "vocab": {
        **{"size": 4096, "base_size": 2048, "new_pieces": 2040},
        **{"tokens_per_character_before": 2.971, "tokens_per_character_after": 0.892},
        "longest_pieces": ["▁一会儿", "老太太"],
    },
    "grow": {
        "parameters": 5_507_328,
        "bytes": 22_029_312,
        "rows": 4096,
        "old_rows": 2048,
        "rows_added": 2048,
    },
    "pack": {"kind": "chats", "documents": 1, "tokens": 900, "targets": 400, "dropped": {"empty": 1}},
    "pretrain": TRAINED | {"adapter_bytes": 6_823_304},
    "sft": TRAINED | {"parameters": 5_507_328, "bytes": 22_029_312},
    "merge": {"parameters": 5_507_328, "bytes": 22_029_312, "tensors_merged": 30, "token_rows": 4096},
    "stretch": {
        **{"parameters": 5_507_328, "bytes": 22_029_312, "positions_before": 512, "positions": 2048},
        "rope": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
    },
    "gguf": {
        "files": {
            "m-F16.gguf": {"bytes": 8_000_000, "bits_per_weight": 16.01},
            "m-Q4_K_M.gguf": {
                **{"bytes": 2_500_000, "bits_per_weight": 5.1},
                "largest_difference_of_logprobs": 0.0761,
            },
        }
    },
    "eval tokens": {
        "texts": {"zh": {"documents": 2, "bytes": 900, "tokenizers": {"old": CUT}}},
        "tokenizers": {
            "old": {
                **{"kind": "byte-level BPE", "ids": 4096, "dead_ids": 3},
                **{"unreachable_bytes": 13, "special_ids": 2},
            }
        },
    },
    "eval bits": {"limit_bytes": 900, "context": 512, "overlap": 256, "texts": {"zh": BITS}},
    "eval longbench": {
        **{"chat": True, "limit": 200, "context": 2048},
        "tasks": {"multifieldqa_zh": TASK | {"column": COLUMNS[0]}, "lcc": TASK | {"column": COLUMNS[-1]}},
        "languages": {
            "zh": {"columns": dict.fromkeys(COLUMNS, 30.0), "average": 30.0},
            "en": {"columns": dict.fromkeys(COLUMNS), "average": None},
        },
    },
    "eval needle": {
        **{"lengths": [400, 1600], "depths": [0, 50], "cells": [[CELL, CELL], [CELL, CELL]]},
        **{"control": [CELL, CELL], "found": 4, "asked": 12, "share": 1 / 3, "interval": [0.1, 0.6]},
        **{"control_found": 2, "control_asked": 6},
    },
    "eval ceval": CHOICES | {"groups": {"Humanities": GROUP}},
    "eval cmmlu": CHOICES | {"groups": {"China specific": GROUP}},
    "eval mmlu": CHOICES | {"groups": {"Social Sciences": GROUP}, "accuracy": None, "interval": None},
    "eval compare": COMPARED,
    "eval samples": {"answers": 1, "tokens_per_second": 51.2},
    "eval quant": {"load": 0.1, "types": {"F16": TYPE, "Q4_K_M": TYPE}},
    "eval speed": {"load": 0.1, "rows": [SPEED], "draft": [DRAFT]},
    "eval report": {"steps": 9, "bytes": 100_000},
}
RESULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("eval ceval", "eval cmmlu", "eval mmlu", "eval quant", "eval speed"), {}),
    "eval bits": {"texts": {"zh": {"items": [{"nats": 1434.7}]}}},
    "eval samples": {
        "items": [{"prompt": "你好？", "answer": "", "tokens": 9, "seconds": 0.2, "complete": False}]
    },
}


def write_step(
    folder: Path,
    stage: str,
    *,
    inputs: dict | None = None,
    options: dict | None = None,
    metrics: dict | None = None,
    template: str | None = None,
) -> Path:
    """A finished folder with a record; its file of weights makes its content one of its own."""
    folder.mkdir(parents=True)
    record = dict.fromkeys(lineage.RECORD_KEYS) | {
        "format": lineage.RECORD_FORMAT,
        "stage": stage,
        "version": "0.1.0",
        "options": options or {"train": "lora", "rank": 32},
        "inputs": inputs or {},
        "template": template,
        "licences": ["Apache-2.0"],
        "metrics": METRICS[stage] if metrics is None else metrics,
        "seconds": 61.5,
        "started": "2026-11-23T08:19:24+00:00",
        "machine": {"cores": 2},
    }
    lineage.write(folder, record)
    (folder / "weights").write_text(folder.name, encoding="utf-8")
    if stage in RESULTS:
        (folder / RESULTS_NAME).write_text(json.dumps(RESULTS[stage]), encoding="utf-8")
    return folder


def read_from(path: Path) -> dict[str, str]:
    """What a record says of an input."""
    return {"path": str(path), "sha256": lineage.sha256_of(path)}
