"""config.pbtxt as people have it: what is taken, what is refused and how, and what is shown of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from whet.errors import WhetError
from whet.server.repository.config_file import parse_config, parse_config_json, read_config, to_model_config
from whet.server.repository.config_message import config_document, config_message

# A text, and what the configuration made of it says by itself.
ACCEPTED: tuple[tuple[str, str, object], ...] = (
    (
        'name: "m", platform: "onnxruntime_onnx", max_batch_size: 8, '
        'input: [ { name: "x", data_type: TYPE_FP32, dims: [ 3, -1 ] } ]', "inputs[0].dims", (3, -1),
    ),
    ('# first\nbackend: "onnxruntime" # last\n', "backend", "onnxruntime"),
    ('input < name: "x" data_type: 11 dims: 3 dims: 4 >;', "inputs[0].dims", (3, 4)),
    ("parameters: { key: 'k' value: { string_value: 'v' \"w\" } }", "parameters['k']", "vw"),
    ("optimization { graph { level: 1 } input_pinned_memory { enable: true } priority: PRIORITY_MAX }", "instances", 1),
    ("instance_group [ { count: 2 kind: KIND_CPU }, { } ]", "instances", 3),
    ('input [{name:"x" data_type:TYPE_FP32 dims:[1] reshape:{shape:[]}}]', "inputs[0].reshape", ()),
    ('input [{name:"x" data_type:TYPE_STRING dims:[1] optional: true}]', "inputs[0].is_optional", True),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[2] label_filename:"labels.txt"}]', "outputs[0].labels",
     ("ash", "birch")),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[2] label_filename:"in/labels.txt"}]', "outputs[0].labels", ("oak",)),
    ("\ufeffmax_batch_size: 3", "max_batch_rows", 3),
    ("", "max_batch_rows", 0),
)  # fmt: skip

# A text, the error's class, and what its message says.
REFUSED: tuple[tuple[str, str, str], ...] = (
    ('name: "m"\nmax_batch_sise: 3', "InvalidArgument", r"2:1.*max_batch_sise"),
    ('input [{name: "x"\n data_type: FP32 dims: [1]}]', "InvalidArgument", r"2:13.*FP32"),
    ("max_batch_size: 99999999999", "InvalidArgument", "1:17"),
    ("a{" * 5000, "InvalidArgument", "does not parse"),
    ("max_batch_size: 4 dynamic_batching { } sequence_batching { direct { } }", "InvalidArgument", "dynamic_batching"),
    ("max_batch_size: -1", "InvalidArgument", "negative"),
    ('name: "other"', "InvalidArgument", "other"),
    ('backend: "python"', "Unsupported", "backend.*python"),
    ('platform: "tensorrt_plan"', "Unsupported", "platform.*tensorrt_plan"),
    ('platform: "ensemble"', "InvalidArgument", "no steps"),
    ("model_transaction_policy { decoupled: true }", "Unsupported", "decoupled"),
    ('batch_input [{ kind: BATCH_ITEM_SHAPE target_name: "x" }]', "Unsupported", "batch_input"),
    ("instance_group [{ kind: KIND_GPU gpus: [0] }]", "Unsupported", "KIND_GPU"),
    ("instance_group [{ count: -2 }]", "InvalidArgument", "instance_group.*-2"),
    ("instance_group [{ passive: true }]", "Unsupported", "passive"),
    ("input [{data_type:TYPE_FP32 dims:[1]}]", "InvalidArgument", "an input has no name"),
    ('input [{name:"x" dims:[1]}]', "InvalidArgument", "x.*TYPE_INVALID"),
    ('input [{name:"x" data_type:TYPE_FP32 dims:[-2]}]', "InvalidArgument", "x.*-2"),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[1]},{name:"y" data_type:TYPE_FP32 dims:[1]}]', "InvalidArgument",
     "twice.*y"),
    ('input [{name:"x" data_type:TYPE_FP32 dims:[1] allow_ragged_batch: true}]', "Unsupported", "ragged.*x"),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[1] label_filename:"none.txt"}]', "NoSuchFile", "none.txt"),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[1] label_filename:"../labels.txt"}]', "InvalidArgument",
     "label_filename"),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[1] label_filename:"/etc/passwd"}]', "InvalidArgument",
     "label_filename"),
    ('output [{name:"y" data_type:TYPE_FP32 dims:[1] label_filename:"latin.txt"}]', "InvalidArgument", "not text"),
    ('default_model_filename: "../m.onnx"', "InvalidArgument", "default_model_filename"),
    ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }", "InvalidArgument", "8.*1 to 4"),
    ("max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "InvalidArgument", "3"),
    ("max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1 "
     "priority_queue_policy { key: 3 value { } } }", "InvalidArgument", "priority_queue_policy.*3"),
    ("version_policy { latest { num_versions: 0 } }", "InvalidArgument", "version_policy"),
    ('parameters { key: "intra_op_thread_count" value { string_value: "-1" } }', "InvalidArgument",
     "intra_op_thread_count.*-1"),
    ('model_warmup [{ name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: [1] } } }]', "InvalidArgument",
     "w: x"),
)  # fmt: skip

EVERYTHING = """
name: "m" platform: "onnxruntime_onnx" max_batch_size: 8 default_model_filename: "net.onnx"
version_policy { specific { versions: [1, 4] } }
input [{ name: "x" data_type: TYPE_FP32 dims: [2, -1] reshape { shape: [-1] } optional: true }]
output [{ name: "y" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }]
instance_group [{ count: 3 kind: KIND_CPU rate_limiter { resources [{ name: "R" count: 2 }] priority: 5 } }]
dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 70 preserve_ordering: true
  priority_levels: 2 default_priority_level: 1
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 allow_timeout_override: true
    max_queue_size: 5 }
  priority_queue_policy { key: 2 value { max_queue_size: 7 } } }
response_cache { enable: true }
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
model_warmup [{ name: "w" batch_size: 2 count: 3 inputs { key: "x" value {
  data_type: TYPE_FP32 dims: [2, 5] random_data: true } } }]
"""
SEQUENCE = """
max_batch_size: 2
sequence_batching { max_sequence_idle_microseconds: 5000 oldest { max_candidate_sequences: 4 preferred_batch_size: [2]
    max_queue_delay_microseconds: 10 }
  control_input [{ name: "s" control [{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }] },
    { name: "r" control [{ kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }] },
    { name: "i" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }]
  state [{ input_name: "a" output_name: "b" data_type: TYPE_FP32 dims: [3]
    initial_state { data_type: TYPE_FP32 dims: [3] name: "first" data_file: "a.bin" } }] }
"""
ENSEMBLE = """
platform: "ensemble" max_batch_size: 2
input [{ name: "in" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "out" data_type: TYPE_FP32 dims: [1] }]
ensemble_scheduling { step [{ model_name: "a" model_version: 3 input_map { key: "x" value: "in" }
  output_map { key: "y" value: "out" } }] }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("ash\r\nbirch\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "labels.txt").write_text("oak")
    return tmp_path


@pytest.mark.parametrize(("text", "what", "expected"), ACCEPTED)
def test_accepted(folder: Path, text: str, what: str, expected: object) -> None:
    file = folder / "config.pbtxt"
    file.write_text(text, encoding="utf-8")
    config = to_model_config(read_config(file), "m", folder, str(file))
    assert eval(f"config.{what}", {"config": config}) == expected


@pytest.mark.parametrize(("text", "kind", "says"), REFUSED)
def test_refused(folder: Path, text: str, kind: str, says: str) -> None:
    with pytest.raises(WhetError, match=says) as caught:
        to_model_config(parse_config(text, "some/config.pbtxt"), "m", folder, "some/config.pbtxt")
    assert type(caught.value).__name__ == kind
    assert caught.value.file in ("some/config.pbtxt", str(folder / "none.txt"), str(folder / "latin.txt"))


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "config.pbtxt").write_bytes(b'name: "\xff\xfe"')
    with pytest.raises(WhetError, match="not text"):
        read_config(folder / "config.pbtxt")


@pytest.mark.parametrize("text", [EVERYTHING, SEQUENCE, ENSEMBLE])
def test_what_is_shown_means_the_same(folder: Path, text: str) -> None:
    config = to_model_config(parse_config(text, "f"), "m", folder, "f")
    assert to_model_config(config_message(config), "m", folder, "f") == config
    document = config_document(config)
    assert document["name"] == "m"
    assert document["max_batch_size"] == config.max_batch_rows
    assert to_model_config(parse_config_json(_json(document), "f"), "m", folder, "f") == config


DELAYS: tuple[tuple[str, int | None], ...] = (
    ("", None),
    ("max_queue_delay_microseconds: 0", 0),
    ("max_queue_delay_microseconds: 5", 5),
)


@pytest.mark.parametrize(("text", "expected"), DELAYS)
def test_only_a_delay_that_is_not_there_is_learned(folder: Path, text: str, expected: int | None) -> None:
    config = to_model_config(parse_config(f"max_batch_size: 4 dynamic_batching {{ {text} }}", "f"), "m", folder, "f")
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.max_queue_delay_us == expected
    # So it is in what the server shows, as bytes and as JSON, when that comes back in a load request.
    shown = config_message(config)
    again = type(shown).FromString(shown.SerializeToString())
    assert to_model_config(again, "m", folder, "f") == config
    document = config_document(config)["dynamic_batching"]
    assert document.get("max_queue_delay_microseconds") == (None if expected is None else str(expected))


@pytest.mark.parametrize(("value", "expected"), [("null", None), ("0", 0), ('"0"', 0), ('"7"', 7)])
def test_a_delay_of_a_load_request(folder: Path, value: str, expected: int | None) -> None:
    text = f'{{"max_batch_size": 4, "dynamic_batching": {{"max_queue_delay_microseconds": {value}}}}}'
    config = to_model_config(parse_config_json(text, "f"), "m", folder, "f")
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.max_queue_delay_us == expected


def _json(document: object) -> str:
    import json

    return json.dumps(document)


def test_a_document_has_64_bit_numbers_as_text(folder: Path) -> None:
    document = config_document(to_model_config(parse_config(EVERYTHING, "f"), "m", folder, "f"))
    assert document["input"][0]["dims"] == ["2", "-1"]
    assert document["dynamic_batching"]["max_queue_delay_microseconds"] == "70"
    assert document["output"][0]["label_filename"] == "labels.txt"


@pytest.mark.parametrize("text", ['{"max_batch_sise": 1}', "[]", "{", '{"input": {"name": 3}}', "[" * 5000, '"x"', ""])
def test_json_that_is_no_configuration(text: str) -> None:
    with pytest.raises(WhetError, match="does not parse"):
        parse_config_json(text, "f")


def test_random_texts_are_taken_or_refused_by_name(folder: Path) -> None:
    """Real texts with pieces cut, doubled, swapped and replaced: nothing but a configuration or a typed error."""
    rng = random.Random(5)
    pieces = [p for t in (EVERYTHING, SEQUENCE, ENSEMBLE) for p in t.split(" ")]
    extra = ["{", "}", "[", "]", ":", '"', "-1", "99999999999999999999", "nan", "1e400", "\0", "\\x", "#", "TYPE_FP32"]
    taken = 0
    for _ in range(3000):
        words = rng.choice((EVERYTHING, SEQUENCE, ENSEMBLE)).split(" ")
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(words))
            match rng.randrange(4):
                case 0:
                    del words[at]
                case 1:
                    words.insert(at, rng.choice(pieces))
                case 2:
                    words[at] = rng.choice(extra)
                case 3:
                    words[at] = words[at][: rng.randint(0, len(words[at]))]
        try:
            config = to_model_config(parse_config(" ".join(words), "f"), "m", folder, "f")
            config_document(config)
            taken += 1
        except WhetError:
            pass
    assert 10 < taken < 2990
