"""Tests of registered models whose files were replaced by hostile ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from service_process import EXECUTION, ServiceProcess, add_champion, run_service
from stack_files import noise, write_stack
from talud import registry
from talud.engine.runtime import Model

pytestmark = pytest.mark.slow  # the tests share a service process


@pytest.fixture(scope="module")
def project(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "project"
    (root / "stacks").mkdir(parents=True)
    (root / "params.yaml").write_text("seed: 1\n")
    write_stack(root / "stacks/small.tif", noise(60, 80))
    add_champion(root, "3band", tiny_model)
    return root


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[ServiceProcess]:
    with run_service(project) as running:
        yield running


def no_model(_: Path) -> bytes:
    return b"no model" * 100


def contract_of_two_bands(tiny: Path) -> bytes:
    graph, contract = onnx.load(tiny), Model.load(tiny).contract
    helper.set_model_props(graph, contract.replace(bands=contract.input.bands[:2]).to_metadata())
    return graph.SerializeToString()


def dimensions_without_values(tiny: Path) -> bytes:
    graph = onnx.load(tiny)
    graph.graph.initializer[0].dims[:] = [10**6, 10**6, 10, 1]
    return graph.SerializeToString()


def tensor_of_forty_terabytes(tiny: Path) -> bytes:
    model = onnx.load(tiny)
    nodes = model.graph.node
    model.graph.initializer.append(helper.make_tensor("count", TensorProto.INT64, [1], [10**13]))
    nodes.insert(0, helper.make_node("ConstantOfShape", ["count"], ["huge"]))
    nodes.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    output, nodes[-1].output[0] = nodes[-1].output[0], "before"
    nodes.append(helper.make_node("Add", ["before", "sum"], [output]))
    return model.SerializeToString()


def constant_in_another_file(tiny: Path) -> bytes:
    model = onnx.load(tiny)
    constant = model.graph.initializer[0]
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/passwd")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (no_model, 422, "is not an ONNX model"),
        (constant_in_another_file, 422, "is stored outside the file"),
        (contract_of_two_bands, 500, "its contract states one tensor(float) 'stack' (batch, 2, height, width)"),
        (dimensions_without_values, 500, "is not a model that ONNX Runtime can open"),
        (tensor_of_forty_terabytes, 500, "the network fails"),
    ],
)
def test_hostile_model_fails_its_job_but_not_the_service(
    make: Callable[[Path], bytes], status: int, message: str, service: ServiceProcess, project: Path, tiny_model: Path
) -> None:
    name = make.__name__.replace("_", "-")
    version = add_champion(project, name, tiny_model)
    file = registry.fetch(version.uri, project).path
    file.unlink()  # it may be a hard link
    file.write_bytes(make(tiny_model))
    ask = {"raster": {"href": "small.tif"}, "model": f"landslide-unet-{name}"}
    answer = service.http.post(EXECUTION, json={"inputs": ask})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    detail = answer.json()["detail"]
    assert message in detail
    assert "\n" not in detail
    assert str(project) not in detail
    assert service.http.get("/models").status_code == 200
    sound = ask | {"model": "landslide-unet-3band"}
    assert service.http.post(EXECUTION, json={"inputs": sound}).status_code == 200
