"""Tests of encoders of Keras Applications, and of files with weights of encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import yaml

from command_line import runner
from hostile_bytes import cut, flipped
from small_projects import write_area, write_params
from talud.errors import ModelError, ParamsError
from talud.files import md5
from talud.networks import encoders
from talud.networks.catalogue import build_network, read_network
from talud.networks.weight_files import read_layers
from talud.params import Params
from talud.params.networks import RGB, PretrainedUnetOptions
from talud.project import Project
from talud.training.checkpoint import trial_key
from talud.training.search import Hyperparameters
from talud.training.trial import TrialConfig

# Keras 3.15 converts its variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RESNET_DEVIATION = 57.6  # stated in the documentation
# Constructor of each encoder of Keras Applications, and the last layer of its 1/16 and of all its stages.
PUBLISHED = {
    "mobilenet_v2": (keras.applications.MobileNetV2, ("block_12_add", "block_16_project_BN")),
    "resnet50": (keras.applications.ResNet50, ("conv4_block6_out", "conv5_block3_out")),
}
# Layers of a small file, and the shapes of their weights.
ALLOWED = {"stem": [[(3, 3, 3, 4), (4,)]], "normal": [[(4,)] * 4]}


def build(weights: str, root: Path, bands: int = 3, *, normalised: bool = True, **options: Any) -> keras.Model:
    """Return a network with a narrow decoder whose bands are scaled already."""
    spec = read_network("pretrained_unet", {"filters": 2, "weights": weights, **options}, "test")
    scale = np.zeros(bands, np.float32), np.ones(bands, np.float32)
    return build_network(spec, *scale, 1, batch_normalisation=normalised, root=root)


def randomise(model: keras.Model) -> None:
    """Give all weights values that no initialiser gives, variances and all."""
    generator = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, values.shape) for values in layer.get_weights()])
        elif any(values.ndim == 1 for values in layer.get_weights()):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.normal(size=bias.shape)])


def write_published_form(model: keras.Model, path: Path) -> None:
    """Write weights as Keras 2 did, and as the files of Keras Applications are."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, values in zip(names, layer.get_weights(), strict=True):
                group[name] = values


@pytest.mark.slow
@pytest.mark.parametrize("encoder", PUBLISHED)
def test_encoder_equals_that_of_keras_applications(encoder: str, tmp_path: Path) -> None:
    constructor, (cut, last) = PUBLISHED[encoder]
    theirs = constructor(include_top=False, weights=None, input_shape=(64, 96, 3))
    randomise(theirs)
    stack = np.random.default_rng(3).normal(size=(1, 64, 96, 3)).astype(np.float32)
    if encoder == "resnet50":
        write_published_form(theirs, tmp_path / "their.h5")
        read = stack[..., ::-1] * np.float32(RESNET_DEVIATION)
    else:
        theirs.save_weights(tmp_path / "their.weights.h5")
        read = stack
    outputs = [theirs.get_layer(name).output for name in (cut, last)]
    expected = [np.asarray(features) for features in keras.Model(theirs.inputs[0], outputs)(read)]
    (path,) = tmp_path.iterdir()
    for stages, normalised, values in (("1/16", False, expected[0]), ("all", True, expected[1])):
        ours = build(path.name, tmp_path, encoder=encoder, stages=stages, normalised=normalised)
        (up,) = (layer for layer in ours.layers if layer.name == f"up_{3 if stages == '1/16' else 4}")
        found = np.asarray(keras.Model(ours.inputs[0], up.input)(stack))
        assert values.std() > 1e-3
        np.testing.assert_allclose(found, values, atol=1e-5 * np.abs(values).max())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the encoders so narrow that a test takes no time."""
    for name, stages in encoders.STAGES.items():
        some = tuple(stage._replace(blocks=1, filters=4) for stage in stages)
        monkeypatch.setitem(encoders.STAGES, name, some)  # type: ignore[misc]
        monkeypatch.setitem(encoders.STEM_FILTERS, name, 4)  # type: ignore[misc]


@pytest.mark.usefixtures("narrow")
def test_pretrained_network_of_the_user_starts_another(tmp_path: Path) -> None:
    first = build("none", tmp_path, bands=5)
    randomise(first)
    first.save_weights(tmp_path / "mine.weights.h5")
    again = build("mine.weights.h5", tmp_path, bands=5)
    for layer in first.layers:
        same = all(map(np.array_equal, layer.get_weights(), again.get_layer(layer.name).get_weights()))
        assert same or not layer.name.startswith(("stem", "block_"))
    with h5py.File(tmp_path / "mine.weights.h5", "a") as file:
        groups = [group["vars"] for group in file["layers"].values()]
        next(group for group in groups if group.attrs["name"] == "stem_normalisation")["3"][0] = -1
    with pytest.raises(ModelError, match="the layer 'stem_normalisation' has negative variances"):
        build("mine.weights.h5", tmp_path, bands=5)


@pytest.mark.usefixtures("narrow")
def test_weights_of_three_bands_start_a_network_of_more(tmp_path: Path) -> None:
    first = build("none", tmp_path)
    first.save_weights(tmp_path / "mine.weights.h5")
    kernel = build("mine.weights.h5", tmp_path, bands=5, rgb=[4, 0, 2]).get_layer("stem").get_weights()[0]
    np.testing.assert_array_equal(kernel[:, :, [4, 0, 2]], first.get_layer("stem").get_weights()[0])
    assert not kernel[:, :, [1, 3]].any()


@pytest.mark.usefixtures("narrow")
def test_resnet_kernel_of_all_bands_is_read_unchanged(tmp_path: Path) -> None:
    first = build("none", tmp_path, bands=5, encoder="resnet50")
    kernels = {layer.name: layer for layer in first.layers if layer.name.startswith(("stem", "block_"))}
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        for name, layer in kernels.items():
            if isinstance(layer, keras.layers.Conv2D):
                filters = layer.kernel.shape[-1]
                normal = [np.ones(filters), np.zeros(filters), np.zeros(filters), np.ones(filters)]
                convolution, normalisation = encoders.published_names("resnet50", name)
                for group, arrays in ((convolution, [layer.kernel, np.zeros(filters)]), (normalisation, normal)):
                    file.create_group(group).attrs["weight_names"] = [
                        f"{index}".encode() for index in range(len(arrays))
                    ]
                    for index, values in enumerate(arrays):
                        file[group][f"{index}"] = np.asarray(values)
    before = np.asarray(kernels["stem"].kernel)
    after = build("mine.h5", tmp_path, bands=5, encoder="resnet50").get_layer("stem").get_weights()[0]
    np.testing.assert_array_equal(after, before)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the weights of two layers."""
    inputs = keras.layers.Input((8, 8, 3))
    outputs = keras.layers.BatchNormalization(name="normal")(keras.layers.Conv2D(4, 3, name="stem")(inputs))
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    keras.Model(inputs, outputs).save_weights(path)
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another encoder", r"has no layer 'conv1_conv' \(its layers: normal, stem\)"),
        ("shape", "the layer 'stem' has weights of the shapes 3 × 3 × 3 × 4, 4, expected 3 × 3 × 5 × 4, 4"),
        ("not finite", "the layer 'stem' has weights that are not finite"),
        ("text", "are not real numbers stored in the file itself"),
        ("outside", "are not real numbers stored in the file itself"),
        ("link", "cannot be read as weights of Keras"),
        ("chunk", "are stored in chunks of more than 64 MiB; write the file again"),
        ("nesting", "it has groups nested more than 20 deep"),
        ("absent", "no such file"),
        ("no file", "cannot be read as weights of Keras"),
    ],
)
def test_unfit_file_of_weights_is_one_line_of_error(fault: str, message: str, small_file: Path, tmp_path: Path) -> None:
    path, allowed = tmp_path / "w.h5", dict(ALLOWED)
    path.write_bytes(b"not HDF5" if fault == "no file" else small_file.read_bytes())
    if fault == "absent":
        path.unlink()
    elif fault == "another encoder":
        allowed = {"conv1_conv": ALLOWED["stem"]}
    elif fault == "shape":
        allowed["stem"] = [[(3, 3, 5, 4), (4,)]]
    elif fault != "no file":
        _replace_kernel(path, fault)
    with pytest.raises(ModelError, match=message) as caught:
        read_layers(path, allowed)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def _replace_kernel(path: Path, fault: str) -> None:
    """Replace the kernel of a file by one that must not be read."""
    with h5py.File(path, "a") as file:
        group = file["layers/conv2d/vars"]
        shape = group["0"].shape
        if fault == "not finite":
            group["0"][0, 0, 0, 0] = np.nan
            return
        if fault == "nesting":
            group.create_group("/".join(["deeper"] * 400))
            return
        del group["0"]
        if fault == "text":
            group.create_dataset("0", data=np.zeros(shape, "S3"))
        elif fault == "outside":  # bytes of another file as weights
            (path.parent / "secret").write_bytes(bytes(1024))
            group.create_dataset("0", shape, "f4", external=[(str(path.parent / "secret"), 0, 1024)])
        elif fault == "chunk":  # a few megabytes that become gigabytes
            group.create_dataset("0", shape, "f4", maxshape=(None,) * 4, chunks=(3, 3, 3000, 3000), compression="gzip")
        else:
            group["0"] = h5py.ExternalLink(str(path.parent / "other.h5"), "/weights")


def test_damaged_file_of_weights_is_refused_or_read(small_file: Path, tmp_path: Path) -> None:
    path, chance = tmp_path / "w.h5", np.random.default_rng(1)
    assert [values.shape for values in read_layers(small_file, ALLOWED)["stem"]] == [(3, 3, 3, 4), (4,)]
    whole, messages = small_file.read_bytes(), []
    for number in range(200):
        path.write_bytes((cut if number % 4 == 0 else flipped)(whole, chance))
        try:
            read_layers(path, ALLOWED)
        except ModelError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet50"}, "talud has no ImageNet weights of resnet50; set weights to the path"),
        ({"weights": "weights.npz"}, "'weights.npz' is neither imagenet, none nor the path of a file of Keras"),
        ({"weights": "../w.h5"}, "'../w.h5' is not in the project"),
        ({"weights": "/tmp/w.h5"}, "'/tmp/w.h5' is not in the project"),
    ],
)
def test_wrong_choice_of_weights_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match="pretrained_unet") as caught:
        read_network("pretrained_unet", options, "test")
    assert message in str(caught.value)


def test_options_state_the_checksum_of_the_file(tmp_path: Path) -> None:
    options = PretrainedUnetOptions(weights="w.h5")
    with pytest.raises(ParamsError, match=r"w\.h5: the weights that params.yaml names cannot be read: No such file"):
        options.pinned(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"abc")
    # RFC 1321, appendix A.5.
    assert options.pinned(tmp_path).weights_md5 == "900150983cd24fb0d6963f7d28e17f72"
    assert PretrainedUnetOptions().pinned(tmp_path) == PretrainedUnetOptions()


def test_changed_file_of_weights_is_another_trial(tmp_path: Path) -> None:
    params = {
        "seed": 7,
        "areas": {"basin": {"role": "training", "folder": "data/basin"}},
        "band_sets": {"3band": ["red", "green", "blue"], "sar": ["vv_pre", "vh_pre"]},
        "stack": {},
        "split": {},
        "training": {"networks": {"pretrained_unet": {"encoder": "resnet50", "weights": "weights/w.h5"}}},
        "search": "one",
        "searches": {"one": {"filters": [8], "learning_rate": [0.01], "batch_size": [8], "epochs": 1}},
    }
    project = Project(tmp_path, Params.model_validate(params))
    chosen = Hyperparameters(8, 0.01, 8, 1, None, network="pretrained_unet")
    keys = []
    (tmp_path / "weights").mkdir()
    for content in (b"first", b"second", b"first"):
        (tmp_path / "weights/w.h5").write_bytes(content)
        keys.append(trial_key(project, RGB, "data", chosen))
    assert keys[0] == keys[2] != keys[1]
    stated = TrialConfig.of(project, chosen, RGB).network.fields
    assert (stated["weights"], stated["weights_md5"]) == ("weights/w.h5", "8b04d5e3775d298e78455efc5ca404d5")
    # A band set without red, green and blue starts from random weights, and does not read the file.
    (tmp_path / "weights/w.h5").unlink()
    assert TrialConfig.of(project, chosen, ("vv_pre", "vh_pre")).network.fields["weights"] == "none"
    with pytest.raises(ParamsError, match="cannot be read"):
        trial_key(project, RGB, "data", chosen)


@pytest.mark.slow
def test_train_reports_an_unfit_file_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = write_params(tmp_path / "3band")
    write_area(project, "basin", np.indices((128, 128))[0] % 10 == 0)
    record = {"stack_md5": md5(project.stack("basin")), "mask_md5": md5(project.mask("basin"))}
    project.stack_record("basin").parent.mkdir(parents=True, exist_ok=True)
    project.stack_record("basin").write_text(json.dumps(record))
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["searches"]["demo"]["network"] = ["pretrained_unet"]
    params["training"]["networks"] = {"pretrained_unet": {"encoder": "resnet50", "weights": "w.h5"}}
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(project.root)
    talud = runner(monkeypatch, capsys)
    code, _, err = talud("train", "3band")
    assert (code, err.count("\n")) == (1, 1)
    assert "w.h5: the weights that params.yaml names cannot be read: No such file" in err
    (project.root / "w.h5").write_bytes(b"no HDF5")
    code, _, err = talud("train", "3band")
    assert code == 1
    (message,) = (line for line in err.splitlines() if line.startswith("talud: "))  # MLflow writes others
    assert "w.h5: cannot be read as weights of Keras" in message
    assert not project.model("3band").exists()
