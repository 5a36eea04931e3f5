"""Training in several processes: their gradients are averaged, and one that dies ends them all."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genopt.errors import StageCrashedError
from genopt.techniques.base import TransformContext
from genopt.techniques.data_parallel import Team, run
from genopt.techniques.distillation_params import DistillParams


def tiny(seed: int, layers: int = 2):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2, vocab_size=32,
        tie_word_embeddings=True, initializer_range=0.4,
    )).eval()  # fmt: skip


def train(team: Team, out: Path) -> None:
    import torch

    from genopt.techniques.distillation import Texts, distill

    teacher, student = tiny(0), tiny(1)
    inputs = [torch.tensor([[1, 2, 3, 4 + place]]) for place in range(team.size)]
    averaged = team.averaging(alone := tiny(1))
    alone(input_ids=inputs[team.rank]).logits.square().mean().backward()
    averaged()
    expected = tiny(1)
    torch.stack([expected(input_ids=one).logits.square().mean() for one in inputs]).mean().backward()
    close = all(torch.allclose(a.grad, b.grad, atol=1e-7) for a, b in zip(alone.parameters(), expected.parameters(), strict=True))
    begin = torch.arange(8)[:, None]
    pieces = teacher.generate(begin, attention_mask=torch.ones_like(begin), do_sample=True, min_length=16, max_length=16, pad_token_id=0).tolist()
    params = DistillParams(steps=8, learning_rate=1e-2, max_seq_length=16)
    before, after = distill(teacher, student, Texts(pieces[:-2], pieces[-2:]), params, 30.0, lambda _: None, team)
    weights = [value.tolist() for value in student.state_dict().values()]
    (out / f"{team.rank}.json").write_text(json.dumps({"close": close, "before": before, "after": after, "weights": weights}))


def write_alone(team: Team) -> None:
    if team.rank == 0:
        time.sleep(5)
    team.agreed(1.0)


def die(team: Team, out: Path) -> None:
    (out / f"{team.rank}.pid").write_text(str(os.getpid()))
    if team.rank == 1:
        os._exit(3)
    team.agreed(1.0)
    team.averaging(tiny(0))
    while True:
        team.agreed(1.0)


class Seen:
    """Unpacked as what the process looks like then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return look, ()


def look() -> dict[str, Any]:
    names = ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME")
    return {name: os.environ.get(name) for name in names} | {"torchao": "torchao" in sys.modules}


def tell(team: Team, seen: dict[str, Any], out: Path, *_: Any) -> None:
    (out / f"{team.rank}.json").write_text(json.dumps(seen))


def of_a_product(out: Path) -> tuple[Any, ...]:
    """As `distill` sends it, with a look before it."""
    from genopt.techniques.distillation import Texts

    context = TransformContext(original="", calibration=None, seed=0, threads=2, time_limit_s=100)
    return Seen(), out, out, Texts([[1, 2]], [[3, 4]]), DistillParams(), context, print


def test_processes_are_set_up_before_they_load_what_may_start_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run(tell, *of_a_product(tmp_path), gpus=[], processes=2)
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen == {"CUDA_VISIBLE_DEVICES": None, "GLOO_SOCKET_IFNAME": "lo", "torchao": False}


def test_each_process_has_a_gpu_of_its_own_before_it_unpacks_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed
    from torch.multiprocessing import spawn

    for name in ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)

    def here(member: Any, arguments: tuple[Any, ...], nprocs: int) -> None:
        for rank in range(nprocs):
            member(rank, *arguments)

    monkeypatch.setattr(sys.modules[spawn.__module__], "spawn", here)
    run(tell, *of_a_product(tmp_path), gpus=["GPU-a", "GPU-b"])
    assert [json.loads((tmp_path / f"{rank}.json").read_text())["CUDA_VISIBLE_DEVICES"] for rank in range(2)] == ["GPU-a", "GPU-b"]


def test_processes_average_gradients_and_end_with_the_same_better_weights(tmp_path: Path) -> None:
    run(train, tmp_path, gpus=[], processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["close"]
    assert second["close"]
    assert first["after"] > first["before"]
    assert first == second


def test_others_wait_for_one_that_writes_as_long_as_they_are_told() -> None:
    run(write_alone, gpus=[], processes=2, patience_s=60.0)
    with pytest.raises(StageCrashedError, match="One of 2 processes"):
        run(write_alone, gpus=[], processes=2, patience_s=2.0)


def test_a_process_that_dies_ends_all(tmp_path: Path) -> None:
    with pytest.raises(StageCrashedError, match="One of 2 processes"):
        run(die, tmp_path, gpus=[], processes=2)
    for file in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
