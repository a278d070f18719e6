"""The web page in a browser: what it shows and does, beside what clients and numpy say."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.browser import Tab, chromium
from tests.server.repository_models import scale_bytes, write_model
from tests.server.running import RunningServer, free_port
from tests.server.web_models import EVIL, EVIL_INPUT, EVIL_LABEL, LABELS, MANY, write_repository

pytest.importorskip("httptools")
http = pytest.importorskip("tritonclient.http")
dtypes = pytest.importorskip("ml_dtypes")
parser = pytest.importorskip("prometheus_client.parser")
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TOKEN = "t0ken"

pytestmark = pytest.mark.xdist_group("web")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class PageServer(RunningServer):
    """Everybody may load models on its main port, and who has the token on `admin`."""

    def __init__(self, folder: Path) -> None:
        port = str(free_port())
        self.admin = f"127.0.0.1:{port}"
        arguments = ("--admin-on-main-port", "--admin-port", port, "--admin-token", TOKEN)
        super().__init__(folder, *arguments, "--control-mode", "explicit", "--load-model", "*")


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("page") / "models"
    write_repository(folder)
    with PageServer(folder) as running:
        yield running


@pytest.fixture
def tab(browser: Any, server: PageServer) -> Iterator[Tab]:
    found = Tab(browser, server.http)
    yield found
    found.close()


def row(page: Any, name: str) -> Any:
    """A model's row in the overview."""
    return page.locator("table.models tbody tr").filter(has=page.get_by_role("link", name=name, exact=True))


def open_model(page: Any, name: str) -> None:
    row(page, name).get_by_role("link").click()
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible()


def shown_values(page: Any, output: str) -> Any:
    """The values of an output as the page shows them."""
    part = page.locator(".output").filter(has=page.get_by_role("heading", name=output, exact=True))
    expect(part).to_be_visible()
    return json.loads(part.locator("pre").text_content())


def infer(server: RunningServer, name: str, x: Any) -> None:
    client = http.InferenceServerClient(server.http)
    tensor = http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    client.infer(name, [tensor])
    client.close()


def test_the_overview_shows_states_and_figures(tab: Tab, server: PageServer) -> None:
    page = tab.page
    expect(page.locator("#server .pill")).to_have_text("ready")
    expect(page.locator("#footer")).to_contain_text(f"HTTP {server.http_port} · gRPC {server.grpc_port}")
    expect(row(page, "scale").locator(".pill")).to_have_text("ready")
    expect(row(page, "chain")).to_contain_text("ensemble")
    expect(row(page, "broken").locator(".pill")).to_have_text("failed")
    expect(row(page, "broken")).to_contain_text("the bytes are not an ONNX model")
    for _ in range(3):
        infer(server, "scale", np.ones((8, 4), np.float32))
    with pytest.raises(http.InferenceServerException):
        infer(server, "scale", np.ones((1, 3), np.float32))
    expect(row(page, "scale").locator("td.n").nth(5)).to_have_text("1")
    failures = page.locator(".card").filter(has=page.get_by_role("heading", name="Failures")).locator("li")
    expect(failures).to_contain_text(re.compile("OTHER.*the request was wrong"))
    expect(page.locator(".columns li").first).to_be_visible()
    chart = page.get_by_role("img", name="Requests per second")
    expect(chart.locator("path.line").first).to_have_attribute("d", re.compile("^M.*L"))


def test_a_server_that_is_not_ready_says_why_and_gpus_show(tab: Tab) -> None:
    page = tab.page
    gpu = {
        "uuid": "GPU-<i>7", "utilization": 0.42, "memory_total": 8 << 30, "memory_used": 3 << 30, "power": 61.5,
        "power_limit": 300.0, "energy": 7200.0, "temperature": None,
    }  # fmt: skip
    changes = {"ready": False, "lacks": ["late"], "gpus": [gpu]}
    page.route("**/ui/status", lambda route: route.fulfill(json={**route.fetch().json(), **changes}))
    expect(page.locator("#server .pill")).to_have_text("not ready")
    expect(page.locator(".warn")).to_contain_text("it should have served late")
    cells = ["GPU-<i>7", "42 %", "3.00 GiB of 8.00 GiB", "61.5 W of 300 W", "–", "2.00 Wh"]
    expect(page.get_by_role("row", name="GPU-<i>7").locator("th, td")).to_have_text(cells)
    changes["draining"] = True
    expect(page.locator("#server .pill")).to_have_text("draining")
    page.unroute_all(behavior="wait")
    expect(page.locator("#server .pill")).to_have_text("ready")
    expect(page.locator(".warn")).to_be_hidden()


def test_bars_and_columns_follow_their_figures(tab: Tab) -> None:
    script = """async () => {
        const { Bars, Columns } = await import('/ui/charts.js');
        const texts = (part, name) => [...part.element.querySelectorAll(name)].map((e) => e.textContent);
        const bars = new Bars({});
        bars.update([{ name: 'a', value: 1 }], 'none');
        bars.update([{ name: 'b', value: 30 }, { name: 'a', value: 10 }], 'none');
        const widths = [...bars.element.querySelectorAll('.fill')].map((e) => e.style.width);
        const columns = new Columns({ title: 't' });
        columns.update([{ name: '1', value: 1 }, { name: '2', value: 0 }], 'none');
        columns.update([{ name: '1', value: 1 }, { name: '2', value: 3 }], 'none');
        bars.update([], 'none');
        return [texts(bars, '.empty'), widths, texts(columns, '.value'), texts(bars, 'li')];
    }"""
    empty, widths, shares, rows = tab.page.evaluate(script)
    assert (empty, rows) == (["none"], [])
    assert [round(float(w[:-1])) for w in widths] == [100, 33]
    assert shares == ["25%", "75%"]


def test_names_are_text(tab: Tab) -> None:
    page = tab.page
    expect(row(page, EVIL)).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    open_model(page, EVIL)
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    expect(page.locator("legend .mono")).to_have_text(EVIL_INPUT)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".output h3")).to_have_text(f"{EVIL_INPUT}-out")
    page.get_by_role("link", name="Metrics").click()
    page.get_by_label("Filter metrics").fill("onerror nv_inference_count")
    expect(page.locator(".family .tag b").first).to_have_text(EVIL)
    assert page.title() == "Metrics · Whet"
    assert page.locator("img[src=x], main script, main b b").count() == 0


def test_markup_cannot_be_made_of_text(tab: Tab) -> None:
    """The policy holds even where the page's own code would not."""
    script = "() => { try { document.body.innerHTML = '<p>x</p>'; return 'done'; } catch (e) { return e.name; } }"
    assert tab.page.evaluate(script) == "TypeError"
    tab.complaints.clear()


def test_values_are_sent_and_answered(tab: Tab) -> None:
    page = tab.page
    open_model(page, "scale")
    x = np.random.default_rng().standard_normal((3, 4)).round(3).astype(np.float32)
    page.get_by_label("x, extent 1").fill("3")
    page.get_by_label("x: values", exact=True).select_option("text")
    page.get_by_label("x: values as JSON").fill(json.dumps(x.tolist()))
    page.get_by_label("times").fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    values = np.array(shown_values(page, "y"), np.float32).reshape(3, 4)
    np.testing.assert_allclose(values, 2 * x, rtol=1e-6)
    expect(page.locator(".timing")).to_contain_text("2 runs: min")
    expect(page.locator("details.json pre")).to_contain_text('"model_name": "scale"')


def test_random_values_are_those_that_are_sent(tab: Tab) -> None:
    page = tab.page
    open_model(page, "scale")
    page.get_by_label("x: from").fill("5")
    page.get_by_label("x: to").fill("6")
    page.get_by_role("button", name="New values").click()
    x = np.array(json.loads(page.get_by_label("x: values as JSON").input_value()), np.float32)
    assert x.min() >= 5
    assert x.max() <= 6
    assert len(set(x.tolist())) > 1
    page.get_by_role("button", name="Run", exact=True).click()
    np.testing.assert_allclose(np.array(shown_values(page, "y")), 2 * x, rtol=1e-6)


def test_what_is_wrong_is_said_and_the_servers_words_are_shown(tab: Tab) -> None:
    page = tab.page
    open_model(page, "scale")
    area, alert = page.get_by_label("x: values as JSON"), page.get_by_role("alert")
    run = page.get_by_role("button", name="Run", exact=True)
    for text, said in (
        ("[1, 2, 3]", "x: 3 values, but 1×4 has 4"),
        ('[1, 2, 3, "4"]', 'x, value 4: "4" is no number'),
        ("[1, 2", "x: this is no JSON"),
    ):
        area.fill(text)
        run.click()
        expect(alert).to_contain_text(said)
    page.get_by_role("checkbox", name="as JSON").click()
    expect(alert).to_contain_text("x: this is no JSON")
    area.fill("[1, 2, 3, 4]")
    page.get_by_role("checkbox", name="as JSON").click()
    request = page.get_by_label("The request as JSON")
    document = json.loads(request.input_value())
    assert document["inputs"] == [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    document["inputs"][0]["name"] = "z"
    request.fill(json.dumps(document))
    run.click()
    expect(alert).to_contain_text("z")
    document["inputs"][0]["name"] = "x"
    request.fill(json.dumps(document))
    run.click()
    assert shown_values(page, "y") == [2, 4, 6, 8]
    expect(alert).to_be_hidden()


def test_every_datatype_goes_out_and_comes_back(tab: Tab) -> None:
    page = tab.page
    open_model(page, "many")
    given = {
        "BOOL": [True, False, False, True],
        "INT64": [-9007199254740991, 0, 7, 9007199254740991],
        "UINT8": [0, 1, 254, 255],
        "FP16": [0.5, -1024, 65504, 0.000060975552],
        "FP64": [1e300, -0.5, 3, 1e-300],
        "BYTES": ["", "a\nb", "<b>", "ü€𝄞"],
    }
    assert set(given) == set(MANY)
    for name, values in given.items():
        page.get_by_label(f"{name}: values", exact=True).select_option("text")
        page.get_by_label(f"{name}: values as JSON").fill(json.dumps(values))
    page.get_by_role("button", name="Run", exact=True).click()
    for name, values in given.items():
        found = shown_values(page, f"{name}-out")
        assert found == pytest.approx(values, rel=1e-6) if name in ("FP16", "FP64") else found == values, name
    page.get_by_label("UINT8: values as JSON").fill("[1, 2, 3, 256]")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("UINT8, value 4: 256 does not fit UINT8")


def test_largest_values_have_their_labels(tab: Tab) -> None:
    page = tab.page
    open_model(page, "classes")
    scores = [0.1, 0.7, 0.05, 0.15]
    page.get_by_label("x: values as JSON").fill(json.dumps(scores))
    page.get_by_role("button", name="Run", exact=True).click()
    names = page.locator(".classes .name")
    order = np.argsort(scores)[::-1]
    expect(names).to_have_text([LABELS[i] for i in order])
    expect(names.first).to_have_text(EVIL_LABEL)
    expect(page.locator(".classes .value")).to_have_text([str(scores[i]) for i in order])


def test_an_image_becomes_a_tensor(tab: Tab, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    page = tab.page
    open_model(page, "image")
    page.get_by_label("pixels: values", exact=True).select_option("image")
    expect(page.locator("p.bad")).to_have_text("choose an image file")
    page.get_by_label("pixels: image file").set_input_files(tmp_path / "noise.png")
    page.get_by_label("Scale of the pixels").select_option("raw")
    expect(page.get_by_label("The image as the model gets it")).to_be_visible()
    page.get_by_role("button", name="Run", exact=True).click()
    expected = pixels.transpose(2, 0, 1).ravel()
    assert shown_values(page, "pixels-out") == expected.tolist()
    page.get_by_label("Scale of the pixels").select_option("imagenet")
    page.get_by_role("button", name="Run", exact=True).click()
    # Until the second answer is there, the first one is shown.
    expect(page.locator(".output .hint").first).to_contain_text("min -")
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = ((pixels / 255 - mean) / deviation).transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(shown_values(page, "pixels-out"), scaled, rtol=1e-4, atol=1e-5)


def test_models_are_unloaded_and_loaded(tab: Tab, server: PageServer) -> None:
    page = tab.page
    client = http.InferenceServerClient(server.http)
    page.get_by_role("button", name="Unload a", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert client.is_model_ready("a")
    page.get_by_role("button", name="Unload a", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    expect(row(page, "a").locator(".pill")).to_have_text("unloaded")
    expect(row(page, "chain").locator(".pill")).to_have_text("failed")
    assert not client.is_model_ready("a")
    page.get_by_role("button", name="Load a", exact=True).click()
    expect(row(page, "a").locator(".pill")).to_have_text("ready")
    expect(row(page, "chain").locator(".pill")).to_have_text("ready")
    assert client.is_model_ready("a")
    page.get_by_role("button", name="Load broken", exact=True).click()
    expect(page.locator(".notice.bad")).to_contain_text("broken was not loaded: the bytes are not an ONNX model")
    client.close()


def test_the_admin_port_wants_its_token(browser: Any, server: PageServer) -> None:
    tab = Tab(browser, server.admin)
    page = tab.page
    reload = page.get_by_role("button", name="Reload b", exact=True)
    reload.click()
    expect(page.locator(".notice.bad")).to_contain_text("the call needs the administrator's token")
    page.get_by_label("Administrator's token").fill(TOKEN)
    reload.click()
    expect(page.locator(".notice:not(.bad)")).to_have_text("b: loaded.×")
    assert TOKEN not in json.dumps(tab.context.storage_state())
    tab.close()


def test_where_nobody_may_load_the_page_says_why(tab: Tab, server: PageServer) -> None:
    page = tab.page
    button = page.get_by_role("button", name="Reload b", exact=True)
    expect(button).to_be_visible()
    changes: dict[str, Any] = {}
    page.route("**/ui/status", lambda route: route.fulfill(json={**route.fetch().json(), **changes}))
    no_admin = {**json.loads(page.request.get(f"http://{server.http}/ui/status").text())["ports"], "admin": None}
    for changed, said in (
        ({"admin": "off"}, "Loading is done on the admin port."),
        ({"admin": "off", "ports": no_admin}, "--admin-on-main-port opens it"),
        ({"admin": "token", "control_mode": "none"}, "repository at the start is served: --control-mode"),
        ({"control_mode": "poll"}, "The repository is followed: --control-mode explicit"),
    ):
        changes.clear()
        changes.update(changed)
        expect(page.get_by_text(said)).to_be_visible()
        expect(button).to_be_hidden()
        expect(page.get_by_label("Administrator's token")).to_be_hidden()
    page.unroute_all(behavior="wait")
    expect(button).to_be_visible()


def test_every_family_of_metrics_is_there(tab: Tab, server: PageServer) -> None:
    page = tab.page
    infer(server, "scale", np.ones((2, 4), np.float32))
    page.get_by_role("link", name="Metrics").click()
    with urllib.request.urlopen(f"http://{server.http}/metrics") as answer:
        text = answer.read().decode()
    names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    expect(page.locator(".family h2")).to_have_text(names)
    page.get_by_label("Filter metrics").fill("nv_inference_count scale")
    expect(page.locator(".family")).to_have_count(1)
    expect(page.locator(".heading .hint").first).to_have_text(f"1 of {len(names)} families")
    value = next(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith('nv_inference_count{model="scale"')
    )
    expect(page.locator(".family td.n")).to_have_text(f"{value:,.0f}")
    page.get_by_label("Filter metrics").fill("nothing has this in it")
    expect(page.locator(".family")).to_have_count(0)


def test_the_parser_of_metrics_agrees_with_prometheus_own(tab: Tab, server: PageServer) -> None:
    with urllib.request.urlopen(f"http://{server.http}/metrics") as answer:
        text = answer.read().decode()
    script = "async (text) => (await import('/ui/metrics.js')).parse(text).map(f => ({...f, byKey: 0}))"
    found = {}
    for family in tab.page.evaluate(script, text):
        for sample in family["samples"]:
            key = frozenset(sample["labels"].items())
            if family["kind"] == "histogram":
                for le, count in sample["buckets"]:
                    found[f"{family['name']}_bucket", key | {("le", le)}] = count
                found[f"{family['name']}_sum", key] = float(sample["sum"])
                found[f"{family['name']}_count", key] = float(sample["count"])
            else:
                found[family["name"], key] = float(sample["value"])
    # The library's parser gives every counter the suffix of OpenMetrics.
    expected = {
        (sample.name.removesuffix("_total"), frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert len(expected) > 100
    assert {(name.removesuffix("_total"), key): value for (name, key), value in found.items()} == expected


def test_halves_are_rounded_as_numpy_rounds_them(tab: Tab) -> None:
    rng = np.random.default_rng()
    values = np.concatenate([
        rng.standard_normal(200) * 10.0 ** rng.integers(-9, 6, 200), rng.integers(-4096, 4096, 50) / 2,
        [0, -0.0, 65504, 65519.9, 65520, 2**-24, 2**-25, 1.5 * 2**-25, 2**-14, 1 + 2**-11, 1 + 3 * 2**-11],
    ])  # fmt: skip
    script = """async ([kind, values]) => {
        const { encode, decode } = await import('/ui/tensors.js');
        const bytes = encode(kind, values);
        return [[...bytes], decode(kind, bytes).map(String)];
    }"""
    for kind, dtype, near in (("FP16", np.float16, values), ("BF16", dtypes.bfloat16, values.astype(np.float32))):
        with np.errstate(over="ignore"):
            expected = near.astype(dtype)
        data, back = tab.page.evaluate(script, [kind, near.astype(float).tolist()])
        assert bytes(data) == expected.tobytes(), kind
        np.testing.assert_array_equal(np.array([float(b) for b in back]), expected.astype(float))


def test_percentiles_lie_where_the_histogram_says(tab: Tab) -> None:
    script = "async ([b, c, q]) => (await import('/ui/feed.js')).quantile(b, c, q)"
    for counts, q, expected in (
        ([0, 0, 0], 0.5, None), ([10, 0, 0], 0.5, 5), ([10, 10, 0], 0.5, 10), ([10, 10, 0], 0.75, 15),
        ([0, 4, 0], 0.25, 12.5), ([0, 0, 3], 0.99, 20), ([1, 0, 1], 0.5, 10), ([2, 1, 1], 1, 20),
    ):  # fmt: skip
        assert tab.page.evaluate(script, [[10, 20], counts, q]) == expected, (counts, q)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_view_without_scrolling_sideways(browser: Any, server: PageServer, scheme: str) -> None:
    tab = Tab(browser, server.http, viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True)
    page = tab.page
    background = "() => getComputedStyle(document.body).backgroundColor"
    expect(row(page, EVIL)).to_be_visible()
    dark = sum(int(n) for n in page.evaluate(background)[4:-1].split(",")) < 200
    assert dark == (scheme == "dark")
    for name in ("many", EVIL):
        page.goto(f"http://{server.http}/ui/#/")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        open_model(page, name)
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".output").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
    page.get_by_role("link", name="Metrics").click()
    expect(page.locator(".family").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Colours: auto").click()
    page.get_by_role("button", name="Colours: light").click()
    dark = sum(int(n) for n in page.evaluate(background)[4:-1].split(",")) < 200
    assert dark
    tab.close()


def test_a_lost_connection_is_said_and_found_again(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "scale", scale_bytes(2.0))
    with RunningServer(folder) as running:
        port = running.http_port
        tab = Tab(browser, running.http)
        page = tab.page
        # Nobody may load here, and the page says how that would be.
        expect(page.get_by_text("--control-mode explicit lets models be loaded")).to_be_visible()
        expect(row(page, "scale").locator(".pill")).to_have_text("ready")
        assert page.get_by_role("button", name="Reload scale", exact=True).is_hidden()
    expect(page.locator("#connection")).to_contain_text("The connection to the server is lost")
    expect(page.locator("#server .pill")).to_have_text("no connection")
    again = RunningServer(folder)
    again.http_port = port
    with again:
        expect(page.locator("#connection")).to_be_empty()
        expect(page.locator("#server .pill")).to_have_text("ready")
        infer(again, "scale", np.ones((1, 4), np.float32))
        open_model(page, "scale")
        expect(page.locator(".facts").first).to_contain_text("1 answered, 0 failed")
        tab.close()
