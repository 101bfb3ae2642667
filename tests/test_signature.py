"""No byte of a plan reaches a runtime before all of it is what was signed with this key, or admitted by hand."""

import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, Run, as_ordinary_user, photographs

import segdeploy
from segdeploy import artifact, claims, engines, proving, signature
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Limits
from segdeploy.engines import BuildOptions, _cuda
from segdeploy.errors import InvalidFileError, SegdeployError
from segdeploy.low_precision import Executed
from segdeploy.origin import Origin
from segdeploy.spec import Precision
from segdeploy.target import Gpu, PlanFacts, Target, TypedNetwork

Refusal = Callable[[Artifact], SegdeployError]

FILES = ("", ".json", ".sig")
CAPABILITY = "8.9"
BUILD = ("build", "--model", "unet", "--engine", "trt-rtx:fp32", "--compute-capability")
FUZZED = 800  # mutations of each of the three files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration folder of a user who has no key yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(signature.KEY_VARIABLE, raising=False)
    return tmp_path / "home/segdeploy"


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with engines/, one plan in it, and home/segdeploy/key."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it builds plans without a GPU")
    folder = tmp_path_factory.mktemp("built")
    graph = artifact.read(small / "export/unet.fp32.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
        patch.delenv(signature.KEY_VARIABLE, raising=False)
        options = BuildOptions(compute_capability=CAPABILITY)
        engines.compiling("trt-rtx").compile(graph, folder / "engines", options)
    return folder


@pytest.fixture
def plan(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A plan in engines/ of the working directory, signed with the key of this user; photos/ beside it."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", "a.png")
    (path,) = Path("engines").glob("*.plan")
    return artifact.read_manifest(path)


class OneGpu:
    """As much of CUDA as is needed to say which GPU it is."""

    capability = CAPABILITY

    def active(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def gpu(self) -> Gpu:
        return Gpu("a GPU", self.capability, 24_000, None, "13.0")

    def close(self) -> None: ...


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What came to the runtime. It and its GPU are made up, so that nothing but our own checks can refuse a plan."""
    seen: list[object] = []

    class Runtime:
        def __init__(self, _logger: object) -> None:
            seen.append("started")

        def deserialize_cuda_engine(self, data: bytes) -> None:
            seen.append(data)

    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it opens plans")
    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(_cuda, "connect", lambda _name=None: OneGpu())
    return seen


@pytest.fixture
def refusal(reached: list[object]) -> Refusal:
    """Why a plan is not opened; nothing of it came to the runtime."""

    def of(plan: Artifact) -> SegdeployError:
        with pytest.raises(SegdeployError) as refused:
            engines.open_engine(plan, runtime="trt-rtx")
        assert refused.value.exit_code == 3
        assert reached == []
        return refused.value

    return of


def require_opened(plan: Artifact, reached: list[object]) -> None:
    """Every check was passed: what refuses it is the made-up runtime, after it saw the plan."""
    with pytest.raises(InvalidFileError, match="cannot load"):
        engines.open_engine(plan, runtime="trt-rtx")
    assert reached == ["started", plan.path.read_bytes()]
    reached.clear()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def sign(path: Path, manifest: bytes) -> None:
    """Put a manifest beside a plan that this user signed, whatever stands in it."""
    beside(path, ".json").write_bytes(manifest)
    beside(path, ".sig").write_bytes(hmac.digest(signature.make_key(), manifest, "sha256"))


def described(path: Path, data: bytes) -> Artifact:
    """Any bytes as a plan: what is not opened need not be one."""
    facts = PlanFacts(
        runtime="trt-rtx",
        runtime_version="0",
        system="none",
        target=Target(CAPABILITY),
        size=len(data),
        options=BuildOptions(),
        timing_cache_sha256=None,
        calibration_sha256=None,
        asked={},
        typed=TypedNetwork(work={}, tensors={}),
        executed=Executed(delivered=Precision.FP32, delivered_share=1.0),
    )
    return Artifact(
        path=path,
        kind="plan",
        precision=Precision.FP32,
        spec=SPEC,
        sha256=hashlib.sha256(data).hexdigest(),
        made_at=artifact.now(),
        origin=Origin(command="test", version="0"),
        plan=facts,
    )


PROVEN = Certificate(
    model="unet",
    precision=Precision.FP32,
    form=None,
    weights="file",
    gated=True,
    passed=True,
    first_failing_stage=None,
    proven_to="engine",
    images=1,
    stages=(),
    limits=Limits(min_agreement=0.9999, max_drop=0.05),
)


def built_otherwise(plan: Artifact, **facts: object) -> Artifact:
    """The same plan, built otherwise."""
    return dataclasses.replace(plan, plan=dataclasses.replace(signature.facts_of(plan), **facts))  # type: ignore[arg-type]


def published(path: Path, data: bytes) -> Artifact:
    signature.make_key()
    plan = described(path, data)
    signature.publish(plan, data)
    return plan


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest_sha256(plan: Artifact) -> str:
    return artifact.sha256(beside(plan.path, ".json"))


def test_a_plan_that_was_built_here_is_opened(plan: Artifact, reached: list[object]) -> None:
    """Else every refusal below could have another cause."""
    require_opened(plan, reached)


def test_a_plan_is_opened_in_another_home_with_the_same_key_file(
    workspace: Path, home: Path, monkeypatch: pytest.MonkeyPatch, run: Run, reached: list[object]
) -> None:
    key = workspace / "team.key"
    key.write_bytes(os.urandom(40))
    key.chmod(0o600)
    done = run(*BUILD, CAPABILITY, "--json", SEGDEPLOY_KEY_FILE=str(key))
    assert done.code == 0
    assert not home.exists()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(workspace / "another"))
    monkeypatch.setenv(signature.KEY_VARIABLE, str(key))
    require_opened(artifact.read_manifest(Path(done.json()["path"])), reached)


# What is done to one of the three files


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (flip, ""),
    (lambda path: os.truncate(path, path.stat().st_size - 1), ""),
    (lambda path: path.write_bytes(path.read_bytes() + b"\0"), ""),
    (lambda path: os.truncate(path, 0), ""),
    (Path.unlink, "is missing"),
    (link, "it is a link"),
    (make_folder, "it is no regular file"),
    (make_fifo, "it is no regular file"),
]


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("damage,reason", DAMAGES)
def test_a_damaged_file_is_refused_before_the_runtime_sees_it(
    plan: Artifact, refusal: Refusal, suffix: str, damage: Callable[[Path], object], reason: str
) -> None:
    damage(beside(plan.path, suffix))
    assert reason in refusal(plan).what


@pytest.mark.parametrize("suffix", [".json", ".sig"])
def test_a_file_too_large_to_be_ours_is_refused_unread(plan: Artifact, refusal: Refusal, suffix: str) -> None:
    os.truncate(beside(plan.path, suffix), 2**40)
    assert "of ours" in refusal(plan).what


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_files_in_each_others_place_are_refused(plan: Artifact, refusal: Refusal, order: tuple[int, ...]) -> None:
    contents = [beside(plan.path, suffix).read_bytes() for suffix in FILES]
    for suffix, other in zip(FILES, order, strict=True):
        beside(plan.path, suffix).write_bytes(contents[other])
    refusal(plan)


def test_the_manifest_of_another_plan_is_refused(plan: Artifact, refusal: Refusal) -> None:
    """It is signed, and describes something else."""
    other = published(plan.path.with_name("other.plan"), b"another")
    for suffix in (".json", ".sig"):
        beside(other.path, suffix).replace(beside(plan.path, suffix))
    assert f"{plan.path} was built as other.plan" in refusal(plan).what


def test_a_signed_plan_of_another_network_under_this_name_is_refused(plan: Artifact, refusal: Refusal) -> None:
    """All three of its files, and each as it was built: the name chooses the network."""
    other = published(plan.path.with_name("other.plan"), b"another")
    for suffix in FILES:
        beside(other.path, suffix).replace(beside(plan.path, suffix))
    assert "was built as other.plan" in refusal(plan).what


def test_a_proof_of_a_plan_that_was_built_again_meanwhile_is_not_signed(tmp_path: Path) -> None:
    """Builds are not the same to the byte: the manifest of the one is not put beside the other."""
    signature.make_key()
    former = published(tmp_path / "a.plan", b"former")
    later = published(tmp_path / "a.plan", b"later")
    with pytest.raises(InvalidFileError, match="built again meanwhile"):
        signature.publish(former)
    assert signature.read(later.path) == (later, b"later")


@pytest.mark.parametrize(
    "damage",
    [
        {"options": {}},
        {"options": {"max_batch": "8"}},
        {"executed": {"delivered": "fp64"}},
        {"executed": {"delivered": 3}},
        {"size": None},
        {"size": 7},
        {"runtime": "ort"},
    ],
    ids=str,
)
def test_a_signed_manifest_that_is_none_of_ours_is_refused(
    plan: Artifact, refusal: Refusal, damage: dict[str, Any]
) -> None:
    """Its facts are looked at before the plan is."""
    document = json.loads(artifact.manifest(plan))
    ((name, value),) = damage.items()
    facts = document["plan"]
    facts[name] = {**facts[name], **value} if value and isinstance(value, dict) else value
    sign(plan.path, json.dumps(document).encode())
    refusal(plan)


@pytest.mark.parametrize("runtime", ["ov", "ort", "torch"])
def test_a_plan_is_not_handed_to_a_runtime_of_graphs(plan: Artifact, runtime: str) -> None:
    with pytest.raises(InvalidFileError, match=f"is a plan; {runtime} opens a"):
        engines.open_engine(plan, runtime=runtime, device="cpu")


def test_a_proof_does_not_turn_trust_into_a_signature(plan: Artifact, home: Path) -> None:
    """Else `trust --revoke` would have no effect."""
    (home / "key").write_bytes(b"x" * 32)
    signature.trust(artifact.sha256(artifact.manifest_path(plan.path)))
    proving.keep(plan, PROVEN)
    kept = signature.read_manifest(plan.path)
    assert kept.certificate is None
    assert list(claims.counting(kept)) == [PROVEN]


def test_a_refusal_leaves_no_file_open(plan: Artifact, refusal: Refusal) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    make_folder(plan.path)
    for _ in range(20):
        refusal(plan)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_the_proof_of_a_signed_plan_is_signed_again(plan: Artifact) -> None:
    """Whoever can write into the folder could else have a manifest signed that he put there meanwhile."""
    signature.publish(dataclasses.replace(plan, certificate=PROVEN))
    assert signature.read_manifest(plan.path).certificate == PROVEN
    with pytest.raises(InvalidFileError, match="or changed"):
        signature.publish(built_otherwise(plan, target=Target("12.0")))
    beside(plan.path, ".sig").write_bytes(bytes(32))
    with pytest.raises(InvalidFileError, match="or changed"):
        signature.publish(dataclasses.replace(plan, certificate=None))


@pytest.mark.usefixtures("home")
def test_a_folder_in_place_of_a_signature_loses_nothing(tmp_path: Path) -> None:
    signature.make_key()
    former = published(tmp_path / "a.plan", b"former")
    signature.signature_path(former.path).unlink()
    signature.signature_path(former.path).mkdir()
    with pytest.raises(InvalidFileError, match="it is a folder"):
        signature.publish(described(former.path, b"later"), b"later")
    assert former.path.read_bytes() == b"former"


def test_a_plan_without_its_companions_is_refused(plan: Artifact, refusal: Refusal) -> None:
    renamed = plan.path.rename(plan.path.with_name("renamed.plan"))
    assert "renamed.plan.json is missing" in refusal(dataclasses.replace(plan, path=renamed)).what


@pytest.mark.parametrize(
    "fact,value",
    [
        ("runtime", "another"),
        ("runtime_version", "another"),
        ("system", "another"),
        ("compute_capability", "9.0"),
    ],
)
def test_a_plan_for_something_else_is_refused(plan: Artifact, refusal: Refusal, fact: str, value: str) -> None:
    other = {"target": Target(value)} if fact == "compute_capability" else {fact: value}
    sign(plan.path, artifact.manifest(built_otherwise(plan, **other)))
    assert f"was built for {fact.replace('_', ' ')} {value}; here it is" in refusal(plan).what


@pytest.mark.parametrize("fact", ["runtime", "runtime_version", "system", "compute_capability"])
@pytest.mark.parametrize("value", [None, 5])
def test_a_plan_that_does_not_say_what_it_is_for_is_refused(
    plan: Artifact, refusal: Refusal, fact: str, value: int | None
) -> None:
    """The manifest is signed and still none: the field is named."""
    document = json.loads(artifact.manifest(plan))
    of_target = fact == "compute_capability"
    facts = document["plan"]["target"] if of_target else document["plan"]
    facts[fact] = value
    sign(plan.path, json.dumps(document).encode())
    assert f"plan.{'target.' if of_target else ''}{fact}: expected str" in refusal(plan).what


@pytest.mark.parametrize("value", ["another", "8.9\n", "sm_89"])
def test_a_plan_for_no_compute_capability_is_refused(plan: Artifact, refusal: Refusal, value: str) -> None:
    document = json.loads(artifact.manifest(plan))
    document["plan"]["target"]["compute_capability"] = value
    sign(plan.path, json.dumps(document).encode())
    assert f"{value!r} is no compute capability" in refusal(plan).what


def test_another_gpu_is_refused(plan: Artifact, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneGpu, "capability", "9.0")
    refused = refusal(plan)
    assert refused.what == f"{plan.path} was built for compute capability 8.9; here it is 9.0."
    assert refused.remedy == "Build it here: segdeploy build --model unet --engine trt-rtx:fp32"


CHANGES: list[dict[str, Any]] = [
    *({"schema": version} for version in (4, None)),
    *({"kind": kind} for kind in ("graph", "checkpoint", ["plan"])),
    *({field: 5} for field in ("precision", "sha256", "origin", "plan", "spec", "unknown")),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_signed_manifest_of_something_else_is_refused(
    plan: Artifact, refusal: Refusal, change: dict[str, Any]
) -> None:
    """Another version may have signed it with the same key."""
    sign(plan.path, json.dumps({**json.loads(artifact.manifest(plan)), **change}).encode())
    assert f"{plan.path}.json" in refusal(plan).what


@pytest.mark.parametrize("manifest", [b"", b"\xff\xfe", b"[1]", b"null", b"{}", b"[" * 100_000, b"1" * 5000])
def test_signed_bytes_that_are_no_manifest_are_refused(plan: Artifact, refusal: Refusal, manifest: bytes) -> None:
    sign(plan.path, manifest)
    assert f"{plan.path}.json" in refusal(plan).what


@pytest.mark.parametrize("suffix", [".json", ".sig"])
def test_no_byte_of_manifest_or_signature_can_be_changed(plan: Artifact, refusal: Refusal, suffix: str) -> None:
    path = beside(plan.path, suffix)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        refusal(plan)


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A file with a bit or a run of bytes changed, put in, taken out, turned or repeated, or with its end cut off."""
    at, some = int(rng.integers(len(whole))), int(rng.integers(1, 64))
    file = memoryview(whole)
    before, run, after = file[:at], whole[at : at + some], file[at + some :]
    kinds: list[tuple[bytes | memoryview, ...]] = [
        (before, bytes([run[0] ^ 1 << some % 8]), run[1:], after),
        (before, rng.bytes(1), run[1:], after),
        (before, rng.bytes(some), after),
        (before, bytes(some), after),
        (before, rng.bytes(some), run, after),
        (before, run[::-1], after),
        (before, run, run, after),
        (before, after),
        (before,),
        (run, after, before),
    ]
    return b"".join(kinds[rng.integers(len(kinds))])


@pytest.mark.slow
@pytest.mark.parametrize("seed,suffix", [*enumerate(FILES)])
def test_no_mutation_reaches_the_runtime(plan: Artifact, refusal: Refusal, seed: int, suffix: str) -> None:
    path, rng = beside(plan.path, suffix), np.random.default_rng(seed)
    whole = path.read_bytes()
    drawn = (mutated(whole, rng) for _ in itertools.count())
    for changed in itertools.islice((one for one in drawn if one != whole), FUZZED):
        path.write_bytes(changed)
        refusal(plan)


# The key


def test_a_build_makes_the_key_and_opening_never_does(workspace: Path, home: Path, run: Run) -> None:
    """Two builds at once meet an empty home: one of them makes the key, and both sign with it."""
    photographs(workspace / "photos", "a.png")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda capability: run(*BUILD, capability), (CAPABILITY, "12.0")))
    assert [build.code for build in done] == [0, 0]
    assert left_in(home) == ["key"]
    plans = sorted(Path("engines").glob("*.plan"))
    assert left_in(Path("engines")) == sorted(beside(path, suffix).name for path in plans for suffix in FILES)
    assert [run("inspect", path, "--json").json()["trust"]["admitted"] for path in plans] == [True, True]
    elsewhere = workspace / "elsewhere"
    refused = run("infer", "photos", "--model", plans[0], XDG_CONFIG_HOME=str(elsewhere))
    assert refused.code == 3
    assert "there is no key here" in refused.err
    assert not elsewhere.exists()


def test_a_key_is_for_its_user_alone_and_stays(home: Path) -> None:
    before = os.umask(0)
    try:
        key = signature.make_key()
    finally:
        os.umask(before)
    assert len(key) == signature.KEY_BYTES
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert signature.make_key() == signature.key() == key


def test_processes_that_make_the_key_at_once_use_one(home: Path) -> None:
    script = [sys.executable, "-c", "from segdeploy import signature; print(signature.make_key().hex(), end='')"]
    with contextlib.ExitStack() as stack:
        makers = [stack.enter_context(subprocess.Popen(script, stdout=subprocess.PIPE, text=True)) for _ in range(8)]
        printed = {maker.communicate()[0] for maker in makers}
    assert printed == {(home / "key").read_bytes().hex()}
    assert left_in(home) == ["key"]


def test_a_key_that_comes_too_late_gives_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have signed with the one that is there by now."""

    def random(count: int) -> bytes:
        (home / "key").write_bytes(b"k" * 32)
        (home / "key").chmod(0o600)
        return os.urandom(count)

    home.mkdir(parents=True)
    monkeypatch.setattr(secrets, "token_bytes", random)
    assert signature.make_key() == b"k" * 32
    assert left_in(home) == ["key"]


@pytest.mark.parametrize(
    "damage,reason",
    [
        (Path.unlink, "there is no key here"),
        (lambda key: key.write_bytes(b"x" * 31), "holds 31 bytes; a key has at least 32"),
        (lambda key: key.write_bytes(b"x" * 32), "its manifest was changed, or signed with another key"),
        (make_folder, "it is no regular file"),
    ],
)
def test_without_the_key_nothing_is_opened(
    plan: Artifact, home: Path, refusal: Refusal, damage: Callable[[Path], object], reason: str
) -> None:
    damage(home / "key")
    assert reason in refusal(plan).what


def test_an_unreadable_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(signature.KEY_VARIABLE, "key")
    Path("key").write_bytes(bytes(32))
    Path("key").chmod(0)
    with as_ordinary_user(), pytest.raises(InvalidFileError) as refused:
        signature.make_key()
    assert refused.value.what == "cannot read key: Permission denied."


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", [(*BUILD, CAPABILITY), ("infer", "photos", "--model", "engines/a.plan")])
def test_a_key_file_that_is_named_is_never_made(home: Path, run: Run, command: tuple[str, ...]) -> None:
    """A typing error in its name would sign with a key that nobody else has."""
    photographs(Path("photos"), "a.png")
    published(Path("engines/a.plan"), b"plan")
    refused = run(*command, SEGDEPLOY_KEY_FILE="nowhere/key")
    assert refused.code == 3
    assert refused.err == (
        "Error: SEGDEPLOY_KEY_FILE names nowhere/key, which is not there.\nPut the key there, or unset the variable.\n"
    )
    assert not Path("nowhere").exists()
    assert left_in(home) == ["key"]


# The list of what is trusted


def test_a_plan_from_elsewhere_is_trusted_until_it_is_revoked(
    plan: Artifact, home: Path, run: Run, reached: list[object], refusal: Refusal
) -> None:
    """Its manifest's sha256 is enough: neither key nor signature is there."""
    (home / "key").unlink()
    beside(plan.path, ".sig").unlink()
    refused = run("infer", "photos", "--model", plan.path)
    sha256 = refused.err.split()[-1]
    assert sha256 == manifest_sha256(plan)
    assert run("trust", sha256.upper()).code == 0
    assert list(run("trust", "--json").json()["trusted"]) == [sha256]
    require_opened(plan, reached)
    assert left_in(home) == ["trusted"]
    assert run("trust", "--revoke", sha256).code == 0
    assert run("trust").out == "No file from elsewhere is trusted.\n"
    assert "there is no key here" in refusal(plan).what


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_what_is_trusted_cannot_be_changed(plan: Artifact, home: Path, refusal: Refusal, suffix: str) -> None:
    (home / "key").unlink()
    signature.trust(manifest_sha256(plan))
    flip(beside(plan.path, suffix))
    refusal(plan)


def test_trust_lifts_no_other_check(plan: Artifact, refusal: Refusal) -> None:
    (manifest := beside(plan.path, ".json")).write_bytes(manifest.read_bytes().replace(b'"8.9"', b'"9.0"'))
    signature.trust(manifest_sha256(plan))
    assert "was built for compute capability 9.0" in refusal(plan).what


@pytest.mark.parametrize(
    "arguments", [["abc"], ["0" * 63], ["0" * 65], ["g" * 64], [""], ["--revoke"], ["--revoke", "0" * 64]]
)
def test_trust_takes_nothing_but_a_sha256_that_it_can_use(home: Path, run: Run, arguments: list[str]) -> None:
    refused = run("trust", *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 2
    assert not (home / "trusted").exists()


def test_a_list_with_other_lines_in_it_still_serves(home: Path) -> None:
    """People edit text."""
    kept = {letter * 64: "2026-01-01" for letter in "ab"}
    home.mkdir(parents=True)
    broken = ["# ours", "", "abc 2026", f"{'G' * 64} x", f" {'c' * 64}", "\0" * 9]
    (home / "trusted").write_text("\n".join([*broken, *(f"{sha256} {day}" for sha256, day in kept.items())]))
    assert signature.trusted() == kept
    assert set(signature.trust("d" * 64)) == {*kept, "d" * 64}
    assert signature.trust("d" * 64, revoke=True) == kept


def test_all_that_is_trusted_at_once_is_kept(home: Path) -> None:
    wanted = [f"{number:064x}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(signature.trust, wanted))
    assert sorted(signature.trusted()) == wanted
    assert left_in(home) == ["trusted"]


# The three files are written together

PUBLISH = """
import dataclasses, hashlib, itertools, os, signal, sys
from pathlib import Path
from segdeploy import artifact, claims, signature
path, mark = Path(sys.argv[1]), sys.argv[2]
plan, data = artifact.read_manifest(path), mark.encode() * 200_000
facts = dataclasses.replace(signature.facts_of(plan), system=mark, size=len(data))
plan = dataclasses.replace(plan, sha256=hashlib.sha256(data).hexdigest(), plan=facts)
"""
PUBLISH_OFTEN = "for _ in range(100): signature.publish(plan, data)"
PUBLISH_KILLED = """
act, calls = getattr(Path, sys.argv[3]), itertools.count()
def killed(*arguments):
    if next(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return act(*arguments)
setattr(Path, sys.argv[3], killed)
signature.publish(plan, data)
"""


def test_readers_see_a_whole_plan_while_others_write(tmp_path: Path) -> None:
    path = published(tmp_path / "a.plan", b"first").path
    script = [sys.executable, "-c", PUBLISH + PUBLISH_OFTEN]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(subprocess.Popen([*script, path, mark])) for mark in "xyz"]
        seen = set()
        while any(writer.poll() is None for writer in writers):
            plan, data = signature.read(path)
            mark = signature.facts_of(plan).system
            assert data == (b"first" if mark == "none" else mark.encode() * 200_000)
            seen.add(data[:1])
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(seen) > 1
    assert left_in(tmp_path) == ["a.plan", "a.plan.json", "a.plan.sig", "home"]


@pytest.mark.parametrize("step,number", [*itertools.product(["write_bytes", "replace"], range(3))])
def test_a_killed_writer_leaves_a_plan_that_opens_or_is_refused(tmp_path: Path, step: str, number: int) -> None:
    former = published(tmp_path / "a.plan", b"former")
    script = [sys.executable, "-c", PUBLISH + PUBLISH_KILLED]
    killed = subprocess.run([*script, former.path, "x", step, str(number)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if step == "write_bytes" or number == 0:
        assert signature.read(former.path) == (former, b"former")
    else:
        with pytest.raises(InvalidFileError):
            signature.read(former.path)
    signature.publish(former, b"former")
    assert signature.read(former.path) == (former, b"former")


@pytest.mark.parametrize("size", [3000, 100_000])
def test_a_full_disk_keeps_the_former_plan(small_disk: Path, size: int) -> None:
    """Of 16 kB the former three files take 12: the next plan fails at once, or at its second file."""
    former = published(small_disk / "a.plan", b"former")
    names = left_in(small_disk)
    with pytest.raises(InvalidFileError, match="No space left on device"):
        signature.publish(described(former.path, bytes(size)), bytes(size))
    assert signature.read(former.path) == (former, b"former")
    assert left_in(small_disk) == names


def test_nothing_is_written_where_there_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="there is no key here to sign it with"):
        signature.publish(described(tmp_path / "a.plan", b"plan"), b"plan")
    assert left_in(tmp_path) == []


# The command line


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("damage", [flip, link, make_fifo, Path.unlink])
def test_a_refusal_is_two_lines(plan: Artifact, run: Run, suffix: str, damage: Callable[[Path], object]) -> None:
    damage(beside(plan.path, suffix))
    refused = run("infer", "photos", "--model", plan.path)
    missing = damage is Path.unlink and not suffix
    assert (refused.code, refused.out) == (2 if missing else 3, "")
    assert refused.err.count("\n") == 2
    assert refused.err.startswith("Error: ")
    assert str(plan.path) in refused.err
    assert "GPU" not in refused.err


@pytest.mark.parametrize("engine", ["fp16", "trt-rtx:fp16", "trt:fp32"])
def test_a_plan_of_another_engine_is_refused(plan: Artifact, run: Run, engine: str) -> None:
    refused = run("infer", "photos", "--model", plan.path, "--engine", engine)
    assert refused.code == 3
    assert f"{plan.path} is a plan of trt-rtx:fp32; {engine if ':' in engine else 'trt-rtx:fp16'} was" in refused.err
    assert refused.err.endswith("\nGive --engine trt-rtx:fp32.\n")


def test_another_engine_under_the_name_of_this_one_is_refused(plan: Artifact, reached: list[object]) -> None:
    """All three files are valid; the name of the plan is what lies."""
    sign(plan.path, artifact.manifest(dataclasses.replace(plan, precision=Precision.FP16)))
    with pytest.raises(InvalidFileError, match="is a plan of trt-rtx:fp16; trt-rtx:fp32 was asked for"):
        segdeploy.open("unet", engine="trt-rtx:fp32")
    assert reached == []


def test_inspect_says_whether_a_plan_is_admitted_and_why(plan: Artifact, home: Path, run: Run) -> None:
    def trust() -> dict[str, Any]:
        told: dict[str, Any] = run("inspect", plan.path, "--json").json()["trust"]
        assert told.pop("manifest_sha256") == manifest_sha256(plan)
        return told

    assert trust() == {"admitted": True, "reason": "it is signed with this key"}
    (home / "key").unlink()
    assert trust()["admitted"] is False
    assert "there is no key here" in trust()["reason"]
    signature.trust(manifest_sha256(plan))
    assert trust() == {"admitted": True, "reason": "it is in the list of `segdeploy trust`"}
