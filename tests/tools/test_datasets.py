import numpy as np
import pytest

from tfcompress.tools import datasets


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "y_train": rng.integers(0, 10, 6, np.uint8),
        "x_test": rng.integers(0, 256, (4, 28, 28), np.uint8),
        "y_test": rng.integers(0, 10, 4, np.uint8),
    }


def test_digits():
    (x, y), (x_test, y_test) = datasets.load("digits")
    assert (x.shape, x_test.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert set(np.concatenate([y, y_test])) == set(range(10))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_images_without_channels(arrays, tmp_path, name, monkeypatch):
    np.savez(tmp_path / f"{name}.npz", **arrays)
    monkeypatch.setenv("TFCOMPRESS_DATA", str(tmp_path))
    (x, y), (x_test, y_test) = datasets.load(name)
    np.testing.assert_array_equal(x[..., 0], arrays["x_train"])
    np.testing.assert_array_equal(x_test[..., 0], arrays["x_test"])
    np.testing.assert_array_equal(y, arrays["y_train"])
    assert (x.shape, x.dtype, y_test.dtype) == ((6, 28, 28, 1), np.float32, np.int32)


def test_the_argument_wins_over_the_environment(arrays, tmp_path, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("TFCOMPRESS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere.mnist\.npz', which does not exist.*load_data"):
        datasets.load("mnist")
    (x, _), _ = datasets.load("mnist", data_dir=tmp_path)
    assert len(x) == 6


def test_cifar10_from_plain_arrays_and_column_labels(arrays, tmp_path):
    arrays["x_train"] = arrays["x_train"].reshape(6, 28, 28, 1).repeat(3, -1)
    arrays["y_train"] = arrays["y_train"][:, None]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    (x, y), _ = datasets.load("cifar10", tmp_path)
    assert x.shape == (6, 28, 28, 3)
    np.testing.assert_array_equal(y, arrays["y_train"][:, 0])


def test_cifar10_from_jpegs(tmp_path):
    import tensorflow as tf

    # Smooth images, which JPEG keeps nearly as they are.
    ramp = np.linspace(0, 255, 32)
    colours = [np.stack([ramp[None] + 0 * ramp[:, None]] * 3, -1), np.full((32, 32, 3), 77.0)]
    images = np.stack(colours).astype(np.uint8)
    files = [tf.io.encode_jpeg(image, quality=100).numpy() for image in images]
    content = {}
    for split, order in (("train", [0, 1, 0]), ("test", [1])):
        blob = b"".join(files[i] for i in order)
        content[f"jpg_{split}"] = np.frombuffer(blob, np.uint8)
        content[f"off_{split}"] = np.cumsum([0] + [len(files[i]) for i in order])
        content[f"y_{split}"] = np.array(order)
    np.savez(tmp_path / "cifar10_jpeg.npz", **content)
    (x, y), (x_test, y_test) = datasets.load("cifar10", tmp_path)
    assert (x.shape, x.dtype) == ((3, 32, 32, 3), np.float32)
    assert np.abs(x - images[[0, 1, 0]]).max() < 4
    assert np.abs(x_test[0] - 77).max() < 2
    assert (y.tolist(), y_test.tolist()) == ([0, 1, 0], [1])


def test_own_files_keep_their_shape(arrays, tmp_path):
    arrays["x_train"] = arrays["x_train"].astype(np.float64) / 255
    np.savez(tmp_path / "own.npz", **arrays)
    (x, _), _ = datasets.load(tmp_path / "own.npz")
    assert x.shape == (6, 28, 28)
    assert x.max() <= 1.0


def test_wrong_files(arrays, tmp_path, monkeypatch):
    monkeypatch.delenv("TFCOMPRESS_DATA", raising=False)
    with pytest.raises(ValueError, match=r"digits, mnist.*Received: 'imagenet'"):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match="TFCOMPRESS_DATA is not set"):
        datasets.load("mnist")
    with pytest.raises(ValueError, match=r"none\.npz', which does not exist.*savez_compressed"):
        datasets.load(str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"cifar10_jpeg\.npz"):
        datasets.load("cifar10", tmp_path)
    np.savez(tmp_path / "a.npz", x_train=arrays["x_train"], labels=arrays["y_train"])
    with pytest.raises(ValueError, match=r"with x_train, labels. Store"):
        datasets.load(tmp_path / "a.npz")
    arrays["y_test"] = np.eye(10)[arrays["y_test"]]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(ValueError, match=r"shape \(4,\).*labels of shape \(4, 10\)"):
        datasets.load(tmp_path / "b.npz")


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files(data_dir, name):
    (x, y), (x_test, y_test) = datasets.load(name, data_dir)
    assert (x.shape, x_test.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    assert (x.min(), x.max()) == (0.0, 255.0)
    assert set(y) == set(y_test) == set(range(10))
