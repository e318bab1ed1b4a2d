"""Files that are written as by a shell: emptied first, and filled in pieces later."""

from mesh_objects import to


async def test_a_file_that_is_emptied_and_filled_again_loses_no_request(serving):
    path = serving.objects / "mesh.yaml"
    text = path.read_text()
    async with serving.load() as load:
        for _ in range(3):
            for piece in ("", text[: len(text) // 3], text[: 2 * len(text) // 3]):
                path.write_text(piece)
                await serving.status_is(
                    lambda status: [each for each in status.problems if "mesh.yaml" in each.source]
                )
                await load.some(100)
            path.write_text(text)
            await serving.status_is(lambda status: not status.problems)
            await load.some(100)
        # What the file holds in the end counts.
        serving.write(*serving.vision({"route": [to("v2")]}))
        await load.comes_to("v2")
    assert not load.failures
