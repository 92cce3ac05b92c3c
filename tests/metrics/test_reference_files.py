"""Files of statistics: every published format is read, ours is read as it was written."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics.distances import frechet_distance
from metrics.npz import read_npz
from metrics.reference_files import Statistics, read_reference, write_reference

RNG = np.random.default_rng(0)


def moments(dim):
    """mu [dim] and sigma [dim, dim] of random features."""
    features = RNG.normal(size=(dim + 5, dim))
    return {"mu": features.mean(0), "sigma": np.cov(features.T)}


def statistics(dim, **more):
    result = {key: torch.from_numpy(value) for key, value in moments(dim).items()}
    return Statistics(result["mu"], result["sigma"], **more)


def write_pickle(path, content, protocol=3, core=None):
    """A pickle; `core`: as NumPy 1 (numpy.core) or 2 (numpy._core) would have spelt it. Names
    stand as lines of text up to protocol 3."""
    data = pickle.dumps(content, protocol)
    if core is not None:
        assert b"numpy._core." in data or b"numpy.core." in data
        data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core)
    path.write_bytes(data)
    return path


def same(result, expected):
    """Whether statistics hold the same bits."""
    pairs = zip(result, expected, strict=True)
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in pairs
    )


def reference_of(part):
    return Statistics(*(torch.from_numpy(part[key].astype(np.float64)) for key in ("mu", "sigma")))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_pickles_of_numpy_1_and_2(tmp_path, core):
    content = {"num_images": np.int64(900), "fid": moments(6), "fd_dinov2": moments(4)}
    path = write_pickle(tmp_path / "img512.pkl", content, core=core)
    assert core in path.read_bytes()
    result = read_reference(path)
    assert (result.name, result.protocol, list(result.statistics)) == (
        "img512", "edm2", ["inception", "dinov2"],
    )  # fmt: skip
    assert same(result.statistics["inception"], reference_of(content["fid"])._replace(n=900))
    assert same(result.statistics["dinov2"], reference_of(content["fd_dinov2"])._replace(n=900))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("key", "name"), [("fid", "inception"), ("fd_dinov2", "dinov2")])
def test_pickles_with_one_metric_under_any_name(tmp_path, protocol, key, name):
    path = write_pickle(tmp_path / "statistics.npz", {key: moments(5)}, protocol)
    result = read_reference(path)
    assert list(result.statistics) == [name]
    assert result.statistics[name].n is None


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4"])
def test_edms_npz(tmp_path, dtype):
    part = {key: value.astype(dtype) for key, value in moments(2048).items()}
    np.savez(tmp_path / "cifar10-32x32.npz", **part)
    result = read_reference(tmp_path / "cifar10-32x32.npz")
    assert (result.protocol, list(result.statistics)) == ("edm", ["inception"])
    assert same(result.statistics["inception"], reference_of(part))


def test_adms_npz_without_its_images(tmp_path):
    part, spatial = moments(7), moments(3)
    arrays = part | {f"{key}_s": value for key, value in spatial.items()}
    path = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    np.savez(path, arr_0=np.full((2, 8, 8, 3), 77, np.uint8), **arrays)
    path.write_bytes(path.read_bytes().replace(b"MMMM", b"NNNN"))  # damaged: reading it fails
    with pytest.raises(ValueError, match="CRC"):
        read_npz(path, ["arr_0"])
    result = read_reference(path)
    assert (result.protocol, list(result.statistics)) == ("adm", ["inception", "inception-spatial"])
    assert same(result.statistics["inception"], reference_of(part))
    assert same(result.statistics["inception-spatial"], reference_of(spatial))


def test_our_npz_comes_back_bit_for_bit(tmp_path):
    features = torch.from_numpy(RNG.normal(size=(9, 4)).astype(np.float32))
    written = {
        "inception": statistics(6, n=1_281_167),
        "dinov2-pil": statistics(5),
        "vgg16": statistics(4, n=9, features=features, weights="ab" * 32),
    }
    labels = torch.arange(9)
    path = tmp_path / "new" / "mine.npz"
    assert write_reference(path, written, protocol="edm2", labels=labels, image_size=64) == path
    result = read_reference(path)
    assert list(result.statistics) == list(written)
    assert all(same(result.statistics[name], written[name]) for name in written)
    assert torch.equal(result.labels, labels)
    assert (result.protocol, result.image_size) == ("edm2", 64)
    first = path.read_bytes()
    write_reference(path, written, protocol="edm2", labels=labels, image_size=64)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["mine.npz"]


def test_our_npz_with_nothing_but_moments(tmp_path):
    written = statistics(3)
    result = read_reference(write_reference(tmp_path / "x.npz", {"inception": written}))
    assert same(result.statistics["inception"], written)
    assert (result.protocol, result.labels, result.image_size) == (None, None, None)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_reference(tmp_path / "x.npz", {"inception": statistics(3)})
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        write_reference(path, {"inception": statistics(4)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.npz"]


def rotated(dim):
    """A sigma that is no covariance: off symmetry by far more than rounding."""
    return np.eye(dim) + np.triu(np.full((dim, dim), 1e-3), 1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"mu": np.zeros(3)}, r"must hold mu \[D\] and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu \[3\] and sigma \[4, 4\]: they must be"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, r"mu \[1, 3\] and sigma"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \[0\] and sigma"),
        ({"mu": np.array([0, np.nan, 0]), "sigma": np.eye(3)}, "means in .* hold NaN .*row 1"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)}, "covariances in .* hold NaN"),
        ({"mu": np.zeros(3), "sigma": rotated(3)}, "sigma that is not symmetric"),
        ({"mu": np.zeros(3) * 1j, "sigma": np.eye(3)}, "mu in .* is no array of real numbers"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), "a")}, "sigma in .* is no array of real"),
    ],
)
def test_statistics_that_no_format_may_hold(tmp_path, part, message):
    np.savez(tmp_path / "edm.npz", **part)
    spatial = {f"{key}_s": value for key, value in part.items()}
    np.savez(tmp_path / "adm.npz", **moments(2), **spatial)
    np.savez(tmp_path / "our.npz", format="erk-guid reference 1",
             **{f"inception.{key}": value for key, value in part.items()})  # fmt: skip
    write_pickle(tmp_path / "edm2.pkl", {"num_images": 9, "fid": moments(2), "fd_dinov2": part})
    for name in ("edm.npz", "adm.npz", "our.npz", "edm2.pkl"):
        if name == "edm2.pkl" and "no array of real" in message:
            message = "cannot be read safely as a pickle: an array has the type"
        with pytest.raises(ValueError, match=message) as caught:
            read_reference(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_symmetry_is_judged_relative_to_sigma(tmp_path):
    noise = np.zeros((2, 2))
    noise[0, 1] = 1
    for scale, error, ok in ((1e-9, 5e-7, True), (1e9, 5e-7, True), (1e-9, 2e-6, False)):
        sigma = scale * (np.eye(2) + error * noise)
        np.savez(tmp_path / "x.npz", mu_s=np.zeros(2), sigma_s=sigma, **moments(2))
        if ok:
            read_reference(tmp_path / "x.npz")
        else:
            with pytest.raises(ValueError, match="not symmetric"):
                read_reference(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "erk-guid reference 9"}, "has the format 'erk-guid reference 9'"),
        ({"inception.features": np.zeros((9, 3), np.float32)}, r"features \[9, 3\]: they must be"),
        ({"inception.features": np.full((9, 2), np.nan)}, "features in .* hold NaN"),
        ({"inception.num_images": 1}, "number of images must be a whole number of at least 2"),
        ({"inception.num_images": 7.5}, "number of images must be a whole number"),
        ({"inception.num_images": np.nan}, "number of images must be a whole number"),
        ({"labels": np.zeros(4, int)}, "holds 4 labels but 9 rows of inception features"),
        ({"labels": np.zeros(9)}, "holds labels float64"),
        ({"labels": np.arange(-1, 8)}, "labels from -1 to 7: classes are 0, 1, 2"),
        ({"labels": np.full(9, 2**63, np.uint64)}, "labels from 9223372036854775808 to 9"),
        ({"image_size": 0}, "image size must be a whole number of at least 1"),
        ({"image_size": [8, 0]}, "image size must be a whole number of at least 1"),
        ({"image_size": [8, 8, 3]}, "image size must be a whole number of at least 1"),
        ({"labels": np.array([None])}, "not a readable npz file.*Object arrays"),
    ],
)
def test_damaged_files_of_ours(tmp_path, change, message):
    base = {f"inception.{key}": value for key, value in moments(2).items()}
    base |= {"format": "erk-guid reference 1", "inception.features": np.ones((9, 2), np.float32)}
    np.savez(tmp_path / "x.npz", **base)
    read_reference(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **base | change)
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / "x.npz")


def test_what_may_not_be_written(tmp_path):
    bad = statistics(3)._replace(cov=torch.full((3, 3), torch.nan))
    features = torch.ones(9, 3)
    with pytest.raises(ValueError, match="covariances in .*inception.* hold NaN"):
        write_reference(tmp_path / "x.npz", {"inception": bad})
    with pytest.raises(ValueError, match="names no extractor"):
        write_reference(tmp_path / "x.npz", {})
    with pytest.raises(ValueError, match="must end in .npz"):
        write_reference(tmp_path / "x.pkl", {"inception": statistics(3)})
    with pytest.raises(ValueError, match="8 labels but 9 rows"):
        digits = statistics(3, features=features)
        write_reference(tmp_path / "x.npz", {"digits": digits}, labels=torch.zeros(8).long())
    assert os.listdir(tmp_path) == []


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def test_pickles_that_are_refused(tmp_path):
    path = write_pickle(tmp_path / "x.pkl", {"fid": moments(3), "more": Runs()})
    with pytest.raises(ValueError, match=r"x\.pkl .*requests '\w+\.system', which is not allowed"):
        read_reference(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"x\.pkl is truncated"):
        read_reference(path)
    for content in ([moments(3)], {"mu": 1}):
        with pytest.raises(ValueError, match="must hold a dictionary with 'fid' or 'fd_dinov2'"):
            read_reference(write_pickle(path, content))
    with pytest.raises(ValueError, match=r"x\.pkl \(fid\) is no reference: it must hold mu"):
        read_reference(write_pickle(path, {"fid": [1.0]}))
    with pytest.raises(ValueError, match="number of images must be a whole number"):
        read_reference(write_pickle(path, {"fid": moments(3), "num_images": "many"}))


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"x\.npz does not exist"):
        read_reference(path)
    with pytest.raises(ValueError, match="is a folder: give a .npz or .pkl"):
        read_reference(tmp_path)
    for data in (b"", b"junk", b"<html>not found</html>"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.npz is not a readable npz or pkl"):
            read_reference(path)
    np.savez(path, **moments(3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"x\.npz is not a readable npz file"):
        read_reference(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("00000/img00000000.png", b"image")
    with pytest.raises(ValueError, match=r"x\.npz is no reference: it must hold mu"):
        read_reference(path)
    np.savez(path, mu=np.array([None]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"x\.npz is not a readable npz file.*Object arrays"):
        read_reference(path)


def test_an_array_of_a_pretended_size(tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**8, 10**8)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("mu.npy", "sigma.npy"):
            archive.writestr(name, header.getvalue())
    with pytest.raises(ValueError, match=r"x\.npz is .*\[100000000, 100000000\] does not match"):
        read_reference(tmp_path / "x.npz")


def test_an_array_that_is_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("format", "erk-guid reference 1")
        archive.writestr("labels", "1 2 3")
    with pytest.raises(ValueError, match="has the format 'None'"):
        read_reference(tmp_path / "x.npz")


@pytest.mark.parametrize(("mean", "cov"), [(0, 1e308), (1e200, 1)])
def test_numbers_whose_products_overflow(tmp_path, mean, cov):
    """M21"""
    np.savez(tmp_path / "ref.npz", mu=np.full(64, float(mean)), sigma=np.eye(64) * cov)
    with pytest.raises(ValueError, match=r"ref\.npz holds numbers beyond 1e\+100"):
        read_reference(tmp_path / "ref.npz")


def test_features_of_no_images(tmp_path):
    """M21"""
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64), features=np.zeros((0, 64), np.float32))
    with pytest.raises(ValueError, match=r"features \[0, 64\]: they must be \[N, D\], N at"):
        read_reference(path)


def edm_fid_of(path, mean, cov):
    """What EDM's fid.py and pytorch-fid do with a file of statistics."""
    with np.load(path) as file:  # of plain arrays: allow_pickle is off
        mu, sigma = file["mu"][:], file["sigma"][:]
    root = scipy.linalg.sqrtm(np.dot(sigma, cov)).real
    return float(np.square(mu - mean).sum() + np.trace(cov + sigma - 2 * root))


def test_others_read_the_inception_statistics(tmp_path):
    """G13: mu and sigma at the top, as EDM, EDM2, pytorch-fid and ADM name them."""
    written = {
        "dinov2": statistics(5),
        "inception": statistics(6),
        "inception-spatial": statistics(3),
    }
    path = write_reference(tmp_path / "mine.npz", written)
    other = moments(6)
    fid = edm_fid_of(path, other["mu"], other["sigma"])
    ours = frechet_distance(written["inception"], (other["mu"], other["sigma"]))
    assert fid == pytest.approx(ours, rel=1e-9) and fid > 0.1
    with np.load(path) as file:
        assert np.array_equal(file["sigma_s"], written["inception-spatial"].cov)
        assert "inception.mu" not in file.files  # not stored twice
    result = read_reference(path)
    assert list(result.statistics) == list(written)
    assert all(same(result.statistics[name], written[name]) for name in written)


def test_files_of_before_are_read(tmp_path):
    """Files that name inception's statistics as those of other extractors."""
    part = moments(6)
    arrays = {f"inception.{key}": value for key, value in part.items()}
    np.savez(tmp_path / "old.npz", format="erk-guid reference 1", **arrays)
    assert same(read_reference(tmp_path / "old.npz").statistics["inception"], reference_of(part))


def test_a_reference_without_inception_has_no_statistics_for_others(tmp_path):
    path = write_reference(tmp_path / "mine.npz", {"dinov2": statistics(5)})
    with np.load(path) as file:
        assert not {"mu", "sigma"} & {*file.files}
