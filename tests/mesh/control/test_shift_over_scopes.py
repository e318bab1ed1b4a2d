"""Shifts through a real Envoy whose gateway names its domain in full, under load."""

from mesh_objects import DOMAIN, to


async def test_shifts_over_scopes_lose_nothing(mesh):
    mesh.write(*mesh.vision({"route": [to("v1", 100)]}, hosts=[DOMAIN]))
    await mesh.controller.start()
    async with mesh.envoy() as mesh.admin, mesh.load() as load:
        await load.only("v1")
        for number in range(20):
            await mesh.controller.shift({"v1": 10 * (number % 7), "v2": 100 - 10 * (number % 7)})
        await mesh.controller.shift({"v1": 0, "v2": 100})
        await load.only("v2")
        status = await mesh.controller.status()
        (proxy,) = status.proxies
        asked = {each.type.rpartition(".")[2]: each.acknowledged for each in proxy.resources}
        assert asked["ScopedRouteConfiguration"] == 1
        assert "VirtualHost" not in asked
    assert not load.failures
