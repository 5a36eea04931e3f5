"""Scoring a model with 128k tokens in its vocabulary takes memory for a piece of a sequence, not for its text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

VOCABULARY = 131_072
SEQUENCES, LENGTH = 6, 512
WHOLE_SEQUENCE = VOCABULARY * (LENGTH - 1) * 4
"""Bytes of the logits of one sequence in float32: 268 MB."""

PROGRAM = """
import json, resource, sys
from pathlib import Path
from genopt.engines.torch_engine import TorchEngine
from genopt.quality.reference import compare, record

import torch
from transformers import LlamaConfig, LlamaForCausalLM
folder, vocabulary, count, length = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.manual_seed(0)
config = LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1, vocab_size=vocabulary,
                     max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1, dtype="bfloat16")
LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
session = TorchEngine.open(folder, {"threads": 2})
sequences = [[(row * 977 + place * 7919) % vocabulary for place in range(length)] for row in range(count)]
session.distributions(sequences[0][:80], 128)  # what is loaded and allocated once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
record(session, sequences, folder / "reference.parquet", {})
found = compare(session, sequences, folder / "reference.parquet")
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps({"grown": grown, "kl": max(map(max, found.kl)), "sequences": len(found.kl)}))
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    arguments = [str(tmp_path), *map(str, (VOCABULARY, SEQUENCES, LENGTH))]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["sequences"] == SEQUENCES
    assert found["kl"] < 1e-3
    assert found["grown"] < 1.3 * WHOLE_SEQUENCE, "as much as one sequence needs in float32, where the text needs six times that"
    assert (tmp_path / "reference.parquet").stat().st_size < SEQUENCES * LENGTH * 1100
    assert pq.ParquetFile(tmp_path / "reference.parquet").metadata.num_rows == SEQUENCES * (LENGTH - 1)
