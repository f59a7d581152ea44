import numpy as np
import pytest

from tfcompress.model.loading import load_model, sample_shape
from tfcompress.tools.samples import load_samples


def test_keys_of_arrays(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    y = np.arange(4)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2] + 1, y_test=y[:2])
    train, test = (load_samples(tmp_path / "a.npz", part=part) for part in ("train", "test"))
    np.testing.assert_array_equal(train.x, x)
    np.testing.assert_array_equal(test.x, x[:2] + 1)
    assert (train.y.tolist(), test.y.dtype) == ([0, 1, 2, 3], np.int32)
    np.savez(tmp_path / "b.npz", x=x)
    found = load_samples(tmp_path / "b.npz", limit=3, scale=2.0, offset=-1.0)
    np.testing.assert_array_equal(found.x, x[:3] * 2 - 1)
    assert found.y is None
    np.savez(tmp_path / "c.npz", x=x, y=x[:, 0] / 3)
    assert load_samples(tmp_path / "c.npz").y.dtype == np.float32
    np.save(tmp_path / "d.npy", np.zeros((2, 5, 5), np.uint8))
    assert load_samples(tmp_path / "d.npy").x.shape == (2, 5, 5, 1)


def test_folders_of_images(tmp_path):
    import tensorflow as tf

    for part, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = np.full((12, 8, 3), 100 * number + i, np.uint8)
                (folder / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    found = load_samples(tmp_path, part="train", shape=(6, 6, 3))
    assert found.x.shape == (6, 6, 6, 3)
    assert found.class_names == ["cat", "dog"]
    assert found.y.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.x[:, 0, 0, 0], [0, 1, 2, 100, 101, 102], rtol=1e-5)
    few = load_samples(tmp_path, shape=(6, 6, 1), limit=2)
    assert few.x.shape == (2, 6, 6, 1)
    unlabelled = load_samples(tmp_path / "test" / "dog", shape=(6, 6, 3))
    assert (len(unlabelled.x), unlabelled.y) == (2, None)
    with pytest.raises(ValueError, match=r"height, width, channels.*\(None, None, 3\)"):
        load_samples(tmp_path, shape=(None, None, 3))
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png', which cannot be decoded"):
        load_samples(tmp_path, shape=(6, 6, 3))


def test_wrong_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without any"):
        load_samples(tmp_path / "empty", shape=(4, 4, 3))
    with pytest.raises(ValueError, match=r"none\.npz', which does not exist.*x_test and y_test"):
        load_samples(tmp_path / "none.npz")
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"keys x_test, x, x_train. Received: .*with images"):
        load_samples(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(ValueError, match="one label per sample, 3"):
        load_samples(tmp_path / "b.npz")
    for name in ("a.npz", "d.npy"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 damaged")
        with pytest.raises(ValueError, match="Expected"):
            load_samples(tmp_path / name)


def test_models(model_files, tmp_path):
    model = load_model(model_files / "model.keras")
    assert sample_shape(model) == (8, 8, 1)
    model.save(tmp_path / "model.h5")
    assert load_model(tmp_path / "model.h5").count_params() == model.count_params()
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ValueError, match=r"\.keras or \.h5 file"):
        load_model(model_files / "int8.tflite")
    (tmp_path / "bad.keras").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"whole \.keras file"):
        load_model(tmp_path / "bad.keras")
