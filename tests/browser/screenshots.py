"""Pictures of the dashboard for the docs: ``python -m tests.browser.screenshots [DIRECTORY]``, by default docs/images.

Sagas really run for them; names and failures are made up.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser

from tests.browser.chromium import executable, launched
from tests.web_world import World, running, served

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, NARROW = (1280, 800), (390, 844)


async def play(world: World) -> None:
    """Some sagas of every kind."""
    for number in range(14):
        await world.start(f"order-{4711 + number}", item="kite")
    await world.start("order-4730", fail="the depot is closed until Monday")
    await world.start("order-4731", fail="no courier for this address", code="no_courier")
    await world.start("order-4740", stick="merchant account suspended", code="depot_closed")
    await world.start("order-4741", stick="merchant account suspended", code="depot_closed")
    for saga_id in ("order-4730", "order-4731"):
        await world.until(saga_id, "compensated")
    for saga_id in ("order-4740", "order-4741"):
        await world.until(saga_id, "stuck")
    for number in range(14):
        await world.until(f"order-{4711 + number}", "completed")
    for number in range(3):
        await world.start(f"order-{4750 + number}", wait=True)
        await world.until_busy(f"order-{4750 + number}", "charge_card")
    producer = await world.broker.producer()
    await producer.send("choreo.order", key="order-4760", value=b'{"not": "a record"}')
    await producer.close()


async def shoot(browser: Browser, url: str, directory: Path) -> None:
    """One picture of each page that the docs show, and of the others when a directory is named."""
    views = {
        "overview": "/",
        "sagas": "/sagas?phase=scheduled,forward,compensating,stuck",
        "saga-stuck": "/sagas/order/order-4740",
        "saga-running": "/sagas/order/order-4750",
        "cancel": "/sagas/order/order-4750/act/cancel",
        "contract": "/contracts/order/1",
        "contracts": "/contracts",
        "dead-letters": "/dead-letters",
        "doctor": "/doctor",
        "bulk": "/bulk?act=retry&phase=stuck",
    }
    docs = {("overview", "light"), ("saga-stuck", "light"), ("saga-stuck", "dark"), ("sagas", "light")}
    for scheme in ("light", "dark"):
        for width, height in (WIDE, NARROW):
            context = await browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
            )
            page = await context.new_page()
            for name, path in views.items():
                wide = width == WIDE[0]
                if directory == IMAGES and not (wide and (name, scheme) in docs):
                    continue
                await page.goto(url + path)
                await page.wait_for_timeout(400)
                shown = f"{name}-{scheme}" if wide else f"{name}-{scheme}-narrow"
                file = directory / f"{shown}.png"
                await page.screenshot(path=file, full_page=directory != IMAGES)
                if directory == IMAGES:  # a page has few colours
                    Image.open(file).quantize(128).save(file, optimize=True)
            await context.close()


async def main(directory: Path) -> None:
    program = executable()
    if program is None:
        sys.exit("no Chromium is here; 'make browser' installs one")
    directory.mkdir(parents=True, exist_ok=True)
    async with running() as world, served(world) as url, launched(program) as browser:
        await play(world)
        await shoot(browser, url, directory)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
