"""The verbs of `whet`, their arguments and their help."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from whet.cli import bench as bench_verb
from whet.cli import compare as compare_verb
from whet.cli import demo as demo_verb
from whet.cli import info as info_verb
from whet.cli import load as load_verb
from whet.cli import machine as machine_verb
from whet.cli import optimize as optimize_verb
from whet.cli import run as run_verb
from whet.cli import serve as serve_verb
from whet.cli import tune as tune_verb
from whet.cli.inputs import ImageSettings
from whet.cli.output import Output
from whet.errors import Fail, WhetError
from whet.version import __version__

app = typer.Typer(
    name="whet",
    help="Run any ONNX model: optimized, placed, verified and timed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Providers = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        help="Execution provider, in order of priority (repeatable), or 'auto'.",
        show_default="CPUExecutionProvider",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="NAME=FILE or FILE: .npy, .npz, .pb or an image (repeatable); random otherwise.",
        show_default=False,
    ),
]
Dims = Annotated[
    list[str] | None,
    typer.Option(
        "--dim", "-d", help="NAME=SIZE for a free dimension of random inputs (repeatable).", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of random inputs.", min=0)]
Batch = Annotated[int | None, typer.Option(help="Size of a free first dimension.", show_default="1", min=0)]
Threads = Annotated[int, typer.Option(help="Threads of one run; 0 leaves it to the engine.", min=0)]
Level = Annotated[str, typer.Option("--level", help="disabled, basic, extended or all.")]
Mean = Annotated[
    str, typer.Option("--image-mean", help="Subtracted from pixels in 0..1: one number, or one per channel.")
]
Std = Annotated[str, typer.Option("--image-std", help="Divides pixels: one number, or one per channel.")]


@app.callback(invoke_without_command=True)
def callback(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Run any ONNX model: optimized, placed, verified and timed."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def info(
    model: Annotated[Path | None, typer.Argument(help="The ONNX model.", show_default=False)] = None,
    providers: Providers = None,
    level: Level = "all",
    options: Annotated[
        bool, typer.Option("--options", help="List the session options and keys that are accepted.")
    ] = False,
    machine: Annotated[
        bool, typer.Option("--machine", help="Show the machine: CPU, caches, cores, quota, chosen threads and why.")
    ] = False,
    measure: Annotated[bool, typer.Option("--measure", help="With --machine: measure its peak, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show a model's inputs, outputs, operators, size and placement; or the accepted options; or the machine."""
    out = Output(as_json)
    if measure and not machine:
        raise typer.BadParameter("--measure goes with --machine")
    if machine:
        machine_verb.show_machine(out, measure)
    elif options:
        info_verb.show_options(out)
    elif model is None:
        raise typer.BadParameter("give a model, --options or --machine")
    else:
        info_verb.show_model(out, model, providers, level)


@app.command()
def run(
    model: Model,
    inputs: Inputs = None,
    dims: Dims = None,
    providers: Providers = None,
    level: Level = "all",
    seed: Seed = 0,
    batch: Batch = None,
    threads: Threads = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save the outputs: a .npz file, or a folder for one .npy each."),
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Write a Chrome trace of the run.")] = None,
    image_mean: Mean = "0",
    image_std: Std = "1",
    as_json: Json = False,
) -> None:
    """Run a model once and show, or save, its outputs."""
    image = ImageSettings(image_mean, image_std)
    run_verb.run(
        Output(as_json), model, inputs or [], dims or [], providers, level, seed, batch, threads, output, profile, image
    )


@app.command()
def optimize(
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the optimized model goes.", show_default="MODEL.whet.onnx"),
    ] = None,
    inputs: Inputs = None,
    dims: Dims = None,
    providers: Providers = None,
    level: Annotated[str, typer.Option("--level", help="basic, extended or all.")] = "all",
    seed: Seed = 0,
    batch: Batch = None,
    threads: Threads = 0,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference, as a fraction of each output's own range.")
    ] = 1e-4,
    rounds: Annotated[int, typer.Option(help="Rounds of timing; 0 leaves timing out.", min=0)] = 5,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Save the optimized model.")] = True,
    as_json: Json = False,
) -> None:
    """Optimize a model, verify the answers, time it beside every installed peer, and save it."""
    optimize_verb.optimize(
        Output(as_json), model, output if save else None, save, inputs or [], dims or [], providers, level, seed, batch,
        threads, tolerance, rounds,
    )  # fmt: skip


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The model to check.", show_default=False)],
    second: Annotated[
        Path | None, typer.Argument(help="The model to check it against (itself when left out).", show_default=False)
    ] = None,
    inputs: Inputs = None,
    dims: Dims = None,
    providers: Annotated[
        list[str] | None,
        typer.Option(
            "--provider", "-p", help="Provider of the first model (repeatable).", show_default="CPUExecutionProvider"
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Provider of the second model (repeatable).",
            show_default="ReferenceExecutionProvider, unoptimized, float64",
        ),
    ] = None,
    level: Level = "all",
    seed: Seed = 0,
    batch: Batch = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference, as a fraction of each output's own range.")
    ] = 1e-4,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the pass or the node that makes the difference.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the outputs of two models, or of one model on two providers. Exit status 1 when they differ."""
    same = compare_verb.compare(
        Output(as_json),
        first,
        second,
        inputs or [],
        dims or [],
        providers,
        against,
        level,
        seed,
        batch,
        tolerance,
        bisect,
    )
    if not same:
        raise typer.Exit(1)


@app.command()
def bench(
    model: Model,
    inputs: Inputs = None,
    dims: Dims = None,
    providers: Providers = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            help="Time these engines side by side instead, one process each (repeatable, or 'all').",
            show_default=False,
        ),
    ] = None,
    level: Level = "all",
    seed: Seed = 0,
    batch: Batch = None,
    threads: Threads = 0,
    warm_up: Annotated[int, typer.Option(help="Runs that are not timed, first.", min=0)] = bench_verb.WARM_UP,
    runs: Annotated[int, typer.Option("--runs", "-n", help="Timed runs; 0 chooses by time.", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="How long to time when --runs is 0.", min=0.0)] = bench_verb.SECONDS,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds, with --engine.", min=1)] = 7,
    profile: Annotated[
        str | None,
        typer.Option(help="Show where the time goes: by 'operator', or by 'step'.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and throughput."""
    bench_verb.bench(
        Output(as_json), model, inputs or [], dims or [], providers, engines or [], level, seed, batch, threads,
        warm_up, runs, seconds, rounds, profile,
    )  # fmt: skip


@app.command()
def tune(
    models: Annotated[list[Path] | None, typer.Argument(help="The ONNX models.", show_default=False)] = None,
    mode: Annotated[str, typer.Option(help="quick or full.")] = "full",
    budget: Annotated[str, typer.Option(help="Time for all of it: 90, 60s, 5m or 1h.")] = "60s",
    threads: Threads = 0,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="INPUT:1x3x224x224,OTHER:8 for free dimensions (repeatable).", show_default=False),
    ] = None,
    inputs: Inputs = None,
    dims: Dims = None,
    level: Level = "all",
    folder: Annotated[
        Path | None, typer.Option("--cache", help="Folder of the timing cache.", show_default="the user's cache")
    ] = None,
    list_timings: Annotated[bool, typer.Option("--list", help="List what is known of this machine.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Look for damaged files; exit status 1 if any.")] = False,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="Take the timings of a file (repeatable).", show_default=False)
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write all timings to this file.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget all timings.")] = False,
    as_json: Json = False,
) -> None:
    """Time the ways to do each operation of some models here, and keep the timings for their sessions."""
    out = Output(as_json)
    asked = [bool(models), list_timings, verify, bool(merge), export is not None, clear]
    if sum(asked) != 1:
        raise typer.BadParameter("give models, or one of --list, --verify, --merge, --export and --clear")
    if models:
        tune_verb.tune(
            out, models, mode, budget, threads, shapes or [], inputs or [], dims or [], level, folder
        )  # fmt: skip
    elif list_timings:
        tune_verb.show(out, folder)
    elif verify:
        if not tune_verb.verify(out, folder):
            raise typer.Exit(1)
    elif merge:
        tune_verb.merge(out, merge, folder)
    elif export is not None:
        tune_verb.export(out, export, folder)
    else:
        tune_verb.clear(out, folder)


@app.command()
def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the optimized models.", show_default="a temporary one"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of timing; 0 leaves timing out.", min=0)] = 5,
    as_json: Json = False,
) -> None:
    """Classify handwritten digits with two small trained models, then optimize both. Needs no network."""
    demo_verb.demo(Output(as_json), output, rounds)


@app.command()
def serve(
    repository: Annotated[
        Path, typer.Argument(help="A model, a folder of models, or a repository as Triton has it.", show_default=False)
    ],
    model_name: Annotated[
        str | None,
        typer.Option(help="What the only model there is called.", show_default="as its file or folder"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; -1 for none.", min=-1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; -1 for none.", min=-1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Metrics port; -1 for none.", min=-1, max=65535)] = 8002,
    admin_port: Annotated[
        int, typer.Option(help="HTTP port for load, unload and settings; -1 for none.", min=-1, max=65535)
    ] = -1,
    admin_grpc_port: Annotated[int, typer.Option(help="The same over gRPC; -1 for none.", min=-1, max=65535)] = -1,
    admin_token: Annotated[
        str | None,
        typer.Option(envvar="WHET_ADMIN_TOKEN", help="Bearer token of the admin ports.", show_default=False),
    ] = None,
    admin_on_main_port: Annotated[
        bool, typer.Option("--admin-on-main-port", help="Let everyone who reaches the main ports change the server.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which browsers may call the server (repeatable).", show_default=False),
    ] = None,
    body_bytes: Annotated[int, typer.Option(help="Largest body of a request, in bytes.", min=1)] = 64 << 20,
    body_s: Annotated[float, typer.Option(help="Seconds that a body may take to arrive.", min=0.1)] = 30.0,
    drain_s: Annotated[float, typer.Option(help="Seconds that a stop waits for accepted requests.", min=0)] = 30.0,
    drain_delay_s: Annotated[
        float, typer.Option(help="Seconds before that, in which the server answers and is not ready.", min=0)
    ] = 0.0,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.", show_default=False)] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file; clients must show a certificate of it.", show_default=False)
    ] = None,
    control_mode: Annotated[
        Literal["none", "poll", "explicit"],
        typer.Option(help="none: load all at start; poll: follow the disk; explicit: load and unload on request."),
    ] = "none",
    load_model: Annotated[
        list[str] | None,
        typer.Option(help="With explicit: a model to load at start (repeatable, * for all).", show_default=False),
    ] = None,
    poll_s: Annotated[float, typer.Option(help="Seconds between two looks at the disk.", min=0.1)] = 15.0,
    # Not one option with two forms: the second one's column would cut off the names of the others in 80 columns.
    no_strict_readiness: Annotated[
        bool, typer.Option("--no-strict-readiness", help="Ready also while a model of the start is not served.")
    ] = False,
    strict_readiness: Annotated[bool, typer.Option("--strict-readiness", hidden=True)] = False,
    exit_on_error: Annotated[
        bool, typer.Option("--exit-on-error", help="End when a model cannot be served at start.")
    ] = False,
    max_batch_rows: Annotated[int, typer.Option(help="Rows of a batch for models without a configuration.", min=0)] = (
        32
    ),
    threads: Annotated[int, typer.Option(help="Threads of all runs; 0 leaves it to the server.", min=0)] = 0,
    cache_bytes: Annotated[int, typer.Option(help="Bytes of the response cache; 0 for none.", min=0)] = 0,
    rate_limit: Annotated[
        Literal["execution_count", "off"],
        typer.Option(help="Whether runs wait for the resources that configurations name."),
    ] = "execution_count",
    rate_limit_resource: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:COUNT, how much there is of a resource (repeatable).",
            show_default="the most that one run needs",
        ),
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Form of the log.")] = "text",
    log_verbose: Annotated[int, typer.Option(help="1 logs every request.", min=0, max=99)] = 0,
    trace_endpoint: Annotated[
        str | None, typer.Option(help="Where OpenTelemetry traces go (OTLP over HTTP).", show_default=False)
    ] = None,
    trace_rate: Annotated[int, typer.Option(help="Every how many requests one is traced.", min=1)] = 1000,
) -> None:
    """Serve models over HTTP and gRPC (KServe v2, as Triton Inference Server speaks it)."""
    serve_verb.serve(
        repository, model_name=model_name, host=host, http_port=http_port, grpc_port=grpc_port,
        metrics_port=metrics_port, admin_port=admin_port, admin_grpc_port=admin_grpc_port, admin_token=admin_token,
        admin_on_main_port=admin_on_main_port, allowed_hosts=tuple(allowed_host or ()),
        body_bytes=body_bytes, body_s=body_s, drain_s=drain_s, drain_delay_s=drain_delay_s,
        tls_certificate=tls_certificate, tls_key=tls_key, tls_client_ca=tls_client_ca,
        control_mode=control_mode, load_models=tuple(load_model or ()), poll_s=poll_s,
        strict_readiness=strict_readiness or not no_strict_readiness, exit_on_error=exit_on_error,
        max_batch_rows=max_batch_rows, threads=threads, cache_bytes=cache_bytes, rate_limit=rate_limit,
        rate_limit_resources=tuple(rate_limit_resource or ()), log_format=log_format, log_verbose=log_verbose,
        trace_endpoint=trace_endpoint, trace_rate=trace_rate,
    )  # fmt: skip


@app.command()
def load(
    server: Annotated[str, typer.Argument(help="HOST:PORT of the server.")] = "127.0.0.1",
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="NAME or NAME=WEIGHT (repeatable: a mix).", show_default=False),
    ] = None,
    protocol: Annotated[Literal["http", "grpc"], typer.Option(help="Protocol.")] = "http",
    encoding: Annotated[Literal["json", "binary"], typer.Option(help="Form of tensors over HTTP.")] = "json",
    connections: Annotated[str, typer.Option("--connections", "-c", help="One number, or several: 1,8,32.")] = "1",
    rate: Annotated[
        str | None, typer.Option(help="Requests/s of an open loop, or several: 50,100.", show_default=False)
    ] = None,
    arrivals: Annotated[Literal["poisson", "constant"], typer.Option(help="Arrivals of an open loop.")] = "poisson",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="MODEL=FILE or FILE (.npz, .npy), random or zeros.", show_default="random"),
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="INPUT=1x3x224x224 (repeatable).", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of a request.", min=1)] = 1,
    warm_up: Annotated[float, typer.Option(help="Seconds before the first window.", min=0)] = 1.0,
    window: Annotated[float, typer.Option(help="Seconds of a window.", min=0.01)] = 2.0,
    stability: Annotated[float, typer.Option(help="Percent by which windows may differ.", min=0)] = 10.0,
    windows: Annotated[int, typer.Option(help="Most windows.", min=3)] = 10,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.", min=0.01)] = 10.0,
    processes: Annotated[int, typer.Option(help="Processes that send.", min=1)] = 1,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the result as JSON.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Send requests to a server and measure throughput and latency."""
    done = load_verb.load(
        Output(as_json), server, models or (), protocol, encoding, connections, rate, arrivals, inputs or (),
        shapes or (), batch, warm_up, window, stability, windows, timeout, processes, seed, output,
    )  # fmt: skip
    if not done:
        raise typer.Exit(1)


def run_app() -> int:
    """Run the command that `sys.argv` holds and return its exit status; a typed error is printed, not raised."""
    out = Output("--json" in sys.argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            # `catch_warnings` puts it back; people need the message, not the line of this package that it left from.
            warnings.showwarning = lambda message, *_: out.warn(str(message))
            app()
    except WhetError as error:
        out.error(error)
        return 1
    except OSError as error:
        # A file or folder that was there a moment ago, or a disk that is full.
        out.error(Fail(error.strerror or str(error), file=error.filename))
        return 1
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else 1 if finished.code else 0
    return 0
