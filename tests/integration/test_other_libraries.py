"""Networks of transformers, timm and torchvision, with random weights: no wrapper."""

import pytest
import torch

from compression_adapters import compress, load_compressed, profile
from compression_adapters.network.modes import forward
from compression_adapters.network.structured_inputs import as_inputs
from tests.helpers.structured import WORDS, sentences

# Other libraries warn of themselves, and of torch.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = {"ratio": "60%", "search": False, "progress": False, "num_samples": 20}
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}


def require_cut(make, inputs, folder, **options):
    """Cut a network, save it, load it again."""
    torch.manual_seed(0)
    network = make().eval()
    profiled = profile(network, inputs, include=options.get("include"))
    assert len(profiled.layers) > 3
    result = compress(network, inputs, **QUICK, **options)
    assert result.layers["weights"].sum() <= 0.6 * result.layers["weights_before"].sum()
    result.save(folder)
    few = as_inputs(inputs)[:3]
    with torch.no_grad():
        loaded = load_compressed(folder, network).eval()
        assert torch.equal(forward(loaded, few), forward(result.network, few))


@pytest.mark.parametrize(
    ("name", "config", "sizes"),
    [
        ("BertModel", "BertConfig", SIZES),
        ("BertForSequenceClassification", "BertConfig", SIZES),
        ("BertForTokenClassification", "BertConfig", SIZES),
        ("BertForQuestionAnswering", "BertConfig", SIZES),
        ("LlamaForCausalLM", "LlamaConfig", SIZES),
        (
            "DistilBertModel",
            "DistilBertConfig",
            {"vocab_size": WORDS, "dim": 16, "n_layers": 2, "n_heads": 2}
            | {"hidden_dim": 32, "max_position_embeddings": 16},
        ),
    ],
)
def test_a_text_model_of_transformers_takes_what_its_tokenizer_returns(
    name, config, sizes, tmp_path
):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)(**sizes)
    batch = transformers.BatchEncoding(sentences(120))
    require_cut(lambda: getattr(transformers, name)(made), batch, tmp_path / "small")


def test_an_image_model_of_transformers_takes_pixel_values(tmp_path):
    transformers = pytest.importorskip("transformers")
    made = transformers.ViTConfig(
        **{k: SIZES[k] for k in ("hidden_size", "num_hidden_layers")},
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
    )
    batch = {"pixel_values": torch.rand(120, 3, 16, 16), "labels": torch.zeros(120)}
    require_cut(
        lambda: transformers.ViTForImageClassification(made), batch, tmp_path / "small"
    )


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_network_of_timm_is_cut(name, tmp_path):
    timm = pytest.importorskip("timm")
    require_cut(
        lambda: timm.create_model(name, pretrained=False, num_classes=5),
        torch.rand(60, 3, 32, 32),
        tmp_path / "small",
        calibrate=20,
    )


def test_a_segmentation_network_of_torchvision_is_cut(tmp_path):
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    require_cut(
        lambda: segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        ),
        torch.rand(60, 3, 32, 32),
        tmp_path / "small",
        calibrate=20,
        include=["classifier.*", "backbone.16.*"],
    )
