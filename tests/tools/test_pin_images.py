"""Images have the packages that their servers need, at the versions of everything else."""

import pytest

from pin_images import IMAGES, ROOT, installed, pins


@pytest.mark.parametrize("image", IMAGES)
def test_the_packages_of_an_image_are_those_of_the_environment(image):
    path = ROOT / "deploy" / image / "requirements.txt"
    assert path.read_text() == pins(image, installed())


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_in_two_stages_and_runs_as_nobody_special(image):
    text = (ROOT / "deploy" / image / "Containerfile").read_text()
    build, final = text.split("FROM $PYTHON\n")
    assert f"RUN deploy/install.sh {image} /opt/tidegate" in build
    assert "USER 65532:65532" in final
    assert "COPY --from=build" in final
