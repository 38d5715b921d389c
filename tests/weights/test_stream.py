"""Tensors read and written one at a time, against the safetensors library."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from yayan.errors import UserError, WorkError
from yayan.weights.stream import TensorSpec, TensorWriter, open_tensors, totals

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (5, 7), (1, 1, 3), (), (11, 2)]
    return {
        f"t{i}": torch.randn(shape, generator=generator).to(DTYPES[i % 3]) for i, shape in enumerate(shapes)
    }


def specs(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in tensors.items()}


def write(folder: Path, tensors: dict[str, torch.Tensor], max_shard_bytes: int = 1 << 30) -> None:
    with TensorWriter(folder, specs(tensors), max_shard_bytes) as writer:
        for name in reversed(tensors):
            writer.add(name, tensors[name])


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_one_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(load_file(tmp_path / "model.safetensors"), tensors)


def test_a_tensor_is_written_in_blocks_of_rows(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(7, 3).bfloat16(), "b": torch.randn(5, 2, 3)}
    with TensorWriter(tmp_path, specs(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add_rows(
                name, (block for block in tensor.T.contiguous().T.split(2)) if name == "a" else [tensor]
            )
    assert_same(load_file(tmp_path / "model.safetensors"), tensors)


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "sentence"),
    [
        ([3, 3], 2, torch.float32, "48 bytes are written"),
        ([3, 5], 2, torch.float32, "does not fit"),
        ([7], 3, torch.float32, "does not fit"),
        ([7], 2, torch.float16, "does not fit"),
    ],
)
def test_blocks_that_are_not_the_planned_tensor(
    tmp_path: Path, rows: list[int], width: int, dtype: torch.dtype, sentence: str
) -> None:
    writer = TensorWriter(
        tmp_path, {"a": TensorSpec((7, 2), torch.float32), "b": TensorSpec((2,), torch.float32)}
    )
    writer.add("b", torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=sentence):
        writer.add_rows("a", [torch.zeros(count, width, dtype=dtype) for count in rows])
    with pytest.raises(ValueError, match="1 tensors were not written, such as a"):
        writer.close()


def test_tensors_of_different_widths_are_aligned(tmp_path: Path) -> None:
    write(tmp_path, {"odd": torch.ones(3).half(), "wide": torch.ones(1)})
    text = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    assert length % 8 == 0
    assert header["wide"]["data_offsets"][0] % 4 == 0


def test_shards_keep_to_their_size_and_the_index_knows_them(tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path, tensors, max_shard_bytes=80)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    found: dict[str, torch.Tensor] = {}
    for path in files:
        part = load_file(path)
        assert len(part) == 1 or sum(value.nbytes for value in part.values()) <= 80
        found |= part
    assert_same(found, tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    assert {name: load_file(tmp_path / file)[name].shape for name, file in index["weight_map"].items()} == {
        name: value.shape for name, value in tensors.items()
    }
    source = open_tensors(tmp_path)
    assert_same({name: source.read(name) for name in source.names()}, tensors)


def test_specs_are_known_without_reading(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    source = open_tensors(tmp_path, "adapter_model")
    assert source.specs == specs(tensors)
    assert (source.shape("t1"), source.dtype("t1")) == ((5, 7), torch.float16)
    assert totals(source.specs) == {
        "tensors": 5,
        "parameters": 64,
        "bytes": sum(value.nbytes for value in tensors.values()),
        "dtype": "bfloat16+float16+float32",
    }


@settings(max_examples=40, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.lists(st.integers(1, 5), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=8
    ),
    max_shard_bytes=st.integers(1, 200),
)
def test_what_is_written_is_read_again(
    plan: list[tuple[list[int], torch.dtype]], max_shard_bytes: int
) -> None:
    generator = torch.Generator().manual_seed(len(plan))
    tensors = {
        f"名{i}": torch.randn(shape, generator=generator).to(dtype) for i, (shape, dtype) in enumerate(plan)
    }
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), tensors, max_shard_bytes)
        source = open_tensors(Path(name))
        assert_same({key: source.read(key) for key in source.names()}, tensors)


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write(tmp_path, {"t": whole.T[1:]})
    assert torch.equal(load_file(tmp_path / "model.safetensors")["t"], whole.T[1:])


def test_older_weights_in_the_folder_give_way(tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path, tensors, max_shard_bytes=80)
    write(tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_plan_is_kept(tmp_path: Path) -> None:
    plan = {"a": TensorSpec((2, 3), torch.float32), "b": TensorSpec((1,), torch.float32)}
    writer = TensorWriter(tmp_path, plan)
    for name, wrong in (("a", torch.zeros(3, 2)), ("a", torch.zeros(2, 3).half()), ("c", torch.zeros(1))):
        with pytest.raises(ValueError, match="was planned"):
            writer.add(name, wrong)
    writer.add("a", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="1 tensors were not written, such as b"):
        writer.close()


def test_a_disk_that_is_too_small_is_known_before_writing(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="the disk is full"):
        TensorWriter(tmp_path, {"t": TensorSpec((10**9, 10**9), torch.float32)})
    assert not any(tmp_path.iterdir())


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_copying_holds_no_tensor_in_memory(tmp_path: Path) -> None:
    """96 MiB in 12 tensors: neither a reader nor a writer that gathers them stays below 8 MiB."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    plan = {f"t{i}": TensorSpec((2048, 1024), torch.float32) for i in range(12)}
    with TensorWriter(folders[0], plan) as writer:
        for name in plan:
            writer.add(name, torch.full((2048, 1024), 1.5))
    source = open_tensors(folders[0])
    before, largest = anonymous_bytes(), 0
    with TensorWriter(folders[1], plan) as writer:
        for name in plan:
            writer.add(name, source.read(name))
            largest = max(largest, anonymous_bytes() - before)
    assert largest < 8 << 20
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, some_tensors(), max_shard_bytes=80)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="shard model-00002-of-00003.safetensors is missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("change", ["forgets", "invents"])
def test_an_index_that_disagrees_is_refused(tmp_path: Path, change: str) -> None:
    write(tmp_path, some_tensors(), max_shard_bytes=80)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    if change == "forgets":
        del index["weight_map"]["t1"]
    else:
        index["weight_map"]["t9"] = index["weight_map"]["t1"]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="disagree about t1" if change == "forgets" else "disagree about t9"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', "[]", "{"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="model.safetensors.index.json"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path, some_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="truncated or damaged"):
        open_tensors(tmp_path)


class Bomb:
    """What a pickle of it would do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_older_files_are_read_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5, 3), "b": torch.arange(4.0).half()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    source = open_tensors(tmp_path)
    assert {name: (spec.shape, spec.dtype) for name, spec in source.specs.items()} == {
        "a": ((5, 3), torch.float32),
        "b": ((4,), torch.float16),
    }
    assert all(torch.equal(source.read(name), value) for name, value in tensors.items())
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:200])
    with pytest.raises(UserError, match="truncated or damaged"):
        open_tensors(tmp_path)
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="wants to run code"):
        open_tensors(tmp_path)
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="something else than tensors"):
        open_tensors(tmp_path)
    torch.save({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="of type torch.int8"):
        open_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_shards_of_older_files(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        torch.save({name: torch.full((2,), float(i))}, tmp_path / f"pytorch_model-{i}.bin")
    places = {name: f"pytorch_model-{i}.bin" for i, name in enumerate("ab")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert open_tensors(tmp_path).read("b").tolist() == [1.0, 1.0]
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(UserError, match=r"the shard pytorch_model-1\.bin is missing"):
        open_tensors(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"there is no model\.safetensors"):
            open_tensors(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="the tensor t is of type I8"):
        open_tensors(tmp_path)
