"""Engine environments: built whole or not at all, offline, found by their digest, and lent nothing but this package."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from genopt import catalog, process, session_worker
from genopt.cli import main
from genopt.environments import build as building
from genopt.environments import declaration, place
from genopt.environments.built_in import LLAMACPP, LLMCOMPRESSOR, ONNX, OPENVINO, VLLM, VLLM_CPU
from genopt.environments.declaration import Environment, declared, find
from genopt.environments.installer import failure
from genopt.errors import GenoptError, InfeasibleError, SpecError, StageError, StorageError
from genopt.process import run_stage
from genopt.store.files import exclusive

TECHNIQUE = """
import json, sys
from pathlib import Path

class Technique:
    @staticmethod
    def check(source, params): pass

    @staticmethod
    def apply(source, destination, params, context, progress):
        import tiny_engine
        loaded = sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))
        found = {"prefix": sys.prefix, "loaded": loaded, "value": tiny_engine.VALUE}
        Path(destination, "found.json").write_text(json.dumps(found))
"""
ENTRIES = "[genopt.techniques]\nfrom_afar = tiny_engine.technique:Technique\n"
WORKER_NEEDS = ("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection")


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """A wheel of pure files (https://packaging.python.org/specifications/binary-distribution-format)."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}" for path, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def repack(folder: Path, name: str) -> str:
    """The wheel of a distribution that is installed here; returns its line of a lock."""
    found = metadata.distribution(name)
    kept = [path for path in found.files or () if ".." not in path.parts and ".dist-info" not in str(path) and path.suffix != ".pyc"]
    write_wheel(folder, name.replace("-", "_"), found.version, {str(path): Path(str(path.locate())).read_bytes() for path in kept})
    return f"{name}=={found.version}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds all that a tiny environment needs."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in WORKER_NEEDS:
        repack(folder, name)
    files = {"tiny_engine/__init__.py": b"VALUE = 41\n", "tiny_engine/technique.py": TECHNIQUE.encode()}
    write_wheel(folder, "tiny_engine", "1.0", {**files, "tiny_engine-1.0.dist-info/entry_points.txt": ENTRIES.encode()})
    return folder


Declare = Callable[..., Environment]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Registers the environment `tiny` with a lock."""
    package = tmp_path / "declares_tiny"
    package.mkdir()
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "envs"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(lock: str, disk_bytes: int = 1) -> Environment:
        (package / "__init__.py").write_text(
            "from genopt.environments.declaration import Environment\n"
            f"TINY = Environment(name='tiny', about='it is small', package='declares_tiny', lock='lock.txt', disk_bytes={disk_bytes})\n"
        )
        (package / "lock.txt").write_text(lock)
        monkeypatch.delitem(sys.modules, "declares_tiny", raising=False)
        names = {**catalog.BUILT_IN, "environments": {**catalog.BUILT_IN["environments"], "tiny": "declares_tiny:TINY"}}
        monkeypatch.setattr(catalog, "BUILT_IN", MappingProxyType(names))
        return find("tiny")

    return write


def lock() -> str:
    return "".join(f"{name}=={metadata.version(name)}\n" for name in WORKER_NEEDS) + "tiny_engine==1.0\n"


def quiet(_: str) -> None:
    """Nobody listens."""


def test_a_stage_runs_in_an_environment_that_was_built_offline(declare: Declare, wheels: Path, tmp_path: Path) -> None:
    import json

    environment, said = declare(lock()), list[str]()
    note = building.build(environment, wheels=wheels, progress=said.append)
    assert place.state_of(environment) == "built"
    assert note.bytes > 0
    assert any("tiny" in line for line in said), "the progress names what is installed"
    payload = {
        "technique": "from_afar", "source": str(tmp_path), "destination": str(tmp_path), "params": {},
        "context": {"original": "", "calibration": None, "seed": 0, "threads": 1},
    }  # fmt: skip
    run_stage("transform", payload, log=tmp_path / "log.txt", timeout_s=60, where="tiny")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["value"] == 41
    assert Path(found["prefix"]) == place.folder_of(environment)
    foreign = {"__main__", "annotated_types", "genopt", "pydantic", "pydantic_core", "tiny_engine", "typing_extensions", "typing_inspection"}
    assert {name for name in found["loaded"] if not name.startswith("_sysconfig")} <= foreign, "the worker itself needs nothing else"
    assert building.build(environment, wheels=wheels, progress=said.append) == note, "what is built is not built again"
    removed = building.remove(environment)
    assert removed == [place.folder_of(environment)]
    with pytest.raises(InfeasibleError, match=r"'tiny' is not built .* genopt env build tiny"):
        run_stage("transform", payload, log=tmp_path / "log.txt", timeout_s=60, where="tiny")
    with pytest.raises(SpecError, match="not built"):
        building.remove(environment)


def test_a_changed_lock_makes_another_environment_and_leaves_the_old_one(declare: Declare, wheels: Path) -> None:
    old = declare("tiny_engine==1.0\n")
    building.build(old, wheels=wheels, progress=quiet)
    folder = place.folder_of(old)
    same = declare("# a comment\n\ntiny_engine==1.0  # and another\n")
    assert place.folder_of(same) == folder
    new = declare("tiny_engine==1.0\ntyping-extensions==0.0\n")
    assert place.state_of(new) == "outdated"
    assert place.interpreter(folder).exists(), "what runs in it goes on"
    with pytest.raises(InfeasibleError, match=r"other versions .* genopt env build tiny"):
        place.require_built("tiny")
    assert building.remove(new) == [folder]


def test_a_half_built_environment_is_built_again(declare: Declare, wheels: Path) -> None:
    environment = declare("tiny_engine==1.0\n")
    folder = place.folder_of(environment)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("cut off")
    assert place.state_of(environment) == "absent"
    building.build(environment, wheels=wheels, progress=quiet)
    assert place.state_of(environment) == "built"
    place.interpreter(folder).unlink()
    assert place.state_of(environment) == "absent", "without its interpreter it is none"


def test_modules_in_the_current_directory_have_no_part_in_a_build(
    declare: Declare, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("venv", "pip", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('error: it ran')")
    monkeypatch.chdir(tmp_path)
    environment = declare("tiny_engine==1.0\n")
    building.build(environment, wheels=wheels, progress=quiet)
    building.adopt(environment, Path(sys.executable))
    assert place.state_of(environment) == "built"


def test_a_failed_build_leaves_nothing(declare: Declare, wheels: Path) -> None:
    environment = declare("tiny_engine==1.0\nno-such-thing==9\n")
    with pytest.raises(StageError, match=r"'tiny' cannot be built.*--wheels"):
        building.build(environment, wheels=wheels, progress=quiet)
    assert not place.folders_of(environment)
    assert [path.suffix for path in place.root().iterdir()] == [".lock"]


def test_builds_that_the_usual_index_lacks_come_from_the_one_that_is_declared(
    declare: Declare, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, declared_one = tmp_path / "usual", tmp_path / "declared"
    for index, names in ((usual, WORKER_NEEDS), (declared_one, ("tiny-engine",))):
        for name in names:
            (index / name).mkdir(parents=True)
            made = [path for path in wheels.iterdir() if path.name.lower().startswith(name.replace("-", "_") + "-")]
            for path in made:
                shutil.copy(path, index / name)
            (index / name / "index.html").write_text("".join(f'<a href="{path.name}">{path.name}</a>' for path in made))
    write_wheel(declared_one / "tiny-engine", "tiny_engine", "1.0+cpu", {"tiny_engine/__init__.py": b"VALUE = 42\n"})
    page = declared_one / "tiny-engine" / "index.html"
    page.write_text(page.read_text() + '<a href="tiny_engine-1.0%2Bcpu-py3-none-any.whl">tiny_engine-1.0+cpu-py3-none-any.whl</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for prefix in ("PIP", "UV"):
        monkeypatch.setenv(f"{prefix}_INDEX_URL", usual.as_uri())
        monkeypatch.delenv(f"{prefix}_FIND_LINKS", raising=False)
    environment = declare(lock().replace("tiny_engine==1.0", "tiny_engine==1.0+cpu")).model_copy(update={"index": declared_one.as_uri()})
    said: list[str] = []
    building.build(environment, wheels=None, progress=said.append)
    assert [line for line in said if line.startswith("looking for tiny_engine==1.0+cpu in file://")]
    python = place.interpreter(place.folder_of(environment))
    answer = subprocess.run([python, "-c", "import tiny_engine; print(tiny_engine.VALUE)"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "42"


def test_an_index_that_does_not_answer_is_named(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for prefix in ("PIP", "UV"):
        monkeypatch.setenv(f"{prefix}_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv(f"{prefix}_RETRIES", "1")
    environment = declare("tiny_engine==1.0\n")
    with pytest.raises(StageError, match=r"index does not answer.*--wheels"):
        building.build(environment, wheels=None, progress=quiet)
    assert not place.folders_of(environment)


def test_a_disk_without_room_and_a_folder_that_cannot_be_used_are_refused(declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = declare("tiny_engine==1.0\n", disk_bytes=10**18)
    with pytest.raises(StorageError, match="GENOPT_ENVS"):
        building.build(environment, wheels=tmp_path, progress=quiet)
    with pytest.raises(SpecError, match="--wheels"):
        building.build(environment, wheels=tmp_path / "nowhere", progress=quiet)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match="GENOPT_ENVS"):
        building.build(environment, wheels=tmp_path, progress=quiet)


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", StorageError, "GENOPT_ENVS"),
        ("CMake Error: CMAKE_C_COMPILER not set, after EnableLanguage", InfeasibleError, r"apt install g\+\+"),
        ("error: command 'gcc' failed: No such file or directory", InfeasibleError, r"apt install g\+\+"),
        ("  × No solution found\n  ╰─▶ Because tiny was not found in the package registry", StageError, "--wheels"),
        ("error: Failed to fetch: dns error: failed to lookup address", StageError, "--wheels"),
        ("something else\nERROR: it broke.", StageError, r"it broke\); run with --debug"),
        ("", StageError, "no output"),
    ],
)
def test_the_output_of_an_installer_is_said_in_one_sentence(said: str, kind: type[GenoptError], remedy: str) -> None:
    found = failure("tiny", said.splitlines())
    assert type(found) is kind
    assert "'tiny'" in found.message
    with pytest.raises(kind, match=remedy):
        raise found


def test_an_interpreter_that_is_there_can_be_used_instead(declare: Declare, wheels: Path, tmp_path: Path) -> None:
    environment = declare(lock())
    note = building.adopt(environment, Path(sys.executable))
    assert place.state_of(environment) == "built"
    assert place.identities()["tiny"] == note.digest != environment.digest(), "its results are not those of the lock"
    answer = subprocess.run([*place.worker_command("tiny")[:1], "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == sys.prefix, "it finds its own libraries"
    assert building.adopt(environment, Path(sys.executable)).digest == note.digest, "the same libraries are the same environment"
    building.remove(environment)
    assert building.build(environment, wheels=wheels, progress=quiet).digest == environment.digest() == place.identities()["tiny"]


def test_an_interpreter_that_cannot_be_used_is_refused(declare: Declare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(lock())
    assert main(["env", "use", "tiny", str(tmp_path / "nothing")]) == 2
    assert "does not run; give the path of a Python interpreter" in capsys.readouterr().err
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    assert main(["env", "use", "tiny", str(tmp_path / "bare/bin/python")]) == 2
    assert "No module named 'numpy'); install it there: pip install pydantic numpy" in capsys.readouterr().err
    assert place.states()["tiny"] == "absent"


def test_an_interpreter_is_found_by_its_name_as_in_a_shell(
    declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment, elsewhere, here = declare(lock()), tmp_path / "elsewhere", tmp_path / "here"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    for folder in (elsewhere, here):
        folder.mkdir()
        (folder / "their-python").symlink_to(program)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str(elsewhere), prepend=os.pathsep)
    for asked, found in (("their-python", elsewhere), ("./their-python", here), ("../elsewhere/their-python", here / "../elsewhere")):
        assert main(["env", "use", "tiny", asked]) == 0
        assert f"tiny is {found / 'their-python'} " in capsys.readouterr().err, "where it lies, and not what a link of it points to"
        assert place.state_of(environment) == "built"
        subprocess.run([*place.worker_command("tiny")[:1], "-c", "pass"], check=True)


def test_what_cannot_be_adopted_leaves_the_build_that_is_there(
    declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = declare(lock())
    note = building.adopt(environment, sys.executable)
    broken = tmp_path / "broken-python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for asked, reason in (
        ("broken-python", "does not run; give the path"), ("./broken-python", "lacks what genopt's worker needs"),
        (str(place.interpreter(place.folder_of(environment))), "give an interpreter from elsewhere"),
    ):  # fmt: skip
        assert main(["env", "use", "tiny", asked]) == 2
        assert reason in capsys.readouterr().err
        assert place.note_of(place.folder_of(environment)) == note


def test_an_interpreter_that_has_gone_is_none(declare: Declare, tmp_path: Path) -> None:
    environment, theirs = declare(lock()), tmp_path / "python"
    theirs.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    theirs.chmod(0o755)
    building.adopt(environment, theirs)
    assert place.state_of(environment) == "built"
    theirs.unlink()
    assert place.state_of(environment) == "absent"
    with pytest.raises(InfeasibleError, match="is not built on this machine; build it with: genopt env build tiny"):
        place.worker_command("tiny")


def test_an_interpreter_that_is_too_old_is_refused(declare: Declare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(lock())
    old = tmp_path / "python3.10"
    old.write_text("""#!/bin/sh\necho '{"python": "3.10.4", "version": [3, 10], "installed": []}'\n""")
    old.chmod(0o755)
    assert main(["env", "use", "tiny", str(old)]) == 2
    assert "is Python 3.10.4, and genopt's worker needs 3.11 or newer; give another interpreter" in capsys.readouterr().err


def test_a_build_for_one_processor_is_another_on_one_that_knows_less(declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anywhere = declare(lock())
    native = anywhere.model_copy(update={"native": True})
    digests = set()
    for number, flags in enumerate(("fpu sse4_2 avx2 fma avx512f", "fpu sse4_2 avx2 fma", "sse4_2 vme avx2 fma")):
        facts = tmp_path / f"cpuinfo-{number}"
        facts.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
        monkeypatch.setattr(declaration, "CPU_FACTS", facts)
        digests.add((anywhere.digest(), native.digest()))
    assert len({one for one, _ in digests}) == 1
    assert len({one for _, one in digests}) == 2, "what kernels are not built with does not count"


def test_an_installer_that_outlives_its_build_keeps_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path) as held:
        installer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(held,))
    with path.open("w") as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    installer.communicate()
    with exclusive(path):
        pass


def test_every_lock_pins_everything_once() -> None:
    for environment in (LLAMACPP, LLMCOMPRESSOR, ONNX, OPENVINO, VLLM, VLLM_CPU):
        lines = [line for line in environment.requirements().splitlines() if line and not line.startswith("#")]
        names = [line.partition("==")[0] for line in lines]
        assert all(version for _, _, version in (line.partition("==") for line in lines))
        assert len(set(names)) == len(names)
        assert {"pydantic", "pydantic-core", "numpy", "pyarrow"} <= {name.replace("_", "-") for name in names}
        assert environment.index is not None or not any("+" in line for line in lines), "local versions are not on the usual index"
        assert environment.device == "gpu" or "torch==" not in environment.requirements() or any(
            line.startswith("torch==") and line.endswith("+cpu") for line in lines
        ), "the usual index has torch for GPUs only, which needs more than its lock holds"  # fmt: skip
    assert {environment.name for environment in declared()} >= {"llamacpp", "llmcompressor", "onnx", "openvino", "vllm", "vllm-cpu"}


def test_the_command_line_lists_builds_and_removes(declare: Declare, wheels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    declare("tiny_engine==1.0\n")

    def listed() -> dict[str, Any]:
        assert main(["env", "list", "--json"]) == 0
        return {row["name"]: row for row in json.loads(capsys.readouterr().out)}

    assert listed()["tiny"]["state"] == "absent"
    assert main(["env", "build", "tiny", "--wheels", str(wheels)]) == 0
    assert "genopt env check tiny" in capsys.readouterr().err
    assert listed()["tiny"]["state"] == "built"
    assert main(["env", "check", "tiny"]) == 1
    assert "Nothing runs in the environment 'tiny'" in capsys.readouterr().err
    assert main(["env", "remove", "tiny"]) == 0
    assert main(["env", "remove", "tiny"]) == 2
    assert main(["env", "build", "nothing"]) == 2
    assert "There is no environment 'nothing'" in capsys.readouterr().err


def test_an_engine_of_an_environment_that_is_gone_does_not_open(declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare("tiny_engine==1.0\n")
    monkeypatch.setattr(session_worker, "environment_of", lambda _: "tiny")
    with pytest.raises(InfeasibleError, match="genopt env build tiny"):
        process.SessionProcess("torch", tmp_path, {}, log=tmp_path / "log.txt", timeout_s=10).open()


def test_a_report_says_how_to_add_the_engines_that_were_not_built(tmp_path: Path) -> None:
    from genopt.report.assemble import assemble
    from genopt.spec import RunSpec, dump
    from genopt.store.run_folder import RunFolder

    states = {"vllm": "absent", "llamacpp": "absent", "openvino": "built", "onnx": "absent", "llmcompressor": "absent", "another's": "absent"}
    folder = RunFolder.create(tmp_path / "run", dump(RunSpec(model="any")), {"hardware": {}, "environment": {"engine_environments": states}})
    with folder.hold():
        folder.append("model_resolved", model={"id": "any", "modality": "text", "task": "text-generation"})
    said = " ".join(assemble(folder).next_steps)
    assert "`genopt env build llamacpp`" in said
    assert "openvino" not in said
    assert "`genopt env build vllm`" not in said, "there is no GPU in this run"
    assert "`genopt env build llmcompressor`" in said, "techniques have environments too"
    assert "`genopt env build onnx`" not in said, "it is for images"
