"""The dashboard in a real browser, over sagas that really run."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from choreo.broker.port import TopicPartition
from choreo.web.access import Grant, Role, digest_of, new_token
from tests.browser.chromium import launched
from tests.web_world import World, running, served, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

READER, OPERATOR = new_token(), new_token()
GRANTS = (Grant(Role.READ, "rita", digest_of(READER)), Grant(Role.OPERATE, "olga", digest_of(OPERATOR)))

expect.set_options(timeout=20_000)  # a slow machine is no fault of the page

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()

# Whatever of it is run, or becomes an element, leaves a trace in the page.
MARKUP = (
    '\'"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script></title><svg onload=window.pwned=1>{{7*7}}'
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_program: Path) -> AsyncIterator[Browser]:
    async with launched(chromium_program) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with running() as one:
        yield one


@asynccontextmanager
async def looking(
    browser: Browser, world: World, *grants: Grant, **options: Any
) -> AsyncIterator[tuple[Page, str, list[str]]]:
    """A page, the dashboard's URL, and what the browser has complained of: there must be nothing at the end."""
    complaints: list[str] = []
    async with served(world, *grants) as url:
        context = await browser.new_context(**options)
        context.set_default_timeout(15_000)
        try:
            page = await context.new_page()
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            yield page, url, complaints
        finally:
            await context.close()


async def stuck(world: World, *saga_ids: str) -> None:
    for saga_id in saga_ids:
        await world.start(saga_id, stick="merchant suspended")
    for saga_id in saga_ids:
        await world.until(saga_id, "stuck")


async def test_a_page_follows_the_log_without_being_loaded_again(browser: Browser, world: World) -> None:
    await world.start("s", wait=True)
    await world.until_busy("s", "charge_card")
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(f"{url}/sagas/order/s")
        await expect(page.locator("#head .badge")).to_contain_text("running")
        await expect(page.locator("#live-text")).to_have_text("Live")
        await page.locator("#record-" + await first_record(page)).locator("summary").click()
        await page.evaluate("window.same = true")
        world.go_on.set()
        await expect(page.locator("#head .badge")).to_contain_text("completed")
        await expect(page.locator("#records")).to_contain_text("saga completed")
        await expect(page.locator("#announce")).to_contain_text("the saga is completed")
        await expect(page.locator("#records details[open]")).to_have_count(1)
        assert await page.evaluate("window.same")
        assert complaints == []


async def first_record(page: Page) -> str:
    identity = await page.locator("#records details").first.get_attribute("id")
    assert identity is not None
    return identity.removeprefix("record-")


async def test_lists_grow_as_sagas_start_until_updates_are_paused(browser: Browser, world: World) -> None:
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(url)
        await expect(page.locator("#live-text")).to_have_text("Live")
        await world.start("first")
        await expect(page.locator("#recent")).to_contain_text("first")
        await expect(page.locator(".tile.p-completed .big")).to_have_text("1")
        await page.locator("#live").click()
        await expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
        await world.start("second")
        await world.until("second", "completed")
        await page.wait_for_timeout(1_500)
        await expect(page.locator("#recent")).not_to_contain_text("second")
        await page.locator("#live").click()
        await expect(page.locator("#recent")).to_contain_text("second")
        assert complaints == []


async def test_a_stuck_saga_is_searched_for_and_freed_with_a_reason(browser: Browser, world: World) -> None:
    await stuck(world, "s-1")
    await world.start("fine")
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(url)
        await page.get_by_role("link", name="Sagas", exact=True).click()
        await page.get_by_role("searchbox").fill("MERCHANT suspended")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("#found tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="s-1").click()
        await page.get_by_role("link", name="Try again: charge_card").click()
        await page.get_by_role("button", name="Try again: charge_card").click()
        await expect(page.locator("textarea:invalid")).to_have_count(1)  # no reason yet
        world.broken = False
        await page.get_by_label("Reason").fill("the gateway is back")
        await page.get_by_role("button", name="Try again: charge_card").click()
        await expect(page.locator(".said")).to_contain_text("another go")
        await expect(page.locator("#head .badge")).to_contain_text("compensated")
        await expect(page.locator("#records")).to_contain_text("the gateway is back")
        await expect(page.locator("#acts a")).to_have_count(0)
        assert complaints == []


async def test_a_running_saga_is_cancelled_after_it_was_shown_what_is_undone(browser: Browser, world: World) -> None:
    await world.start("s", wait=True)
    await world.until_busy("s", "charge_card")
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(f"{url}/sagas/order/s")
        await page.get_by_role("link", name="Pause").click()
        await page.get_by_label("Reason").fill("wait")
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#head")).to_contain_text("paused")
        await page.get_by_role("link", name="Resume").click()
        await page.get_by_label("Reason").fill("go on")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("#head")).not_to_contain_text("paused")
        await page.get_by_role("link", name="Cancel the saga").click()
        await expect(page.locator("ol.undo")).to_contain_text("release_stock undoes reserve_stock")
        await page.get_by_label("Reason").fill("changed their mind")
        await page.get_by_role("button", name="Cancel the saga").click()
        world.go_on.set()
        await expect(page.locator("#head .badge")).to_contain_text("compensated")
        assert complaints == []


async def test_many_sagas_are_freed_after_their_number_was_repeated(browser: Browser, world: World) -> None:
    await stuck(world, "s-1", "s-2", "s-3")
    world.broken = False
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(f"{url}/sagas?phase=stuck")
        await page.get_by_role("link", name="Try again").click()
        await page.get_by_role("button", name="See whom it would hit").click()
        await expect(page.locator("#bulk")).to_contain_text("3 sagas")
        await page.get_by_label("Reason").fill("back")
        await page.get_by_label("How many sagas").fill("4")
        await page.get_by_role("button", name=re.compile("Try again")).click()
        await expect(page.get_by_role("alert")).to_contain_text("the preview found 3 sagas, not 4")
        complaints.clear()  # the browser says that the answer was a 400
        await page.get_by_label("Reason").fill("back")
        await page.get_by_label("How many sagas").fill("3")
        await page.get_by_role("button", name=re.compile("Try again")).click()
        await expect(page.locator("#bulk")).to_contain_text("3 of 3 done, 0 passed over: done")
        for saga_id in ("s-1", "s-2", "s-3"):
            await world.until(saga_id, "compensated")
        assert complaints == []


async def test_a_saga_is_started_from_its_contract(browser: Browser, world: World) -> None:
    async with looking(browser, world) as (page, url, complaints):
        await world.start("registers-the-contract")
        await page.goto(f"{url}/contracts")
        await page.get_by_role("link", name="order v1").click()
        await page.get_by_label("Input, as JSON").fill("{")
        await page.get_by_role("button", name="Start").click()
        await expect(page.get_by_role("alert")).to_contain_text("is not JSON")
        complaints.clear()
        await page.get_by_label("Input, as JSON").fill('{"item": "kite"}')
        await page.get_by_label("Id").fill("a/b:c")
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("h1")).to_have_text("a/b:c")
        await expect(page.locator("#head .badge")).to_contain_text("completed")
        assert complaints == []


async def test_a_dead_letter_is_shown_and_written_back(browser: Browser, world: World) -> None:
    await bury(world, "broken", b"<b>no record</b>")
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(f"{url}/dead-letters")
        await page.locator("#letters tbody a").click()
        await expect(page.locator("pre").last).to_have_text("<b>no record</b>")
        await page.get_by_label("Reason").fill("once more")
        await page.get_by_role("button", name="Write it back").click()
        await expect(page.locator("main")).to_contain_text("Written back by loopback: once more")
        assert complaints == []


async def test_markup_in_what_others_write_is_text(browser: Browser, world: World) -> None:
    await world.start("bad", fail=MARKUP, code=MARKUP[:100], item=MARKUP)
    await world.start("worse", stick=MARKUP, item=MARKUP)
    await world.until("bad", "compensated")
    await world.until("worse", "stuck")
    await world.start("cancelled", wait=True, item=MARKUP)
    await world.until_busy("cancelled", "charge_card")
    await bury(world, MARKUP, MARKUP.encode(), (("x-" + MARKUP, MARKUP.encode()),))
    # Without the content security policy: escaping alone has to hold, and the policy would hide where it does not.
    async with looking(browser, world, bypass_csp=True) as (page, url, _):
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        async with httpx.AsyncClient(base_url=url) as api:
            cancel = {"reason": MARKUP}
            assert (await api.post("/api/v1/sagas/order/cancelled/cancel", json=cancel)).status_code == 202
            [letter] = (await api.get("/api/v1/dead-letters/order")).json()
        echo = quote(MARKUP)
        for path, shown in {
            "/": True,
            "/sagas": True,
            f"/sagas?text={echo}&code={echo}&step={echo}&phase={echo}": False,
            f"/sagas?colour{echo}={echo}&said={echo}": False,
            "/sagas/order/bad": True,
            "/sagas/order/worse": True,
            "/sagas/order/cancelled": True,
            f"/sagas/order/worse/act/retry?step={echo}": True,
            f"/bulk?act=retry&text={echo}": True,
            "/dead-letters": True,
            f"/dead-letters/order/{quote(letter['id'], safe='')}": True,
            f"/{echo}": True,
            f"/contracts/order/{echo}": False,
        }.items():
            await page.goto(url + path)
            await page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            if shown:
                assert "<img src=x" in await page.locator("body").inner_text(), path
            assert await page.locator("img[src=x], main script, main svg[onload], [onerror]").count() == 0, path
            assert await page.evaluate("window.pwned") is None, path
            assert "49" not in (await page.title()), path
        assert dialogs == []


async def test_the_policy_lets_no_script_run_that_is_not_ours(browser: Browser, world: World) -> None:
    async with looking(browser, world) as (page, url, complaints):
        await page.goto(url)
        await page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.pwned = 1";
                document.body.append(script);
                const image = '<img src=x onerror="window.pwned=1"><p style="color:red">';
                document.body.insertAdjacentHTML("beforeend", image);
            }"""
        )
        await page.wait_for_timeout(300)
        assert await page.evaluate("window.pwned") is None
        assert any("Content Security Policy" in complaint for complaint in complaints)


async def test_a_token_opens_a_session_that_the_role_bounds(browser: Browser, world: World) -> None:
    await stuck(world, "s")
    async with looking(browser, world, *GRANTS) as (page, url, complaints):
        await page.goto(f"{url}/sagas/order/s")
        await expect(page).to_have_url(f"{url}/login?next=/sagas/order/s")
        await page.get_by_label("Token").fill("guess")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_contain_text("not known")
        complaints.clear()
        await page.get_by_label("Token").fill(READER)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("h1")).to_have_text("s")
        await expect(page.locator("#acts a")).to_have_count(0)
        await expect(page.locator("#live-text")).to_have_text("Live")
        [cookie] = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert cookie["expires"] == -1
        assert await page.evaluate("document.cookie") == ""
        answer = await page.goto(f"{url}/sagas/order/s/act/skip?step=charge_card")
        assert answer is not None
        assert answer.status == 403
        complaints.clear()
        await page.get_by_role("button", name="Log out").click()
        await expect(page).to_have_url(f"{url}/login")
        await page.goto(f"{url}/sagas")
        await expect(page).to_have_url(f"{url}/login?next=/sagas")
        await page.goto(f"{url}/login?next=//evil.example/")
        await page.get_by_label("Token").fill(OPERATOR)
        await page.get_by_role("button", name="Log in").click()
        await expect(page).to_have_url(f"{url}/")
        await page.goto(f"{url}/sagas/order/s")
        await expect(page.locator("#acts a")).to_have_count(4)  # try again, take as done, resolve; pause
        assert complaints == []


async def test_a_form_of_elsewhere_does_nothing(browser: Browser, world: World) -> None:
    await stuck(world, "s")
    async with looking(browser, world, *GRANTS) as (page, url, _):
        await page.goto(f"{url}/login")
        await page.get_by_label("Token").fill(OPERATOR)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("h1")).to_have_text("Overview")
        [cookie] = await page.context.cookies()
        session = {"cookie": f"{cookie['name']}={cookie['value']}"}
        fields = {"step": "charge_card", "reason": "forged"}
        async with httpx.AsyncClient(base_url=url, headers=session) as api:
            path = "/sagas/order/s/act/skip"
            assert (await api.post(path, data=fields)).status_code == 403
            assert (await api.post(path, data={**fields, "csrf": "guess"})).status_code == 403
            token = await csrf_of(page)
            cross = {"origin": "https://evil.example"}
            assert (await api.post(path, data={**fields, "csrf": token}, headers=cross)).status_code == 403
            assert (await api.post("/api/v1/sagas/order/s/skip", json=fields)).status_code == 401
            assert (await api.get("/api/v1/sagas")).status_code == 200
            await world.until("s", "stuck")
            world.broken = False
            assert (await api.post(path, data={**fields, "csrf": token})).status_code == 303
        await world.until("s", "compensated")


async def csrf_of(page: Page) -> str:
    value = await page.locator("input[name=csrf]").first.get_attribute("value")
    assert value is not None
    return value


async def test_everything_can_be_done_without_the_script(browser: Browser, world: World) -> None:
    await stuck(world, "s")
    world.broken = False
    async with looking(browser, world, java_script_enabled=False) as (page, url, _):
        await page.goto(f"{url}/sagas?phase=stuck")
        await page.get_by_role("link", name="s", exact=True).click()
        await expect(page.locator("#live")).to_be_hidden()
        await page.get_by_role("link", name="Try again: charge_card").click()
        await page.get_by_label("Reason").fill("by hand")
        await page.get_by_role("button", name="Try again: charge_card").click()
        await world.until("s", "compensated")
        await page.reload()
        await expect(page.locator("#head .badge")).to_contain_text("compensated")


async def test_the_keyboard_reaches_everything(browser: Browser, world: World) -> None:
    await stuck(world, "s")
    async with looking(browser, world) as (page, url, _):
        await page.goto(f"{url}/sagas/order/s")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Skip to content")
        await page.keyboard.press("Enter")
        await expect(page.locator(":focus")).to_have_attribute("id", "main")
        await page.goto(f"{url}/sagas/order/s")
        reached = set()
        for _ in range(80):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.innerText.trim().split('\\n')[0]"))
            visible = await page.evaluate(
                "document.activeElement === document.body"
                " || getComputedStyle(document.activeElement).outlineStyle !== 'none'"
            )
            assert visible, f"the focus is not seen on {await page.evaluate('document.activeElement.outerHTML')}"
        assert {"Overview", "Sagas", "Doctor", "Live", "Try again: charge_card", "traceback"} <= reached
        record = page.locator("#records summary").first
        await record.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#records details[open]")).to_have_count(1)


async def paths_of_all_pages(world: World) -> list[str]:
    await stuck(world, "s")
    await world.start("running", wait=True)
    await world.until_busy("running", "charge_card")
    await world.start("fine")
    await world.until("fine", "completed")
    await bury(world, "broken", b"no record")
    return [
        "/",
        "/sagas",
        "/sagas?limit=none",
        "/sagas/order/s",
        "/sagas/order/running",
        "/sagas/order/fine",
        "/sagas/order/running/act/cancel",
        "/sagas/order/s/act/resolve?step=charge_card",
        "/bulk?act=retry&phase=stuck",
        "/contracts",
        "/contracts/order/1",
        "/dead-letters",
        "/doctor",
        "/nowhere",
        "/sagas/order/s",  # in the other scheme too
    ]


async def test_no_page_breaks_a_rule_of_accessibility_light_or_dark(browser: Browser, world: World) -> None:
    paths = await paths_of_all_pages(world)
    async with looking(browser, world, reduced_motion="reduce") as (page, url, _):
        for number, path in enumerate(paths):
            # Colours are the style sheet's, not a page's: half of the pages in each scheme has every colour twice.
            await page.emulate_media(color_scheme="dark" if number % 2 else "light")
            await page.goto(url + path)
            await page.evaluate(AXE)
            found = await page.evaluate(
                "axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })"
            )
            told = [
                f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
                for each in found["violations"]
                for node in each["nodes"]
            ]
            assert told == [], f"{path}\n" + "\n".join(told)
            assert len(found["passes"]) > 10


async def test_no_page_is_wider_than_a_narrow_screen(browser: Browser, world: World) -> None:
    paths = await paths_of_all_pages(world)
    async with looking(browser, world, viewport={"width": 360, "height": 740}) as (page, url, _):
        for path in paths:
            await page.goto(url + path)
            assert await page.evaluate("document.scrollingElement.scrollWidth") <= 360, path


async def test_pages_are_found_for_whoever_asks_without_a_browser(world: World) -> None:
    async with served(world) as url, httpx.AsyncClient(base_url=url) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "unsafe-inline" not in page.headers["content-security-policy"]
        assert not re.search(r"<script(?! src)|<style| style=| on\w+=", page.text)
        for path in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        assert (await client.get("/static/x/../../app.py")).status_code == 404
        assert (await client.get("/static/x/app.py")).status_code == 404
        assert (await client.post("/login", data={"token": "x"})).status_code in (303, 403)
        assert json.loads((await client.get("/readyz")).text) == {"ready": True}


async def bury(world: World, key: str, value: bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> None:
    producer = await world.broker.producer()
    await producer.send("choreo.order", key=key, value=value, headers=headers)
    await producer.close()

    async def buried() -> bool:
        tps = await dead_letter_partitions(world)
        return any(end > first for first, end in (await world.broker.offsets(tps)).values())

    await until(buried, "the dead letter")


async def dead_letter_partitions(world: World) -> list[TopicPartition]:
    topic = "choreo.order.dead-letters"
    return [TopicPartition(topic, number) for number in range(await world.broker.partitions(topic))]
