"""Test that sentence-transformers loads an exported model and computes the same embeddings of queries and videos."""

import numpy as np
import pytest
import torch

from modeling_pig import PigForRetrieval, PigProcessor
from tests.test_remote_code import SENTENCES, export, run_without_package


sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional extra")

ENCODE = """
import numpy as np
from sentence_transformers import SentenceTransformer

folder, output, *videos = sys.argv[1:]
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
np.savez(output, text=model.encode(["a red circle moves left", "a blue star"]), video=model.encode(videos))
print("modeling_pig" in sys.modules)
"""


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sentence_transformers") / "exported"
    export(model_folder, folder)
    return str(folder)


@pytest.fixture(scope="module")
def embeds(model_folder, shape_videos) -> dict[str, np.ndarray]:
    """Return the normalised embeddings that the model computes."""
    model, processor = PigForRetrieval.from_pretrained(model_folder).eval(), PigProcessor.from_pretrained(model_folder)
    with torch.inference_mode():
        outputs = model(**processor(text=SENTENCES, videos=[str(p) for p in shape_videos], return_tensors="pt"))
    return {"text": outputs.text_embeds.numpy(), "video": outputs.video_embeds.numpy()}


def test_embeddings_equal_those_of_the_model(exported, embeds, shape_videos, tmp_path):
    model = sentence_transformers.SentenceTransformer(exported, device="cpu")
    assert type(model[0].model) is PigForRetrieval
    assert model.modalities == ["text", "video"]
    assert model.get_embedding_dimension() == 32

    videos = [str(path) for path in shape_videos]
    np.testing.assert_allclose(model.encode(SENTENCES), embeds["text"], atol=1e-5)
    np.testing.assert_allclose(model.encode(SENTENCES[0]), embeds["text"][0], atol=1e-5)
    np.testing.assert_allclose(model.encode(videos, batch_size=2), embeds["video"], atol=1e-5)
    np.testing.assert_allclose(model.encode([{"video": path} for path in videos]), embeds["video"], atol=1e-5)
    similarities = model.similarity(model.encode_query(SENTENCES), model.encode_document(videos))
    np.testing.assert_allclose(similarities, embeds["text"] @ embeds["video"].T, atol=1e-5)

    model.save_pretrained(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode(videos), embeds["video"], atol=1e-5)


def test_embeddings_are_equal_without_the_package(exported, embeds, shape_videos, tmp_path):
    output = tmp_path / "output.npz"
    stdout = run_without_package(ENCODE, tmp_path / "cache", exported, output, *shape_videos)
    assert stdout.split() == ["False"]
    with np.load(output) as found:
        np.testing.assert_allclose(found["text"], embeds["text"], atol=1e-5)
        np.testing.assert_allclose(found["video"], embeds["video"], atol=1e-5)
