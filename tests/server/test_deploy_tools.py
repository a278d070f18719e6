"""Files of deploy/ under the tools of others, each where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.server.test_deploy_alerts import DEPLOY

yaml = pytest.importorskip("yaml")

TRITON = re.compile(r"^nv_\w+ ")
"""Names that are not ours to choose."""


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@needs("hadolint")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        ["hadolint", "--no-color", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["deployment", "hpa", "service"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    """The schemas of the newest Kubernetes that the package knows; fields that they do not know are errors."""
    validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((DEPLOY / f"kubernetes/{name}.yaml").read_text()):
        validate.validate(document, validate.latest_version(), strict=True)
        with pytest.raises(validate.ValidationError):
            validate.validate(document | {"sepc": {}}, validate.latest_version(), strict=True)


@needs("promtool")
def test_promtool_objects_to_none_of_our_own_metric_names(tmp_path: Path) -> None:
    pytest.importorskip("orjson")
    from tests.server.repository_models import scale_bytes
    from tests.server.running import RunningServer

    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "scale.onnx").write_bytes(scale_bytes(2.0))
    with (
        RunningServer(folder) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer,
    ):
        scrape = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=scrape, capture_output=True, check=False, timeout=60)
    # 1 is for what it cannot read, 3 for what it would name otherwise.
    assert done.returncode in (0, 3), done.stderr
    assert [line for line in done.stderr.decode().splitlines() if not TRITON.match(line)] == []
