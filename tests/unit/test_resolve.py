"""What a user may call a model, and everything that can be wrong with it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.errors import InfeasibleError, ModelError
from genopt.models import gguf
from genopt.models.headers import read_header
from genopt.models.inspect import ASSUMED_CONTEXT
from genopt.plan import Step
from genopt.tasks.base import fits
from genopt.tasks.text_generation import TextGeneration
from genopt.techniques.gguf_as_given import GgufAsGiven
from tests.unit.written_models import found, write_model, write_pipeline, write_safetensors


def test_a_local_language_model(tmp_path: Path) -> None:
    model = found(write_model(tmp_path / "tiny"), tmp_path)
    assert (model.library, model.modality, model.task) == ("transformers", "text", "text-generation")
    assert (model.architecture, model.parameters, model.dtype, model.max_context) == ("LlamaForCausalLM", 44, "bfloat16", 128)
    assert model.bytes == (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert model.path == str(tmp_path / "tiny")
    assert (model.revision, model.note) == (None, "")


def test_the_digest_follows_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    first, second = found(write_model(tmp_path / "a"), tmp_path), found(write_model(tmp_path / "b"), tmp_path)
    changed = found(write_model(tmp_path / "c", eos_token_id=3), tmp_path)
    assert first.digest == second.digest != changed.digest


def test_the_digest_follows_linked_components_and_no_hidden_file(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    (folder / "unet").rename(tmp_path / "finetune")
    (folder / "unet").symlink_to("../finetune")
    first = found(folder, tmp_path)
    (folder / ".git").mkdir()
    (folder / ".git" / "index").write_text("rewritten by `git status`")
    assert found(folder, tmp_path) == first
    write_safetensors(tmp_path / "finetune" / "diffusion_pytorch_model.safetensors", {"conv": ("F32", (3, 4))})
    assert found(folder, tmp_path).digest != first.digest


def test_shards_count_together(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    for shard in ("one", "two"):
        write_safetensors(folder / f"{shard}.safetensors", {shard: ("F32", (5,))})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}))
    model = found(folder, tmp_path)
    assert (model.parameters, model.dtype) == (10, "float32")


def test_a_diffusion_pipeline(tmp_path: Path) -> None:
    model = found(write_pipeline(tmp_path / "pipe"), tmp_path)
    assert (model.library, model.modality, model.task) == ("diffusers", "image", "text-to-image")
    assert (model.architecture, model.parameters, model.max_context) == ("StableDiffusionPipeline", 11, 0)


def test_context_of_models_that_name_it_otherwise_or_not_at_all(tmp_path: Path) -> None:
    assert found(write_model(tmp_path / "gpt2", max_position_embeddings=None, n_positions=64), tmp_path).max_context == 64
    assert found(write_model(tmp_path / "nested", max_position_embeddings=None, text_config={"n_ctx": 32}), tmp_path).max_context == 32
    assert found(write_model(tmp_path / "none", max_position_embeddings=None), tmp_path).max_context == ASSUMED_CONTEXT


def test_a_quantized_checkpoint_is_named_so(tmp_path: Path) -> None:
    model = found(write_model(tmp_path / "tiny", quantization_config={"quant_method": "gptq"}), tmp_path)
    assert "gptq" in model.note


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def listed_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def classifier(folder: Path) -> None:
    write_model(folder, architectures=["BertForSequenceClassification"])


def nameless(folder: Path) -> None:
    write_model(folder, architectures=None)


def own_code(folder: Path) -> None:
    write_model(folder, model_type="not-in-transformers", auto_map={"AutoModelForCausalLM": "modeling.Own"})


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def extended(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def no_json_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"no")


def listed_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")


def unknown_dtype(folder: Path) -> None:
    text = b'{"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"x")


def wrong_shape(folder: Path) -> None:
    text = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def foreign_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_config, "config.json"), (adapter, "adapter"), (no_weights, "no safetensors weights"), (pickled, "M.from_pretrained("),
        (no_tokenizer, "tokenizer.json"), (broken_config, "not valid JSON"), (listed_config, "JSON object"),
        (classifier, "BertForSequenceClassification"), (nameless, "architectures"), (own_code, "--trust-remote-code"),
        (truncated, "corrupt"), (extended, "corrupt"), (empty, "not a whole safetensors file"), (long_header, "not a whole safetensors file"),
        (no_json_header, "corrupt"), (listed_header, "corrupt"), (unknown_dtype, "corrupt"), (wrong_shape, "corrupt"),
        (missing_shard, "is missing"), (empty_index, "no shards"), (foreign_shard, "outside of the model"),
    ],
)  # fmt: skip
def test_a_bad_folder_is_one_sentence_with_the_remedy(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        found(folder, tmp_path)
    assert says in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_classifier_is_told_what_genopt_takes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"causal language models .* and text-to-image pipelines"):
        found(write_model(tmp_path / "bert", architectures=["BertForSequenceClassification"]), tmp_path)


def test_trusted_code_is_accepted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    own_code(folder)
    assert found(folder, tmp_path, trust_remote_code=True).architecture == "LlamaForCausalLM"


def test_code_beside_a_model_that_transformers_defines_itself_is_not_needed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert found(folder, tmp_path).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "~no-such-user/x", "x" * 300 + "/y/z"])
def test_a_missing_folder_names_the_choices(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no folder .*smollm2-135m"):
        found(model, tmp_path)


def test_a_single_file_is_told_to_give_its_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    with pytest.raises(ModelError, match="give the folder that holds it"):
        found(folder / "model.safetensors", tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "notes.bin").symlink_to("/proc/self/mem")  # whose first byte nobody can read, not even root
    with pytest.raises(ModelError, match=r"notes\.bin cannot be read \(Input/output error\); check its permissions and its disk"):
        found(folder, tmp_path)


HUB = """
import sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from genopt.errors import StorageError

COMMIT = "0" * 40

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(b"{}")
    def do_GET(self):
        self.answer(b'{"id": "nobody/nothing", "sha": "%s", "siblings": [{"rfilename": "config.json"}]}' % COMMIT.encode())
    def answer(self, content):
        self.send_response(200)
        for name, value in (("Content-Length", len(content)), ("ETag", "e"), ("X-Repo-Commit", COMMIT), ("Content-Type", "application/json")):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
    def log_message(self, *said):
        pass

with HTTPServer(("127.0.0.1", 0), Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import os
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    from genopt.models.resolve import resolve
    try:
        resolve("nobody/nothing", cache=Path(sys.argv[1]), progress=str)
    except StorageError as error:
        print(error)
    server.shutdown()
"""


def test_a_cache_of_the_hub_that_cannot_be_written_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = subprocess.run([sys.executable, "-c", HUB, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path}/file/hf/hub cannot be used (Not a directory); choose another folder with HF_HOME."


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        found(tmp_path / "none.gguf", tmp_path)


def test_a_gguf_file_with_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "fake.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        found(path, tmp_path)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_a_gguf_file_of_another_version(version: int, tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little"))
    with pytest.raises(ModelError, match=rf"version {version}, and versions 2 and 3 can be read; write it again"):
        found(path, tmp_path)


def test_a_gguf_file_stays_beside_what_it_was_converted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a candidate itself; models that were given otherwise have none."""
    file, plain = tmp_path / "given.gguf", write_model(tmp_path / "plain")
    file.write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"weights")
    monkeypatch.setattr(gguf, "_run", lambda _source, destination: write_model(destination))
    folder = Path(found(file, tmp_path / "cache").path)
    assert (folder / gguf.GIVEN).read_bytes() == file.read_bytes()
    as_given = next(plan for plan in TextGeneration.catalogue({}, 600.0) if plan.steps[:1] == (Step(technique="gguf_as_given"),))
    assert fits(as_given, gguf.original_traits(folder))
    assert not fits(as_given, gguf.original_traits(plain))
    others = [plan for plan in TextGeneration.catalogue({}, 600.0) if plan != as_given]
    assert all(fits(plan, gguf.original_traits(folder)) and fits(plan, gguf.original_traits(plain)) for plan in others)
    GgufAsGiven.check(folder, {})
    with pytest.raises(InfeasibleError, match=r"give the \.gguf file as MODEL"):
        GgufAsGiven.check(plain, {})


def test_a_hub_id_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = (
        "import sys; from pathlib import Path; from genopt.errors import ModelError; from genopt.models.resolve import resolve\n"
        "try: resolve('nobody/nothing', cache=Path(sys.argv[1]), progress=print)\n"
        "except ModelError as error: print(error)\n"
        "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    done = subprocess.run([sys.executable, "-c", offline, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "give a local folder, or use a built-in name (smollm2-135m, digits-diffusion)." in lines[-2]
    assert lines[-1] == "[]"


JSON = st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
ENTRIES = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "U8"]) | JSON, "shape": JSON, "data_offsets": JSON}) | JSON


@given(header=st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3) | JSON, rest=st.binary(max_size=16))
def test_no_header_is_worse_than_a_model_error(header: Any, rest: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    try:
        tensors = read_header(path)
    except ModelError:
        return
    assert all(name in header for name in tensors)


def test_a_header_counts_scalars_and_empty_tensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"scalar": ("F32", ()), "empty": ("F32", (0, 3))})
    assert read_header(tmp_path / "t.safetensors") == {"scalar": ("float32", 1), "empty": ("float32", 0)}
