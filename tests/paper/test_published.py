"""configs/table*.yaml against the paper: a second copy of its tables, typed from the paper.

A wrong number in either copy makes a test fail. Settings are those of the published scripts; what
the text has otherwise is a row's ``as_printed``.
"""

import re

import pytest

from scripts.paper.config import CostOptions, load_config

GUIDED, AUTOG = "edm2-img512-s-guid-fid", "edm2-img512-s-autog-fid"
EDM2 = {"solver": "heun", "schedule": "edm", "sigma_min": 0.002, "sigma_max": 80, "rho": 7}
PLAIN = EDM2 | {"preset": "edm2-img512-s-fid"}
QUALITY = ("fd_dinov2", "fid", "precision", "recall", "is")

TABLE2 = [  # steps, w_stiff, w_con of the script, of the text; QUALITY
    (32, 0.0, None, None, 90.1, 2.58, 0.631, 0.672, 244),
    (32, 0.5, 0.5, None, 88.9, 2.57, 0.632, 0.673, 245),
    (32, 1.0, 0.5, None, 86.2, 2.56, 0.635, 0.673, 247),
    (32, 1.5, 0.5, None, 83.7, 2.60, 0.635, 0.675, 249),
    (32, 2.0, 0.5, None, 82.8, 2.74, 0.632, 0.674, 247),
    (32, 2.5, 0.5, None, 84.9, 3.03, 0.625, 0.667, 241),
    (16, 0.0, None, None, 97.4, 2.79, 0.629, 0.652, 238),
    (16, 0.75, 0.3, 0.5, 88.9, 2.68, 0.639, 0.659, 244),
    (8, 0.0, None, None, 161.2, 7.06, 0.446, 0.614, 183),
    (8, 0.5, 0.1, 0.5, 136.9, 4.91, 0.545, 0.598, 201),
]
TABLE3 = [  # steps, preset, guidance of the script, of the text, w_stiff; QUALITY
    (32, GUIDED, None, None, 0.0, 88.5, 2.27, 0.609, 0.707, 271),
    (32, GUIDED, None, None, 1.0, 83.9, 2.27, 0.612, 0.707, 275),
    (32, AUTOG, None, None, 0.0, 50.4, 1.36, 0.691, 0.628, 262),
    (32, AUTOG, None, None, 1.0, 47.6, 1.36, 0.694, 0.630, 268),
    (16, GUIDED, 1.2, 1.4, 0.0, 133.9, 3.61, 0.593, 0.673, 210),
    (16, GUIDED, 1.2, 1.4, 0.75, 125.6, 3.20, 0.606, 0.673, 215),
    (16, AUTOG, 1.55, 2.1, 0.0, 82.2, 2.32, 0.652, 0.641, 229),
    (16, AUTOG, 1.55, 2.1, 0.75, 75.2, 1.93, 0.669, 0.644, 236),
]
TABLE4 = [  # preset, solver; FID at NFE 6, 8, 10 without and with ERK-Guid; its w_stiff (Table 5)
    ("edm-imagenet-64x64-cond-adm", "heun",
     (89.63, 37.65, 16.46), (85.19, 35.93, 13.85), (0.75, 1.25, 1.0)),
    ("edm-imagenet-64x64-cond-adm", "dpm2",
     (44.83, 12.42, 6.84), (31.59, 10.57, 6.54), (1.25, 1.25, 1.25)),
    ("edm-imagenet-64x64-cond-adm", "deis",
     (12.57, 6.84, 5.34), (9.56, 6.25, 4.89), (2.5, 2.5, 2.5)),
    ("edm-ffhq-64x64-uncond-vp", "heun",
     (142.4, 57.21, 29.54), (132.8, 54.72, 23.36), (0.5, 1.25, 1.5)),
    ("edm-ffhq-64x64-uncond-vp", "dpm2",
     (83.17, 22.84, 9.46), (49.0, 10.42, 4.64), (1.25, 1.25, 1.25)),
    ("edm-ffhq-64x64-uncond-vp", "deis",
     (12.25, 7.59, 5.56), (9.96, 6.04, 4.46), (3.5, 3.5, 3.5)),
]  # fmt: skip
TABLE8 = [(0.0, 50.4, 1.36, 0.691, 0.628, 262), (1.0, 47.6, 1.36, 0.694, 0.630, 268),
          (1.0, 44.9, 1.36, 0.710, 0.605, 274)]  # fmt: skip
TABLE10 = [  # tau, NFE, FD-DINOv2, FID; the first is ERK-Guid, the second Heun
    (None, 63, 86.2, 2.56), (None, 63, 90.1, 2.58), (0.5, 90.7, 88.9, 2.57),
    (1.0, 85.5, 89.4, 2.57), (2.0, 79.5, 90.0, 2.58), (5.0, 67.6, 90.1, 2.58),
    (10.0, 64.5, 90.1, 2.58),
]  # fmt: skip
TABLE11 = [  # with noise, r, FD-DINOv2, FID; then ERK-Guid, which has the numbers of Table 2
    (True, 0.05, 91.5, 2.65), (True, 0.10, 93.0, 2.66), (True, 0.15, 98.9, 2.90),
    (False, 0.01, 90.6, 2.61), (False, 0.02, 87.4, 2.73), (False, 0.03, 88.6, 3.33),
]  # fmt: skip


def erk(w_stiff, w_con=0.5):
    """The settings of ERK-Guid; w_con only where it acts."""
    return {"w_stiff": w_stiff} | ({"w_con": w_con} if w_stiff else {})


def table1():
    return [({}, {}, {"dominant": 7.22e-05, "subdominant": 5.78e-06}),
            ({}, {}, {"dominant": 4.03e-04, "subdominant": 6.18e-05})]  # fmt: skip


def table2():
    for steps, w_stiff, w_con, printed, *values in TABLE2:
        settings = PLAIN | {"steps": steps} | erk(w_stiff, w_con)
        yield (
            settings,
            {"w_con": printed} if printed else {},
            dict(zip(QUALITY, values, strict=True)),
        )


def table3():
    for steps, preset, guidance, printed, w_stiff, *values in TABLE3:
        settings = EDM2 | {"preset": preset, "steps": steps} | erk(w_stiff)
        settings |= {"guidance": guidance} if guidance else {}
        as_printed = {"guidance": printed} if printed else {}
        yield settings, as_printed, dict(zip(QUALITY, values, strict=True))


def table4():
    """An NFE takes as many steps of a multistep solver, half as many of a two-stage one."""
    for preset, solver, base, guided, weights in TABLE4:
        common = {"preset": preset, "solver": solver, "schedule": "polynomial", "rho": 7,
                  "sigma_min": 0.002, "sigma_max": 80, "afs": False,
                  "denoise_to_zero": False}  # fmt: skip
        if solver == "deis":
            common |= {"schedule": "time_uniform", "rho": 2}
            common["solver_option"] = ["order=4", "mode=tab"]
        for nfe, *fids, weight in zip((6, 8, 10), base, guided, weights, strict=True):
            steps = {"steps": nfe if solver == "deis" else nfe // 2}
            for fid, w_stiff in zip(fids, (0.0, weight), strict=True):
                yield common | steps | erk(w_stiff, 0.05), {}, {"nfe": nfe, "fid": fid}


def table6():
    names = ("avg", "min", "max")
    for w_stiff, *values in ((0.0, 2.777, 2.775, 2.782), (1.0, 2.794, 2.785, 2.811)):
        yield PLAIN | {"steps": 32} | erk(w_stiff), {}, dict(zip(names, values, strict=True))


def table7():
    return [(PLAIN | {"steps": 32} | erk(w), {}, {"memory": 1906.82}) for w in (0.0, 1.0)]


def table8():
    """The last row is ERK-Proj, which has no threshold."""
    for index, (w_stiff, *values) in enumerate(TABLE8):
        method = {"w_stiff": 1.0, "erk_proj": True} if index == 2 else erk(w_stiff)
        settings = EDM2 | {"preset": AUTOG, "steps": 32} | method
        yield settings, {}, dict(zip(QUALITY, values, strict=True))


def table10():
    for index, (tau, nfe, fd, fid) in enumerate(TABLE10):
        settings = PLAIN | {"steps": 32} | erk(1.0 if index == 0 else 0.0)
        settings |= {"adaptive_tau": tau} if tau else {}
        yield settings, {}, {"nfe": nfe, "fd_dinov2": fd, "fid": fid}


def table11():
    for noisy, snr, fd, fid in TABLE11:
        settings = PLAIN | {"steps": 22, "pc_snr": snr} | erk(0.0)
        settings |= {} if noisy else {"pc_deterministic": True}
        yield settings, {}, {"nfe": 64, "fd_dinov2": fd, "fid": fid}
    yield PLAIN | {"steps": 32} | erk(1.5), {}, {"nfe": 63, "fd_dinov2": 83.7, "fid": 2.60}


@pytest.mark.parametrize(
    "rows", [table1, table2, table3, table4, table6, table7, table8, table10, table11]
)
def test_rows_are_those_of_the_paper(rows):
    """All settings and all published values of every row, in the paper's order."""
    config = load_config(rows.__name__)
    wanted = list(rows())
    assert len(config.rows) == len(wanted)
    for row, (settings, as_printed, published) in zip(config.rows, wanted, strict=True):
        assert row.settings == settings, row.name
        assert row.as_printed == as_printed, row.name
        assert row.published == published, row.name


@pytest.mark.parametrize("number", [2, 3, 4, 8, 10, 11])
def test_images_are_those_of_the_paper(number):
    """50 000 of them; Table 4 from seed 0 against the references of its two data sets."""
    config = load_config(f"table{number}")
    assert config.num == 50000 and config.small.settings == {}
    assert config.seeds == (0 if number == 4 else 100000)
    assert config.ref == (None if number == 4 else "imagenet512")
    columns = {4: ("fid",), 10: QUALITY[:2], 11: QUALITY[:2]}.get(number, QUALITY)
    assert tuple(config.columns) == columns
    direction = dict(zip(QUALITY, ("low", "low", "high", "high", "high"), strict=True))
    assert config.best == {name: direction[name] for name in columns}


def test_other_facts_of_the_paper():
    assert load_config("table4").options.refs == {
        "edm-imagenet-64x64-cond-adm": "imagenet64-edm", "edm-ffhq-64x64-uncond-vp": "ffhq64",
    }  # fmt: skip
    assert load_config("table6").options == CostOptions(what="seconds", batch=1)
    assert load_config("table7").options == CostOptions(what="memory", batch=1)


def test_a_method_stands_against_its_own_baseline():
    """The row that a row is compared with: its settings without ERK-Guid, if it is guided."""
    for number in (2, 3, 4, 6, 7, 8):
        config = load_config(f"table{number}")
        by_name = {row.name: row for row in config.rows}
        for row in config.rows:
            if row.settings["w_stiff"] == 0:
                assert row.against is None
                continue
            other = by_name[row.against].settings
            reference = {k: v for k, v in row.settings.items() if k not in ("w_con", "erk_proj")}
            assert other == reference | {"w_stiff": 0.0}, row.name


def test_names_say_what_the_rows_are():
    """A number in a row's name is that of its setting."""
    said = {
        r"([\d.]+) steps": "steps", r"w_stiff ([\d.]+)": "w_stiff", r"NFE ([\d.]+)": "nfe",
        r"tau ([\d.]+)": "adaptive_tau", r", r ([\d.]+)": "pc_snr",
    }  # fmt: skip
    count = 0
    for number in (2, 3, 4, 10, 11):
        for row in load_config(f"table{number}").rows:
            for pattern, name in said.items():
                for text in re.findall(pattern, row.name):
                    assert float(text) == (row.settings | row.published)[name], row.name
                    count += 1
    assert count == 10 + 7 + 8 + 36 + 5 + 6  # Table 2 names w_stiff in seven rows
