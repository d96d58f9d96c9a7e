import dataclasses

import pytest

from scoreline.errors import InputError
from scoreline.metrics.protocols import Facts, check, verdict

EDM = Facts(n=50_000, published=True, resize="network", split="train", adm_file=False)


def test_what_fits_bears_the_name():
    assert verdict("edm", EDM) == "edm"
    assert verdict("edm", dataclasses.replace(EDM, split=None)) == "edm"
    assert verdict("adm", dataclasses.replace(EDM, split=None, adm_file=True)) == "adm"
    assert verdict("clean", dataclasses.replace(EDM, resize="clean", n=7, split="test")) == "clean"


@pytest.mark.parametrize(
    ("protocol", "change", "wanted"),
    [
        ("edm", {"n": 5000}, "not edm (n=5000)"),
        ("edm", {"n": 50_001}, "not edm (n=50001)"),
        ("edm", {"split": "test"}, "not edm (split=test)"),
        ("edm", {"split": "unknown"}, "not edm (split=unknown)"),
        ("edm", {"published": False}, "not edm (another extractor)"),
        ("edm", {"resize": "clean"}, "not edm (resize=clean)"),
        ("edm", {"n": 64, "published": False}, "not edm (another extractor, n=64)"),
        ("adm", {}, "not adm (the reference is not in ADM's layout)"),
        ("clean", {}, "not clean (resize=network)"),
    ],
)
def test_what_does_not_fit_says_why(protocol, change, wanted):
    assert verdict(protocol, dataclasses.replace(EDM, **change)) == wanted


def test_unknown_names_are_refused():
    check(None)
    check("adm")
    with pytest.raises(InputError, match=r"metrics\.protocol=emd: .*did you mean"):
        check("emd")
